//! The two moments at which storage and catalogue change together, each in the order that a crash cannot spoil.
//!
//! - A backup is there: artifact (the upload made it durable) → manifest → catalogue. Cut short, the agent
//!   reports the result again and it is done again.
//! - A backup goes: catalogue (with the intention) → manifest → artifact → the intention is done. Cut short, it
//!   goes on at the next [`tidy`].

use std::fmt;
use std::io::Read as _;

use ring::digest::{Context, SHA256};

use super::catalogue::{Arrived, Catalogue, CatalogueError, Run, State};
use super::keep::{self, LastSeen};
use super::keys::MasterKey;
use super::manifest::{Manifest, ManifestError, Object, Parts};
use super::storage::{ObjectKey, Storage, StorageError};
use crate::model::Compression;

/// What the agent reports of a completed run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The run.
    pub run_id: String,
    /// Where the artifact was put.
    pub object_key: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its hash, 64 hex digits.
    pub sha256: String,
    /// `zstd`, `gzip`, `none`.
    pub compression: String,
    /// The engine's version.
    pub engine_version: String,
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The backup is there now.
    Stored(Box<Run>),
    /// The run had ended before; nothing changed.
    Known(Box<Run>),
    /// The report is not true: the run must be ended as failed with this reason.
    Untrue(String),
}

/// Why it could not be done now; the report has to come again.
#[derive(Debug)]
pub enum CommitError {
    /// The storage.
    Storage(StorageError),
    /// The catalogue; an unknown run, too.
    Catalogue(CatalogueError),
    /// The manifest could not be written under the master key.
    Manifest(ManifestError),
}

impl CommitError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Storage(error) => error.retry(),
            Self::Catalogue(error) => error.retry(),
            Self::Manifest(error) => error.retry(),
        }
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(error) => error.fmt(f),
            Self::Catalogue(error) => error.fmt(f),
            Self::Manifest(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CommitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Catalogue(error) => Some(error),
            Self::Manifest(error) => Some(error),
        }
    }
}

impl From<StorageError> for CommitError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<CatalogueError> for CommitError {
    fn from(error: CatalogueError) -> Self {
        Self::Catalogue(error)
    }
}

/// Makes a reported run a backup, if the storage holds exactly what was reported. May be repeated.
///
/// # Errors
/// When storage or catalogue fail; nothing is claimed then.
pub fn complete(
    catalogue: &Catalogue,
    storage: &dyn Storage,
    master: &MasterKey,
    report: &Report,
    now_ms: u64,
) -> Result<Outcome, CommitError> {
    let unknown = || CatalogueError::Unknown { run_id: report.run_id.clone() };
    let run = catalogue.get(&report.run_id)?.ok_or_else(unknown)?;
    if run.state != State::Open {
        return Ok(Outcome::Known(Box::new(run)));
    }
    let (object, compression) = match check(catalogue, storage, report)? {
        Ok(checked) => checked,
        Err(untrue) => return Ok(Outcome::Untrue(untrue)),
    };
    let Some(key) = run.key.clone() else {
        return Ok(Outcome::Untrue("the run was ordered without a data key".to_owned()));
    };
    let manifest = Manifest::new(Parts {
        run_id: run.run_id,
        backup: run.backup,
        engine: run.engine,
        engine_version: report.engine_version.clone(),
        trigger: run.trigger,
        started_ms: run.created_ms,
        finished_ms: now_ms,
        object,
        compression,
        key,
    });
    let bytes = manifest.to_bytes(master).map_err(CommitError::Manifest)?;
    storage.write_manifest(&manifest.object.key, &bytes)?;
    catalogue.complete(&manifest)?;
    let run = catalogue.get(&report.run_id)?.ok_or_else(unknown)?;
    Ok(Outcome::Stored(Box::new(run)))
}

