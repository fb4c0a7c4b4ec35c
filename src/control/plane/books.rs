//! The books: catalogue, storage and master key behind the few questions that the plane asks.
//!
//! Everything that is answered with `Ok` is on the disk. What the agent reports about a run that nobody
//! knows (the state directory was emptied, say) is said in the log and then let go: it can never be stored,
//! and the agent would offer it for ever.

mod uploads;

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error::BooksError;
use crate::artifact::DataKey;
use crate::clock::unix_ms;
use crate::control::catalogue::{
    ArtifactState, Catalogue, CatalogueError, Rebuilt, Run, SPACES, State, Verified,
};
use crate::control::checks;
use crate::control::commit::{self, CommitError, Outcome, Report};
use crate::control::durable::random_hex;
use crate::control::embedded::{agent_key, existing_agent_key, private_dir};
use crate::control::file::{Backup, Settings};
use crate::control::keep::LastSeen;
use crate::control::keys::{Fresh, KeyError, MasterKey};
use crate::control::manifest::Trigger;
use crate::control::schedule::{Mark, Start};
use crate::control::storage::sign::Signer;
use crate::control::storage::{
    AnyStorage, ObjectKey, Reach, S3, Storage as _, StorageSettings, Stored,
};
use crate::control::view::RunView;
use crate::model::UploadCreds;
use crate::secret::{Secret, SecretBytes};
use crate::store::{CONTROL_STORE, Migrations, Store, StoreKeys};
use crate::wire::BackupCompleted;

/// The time is noted, and the storage tidied, at least so often.
const LOOK_EVERY: Duration = Duration::from_secs(600);
const TIDY_EVERY_MS: u64 = 6 * 3_600_000;
const TIDY_AGAIN_MS: u64 = 10 * 60_000;
const STORAGE_AGAIN_MS: u64 = 60_000;

/// What became of a reported artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completed {
    /// It is a backup now.
    Stored,
    /// The run was over before.
    Known,
    /// What was reported is not true.
    Untrue(String),
}

/// What an agent needs for an attempt.
#[derive(Debug)]
pub struct Order {
    /// Where the artifact goes.
    pub creds: UploadCreds,
    /// What it is sealed with.
    pub data_key: SecretBytes,
}

/// The books.
#[derive(Debug)]
pub struct Books {
    catalogue: Catalogue,
    storage: AnyStorage,
    master: Mutex<MasterKey>,
    begin: Mutex<()>,
    /// Held while an upload in parts is created and written down, and while one is looked for.
    uploads: Mutex<()>,
    clock: Mutex<Clock>,
}

/// When things were looked at last.
#[derive(Debug, Default)]
struct Clock {
    seen: LastSeen,
    looked: Option<Instant>,
    tidy_at_ms: u64,
    storage_at_ms: u64,
    uploads_at_ms: u64,
}

impl Books {
    /// Opens everything for `up`; at the very first start, makes it.
    ///
    /// # Errors
    /// See [`BooksError`].
    pub fn open(
        settings: &Settings,
        agent_key: &Secret,
        reach: &Reach,
        migrations: Migrations,
    ) -> Result<Self, BooksError> {
        let catalogue = open_catalogue(&settings.state_dir, agent_key, migrations)?;
        let storage = match catalogue.storage_id()? {
            Some(id) => settings.storage.open_known(reach, &id)?,
            None => {
                let storage = settings.storage.open_or_init(reach)?;
                catalogue.set_storage_id(storage.id())?;
                storage
            }
        };
        let storage = match storage {
            AnyStorage::Directory(directory) => {
                AnyStorage::Directory(directory.signed_with(Signer::from_secret(agent_key)))
            }
            AnyStorage::S3(s3) => {
                probe(&s3)?;
                AnyStorage::S3(s3)
            }
        };
        let fresh = || {
            let unclear = |error: &dyn fmt::Display| KeyError::Unclear(error.to_string());
            Ok(Fresh {
                storage_empty: storage.list().map_err(|error| unclear(&error))?.is_empty(),
                catalogue_empty: catalogue.is_empty().map_err(|error| unclear(&error))?,
            })
        };
        let place = (&settings.master_key, settings.storage.directory());
        let (master, new) = MasterKey::load_or_create(place.0, place.1, fresh, unix_ms())?;
        if new {
            log::warn!(
                "made master key {} in {}; without it no backup can be restored, so keep a copy of it \
                 outside this machine: backupy key export",
                master.id(),
                place.0.display()
            );
        }
        if let Some(directory) = storage.directory() {
            let swept = directory.sweep()?;
            if swept > 0 {
                log::info!("removed {swept} unfinished uploads of an earlier process");
            }
        }
        let books = Self::new(catalogue, storage, master);
        books.adopt(&settings.master_key)?;
        books.refuse_other_key(&settings.master_key)?;
        Ok(books)
    }

