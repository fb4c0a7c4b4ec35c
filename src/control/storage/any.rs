//! A storage of whichever kind the settings name.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::s3::{S3, S3Settings};
use super::{Directory, Listed, ObjectKey, Presigned, Reach, Storage, StorageError};

/// Where a storage is.
///
/// As text it is a path or `s3://BUCKET/PREFIX?…` (see [`S3Settings::to_text`]), which holds no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StorageSettings {
    /// A directory on this host.
    Directory(PathBuf),
    /// A bucket.
    S3(Box<S3Settings>),
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageForm(String);

impl StorageSettings {
    /// Reads the text form.
    ///
    /// # Errors
    /// When it means a bucket and is wrong.
    pub fn parse(text: &str) -> Result<Self, StorageForm> {
        if !S3Settings::is_meant(text) {
            return Ok(Self::Directory(text.into()));
        }
        let env = |name: &str| std::env::var(name).ok();
        let settings = S3Settings::parse(text, &env).map_err(StorageForm)?;
        Ok(Self::S3(Box::new(settings)))
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::S3(_) => None,
        }
    }

    /// Opens what is there. `known_id` is the one in the catalogue.
    ///
    /// # Errors
    /// When it is not there, not a storage, or another one.
    pub fn open(&self, reach: &Reach, known_id: Option<&str>) -> Result<AnyStorage, StorageError> {
        match self {
            Self::Directory(path) => Directory::open(path, known_id).map(AnyStorage::Directory),
            Self::S3(settings) => S3::open(settings, reach, known_id).map(AnyStorage::S3),
        }
    }

    /// Opens what is there, or makes a storage there: when the catalogue has never known one.
    ///
    /// # Errors
    /// As [`Self::open`], or when it cannot be made.
    pub fn open_or_init(&self, reach: &Reach) -> Result<AnyStorage, StorageError> {
        match self {
            Self::Directory(path) => Directory::open_or_init(path).map(AnyStorage::Directory),
            Self::S3(settings) => S3::open_or_init(settings, reach).map(AnyStorage::S3),
        }
    }

    /// As [`Self::open`] at a start: a bucket that is only out of reach is opened without being asked.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_known(&self, reach: &Reach, id: &str) -> Result<AnyStorage, StorageError> {
        match (self.open(reach, Some(id)), self) {
            (Err(error), Self::S3(settings)) if error.is_away() => {
                log::error!("{error}; backups wait until it is back");
                S3::known(settings, reach, id).map(AnyStorage::S3)
            }
            (opened, _) => opened,
        }
    }
}

impl fmt::Display for StorageSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::S3(settings) => settings.fmt(f),
        }
    }
}

impl fmt::Display for StorageForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StorageForm {}

impl TryFrom<String> for StorageSettings {
    type Error = StorageForm;

    fn try_from(text: String) -> Result<Self, StorageForm> {
        Self::parse(&text)
    }
}

impl From<StorageSettings> for String {
    fn from(place: StorageSettings) -> Self {
        match place {
            StorageSettings::Directory(path) => path.to_string_lossy().into_owned(),
            StorageSettings::S3(settings) => settings.to_text(),
        }
    }
}

/// A storage. Clones are the same one.
#[derive(Debug, Clone)]
pub enum AnyStorage {
    /// In a directory.
    Directory(Directory),
    /// In a bucket.
    S3(S3),
}

impl AnyStorage {
    /// The directory kind, which this process serves itself.
    pub fn directory(&self) -> Option<&Directory> {
        match self {
            Self::Directory(directory) => Some(directory),
            Self::S3(_) => None,
        }
    }

    /// The bucket kind.
    pub fn s3(&self) -> Option<&S3> {
        match self {
            Self::Directory(_) => None,
            Self::S3(s3) => Some(s3),
        }
    }

    /// Whether it is the one with this id.
    ///
    /// # Errors
    /// When it is another one.
    pub fn is_known_as(&self, id: &str) -> Result<(), StorageError> {
        if self.id() == id {
            return Ok(());
        }
        Err(match self {
            Self::Directory(directory) => {
                StorageError::Another { root: directory.path().to_owned() }
            }
            Self::S3(s3) => s3.another(),
        })
    }

    fn kind(&self) -> &dyn Storage {
        match self {
            Self::Directory(directory) => directory,
            Self::S3(s3) => s3,
        }
    }
}

impl Storage for AnyStorage {
    fn id(&self) -> &str {
        self.kind().id()
    }

    fn check(&self) -> Result<(), StorageError> {
        self.kind().check()
    }

    fn trouble(&self) -> Option<String> {
        self.kind().trouble()
    }

    fn hashes_uploads(&self) -> bool {
        self.kind().hashes_uploads()
    }

    fn presign_put(
        &self,
        key: &ObjectKey,
        max_bytes: u64,
        expires_at_ms: u64,
    ) -> Result<Presigned, StorageError> {
        self.kind().presign_put(key, max_bytes, expires_at_ms)
    }

    fn presign_get(&self, key: &ObjectKey, expires_at_ms: u64) -> Result<Presigned, StorageError> {
        self.kind().presign_get(key, expires_at_ms)
    }

    fn open(&self, key: &ObjectKey) -> Result<Box<dyn Read + Send>, StorageError> {
        self.kind().open(key)
    }

    fn size(&self, key: &ObjectKey) -> Result<Option<u64>, StorageError> {
        self.kind().size(key)
    }

    fn write_manifest(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), StorageError> {
        self.kind().write_manifest(key, bytes)
    }

    fn read_manifest(&self, key: &ObjectKey) -> Result<Vec<u8>, StorageError> {
        self.kind().read_manifest(key)
    }

    fn delete_manifest(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.kind().delete_manifest(key)
    }

    fn delete_artifact(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.kind().delete_artifact(key)
    }

    fn list(&self) -> Result<Vec<Listed>, StorageError> {
        self.kind().list()
    }
}