/// Compares the report with what arrived. The inner error is what is not true about it.
fn check(
    catalogue: &Catalogue,
    storage: &dyn Storage,
    report: &Report,
) -> Result<Result<(Object, Compression), String>, CommitError> {
    let untrue = |why: &str| Ok(Err(format!("the agent reported {why}")));
    let Ok(key) = ObjectKey::parse(&report.object_key) else {
        return untrue("an object that has no valid key");
    };
    let upload = match catalogue.upload(&key)? {
        Some(upload) if upload.run_id == report.run_id => upload,
        _ => return untrue("an object that was not issued for this run"),
    };
    let Some(compression) = Compression::parse(&report.compression) else {
        return untrue("an unknown compression");
    };
    let reported = crate::hex::unhex32(&report.sha256);
    let arrived = match upload.stored {
        Some(arrived) => arrived,
        // It went straight to the store, which answered 2xx for the bytes that the agent hashed; its size is looked
        // at below.
        None if !storage.hashes_uploads() => match (storage.size(&key)?, reported) {
            (None, _) => return untrue("an object that never arrived"),
            (_, None) => return untrue("a hash that is none"),
            (Some(size_bytes), Some(sha256)) => Arrived { size_bytes, sha256 },
        },
        // The process ended between the upload and its note: the object itself tells.
        None => match read_back(storage, &key) {
            Err(StorageError::NotFound { .. }) => return untrue("an object that never arrived"),
            other => other?,
        },
    };
    if storage.size(&key)? != Some(arrived.size_bytes) {
        return untrue("an object that is no longer there as it arrived");
    }
    let same_hash = reported == Some(arrived.sha256);
    if arrived.size_bytes != report.size_bytes || !same_hash {
        return untrue("another size or hash than what arrived");
    }
    let object = Object { key, size_bytes: arrived.size_bytes, sha256: arrived.sha256 };
    Ok(Ok((object, compression)))
}

fn read_back(storage: &dyn Storage, key: &ObjectKey) -> Result<Arrived, StorageError> {
    let mut input = storage.open(key)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut size_bytes = 0;
    loop {
        let count = input
            .read(&mut buffer)
            .map_err(|error| StorageError::Io { path: key.as_str().into(), error })?;
        if count == 0 {
            break;
        }
        context.update(&buffer[..count]);
        size_bytes += count as u64;
    }
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(context.finish().as_ref());
    Ok(Arrived { size_bytes, sha256 })
}

/// What tidying did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Runs whose artifacts the keep rules released.
    pub released: Vec<String>,
    /// Objects that were removed.
    pub removed: usize,
}

/// Whether a run's artifact and manifest are where the catalogue says, as far as can be told without reading it.
fn is_there(storage: &dyn Storage, run: &Run) -> Result<bool, StorageError> {
    let Some(object) = &run.object else { return Ok(false) };
    let manifest = match storage.read_manifest(&object.key) {
        Ok(_) => true,
        Err(StorageError::NotFound { .. }) => false,
        Err(error) => return Err(error),
    };
    let there = manifest && storage.size(&object.key)? == Some(object.size_bytes);
    if !there {
        log::error!(
            "run {} of {}: {} is damaged or gone; it counts for nothing in the keep rules",
            run.run_id,
            run.backup,
            object.key
        );
    }
    Ok(there)
}

/// Applies the keep rules of every backup, and removes what is to go. A backup that is in the catalogue but in no
/// file any more keeps everything.
///
/// # Errors
/// When storage or catalogue fail; it goes on where it stopped the next time.
pub fn tidy<'a>(
    catalogue: &Catalogue,
    storage: &dyn Storage,
    rules: impl IntoIterator<Item = (&'a str, keep::Rule)>,
    seen: &LastSeen,
    now_ms: u64,
) -> Result<Tidied, CommitError> {
    // Without the storage nothing can be removed; the catalogue should not promise it then.
    storage.check()?;
    let mut tidied = Tidied::default();
    for (backup, rule) in rules {
        let mut runs = catalogue.runs(Some(backup), usize::MAX)?;
        runs.retain(|run| run.artifact == super::catalogue::ArtifactState::Present);
        let mut artifacts: Vec<_> = runs.iter().map(Run::for_keep).collect();
        if !keep::released(&artifacts, rule, now_ms, seen).is_empty() {
            // What takes the place of others must really be there.
            for (run, artifact) in runs.iter().zip(&mut artifacts) {
                artifact.good = artifact.good && is_there(storage, run)?;
            }
        }
        for run_id in keep::released(&artifacts, rule, now_ms, seen) {
            catalogue.release(run_id)?;
            tidied.released.push(run_id.to_owned());
        }
        catalogue.prune(backup)?;
    }
    for key in catalogue.gone(now_ms)? {
        storage.delete_manifest(&key)?;
        storage.delete_artifact(&key)?;
        catalogue.removed(&key)?;
        tidied.removed += 1;
    }
    Ok(tidied)
}
