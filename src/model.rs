//! The nouns that the whole program shares: target, job, configuration, step.
//!
//! Plain values as the control plane means them, checked where they are used: an unknown engine or a
//! port out of range must fail its own run with a clear message, never the whole configuration.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// A database engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// PostgreSQL.
    PostgreSql,
    /// Oracle's MySQL and its kin.
    MySql,
    /// MariaDB.
    MariaDb,
    /// MongoDB.
    MongoDb,
    /// Redis and Valkey.
    Redis,
    /// SQLite.
    Sqlite,
    /// A number this version does not know (0 = unspecified).
    Unknown(i32),
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::PostgreSql => "PostgreSQL",
            Engine::MySql => "MySQL",
            Engine::MariaDb => "MariaDB",
            Engine::MongoDb => "MongoDB",
            Engine::Redis => "Redis",
            Engine::Sqlite => "SQLite",
            Engine::Unknown(number) => return write!(f, "unknown engine {number}"),
        })
    }
}

/// How a database is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// Host and port.
    #[default]
    Tcp,
    /// The dump tool inside the database's own container.
    DockerExec,
    /// A unix socket; `host` is its directory or path.
    UnixSocket,
    /// A number this version does not know.
    Unknown(i32),
}

/// Where a target is and how to log in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// Host name, address, or the socket's directory.
    pub host: String,
    /// 0 = the engine's default.
    pub port: u32,
    /// Database name; for SQLite the path of the file.
    pub database: String,
    /// User name; empty = the engine's default.
    pub username: String,
    /// `env:NAME`, `file:PATH` or the password itself: secret in any case.
    pub password_ref: Secret,
    /// Container name or id, for [`Way::DockerExec`].
    pub container: String,
    /// The way in.
    pub way: Way,
    /// libpq's `sslmode` (`disable` … `verify-full`); empty = the tool's default.
    pub tls_mode: String,
    /// PEM file with the CA to trust; empty = the tool's default.
    pub tls_ca_file: String,
    /// Not the database but what belongs to its whole server: roles and tablespaces. PostgreSQL only.
    pub globals_only: bool,
}

/// What is backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its id, unique in a configuration.
    pub id: String,
    /// The engine.
    pub engine: Engine,
    /// For people.
    pub display_name: String,
    /// The way to it.
    pub connection: Connection,
}

/// How failures that can pass are tried again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all; 0 means 1.
    pub max_attempts: u32,
    /// Pauses between them in seconds; a short list repeats its last value.
    pub backoff_sec: Vec<u32>,
}

/// A target with its schedule and policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// Its id, unique in a configuration.
    pub id: String,
    /// The target's id.
    pub target_id: String,
    /// Five fields, UTC; the control plane schedules, the agent only shows it.
    pub cron: String,
    /// For the control plane's keep rules.
    pub retention_days: u32,
    /// As written: `zstd`, `gzip`, `none`; empty = zstd.
    pub compression: String,
    /// Whether a run without a key must fail.
    pub encryption_enabled: bool,
    /// Commands before the dump.
    pub pre_hooks: Vec<String>,
    /// Commands after it.
    pub post_hooks: Vec<String>,
    /// Retries.
    pub retry: RetryPolicy,
    /// Bounds a run from its first attempt; 0 = unbounded.
    pub timeout_sec: u32,
    /// Bytes per second that an upload may take; 0 = as fast as it goes.
    pub upload_bytes_per_sec: u64,
}

/// The protocol of a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckKind {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// A TCP connect.
    Tcp,
    /// A number this version does not know.
    Unknown(i32),
}

/// A health check to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its id, unique in a configuration.
    pub id: String,
    /// For people.
    pub name: String,
    /// The protocol.
    pub kind: CheckKind,
    /// URL or host:port.
    pub target: String,
    /// 0 = 60.
    pub interval_sec: u32,
    /// 0 = 10.
    pub timeout_sec: u32,
    /// 0 = any 2xx.
    pub expected_status: u32,
}

