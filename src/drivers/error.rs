//! Why a database was not dumped.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::exec::ExecError;
use super::mongodb::MongoFault;
use super::postgres::PostgresFault;
use super::redis::RedisFault;
use super::secrets::SecretError;
use super::sqlite::SqliteFault;
use crate::net::NetError;
use crate::thread::Why;

/// Why a database was not dumped. No variant holds a secret.
#[derive(Debug)]
pub enum DriverError {
    /// An engine or a way in that this version does not have.
    Unsupported {
        /// What it is.
        what: String,
    },
    /// A setting of the target is wrong.
    Setting {
        /// Its name.
        field: &'static str,
        /// What is wrong with it, without its value.
        problem: String,
    },
    /// The host does not let a control plane reach so far.
    NotAllowed {
        /// What was asked for.
        what: String,
    },
    /// The password reference leads nowhere.
    Secret(SecretError),
    /// The host name cannot be looked up.
    Host(NetError),
    /// The work directory cannot be used.
    Work {
        /// The directory or file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Too little free space for the snapshot.
    Space {
        /// Where.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that would have to be, the reserve included.
        needed: u64,
    },
    /// The SQLite file.
    Sqlite {
        /// Which.
        path: PathBuf,
        /// What is the matter with it.
        fault: SqliteFault,
    },
    /// PostgreSQL or its tools.
    Postgres(PostgresFault),
    /// MongoDB or its tools.
    Mongo(MongoFault),
    /// Redis or Valkey.
    Redis(RedisFault),
    /// A tool could not be run, or did not end well.
    Exec(ExecError),
    /// A tool ended well, but what it wrote is no dump.
    Mark {
        /// The tool.
        tool: String,
    },
    /// The next stage did not take the dump, and nobody cancelled; its own error is the one to report.
    Sink(io::Error),
    /// Somebody asked for the stop.
    Cancelled(Why),
}

impl DriverError {
    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unsupported { .. }
            | Self::Setting { .. }
            | Self::NotAllowed { .. }
            | Self::Work { .. }
            | Self::Space { .. }
            | Self::Mark { .. }
            | Self::Sink(_)
            | Self::Cancelled(_) => false,
            Self::Secret(error) => error.retry(),
            Self::Host(error) => error.retry(),
            Self::Sqlite { fault, .. } => fault.retry(),
            Self::Postgres(fault) => fault.retry(),
            Self::Mongo(fault) => fault.retry(),
            Self::Redis(fault) => fault.retry(),
            Self::Exec(error) => error.retry(),
        }
    }

    /// Why it was cancelled, if that is what happened.
    pub fn cancelled(&self) -> Option<Why> {
        match self {
            Self::Cancelled(why) => Some(*why),
            _ => None,
        }
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported { what } => write!(f, "{what} is not supported by this version yet"),
            Self::Setting { field, problem } => {
                write!(f, "the target's {field} {problem}; correct the target")
            }
            Self::NotAllowed { what } => {
                write!(f, "this host does not let a control plane name {what}")
            }
            Self::Secret(error) => error.fmt(f),
            Self::Host(error) => write!(f, "failed to look up the database's host: {error}"),
            Self::Work { path, source } => {
                write!(f, "failed to use the work directory {}: {source}", path.display())
            }
            Self::Space { path, free, needed } => write!(
                f,
                "too little free space under {}: {} MiB free, {} MiB needed (the reserve of BACKUPY_MIN_FREE included); \
                 free some space or move the state directory",
                path.display(),
                free >> 20,
                needed >> 20
            ),
            Self::Sqlite { path, fault } => write!(f, "the SQLite file {} {fault}", path.display()),
            Self::Postgres(fault) => fault.fmt(f),
            Self::Mongo(fault) => fault.fmt(f),
            Self::Redis(fault) => fault.fmt(f),
            Self::Exec(error) => error.fmt(f),
            Self::Mark { tool } => write!(
                f,
                "{tool} ended without an error, but what it wrote is not a dump; check that it is the real {tool}"
            ),
            Self::Sink(error) => write!(f, "failed to pass the dump on: {error}"),
            Self::Cancelled(why) => f.write_str(match why {
                Why::Requested => "cancelled",
                Why::Timeout => "the run's timeout passed while dumping",
                Why::Shutdown => "the agent is stopping",
                Why::Sibling => "stopped because another stage failed",
            }),
        }
    }
}

impl std::error::Error for DriverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Secret(error) => Some(error),
            Self::Host(error) => Some(error),
            Self::Redis(fault) => Some(fault),
            Self::Work { source, .. } | Self::Sink(source) => Some(source),
            Self::Exec(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SecretError> for DriverError {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

impl From<RedisFault> for DriverError {
    fn from(fault: RedisFault) -> Self {
        Self::Redis(fault)
    }
}

impl From<NetError> for DriverError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Cancelled(why) => Self::Cancelled(why),
            other => Self::Host(other),
        }
    }
}

/// A cancel and a failing sink keep their meaning; the rest is the tool's.
impl From<ExecError> for DriverError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Cancelled(why) => Self::Cancelled(why),
            ExecError::Sink(source) => Self::Sink(source),
            other => Self::Exec(other),
        }
    }
}
