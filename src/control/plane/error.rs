//! What can be wrong with the books.

use std::fmt;

use crate::control::catalogue::{CatalogueError, RebuildError};
use crate::control::commit::CommitError;
use crate::control::keys::KeyError;
use crate::control::manifest::ManifestError;
use crate::control::storage::StorageError;
use crate::exit::Exit;
use crate::store::StoreError;

/// What can be wrong with the books.
#[derive(Debug)]
pub enum BooksError {
    /// The store of the catalogue.
    Store(StoreError),
    /// The catalogue.
    Catalogue(CatalogueError),
    /// The storage.
    Storage(StorageError),
    /// The master key.
    Key(KeyError),
    /// A manifest that cannot be written.
    Manifest(ManifestError),
    /// The agent's key, which opens the store.
    AgentKey(String),
    /// The system has no randomness, or a name is impossible.
    Io(std::io::Error),
}

impl BooksError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Store(error) => error.retry(),
            Self::Catalogue(error) => error.retry(),
            Self::Storage(error) => error.retry(),
            Self::Key(error) => error.retry(),
            Self::Manifest(error) => error.retry(),
            Self::AgentKey(_) => false,
            Self::Io(_) => true,
        }
    }

    /// Whether another process may do better at once.
    pub fn wants_restart(&self) -> bool {
        match self {
            Self::Store(error) | Self::Catalogue(CatalogueError::Store(error)) => {
                error.wants_restart()
            }
            _ => false,
        }
    }

    /// The exit code of a command that ends with this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Store(StoreError::Locked { .. }) => Exit::Busy,
            _ => Exit::State,
        }
    }
}

impl fmt::Display for BooksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Catalogue(error) => error.fmt(f),
            Self::Storage(error) => error.fmt(f),
            Self::Key(error) => error.fmt(f),
            Self::Manifest(error) => error.fmt(f),
            Self::AgentKey(why) => f.write_str(why),
            Self::Io(error) => write!(f, "failed to prepare a run: {error}"),
        }
    }
}

impl std::error::Error for BooksError {}

macro_rules! from {
    ($($error:ident => $variant:ident),*) => {
        $(impl From<$error> for BooksError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}
from!(StoreError => Store, CatalogueError => Catalogue, StorageError => Storage, KeyError => Key);

impl From<CommitError> for BooksError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Storage(error) => Self::Storage(error),
            CommitError::Catalogue(error) => Self::Catalogue(error),
            CommitError::Manifest(error) => Self::Manifest(error),
        }
    }
}

impl From<RebuildError> for BooksError {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::Storage(error) => Self::Storage(error),
            RebuildError::Catalogue(error) => Self::Catalogue(error),
        }
    }
}
