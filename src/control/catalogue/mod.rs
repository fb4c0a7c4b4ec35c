//! What happened: runs, schedules, what was issued and what is to be removed. In the control plane's own store.
//!
//! | space | key | value |
//! |---|---|---|
//! | catalogue | `run/RUN` | [`Run`] |
//! | | `by/BACKUP/TIME/RUN` | nothing; TIME counts down, so that a scan finds the newest first |
//! | | `open/RUN` | nothing; the runs that have not ended |
//! | | `up/KEY` | [`Upload`]: an URL was issued for this object |
//! | | `gone/KEY` | the object is to be removed, manifest first |
//! | | `check/NAME` | [`Mark`](super::checks::Mark): what people were told of the check |
//! | | `meta/seen`, `meta/storage`, `meta/exported/ID` | last time seen, the storage's id, exports of the key |
//! | | `alarm/BACKUP`, `owed/RUN`, `tell/CHANNEL/ID` | what people were told, and still have to hear: [`told`] |
//! | schedule | BACKUP | [`Mark`] |
//!
//! Every change is one durable batch. An object that the catalogue once issued is either a run's artifact, or
//! waiting in `up/` for its run, or in `gone/` until it is removed: nothing is ever left behind unknown. Per
//! backup [`HISTORY_MAX`] runs without an artifact are remembered. The storage alone is enough to make it
//! anew ([`Catalogue::rebuild`]).

mod checks;
mod error;
mod rebuild;
mod record;
#[cfg(test)]
mod tests;
mod told;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::keep::LastSeen;
use super::manifest::Manifest;
use super::schedule::Mark;
use super::storage::{ObjectKey, Stored};
use crate::store::{Batch, Space, Store};

pub use error::CatalogueError;
pub use rebuild::{RebuildError, Rebuilt};
pub use record::{Arrived, ArtifactState, Run, State, Upload, Verified};
pub use told::Alarm;

use record::Gone;

/// The spaces that a store must be opened with.
pub const SPACES: [Space; 2] = [Space::Catalogue, Space::Schedule];

/// Runs without an artifact that are remembered per backup.
pub const HISTORY_MAX: usize = 500;

const RUN_ID_MAX: usize = 64;

/// The catalogue. Clones share it.
#[derive(Debug, Clone)]
pub struct Catalogue {
    store: Store,
    /// Held from reading a record until it is written again.
    change: Arc<Mutex<()>>,
}

impl Catalogue {
    /// The catalogue in an open store.
    pub fn new(store: Store) -> Self {
        Self { store, change: Arc::default() }
    }

