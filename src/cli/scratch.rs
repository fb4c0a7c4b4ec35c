//! A private directory for restored dumps while a command looks at them; gone with the command.
//!
//! It is locked while in use. What a killed command left behind is removed by the next one that can lock it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::control::durable::random_hex;

const PREFIX: &str = "backupy-scratch-";

/// The directory; removed with everything in it when dropped.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
    _lock: File,
}

impl ScratchDir {
    /// Makes one in `base`.
    ///
    /// # Errors
    /// Of the file system.
    pub fn create(base: &Path) -> io::Result<Self> {
        sweep(base);
        let path = base.join(format!("{PREFIX}{}", random_hex(8)?));
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::open(&path)?;
        // Without locks on this file system nobody can sweep it either.
        let _ = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("backupy: failed to remove {}: {error}", self.path.display());
        }
    }
}

/// Removes directories of ours, and of our own user, that nobody has locked.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    let own = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let ours = path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == own);
        if ours
            && let Ok(dir) = File::open(&path)
            && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            // The next command tries again.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn private_gone_with_its_owner_and_swept_after_a_crash() {
        let base = tempfile::tempdir().unwrap();
        let scratch = ScratchDir::create(base.path()).unwrap();
        let mode = fs::metadata(scratch.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let left = base.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("dump"), b"secret").unwrap();
        let second = ScratchDir::create(base.path()).unwrap();
        assert!(!left.exists(), "a dead one is swept");
        assert!(scratch.path().exists(), "a living one is not");
        drop((scratch, second));
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
