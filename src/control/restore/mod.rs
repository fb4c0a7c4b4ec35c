//! Getting a dump back: storage and master key are enough, `up` need not run and no catalogue is asked.
//!
//! [`select`] finds the manifest, [`to_file`] and [`to_writer`] decrypt, decompress and compare the hash,
//! [`into_database`] loads the dump. A file appears under its name only after everything was verified; what
//! goes to a writer must not be used before `Ok`.

mod error;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::durable::{self, Existing};
use super::keys::MasterKey;
use super::manifest::Manifest;
use super::storage::{Listed, ObjectKey, Storage, StorageError};
use crate::artifact::{DecryptError, Decrypted, Options, decrypt};
use crate::config::PipelineLimits;
use crate::drivers::load::Scratch;
use crate::drivers::{Context, load};
use crate::model::Target;
use crate::thread::{Cancel, Why};

pub use error::RestoreError;

/// A scratch file looks at the free space after so many bytes.
const SPACE_EVERY: u64 = 64 << 20;

/// A backup that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Its manifest, authentic.
    pub manifest: Manifest,
    /// Newer backups of the same name that cannot be used, each a sentence: to be said loudly.
    pub skipped: Vec<String>,
}

/// Finds a backup by a run's id, or the newest one by a backup's name.
///
/// # Errors
/// When there is none that can be used.
pub fn select(
    storage: &dyn Storage,
    master: &MasterKey,
    wanted: &str,
) -> Result<Selected, RestoreError> {
    let listed = storage.list()?;
    let mut problems: Vec<(ObjectKey, String)> = Vec::new();
    let mut best: Option<Manifest> = None;
    for entry in listed.iter().filter(|entry| entry.manifest) {
        // A run's id stands in the key, so that not every manifest has to be read.
        let by_run = entry.key.file().contains(&format!("-{wanted}-"));
        if !by_run && entry.key.backup() != wanted {
            continue;
        }
        match usable(storage, master, entry) {
            Ok(manifest) if manifest.run_id == wanted => {
                return Ok(Selected { manifest, skipped: Vec::new() });
            }
            Ok(manifest) if manifest.backup == wanted => {
                if best.as_ref().is_none_or(|best| manifest.finished_ms > best.finished_ms) {
                    best = Some(manifest);
                }
            }
            Ok(_) => {}
            Err(error) => problems.push((entry.key.clone(), error.to_string())),
        }
    }
    let told = |(key, problem): (ObjectKey, String)| format!("{key}: {problem}");
    match best {
        Some(manifest) => {
            // Keys begin with the time.
            problems.retain(|(key, _)| key.file() > manifest.object.key.file());
            Ok(Selected { manifest, skipped: problems.into_iter().map(told).collect() })
        }
        None => {
            let problems = problems.into_iter().map(told).collect();
            Err(RestoreError::NotFound { wanted: wanted.to_owned(), problems })
        }
    }
}

fn usable(
    storage: &dyn Storage,
    master: &MasterKey,
    entry: &Listed,
) -> Result<Manifest, RestoreError> {
    let bytes = storage.read_manifest(&entry.key)?;
    let manifest =
        Manifest::from_bytes(&bytes, &entry.key, master).map_err(RestoreError::Manifest)?;
    match entry.size_bytes {
        None => Err(StorageError::NotFound { key: entry.key.clone() }.into()),
        Some(size) if size != manifest.object.size_bytes => Err(RestoreError::Mismatch("size")),
        Some(_) => Ok(manifest),
    }
}

/// Who watches a restore.
pub struct Watch<'a> {
    /// Asks for the stop.
    pub cancel: &'a Cancel,
    /// Told (bytes read, bytes in all) of the artifact.
    pub progress: &'a dyn Fn(u64, u64),
}

/// Restores the dump to a writer. What was written must not be used unless this returns `Ok`.
///
/// # Errors
/// When anything about the artifact is wrong.
pub fn to_writer(
    storage: &dyn Storage,
    manifest: &Manifest,
    master: &MasterKey,
    output: &mut dyn Write,
    watch: &Watch<'_>,
) -> Result<Decrypted, RestoreError> {
    let key = master.unwrap(&manifest.run_id, &manifest.key).map_err(RestoreError::Key)?;
    let total = manifest.object.size_bytes;
    let stopped = Cell::new(None);
    let input = Watched {
        input: storage.open(&manifest.object.key)?,
        watch,
        read: 0,
        total,
        stopped: &stopped,
    };
    let options = Options { expected_sha256: Some(manifest.object.sha256), ..Options::default() };
    let decrypted = decrypt(input, Some(&key), output, options);
    if let Some(why) = stopped.get() {
        return Err(RestoreError::Cancelled(why));
    }
    let decrypted = decrypted.map_err(RestoreError::Artifact)?;
    if decrypted.bytes_in != total {
        return Err(RestoreError::Mismatch("size"));
    }
    if decrypted.compression != manifest.compression {
        return Err(RestoreError::Mismatch("compression"));
    }
    Ok(decrypted)
}

