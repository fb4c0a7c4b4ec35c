//! The files beside the database: the directory itself, lock, marker, ballast, and how they are replaced.
//!
//! ```text
//! DIR/            0700
//!   lock          flock, holds the pid of the process that works here
//!   store.json    the marker: which database belongs here, so that a lost one is noticed
//!   clean         written by a clean close, gone while the store is open: how the journal ended
//!   highwater     see highwater.rs
//!   ballast       given up when the disk is full
//!   db/           the engine's own
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::seal;

/// Who works here.
pub const LOCK: &str = "lock";
/// What belongs here.
pub const MARKER: &str = "store.json";
/// How it was left.
pub const CLEAN: &str = "clean";
/// What may go.
pub const BALLAST: &str = "ballast";
/// What counts.
pub const DATABASE: &str = "db";

/// What will count, while it is made.
pub const DATABASE_ASIDE: &str = "db.new";

/// What shows that a directory is a store's, or the state directory that holds one and the keys beside it.
const OURS: [&str; 6] = [MARKER, DATABASE, DATABASE_ASIDE, LOCK, "master.key", "control"];

/// Room for a few thousand deletes, and for the tables that free the journal.
pub const BALLAST_BYTES: u64 = 2 << 20;

/// Creates the directory, or makes an existing one private where it is ours to change.
pub fn prepare_dir(dir: &Path) -> Result<(), StoreError> {
    let unusable = |action| move |e| StoreError::unusable(dir, action, e);
    match fs::metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| StoreError::writing(dir, dir, "create", e)),
        Err(e) => Err(StoreError::unusable(dir, "look at", e)),
        Ok(meta) if !meta.is_dir() => {
            Err(StoreError::NotOurs { dir: dir.to_owned(), what: "it is not a directory" })
        }
        Ok(meta) if meta.mode() & 0o1000 != 0 => {
            Err(StoreError::NotOurs { dir: dir.to_owned(), what: "it is shared by everyone" })
        }
        Ok(meta) => {
            let ours = meta.uid() == rustix::process::geteuid().as_raw();
            if ours && meta.mode() & 0o777 != 0o700 {
                if !is_for_us(dir).map_err(unusable("list"))? {
                    let what = "others may read it and it holds files that are not ours; name a directory of its own";
                    return Err(StoreError::NotOurs { dir: dir.to_owned(), what });
                }
                fs::set_permissions(dir, Permissions::from_mode(0o700))
                    .map_err(unusable("make private"))?;
            }
            Ok(())
        }
    }
}

/// Whether a directory is empty or was used by us before. `/var/lib`, named by mistake, must not become private.
fn is_for_us(dir: &Path) -> io::Result<bool> {
    let mut empty = true;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if OURS.iter().any(|ours| name == **ours) {
            return Ok(true);
        }
        empty &= name == "lost+found";
    }
    Ok(empty)
}

/// How long a lock that is taken may still be let go of.
const LOCK_TIMEOUT: Duration = Duration::from_millis(300);

/// Held while a process works with the directory; the system lets go of it when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it, or says who has it.
    pub fn acquire(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(LOCK);
        let unusable = |e| StoreError::writing(dir, &path, "lock", e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(unusable)?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // A child that was just forked holds it too, until it has become another program.
                Err(fs::TryLockError::WouldBlock) if start.elapsed() < LOCK_TIMEOUT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(StoreError::Locked { dir: dir.to_owned(), pid: holder(&mut file) });
                }
                Err(fs::TryLockError::Error(e)) => return Err(unusable(e)),
            }
        }
        let pid = std::process::id().to_string();
        // On a full disk the lock is held all the same, it only cannot say by whom.
        let _ = file.set_len(0).and_then(|()| file.write_all(pid.as_bytes()));
        Ok(Self { _file: file })
    }
}

