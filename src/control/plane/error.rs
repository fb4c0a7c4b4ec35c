//! What can be wrong with the books.

use std::fmt;

use crate::control::catalogue::{CatalogueError, RebuildError};
use crate::control::commit::CommitError;
use crate::control::keys::KeyError;
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
    /// Storage and catalogue together.
    Commit(CommitError),
    /// The storage could not be read for the catalogue.
    Rebuild(RebuildError),
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
            Self::Commit(error) => error.retry(),
            Self::Rebuild(error) => error.retry(),
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
            Self::Commit(error) => error.fmt(f),
            Self::Rebuild(error) => error.fmt(f),
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
from!(StoreError => Store, CatalogueError => Catalogue, StorageError => Storage, KeyError => Key,
      CommitError => Commit, RebuildError => Rebuild);
