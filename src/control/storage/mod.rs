//! Where artifacts and their manifests are kept.
//!
//! A storage holds, under an [`ObjectKey`] each, an artifact and beside it a manifest (`KEY.json`). An artifact
//! without a manifest is not a backup: it is being written, or was left behind. The storage signs its own
//! short-lived URLs, so that the agent uploads to any kind in the same way; everything else is for the control
//! plane itself. In which order the two files come and go is [`commit`](super::commit)'s business.
//!
//! [`directory`] is a directory on this host, [`s3`] a bucket of an S3-compatible service.

mod any;
pub mod directory;
mod error;
mod key;
mod marker;
mod put;
pub mod s3;
pub mod sign;

#[cfg(test)]
mod tests;

use std::io::Read;

use crate::config::{HostPolicy, ProxySettings};
use crate::secret::Secret;
use crate::thread::Cancel;

pub use any::{AnyStorage, StorageForm, StorageSettings};
pub use directory::Directory;
pub use error::StorageError;
pub use key::{KeyFormError, ObjectKey};
pub use put::{Put, Stored};
pub use s3::S3;

/// End of a manifest's name, behind its artifact's.
const MANIFEST: &str = ".json";

/// Largest manifest, in bytes.
pub const MANIFEST_MAX: u64 = 64 << 10;

/// A URL that is good for one object, one method and a while. Its query is a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presigned {
    /// The URL.
    pub url: Secret,
    /// Until when, Unix milliseconds.
    pub expires_at_ms: u64,
}

/// What a storage elsewhere is reached with.
#[derive(Debug, Clone)]
pub struct Reach {
    /// A forward proxy.
    pub proxy: ProxySettings,
    /// Which references to keys are followed.
    pub policy: HostPolicy,
    /// Ends every wait.
    pub cancel: Cancel,
}

/// What is stored under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The key.
    pub key: ObjectKey,
    /// Size of the artifact, if it is there.
    pub size_bytes: Option<u64>,
    /// Whether its manifest is there.
    pub manifest: bool,
}

/// A place for artifacts.
pub trait Storage: Send + Sync {
    /// Names this very storage for ever, so that another one in its place is noticed.
    fn id(&self) -> &str;

    /// Whether it is there and is the one that it should be.
    ///
    /// # Errors
    /// When it is not; nothing is written to it then.
    fn check(&self) -> Result<(), StorageError>;

    /// What is wrong with it as far as is known at once, without asking another machine.
    fn trouble(&self) -> Option<String>;

    /// Whether uploads pass through this process, which hashes them. Otherwise an artifact's hash is its agent's word.
    fn hashes_uploads(&self) -> bool;

    /// A URL to which at most `max_bytes` can be PUT (a kind that cannot limit it says so).
    ///
    /// # Errors
    /// When the storage cannot be used.
    fn presign_put(
        &self,
        key: &ObjectKey,
        max_bytes: u64,
        expires_at_ms: u64,
    ) -> Result<Presigned, StorageError>;

    /// A URL from which the artifact can be fetched.
    ///
    /// # Errors
    /// When the storage cannot be used.
    fn presign_get(&self, key: &ObjectKey, expires_at_ms: u64) -> Result<Presigned, StorageError>;

    /// The artifact, from its beginning.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], or when it cannot be read.
    fn open(&self, key: &ObjectKey) -> Result<Box<dyn Read + Send>, StorageError>;

    /// The artifact's size; `None` if there is none.
    ///
    /// # Errors
    /// When the storage cannot be read.
    fn size(&self, key: &ObjectKey) -> Result<Option<u64>, StorageError>;

    /// Puts a manifest beside the artifact, durably; over one that is there.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write_manifest(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), StorageError>;

    /// The manifest, [`MANIFEST_MAX`] bytes at most.
    ///
    /// # Errors
    /// [`StorageError::NotFound`], or when it cannot be read.
    fn read_manifest(&self, key: &ObjectKey) -> Result<Vec<u8>, StorageError>;

    /// Removes the manifest, durably. One that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn delete_manifest(&self, key: &ObjectKey) -> Result<(), StorageError>;

    /// Removes the artifact, durably. One that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn delete_artifact(&self, key: &ObjectKey) -> Result<(), StorageError>;

    /// Everything there is, in the order of the keys.
    ///
    /// # Errors
    /// When the storage cannot be read.
    fn list(&self) -> Result<Vec<Listed>, StorageError>;
}
