//! The embedded control plane: what `backupy up` adds to the agent.

pub mod connect;
pub mod http;
pub mod notify;
pub mod session;
pub mod watch;
