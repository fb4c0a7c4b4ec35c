//! A second witness beside the database: how far the outbox had come, and which runs were open.
//!
//! The engine can lose its newest writes to damage without an error. This small file is written by other means (aside,
//! synced, renamed) before a run is acknowledged and after the batch that ends it, so that a store that went back in
//! time is noticed.
//!
//! ```text
//! sha256 of the rest, hex · newline · JSON
//! ```

use std::fs;
use std::io;
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::files;

/// Its name in the state directory.
pub const FILE: &str = "highwater";

/// A run that had not ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpenRun {
    /// The run.
    pub run_id: String,
    /// Its job, which a report of its loss must name.
    pub job_id: String,
}

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Highwater {
    /// Which store it is about.
    pub store_id: String,
    /// The newest entry that the outbox had handed out.
    pub last_entry_id: u64,
    /// The runs that were open.
    pub open_runs: Vec<OpenRun>,
}

/// What the file says about the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The file is about another store: one of the two was exchanged.
    pub foreign: bool,
    /// The file has seen entries that the store has not: it went back in time. The file's newest entry.
    pub ahead: Option<u64>,
    /// Runs that were open and that the store does not know at all.
    pub lost_runs: Vec<OpenRun>,
}

impl Verdict {
    /// Whether there is something to be loud about.
    pub fn is_alarm(&self) -> bool {
        self.foreign || self.ahead.is_some() || !self.lost_runs.is_empty()
    }
}

impl Highwater {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not what was written.
    pub fn load(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(FILE);
        let damaged = |what: &str| StoreError::damaged(dir, format!("`{FILE}` {what}"));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::unusable(&path, "read", e)),
        };
        let Some((sum, body)) = bytes.split_at_checked(64 + 1) else {
            return Err(damaged("is too short"));
        };
        if sum != check_line(body).as_bytes() {
            return Err(damaged("is not what was written"));
        }
        serde_json::from_slice(body).map(Some).map_err(|_| damaged("does not read"))
    }

    /// Replaces the file, durably.
    ///
    /// # Errors
    /// [`StoreError::Full`], or what the system says.
    pub fn save(&self, dir: &Path) -> Result<(), StoreError> {
        let body = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = check_line(&body).into_bytes();
        bytes.extend_from_slice(&body);
        files::write_aside(dir, FILE, &bytes)
            .map_err(|e| StoreError::writing(dir, &dir.join(FILE), "write", e))
    }

    /// What the file says about a store with this id and newest entry, which knows the runs that `known` says. Where the
    /// store is further than the file, the store is right: the file is written after it.
    pub fn compare(
        &self,
        store_id: &str,
        last_entry_id: u64,
        mut known: impl FnMut(&str) -> bool,
    ) -> Verdict {
        if self.store_id != store_id {
            return Verdict { foreign: true, ..Verdict::default() };
        }
        let lost_runs = self.open_runs.iter().filter(|run| !known(&run.run_id)).cloned().collect();
        let ahead = (self.last_entry_id > last_entry_id).then_some(self.last_entry_id);
        Verdict { foreign: false, ahead, lost_runs }
    }
}

fn check_line(body: &[u8]) -> String {
    let sum: String =
        digest(&SHA256, body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    sum + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str) -> OpenRun {
        OpenRun { run_id: name.to_owned(), job_id: format!("job-{name}") }
    }

    fn file() -> Highwater {
        Highwater {
            store_id: "s".to_owned(),
            last_entry_id: 10,
            open_runs: vec![run("a"), run("b")],
        }
    }

    #[test]
    fn every_case_of_the_comparison() {
        let file = file();
        let all = |_: &str| true;
        // Equal, and the store further than the file: nothing to report.
        assert_eq!(file.compare("s", 10, all), Verdict::default());
        assert_eq!(file.compare("s", 11, all), Verdict::default());
        assert!(!file.compare("s", 11, all).is_alarm());
        // The file further than the store.
        let ahead = file.compare("s", 9, all);
        assert_eq!((ahead.ahead, ahead.lost_runs.len(), ahead.foreign), (Some(10), 0, false));
        assert!(ahead.is_alarm());
        // A run that the store does not know, with and without lost entries.
        let lost = file.compare("s", 10, |run| run != "b");
        assert_eq!((lost.ahead, &lost.lost_runs), (None, &vec![run("b")]));
        assert!(lost.is_alarm());
        let both = file.compare("s", 3, |_| false);
        assert_eq!((both.ahead, &both.lost_runs), (Some(10), &file.open_runs));
        // Another store: its runs and numbers mean nothing here.
        let foreign = file.compare("t", 3, |_| false);
        assert_eq!(foreign, Verdict { foreign: true, ahead: None, lost_runs: vec![] });
        assert!(foreign.is_alarm());
        // A new file beside a new store.
        let fresh = Highwater { store_id: "s".to_owned(), ..Highwater::default() };
        assert_eq!(fresh.compare("s", 0, |_| false), Verdict::default());
    }

    #[test]
    fn what_was_saved_is_loaded_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Highwater::load(dir.path()).unwrap(), None);
        file().save(dir.path()).unwrap();
        assert_eq!(Highwater::load(dir.path()).unwrap(), Some(file()));
        let path = dir.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            fs::write(&path, &changed).unwrap();
            let error = Highwater::load(dir.path()).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "byte {i}");
            fs::write(&path, &bytes[..i]).unwrap();
            assert!(Highwater::load(dir.path()).is_err(), "cut at {i}");
        }
        // A write that did not come to its end.
        fs::write(&path, &bytes).unwrap();
        fs::write(dir.path().join("highwater.new"), b"half").unwrap();
        assert_eq!(Highwater::load(dir.path()).unwrap(), Some(file()));
    }
}
