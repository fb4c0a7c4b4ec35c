//! Drivers: how each engine's databases are dumped.
//!
//! A [`Driver`] turns one target into one stream of bytes. It knows nothing of compression, keys or uploads,
//! and it reports success only when the tool ended with 0 and the marks of the format were right.
//! What a target says is checked in [`for_target`] ([`words`], engine by engine), what it refers to is
//! resolved in [`Driver::prepare`], and both keep within what the host allows a control plane ([`secrets`],
//! [`address`], the SQLite paths).
//!
//! Files that a driver needs (a passfile, a snapshot) live 0600 in the work directory, end with the run, and
//! are swept at the next start if the agent was killed in between.

pub mod address;
mod cafile;
mod container;
mod error;
mod exec;
pub mod load;
mod marks;
mod mongodb;
mod mysql;
mod passfile;
mod postgres;
mod redis;
pub mod secrets;
mod site;
mod space;
mod sqlite;
mod sqltext;
mod tail;
mod tools;
mod words;
mod workfile;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

pub use container::ContainerFault;
pub use error::DriverError;
pub use exec::ExecError;
pub use exec::shell;
pub use mongodb::{Damage, MongoFault};
pub use mysql::MySqlFault;
pub use postgres::PostgresFault;
pub use redis::{RdbFault, RedisFault};
pub use sqlite::{SqliteFault, Turn as SqliteTurn, try_take as sqlite_turn};
pub use workfile::sweep;

use crate::clock::Deadline;
use crate::config::{HostPolicy, PipelineLimits};
use crate::docker::{Bounds, Docker};
use crate::model::{Engine, Progress, Target, Way};
use crate::thread::Cancel;

const DOCKER_PROBE: Duration = Duration::from_secs(2);

/// What a driver may use while it works.
pub struct Context<'a> {
    /// Asks for the stop; obeyed within 2 s.
    pub cancel: &'a Cancel,
    /// How far the host lets a control plane reach.
    pub policy: &'a HostPolicy,
    /// Sizes and times.
    pub limits: &'a PipelineLimits,
    /// A directory (0700) directly under the state directory, for secret files and snapshots.
    pub work_dir: &'a Path,
    /// Told now and then how far the dump is.
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

/// What is known before the dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// For example `PostgreSQL 15.18`; empty where only the dump will tell.
    pub engine_version: String,
    /// About how large the dump will be.
    pub size_hint_bytes: Option<u64>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// A dump that is complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dumped {
    /// Bytes written to the sink.
    pub bytes: u64,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// One target's way to a stream of bytes.
pub trait Driver {
    /// Looks for tools, resolves secrets, logs in.
    ///
    /// # Errors
    /// Whatever would make the dump fail and can be known before it.
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError>;

    /// Writes the dump to `out`; `Ok` only when it is complete.
    ///
    /// # Errors
    /// An error of `out` is passed through as [`DriverError::Sink`].
    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError>;

    /// The engine's version as the dump itself states it, once it was written; exact even where
    /// [`Prepared::engine_version`] is empty.
    fn dumped_version(&self) -> Option<String> {
        None
    }

    /// Whether the server gives up on a reader that pauses for a minute, so that the pace of an upload must not reach it.
    fn hurries(&self) -> bool {
        false
    }
}

/// The driver for a target. Checks every string, but looks at nothing on the host yet.
///
/// # Errors
/// Permanent ones: an engine or a way that is not there, a string that must not be.
pub fn for_target(
    target: &Target,
    policy: &HostPolicy,
) -> Result<Box<dyn Driver + Send>, DriverError> {
    let c = &target.connection;
    for (field, value) in [
        ("host", &c.host),
        ("database", &c.database),
        ("username", &c.username),
        ("container", &c.container),
        ("TLS mode", &c.tls_mode),
        ("TLS CA file", &c.tls_ca_file),
    ] {
        words::check(field, value)?;
    }
    let unsupported = |what: String| Err(DriverError::Unsupported { what });
    match c.way {
        Way::Tcp | Way::UnixSocket => {}
        Way::DockerExec if target.engine != Engine::Sqlite => {}
        Way::DockerExec => {
            return unsupported(format!("the way in by docker exec for {}", target.engine));
        }
        Way::Unknown(number) => return unsupported(format!("connection strategy {number}")),
    }
    if c.globals_only && target.engine != Engine::PostgreSql {
        return unsupported(format!("a dump of globals only for {}", target.engine));
    }
    match target.engine {
        Engine::Sqlite => Ok(Box::new(sqlite::Sqlite::new(c, policy)?)),
        Engine::PostgreSql => Ok(Box::new(postgres::Postgres::new(c)?)),
        Engine::MongoDb => Ok(Box::new(mongodb::MongoDb::new(c, policy)?)),
        Engine::Redis => Ok(Box::new(redis::Redis::new(c)?)),
        engine @ (Engine::MySql | Engine::MariaDb) => Ok(Box::new(mysql::MySql::new(engine, c)?)),
        engine @ Engine::Unknown(_) => unsupported(engine.to_string()),
    }
}

/// What this host can dump, in the wire's words (`sqlite`, `redis`, `pg_dump`, `mysqldump`).
pub fn capabilities(policy: &HostPolicy) -> Vec<&'static str> {
    let mut found = vec!["sqlite", "redis"];
    if !tools::candidates("pg_dump", policy.pg_bin_dir.as_deref()).is_empty() {
        found.push("pg_dump");
    }
    if mysql::has_dump_tool(policy) {
        found.push("mysqldump");
    }
    if mongodb::is_here(policy) {
        found.push("mongodump");
    }
    found
}

/// The version of the Docker daemon whose socket answers now, if one does; asked for at every registration,
/// so it takes no longer than [`DOCKER_PROBE`].
pub fn docker_version(policy: &HostPolicy) -> Option<String> {
    let bounds = Bounds { deadline: Deadline::after(DOCKER_PROBE), cancel: None };
    let found = Docker::connect(&policy.docker_socket, bounds);
    found.ok().map(|docker| docker.version().to_owned())
}
