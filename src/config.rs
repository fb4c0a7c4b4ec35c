//! Environment and flags → [`Config`], once, at the edge.
//!
//! Everything below gets values from here and reads no environment of its own (the one exception is a
//! password reference `env:NAME`, which is read when it is used).

use std::path::PathBuf;

use crate::model::Trust;
use crate::secret::Secret;

/// Trust roots and pins for TLS.
#[derive(Debug, Clone, Default)]
pub struct TlsSettings {
    /// An extra trust root, PEM (`BACKUPY_CA_FILE`).
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of the leaf's SPKI; empty = not pinned (`BACKUPY_SERVER_PIN`). For the control plane only.
    pub server_pins: Vec<[u8; 32]>,
}

/// A forward proxy for TLS and HTTP connections (`HTTPS_PROXY`, `NO_PROXY`).
#[derive(Debug, Clone, Default)]
pub struct ProxySettings {
    /// `http://[user:password@]host:port`, already checked; `None` = direct.
    pub url: Option<Secret>,
    /// Host names and suffixes that are reached directly (`NO_PROXY`'s comma-separated list; `*` = all).
    pub bypass: Vec<String>,
}

/// How far this host lets a control plane reach, and where tools are.
#[derive(Debug, Clone)]
pub struct HostPolicy {
    /// Who writes the configuration.
    pub trust: Trust,
    /// The only directory whose files a remote `file:` reference may name (`BACKUPY_SECRETS_DIR`).
    pub secrets_dir: Option<PathBuf>,
    /// SQLite files (or directories of such) that a remote control plane may name; `None` = any
    /// (`BACKUPY_ALLOW_PATHS`, colon-separated).
    pub allow_paths: Option<Vec<PathBuf>>,
    /// Containers it may name; `None` = any (`BACKUPY_ALLOW_CONTAINERS`, comma-separated).
    pub allow_containers: Option<Vec<String>>,
    /// Hosts (or host:port) that its checks may reach; `None` = any but link-local and metadata
    /// addresses (`BACKUPY_ALLOW_CHECKS`, comma-separated).
    pub allow_checks: Option<Vec<String>>,
    /// Directory with the PostgreSQL tools, before PATH (`BACKUPY_PG_BIN_DIR`).
    pub pg_bin_dir: Option<PathBuf>,
}

/// The sizes and times of the pipeline; every field has a documented variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineLimits {
    /// Sealed bytes kept in memory before a spool file is used (`BACKUPY_SPOOL_MEMORY`, default 8 MiB).
    pub memory_bytes: usize,
    /// Below this much free space a run fails (`BACKUPY_MIN_FREE`, default 256 MiB) …
    pub min_free_bytes: u64,
    /// … or below this share of the file system in percent, whichever is more (`BACKUPY_MIN_FREE_PERCENT`, 5).
    pub min_free_percent: u8,
    /// A dump tool that is silent for so long is stuck (`BACKUPY_STUCK_TIMEOUT`, default 10 min).
    pub stuck_timeout: std::time::Duration,
}

impl Default for PipelineLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 8 << 20,
            min_free_bytes: 256 << 20,
            min_free_percent: 5,
            stuck_timeout: std::time::Duration::from_secs(600),
        }
    }
}
