//! What the catalogue holds: runs, uploads, and what is to be removed.

use serde::{Deserialize, Serialize};

use crate::control::keep;
use crate::control::keys::Wrapped;
use crate::control::manifest::{Manifest, Object, Trigger, sha256_hex};
use crate::control::storage::Stored;
use crate::model::{Compression, Engine};

/// What is kept of an error message.
const ERROR_MAX: usize = 2000;

/// How far a run is. Every state but the first is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Ordered, and not ended yet.
    Open,
    /// Its artifact and manifest are stored.
    Completed,
    /// It ended without one.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// Where a run's artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactState {
    /// There was never one.
    #[default]
    None,
    /// In the storage.
    Present,
    /// It should be in the storage and is not, or is another size.
    Lost,
    /// A keep rule let it go.
    Deleted,
}

/// The last verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// What was wrong; `None` = nothing.
    pub error: Option<String>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub run_id: String,
    /// The backup's name.
    pub backup: String,
    /// Why it was started.
    pub trigger: Trigger,
    /// The slot that it stands for, if scheduled.
    #[serde(default)]
    pub slot_ms: Option<u64>,
    /// Earlier slots that it makes up.
    #[serde(default)]
    pub missed: u32,
    /// How far it is.
    pub state: State,
    /// Upload URLs issued so far.
    #[serde(default)]
    pub attempts: u32,
    /// When it was ordered, Unix milliseconds.
    pub created_ms: u64,
    /// When it ended; 0 while it is open.
    #[serde(default)]
    pub finished_ms: u64,
    /// Why it failed.
    #[serde(default)]
    pub error: String,
    /// The engine.
    pub engine: Engine,
    /// Its version.
    #[serde(default)]
    pub engine_version: String,
    /// How the dump was compressed.
    #[serde(default)]
    pub compression: Option<Compression>,
    /// The artifact.
    #[serde(default)]
    pub object: Option<Object>,
    /// Where it is.
    #[serde(default)]
    pub artifact: ArtifactState,
    /// The run's data key.
    #[serde(default)]
    pub key: Option<Wrapped>,
    /// The last verification.
    #[serde(default)]
    pub verified: Option<Verified>,
}

impl Run {
    /// A run that is ordered now.
    pub fn new(
        run_id: String,
        backup: &str,
        engine: Engine,
        trigger: Trigger,
        now_ms: u64,
    ) -> Self {
        Self {
            run_id,
            backup: backup.to_owned(),
            trigger,
            slot_ms: None,
            missed: 0,
            state: State::Open,
            attempts: 0,
            created_ms: now_ms,
            finished_ms: 0,
            error: String::new(),
            engine,
            engine_version: String::new(),
            compression: None,
            object: None,
            artifact: ArtifactState::None,
            key: None,
            verified: None,
        }
    }

    /// Whether its artifact can be restored, as far as is known.
    pub fn is_good(&self) -> bool {
        let verified_bad = self.verified.as_ref().is_some_and(|verified| verified.error.is_some());
        self.state == State::Completed && self.artifact == ArtifactState::Present && !verified_bad
    }

    /// The run as the keep rules see it.
    pub fn for_keep(&self) -> keep::Artifact<'_> {
        keep::Artifact { run_id: &self.run_id, finished_ms: self.finished_ms, good: self.is_good() }
    }

    /// A completed run as its manifest tells it.
    pub fn from_manifest(manifest: &Manifest) -> Self {
        let mut run = Self::new(
            manifest.run_id.clone(),
            &manifest.backup,
            manifest.engine,
            manifest.trigger,
            manifest.started_ms,
        );
        run.complete(manifest);
        run
    }

    pub(super) fn complete(&mut self, manifest: &Manifest) {
        self.state = State::Completed;
        self.artifact = ArtifactState::Present;
        self.finished_ms = manifest.finished_ms;
        self.error.clear();
        self.engine_version.clone_from(&manifest.engine_version);
        self.compression = Some(manifest.compression);
        self.object = Some(manifest.object.clone());
        self.key = Some(manifest.key.clone());
    }

    pub(super) fn end(&mut self, state: State, error: &str, now_ms: u64) {
        self.state = state;
        self.error = error.chars().take(ERROR_MAX).collect();
        self.finished_ms = now_ms;
    }
}

/// An upload URL that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// For which run.
    pub run_id: String,
    /// Until when something may arrive, Unix milliseconds.
    pub until_ms: u64,
    /// What arrived.
    pub stored: Option<Arrived>,
    /// The multipart upload that was created for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_id: Option<String>,
}

/// An artifact that arrived whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// Its size.
    pub size_bytes: u64,
    /// Its hash.
    #[serde(with = "sha256_hex")]
    pub sha256: [u8; 32],
}

impl From<Stored> for Arrived {
    fn from(stored: Stored) -> Self {
        Self { size_bytes: stored.size_bytes, sha256: stored.sha256 }
    }
}

/// An object that is to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gone {
    /// Not before: until then something may still arrive under its key.
    pub(super) not_before_ms: u64,
}