    /// Whether it holds no run.
    ///
    /// # Errors
    /// Of the store.
    pub fn is_empty(&self) -> Result<bool, CatalogueError> {
        let mut empty = true;
        self.store.scan(Space::Catalogue, b"run/", &mut |key, _| {
            empty = !key.starts_with(b"run/");
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }

    /// A run.
    ///
    /// # Errors
    /// Of the store.
    pub fn get(&self, run_id: &str) -> Result<Option<Run>, CatalogueError> {
        self.read(Space::Catalogue, &format!("run/{run_id}"))
    }

    /// The newest runs, newest first: of one backup or of all.
    ///
    /// # Errors
    /// Of the store.
    pub fn runs(&self, backup: Option<&str>, limit: usize) -> Result<Vec<Run>, CatalogueError> {
        let prefix = backup.map_or("by/".to_owned(), |backup| format!("by/{backup}/"));
        let mut found: Vec<(String, String)> = Vec::new();
        self.each(&prefix, &mut |rest| {
            let rest =
                if backup.is_none() { rest.split_once('/').map_or("", |(_, r)| r) } else { rest };
            if let Some((time, run_id)) = rest.split_once('/') {
                found.push((time.to_owned(), run_id.to_owned()));
            }
            if backup.is_some() && found.len() >= limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        found.sort();
        found.truncate(limit);
        let mut runs = Vec::with_capacity(found.len());
        for (_, run_id) in found {
            runs.extend(self.get(&run_id)?);
        }
        Ok(runs)
    }

    /// The runs that have not ended, in no order.
    ///
    /// # Errors
    /// Of the store.
    pub fn open_runs(&self) -> Result<Vec<Run>, CatalogueError> {
        let mut ids = Vec::new();
        self.each("open/", &mut |id| {
            ids.push(id.to_owned());
            ControlFlow::Continue(())
        })?;
        let mut runs = Vec::with_capacity(ids.len());
        for id in ids {
            runs.extend(self.get(&id)?);
        }
        Ok(runs)
    }

    /// The newest run whose artifact can be restored, as far as is known.
    ///
    /// # Errors
    /// Of the store.
    pub fn newest_good(&self, backup: &str) -> Result<Option<Run>, CatalogueError> {
        Ok(self.runs(Some(backup), usize::MAX)?.into_iter().find(Run::is_good))
    }

    /// Orders a run, together with the mark of its schedule.
    ///
    /// # Errors
    /// When there is such a run, its id or backup cannot be a key, or the store fails.
    pub fn begin(&self, run: &Run, mark: Option<&Mark>) -> Result<(), CatalogueError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let id_fits = run.run_id.len() <= RUN_ID_MAX && run.run_id.chars().all(fits);
        if run.run_id.is_empty() || !id_fits || run.backup.is_empty() || run.backup.contains('/') {
            return Err(CatalogueError::BadId);
        }
        let _change = self.lock();
        if self.get(&run.run_id)?.is_some() {
            return Err(CatalogueError::Exists { run_id: run.run_id.clone() });
        }
        let mut batch = self.store.batch();
        put(&mut batch, Space::Catalogue, &format!("run/{}", run.run_id), run)?;
        batch.put(Space::Catalogue, index(run), *b"-");
        if run.state == State::Open {
            batch.put(Space::Catalogue, format!("open/{}", run.run_id), *b"-");
        }
        if let Some(mark) = mark {
            put(&mut batch, Space::Schedule, &run.backup, mark)?;
        }
        Ok(self.store.commit(batch)?)
    }

    /// Notes that an upload URL for this object is about to be issued; the run's next attempt.
    ///
    /// # Errors
    /// When the run is unknown or has ended, or the store fails.
    pub fn issue(
        &self,
        run_id: &str,
        key: &ObjectKey,
        until_ms: u64,
        upload_id: Option<&str>,
    ) -> Result<Run, CatalogueError> {
        let _change = self.lock();
        let mut run = self.open_run(run_id)?;
        run.attempts = run.attempts.saturating_add(1);
        let mut batch = self.store.batch();
        put(&mut batch, Space::Catalogue, &format!("run/{run_id}"), &run)?;
        let upload_id = upload_id.map(str::to_owned);
        let upload = Upload { run_id: run_id.to_owned(), until_ms, stored: None, upload_id };
        put(&mut batch, Space::Catalogue, &format!("up/{key}"), &upload)?;
        self.store.commit(batch)?;
        Ok(run)
    }

    /// What was issued for this object, while its run is open.
    ///
    /// # Errors
    /// Of the store.
    pub fn upload(&self, key: &ObjectKey) -> Result<Option<Upload>, CatalogueError> {
        self.read(Space::Catalogue, &format!("up/{key}"))
    }

    /// The object that a multipart upload of this open run makes.
    ///
    /// # Errors
    /// Of the store.
    pub fn upload_of(
        &self,
        run_id: &str,
        upload_id: &str,
    ) -> Result<Option<(ObjectKey, Upload)>, CatalogueError> {
        let uploads = self.objects::<Upload>("up/")?.into_iter();
        let mut ours = uploads
            .filter(|(_, up)| up.run_id == run_id && up.upload_id.as_deref() == Some(upload_id));
        Ok(ours.next())
    }

    /// Notes what arrived. Returns false when nobody waits for it any more.
    ///
    /// # Errors
    /// Of the store.
    pub fn arrived(&self, key: &ObjectKey, stored: Stored) -> Result<bool, CatalogueError> {
        let _change = self.lock();
        let Some(mut upload) = self.upload(key)? else { return Ok(false) };
        upload.stored = Some(stored.into());
        let mut batch = self.store.batch();
        put(&mut batch, Space::Catalogue, &format!("up/{key}"), &upload)?;
        self.store.commit(batch)?;
        Ok(true)
    }

    /// Ends a run with its artifact; the manifest must be stored already. What else was uploaded for the run is
    /// to be removed. Returns false when it had ended before.
    ///
    /// # Errors
    /// When the run is unknown, or the store fails.
    pub fn complete(&self, manifest: &Manifest) -> Result<bool, CatalogueError> {
        self.finish(&manifest.run_id, Some(&manifest.object.key), &mut |run| run.complete(manifest))
    }

    /// Ends a run without an artifact; what was uploaded for it is to be removed. Returns false when it had ended
    /// before.
    ///
    /// # Errors
    /// When the run is unknown, or the store fails.
    pub fn end(
        &self,
        run_id: &str,
        cancelled: bool,
        error: &str,
        now_ms: u64,
    ) -> Result<bool, CatalogueError> {
        let state = if cancelled { State::Cancelled } else { State::Failed };
        self.finish(run_id, None, &mut |run| run.end(state, error, now_ms))
    }

    fn finish(
        &self,
        run_id: &str,
        keep: Option<&ObjectKey>,
        change: &mut dyn FnMut(&mut Run),
    ) -> Result<bool, CatalogueError> {
        let _change = self.lock();
        let mut run = match self.open_run(run_id) {
            Err(CatalogueError::Ended { .. }) => return Ok(false),
            other => other?,
        };
        change(&mut run);
        let mut batch = self.store.batch();
        put(&mut batch, Space::Catalogue, &format!("run/{run_id}"), &run)?;
        batch.delete(Space::Catalogue, format!("open/{run_id}"));
        // Somebody wanted it so: that is told to nobody.
        if run.state != State::Cancelled {
            batch.put(Space::Catalogue, format!("owed/{run_id}"), *b"-");
        }
        self.settle_uploads(&mut batch, run_id, keep)?;
        self.store.commit(batch)?;
        Ok(true)
    }

    /// A run has ended: what was issued for it is its artifact, or to be removed.
    fn settle_uploads(
        &self,
        batch: &mut Batch,
        run_id: &str,
        keep: Option<&ObjectKey>,
    ) -> Result<(), CatalogueError> {
        for (key, upload) in self.objects::<Upload>("up/")? {
            if upload.run_id != run_id {
                continue;
            }
            batch.delete(Space::Catalogue, format!("up/{key}"));
            if keep != Some(&key) {
                let gone = Gone { not_before_ms: upload.until_ms };
                put(batch, Space::Catalogue, &format!("gone/{key}"), &gone)?;
            }
        }
        Ok(())
    }

    /// Notes the outcome of a verification.
    ///
    /// # Errors
    /// When the run is unknown, or the store fails.
    pub fn verified(&self, run_id: &str, verified: Verified) -> Result<(), CatalogueError> {
        let _change = self.lock();
        let mut run = self.known_run(run_id)?;
        run.verified = Some(verified);
        let mut batch = self.store.batch();
        put(&mut batch, Space::Catalogue, &format!("run/{run_id}"), &run)?;
        Ok(self.store.commit(batch)?)
    }

    /// Lets a run's artifact go: it is no longer offered, and its object is to be removed.
    ///
    /// # Errors
    /// When the run is unknown, or the store fails.
    pub fn release(&self, run_id: &str) -> Result<(), CatalogueError> {
        let _change = self.lock();
        let mut run = self.known_run(run_id)?;
        let Some(object) = run.object.clone().filter(|_| run.artifact == ArtifactState::Present)
        else {
            return Ok(());
        };
        run.artifact = ArtifactState::Deleted;
        let mut batch = self.store.batch();
        put(&mut batch, Space::Catalogue, &format!("run/{run_id}"), &run)?;
        put(
            &mut batch,
            Space::Catalogue,
            &format!("gone/{}", object.key),
            &Gone { not_before_ms: 0 },
        )?;
        Ok(self.store.commit(batch)?)
    }

    /// The objects that are to be removed now.
    ///
    /// # Errors
    /// Of the store.
    pub fn gone(&self, now_ms: u64) -> Result<Vec<ObjectKey>, CatalogueError> {
        let mut keys = Vec::new();
        for (key, gone) in self.objects::<Gone>("gone/")? {
            if gone.not_before_ms <= now_ms {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Notes that an object was removed.
    ///
    /// # Errors
    /// Of the store.
    pub fn removed(&self, key: &ObjectKey) -> Result<(), CatalogueError> {
        let mut batch = self.store.batch();
        batch.delete(Space::Catalogue, format!("gone/{key}"));
        Ok(self.store.commit(batch)?)
    }

    /// Forgets the oldest runs without an artifact, beyond [`HISTORY_MAX`].
    ///
    /// # Errors
    /// Of the store.
    pub fn prune(&self, backup: &str) -> Result<usize, CatalogueError> {
        let _change = self.lock();
        let without =
            |run: &Run| run.state != State::Open && run.artifact != ArtifactState::Present;
        let runs = self.runs(Some(backup), usize::MAX)?;
        let old: Vec<Run> = runs.into_iter().filter(without).skip(HISTORY_MAX).collect();
        let mut batch = self.store.batch();
        for run in &old {
            batch.delete(Space::Catalogue, format!("run/{}", run.run_id));
            batch.delete(Space::Catalogue, index(run));
        }
        self.store.commit(batch)?;
        Ok(old.len())
    }

    /// The marks of all schedules.
    ///
    /// # Errors
    /// Of the store.
    pub fn marks(&self) -> Result<Vec<(String, Mark)>, CatalogueError> {
        let mut marks = Vec::new();
        let mut damaged = None;
        self.store.scan(Space::Schedule, b"", &mut |key, value| {
            let backup = String::from_utf8_lossy(key).into_owned();
            match serde_json::from_slice(value) {
                Ok(mark) => marks.push((backup, mark)),
                Err(_) => damaged = Some(backup),
            }
            ControlFlow::Continue(())
        })?;
        match damaged {
            Some(key) => Err(CatalogueError::Record { key }),
            None => Ok(marks),
        }
    }

    /// Stores a mark for which no run was started.
    ///
    /// # Errors
    /// Of the store.
    pub fn put_mark(&self, backup: &str, mark: &Mark) -> Result<(), CatalogueError> {
        self.write(Space::Schedule, backup, mark)
    }

    /// The last time that is believed.
    ///
    /// # Errors
    /// Of the store.
    pub fn seen(&self) -> Result<LastSeen, CatalogueError> {
        Ok(self.read(Space::Catalogue, "meta/seen")?.unwrap_or_default())
    }

    /// Notes the time; see [`LastSeen::look`].
    ///
    /// # Errors
    /// Of the store.
    pub fn look(&self, now_ms: u64, elapsed_ms: u64) -> Result<LastSeen, CatalogueError> {
        let _change = self.lock();
        let before = self.seen()?;
        let seen = before.look(now_ms, elapsed_ms);
        if seen != before {
            self.write(Space::Catalogue, "meta/seen", &seen)?;
        }
        Ok(seen)
    }

    /// The id of the storage that this catalogue is about; `None` before the first start.
    ///
    /// # Errors
    /// Of the store.
    pub fn storage_id(&self) -> Result<Option<String>, CatalogueError> {
        self.read(Space::Catalogue, "meta/storage")
    }

    /// Notes which storage it is about.
    ///
    /// # Errors
    /// Of the store.
    pub fn set_storage_id(&self, id: &str) -> Result<(), CatalogueError> {
        self.write(Space::Catalogue, "meta/storage", &id)
    }

    /// When somebody confirmed to have exported this master key; a rotated one has to be exported again.
    ///
    /// # Errors
    /// Of the store.
    pub fn export_confirmed(&self, master_key_id: &str) -> Result<Option<u64>, CatalogueError> {
        self.read(Space::Catalogue, &format!("meta/exported/{master_key_id}"))
    }

    /// Notes that somebody did.
    ///
    /// # Errors
    /// Of the store.
    pub fn confirm_export(&self, master_key_id: &str, now_ms: u64) -> Result<(), CatalogueError> {
        self.write(Space::Catalogue, &format!("meta/exported/{master_key_id}"), &now_ms)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_run(&self, run_id: &str) -> Result<Run, CatalogueError> {
        self.get(run_id)?.ok_or_else(|| CatalogueError::Unknown { run_id: run_id.to_owned() })
    }

    fn open_run(&self, run_id: &str) -> Result<Run, CatalogueError> {
        let run = self.known_run(run_id)?;
        match run.state {
            State::Open => Ok(run),
            _ => Err(CatalogueError::Ended { run_id: run_id.to_owned() }),
        }
    }

    /// The records under `prefix` whose keys end in an object's key.
    fn objects<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<Vec<(ObjectKey, T)>, CatalogueError> {
        let mut found = Vec::new();
        let mut damaged = None;
        self.store.scan(Space::Catalogue, prefix.as_bytes(), &mut |key, value| {
            let Some(rest) = key.strip_prefix(prefix.as_bytes()) else {
                return ControlFlow::Break(());
            };
            let rest = String::from_utf8_lossy(rest);
            match (ObjectKey::parse(&rest), serde_json::from_slice(value)) {
                (Ok(key), Ok(value)) => found.push((key, value)),
                _ => damaged = Some(format!("{prefix}{rest}")),
            }
            ControlFlow::Continue(())
        })?;
        match damaged {
            Some(key) => Err(CatalogueError::Record { key }),
            None => Ok(found),
        }
    }

    /// Calls `f` with what follows `prefix` in every key that begins with it.
    fn each(
        &self,
        prefix: &str,
        f: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), CatalogueError> {
        self.store.scan(Space::Catalogue, prefix.as_bytes(), &mut |key, _| match key
            .strip_prefix(prefix.as_bytes())
            .map(String::from_utf8_lossy)
        {
            Some(rest) => f(&rest),
            None => ControlFlow::Break(()),
        })?;
        Ok(())
    }

    fn read<T: DeserializeOwned>(
        &self,
        space: Space,
        key: &str,
    ) -> Result<Option<T>, CatalogueError> {
        let Some(bytes) = self.store.get(space, key.as_bytes())? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|_| CatalogueError::Record { key: key.to_owned() })
    }

    fn write<T: Serialize>(
        &self,
        space: Space,
        key: &str,
        value: &T,
    ) -> Result<(), CatalogueError> {
        let mut batch = self.store.batch();
        put(&mut batch, space, key, value)?;
        Ok(self.store.commit(batch)?)
    }
}

fn put<T: Serialize>(
    batch: &mut Batch,
    space: Space,
    key: &str,
    value: &T,
) -> Result<(), CatalogueError> {
    let bytes =
        serde_json::to_vec(value).map_err(|_| CatalogueError::Record { key: key.to_owned() })?;
    batch.put(space, key, bytes);
    Ok(())
}

/// Newest first: the time counts down.
fn index(run: &Run) -> String {
    format!("by/{}/{:016x}/{}", run.backup, u64::MAX - run.created_ms, run.run_id)
}
