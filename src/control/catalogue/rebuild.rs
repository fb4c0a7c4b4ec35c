//! The catalogue anew from the storage alone: every manifest that is authentic becomes a completed run.
//!
//! Nothing in the storage is changed, and nothing in the catalogue is lost: a run whose artifact is missing is
//! marked so. What does not fit is said, never skipped in silence.

use std::collections::HashSet;

use super::{ArtifactState, Catalogue, CatalogueError, Run, State, index, put};
use crate::control::keys::MasterKey;
use crate::control::manifest::Manifest;
use crate::control::storage::{Listed, ObjectKey, Storage, StorageError};
use crate::store::Space;

/// Runs that are written in one batch.
const BATCH_RUNS: usize = 100;

/// What a rebuild found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Backups that can be restored.
    pub good: usize,
    /// Those among them that the catalogue did not know.
    pub added: usize,
    /// Runs whose artifact the catalogue expected and the storage does not have.
    pub lost: usize,
    /// Artifacts without a manifest: uploads under way, or left behind.
    pub unfinished: usize,
    /// Everything that does not fit, each a whole sentence.
    pub problems: Vec<String>,
}

/// Why nothing could be rebuilt.
#[derive(Debug)]
pub enum RebuildError {
    /// The storage cannot be read.
    Storage(StorageError),
    /// The catalogue cannot be written.
    Catalogue(CatalogueError),
}

impl RebuildError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Storage(error) => error.retry(),
            Self::Catalogue(error) => error.retry(),
        }
    }
}

impl std::fmt::Display for RebuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Storage(error) => error.fmt(f),
            Self::Catalogue(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RebuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Storage(error) => Some(error),
            Self::Catalogue(error) => Some(error),
        }
    }
}

impl Catalogue {
    /// Makes the catalogue agree with the storage.
    ///
    /// # Errors
    /// When the storage cannot be read or the catalogue not be written. A single bad manifest is no error but a
    /// problem in the result.
    pub fn rebuild(
        &self,
        storage: &dyn Storage,
        master: &MasterKey,
    ) -> Result<Rebuilt, RebuildError> {
        let mut rebuilt = Rebuilt::default();
        let mut present = HashSet::new();
        // What is completed while the storage is looked at is not in the list, and not lost.
        let expected = self.expected().map_err(RebuildError::Catalogue)?;
        let listed = storage.list().map_err(RebuildError::Storage)?;
        let mut runs: Vec<Run> = Vec::new();
        for entry in listed {
            match self.read_entry(storage, master, &entry) {
                Ok(Some(run)) => {
                    if present.insert(run.run_id.clone()) {
                        runs.push(run);
                    } else {
                        let key = &entry.key;
                        rebuilt
                            .problems
                            .push(format!("{key}: another backup has the same run {}", run.run_id));
                    }
                }
                Ok(None) => rebuilt.unfinished += 1,
                Err(problem) => rebuilt.problems.push(format!("{}: {problem}", entry.key)),
            }
        }
        rebuilt.good = runs.len();
        let _change = self.lock();
        for part in runs.chunks(BATCH_RUNS) {
            rebuilt.added += self.merge(storage, part).map_err(RebuildError::Catalogue)?;
        }
        let missing = expected.difference(&present);
        self.mark_lost(missing, &mut rebuilt).map_err(RebuildError::Catalogue)?;
        Ok(rebuilt)
    }

    /// `None` for an artifact without a manifest.
    fn read_entry(
        &self,
        storage: &dyn Storage,
        master: &MasterKey,
        entry: &Listed,
    ) -> Result<Option<Run>, String> {
        if !entry.manifest {
            return Ok(None);
        }
        let bytes = storage.read_manifest(&entry.key).map_err(|error| error.to_string())?;
        let manifest =
            Manifest::from_bytes(&bytes, &entry.key, master).map_err(|error| error.to_string())?;
        match entry.size_bytes {
            None => Err("its artifact is missing".to_owned()),
            Some(size) if size != manifest.object.size_bytes => Err(format!(
                "its artifact has {size} bytes instead of {}",
                manifest.object.size_bytes
            )),
            Some(_) => Ok(Some(Run::from_manifest(&manifest))),
        }
    }

    /// Writes what the manifests say; returns how many runs are new.
    fn merge(&self, storage: &dyn Storage, runs: &[Run]) -> Result<usize, CatalogueError> {
        let mut batch = self.store.batch();
        let mut added = 0;
        for run in runs {
            let Some(key) = run.object.as_ref().map(|object| &object.key) else { continue };
            if self.is_gone(key)? {
                continue;
            }
            let known = self.get(&run.run_id)?;
            // Released and removed since it was listed.
            if known.as_ref().is_some_and(|known| known.artifact == ArtifactState::Deleted)
                && !matches!(storage.size(key), Ok(Some(_)))
            {
                continue;
            }
            added += usize::from(known.is_none());
            let merged = match known {
                Some(known) => {
                    let verified = known.verified.clone().filter(|_| known.object == run.object);
                    batch.delete(Space::Catalogue, index(&known));
                    let run = run.clone();
                    Run {
                        created_ms: known.created_ms,
                        slot_ms: known.slot_ms,
                        missed: known.missed,
                        verified,
                        ..run
                    }
                }
                None => run.clone(),
            };
            put(&mut batch, Space::Catalogue, &format!("run/{}", run.run_id), &merged)?;
            batch.put(Space::Catalogue, index(&merged), *b"-");
            batch.delete(Space::Catalogue, format!("open/{}", run.run_id));
            self.settle_uploads(&mut batch, &run.run_id, Some(key))?;
        }
        self.store.commit(batch)?;
        Ok(added)
    }

    fn is_gone(&self, key: &ObjectKey) -> Result<bool, CatalogueError> {
        Ok(self.read::<super::Gone>(Space::Catalogue, &format!("gone/{key}"))?.is_some())
    }

    /// The runs whose artifacts should be in the storage.
    fn expected(&self) -> Result<HashSet<String>, CatalogueError> {
        let runs = self.runs(None, usize::MAX)?.into_iter();
        Ok(runs.filter(is_expected).map(|run| run.run_id).collect())
    }

    fn mark_lost<'a>(
        &self,
        missing: impl Iterator<Item = &'a String>,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), CatalogueError> {
        for run_id in missing {
            let Some(mut run) = self.get(run_id)?.filter(is_expected) else { continue };
            run.artifact = ArtifactState::Lost;
            self.write(Space::Catalogue, &format!("run/{run_id}"), &run)?;
            rebuilt.lost += 1;
            let key = run.object.as_ref().map_or("its artifact", |object| object.key.as_str());
            rebuilt
                .problems
                .push(format!("run {run_id} of {}: the storage has no usable {key}", run.backup));
        }
        Ok(())
    }
}

fn is_expected(run: &Run) -> bool {
    run.state == State::Completed && run.artifact == ArtifactState::Present
}