/// Restores the dump to a file of mode 0600, which appears only after everything was verified.
///
/// # Errors
/// When anything about the artifact is wrong, or the file cannot be written; then there is no new file.
pub fn to_file(
    storage: &dyn Storage,
    manifest: &Manifest,
    master: &MasterKey,
    path: &Path,
    existing: Existing,
    watch: &Watch<'_>,
) -> Result<Decrypted, RestoreError> {
    let output = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => RestoreError::Exists { path: path.to_owned() },
        _ => RestoreError::Output { path: path.to_owned(), error },
    };
    if existing == Existing::Keep && path.symlink_metadata().is_ok() {
        return Err(RestoreError::Exists { path: path.to_owned() });
    }
    let (mut file, aside) = durable::create_aside(path, 0o600).map_err(output)?;
    let restored = to_writer(storage, manifest, master, &mut file, watch)
        .map_err(|error| match error {
            RestoreError::Artifact(DecryptError::Output(error)) => output(error),
            other => other,
        })
        .and_then(|done| {
            durable::finish(&file, &aside, path, existing).map_err(output).map(|()| done)
        });
    if restored.is_err() {
        // The first error is the one that matters.
        let _ = std::fs::remove_file(&aside);
    }
    restored
}

/// Restores the dump to a scratch file in the work directory, watching the free space there.
///
/// # Errors
/// As [`to_file`].
pub(super) fn to_scratch(
    storage: &dyn Storage,
    manifest: &Manifest,
    master: &MasterKey,
    cx: &Context<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<(Scratch, Decrypted), RestoreError> {
    let (scratch, file) = Scratch::create(cx.work_dir).map_err(RestoreError::Dump)?;
    let mut guarded =
        Guarded { file, dir: cx.work_dir, limits: cx.limits, until_look: 0, full: false };
    let watch = Watch { cancel: cx.cancel, progress };
    let done = to_writer(storage, manifest, master, &mut guarded, &watch);
    if guarded.full {
        return Err(RestoreError::Space { dir: cx.work_dir.to_owned() });
    }
    done.map(|done| (scratch, done)).map_err(|error| match error {
        RestoreError::Artifact(DecryptError::Output(error)) => {
            RestoreError::Output { path: cx.work_dir.to_owned(), error }
        }
        other => other,
    })
}

/// Restores the dump and loads it into a database: all of it or nothing. Without `replace`, what is there already
/// is an error.
///
/// # Errors
/// When it cannot be restored or loaded; the database is then as it was.
pub fn into_database(
    storage: &dyn Storage,
    manifest: &Manifest,
    master: &MasterKey,
    target: &Target,
    replace: bool,
    cx: &Context<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<Decrypted, RestoreError> {
    if target.engine != manifest.engine {
        return Err(RestoreError::OtherEngine {
            dump: manifest.engine.to_string(),
            database: target.engine.to_string(),
        });
    }
    let (scratch, done) = to_scratch(storage, manifest, master, cx, progress)?;
    load::load(target, scratch.path(), replace, cx).map_err(RestoreError::Dump)?;
    Ok(done)
}

/// Counts what is read, and ends the reading when asked to.
struct Watched<'a> {
    input: Box<dyn Read + Send>,
    watch: &'a Watch<'a>,
    read: u64,
    total: u64,
    stopped: &'a Cell<Option<Why>>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(why) = self.watch.cancel.why() {
            self.stopped.set(Some(why));
            return Err(io::Error::other("cancelled"));
        }
        let count = self.input.read(buffer)?;
        self.read += count as u64;
        (self.watch.progress)(self.read, self.total);
        Ok(count)
    }
}

/// A scratch file that leaves the disk the room that the pipeline leaves it, too.
struct Guarded<'a> {
    file: File,
    dir: &'a Path,
    limits: &'a PipelineLimits,
    until_look: u64,
    full: bool,
}

impl Guarded<'_> {
    fn look(&mut self) -> io::Result<()> {
        let stat = rustix::fs::statvfs(self.dir)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let share = stat.f_blocks.saturating_mul(stat.f_frsize) / 100;
        let reserve = share.saturating_mul(u64::from(self.limits.min_free_percent));
        if free < reserve.max(self.limits.min_free_bytes).saturating_add(SPACE_EVERY) {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.until_look = SPACE_EVERY;
        Ok(())
    }
}

impl Write for Guarded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.until_look == 0 {
            self.look()?;
        }
        let most = usize::try_from(self.until_look).unwrap_or(usize::MAX).min(bytes.len());
        let count = self.file.write(&bytes[..most])?;
        self.until_look -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
