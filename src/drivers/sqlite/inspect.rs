//! A look at a database's files before SQLite is let near them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use super::SqliteFault;
use crate::drivers::workfile::with_suffix;

/// The first bytes of every SQLite database.
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;
/// A file system without fractions of a second is assumed to be as coarse as FAT.
const COARSE: Duration = Duration::from_millis(2_100);
/// The kernel's clock for file times ticks at least every 10 ms.
const FINE: Duration = Duration::from_millis(50);

/// What identifies a file's content without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    dev: u64,
    ino: u64,
    pub(super) bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn new(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// How long to wait until another change is certain to leave another stamp.
    fn settles_in(&self, now: SystemTime) -> Duration {
        let (seconds, nanos) = self.changed;
        let granularity = if nanos == 0 { COARSE } else { FINE };
        let since =
            Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        match now.duration_since(UNIX_EPOCH + since) {
            Ok(age) => granularity.saturating_sub(age),
            // From the future: any change brings it back to the present.
            Err(_) => Duration::ZERO,
        }
    }
}

/// The database's files at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) main: Stamp,
    pub(super) wal: Option<Stamp>,
    pub(super) journal: Option<Stamp>,
    shm: bool,
    /// The header says WAL mode.
    pub(super) wal_mode: bool,
    /// The header's page size.
    pub(super) page_bytes: u32,
}

impl Seen {
    /// Whether nobody can have the database open in the usual way, so that it has to be copied as files:
    /// in WAL mode every connection needs both companions.
    pub(super) fn quiet(&self) -> bool {
        self.wal_mode && (self.wal.is_none() || !self.shm)
    }

    /// About how large a copy is.
    pub(super) fn bytes(&self) -> u64 {
        self.main.bytes.saturating_add(self.wal.map_or(0, |wal| wal.bytes))
    }

    /// Whether the content is the same (`-shm` holds none).
    pub(super) fn same_content(&self, other: &Self) -> bool {
        self.main == other.main && self.wal == other.wal && self.journal == other.journal
    }

    /// How long to wait until another change is certain to be noticed.
    pub(super) fn settles_in(&self, now: SystemTime) -> Duration {
        [Some(self.main), self.wal, self.journal]
            .into_iter()
            .flatten()
            .map(|stamp| stamp.settles_in(now))
            .max()
            .unwrap_or_default()
    }
}

/// Looks at the file and its companions. `path` is the real one, links followed.
///
/// # Errors
/// When it is certain that this is no SQLite database that we can copy.
pub(super) fn inspect(path: &Path) -> Result<Seen, SqliteFault> {
    let companions = |suffix: &str| stamp(&with_suffix(path, suffix));
    let (wal, journal, shm) =
        (companions("-wal")?, companions("-journal")?, companions("-shm")?.is_some());
    if !fs::metadata(path).map_err(denied)?.is_file() {
        return Err(SqliteFault::NotAFile);
    }
    let mut file = open(path).map_err(denied)?;
    let meta = file.metadata().map_err(denied)?;
    if !meta.is_file() {
        return Err(SqliteFault::NotAFile);
    }
    let main = Stamp::new(&meta);
    let mut header = [0; HEADER_BYTES];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(_) if main.bytes == 0 => return Err(SqliteFault::Empty),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(SqliteFault::NotADatabase);
        }
        Err(e) => return Err(SqliteFault::Denied(e)),
    }
    if !header.starts_with(MAGIC) {
        return Err(SqliteFault::NotADatabase);
    }
    // Bytes 18 and 19 are the write and read versions: 2 is WAL.
    let wal_mode = header.get(18) == Some(&2) || header.get(19) == Some(&2);
    Ok(Seen { main, wal, journal, shm, wal_mode, page_bytes: page_bytes(&header)? })
}

/// Bytes 16 and 17: a power of two, where 1 stands for 65536.
fn page_bytes(header: &[u8; HEADER_BYTES]) -> Result<u32, SqliteFault> {
    match u32::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => Ok(65_536),
        size if size >= 512 && size.is_power_of_two() => Ok(size),
        _ => Err(SqliteFault::NotADatabase),
    }
}

/// Opens for reading, without waiting in case it became a FIFO.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A companion's stamp; `None` if there is none.
fn stamp(path: &PathBuf) -> Result<Option<Stamp>, SqliteFault> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(Stamp::new(&meta))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SqliteFault::Denied(error)),
    }
}

/// An I/O error on the file itself.
pub(super) fn denied(error: io::Error) -> SqliteFault {
    match error.kind() {
        io::ErrorKind::NotFound => SqliteFault::Missing,
        _ => SqliteFault::Denied(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seconds: i64, nanos: i64) -> Stamp {
        Stamp { dev: 1, ino: 1, bytes: 1, modified: (0, 0), changed: (seconds, nanos) }
    }

    #[test]
    fn a_fresh_change_needs_time_to_settle() {
        let now = UNIX_EPOCH + Duration::from_millis(10_020);
        assert_eq!(stamp(10, 1_000_000).settles_in(now), Duration::from_millis(31));
        assert_eq!(stamp(9, 1_000_000).settles_in(now), Duration::ZERO);
        assert_eq!(stamp(9, 0).settles_in(now), Duration::from_millis(1_080));
        assert_eq!(stamp(20, 1).settles_in(now), Duration::ZERO);
    }

    #[test]
    fn what_is_no_database() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            inspect(&path).unwrap_err()
        };
        assert!(matches!(at("empty", b""), SqliteFault::Empty));
        assert!(matches!(at("short", MAGIC), SqliteFault::NotADatabase));
        assert!(matches!(at("text", &[b'x'; 8192]), SqliteFault::NotADatabase));
        assert!(matches!(inspect(dir.path()).unwrap_err(), SqliteFault::NotAFile));
        let gone = inspect(&dir.path().join("gone")).unwrap_err();
        assert!(matches!(gone, SqliteFault::Missing));
    }
}
