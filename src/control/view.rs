//! A run as people and scripts see it: over the status socket, in `runs` and in `runs --json`.
//!
//! The names are a promise to scripts; new ones may come, none goes.

use serde::{Deserialize, Serialize};

/// One run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunView {
    /// The run.
    pub run_id: String,
    /// Its backup's name.
    pub backup: String,
    /// `waiting`, `running`, `ok`, `failed`, `cancelled`; afterwards `deleted` (a keep rule let the artifact
    /// go), `lost` (the storage has it no more) or `bad` (a verification failed).
    pub state: String,
    /// Whether a person asked for it.
    pub manual: bool,
    /// When it was begun, Unix milliseconds.
    pub created_ms: u64,
    /// When it ended; 0 while it is open.
    pub finished_ms: u64,
    /// Size of the artifact.
    pub size_bytes: u64,
    /// Its hash, hex.
    pub sha256: String,
    /// Its name in the storage.
    pub object_key: String,
    /// `zstd`, `gzip`, `none`.
    pub compression: String,
    /// `PostgreSQL 16.2`.
    pub engine_version: String,
    /// When it was verified last; 0 = never.
    pub verified_ms: u64,
    /// Why it failed, or what a verification found.
    pub error: String,
    /// What an open run is doing.
    pub step: String,
    /// How far that step is, 0–100.
    pub percent: u32,
}

impl RunView {
    /// Whether nothing more will happen to it.
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "waiting" | "running")
    }

    /// Whether its artifact can be restored.
    pub fn is_ok(&self) -> bool {
        self.state == "ok"
    }
}
