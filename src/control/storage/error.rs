//! What can be wrong with a storage.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::ObjectKey;
use super::s3::S3Error;

/// See the variants.
#[derive(Debug)]
pub enum StorageError {
    /// The directory's marker is not there: most likely the disk is not mounted.
    NotMounted {
        /// The directory.
        root: PathBuf,
    },
    /// It is a storage, but not the one that the catalogue knows.
    Another {
        /// The directory.
        root: PathBuf,
    },
    /// A marker of another version, or a damaged one.
    Marker {
        /// The directory.
        root: PathBuf,
    },
    /// No such object.
    NotFound {
        /// Its key.
        key: ObjectKey,
    },
    /// The object belongs to a finished backup and is not written again.
    Finished {
        /// Its key.
        key: ObjectKey,
    },
    /// More bytes than the URL allows, or than were announced.
    TooLarge {
        /// The object's key.
        key: ObjectKey,
    },
    /// Fewer bytes than were announced.
    Short {
        /// The object's key.
        key: ObjectKey,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        announced: u64,
    },
    /// Not enough room.
    Full {
        /// The directory.
        root: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A manifest that is larger than any real one.
    ManifestTooLarge {
        /// The object's key.
        key: ObjectKey,
    },
    /// URLs were asked for where nobody serves them.
    NotServed,
    /// A bucket.
    S3(Box<S3Error>),
    /// Reading or writing.
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl StorageError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::NotMounted { .. } | Self::Full { .. } | Self::Short { .. } | Self::Io { .. } => {
                true
            }
            Self::S3(error) => error.fault.retry(),
            Self::Another { .. }
            | Self::Marker { .. }
            | Self::NotFound { .. }
            | Self::Finished { .. }
            | Self::TooLarge { .. }
            | Self::ManifestTooLarge { .. }
            | Self::NotServed => false,
        }
    }

    /// Whether the storage just cannot be reached at the moment; what is known about it still holds.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::S3(error) if error.fault.is_away())
    }
}

impl From<S3Error> for StorageError {
    fn from(error: S3Error) -> Self {
        Self::S3(Box::new(error))
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMounted { root } => write!(
                f,
                "the storage directory {} has no marker: is its disk mounted? nothing is written there",
                root.display()
            ),
            Self::Another { root } => write!(
                f,
                "the storage directory {} is another storage than the one in the catalogue; mount the right \
                 disk, or start with an empty state directory",
                root.display()
            ),
            Self::Marker { root } => write!(
                f,
                "the marker of the storage directory {} is damaged or of a newer version",
                root.display()
            ),
            Self::NotFound { key } => write!(f, "the storage has no {key}"),
            Self::Finished { key } => {
                write!(f, "{key} is a finished backup and cannot be written again")
            }
            Self::TooLarge { key } => write!(f, "{key} is larger than was announced"),
            Self::Short { key, got, announced } => {
                write!(f, "{key} ended after {got} of {announced} bytes")
            }
            Self::Full { root, needed, free } => write!(
                f,
                "the storage directory {} has {} MiB free, but {} MiB are needed",
                root.display(),
                free >> 20,
                needed.div_ceil(1 << 20)
            ),
            Self::ManifestTooLarge { key } => {
                write!(f, "the manifest of {key} is too large to be one")
            }
            Self::NotServed => f.write_str("the storage directory is served by `backupy up` only"),
            Self::S3(error) => error.fmt(f),
            Self::Io { path, error } => write!(f, "failed to use {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::S3(error) => Some(error),
            _ => None,
        }
    }
}
