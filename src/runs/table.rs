//! The durable table of runs: open ones in memory and on disk, finished ones on disk, tombstones after that.
//!
//! Keys in [`Space::Runs`] (`\0` ends the prefix, times are big-endian Unix milliseconds):
//! ```text
//! o\0 run_id           an open run, JSON
//! f\0 run_id           a finished run, JSON
//! e\0 ended_ms run_id  index of the finished ones by age: the run_id
//! l\0 job_id           the job's id and last results, JSON
//! ```
//! and in [`Space::Tombstones`]: `t` SHA-256(run_id) → kind, ended_ms; `x` ended_ms SHA-256(run_id) → empty.
//! An id of more than [`MAX_RAW_ID`] bytes stands in a key as its hash.
//!
//! A change is staged into a batch, committed by the outbox together with its report, then applied here.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::state::{EndKind, Outcome, Run};
use crate::store::{Batch, Space, Store, StoreError};

/// Finished runs are kept so long …
const KEEP_MS: u64 = 30 * 86_400_000;
/// … and at most so many; then they become tombstones …
const KEEP_RUNS: usize = 10_000;
/// … which are kept so long.
const KEEP_TOMBSTONE_MS: u64 = 365 * 86_400_000;
/// Most records that one pruning step touches, so that a batch stays small.
const PRUNE_STEP: usize = 200;

/// Jobs whose last results are kept: a control plane can name any number of jobs that do not exist.
const MAX_LAST: usize = 10_000;

/// Longest id that is used as a key as it is.
const MAX_RAW_ID: usize = 256;

const OPEN: &[u8] = b"o\0";
const FINISHED: &[u8] = b"f\0";
const BY_END: &[u8] = b"e\0";
const LAST: &[u8] = b"l\0";

/// A table that cannot be read or written.
#[derive(Debug)]
pub enum TableError {
    /// The store's own error.
    Store(StoreError),
    /// A record that this version cannot read.
    Record {
        /// Which.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableError::Store(error) => error.fmt(f),
            TableError::Record { what, source } => {
                write!(f, "failed to read the record of {what}: {source}")
            }
        }
    }
}

impl std::error::Error for TableError {}

impl From<StoreError> for TableError {
    fn from(error: StoreError) -> Self {
        TableError::Store(error)
    }
}

/// What is known of a run_id.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Not ended yet.
    Open(&'a Run),
    /// Ended, with its result.
    Finished(Box<Run>),
    /// Ended so long ago that only the kind is known.
    Tombstone(EndKind),
    /// Never seen, or forgotten.
    Unknown,
}

/// The last results of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastResults {
    /// When its first run ended, Unix milliseconds.
    pub first_end_ms: u64,
    /// When its last run ended.
    pub last_end_ms: u64,
    /// How.
    pub last_kind: Option<EndKind>,
    /// Why, if it failed.
    pub last_error: String,
    /// When its last success ended; 0 = never.
    pub last_success_ms: u64,
    /// Size of that artifact.
    pub last_success_bytes: u64,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    store: Store,
    open: BTreeMap<String, Run>,
    last: BTreeMap<String, LastResults>,
    finished: usize,
}

impl Table {
    /// Reads the open runs and counts the rest.
    ///
    /// # Errors
    /// When the store or a record cannot be read.
    pub fn load(store: Store) -> Result<Self, TableError> {
        let mut table = Self { store, open: BTreeMap::new(), last: BTreeMap::new(), finished: 0 };
        for (_, value) in table.with_prefix(Space::Runs, OPEN, usize::MAX)? {
            let run: Run = read(&value, || "an open run".to_owned())?;
            table.open.insert(run.run_id.clone(), run);
        }
        for (_, value) in table.with_prefix(Space::Runs, LAST, usize::MAX)? {
            let (job_id, last) = read(&value, || "a job's last results".to_owned())?;
            table.last.insert(job_id, last);
        }
        let mut finished = 0;
        table.store.scan(Space::Runs, BY_END, &mut |key, _| {
            if !key.starts_with(BY_END) {
                return ControlFlow::Break(());
            }
            finished += 1;
            ControlFlow::Continue(())
        })?;
        table.finished = finished;
        Ok(table)
    }

    /// The open runs, in no particular order.
    pub fn open(&self) -> impl Iterator<Item = &Run> {
        self.open.values()
    }

    /// How many are open.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// An open run.
    pub fn get_open(&self, run_id: &str) -> Option<&Run> {
        self.open.get(run_id)
    }

    /// The last results of every job that ever ended.
    pub fn last_results(&self) -> &BTreeMap<String, LastResults> {
        &self.last
    }

