//! The file of `backupy up` → [`Settings`], or every problem in it with its line.
//!
//! ```toml
//! [storage]
//! directory = "/var/backups/db"            # where the artifacts go; outside the state directory
//!
//! [[backup]]
//! name = "shop"
//! database = "postgres://backup@localhost/shop?sslmode=require"
//! password = "file:/etc/backupy/shop.password"     # or "env:SHOP_PASSWORD"
//! cron = "0 3 * * *"                       # UTC …
//! keep = { last = 7, days = 30 }           # deleted only when it is neither
//!
//! [[backup]]
//! name = "app"
//! database = "sqlite:///srv/app.db"
//! every = "6h"                             # … or an interval
//! ```
//!
//! Everything else has a default:
//!
//! | where | key | default | meaning |
//! |---|---|---|---|
//! | top | `state_dir` | `/var/lib/backupy` | catalogue, queue, spool; absolute |
//! | top | `on_failure` | – | shell command, run when a backup failed or did not happen |
//! | top | `metrics_listen` | the variable | where Prometheus may ask: `127.0.0.1:9090`, or `off` |
//! | top | `max_parallel` | 1 | runs at the same time, 1–32 |
//! | `[storage]` | `directory` | this or `s3` | absolute |
//! | | `s3` | this or `directory` | a table, often as `[storage.s3]`: |
//! | `[storage.s3]` | `bucket` | required | it must exist |
//! | | `access_key`, `secret_key` | required | `env:NAME`, `file:/path`, or the key itself (with a warning) |
//! | | `region` | `us-east-1` | |
//! | | `endpoint` | Amazon's for the region | `https://HOST[:PORT]`; `http` only to this machine |
//! | | `prefix` | – | everything goes below it |
//! | | `path_style` | true with `endpoint` | the bucket in the path, not in the host |
//! | | `ca_file` | – | a trust root beside the system's, PEM |
//! | | `insecure_http` | false | plain HTTP to another machine |
//! | `[keys]` | `master` | `STATE_DIR/master.key` | absolute; outside the storage |
//! | `[maintenance]` | `start`, `end` | – | `HH:MM` UTC; no scheduled run starts in between |
//! | `[[backup]]` | `name` | required | letters, digits, `.`, `_`, `-`; at most 64 |
//! | | `database` | required | its URL, such as `postgres://user@host/name` or `sqlite:///srv/app.db`; see [`url`] |
//! | | `password` | – | `env:NAME`, `file:/path`, or the password itself (with a warning) |
//! | | `container` | – | the dump tool of this container's own image, by way of Docker; a URL without a host then means its own socket (MongoDB: its `localhost`). Redis is dialled at the address that Docker tells |
//! | | `globals` | false | PostgreSQL's roles and tablespaces too, as a backup of their own named `NAME-globals` (same schedule and rules, no hooks); a superuser's login is needed |
//! | | `cron` / `every` | one of them | five fields or `@daily`; `30m`, `6h`, `1d` |
//! | | `keep` | everything (a warning) | `last` and `days` |
//! | | `compression` | `zstd` | `zstd`, `gzip`, `none` |
//! | | `timeout` | `12h` | of a run with all its attempts |
//! | | `retry` | 3 attempts, `["30s", "2m"]` | `attempts`, `backoff` |
//! | | `pre_hooks` | – | shell commands before the dump; one that fails fails the run |
//! | | `post_hooks` | – | shell commands after it, whatever came of it; see [`crate::runs::hooks`] |
//! | | `upload_limit` | – | `2MiB/s`: what its upload may take; at least 16 KiB/s |
//! | | `ping` | – | URL (or `env:`, `file:`) of a monitor such as healthchecks.io; see [`super::notify::ping`] |
//! | | `shrink_alarm` | `"50%"` | tell of a run smaller than this share of its predecessors; `false` = never |
//! | `[[notify]]` | `webhook` / `email` / `telegram` | one of them | URL (or `env:`, `file:`); a table each, below |
//! | | `name` | the kind | as of a backup |
//! | | `on` | all | `["failure", "recovery", "missed", "shrunk"]` |
//! | | `template`, `headers` | see [`super::notify::webhook`] | of a webhook: JSON with `{{title}}`, `{{text}}` …; names and references |
//! | | `insecure_http` | false | of a webhook: plain HTTP to another machine |
//! | | `ca_file` | – | a trust root beside the system's, PEM |
//! | `email` | `to`, `from` | required | addresses; `to` may be a list |
//! | | `server` | required | `smtps://USER@HOST:465`, or `smtp://USER@HOST:587` with STARTTLS |
//! | | `password` | – | a reference; goes with a user in `server` |
//! | | `insecure` | false | no TLS; only to this machine |
//! | `telegram` | `token`, `chat` | required | a reference; a number in quotes or `@channel` |
//! | | `api`, `insecure_http` | `https://api.telegram.org` | a Bot API server of one's own |
//! | `[[check]]` | `name` | required | as of a backup |
//! | | `url` / `tcp` | one of them | `http://…`, `https://…`; `host:port` |
//! | | `interval` | `60s` | `5s` to `1d` |
//! | | `timeout` | `10s` | `1s` to `60s`, with all redirects |
//! | | `expected_status` | any 2xx | redirects are followed only where a 2xx is expected |
//!
//! Keys at the top stand before the first `[table]`, as TOML wants it.

mod backup;
mod check;
mod flags;
mod notify;
mod parse;
mod reader;
mod storage;
#[cfg(test)]
mod tests;
pub mod url;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::keep;
use super::notify::ping::Pings;
use super::notify::{Channel, OnFailure, Way, command};
use super::schedule::plan::Entry;
use super::schedule::{Schedule, Window};
use crate::model::{
    Advanced, AgentConfig, Check, Compression, Job, Maintenance, RetryPolicy, Target,
};
use crate::secret::Secret;

