//! Drivers against real databases: SQLite files written to by other processes, PostgreSQL, MariaDB and Redis servers
//! that the tests start themselves, and small stand-ins for tools that misbehave or cannot be had.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as the tests do"
)]

mod docker;
mod docker_mongodb;
mod docker_mysql;
mod docker_redis;
mod mongodb;
mod mysql;
mod mysql_faults;
mod postgres;
mod postgres_faults;
mod redis;
mod redis_faults;
mod rig;
mod sqlite;
mod sqlite_faults;
mod sqlite_users;
mod sqlite_writers;
#[cfg(feature = "control")]
mod storage;
#[path = "../support/docker.rs"]
mod support_docker;
#[path = "../support/docker_images.rs"]
mod support_docker_images;
#[path = "../support/mariadb.rs"]
mod support_mariadb;
#[path = "../support/postgres.rs"]
mod support_postgres;
#[path = "../support/redis.rs"]
mod support_redis;
#[cfg(feature = "control")]
#[path = "../support/s3.rs"]
mod support_s3;
