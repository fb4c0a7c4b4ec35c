//! What can be wrong with a master key.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Fresh;

/// See the variants. None of them contains anything of a key but its id.
#[derive(Debug)]
pub enum KeyError {
    /// There is no file.
    Missing {
        /// Its path.
        path: PathBuf,
    },
    /// A directory, a device.
    NotAFile {
        /// Its path.
        path: PathBuf,
    },
    /// Others may read or write it.
    Readable {
        /// Its path.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It lies inside the storage directory.
    InsideStorage {
        /// Its path.
        path: PathBuf,
    },
    /// A new key would hide that the old one is missing.
    NotFresh {
        /// Where it would have been made.
        path: PathBuf,
        /// What is there.
        fresh: Fresh,
    },
    /// The file holds other keys than the one that backups were made under.
    Other {
        /// The file.
        path: PathBuf,
        /// So many backups.
        backups: usize,
    },
    /// Whether there is something could not be found out.
    Unclear(String),
    /// The text is no key file.
    Form {
        /// The line, from 1; 0 = the text as a whole.
        line: usize,
    },
    /// A key does not have the id that stands before it.
    Id {
        /// The line, from 1.
        line: usize,
    },
    /// An import does not hold a key that is in use.
    WouldLose {
        /// The file.
        path: PathBuf,
        /// The key.
        id: String,
    },
    /// More keys than any rotation makes.
    TooMany,
    /// No key of that id.
    Unknown {
        /// The id.
        id: String,
    },
    /// A wrapped data key that does not open.
    Damaged {
        /// The run.
        run_id: String,
    },
    /// The system gives no random numbers.
    Random,
    /// Reading or writing.
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl KeyError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Random | Self::Io { .. } | Self::Unclear(_) => true,
            Self::Missing { .. }
            | Self::NotAFile { .. }
            | Self::Readable { .. }
            | Self::InsideStorage { .. }
            | Self::NotFresh { .. }
            | Self::Other { .. }
            | Self::Form { .. }
            | Self::Id { .. }
            | Self::WouldLose { .. }
            | Self::TooMany
            | Self::Unknown { .. }
            | Self::Damaged { .. } => false,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(
                f,
                "there is no master key at {}; bring it back with `backupy key import`",
                path.display()
            ),
            Self::NotAFile { path } => write!(f, "{} is not a file", path.display()),
            Self::Readable { path, mode } => write!(
                f,
                "the master key {} is open to others (mode {mode:03o}); run `chmod 600 {}`",
                path.display(),
                path.display()
            ),
            Self::InsideStorage { path } => write!(
                f,
                "the master key {} lies inside the storage directory: whoever takes the backups would have \
                 their key; move it and set [keys] master",
                path.display()
            ),
            Self::NotFresh { path, fresh } => {
                let what = match (fresh.storage_empty, fresh.catalogue_empty) {
                    (false, false) => "the storage and the catalogue hold",
                    (false, true) => "the storage holds",
                    _ => "the catalogue holds",
                };
                write!(
                    f,
                    "there is no master key at {}, but {what} backups already: a new key could not open \
                     them; bring the old one back with `backupy key import`, or start with an empty storage \
                     and state directory",
                    path.display()
                )
            }
            Self::Other { path, backups } => write!(
                f,
                "{backups} backups in the storage cannot be opened with the master key in {}: is it another \
                 one? move it away and bring the right one back with `backupy key import`, or start with an \
                 empty storage and state directory",
                path.display()
            ),
            Self::Unclear(why) => {
                write!(f, "failed to look for backups under an older master key: {why}")
            }
            Self::Form { line: 0 } => f.write_str("this is not a backupy master key"),
            Self::Form { line } => {
                write!(f, "this is not a backupy master key: line {line} cannot be read")
            }
            Self::Id { line } => write!(
                f,
                "the master key in line {line} does not fit its id: a letter was lost or changed"
            ),
            Self::WouldLose { path, id } => write!(
                f,
                "the key file {} holds the key {id}, which the import does not; move that file away first if \
                 no backup needs it",
                path.display()
            ),
            Self::TooMany => f.write_str("the key file holds too many keys to rotate again"),
            Self::Unknown { id } => write!(
                f,
                "the backup was made under the master key {id}, which is not in the key file; bring it back \
                 with `backupy key import`"
            ),
            Self::Damaged { run_id } => {
                write!(f, "the data key of run {run_id} does not open under its master key")
            }
            Self::Random => f.write_str("the system gives no random numbers"),
            Self::Io { path, error } => {
                write!(f, "failed to use the master key {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}
