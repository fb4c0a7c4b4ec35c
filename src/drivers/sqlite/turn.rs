//! One copy of a file at a time within this process.
//!
//! POSIX locks belong to the process: closing any descriptor of a file drops the locks that another
//! connection of the same process holds on it. Two runs on one file (two targets may name it, by different
//! paths) would silently take each other's read lock away in the middle of the copy. That is a property of
//! the process, hence the static.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SqliteFault;
use super::inspect::denied;
use crate::thread::Cancel;

/// Device and inode.
type File = (u64, u64);

static BUSY: LazyLock<Mutex<HashSet<File>>> = LazyLock::new(Mutex::default);

/// The right to open a file; given back when dropped.
#[derive(Debug)]
pub struct Turn(File);

/// Waits until no other run of this process has the file open, or the cancel.
///
/// # Errors
/// When the file is gone, or the wait was cancelled.
pub(super) fn take(path: &Path, cancel: &Cancel) -> Result<Turn, SqliteFault> {
    let meta = fs::metadata(path).map_err(denied)?;
    let file = (meta.dev(), meta.ino());
    while !busy().insert(file) {
        if !cancel.sleep(Duration::from_millis(50)) {
            return Err(SqliteFault::Busy { waited: Duration::ZERO });
        }
    }
    Ok(Turn(file))
}

/// As [`take`], without waiting, for a file that the caller knows by device and inode: `None` if a run has it open.
/// The turn is to be given back only once every descriptor of the file is closed.
pub fn try_take(dev: u64, ino: u64) -> Option<Turn> {
    let is_free = busy().insert((dev, ino));
    // Not made where it is not had: dropping one gives the turn back.
    is_free.then(|| Turn((dev, ino)))
}

impl Drop for Turn {
    fn drop(&mut self) {
        busy().remove(&self.0);
    }
}

fn busy() -> MutexGuard<'static, HashSet<File>> {
    BUSY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::Why;

    #[test]
    fn one_at_a_time_by_inode() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "x").unwrap();
        fs::hard_link(&a, &b).unwrap();
        let cancel = Cancel::new().unwrap();
        let first = take(&a, &cancel).unwrap();
        assert!(try_take(first.0.0, first.0.1).is_none());
        let waiter = {
            let (b, cancel) = (b.clone(), cancel.clone());
            crate::thread::spawn("second", move || take(&b, &cancel).map(drop).is_ok()).unwrap()
        };
        assert!(busy().contains(&first.0));
        drop(first);
        assert!(waiter.join().unwrap());
        let _held = take(&a, &cancel).unwrap();
        cancel.cancel(Why::Requested);
        assert!(take(&b, &cancel).is_err());
    }
}
