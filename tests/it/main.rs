//! Drivers against real databases: SQLite files written to by other processes, PostgreSQL and Redis servers that
//! the tests start themselves, and small stand-ins for tools that misbehave or cannot be had.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as the tests do"
)]

mod mongodb;
mod postgres;
mod postgres_faults;
mod redis;
mod redis_faults;
mod rig;
mod sqlite;
mod sqlite_faults;
mod sqlite_users;
mod sqlite_writers;
#[path = "../support/postgres.rs"]
mod support_postgres;
#[path = "../support/redis.rs"]
mod support_redis;