    /// Opens what is there for a command beside an `up` that is not running; makes nothing. A bucket is not asked
    /// before it is needed.
    ///
    /// # Errors
    /// See [`BooksError`]; a running `up` holds the store.
    pub fn open_offline(
        state_dir: &Path,
        storage: &StorageSettings,
        master_key: &Path,
        reach: &Reach,
    ) -> Result<Self, BooksError> {
        let agent_key =
            existing_agent_key(state_dir).map_err(|e| BooksError::AgentKey(e.to_string()))?;
        let catalogue = open_catalogue(state_dir, &agent_key, Migrations::Allowed)?;
        let id = catalogue.storage_id()?;
        let opened = match (storage, &id) {
            (StorageSettings::S3(bucket), Some(id)) => {
                AnyStorage::S3(S3::known(bucket, reach, id)?)
            }
            _ => storage.open(reach, id.as_deref())?,
        };
        let master = MasterKey::load(master_key, storage.directory())?;
        Ok(Self::new(catalogue, opened, master))
    }

    /// As [`Self::open_offline`], but on a new machine it makes the state that is missing, as `up` would; for a
    /// rebuild from storage and master key alone.
    ///
    /// # Errors
    /// See [`BooksError`].
    pub fn open_to_rebuild(
        state_dir: &Path,
        storage: &StorageSettings,
        master_key: &Path,
        reach: &Reach,
    ) -> Result<Self, BooksError> {
        let master = MasterKey::load(master_key, storage.directory())?;
        let opened = storage.open(reach, None)?;
        let agent_key = private_dir(state_dir)
            .and_then(|()| agent_key(state_dir))
            .map_err(|error| BooksError::AgentKey(error.to_string()))?;
        let catalogue = open_catalogue(state_dir, &agent_key, Migrations::Allowed)?;
        match catalogue.storage_id()? {
            Some(known) => opened.is_known_as(&known)?,
            None => catalogue.set_storage_id(opened.id())?,
        }
        Ok(Self::new(catalogue, opened, master))
    }

    /// As [`Self::open_offline`], over a storage and a key that are open already.
    ///
    /// # Errors
    /// See [`BooksError`].
    pub fn open_beside(
        state_dir: &Path,
        storage: &AnyStorage,
        master: &MasterKey,
    ) -> Result<Self, BooksError> {
        let agent_key =
            existing_agent_key(state_dir).map_err(|e| BooksError::AgentKey(e.to_string()))?;
        let catalogue = open_catalogue(state_dir, &agent_key, Migrations::Allowed)?;
        Ok(Self::new(catalogue, storage.clone(), master.clone()))
    }

    fn new(catalogue: Catalogue, storage: AnyStorage, master: MasterKey) -> Self {
        let clock = Clock::default();
        Self {
            catalogue,
            storage,
            master: Mutex::new(master),
            begin: Mutex::default(),
            uploads: Mutex::default(),
            clock: Mutex::new(clock),
        }
    }

    /// A new catalogue over a storage that is in use learns of its backups.
    fn adopt(&self, key_file: &Path) -> Result<(), BooksError> {
        if self.catalogue.is_empty()? && !self.storage.list()?.is_empty() {
            let found = self.catalogue.rebuild(&self.storage, &self.master())?;
            if found.good == 0 && !found.problems.is_empty() {
                let (path, backups) = (key_file.to_owned(), found.problems.len());
                return Err(KeyError::Other { path, backups }.into());
            }
            let found = told(&found);
            log::warn!("the catalogue was empty and was made anew from the storage: {found}");
        }
        Ok(())
    }

    /// Another key in the place of the one that the backups need must be noticed now: under it nothing that is
    /// there can be restored, and the keep rules would let it go.
    fn refuse_other_key(&self, key_file: &Path) -> Result<(), BooksError> {
        let master = self.master();
        let holds = |run: &Run| {
            run.key.as_ref().is_none_or(|key| master.ids().any(|id| id == key.master_key_id))
        };
        let runs = self.catalogue.runs(None, usize::MAX)?;
        let present = runs.iter().filter(|run| run.artifact == ArtifactState::Present);
        match present.filter(|run| !holds(run)).count() {
            0 => Ok(()),
            backups => Err(KeyError::Other { path: key_file.to_owned(), backups }.into()),
        }
    }

