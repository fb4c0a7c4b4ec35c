//! Points and spans of wall-clock time, all in UTC: cron lines and the maintenance window. Pure.

pub mod cron;
pub mod window;
