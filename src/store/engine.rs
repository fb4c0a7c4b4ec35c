//! fjall, and nothing else of this program knows that it is fjall.
//!
//! It is opened and closed on helper threads: opening may panic on a damaged directory, and closing waits for
//! workers that may be gone. Its journal only shrinks when 64 MB are full; [`Engine::drain`] and an emptied journal
//! keep the directory small instead.

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::Space;
use crate::thread;

/// How long a close may take before the engine is left to itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the memtables may take to reach the disk.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

const CACHE_BYTES: u64 = 256 << 10;
const MEMTABLE_BYTES: u64 = 1 << 20;
/// fjall's minimum.
const JOURNALS_BYTES: u64 = 64 << 20;
const CACHED_FILES: usize = 16;
/// One deadlocks.
const WORKERS: usize = 2;

/// What the engine said.
#[derive(Debug)]
pub enum EngineError {
    /// The disk is full.
    Full,
    /// Another process (or an earlier engine that did not close) has the database.
    Locked,
    /// The files make no sense to it.
    Damaged(String),
    /// It failed, and works again once it was reopened.
    Failed(String),
}

impl From<fjall::Error> for EngineError {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Locked => Self::Locked,
            fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => e.into(),
            fjall::Error::Poisoned => Self::Failed("an earlier write failed".to_owned()),
            other => Self::Damaged(format!("{other:?}")),
        }
    }
}

impl From<io::Error> for EngineError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::NotFound
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::AlreadyExists => Self::Damaged(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("the disk is full"),
            Self::Locked => f.write_str("the database is locked"),
            Self::Damaged(what) | Self::Failed(what) => f.write_str(what),
        }
    }
}

/// Keys and sealed values, in order.
pub type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// One operation of a batch, sealed.
pub enum Op {
    /// Write.
    Put(Space, Vec<u8>, Vec<u8>),
    /// Remove.
    Delete(Space, Vec<u8>),
}

/// An open database.
pub struct Engine {
    database: Database,
    keyspaces: Vec<(Space, Keyspace)>,
    /// On disk, but not asked for: another version's, or the other half of the program's.
    others: Vec<Keyspace>,
}

impl Engine {
    /// Opens or creates the database at `path`.
    pub fn open(path: &Path, spaces: &[Space]) -> Result<Self, EngineError> {
        let (path, spaces) = (path.to_owned(), spaces.to_vec());
        let opening = thread::spawn("store-open", move || Self::open_here(&path, &spaces))?;
        opening.join().unwrap_or_else(|_| {
            Err(EngineError::Damaged("the database engine gave up on its files".to_owned()))
        })
    }

    fn open_here(path: &Path, spaces: &[Space]) -> Result<Self, EngineError> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_cached_files(Some(CACHED_FILES))
            .max_journaling_size(JOURNALS_BYTES)
            .worker_threads(WORKERS)
            .manual_journal_persist(true)
            .open()?;
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES)
                .manual_journal_persist(true)
        };
        let mut keyspaces = Vec::with_capacity(spaces.len());
        for &space in spaces {
            keyspaces.push((space, database.keyspace(space.name(), options)?));
        }
        let mut others = Vec::new();
        for name in database.list_keyspace_names() {
            if spaces.iter().all(|space| space.name() != &*name) {
                others.push(database.keyspace(&name, options)?);
            }
        }
        Ok(Self { database, keyspaces, others })
    }

    fn keyspace(&self, space: Space) -> Result<&Keyspace, EngineError> {
        let found = self.keyspaces.iter().find(|(known, _)| *known == space);
        found.map(|(_, keyspace)| keyspace).ok_or_else(|| {
            EngineError::Failed(format!("the store was opened without `{}`", space.name()))
        })
    }

    /// The numbers of the spaces' directories.
    pub fn numbers(&self) -> impl Iterator<Item = (Space, u64)> + '_ {
        self.keyspaces.iter().filter_map(|(space, keyspace)| {
            let number = keyspace.path().file_name()?.to_str()?.parse().ok()?;
            Some((*space, number))
        })
    }

    /// One record as it was put.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.keyspace(space)?.get(key)?.map(|value| value.to_vec()))
    }

    /// Up to `records` records and about `bytes` bytes in key order.
    pub fn page(
        &self,
        space: Space,
        from: Bound<&[u8]>,
        records: usize,
        bytes: usize,
    ) -> Result<Records, EngineError> {
        let (mut page, mut size) = (Vec::new(), 0);
        for guard in self.keyspace(space)?.range::<&[u8], _>((from, Bound::Unbounded)) {
            let (key, value) = guard.into_inner()?;
            size += key.len() + value.len();
            page.push((key.to_vec(), value.to_vec()));
            if page.len() >= records || size >= bytes {
                break;
            }
        }
        Ok(page)
    }

    /// All of it, durably, or nothing.
    pub fn commit(&self, ops: &[Op]) -> Result<(), EngineError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for op in ops {
            match op {
                Op::Put(space, key, value) => {
                    batch.insert(self.keyspace(*space)?, key.as_slice(), value.as_slice());
                }
                Op::Delete(space, key) => batch.remove(self.keyspace(*space)?, key.as_slice()),
            }
        }
        Ok(batch.commit()?)
    }

    /// Brings everything from the journal into tables, so that the journal may be emptied after the close.
    /// That means everything: also what only the journal still has of spaces that were not asked for. Nobody may
    /// write meanwhile. False if it took too long, which leaves everything as it is.
    pub fn drain(&self) -> Result<bool, EngineError> {
        let all = || self.keyspaces.iter().map(|(_, keyspace)| keyspace).chain(&self.others);
        for keyspace in all() {
            keyspace.rotate_memtable()?;
        }
        let start = Instant::now();
        while all().any(|keyspace| keyspace.sealed_memtable_count() > 0) {
            if start.elapsed() > DRAIN_TIMEOUT {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(true)
    }

    /// Closes it within a deadline; false if it is still at it, and then the database stays locked.
    pub fn close(self) -> bool {
        let (done, closed) = crossbeam_channel::bounded(1);
        let closing = thread::spawn("store-close", move || {
            // The journal was synced with every commit; this only repeats it.
            let _ = self.database.persist(PersistMode::SyncAll);
            drop(self);
            let _ = done.send(());
        });
        match closing {
            Ok(closing) => {
                let in_time = closed.recv_timeout(CLOSE_TIMEOUT).is_ok();
                // A thread that hangs cannot be joined; the process is about to end or reports it.
                if in_time { closing.join().is_ok() } else { false }
            }
            // The spawn dropped the engine here, which is a close as well.
            Err(_) => true,
        }
    }
}
