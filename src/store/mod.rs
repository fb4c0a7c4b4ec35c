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
mod inner;
mod journal;
mod open;
mod seal;

use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::secret::Secret;
use inner::Inner;

pub use dump::{Record, salvage, set_aside};
pub use error::StoreError;
pub use files::{is_in_use, write_aside};
pub use open::{Migrations, is_readable_by_this_version};

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
/// Where the control plane of `backupy up` has a store of its own, in the state directory.
pub const CONTROL_STORE: &str = "control";

/// A scan reads so much at a time.
const PAGE_RECORDS: usize = 64;
const PAGE_BYTES: usize = 256 << 10;
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

impl Store {
    /// Opens the store in `dir`, or makes a new one where there is none and never was.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is changed by a refusal.
    pub fn open(dir: &Path, spaces: &[Space], keys: &StoreKeys) -> Result<Self, StoreError> {
        Self::open_as(dir, spaces, keys, Migrations::Allowed)
    }

    /// As [`Self::open`], by a process that may not be allowed to change the layout.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(
        dir: &Path,
        spaces: &[Space],
        keys: &StoreKeys,
        migrations: Migrations,
    ) -> Result<Self, StoreError> {
        open::open(dir, spaces, keys, migrations).map(|inner| Self(Arc::new(inner)))
    }

    /// Whether there is, or was, a store in `dir`; opens nothing.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(files::MARKER).exists() || dir.join(files::DATABASE).exists()
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

#[cfg(test)]
mod tests;
