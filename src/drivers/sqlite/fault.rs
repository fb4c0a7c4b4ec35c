//! What can be the matter with a SQLite database.

use std::fmt;
use std::io;
use std::time::Duration;

use rusqlite::ErrorCode;
use rusqlite::ffi;

/// What is the matter with a SQLite database; completes "the SQLite file /path …".
#[derive(Debug)]
pub enum SqliteFault {
    /// There is no such file.
    Missing,
    /// A directory, a FIFO, a device.
    NotAFile,
    /// 0 bytes: what a lost database looks like.
    Empty,
    /// Its header is not SQLite's.
    NotADatabase,
    /// It cannot be read.
    Denied(io::Error),
    /// Somebody kept it locked for so long.
    Busy {
        /// How long.
        waited: Duration,
    },
    /// It was changed during every try although nobody seemed to have it open.
    Changing,
    /// A crashed writer left a journal that has to be rolled back.
    HotJournal,
    /// Its structure is damaged.
    Corrupt(String),
    /// Another error of the library.
    Failed(String),
}

impl SqliteFault {
    /// Whether waiting may help.
    pub fn retry(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Changing | Self::HotJournal => true,
            Self::Missing
            | Self::NotAFile
            | Self::Empty
            | Self::NotADatabase
            | Self::Denied(_)
            | Self::Corrupt(_)
            | Self::Failed(_) => false,
        }
    }
}

impl fmt::Display for SqliteFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("does not exist; correct the path, or restore the file"),
            Self::NotAFile => f.write_str("is not a regular file"),
            Self::Empty => f.write_str(
                "is empty (0 bytes), which is what a lost database looks like; restore it, or delete the target",
            ),
            Self::NotADatabase => {
                f.write_str("is not a SQLite database (an encrypted one looks like this too)")
            }
            Self::Denied(source) => {
                write!(f, "cannot be read by the agent: {source}; let its user read it")
            }
            Self::Busy { waited } => {
                write!(f, "was locked by another process for {} s", waited.as_secs())
            }
            Self::Changing => f.write_str("changed during every try to copy it"),
            Self::HotJournal => f.write_str("has a journal that waits to be rolled back"),
            Self::Corrupt(detail) => {
                write!(f, "is damaged ({detail}); restore it from an earlier backup")
            }
            Self::Failed(detail) => write!(f, "cannot be copied: {detail}"),
        }
    }
}

impl From<rusqlite::Error> for SqliteFault {
    fn from(error: rusqlite::Error) -> Self {
        let (code, extended) = match error.sqlite_error() {
            Some(sqlite) => (sqlite.code, sqlite.extended_code),
            None => return Self::Failed(clean(&error)),
        };
        match code {
            _ if extended == ffi::SQLITE_READONLY_ROLLBACK => Self::HotJournal,
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed => Self::Busy { waited: Duration::ZERO },
            ErrorCode::DiskFull => {
                Self::Failed("the disk with the agent's state directory is full".to_owned())
            }
            ErrorCode::NotADatabase => Self::NotADatabase,
            ErrorCode::DatabaseCorrupt => Self::Corrupt(clean(&error)),
            ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
                Self::Denied(io::Error::other(clean(&error)))
            }
            _ => Self::Failed(clean(&error)),
        }
    }
}

/// The library's words; names from a hostile schema may be in them.
fn clean(error: &rusqlite::Error) -> String {
    error.to_string().chars().filter(|c| !c.is_control()).take(300).collect()
}
