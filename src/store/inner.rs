//! Committing, and what keeps it working: reopening after a failure, giving up the ballast, emptying the journal.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use zeroize::Zeroizing;

use super::engine::{Engine, EngineError, Op};
use super::files::{self, Ballast, Lock, Marker};
use super::seal::{self, Sealer};
use super::{
    Batch, Change, MAX_KEY_BYTES, MAX_VALUE_BYTES, RESERVED, Space, StoreError, check, journal,
    open,
};

/// Once so much was written, the journal is moved into tables and emptied. Less than the ballast, so that there is
/// always room for that.
pub const COMPACT_BYTES: u64 = 1 << 20;
/// The same while the ballast is gone: a table must never need more than what is left.
const COMPACT_TIGHT_BYTES: u64 = 256 << 10;
/// What must be free beyond the size of the journal to do so.
const SLACK_BYTES: u64 = 256 << 10;
/// How often a commit reopens the engine. More than once, because on a full disk one of its own merges may fail
/// between the reopening and the write.
const REOPENINGS: usize = 3;
/// Once the ballast is given up, so much stays for deletes: they are what makes room, and they need some.
const RESERVE_BYTES: u64 = 1 << 20;

/// The store behind all its clones.
pub struct Inner {
    /// The state directory.
    pub dir: PathBuf,
    /// What it was opened with, `meta` included.
    pub spaces: Vec<Space>,
    /// What belongs here.
    pub marker: Marker,
    /// Seals and opens every value.
    pub sealer: Sealer,
    /// `None` while it is closed, or after a reopening that failed.
    pub engine: RwLock<Option<Engine>>,
    /// Taken by whoever commits, reopens or closes, always before `engine`.
    pub writer: Mutex<Writer>,
}

/// What only one thread at a time may touch.
pub struct Writer {
    /// Let go of on close.
    pub lock: Option<Lock>,
    /// Given up when the disk is full.
    pub ballast: Ballast,
    /// What the journal grew by.
    pub journal_bytes: u64,
    /// At which size it is emptied; more than usual after an attempt that failed.
    pub compact_at: u64,
}

impl Writer {
    /// Whether the journal is larger than it should be without a ballast.
    fn is_tight(&self) -> bool {
        self.ballast.is_gone() && self.journal_bytes >= COMPACT_TIGHT_BYTES
    }
}

impl Inner {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room on the disk; plenty where the system does not say.
    fn free(&self) -> u64 {
        files::free_bytes(&self.dir).unwrap_or(u64::MAX)
    }

    fn database(&self) -> PathBuf {
        self.dir.join(files::DATABASE)
    }

    /// Reads; where the engine is not there, tries to get it back first.
    pub fn with_engine<T>(
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

    /// See [`super::Store::commit`].
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let ops = self.seal(batch)?;
        let mut writer = self.writer();
        self.ensure_open(&mut writer)?;
        if writer.ballast.is_gone() && ops.iter().any(grows) && self.free() < RESERVE_BYTES {
            return Err(StoreError::Full { dir: self.dir.clone() });
        }
        let mut result = self.write(&ops);
        for _ in 0..REOPENINGS {
            let Err(error) = result else { break };
            log::warn!("a write to {} failed ({error}), reopening", self.dir.display());
            self.recover(&mut writer, error)?;
            result = self.write(&ops);
        }
        // A write after a failed one only says that there was one.
        let why = |e| if self.free() < SLACK_BYTES { EngineError::Full } else { e };
        result.map_err(|e| self.error(why(e)))?;
        writer.journal_bytes += ops.iter().map(journal_bytes).sum::<u64>();
        if writer.is_tight() || writer.journal_bytes >= writer.compact_at {
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

    /// The value of a record as the engine has it.
    pub fn unseal(
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
        let full = matches!(error, EngineError::Full) || self.free() < SLACK_BYTES;
        if full && writer.ballast.give_up() {
            log::warn!("the disk of {} is full, the ballast is given up", self.dir.display());
        }
        // Opening also clears what a merge that did not fit has left behind.
        self.shut_engine()?;
        self.ensure_open(writer)?;
        if writer.is_tight() {
            self.compact(writer);
        }
        Ok(())
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
        let engine = Engine::open(&self.database(), &self.spaces).map_err(|e| match e {
            // Nobody else can be in here; an earlier close has not come to its end.
            EngineError::Locked => {
                self.error(EngineError::Failed("it is still closing".to_owned()))
            }
            e => self.error(e),
        })?;
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
        if self.free() < writer.journal_bytes + SLACK_BYTES {
            // The tables would not fit, and a failed flush costs a reopening.
            return;
        }
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
        journal::cut(journal, 0).map_err(|e| StoreError::unusable(journal, "empty", e))
    }

    /// See [`super::Store::close`].
    pub fn close(&self) -> Result<(), StoreError> {
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

/// Whether an operation is more than a removal or a mark.
fn grows(op: &Op) -> bool {
    matches!(op, Op::Put(_, _, sealed) if sealed.len() > seal::OVERHEAD + 32)
}

fn journal_bytes(op: &Op) -> u64 {
    let size = match op {
        Op::Put(_, key, value) => key.len() + value.len(),
        Op::Delete(_, key) => key.len(),
    };
    size as u64 + 64
}
