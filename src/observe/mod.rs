//! What a person, a supervisor or Prometheus sees of the process: the log, the status socket, the metrics.

pub mod dump;
pub mod health;
pub mod logging;
pub mod metrics;
pub mod socket;
pub mod supervisor;
pub mod tap;
