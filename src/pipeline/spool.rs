//! The finished artifact, kept until it is uploaded: in memory up to a limit, then in a file that has no
//! name, so that nothing of it survives the process.
//!
//! A backup must not be what fills the disk under a database: free space is looked at before the file is
//! made and for every 64 MiB written to it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{CWD, Mode, OFlags, openat, statvfs};
use rustix::io::Errno;

use crate::config::PipelineLimits;
use crate::model::Compression;

/// Largest object that S3 takes in one PUT.
pub const MAX_PUT_BYTES: u64 = 5 << 30;
const CHECK_EVERY: u64 = 64 << 20;
/// What a file is called while it has a name.
const PREFIX: &str = "spool-";

/// Keeps and hashes an artifact while it is made.
pub(super) struct Spool<'a> {
    limits: &'a PipelineLimits,
    dir: &'a Path,
    body: Body,
    bytes: u64,
    context: Context,
    unchecked: u64,
    max_bytes: u64,
}

enum Body {
    Memory(Vec<Vec<u8>>),
    File(File),
}

impl<'a> Spool<'a> {
    pub(super) fn new(limits: &'a PipelineLimits, dir: &'a Path) -> Self {
        Self {
            limits,
            dir,
            body: Body::Memory(Vec::new()),
            bytes: 0,
            context: Context::new(&SHA256),
            unchecked: 0,
            max_bytes: MAX_PUT_BYTES,
        }
    }

    /// Takes the next bytes and gives back a buffer to use again (an empty one, if it keeps this one).
    pub(super) fn keep(&mut self, piece: Vec<u8>) -> Result<Vec<u8>, SpoolError> {
        self.context.update(&piece);
        self.bytes += piece.len() as u64;
        if self.bytes > self.max_bytes {
            return Err(SpoolError::TooLarge { at_least: self.bytes });
        }
        if let Body::Memory(pieces) = &mut self.body {
            if self.bytes <= self.limits.memory_bytes as u64 {
                pieces.push(piece);
                return Ok(Vec::new());
            }
            let pieces = std::mem::take(pieces);
            check_space(self.dir, self.limits, self.bytes)?;
            let file = open_unnamed(self.dir).map_err(|error| self.failed(error))?;
            self.body = Body::File(file);
            for piece in pieces {
                self.write(&piece)?;
            }
        }
        self.write(&piece)?;
        Ok(piece)
    }

    pub(super) fn finish(self) -> Sealed {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.context.finish().as_ref());
        Sealed { body: self.body, bytes: self.bytes, sha256, before: Context::new(&SHA256) }
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), SpoolError> {
        self.unchecked += piece.len() as u64;
        if self.unchecked >= CHECK_EVERY {
            self.unchecked = 0;
            check_space(self.dir, self.limits, 0)?;
        }
        let written = match &mut self.body {
            Body::File(file) => file.write_all(piece),
            Body::Memory(_) => Ok(()),
        };
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, source: io::Error) -> SpoolError {
        match (source.kind(), space(self.dir)) {
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Ok((free, total))) => {
                let floor = floor(total, self.limits);
                SpoolError::DiskFull { dir: self.dir.to_owned(), free, needed: floor }
            }
            _ => SpoolError::Io { dir: self.dir.to_owned(), source },
        }
    }
}

/// An artifact as it will be uploaded.
pub struct Sealed {
    body: Body,
    bytes: u64,
    sha256: [u8; 32],
    /// The hash of what comes before it in the artifact.
    before: Context,
}

impl Sealed {
    /// A part of an artifact: `sha256` is that of the artifact up to its end.
    pub(super) fn part(bytes: Vec<u8>, before: Context, sha256: [u8; 32]) -> Self {
        Self { bytes: bytes.len() as u64, body: Body::Memory(vec![bytes]), sha256, before }
    }

    /// Bytes on their own.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(ring::digest::digest(&SHA256, &bytes).as_ref());
        Self::part(bytes, Context::new(&SHA256), sha256)
    }

    /// The hash to go on from over these bytes.
    pub(super) fn before(&self) -> Context {
        self.before.clone()
    }

    /// The buffer it was made from, if that is what it was.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        match self.body {
            Body::Memory(mut pieces) => pieces.pop().unwrap_or_default(),
            Body::File(_) => Vec::new(),
        }
    }

    /// Its size.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether it has no bytes (an empty dump that is neither compressed nor encrypted).
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// SHA-256 over all of it, for a part with everything before it.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Whether it is in memory rather than in a file.
    pub fn in_memory(&self) -> bool {
        matches!(self.body, Body::Memory(_))
    }

    /// An artifact in memory that claims this hash.
    #[cfg(test)]
    pub(super) fn claiming(bytes: Vec<u8>, sha256: [u8; 32]) -> Self {
        Self::part(bytes, Context::new(&SHA256), sha256)
    }

    /// Reads it from its start; as often as needed.
    pub(super) fn reader(&self) -> SealedReader<'_> {
        SealedReader { sealed: self, piece: 0, at: 0 }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Reads a [`Sealed`] from its start.