    /// What is known of a run.
    ///
    /// # Errors
    /// When the store or the record cannot be read.
    pub fn find(&self, run_id: &str) -> Result<Found<'_>, TableError> {
        if let Some(run) = self.open.get(run_id) {
            return Ok(Found::Open(run));
        }
        if let Some(value) = self.store.get(Space::Runs, &with_id(FINISHED, run_id))? {
            return Ok(Found::Finished(Box::new(read(&value, || format!("run {run_id}"))?)));
        }
        let key = tombstone_key(run_id);
        let Some(value) = self.store.get(Space::Tombstones, &key)? else {
            return Ok(Found::Unknown);
        };
        let tombstone: (EndKind, u64) = read(&value, || format!("run {run_id}"))?;
        Ok(Found::Tombstone(tombstone.0))
    }

    /// Stages the new state of a run; [`Table::apply`] it once the batch is committed.
    ///
    /// # Errors
    /// When the record cannot be written as JSON.
    pub fn stage(&self, batch: &mut Batch, run: &Run) -> Result<(), TableError> {
        let value = write(run)?;
        let open_key = with_id(OPEN, &run.run_id);
        match run.ended() {
            None => batch.put(Space::Runs, open_key, value),
            Some(ended) => {
                batch.delete(Space::Runs, open_key);
                batch.put(Space::Runs, with_id(FINISHED, &run.run_id), value);
                let by_end = with_id(&by_end_prefix(ended.at_ms), &run.run_id);
                batch.put(Space::Runs, by_end, run.run_id.as_bytes());
                if self.keeps_last(&run.job_id) {
                    let last = write(&(&run.job_id, self.last_after(run)))?;
                    batch.put(Space::Runs, with_id(LAST, &run.job_id), last);
                }
            }
        }
        Ok(())
    }

    fn keeps_last(&self, job_id: &str) -> bool {
        self.last.len() < MAX_LAST || self.last.contains_key(job_id)
    }

    /// Whether so much has come together that [`Table::prune`] should not wait for its time.
    pub fn is_overfull(&self) -> bool {
        self.finished >= KEEP_RUNS + PRUNE_STEP
    }

    /// Takes over a state that has been committed.
    pub fn apply(&mut self, run: Run) {
        if run.ended().is_some() {
            if self.keeps_last(&run.job_id) {
                let last = self.last_after(&run);
                self.last.insert(run.job_id.clone(), last);
            }
            self.open.remove(&run.run_id);
            self.finished += 1;
        } else {
            self.open.insert(run.run_id.clone(), run);
        }
    }

    /// Turns finished runs that are too old or too many into tombstones, and forgets old tombstones and
    /// the last results of jobs that `is_job` does not know. A bounded step; true if there may be more.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn prune(
        &mut self,
        now_ms: u64,
        is_job: &dyn Fn(&str) -> bool,
    ) -> Result<bool, TableError> {
        let mut batch = self.store.batch();
        let mut touched = 0;
        let excess = self.finished.saturating_sub(KEEP_RUNS);
        let mut removed = 0;
        for (key, run_id) in self.with_prefix(Space::Runs, BY_END, PRUNE_STEP)? {
            let Some(ended_ms) = time_at(&key, BY_END.len()) else { continue };
            let run_id = String::from_utf8_lossy(&run_id);
            if removed >= excess && ended_ms.saturating_add(KEEP_MS) > now_ms {
                break;
            }
            self.stage_tombstone(&mut batch, &key, ended_ms, &run_id)?;
            removed += 1;
        }
        touched += removed;
        for (key, _) in self.with_prefix(Space::Tombstones, b"x", PRUNE_STEP)? {
            let Some(ended_ms) = time_at(&key, 1) else { continue };
            if ended_ms.saturating_add(KEEP_TOMBSTONE_MS) > now_ms {
                break;
            }
            batch.delete(Space::Tombstones, prefixed(b"t", &key[9..]));
            batch.delete(Space::Tombstones, key);
            touched += 1;
        }
        // A job that vanished and came back within the time that runs are kept has its history still, unless there
        // is no room for others.
        let crowded = self.last.len() >= MAX_LAST;
        let gone: Vec<String> = self
            .last
            .iter()
            .filter(|(job_id, last)| {
                !is_job(job_id) && (crowded || last.last_end_ms.saturating_add(KEEP_MS) < now_ms)
            })
            .map(|(job_id, _)| job_id.clone())
            .collect();
        for job_id in &gone {
            batch.delete(Space::Runs, with_id(LAST, job_id));
        }
        if touched == 0 && gone.is_empty() {
            return Ok(false);
        }
        self.store.commit(batch)?;
        self.finished = self.finished.saturating_sub(removed);
        for job_id in gone {
            self.last.remove(&job_id);
        }
        Ok(touched >= PRUNE_STEP)
    }

    fn stage_tombstone(
        &self,
        batch: &mut Batch,
        index_key: &[u8],
        ended_ms: u64,
        run_id: &str,
    ) -> Result<(), TableError> {
        if let Found::Finished(run) = self.find(run_id)?
            && let Some(ended) = run.ended()
        {
            let key = tombstone_key(run_id);
            let mut by_age = prefixed(b"x", &ended_ms.to_be_bytes());
            by_age.extend_from_slice(&key[1..]);
            batch.put(Space::Tombstones, key, write(&(ended.outcome.kind(), ended_ms))?);
            batch.put(Space::Tombstones, by_age, Vec::new());
        }
        batch.delete(Space::Runs, index_key.to_vec());
        batch.delete(Space::Runs, with_id(FINISHED, run_id));
        Ok(())
    }

    fn last_after(&self, run: &Run) -> LastResults {
        let mut last = self.last.get(&run.job_id).cloned().unwrap_or_default();
        let Some(ended) = run.ended() else { return last };
        if last.first_end_ms == 0 {
            last.first_end_ms = ended.at_ms;
        }
        last.last_end_ms = ended.at_ms;
        last.last_kind = Some(ended.outcome.kind());
        last.last_error = String::new();
        match &ended.outcome {
            Outcome::Completed(stored) => {
                last.last_success_ms = ended.at_ms;
                last.last_success_bytes = stored.size_bytes;
            }
            Outcome::Failed { error } => last.last_error.clone_from(error),
            Outcome::Cancelled => {}
        }
        last
    }

    /// Up to `limit` pairs whose keys start with `prefix`, in order.
    fn with_prefix(
        &self,
        space: Space,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Vec<Pair>, TableError> {
        let mut pairs = Vec::new();
        self.store.scan(space, prefix, &mut |key, value| {
            if !key.starts_with(prefix) || pairs.len() >= limit {
                return ControlFlow::Break(());
            }
            pairs.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(pairs)
    }
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

fn read<T: for<'de> Deserialize<'de>>(
    bytes: &[u8],
    what: impl FnOnce() -> String,
) -> Result<T, TableError> {
    serde_json::from_slice(bytes).map_err(|source| TableError::Record { what: what(), source })
}

fn write(value: &impl Serialize) -> Result<Vec<u8>, TableError> {
    serde_json::to_vec(value)
        .map_err(|source| TableError::Record { what: "a run (writing)".to_owned(), source })
}

fn prefixed(prefix: &[u8], rest: &[u8]) -> Vec<u8> {
    [prefix, rest].concat()
}

fn by_end_prefix(ended_ms: u64) -> Vec<u8> {
    prefixed(BY_END, &ended_ms.to_be_bytes())
}

fn with_id(prefix: &[u8], id: &str) -> Vec<u8> {
    if id.len() <= MAX_RAW_ID {
        return prefixed(prefix, id.as_bytes());
    }
    // 0xff is never part of UTF-8, so this cannot be another id.
    [prefix, &[0xff], digest(&SHA256, id.as_bytes()).as_ref()].concat()
}

fn time_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

fn tombstone_key(run_id: &str) -> Vec<u8> {
    prefixed(b"t", digest(&SHA256, run_id.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Compression;
    use crate::runs::state::Stored;
    use crate::secret::{Secret, SecretBytes};
    use crate::store::StoreKeys;

    const DAY_MS: u64 = 86_400_000;

    fn store(dir: &std::path::Path) -> Store {
        let keys = StoreKeys { current: Secret::new("k"), previous: None };
        Store::open(dir, &Space::AGENT, &keys).unwrap()
    }

    fn commit(table: &mut Table, run: Run) {
        let mut batch = table.store.batch();
        table.stage(&mut batch, &run).unwrap();
        table.store.commit(batch).unwrap();
        table.apply(run);
    }

    fn run(run_id: &str) -> Run {
        Run::accept(run_id.into(), "j".into(), false, None, SecretBytes::new([9; 32]), 1_000)
    }

    fn completed() -> Outcome {
        Outcome::Completed(Stored {
            object_key: "o".into(),
            size_bytes: 7,
            sha256: "00".into(),
            duration_ms: 1,
            compression: Compression::Zstd,
            engine_version: "SQLite 3".into(),
        })
    }

    #[test]
    fn open_and_finished_runs_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::load(store(dir.path())).unwrap();
        commit(&mut table, run("open").started(2_000));
        commit(&mut table, run("done"));
        commit(&mut table, run("done").started(2_000).end(completed(), 3_000));
        table.store.close().unwrap();

        let table = Table::load(store(dir.path())).unwrap();
        assert_eq!(table.open().map(|run| run.run_id.as_str()).collect::<Vec<_>>(), ["open"]);
        assert!(matches!(table.find("open").unwrap(), Found::Open(run) if run.attempts == 1));
        let Found::Finished(done) = table.find("done").unwrap() else { panic!("it is finished") };
        assert_eq!(done.ended().unwrap().outcome, completed());
        assert_eq!(done.data_key, SecretBytes::new([9; 32]));
        assert_eq!(table.find("other").unwrap(), Found::Unknown);
        assert_eq!(table.last_results()["j"].last_success_ms, 3_000);
        assert_eq!(table.finished, 1);
    }

    #[test]
    fn ids_of_any_length_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::load(store(dir.path())).unwrap();
        let (long, other) = ("x".repeat(5_000), "x".repeat(5_001));
        commit(&mut table, Run { job_id: long.clone(), ..run(&long) });
        commit(&mut table, run(&other).end(Outcome::Cancelled, DAY_MS));
        table.store.close().unwrap();
        let mut table = Table::load(store(dir.path())).unwrap();
        assert!(matches!(table.find(&long).unwrap(), Found::Open(run) if run.job_id == long));
        assert!(matches!(table.find(&other).unwrap(), Found::Finished(run) if run.run_id == other));
        table.prune(60 * DAY_MS, &|_| true).unwrap();
        assert_eq!(table.find(&other).unwrap(), Found::Tombstone(EndKind::Cancelled));
    }

    #[test]
    fn old_runs_become_tombstones_and_those_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::load(store(dir.path())).unwrap();
        commit(&mut table, run("old").end(completed(), DAY_MS));
        commit(&mut table, run("new").end(Outcome::Cancelled, 40 * DAY_MS));
        let is_job = |_: &str| true;
        assert!(!table.prune(45 * DAY_MS, &is_job).unwrap());
        assert_eq!(table.find("old").unwrap(), Found::Tombstone(EndKind::Completed));
        assert!(matches!(table.find("new").unwrap(), Found::Finished(_)));
        assert_eq!(table.finished, 1);
        table.prune(367 * DAY_MS, &is_job).unwrap();
        assert_eq!(table.find("old").unwrap(), Found::Unknown);
        assert_eq!(table.find("new").unwrap(), Found::Tombstone(EndKind::Cancelled));
        assert!(table.last_results().contains_key("j"));
        table.prune(367 * DAY_MS, &|_| false).unwrap();
        assert!(table.last_results().is_empty());
    }

    #[test]
    fn jobs_that_do_not_exist_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::load(store(dir.path())).unwrap();
        for n in 0..=MAX_LAST {
            let job_id = format!("j{n}");
            table.apply(Run { job_id, ..run("r") }.end(Outcome::Cancelled, 1_000));
        }
        assert_eq!(table.last_results().len(), MAX_LAST);
        table.prune(2_000, &|job_id| job_id == "j7").unwrap();
        assert_eq!(table.last_results().keys().collect::<Vec<_>>(), ["j7"]);
    }

    #[test]
    fn too_many_finished_runs_are_pruned_oldest_first_in_bounded_steps() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::load(store(dir.path())).unwrap();
        let total = KEEP_RUNS + PRUNE_STEP + 3;
        let mut batch = table.store.batch();
        let runs: Vec<Run> = (0..total)
            .map(|n| run(&format!("r{n}")).end(Outcome::Cancelled, 1_000 + n as u64))
            .collect();
        for run in &runs {
            table.stage(&mut batch, run).unwrap();
        }
        table.store.commit(batch).unwrap();
        runs.into_iter().for_each(|run| table.apply(run));

        assert!(table.is_overfull());
        assert!(table.prune(2_000, &|_| true).unwrap(), "a full step may leave more");
        assert!(!table.prune(2_000, &|_| true).unwrap());
        assert_eq!(table.finished, KEEP_RUNS);
        assert!(!table.is_overfull());
        let last_pruned = format!("r{}", PRUNE_STEP + 2);
        assert_eq!(table.find(&last_pruned).unwrap(), Found::Tombstone(EndKind::Cancelled));
        let first_kept = format!("r{}", PRUNE_STEP + 3);
        assert!(matches!(table.find(&first_kept).unwrap(), Found::Finished(_)));
    }
}
