//! Dispatch.

pub mod admission;
pub mod retry;
pub mod window;