pub(super) struct SealedReader<'a> {
    sealed: &'a Sealed,
    /// In memory: which piece.
    piece: usize,
    /// Offset in the piece or in the file.
    at: u64,
}

impl Read for SealedReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &self.sealed.body {
            Body::File(file) => {
                let count = file.read_at(out, self.at)?;
                self.at += count as u64;
                Ok(count)
            }
            Body::Memory(pieces) => loop {
                let Some(piece) = pieces.get(self.piece) else { return Ok(0) };
                let from = usize::try_from(self.at).unwrap_or(usize::MAX).min(piece.len());
                let count = out.len().min(piece.len() - from);
                if count > 0 || out.is_empty() {
                    out[..count].copy_from_slice(&piece[from..from + count]);
                    self.at += count as u64;
                    return Ok(count);
                }
                self.piece += 1;
                self.at = 0;
            },
        }
    }
}

/// Fails before anything is dumped where the size hint shows that the artifact cannot be stored, however
/// well it compresses.
pub(super) fn check_plan(
    dir: &Path,
    limits: &PipelineLimits,
    compression: Compression,
    size_hint_bytes: Option<u64>,
) -> Result<(), SpoolError> {
    let least = least_size(compression, size_hint_bytes.unwrap_or(0));
    if least > MAX_PUT_BYTES {
        return Err(SpoolError::TooLarge { at_least: least });
    }
    // What fits into memory needs no disk.
    if least > limits.memory_bytes as u64 { check_space(dir, limits, least) } else { Ok(()) }
}

/// The least that an artifact can have when the database has `hint` bytes. Hints count indexes and free
/// pages, which a logical dump leaves out, and a wrong refusal is worse than a late one: only what is
/// certain counts here, everything else shows while spooling.
pub(super) fn least_size(compression: Compression, hint: u64) -> u64 {
    match compression {
        Compression::None => hint / 2,
        Compression::Zstd | Compression::Gzip => hint / 100,
    }
}

/// Fails if `wanted` more bytes would leave less than the limits ask for.
fn check_space(dir: &Path, limits: &PipelineLimits, wanted: u64) -> Result<(), SpoolError> {
    let (free, total) =
        space(dir).map_err(|source| SpoolError::Io { dir: dir.to_owned(), source })?;
    let needed = floor(total, limits).saturating_add(wanted);
    if free >= needed {
        return Ok(());
    }
    Err(SpoolError::DiskFull { dir: dir.to_owned(), free, needed })
}

/// Free and all bytes of a file system.
fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let system = statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
    Ok((bytes(system.f_bavail), bytes(system.f_blocks)))
}

/// What must stay free on a file system of `total` bytes.
fn floor(total: u64, limits: &PipelineLimits) -> u64 {
    let share = u128::from(total) * u128::from(limits.min_free_percent) / 100;
    limits.min_free_bytes.max(u64::try_from(share).unwrap_or(u64::MAX))
}

/// A file (mode 0600) that nobody can find: without a name from the start, or, where the file system does
/// not know that, unlinked while it is open.
fn open_unnamed(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => open_and_unlink(dir),
        Err(error) => Err(error.into()),
    }
}

fn open_and_unlink(dir: &Path) -> io::Result<File> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let path = dir.join(format!("{PREFIX}{:016x}", u64::from_ne_bytes(random)));
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Removes files that were left between their making and their unlinking.
pub(super) fn sweep(dir: &Path) {
    // No directory yet: nothing to sweep.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && let Err(error) = fs::remove_file(entry.path())
        {
            log::warn!("failed to remove {}: {error}", entry.path().display());
        }
    }
}

/// Why an artifact could not be kept until its upload.
#[derive(Debug)]
pub enum SpoolError {
    /// The spool directory cannot be used.
    Io {
        /// Which.
        dir: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Going on would leave too little free space.
    DiskFull {
        /// Where.
        dir: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that would have to be.
        needed: u64,
    },
    /// More than a store takes in one PUT.
    TooLarge {
        /// The artifact has so many bytes or more.
        at_least: u64,
    },
}

impl SpoolError {
    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::DiskFull { .. } | Self::TooLarge { .. } => false,
        }
    }
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { dir, source } => {
                write!(f, "failed to use the spool directory {}: {source}", dir.display())
            }
            Self::DiskFull { dir, free, needed } => write!(
                f,
                "too little free space under {}: {} MiB free, {} MiB needed (the reserve of \
                 BACKUPY_MIN_FREE and BACKUPY_MIN_FREE_PERCENT included); free some space or move the \
                 state directory",
                dir.display(),
                free >> 20,
                needed >> 20
            ),
            Self::TooLarge { at_least } => write!(
                f,
                "the backup is too large: at least {} MiB, but a store takes at most {} MiB (5 GiB) in \
                 one upload; use zstd compression or back up parts of the database",
                at_least >> 20,
                MAX_PUT_BYTES >> 20
            ),
        }
    }
}

