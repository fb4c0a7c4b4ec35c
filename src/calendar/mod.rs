//! Points and spans of wall-clock time: cron lines and the maintenance window in UTC, and durations as
//! people write them. Pure.

pub mod cron;
pub mod duration;
pub mod window;
