//! Why nothing was restored.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::artifact::DecryptError;
use crate::control::keys::KeyError;
use crate::control::manifest::ManifestError;
use crate::control::storage::StorageError;
use crate::drivers::{DriverError, ExecError};
use crate::thread::Why;

/// See the variants.
#[derive(Debug)]
pub enum RestoreError {
    /// Neither a run nor a backup of that name has anything to restore.
    NotFound {
        /// What was asked for.
        wanted: String,
        /// What was found and could not be used.
        problems: Vec<String>,
    },
    /// The storage.
    Storage(StorageError),
    /// The manifest.
    Manifest(ManifestError),
    /// The master key.
    Key(KeyError),
    /// The artifact.
    Artifact(DecryptError),
    /// Another compression than the manifest's, or another size.
    Mismatch(&'static str),
    /// The file that is to be written.
    Output {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The file is there already.
    Exists {
        /// Its path.
        path: PathBuf,
    },
    /// Too little room for the scratch file.
    Space {
        /// Where.
        dir: PathBuf,
    },
    /// The dump is of another engine than the database it should go to.
    OtherEngine {
        /// The dump's.
        dump: String,
        /// The database's.
        database: String,
    },
    /// Checking or loading the dump.
    Dump(DriverError),
    /// Somebody asked for the stop.
    Cancelled(Why),
}

impl RestoreError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Storage(error) => error.retry(),
            Self::Manifest(error) => error.retry(),
            Self::Key(error) => error.retry(),
            Self::Artifact(error) => error.retry(),
            Self::Dump(error) => error.retry(),
            Self::Output { .. } | Self::Space { .. } => true,
            Self::NotFound { .. }
            | Self::Mismatch(_)
            | Self::Exists { .. }
            | Self::OtherEngine { .. }
            | Self::Cancelled(_) => false,
        }
    }

    /// Whether this says that the backup is bad, and not only that it could not be looked at now.
    pub fn is_about_the_backup(&self) -> bool {
        match self {
            Self::Manifest(error) => !matches!(error, ManifestError::Key(_)),
            Self::Artifact(error) => {
                !matches!(error, DecryptError::Output(_) | DecryptError::Input(_))
            }
            Self::Storage(StorageError::NotFound { .. }) | Self::Mismatch(_) => true,
            Self::Key(error) => matches!(error, KeyError::Damaged { .. }),
            Self::Dump(error) => matches!(
                error,
                DriverError::Sqlite { .. }
                    | DriverError::BadDump { .. }
                    | DriverError::Exec(ExecError::Exit { .. })
            ),
            Self::Storage(_)
            | Self::NotFound { .. }
            | Self::Output { .. }
            | Self::Exists { .. }
            | Self::Space { .. }
            | Self::OtherEngine { .. }
            | Self::Cancelled(_) => false,
        }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { wanted, problems } if problems.is_empty() => {
                write!(
                    f,
                    "the storage has no run and no backup called {wanted:?}; `backupy runs` lists them"
                )
            }
            Self::NotFound { wanted, problems } => {
                write!(
                    f,
                    "the storage has nothing of {wanted:?} that can be restored: {}",
                    problems.join("; ")
                )
            }
            Self::Storage(error) => error.fmt(f),
            Self::Manifest(error) => error.fmt(f),
            Self::Key(error) => error.fmt(f),
            Self::Artifact(error) => error.fmt(f),
            Self::Mismatch(what) => {
                write!(f, "the artifact does not have the {what} of its manifest")
            }
            Self::Output { path, error } => {
                write!(f, "failed to write {}: {error}", path.display())
            }
            Self::Exists { path } => write!(
                f,
                "{} exists already; name another file, or say that it may be replaced",
                path.display()
            ),
            Self::Space { dir } => write!(
                f,
                "too little free space under {} for the restored dump; free some, or restore to another disk",
                dir.display()
            ),
            Self::OtherEngine { dump, database } => {
                write!(f, "the backup is a {dump} dump and cannot go into a {database} database")
            }
            Self::Dump(error) => error.fmt(f),
            Self::Cancelled(_) => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Manifest(error) => Some(error),
            Self::Key(error) => Some(error),
            Self::Artifact(error) => Some(error),
            Self::Output { error, .. } => Some(error),
            Self::Dump(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StorageError> for RestoreError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}
