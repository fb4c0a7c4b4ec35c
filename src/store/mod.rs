//! The state on disk: sealed records in a few spaces, written in atomic durable batches.
//!
//! ```text
//! commit → seal → engine (fjall) journal, synced → tables
//!             ↖ store key, random, wrapped under the agent key
//! ```
//! What it promises: a commit that returned survives a power cut; a batch is there as a whole or not at all; what was
//! written is either read back or reported as damaged, and a lost, emptied or foreign directory is never taken for a
//! new one. [`highwater`] is the second witness for that. A full disk fails a commit, never the store: the
//! [ballast](files::Ballast) is given up, the engine reopened, and later commits work again once there is room.
//!
//! It does not interpret records, keeps no cache of its own, and has no thread of its own but the engine's two
//! workers, which sleep unless something is written.

mod check;
mod dump;
mod engine;
mod error;
mod files;
pub mod highwater;
mod journal;
mod open;
mod seal;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use zeroize::Zeroizing;

use crate::secret::Secret;
use engine::{Engine, EngineError, Op};
use files::{Ballast, Lock, Marker};
use seal::Sealer;

pub use dump::{Record, set_aside};
pub use error::StoreError;

/// A namespace of records; each has its own order of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Counters and single records. Keys that start with `store/` are the store's own.
    Meta,
    /// What the control plane configured.
    Config,
    /// Runs, open and finished.
    Runs,
    /// What is left of runs that were forgotten.
    Tombstones,
    /// What must still be delivered.
    Outbox,
    /// Control plane: runs and their artifacts.
    Catalogue,
    /// Control plane: when what ran last.
    Schedule,
    /// Control plane: entries that were received, so that a repeat is known.
    Received,
    /// Control plane: the agents it knows.
    Agents,
}

impl Space {
    /// Every space, for tools that look at a directory whoever wrote it.
    pub const ALL: [Self; 9] = [
        Self::Meta,
        Self::Config,
        Self::Runs,
        Self::Tombstones,
        Self::Outbox,
        Self::Catalogue,
        Self::Schedule,
        Self::Received,
        Self::Agents,
    ];
    /// What an agent keeps.
    pub const AGENT: [Self; 5] =
        [Self::Meta, Self::Config, Self::Runs, Self::Tombstones, Self::Outbox];

    /// Its name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Config => "config",
            Self::Runs => "runs",
            Self::Tombstones => "tombstones",
            Self::Outbox => "outbox",
            Self::Catalogue => "catalogue",
            Self::Schedule => "schedule",
            Self::Received => "received",
            Self::Agents => "agents",
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The agent key, and the one before it while it is being rotated.
#[derive(Debug, Clone)]
pub struct StoreKeys {
    /// The key that the store belongs to from now on.
    pub current: Secret,
    /// The key that it may still belong to.
    pub previous: Option<Secret>,
}

/// Largest value of a record.
pub const MAX_VALUE_BYTES: usize = 16 << 20;
/// Largest key of a record.
pub const MAX_KEY_BYTES: usize = 4096;

/// Once so much was written, the journal is moved into tables and emptied.
const COMPACT_BYTES: u64 = 2 << 20;
/// A scan reads so much at a time.
const PAGE_RECORDS: usize = 64;
const PAGE_BYTES: usize = 256 << 10;
/// Below this a full disk is not worth another attempt.
const HOPELESS_BYTES: u64 = 64 << 10;

const RESERVED: &[u8] = b"store/";

/// Operations that happen together. A plain list; nothing happens before [`Store::commit`].
#[derive(Default)]
pub struct Batch(Vec<Change>);

/// A record and its new value; `None` removes it.
struct Change {
    space: Space,
    key: Vec<u8>,
    value: Option<Zeroizing<Vec<u8>>>,
}

/// What a scan calls with key and value of every record.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a record, over the one that may be there.
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let value = Some(Zeroizing::new(value.into()));
        self.0.push(Change { space, key: key.into(), value });
    }

    /// Removes a record, if it is there.
    pub fn delete(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.0.push(Change { space, key: key.into(), value: None });
    }

    /// Adds the operations of `other` behind these.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An open store. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    spaces: Vec<Space>,
    marker: Marker,
    sealer: Sealer,
    /// `None` while it is closed, or after a reopening that failed.
    engine: RwLock<Option<Engine>>,
    /// Taken by whoever commits, reopens or closes, always before `engine`.
    writer: Mutex<Writer>,
}