pub use flags::Flags;
pub use parse::{load, parse, state_dir_in};
pub use reader::Problem;

pub use super::storage::StorageSettings;

/// Where the state is kept unless the file says otherwise.
pub const STATE_DIR: &str = "/var/lib/backupy";

/// Largest file that is read.
pub const FILE_MAX: u64 = 1 << 20;

/// One database with its schedule and rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// Its name: the id of target and job, the first part of every object key.
    pub name: String,
    /// What is backed up.
    pub target: Target,
    /// When.
    pub schedule: Schedule,
    /// What stays.
    pub keep: keep::Rule,
    /// How the dump is compressed.
    pub compression: Compression,
    /// Bounds a run with all its attempts.
    pub timeout: Duration,
    /// How failures that can pass are tried again.
    pub retry: RetryPolicy,
    /// Commands before the dump.
    pub pre_hooks: Vec<String>,
    /// Commands after it.
    pub post_hooks: Vec<String>,
    /// Bytes per second that its upload may take; 0 = as fast as it goes.
    pub upload_bytes_per_sec: u64,
    /// The URL of its monitor, or a reference to it; a secret.
    pub ping: Option<Secret>,
    /// Percent of its predecessors below which a run is told; `None` = off.
    pub shrink_alarm: Option<u32>,
}

/// All that the file (or the flags) say, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Catalogue, queue, spool.
    pub state_dir: PathBuf,
    /// Where the artifacts go.
    pub storage: StorageSettings,
    /// The master key's file.
    pub master_key: PathBuf,
    /// When no scheduled run starts.
    pub window: Option<Window>,
    /// The same for the agent.
    pub maintenance: Option<Maintenance>,
    /// Shell command for failures.
    pub on_failure: Option<String>,
    /// Runs at the same time.
    pub max_parallel: u32,
    /// Where Prometheus may ask; `Some(None)` = nowhere, `None` = the file does not say.
    pub metrics_listen: Option<Option<SocketAddr>>,
    /// The backups, in the order of the file; at least one.
    pub backups: Vec<Backup>,
    /// The health checks.
    pub checks: Vec<Check>,
    /// The channels that have a section.
    pub notify: Vec<Channel>,
    /// Doubtful, but not wrong.
    pub warnings: Vec<Problem>,
}

impl Settings {
    /// The configuration for the agent.
    pub fn agent_config(&self, version: u64) -> AgentConfig {
        AgentConfig {
            version,
            targets: self.backups.iter().map(|backup| backup.target.clone()).collect(),
            jobs: self.backups.iter().map(job).collect(),
            checks: self.checks.clone(),
            maintenance: self.maintenance.clone(),
            advanced: Advanced { max_parallel_jobs: self.max_parallel, ..Advanced::default() },
        }
    }

    /// The schedules for the planner.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |b: &Backup| Entry { backup: b.name.clone(), schedule: b.schedule.clone() };
        self.backups.iter().map(entry).collect()
    }

    /// The backup of that name.
    pub fn backup(&self, name: &str) -> Option<&Backup> {
        self.backups.iter().find(|backup| backup.name == name)
    }

    /// Every way to people: the command, those with a section, the pings.
    pub fn channels(&self) -> Vec<Channel> {
        let unnamed = |name: &str, way| Channel {
            name: name.to_owned(),
            topics: Vec::new(),
            ca_file: None,
            way,
        };
        let command = self.failure_hook().map(|hook| Way::Command(hook, command::TIMEOUT));
        let pings: Pings = self
            .backups
            .iter()
            .filter_map(|backup| Some((backup.name.clone(), backup.ping.clone()?)))
            .collect();
        let mut channels: Vec<Channel> =
            command.map(|way| unnamed(notify::COMMAND, way)).into_iter().collect();
        channels.extend(self.notify.iter().cloned());
        if !pings.is_empty() {
            channels.push(unnamed(notify::PINGS, Way::Pings(pings)));
        }
        channels
    }

    /// The command for failures, without a look at the passwords of the databases and the channels.
    fn failure_hook(&self) -> Option<OnFailure> {
        let command = self.on_failure.clone()?;
        let passwords = self.backups.iter().map(|backup| &backup.target.connection.password_ref);
        let pings = self.backups.iter().filter_map(|backup| backup.ping.as_ref());
        let secrets = self.notify.iter().flat_map(|channel| channel.way.secrets());
        let references = passwords.chain(pings).chain(secrets);
        let variable =
            |reference: &Secret| reference.expose().strip_prefix("env:").map(str::to_owned);
        Some(OnFailure { command, hidden: references.filter_map(variable).collect() })
    }
}

fn job(backup: &Backup) -> Job {
    Job {
        id: backup.name.clone(),
        target_id: backup.target.id.clone(),
        cron: match &backup.schedule {
            Schedule::Cron(line) => line.text().to_owned(),
            Schedule::Every(_) => String::new(),
        },
        retention_days: backup.keep.days.unwrap_or(0),
        compression: backup.compression.as_str().to_owned(),
        encryption_enabled: true,
        pre_hooks: backup.pre_hooks.clone(),
        post_hooks: backup.post_hooks.clone(),
        retry: backup.retry.clone(),
        upload_bytes_per_sec: backup.upload_bytes_per_sec,
        timeout_sec: u32::try_from(backup.timeout.as_secs()).unwrap_or(u32::MAX),
    }
}
