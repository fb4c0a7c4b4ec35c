//! What can go wrong with a state directory, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::Space;

/// Why the store did not do what it was asked.
#[derive(Debug)]
pub enum StoreError {
    /// Another process works with this directory.
    Locked {
        /// The state directory.
        dir: PathBuf,
        /// The other process; 0 if it did not say.
        pid: u32,
    },
    /// The directory or one of our files in it cannot be used at all.
    Unusable {
        /// What could not be used.
        path: PathBuf,
        /// What was tried, as a verb: `create`, `lock`, ….
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is not one that a program may keep for itself.
    NotOurs {
        /// The state directory.
        dir: PathBuf,
        /// Why not.
        what: &'static str,
    },
    /// Neither the agent key nor the previous one opens the store.
    WrongKey {
        /// The state directory.
        dir: PathBuf,
    },
    /// Something that was written here is gone or changed.
    Damaged {
        /// The state directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// A newer version of this program wrote the store.
    TooNew {
        /// The state directory.
        dir: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// No room on the disk, even without the ballast.
    Full {
        /// The state directory.
        dir: PathBuf,
    },
    /// The engine failed, and reopening it did not help (or did not work).
    Failed {
        /// The state directory.
        dir: PathBuf,
        /// What the engine said.
        what: String,
    },
    /// The store was closed.
    Closed,
    /// The store was opened without this space, or the record is reserved or too large: a defect of the caller.
    Refused {
        /// The space.
        space: Space,
        /// Why.
        what: &'static str,
    },
}

impl StoreError {
    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Failed { .. } => true,
            Self::Locked { .. }
            | Self::Unusable { .. }
            | Self::NotOurs { .. }
            | Self::WrongKey { .. }
            | Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::Closed
            | Self::Refused { .. } => false,
        }
    }

    /// Whether another process may do better at once: the engine in this one cannot come back. A full disk or
    /// damage is there after a restart as well.
    pub fn wants_restart(&self) -> bool {
        match self {
            Self::Failed { .. } => true,
            Self::Full { .. }
            | Self::Locked { .. }
            | Self::Unusable { .. }
            | Self::NotOurs { .. }
            | Self::WrongKey { .. }
            | Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::Closed
            | Self::Refused { .. } => false,
        }
    }

    pub(super) fn unusable(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Unusable { path: path.to_owned(), action, source }
    }

    /// As [`Self::unusable`], but a full disk is told apart.
    pub(super) fn writing(
        dir: &Path,
        path: &Path,
        action: &'static str,
        source: io::Error,
    ) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { dir: dir.to_owned() }
            }
            _ => Self::unusable(path, action, source),
        }
    }

    pub(crate) fn damaged(dir: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { dir: dir.to_owned(), what: what.into() }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { dir, pid: 0 } => {
                write!(f, "another process is using {}: stop it first", dir.display())
            }
            Self::Locked { dir, pid } => {
                write!(f, "process {pid} is using {}: stop it first", dir.display())
            }
            Self::Unusable { path, action, source } => write!(
                f,
                "failed to {action} {}: {source}; the state directory must be writable for this user",
                path.display()
            ),
            Self::NotOurs { dir, what } => write!(
                f,
                "failed to use {} as the state directory: {what}; name a directory of its own",
                dir.display()
            ),
            Self::WrongKey { dir } => write!(
                f,
                "failed to open the state in {}: it belongs to another agent key; set that key as \
                 BACKUPY_AGENT_KEY_PREVIOUS if it was rotated, or put the state aside with `backupy reset`",
                dir.display()
            ),
            Self::Damaged { dir, what } => write!(
                f,
                "the state in {} is damaged: {what}; look at it with `backupy dump-state`, restore the \
                 directory from a copy, or put it aside with `backupy reset`",
                dir.display()
            ),
            Self::TooNew { dir, found } => write!(
                f,
                "the state in {} was written by a newer version (schema {found}): start that version (one that a \
                 self-update brought is versions/*/backupy in the state directory of the agent)",
                dir.display()
            ),
            Self::Full { dir } => write!(
                f,
                "failed to write to {}: the disk is full; free some space, nothing needs a restart",
                dir.display()
            ),
            Self::Failed { dir, what } => {
                write!(f, "failed to write to the state in {}: {what}", dir.display())
            }
            Self::Closed => f.write_str("the store is closed"),
            Self::Refused { space, what } => write!(f, "record of {space} refused: {what}"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unusable { source, .. } => Some(source),
            Self::Locked { .. }
            | Self::NotOurs { .. }
            | Self::WrongKey { .. }
            | Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::Full { .. }
            | Self::Failed { .. }
            | Self::Closed
            | Self::Refused { .. } => None,
        }
    }
}