struct Writer {
    /// Let go of on close.
    lock: Option<Lock>,
    ballast: Ballast,
    /// What the journal grew by.
    journal_bytes: u64,
    compact_at: u64,
}

impl Store {
    /// Opens the store in `dir`, or makes a new one where there is none and never was.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is changed by a refusal.
    pub fn open(dir: &Path, spaces: &[Space], keys: &StoreKeys) -> Result<Self, StoreError> {
        open::open(dir, spaces, keys).map(|inner| Self(Arc::new(inner)))
    }

    /// The random id that names this store for ever.
    pub fn id(&self) -> &str {
        &self.0.marker.store_id
    }

    /// The directory it lives in.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A record.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let sealed = self.0.with_engine(|engine| engine.get(space, key))?;
        sealed.map(|sealed| self.0.unseal(space, key, &sealed)).transpose()
    }

    /// Calls `f` with every record from `from` (inclusive) on, in the order of keys, until it breaks. `f` may use the
    /// store; what is written meanwhile may or may not be seen.
    ///
    /// # Errors
    /// When a record is damaged or cannot be read.
    pub fn scan(&self, space: Space, from: &[u8], f: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut bound = Bound::Included(from.to_vec());
        loop {
            let start = bound.as_ref().map(Vec::as_slice);
            let page = self.0.with_engine(|e| e.page(space, start, PAGE_RECORDS, PAGE_BYTES))?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            let next = Bound::Excluded(last.clone());
            for (key, sealed) in &page {
                if space == Space::Meta && key.starts_with(RESERVED) {
                    continue;
                }
                let value = self.0.unseal(space, key, sealed)?;
                if f(key, &value).is_break() {
                    return Ok(());
                }
            }
            bound = next;
        }
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new()
    }

    /// Does all of it durably, or nothing. After an error the outcome of a retry by the engine may still appear at the
    /// next start, so never give another meaning to the same keys.
    ///
    /// # Errors
    /// [`StoreError::Full`] when the disk is, even without the ballast; later commits work once there is room.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.0.commit(batch)
    }

    /// Persists and closes, for all clones; within a deadline, even when the engine hangs.
    ///
    /// # Errors
    /// When the engine did not close in time. What was committed is safe all the same.
    pub fn close(self) -> Result<(), StoreError> {
        self.0.close()
    }

    /// What the whole directory occupies on disk.
    pub fn disk_bytes(&self) -> u64 {
        files::disk_bytes(&self.0.dir)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.0.dir.display())
    }
}

