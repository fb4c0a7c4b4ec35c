//! What `restore` and `verify` have in common: storage and master key, the backup that is meant, a place
//! for the dump, and a stop that leaves nothing behind. They ask no catalogue and need no running `up`.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::complain;
use super::place::{Note, Place};
use super::scratch::ScratchDir;
use super::show::{self, Progress};
use crate::clock::unix_ms;
use crate::config::{self, HostConfig, HostPolicy, PipelineLimits, process_env};
use crate::control::keys::MasterKey;
use crate::control::manifest::Manifest;
use crate::control::restore::{RestoreError, select};
use crate::control::storage::{AnyStorage, Reach, StorageSettings};
use crate::drivers::Context;
use crate::exit::Exit;
use crate::model::Trust;
use crate::signals;
use crate::thread::Cancel;

const DAY_MS: u64 = 86_400_000;

/// Why a command ended, and with which code.
pub(super) type Failed = (String, Exit);

/// Where a command was told to look.
#[derive(Debug, Default)]
pub(super) struct Where<'a> {
    pub config: Option<&'a str>,
    pub state_dir: Option<&'a str>,
    pub storage: Option<&'a str>,
    pub master_key: Option<&'a str>,
}

/// Everything that is needed to open a backup.
pub(super) struct Artifacts {
    pub state_dir: PathBuf,
    pub storage: AnyStorage,
    pub master: MasterKey,
    pub cancel: Cancel,
    policy: HostPolicy,
    limits: PipelineLimits,
}

impl Artifacts {
    pub fn open(place: &Where<'_>) -> Result<Self, Failed> {
        let found = Place::find(place.config, place.state_dir, &process_env)
            .map_err(|error| (error.to_string(), error.exit()))?;
        let storage = place.storage.map(StorageSettings::parse).transpose();
        let storage = storage.map_err(|error| (format!("--storage {error}"), Exit::Usage))?;
        let note = match (storage, place.master_key, &found.note) {
            (Some(storage), Some(key), _) => Note { storage, master_key: key.into() },
            (storage, key, Some(note)) => Note {
                storage: storage.unwrap_or_else(|| note.storage.clone()),
                master_key: key.map_or_else(|| note.master_key.clone(), PathBuf::from),
            },
            _ => {
                let why = format!(
                    "nothing in {} says where the backups are; name the file of `up` with --config, or the \
                     storage (a directory or s3://bucket/prefix) and the master key with --storage and \
                     --master-key",
                    found.state_dir.display()
                );
                return Err((why, Exit::Usage));
            }
        };
        let flags = config::Flags {
            state_dir: Some(found.state_dir.display().to_string()),
            ..config::Flags::default()
        };
        let host = HostConfig::load(&process_env, &flags, Trust::Local)
            .map_err(|error| (error.to_string(), Exit::Usage))?;
        let cancel = signals::listen(None)
            .map_err(|error| (format!("failed to listen for signals: {error}"), Exit::Internal))?;
        let state = |error: &dyn std::fmt::Display| (error.to_string(), Exit::State);
        let (policy, limits) = (host.policy, host.limits);
        let reach = Reach { proxy: host.proxy, policy: policy.clone(), cancel: cancel.clone() };
        let storage = note.storage.open(&reach, None).map_err(|error| state(&error))?;
        let master = MasterKey::load(&note.master_key, note.storage.directory());
        let master = master.map_err(|error| state(&error))?;
        Ok(Self { state_dir: found.state_dir, storage, master, cancel, policy, limits })
    }

    /// The backup that is meant, and a loud word about newer ones that cannot be used.
    pub fn select(&self, wanted: &str) -> Result<Manifest, Failed> {
        let selected = select(&self.storage, &self.master, wanted).map_err(|error| fail(&error))?;
        for skipped in &selected.skipped {
            complain(format!("skipped a newer backup: {skipped}"));
        }
        if selected.manifest.finished_ms > unix_ms().saturating_add(DAY_MS) {
            complain(
                "this backup is dated in the future, so a clock was wrong; if it is not the newest one, name \
                 another run",
            );
        }
        Ok(selected.manifest)
    }

    /// A place for a dump: in `wanted`, the state directory, or the system's place for temporary files.
    pub fn scratch(&self, wanted: Option<&str>) -> Result<ScratchDir, Failed> {
        let base = match wanted {
            Some(dir) => PathBuf::from(dir),
            None if self.state_dir.is_dir() => self.state_dir.clone(),
            None => std::env::temp_dir(),
        };
        ScratchDir::create(&base).map_err(|error| {
            let why = format!(
                "failed to make a scratch directory in {}: {error}; name another place with --scratch",
                base.display()
            );
            (why, Exit::Failed)
        })
    }

    /// Calls `work` with a driver's context over `dir`.
    pub fn with_context<T>(&self, dir: &Path, work: impl FnOnce(&Context<'_>) -> T) -> T {
        work(&Context {
            cancel: &self.cancel,
            policy: &self.policy,
            limits: &self.limits,
            work_dir: dir,
            progress: &|_| {},
        })
    }
}

/// A restore's failure with its code: about the backup, about the place, or about the command.
pub(super) fn fail(error: &RestoreError) -> Failed {
    let exit = match error {
        RestoreError::Storage(_) | RestoreError::Key(_) if !error.is_about_the_backup() => {
            Exit::State
        }
        RestoreError::Exists { .. } | RestoreError::OtherEngine { .. } => Exit::Usage,
        RestoreError::Cancelled(_) => Exit::Failed,
        _ => Exit::Failed,
    };
    (error.to_string(), exit)
}

/// A backup in words: `run 7d5f84d3791e of shop (PostgreSQL 15.18, 2026-11-23 03:00:12, 75.3 KiB)`.
pub(super) fn describe(manifest: &Manifest) -> String {
    let version = match manifest.engine_version.as_str() {
        "" => manifest.engine.to_string(),
        version => show::printable(version),
    };
    format!(
        "run {} of {} ({version}, {} UTC, {})",
        manifest.run_id,
        manifest.backup,
        show::time(manifest.finished_ms),
        show::size(manifest.object.size_bytes)
    )
}

/// Shows how much of an artifact was read, a few times a second.
#[derive(Debug)]
pub(super) struct Meter {
    step: &'static str,
    shown: Cell<Option<Instant>>,
    progress: RefCell<Progress>,
}

impl Meter {
    pub fn new(step: &'static str) -> Self {
        Self { step, shown: Cell::new(None), progress: RefCell::default() }
    }

    pub fn show(&self, read: u64, total: u64) {
        const REDRAW: Duration = Duration::from_millis(200);
        if self.shown.get().is_some_and(|then| then.elapsed() < REDRAW) {
            return;
        }
        self.shown.set(Some(Instant::now()));
        let percent = read.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
        let note = show::size(read);
        let percent = u8::try_from(percent).ok();
        self.progress.borrow_mut().step(self.step, percent, &note);
    }

    pub fn clear(&self) {
        self.progress.borrow_mut().clear();
    }
}
