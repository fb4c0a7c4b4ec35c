//! A program on its way into a slot: counted, hashed, and removed again unless it is kept.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::error::UpdateError;
use super::slots::{MAX_PROGRAM_BYTES, PROGRAM, SIGNATURE, remove, verify};
use crate::config::UpdateKey;
use crate::hex::hex;

/// So much stays free on the disk of the state directory.
const MIN_FREE_BYTES: u64 = 32 << 20;

/// A program that arrives; unless it is kept, it is removed again.
pub struct Arrival {
    dir: PathBuf,
    file: Option<File>,
    digest: Context,
    bytes: u64,
    kept: bool,
}

impl Arrival {
    /// In the new directory `dir`, into `file`.
    pub(super) fn new(dir: PathBuf, file: File) -> Self {
        Self { dir, digest: Context::new(&SHA256), bytes: 0, file: Some(file), kept: false }
    }

    /// The next piece.
    ///
    /// # Errors
    /// When there are too many, or no room.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), UpdateError> {
        const LOOK_EVERY: u64 = 1 << 20;
        let after = self.bytes + piece.len() as u64;
        if after > MAX_PROGRAM_BYTES {
            return Err(UpdateError::TooBig);
        }
        if self.bytes == 0 || self.bytes / LOOK_EVERY != after / LOOK_EVERY {
            self.look_for_room(piece.len() as u64)?;
        }
        self.digest.update(piece);
        self.bytes = after;
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(piece).map_err(|error| UpdateError::io("write", &self.dir, error))
    }

    /// Fails unless so many more bytes leave enough for the store.
    ///
    /// # Errors
    /// [`UpdateError::NoRoom`].
    pub fn look_for_room(&self, wanted: u64) -> Result<(), UpdateError> {
        let system = rustix::fs::statvfs(&self.dir)
            .map_err(|error| UpdateError::io("look at", &self.dir, error.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if free >= wanted.saturating_add(MIN_FREE_BYTES) {
            return Ok(());
        }
        Err(UpdateError::NoRoom { dir: self.dir.clone(), free, needed: wanted + MIN_FREE_BYTES })
    }

    /// SHA-256 of what came so far, hex.
    pub fn sha256(&self) -> String {
        hex(self.digest.clone().finish().as_ref())
    }

    /// All of it is there: fails unless it is what was announced and signed. Closes the file, so that it can be run.
    ///
    /// # Errors
    /// When it is not.
    pub fn prove(
        &mut self,
        sha256: &str,
        signature: &[u8],
        key: &UpdateKey,
    ) -> Result<PathBuf, UpdateError> {
        let found = self.sha256();
        if found != sha256 {
            return Err(UpdateError::Hash { expected: sha256.to_owned(), found });
        }
        let failed = |error| UpdateError::io("write", &self.dir, error);
        if let Some(file) = self.file.take() {
            file.sync_all().map_err(failed)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.dir.join(SIGNATURE))
            .map_err(failed)?;
        file.write_all(signature).and_then(|()| file.sync_all()).map_err(failed)?;
        verify(&self.dir, sha256, key)?;
        Ok(self.dir.join(PROGRAM))
    }

    /// Makes it a slot. One that is whole already stays as it is: it may be the one that runs.
    ///
    /// # Errors
    /// When it cannot be put in its place.
    pub fn keep(mut self, sha256: &str, key: &UpdateKey) -> Result<(), UpdateError> {
        let failed = |error| UpdateError::io("write", &self.dir, error);
        let versions = self.dir.parent().map(Path::to_owned).unwrap_or_default();
        let slot = versions.join(sha256);
        if verify(&slot, sha256, key).is_ok() {
            return Ok(());
        }
        let sync = |dir: &Path| File::open(dir)?.sync_all();
        sync(&self.dir).map_err(failed)?;
        remove(&slot).map_err(failed)?;
        fs::rename(&self.dir, &slot).and_then(|()| sync(&versions)).map_err(failed)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.dir)
        {
            log::warn!("failed to remove {}: {error}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::signature::tests::signed;
    use super::super::slots::Versions;
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_slot_that_is_whole_is_left_alone_and_a_damaged_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let versions = Versions::of(dir.path());
        let (signature, key) = signed(b"program");
        let sha256 = hex(ring::digest::digest(&SHA256, b"program").as_ref());
        let program = versions.program(&sha256);
        let arrive = || {
            let mut arrival = versions.arrival("x").unwrap();
            arrival.write(b"program").unwrap();
            arrival.prove(&sha256, &signature, &key).unwrap();
            arrival.keep(&sha256, &key).unwrap();
            fs::metadata(&program).unwrap().ino()
        };
        let first = arrive();
        assert_eq!(arrive(), first, "it may be the one that runs");
        assert!(!versions.dir().join("new-x").exists());
        fs::write(&program, b"damaged").unwrap();
        assert_ne!(arrive(), first);
        assert_eq!(fs::read(&program).unwrap(), b"program");
    }
}