/// A daily window, UTC, in which scheduled backups do not start. May cross midnight.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maintenance {
    /// `HH:MM`.
    pub start_utc: String,
    /// `HH:MM`, exclusive.
    pub end_utc: String,
}

/// Settings of the agent that the control plane chooses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advanced {
    /// 0 = 1.
    pub max_parallel_jobs: u32,
    /// `trace` … `error`; empty = as started.
    pub log_level: String,
    /// Whether SelfUpdate is obeyed.
    pub auto_update_enabled: bool,
}

/// All that the control plane configures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentConfig {
    /// Rises with every change.
    pub version: u64,
    /// What can be backed up.
    pub targets: Vec<Target>,
    /// What is backed up, and how.
    pub jobs: Vec<Job>,
    /// Health checks.
    pub checks: Vec<Check>,
    /// The window, if there is one.
    pub maintenance: Option<Maintenance>,
    /// The rest.
    pub advanced: Advanced,
}

/// Where one attempt's artifact goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadCreds {
    /// The presigned PUT URL; its query is a secret. May be empty beside a multipart upload.
    #[serde(with = "crate::secret::exposed")]
    pub put_url: Secret,
    /// Unix milliseconds; 0 = unknown.
    pub expires_at_ms: u64,
    /// The key under which the control plane knows the object.
    pub object_key: String,
    /// Where it goes in parts instead, as the control plane offers it.
    #[serde(default)]
    pub multipart: Option<Multipart>,
}

impl UploadCreds {
    /// Whether there is a URL at all.
    pub fn lead_somewhere(&self) -> bool {
        !self.put_url.is_empty() || self.multipart.is_some()
    }
}

/// A multipart upload that the control plane has created in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multipart {
    /// The store's name for it.
    pub upload_id: String,
    /// Size of every part but the last.
    pub part_size_bytes: u64,
    /// Places for some parts; more on request.
    pub parts: Vec<PartUrl>,
    /// Presigned POST that makes an object of the parts.
    #[serde(with = "crate::secret::exposed")]
    pub complete_url: Secret,
    /// Presigned DELETE that gives the upload up.
    #[serde(with = "crate::secret::exposed")]
    pub abort_url: Secret,
    /// When the URLs end, Unix milliseconds; 0 = unknown.
    pub expires_at_ms: u64,
}

/// Where one part goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartUrl {
    /// From 1.
    pub number: u32,
    /// The presigned PUT URL.
    #[serde(with = "crate::secret::exposed")]
    pub url: Secret,
}

/// How the dump is compressed before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard, the default.
    Zstd,
    /// gzip (RFC 1952).
    Gzip,
    /// As it is.
    None,
}

impl Compression {
    /// Reads the wire's word; empty means zstd.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "" | "zstd" => Some(Self::Zstd),
            "gzip" => Some(Self::Gzip),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    /// The wire's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }
}

/// What a run is doing; `as_str` is the wire's `current_step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Looking for the tool, logging in, asking for version and size.
    Validating,
    /// Reading the dump, compressing and sealing it.
    Dumping,
    /// Sending the sealed bytes.
    Uploading,
    /// Comparing marks, sizes and hashes.
    Verifying,
}

impl Step {
    /// The wire's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Dumping => "dumping",
            Self::Uploading => "uploading",
            Self::Verifying => "verifying",
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub step: Step,
    /// 0–100 within the step, where the total is known.
    pub percent: Option<u8>,
    /// Bytes that went through the step so far.
    pub bytes: u64,
}

/// Who wrote the configuration, and so how far it may reach on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The operator's own file on this host: may name anything.
    Local,
    /// A control plane elsewhere: only what the host allows.
    Remote,
}

/// The default of a zero number on the wire, in seconds.
pub fn seconds_or(value: u32, default: u64) -> Duration {
    Duration::from_secs(if value == 0 { default } else { u64::from(value) })
}
