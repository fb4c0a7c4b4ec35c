//! What can be wrong with the catalogue.

use std::fmt;

use crate::store::StoreError;

/// See the variants.
#[derive(Debug)]
pub enum CatalogueError {
    /// No such run.
    Unknown {
        /// Its id.
        run_id: String,
    },
    /// The run has ended and cannot go on.
    Ended {
        /// Its id.
        run_id: String,
    },
    /// There is such a run already.
    Exists {
        /// Its id.
        run_id: String,
    },
    /// An id or name that cannot be part of a key.
    BadId,
    /// A record that cannot be read, for example of a newer version.
    Record {
        /// Its key.
        key: String,
    },
    /// The store.
    Store(StoreError),
}

impl CatalogueError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Store(error) => error.retry(),
            Self::Unknown { .. }
            | Self::Ended { .. }
            | Self::Exists { .. }
            | Self::BadId
            | Self::Record { .. } => false,
        }
    }
}

impl fmt::Display for CatalogueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { run_id } => write!(f, "the catalogue has no run {run_id}"),
            Self::Ended { run_id } => write!(f, "run {run_id} has ended already"),
            Self::Exists { run_id } => write!(f, "there is a run {run_id} already"),
            Self::BadId => {
                f.write_str("a run's id or a backup's name has letters that it cannot have")
            }
            Self::Record { key } => write!(
                f,
                "the record {key:?} of the catalogue cannot be read; was it written by a newer version? \
                 `backupy runs --rebuild` makes it anew from the storage"
            ),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CatalogueError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for CatalogueError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
