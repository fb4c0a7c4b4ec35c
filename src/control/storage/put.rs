//! One artifact on its way into a storage directory: written aside, hashed, then synced and renamed.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use ring::digest::{Context, SHA256};

use super::directory::Root;
use super::{ObjectKey, StorageError};
use crate::control::durable::{self, Existing};

/// After so many bytes what was written is pushed to the disk, so that a slow one is noticed while the upload
/// still runs and a small machine does not fill its memory with it.
const SYNC_EVERY: u64 = 64 << 20;

/// An upload. Dropped without [`Put::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Put {
    root: Arc<Root>,
    key: ObjectKey,
    /// `None` once it has its name.
    file: Option<File>,
    aside: PathBuf,
    announced: u64,
    written: u64,
    unsynced: u64,
    hash: Hash,
}

struct Hash(Context);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

/// What was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 over it.
    pub sha256: [u8; 32],
}

impl Put {
    pub(super) fn begin(
        root: Arc<Root>,
        key: ObjectKey,
        announced: u64,
    ) -> Result<Self, StorageError> {
        let path = root.artifact(&key);
        let (file, aside) = durable::create_aside(&path, 0o600)
            .map_err(|error| StorageError::Io { path, error })?;
        // Held for as long as the file is open: a sweep leaves locked files alone. A file system without locks
        // has no other writer to be afraid of than the one process that the state directory allows.
        let _ = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        let hash = Hash(Context::new(&SHA256));
        Ok(Self { root, key, file: Some(file), aside, announced, written: 0, unsynced: 0, hash })
    }

    /// Makes the artifact visible under its key, durably.
    ///
    /// # Errors
    /// When it is shorter than announced, or cannot be written; nothing is left behind then.
    pub fn commit(mut self) -> Result<Stored, StorageError> {
        if self.written != self.announced {
            let Self { written: got, announced, .. } = self;
            return Err(StorageError::Short { key: self.key.clone(), got, announced });
        }
        self.root.check()?;
        let path = self.root.artifact(&self.key);
        let io = |error| StorageError::Io { path: path.clone(), error };
        let Some(file) = self.file.as_ref() else { return Err(io(io::ErrorKind::NotFound.into())) };
        durable::finish(file, &self.aside, &path, Existing::Replace).map_err(io)?;
        self.file = None;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.hash.0.clone().finish().as_ref());
        Ok(Stored { size_bytes: self.written, sha256 })
    }
}

impl Write for Put {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.announced - self.written {
            return Err(io::Error::other(StorageError::TooLarge { key: self.key.clone() }));
        }
        let Some(file) = self.file.as_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        let count = file.write(bytes)?;
        self.hash.0.update(&bytes[..count]);
        self.written += count as u64;
        self.unsynced += count as u64;
        if self.unsynced >= SYNC_EVERY {
            file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if self.file.is_some() {
            // What cannot be removed is swept at the next start.
            let _ = std::fs::remove_file(&self.aside);
        }
    }
}