impl Inner {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self) -> PathBuf {
        self.dir.join(files::DATABASE)
    }

    /// Reads; where the engine is not there, tries to get it back first.
    fn with_engine<T>(
        &self,
        read: impl Fn(&Engine) -> Result<T, EngineError>,
    ) -> Result<T, StoreError> {
        if let Some(result) = self.try_engine(&read) {
            return result.map_err(|e| self.error(e));
        }
        let mut writer = self.writer();
        self.ensure_open(&mut writer)?;
        let result = self.try_engine(&read).ok_or(StoreError::Closed)?;
        result.map_err(|e| self.error(e))
    }

    fn try_engine<T>(&self, read: impl Fn(&Engine) -> T) -> Option<T> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(read)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let ops = self.seal(batch)?;
        let mut writer = self.writer();
        self.ensure_open(&mut writer)?;
        if let Err(error) = self.write(&ops) {
            self.recover(&mut writer, error)?;
            self.write(&ops).map_err(|e| self.error(e))?;
            log::warn!("the store in {} was reopened after a failed write", self.dir.display());
        }
        writer.journal_bytes += ops.iter().map(journal_bytes).sum::<u64>();
        if writer.journal_bytes >= writer.compact_at {
            self.compact(&mut writer);
        }
        writer.ballast.restore();
        Ok(())
    }

    fn write(&self, ops: &[Op]) -> Result<(), EngineError> {
        self.try_engine(|engine| engine.commit(ops))
            .unwrap_or_else(|| Err(EngineError::Failed("the database is not open".to_owned())))
    }

    fn seal(&self, batch: Batch) -> Result<Vec<Op>, StoreError> {
        let mut spaces = BTreeSet::new();
        let mut ops = Vec::with_capacity(batch.len());
        for Change { space, key, value } in batch.0 {
            let refused = |what| Err(StoreError::Refused { space, what });
            if !spaces.contains(&space) && !self.spaces.contains(&space) {
                return refused("the store was opened without it");
            }
            spaces.insert(space);
            if space == Space::Meta && key.starts_with(RESERVED) {
                return refused("the key is reserved");
            }
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return refused("the key is empty or too long");
            }
            ops.push(match value {
                Some(value) if value.len() > MAX_VALUE_BYTES => {
                    return refused("the value is too large");
                }
                Some(value) => {
                    let sealed = self.sealer.seal(space.name(), &key, &value).map_err(|_| {
                        self.error(EngineError::Failed("no random numbers".to_owned()))
                    })?;
                    Op::Put(space, key, sealed)
                }
                None => Op::Delete(space, key),
            });
        }
        Ok(ops)
    }

    fn unseal(
        &self,
        space: Space,
        key: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        self.sealer.open(space.name(), key, sealed).ok_or_else(|| {
            let key = key.escape_ascii();
            StoreError::damaged(&self.dir, format!("record `{key}` of `{space}` does not open"))
        })
    }

    /// After a failed write: makes room where that was the reason, and reopens the engine, which writes no more.
    fn recover(&self, writer: &mut Writer, error: EngineError) -> Result<(), StoreError> {
        let free = files::free_bytes(&self.dir).unwrap_or(u64::MAX);
        if matches!(error, EngineError::Full) || free < HOPELESS_BYTES {
            let gave = writer.ballast.give_up();
            if gave {
                log::warn!("the disk of {} is full, the ballast is given up", self.dir.display());
            } else if free < HOPELESS_BYTES {
                return Err(StoreError::Full { dir: self.dir.clone() });
            }
        }
        self.shut_engine()?;
        self.ensure_open(writer)
    }

    /// Opens the engine again if it is not open, unless the store was closed.
    fn ensure_open(&self, writer: &mut Writer) -> Result<(), StoreError> {
        if writer.lock.is_none() {
            return Err(StoreError::Closed);
        }
        if self.try_engine(|_| ()).is_some() {
            return Ok(());
        }
        check::before_open(&self.dir, Some(&self.marker))?;
        let engine = Engine::open(&self.database(), &self.spaces).map_err(|e| self.error(e))?;
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(engine);
        Ok(())
    }

    fn shut_engine(&self) -> Result<(), StoreError> {
        let engine = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        match engine.map(Engine::close) {
            None | Some(true) => Ok(()),
            Some(false) => Err(StoreError::Failed {
                dir: self.dir.clone(),
                what: "the database did not close in time; restart the agent".to_owned(),
            }),
        }
    }

    /// Moves the journal's content into tables and empties it, so that the directory stays small for ever. Whatever
    /// goes wrong here leaves the journal as it is.
    fn compact(&self, writer: &mut Writer) {
        let drained = self.try_engine(Engine::drain);
        let result = match drained {
            Some(Ok(true)) => self.shut_engine().and_then(|()| self.empty_journal()),
            Some(Ok(false)) => Err(self.error(EngineError::Failed("timeout".to_owned()))),
            Some(Err(e)) => Err(self.error(e)),
            None => return,
        };
        let reopened = self.ensure_open(writer);
        match result.and(reopened) {
            Ok(()) => {
                writer.journal_bytes = 0;
                writer.compact_at = COMPACT_BYTES;
            }
            Err(e) => {
                writer.compact_at = writer.journal_bytes + COMPACT_BYTES;
                log::warn!("the journal stays as it is for now: {e}");
            }
        }
    }

    fn empty_journal(&self) -> Result<(), StoreError> {
        let journals = check::journal_files(&self.database())?;
        // More than one would mean that the engine still needs the older ones.
        let [(_, journal)] = journals.as_slice() else { return Ok(()) };
        engine::empty_journal(journal).map_err(|e| StoreError::unusable(journal, "empty", e))
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut writer = self.writer();
        if writer.lock.is_none() {
            return Ok(());
        }
        let shut = self.shut_engine();
        if shut.is_ok() {
            check::mark_clean(&self.dir);
        }
        writer.lock = None;
        shut
    }

    fn error(&self, error: EngineError) -> StoreError {
        open::error(&self.dir, error)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            log::warn!("{e}");
        }
    }
}

fn journal_bytes(op: &Op) -> u64 {
    let size = match op {
        Op::Put(_, key, value) => key.len() + value.len(),
        Op::Delete(_, key) => key.len(),
    };
    size as u64 + 64
}

#[cfg(test)]
mod tests;
