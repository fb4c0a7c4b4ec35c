//! What can be known of the machine we run on.

pub mod metrics;
