//! Files in the work directory that must not outlive a run: passfiles and snapshots.
//!
//! Every name begins with [`PREFIX`], so that what a crash left behind is told apart from what others keep
//! there. A file is made anew (never opened if it exists), 0600 from its first moment, and removed when its
//! [`WorkFile`] is dropped, together with the companions that SQLite puts beside it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::DriverError;
use crate::thread::spawn;

const PREFIX: &str = "driver-";
/// From here on it takes so long to free a file's space (a second for some GiB) that a run must not wait.
const LARGE_BYTES: u64 = 64 << 20;
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Makes names unique within the process; across processes the exclusive creation does.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct WorkFile {
    path: PathBuf,
}

impl WorkFile {
    /// Creates an empty file for `purpose`, and the directory where it is missing.
    pub(super) fn create(work_dir: &Path, purpose: &str) -> Result<(Self, File), DriverError> {
        Self::try_create(work_dir, purpose)
            .map_err(|source| DriverError::Work { path: work_dir.to_owned(), source })
    }

    fn try_create(work_dir: &Path, purpose: &str) -> io::Result<(Self, File)> {
        create_dir(work_dir)?;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = work_dir.join(format!("{PREFIX}{purpose}-{}-{number}", std::process::id()));
            match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)
            {
                Ok(file) => return Ok((Self { path }, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFile {
    fn drop(&mut self) {
        let held = File::open(&self.path).ok();
        for companion in COMPANIONS {
            // Usually there is none.
            let _ = fs::remove_file(with_suffix(&self.path, companion));
        }
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("failed to remove {}: {error}", self.path.display());
        }
        if let Some(file) = held {
            release(file);
        }
    }
}

/// An empty file that has no name any more, so that not even a crash leaves it.
pub(super) fn unnamed(work_dir: &Path, purpose: &str) -> Result<File, DriverError> {
    WorkFile::create(work_dir, purpose).map(|(_named, file)| file)
}

/// Closes a file whose name is gone. What takes time then is giving the space back: nobody joins the thread that
/// does it, as a cancelled run must not wait for it (if there is no thread, it does).
pub(super) fn release(file: File) {
    if file.metadata().is_ok_and(|meta| meta.len() > LARGE_BYTES) {
        let _ = spawn("free-space", move || drop(file));
    }
}

fn create_dir(work_dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(work_dir)
}

/// Creates the work directory, private, where it is missing.
pub(super) fn ensure(work_dir: &Path) -> Result<(), DriverError> {
    create_dir(work_dir).map_err(|source| DriverError::Work { path: work_dir.to_owned(), source })
}

/// `path` with `suffix` appended to its last component.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes what a crash left in the work directory. Only for a start, while no run is under way.
pub fn sweep(work_dir: &Path) {
    let entries = match fs::read_dir(work_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            log::warn!("failed to read {}: {error}", work_dir.display());
            return;
        }
    };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours && let Err(error) = fs::remove_file(entry.path()) {
            log::warn!("failed to remove {}: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn private_unique_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        let (a, _) = WorkFile::create(&work, "passfile").unwrap();
        let (b, _) = WorkFile::create(&work, "passfile").unwrap();
        assert_ne!(a.path(), b.path());
        assert_eq!(fs::metadata(&work).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(a.path()).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(with_suffix(a.path(), "-wal"), "x").unwrap();
        drop((a, b));
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
    }

    #[test]
    fn sweep_takes_ours_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (left, _) = WorkFile::create(dir.path(), "snapshot").unwrap();
        std::mem::forget(left);
        fs::write(dir.path().join("spool"), "x").unwrap();
        sweep(dir.path());
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["spool"]);
        sweep(&dir.path().join("missing"));
    }
}
