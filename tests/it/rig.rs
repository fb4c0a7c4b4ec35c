//! What every driver test needs: a policy, limits, a work directory outside of what is backed up.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use backupy::config::{HostPolicy, PipelineLimits};
use backupy::drivers::{Context, Driver, DriverError, Dumped, Prepared, for_target};
use backupy::model::{Connection, Engine, Progress, Target, Trust};
use backupy::thread::Cancel;
use tempfile::TempDir;

/// Longer than any test should take; nothing waits for it but what hangs.
pub const LONG: Duration = Duration::from_secs(60);

pub struct Rig {
    pub dir: TempDir,
    pub policy: HostPolicy,
    pub limits: PipelineLimits,
    pub cancel: Cancel,
    pub progress: Mutex<Vec<Progress>>,
}

impl Rig {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            policy: HostPolicy {
                trust: Trust::Local,
                secrets_dir: None,
                allow_paths: None,
                allow_containers: None,
                allow_checks: None,
                allow_hooks: false,
                pg_bin_dir: None,
                mongo_bin_dir: None,
            },
            limits: PipelineLimits {
                min_free_bytes: 1 << 20,
                min_free_percent: 0,
                stuck_timeout: LONG,
                ..PipelineLimits::default()
            },
            cancel: Cancel::new().unwrap(),
            progress: Mutex::new(Vec::new()),
        }
    }

    pub fn remote() -> Self {
        let mut rig = Self::new();
        rig.policy.trust = Trust::Remote;
        rig
    }

    /// A path for data, outside the state directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn work_dir(&self) -> PathBuf {
        self.dir.path().join("state/work")
    }

    /// Files that a driver left in the work directory.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.work_dir())
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default()
    }

    /// Prepares and dumps into `out`; whatever happens, nothing may be left in the work directory.
    pub fn run_into(
        &self,
        target: &Target,
        out: &mut dyn Write,
    ) -> Result<(Prepared, Dumped, Option<String>), DriverError> {
        let result = self.attempt(target, out);
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new());
        result
    }

    fn attempt(
        &self,
        target: &Target,
        out: &mut dyn Write,
    ) -> Result<(Prepared, Dumped, Option<String>), DriverError> {
        let mut driver: Box<dyn Driver + Send> = for_target(target, &self.policy)?;
        let work_dir = self.work_dir();
        let progress = |progress| self.progress.lock().unwrap().push(progress);
        let cx = Context {
            cancel: &self.cancel,
            policy: &self.policy,
            limits: &self.limits,
            work_dir: &work_dir,
            progress: &progress,
        };
        let prepared = driver.prepare(&cx)?;
        let dumped = driver.dump(&cx, out)?;
        Ok((prepared, dumped, driver.dumped_version()))
    }

    /// As [`Rig::run_into`], into memory.
    pub fn run(&self, target: &Target) -> Result<(Vec<u8>, Prepared, Dumped), DriverError> {
        let mut out = Vec::new();
        let (prepared, dumped, _) = self.run_into(target, &mut out)?;
        assert_eq!(dumped.bytes, out.len() as u64);
        Ok((out, prepared, dumped))
    }
}

/// A sink that takes so many bytes and then fails.
pub struct Failing(pub usize);

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.0 {
            return Err(io::Error::other("the next stage is gone"));
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn target(engine: Engine, connection: Connection) -> Target {
    Target { id: "t".into(), engine, display_name: String::new(), connection }
}

pub fn sqlite_target(path: &Path) -> Target {
    let database = path.to_str().unwrap().to_owned();
    target(Engine::Sqlite, Connection { database, ..Connection::default() })
}
