//! The machine: what it is and how it is doing. Plain values; who sends them where is not known here.

pub mod metrics;