    /// Whether the key that wraps is still in its file: without it, what is backed up now could not be restored.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub(super) fn key_in_place(&self, key_file: &Path) -> Result<(), BooksError> {
        let master = lock(&self.master);
        let present = MasterKey::load(key_file, None)?;
        if present.ids().any(|id| id == master.id()) {
            Ok(())
        } else {
            Err(KeyError::Unknown { id: master.id().to_owned() }.into())
        }
    }

    /// The storage.
    pub fn storage(&self) -> &AnyStorage {
        &self.storage
    }

    /// The catalogue.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The master key of the moment.
    pub fn master(&self) -> MasterKey {
        lock(&self.master).clone()
    }

    /// Held from looking for an open run until a new one is written down.
    pub(super) fn begin_lock(&self) -> MutexGuard<'_, ()> {
        lock(&self.begin)
    }

    pub(super) fn marks(&self) -> Result<Vec<(String, Mark)>, BooksError> {
        Ok(self.catalogue.marks()?)
    }

    pub(super) fn set_mark(&self, backup: &str, mark: &Mark) -> Result<(), BooksError> {
        Ok(self.catalogue.put_mark(backup, mark)?)
    }

    pub(super) fn check_marks(&self) -> Result<Vec<(String, checks::Mark)>, BooksError> {
        Ok(self.catalogue.check_marks()?)
    }

    pub(super) fn set_check_mark(&self, name: &str, mark: &checks::Mark) -> Result<(), BooksError> {
        Ok(self.catalogue.set_check_mark(name, mark)?)
    }

    pub(super) fn open_runs(&self) -> Result<Vec<Run>, BooksError> {
        Ok(self.catalogue.open_runs()?)
    }

    /// Writes a new run down, with its data key and its schedule's mark; returns its id.
    pub(super) fn begin(
        &self,
        backup: &Backup,
        start: Option<&Start>,
        now_ms: u64,
    ) -> Result<String, BooksError> {
        let run_id = random_hex(6).map_err(BooksError::Io)?;
        let trigger = if start.is_some() { Trigger::Scheduled } else { Trigger::Manual };
        let engine = backup.target.engine;
        let mut run = Run::new(run_id.clone(), &backup.name, engine, trigger, now_ms);
        let data_key = DataKey::generate().map_err(BooksError::Io)?;
        run.key = Some(lock(&self.master).wrap(&run_id, &data_key)?);
        if let Some(start) = start {
            run.slot_ms = Some(start.slot.at_ms);
            run.missed = start.slot.missed;
        }
        self.catalogue.begin(&run, start.map(|start| &start.mark))?;
        Ok(run_id)
    }

    /// Whether somebody waits for this object.
    pub fn expects(&self, key: &ObjectKey) -> bool {
        matches!(self.catalogue.upload(key), Ok(Some(_)))
    }

    /// Notes what arrived; false if nobody waits for it any more.
    ///
    /// # Errors
    /// Of the catalogue.
    pub fn uploaded(&self, key: &ObjectKey, stored: Stored) -> Result<bool, BooksError> {
        Ok(self.catalogue.arrived(key, stored)?)
    }

    pub(super) fn complete(
        &self,
        report: &BackupCompleted,
        now_ms: u64,
    ) -> Result<Completed, BooksError> {
        let report = Report {
            run_id: report.run_id.clone(),
            object_key: report.s3_key.clone(),
            size_bytes: report.size_bytes,
            sha256: report.sha256.clone(),
            compression: report.compression.clone(),
            engine_version: report.db_engine_version.clone(),
        };
        let master = self.master();
        match commit::complete(&self.catalogue, &self.storage, &master, &report, now_ms) {
            Ok(Outcome::Stored(run)) if run.state == State::Completed => {
                self.tidy_soon();
                Ok(Completed::Stored)
            }
            // It was given up or cancelled at the same moment; that came first.
            Ok(Outcome::Stored(_) | Outcome::Known(_)) => Ok(Completed::Known),
            Ok(Outcome::Untrue(why)) => Ok(Completed::Untrue(why)),
            // The key that it was ordered under is gone; offered again, it would be no better.
            Err(CommitError::Manifest(error)) if !error.retry() => {
                Ok(Completed::Untrue(error.to_string()))
            }
            Err(CommitError::Catalogue(error)) => let_go(error, &report.run_id, Completed::Known),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a run without an artifact; false if it was over before.
    pub(super) fn end(
        &self,
        run_id: &str,
        cancelled: bool,
        error: &str,
        now_ms: u64,
    ) -> Result<bool, BooksError> {
        match self.catalogue.end(run_id, cancelled, error, now_ms) {
            Ok(changed) => {
                self.tidy_soon();
                Ok(changed)
            }
            Err(error) => let_go(error, run_id, false),
        }
    }

    /// Notes the time, but not more often than needed.
    pub(super) fn saw(&self, now_ms: u64) -> Result<(), BooksError> {
        let mut clock = lock(&self.clock);
        let elapsed = clock.looked.map(|then| then.elapsed());
        if elapsed.is_some_and(|elapsed| elapsed < LOOK_EVERY) {
            return Ok(());
        }
        let elapsed_ms = elapsed.map_or(0, |e| u64::try_from(e.as_millis()).unwrap_or(u64::MAX));
        clock.seen = self.catalogue.look(now_ms, elapsed_ms)?;
        clock.looked = Some(Instant::now());
        Ok(())
    }

    /// Applies the keep rules when it is time; returns when that will be again.
    pub(super) fn tidy(&self, settings: &Settings, now_ms: u64) -> u64 {
        let later = now_ms + TIDY_EVERY_MS;
        let seen = {
            let mut clock = lock(&self.clock);
            // A clock that went back must not put it off.
            if now_ms < clock.tidy_at_ms && clock.tidy_at_ms <= later {
                return clock.tidy_at_ms;
            }
            // Before the look at the catalogue: a run that ends meanwhile asks for another one.
            clock.tidy_at_ms = later;
            clock.seen
        };
        let rules = settings.backups.iter().map(|backup| (backup.name.as_str(), backup.keep));
        let tidied = commit::tidy(&self.catalogue, &self.storage, rules, &seen, now_ms);
        let mut clock = lock(&self.clock);
        match tidied {
            Ok(tidied) => {
                for run_id in &tidied.released {
                    log::info!("the keep rules let run {run_id} go");
                }
            }
            Err(error) => {
                log::error!("failed to apply the keep rules: {error}");
                clock.tidy_at_ms = clock.tidy_at_ms.min(now_ms + TIDY_AGAIN_MS);
            }
        }
        clock.tidy_at_ms
    }

    /// Looks for a storage that was out of reach; returns when that will be again.
    pub(super) fn look_for_storage(&self, now_ms: u64) -> u64 {
        let Some(s3) = self.storage.s3().filter(|s3| s3.is_away()) else { return u64::MAX };
        {
            let mut clock = lock(&self.clock);
            if now_ms < clock.storage_at_ms && clock.storage_at_ms <= now_ms + STORAGE_AGAIN_MS {
                return clock.storage_at_ms;
            }
            clock.storage_at_ms = now_ms + STORAGE_AGAIN_MS;
        }
        match s3.probe() {
            Ok(()) => {
                log::info!("the storage is there again");
                self.tidy_soon();
                u64::MAX
            }
            Err(error) => {
                log::error!("{error}; the next look is in a minute");
                now_ms + STORAGE_AGAIN_MS
            }
        }
    }

    fn tidy_soon(&self) {
        let mut clock = lock(&self.clock);
        clock.tidy_at_ms = 0;
        // An earlier attempt may have left an upload.
        clock.uploads_at_ms = 0;
    }

    pub(super) fn run(&self, run_id: &str) -> Result<Option<RunView>, BooksError> {
        Ok(self.catalogue.get(run_id)?.as_ref().map(view))
    }

    /// The newest runs, newest first.
    ///
    /// # Errors
    /// Of the catalogue.
    pub fn runs(&self, backup: Option<&str>, most: usize) -> Result<Vec<RunView>, BooksError> {
        Ok(self.catalogue.runs(backup, most)?.iter().map(view).collect())
    }

    /// The newest run of a backup that is over, and the newest that can be restored.
    pub(super) fn last_runs(
        &self,
        backup: &str,
    ) -> Result<(Option<RunView>, Option<RunView>), BooksError> {
        // At most one run of a backup is open, so the second newest is over.
        let last = self.catalogue.runs(Some(backup), 2)?;
        let last = last.iter().find(|run| run.state != State::Open).map(view);
        Ok((last, self.catalogue.newest_good(backup)?.as_ref().map(view)))
    }

    /// The sizes of the good runs before this one, newest first; also of those that a keep rule let go since.
    pub(super) fn sizes_before(
        &self,
        backup: &str,
        run_id: &str,
        most: usize,
    ) -> Result<Vec<u64>, BooksError> {
        let runs = self.catalogue.runs(Some(backup), usize::MAX)?;
        let before = runs.iter().skip_while(|run| run.run_id != run_id).skip(1);
        let good = before.filter(|run| run.is_good() || run.artifact == ArtifactState::Deleted);
        let sizes = good.filter_map(|run| run.object.as_ref()).map(|object| object.size_bytes);
        Ok(sizes.take(most).collect())
    }

    /// Makes the catalogue agree with the storage; what was found.
    ///
    /// # Errors
    /// When the storage cannot be read, or the catalogue not be written.
    pub fn rebuild(&self) -> Result<Value, BooksError> {
        let found = self.catalogue.rebuild(&self.storage, &self.master())?;
        if self.catalogue.storage_id()?.is_none() {
            // A catalogue with backups knows where they are, or the next start would make a new storage
            // wherever the disk is not mounted.
            self.catalogue.set_storage_id(self.storage.id())?;
        }
        Ok(told(&found))
    }

    /// Notes the outcome of a verification.
    ///
    /// # Errors
    /// Of the catalogue.
    pub fn verified(&self, run_id: &str, error: Option<String>) -> Result<(), BooksError> {
        Ok(self.catalogue.verified(run_id, Verified { at_ms: unix_ms(), error })?)
    }

    /// Notes that a copy of the newest master key is safe elsewhere.
    ///
    /// # Errors
    /// Of the catalogue.
    pub fn key_exported(&self, now_ms: u64) -> Result<(), BooksError> {
        let id = self.master().id().to_owned();
        Ok(self.catalogue.confirm_export(&id, now_ms)?)
    }

    /// The newest master key, if nobody has said that there is a copy of it.
    pub fn unexported_key(&self) -> Option<String> {
        let id = self.master().id().to_owned();
        match self.catalogue.export_confirmed(&id) {
            Ok(Some(_)) => None,
            Ok(None) | Err(_) => Some(id),
        }
    }

    /// Puts a new master key before the others; its id.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn rotate_key(&self, path: &Path, now_ms: u64) -> Result<String, BooksError> {
        let mut master = lock(&self.master);
        *master = master.rotate(path, now_ms)?;
        Ok(master.id().to_owned())
    }
}

