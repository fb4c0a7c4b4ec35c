//! The machine: what it is and how it is doing, and what it sees of other services. Plain values; who sends them where is not known here.

pub mod checks;
pub mod discovery;
pub mod metrics;
pub mod update;