/// How long `status` and its like may look into the files of a stopped agent.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether another process works with the directory, for longer than a look at it takes. Changes nothing.
pub fn is_in_use(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else { return false };
    let start = Instant::now();
    loop {
        match file.try_lock_shared() {
            Err(fs::TryLockError::WouldBlock) if start.elapsed() < LOOK_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => return true,
            // What is wrong with it, opening the store will say.
            Ok(()) | Err(fs::TryLockError::Error(_)) => return false,
        }
    }
}

/// The pid in a lock file; a holder that has just taken it may need a moment to write it.
fn holder(file: &mut File) -> u32 {
    let start = Instant::now();
    loop {
        let mut text = String::new();
        let read = file.rewind().and_then(|()| file.take(16).read_to_string(&mut text));
        match (read, text.trim().parse()) {
            (Ok(_), Ok(pid)) => return pid,
            _ if start.elapsed() > Duration::from_millis(200) => return 0,
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// What belongs into the directory. Written after the database exists, so that from then on a missing one is
/// known to be missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Layout of this file and of the records.
    pub schema: u32,
    /// The store's random id.
    pub store_id: String,
    /// Every space that was ever opened here, with the number of its directory.
    pub spaces: BTreeMap<String, u64>,
}

impl Marker {
    /// Reads it; `None` if there is none.
    pub fn load(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(MARKER);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| StoreError::damaged(dir, format!("{MARKER} does not read: {e}"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::unusable(&path, "read", e)),
        }
    }

    /// Writes it.
    pub fn save(&self, dir: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        write_aside(dir, MARKER, &bytes)
            .map_err(|e| StoreError::writing(dir, &dir.join(MARKER), "write", e))
    }
}

/// Replaces `dir/name` so that at any moment the old or the new content is there as a whole.
pub fn write_aside(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let aside = dir.join(format!("{name}.new"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, dir.join(name))?;
    sync_dir(dir)
}

/// Makes creations, renames and removals in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Bytes that a process of ours may still write on the file system of `dir`.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What everything under `path` occupies on disk, as `du` counts.
pub fn disk_bytes(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir()
        && let Ok(entries) = fs::read_dir(path)
    {
        bytes += entries.flatten().map(|entry| disk_bytes(&entry.path())).sum::<u64>();
    }
    bytes
}

/// A file whose only purpose is to be deleted when the disk is full.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    there: bool,
    looked: Option<Instant>,
}

impl Ballast {
    /// How often room for a ballast that was given up is looked for.
    const LOOK_INTERVAL: Duration = Duration::from_secs(30);

    /// The ballast of `dir`, whether it is there or not.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(BALLAST), there: false, looked: None }
    }

    /// Whether it was given up, or there was never room for it.
    pub fn is_gone(&self) -> bool {
        !self.there
    }

    /// Frees its space; whether there was something to free.
    pub fn give_up(&mut self) -> bool {
        self.looked = Some(Instant::now());
        self.there = false;
        let there = fs::remove_file(&self.path).is_ok();
        if there && let Some(dir) = self.path.parent() {
            // What counts is the space, which is free at once; the entry may come back after a crash.
            let _ = sync_dir(dir);
        }
        there
    }

    /// Puts it back where there is plenty of room again. Looks at the disk only now and then.
    pub fn restore(&mut self) {
        if self.there || self.looked.is_some_and(|at| at.elapsed() < Self::LOOK_INTERVAL) {
            return;
        }
        self.looked = Some(Instant::now());
        match self.fill() {
            Ok(()) => self.there = true,
            Err(e) => {
                let _ = fs::remove_file(&self.path);
                log::debug!("no ballast for now: {e}");
            }
        }
    }

    fn fill(&self) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|m| m.len() == BALLAST_BYTES) {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if free_bytes(dir)? < 4 * BALLAST_BYTES {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path)?;
        // Random, so that a compressing file system has to keep it as well.
        let mut chunk = vec![0u8; 64 << 10];
        seal::fill(&mut chunk).map_err(|_| io::Error::other("no random numbers"))?;
        for _ in 0..BALLAST_BYTES / (64 << 10) {
            file.write_all(&chunk)?;
        }
        file.sync_all()
    }
}
