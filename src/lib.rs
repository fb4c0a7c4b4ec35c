//! `backupy`: the backup agent and its control plane.

pub mod agent;
pub mod artifact;
pub mod calendar;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "control")]
pub mod control;
pub mod dispatch;
pub mod drivers;
pub mod exit;
pub mod host;
pub mod link;
pub mod model;
pub mod net;
pub mod observe;
pub mod outbox;
pub mod pipeline;
pub mod redact;
pub mod runs;
pub mod secret;
pub mod signals;
pub mod store;
pub mod thread;
pub mod wake;
pub mod wire;