impl std::error::Error for SpoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::DiskFull { .. } | Self::TooLarge { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn limits(memory_bytes: usize) -> PipelineLimits {
        PipelineLimits {
            memory_bytes,
            min_free_bytes: 0,
            min_free_percent: 0,
            ..PipelineLimits::default()
        }
    }

    fn kept(limits: &PipelineLimits, dir: &Path, pieces: &[Vec<u8>]) -> Sealed {
        let mut spool = Spool::new(limits, dir);
        for piece in pieces {
            spool.keep(piece.clone()).unwrap();
        }
        spool.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn reads_back_what_it_kept(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..12),
            memory in 0usize..2500,
            step in 1usize..500,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let all = pieces.concat();
            let sealed = kept(&limits(memory), dir.path(), &pieces);
            prop_assert_eq!(sealed.in_memory(), all.len() <= memory);
            prop_assert_eq!(sealed.len(), all.len() as u64);
            let digest = ring::digest::digest(&SHA256, &all);
            prop_assert_eq!(&sealed.sha256(), digest.as_ref());
            for _ in 0..2 {
                let (mut reader, mut out, mut buffer) = (sealed.reader(), Vec::new(), vec![0; step]);
                loop {
                    let count = reader.read(&mut buffer).unwrap();
                    if count == 0 { break }
                    out.extend_from_slice(&buffer[..count]);
                }
                prop_assert_eq!(&out, &all);
            }
        }
    }

    #[test]
    fn a_spool_file_has_no_name_and_no_readers() {
        let dir = tempfile::tempdir().unwrap();
        for file in [open_unnamed(dir.path()).unwrap(), open_and_unlink(dir.path()).unwrap()] {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn buffers_come_back_from_disk_and_stay_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let limits = limits(10);
        let mut spool = Spool::new(&limits, dir.path());
        assert_eq!(spool.keep(vec![1; 10]).unwrap().capacity(), 0);
        assert_eq!(spool.keep(vec![2; 9]).unwrap(), vec![2; 9]);
    }

    #[test]
    fn too_little_space_fails_where_disk_is_used_only() {
        let dir = tempfile::tempdir().unwrap();
        let full = PipelineLimits { min_free_bytes: u64::MAX, ..limits(100) };
        let mut spool = Spool::new(&full, dir.path());
        spool.keep(vec![0; 100]).unwrap();
        let error = spool.keep(vec![0; 1]).unwrap_err();
        assert!(matches!(error, SpoolError::DiskFull { .. }) && !error.retry(), "{error}");
        assert!(error.to_string().contains("BACKUPY_MIN_FREE"));
    }

    #[test]
    fn space_is_looked_at_again_while_writing() {
        let dir = tempfile::tempdir().unwrap();
        let (enough, full) = (limits(0), PipelineLimits { min_free_bytes: u64::MAX, ..limits(0) });
        let mut spool = Spool::new(&enough, dir.path());
        spool.keep(vec![0; 10]).unwrap();
        // Somebody else fills the disk now.
        spool.limits = &full;
        spool.keep(vec![0; 10]).unwrap();
        spool.unchecked = CHECK_EVERY - 5;
        assert!(matches!(spool.keep(vec![0; 10]), Err(SpoolError::DiskFull { .. })));
    }

    #[test]
    fn more_than_one_put_takes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let limits = limits(1000);
        let mut spool = Spool::new(&limits, dir.path());
        spool.max_bytes = 20;
        spool.keep(vec![0; 20]).unwrap();
        let error = spool.keep(vec![0; 1]).unwrap_err();
        assert!(matches!(error, SpoolError::TooLarge { at_least: 21 }) && !error.retry());
        assert!(error.to_string().contains("5 GiB"), "{error}");
    }

    #[test]
    fn the_plan_refuses_what_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        let check = |limits: &PipelineLimits, compression, hint| {
            check_plan(dir.path(), limits, compression, hint)
        };
        let small = limits(8 << 20);
        let huge = Some(11 << 30);
        let refused = check(&small, Compression::None, huge).unwrap_err();
        assert!(matches!(refused, SpoolError::TooLarge { .. }));
        check(&small, Compression::Zstd, Some(1 << 20)).unwrap();
        check(&small, Compression::Zstd, None).unwrap();
        let full = PipelineLimits { min_free_bytes: u64::MAX, ..limits(8 << 20) };
        check(&full, Compression::None, Some(1 << 20)).unwrap();
        let refused = check(&full, Compression::None, Some(1 << 30)).unwrap_err();
        assert!(matches!(refused, SpoolError::DiskFull { .. }));
    }

    #[test]
    fn the_larger_reserve_counts() {
        let limits = PipelineLimits::default();
        assert_eq!(floor(1 << 30, &limits), 256 << 20);
        assert_eq!(floor(100 << 30, &limits), 5 << 30);
        assert_eq!(floor(u64::MAX, &limits), u64::MAX / 20);
    }

    #[test]
    fn sweep_takes_only_its_own() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["spool-0123", "other"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        sweep(dir.path());
        sweep(&dir.path().join("missing"));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "other");
    }
}
