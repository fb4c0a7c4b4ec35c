//! What a person or a supervisor sees of the process: the log and the status socket.

pub mod dump;
pub mod logging;
pub mod socket;
pub mod supervisor;
pub mod tap;