/// Finds out at the start what would be missed some night. A bucket that is only out of reach is waited for.
fn probe(s3: &S3) -> Result<(), BooksError> {
    match s3.probe() {
        Err(error) if error.is_away() => {
            log::error!("{error}; backups wait until it is back");
            Ok(())
        }
        other => Ok(other?),
    }
}

fn open_catalogue(
    state_dir: &Path,
    agent_key: &Secret,
    migrations: Migrations,
) -> Result<Catalogue, BooksError> {
    let keys = StoreKeys { current: agent_key.clone(), previous: None };
    Ok(Catalogue::new(Store::open_as(&state_dir.join(CONTROL_STORE), &SPACES, &keys, migrations)?))
}

/// What the catalogue will never take must not be offered for ever.
fn let_go<T>(error: CatalogueError, run_id: &str, answer: T) -> Result<T, BooksError> {
    if error.retry() {
        return Err(error.into());
    }
    log::error!("let the agent's result of run {run_id} go: {error}");
    Ok(answer)
}

fn told(found: &Rebuilt) -> Value {
    json!({
        "good": found.good,
        "added": found.added,
        "lost": found.lost,
        "unfinished": found.unfinished,
        "problems": found.problems,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A run as people see it.
pub fn view(run: &Run) -> RunView {
    let bad = run.verified.as_ref().and_then(|verified| verified.error.clone());
    let state = match (run.state, run.artifact) {
        (State::Open, _) => "waiting",
        (State::Failed, _) => "failed",
        (State::Cancelled, _) => "cancelled",
        (State::Completed, ArtifactState::Present) if bad.is_some() => "bad",
        (State::Completed, ArtifactState::Present) => "ok",
        (State::Completed, ArtifactState::Deleted) => "deleted",
        (State::Completed, ArtifactState::Lost | ArtifactState::None) => "lost",
    };
    let object = run.object.as_ref();
    RunView {
        run_id: run.run_id.clone(),
        backup: run.backup.clone(),
        state: state.to_owned(),
        manual: run.trigger == Trigger::Manual,
        created_ms: run.created_ms,
        finished_ms: run.finished_ms,
        size_bytes: object.map_or(0, |object| object.size_bytes),
        sha256: object.map_or_else(String::new, |o| crate::hex::hex(&o.sha256)),
        object_key: object.map_or_else(String::new, |object| object.key.to_string()),
        compression: run.compression.map_or("", crate::model::Compression::as_str).to_owned(),
        engine_version: run.engine_version.clone(),
        verified_ms: run.verified.as_ref().map_or(0, |verified| verified.at_ms),
        error: bad.unwrap_or_else(|| run.error.clone()),
        step: String::new(),
        percent: 0,
    }
}
