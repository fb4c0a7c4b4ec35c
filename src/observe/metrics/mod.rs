//! What Prometheus sees: runs and checks as they were counted here, and how things stand at the moment of a scrape.
//!
//! A [`Metrics`] is handed to whoever has something to count: dispatch tells it about the configuration, the ends of
//! runs (once they are durable) and the results of checks. Counters begin at 0 with the process; when a job last
//! succeeded comes from the table of runs. Only what is configured has series, and at most [`MAX_JOBS`] and
//! [`MAX_CHECKS`] of it; a run of any other job counts under an empty `job_id`.
//!
//! It never waits for anybody but its own lock, so that a scrape also works while dispatch is stuck.

pub mod endpoint;
mod page;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::calendar::cron::CronLine;
use crate::clock::unix_ms;
use crate::host::checks::CheckResult;
use crate::model::AgentConfig;
use crate::runs::state::{EndKind, Outcome, Run};
use crate::runs::table::LastResults;
use text::Histogram;

/// Jobs with series of their own.
pub const MAX_JOBS: usize = 500;
/// Checks with series of their own.
pub const MAX_CHECKS: usize = 500;

/// Bounds of a run's duration, in seconds.
const DURATIONS: &[f64] = &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0];
/// Bounds of an artifact's size, in bytes.
const SIZES: &[f64] =
    &[1_048_576.0, 10_485_760.0, 104_857_600.0, 1_073_741_824.0, 10_737_418_240.0];

/// The interval of a job whose configuration has no cron line, from whoever schedules it.
pub type Intervals = Box<dyn Fn(&str) -> Option<Duration> + Send + Sync>;

/// Which binary this is.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// Its version.
    pub version: &'static str,
    /// The commit it was built from.
    pub commit: &'static str,
}

/// The connection to the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// There is a session.
    Connected,
    /// One is being opened.
    Connecting,
    /// Neither: the next attempt waits for its time.
    Disconnected,
}

/// What is not counted but looked at when a page is made.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The connection.
    pub connection: Connection,
    /// Sessions after the first one.
    pub reconnects: u64,
    /// Messages that wait for their delivery.
    pub pending: u64,
    /// What was dropped from a full queue, by kind.
    pub dropped: [(&'static str, u64); 3],
    /// The configuration that is held.
    pub config_version: u64,
    /// Databases on this host that no job backs up, where that is known.
    pub unprotected: Option<usize>,
}

/// The numbers; clones are the same.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    build: Build,
    intervals: Option<Intervals>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<String, JobSeries>,
    /// Ends of runs whose job has no series.
    other_runs: Ends,
    checks: BTreeMap<String, CheckSeries>,
}

#[derive(Debug)]
struct JobSeries {
    cron: Option<CronLine>,
    /// When this process saw it first, Unix milliseconds.
    seen_ms: u64,
    runs: Ends,
    duration: Histogram,
    size: Histogram,
    first_end_ms: u64,
    last_success_ms: u64,
}

#[derive(Debug)]
struct CheckSeries {
    ok: bool,
    latency_ms: u32,
}

/// Runs by how they ended.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    success: u64,
    failed: u64,
    cancelled: u64,
}

impl Ends {
    fn count(&mut self, kind: EndKind) {
        match kind {
            EndKind::Completed => self.success += 1,
            EndKind::Failed => self.failed += 1,
            EndKind::Cancelled => self.cancelled += 1,
        }
    }

    fn by_status(self) -> [(&'static str, u64); 3] {
        [("success", self.success), ("failed", self.failed), ("cancelled", self.cancelled)]
    }
}

impl JobSeries {
    fn new(now_ms: u64) -> Self {
        Self {
            cron: None,
            seen_ms: now_ms,
            runs: Ends::default(),
            duration: Histogram::new(DURATIONS),
            size: Histogram::new(SIZES),
            first_end_ms: 0,
            last_success_ms: 0,
        }
    }

    /// When it is overdue without another success: after the second time that its schedule came round since the last
    /// one; before any, since its first run ended or this process saw it.
    fn overdue_after_ms(&self, every: Option<Duration>) -> Option<u64> {
        let since = [self.last_success_ms, self.first_end_ms, self.seen_ms];
        let since = since.into_iter().find(|ms| *ms != 0)?;
        match &self.cron {
            Some(cron) => cron.next_after(cron.next_after(since)?),
            None => {
                let every_ms = u64::try_from(every?.as_millis()).ok()?;
                Some(since.saturating_add(every_ms.saturating_mul(2)))
            }
        }
    }
}

impl Metrics {
    /// Nothing counted yet. `intervals` is asked about jobs that have no cron line.
    pub fn new(build: Build, intervals: Option<Intervals>) -> Self {
        Self(Arc::new(Inner { build, intervals, state: Mutex::default() }))
    }

    /// Another configuration: series of what is no longer in it end.
    pub fn configure(&self, config: &AgentConfig, last: &BTreeMap<String, LastResults>) {
        if config.jobs.len() > MAX_JOBS || config.checks.len() > MAX_CHECKS {
            log::warn!(
                "metrics show {MAX_JOBS} jobs and {MAX_CHECKS} checks at most; the configuration has {} and {}",
                config.jobs.len(),
                config.checks.len()
            );
        }
        let (now_ms, mut state) = (unix_ms(), self.state());
        let mut old = std::mem::take(&mut state.jobs);
        for job in config.jobs.iter().take(MAX_JOBS) {
            let mut series = old.remove(&job.id).unwrap_or_else(|| JobSeries::new(now_ms));
            if series.cron.as_ref().is_none_or(|cron| cron.text() != job.cron) {
                series.cron = CronLine::parse(&job.cron).ok();
            }
            if let Some(last) = last.get(&job.id) {
                series.first_end_ms = last.first_end_ms;
                series.last_success_ms = last.last_success_ms;
            }
            state.jobs.insert(job.id.clone(), series);
        }
        state.checks.retain(|id, _| config.checks.iter().any(|check| check.id == *id));
    }

    /// A run has a new state, durably: counts it if that is its end.
    pub fn run_changed(&self, run: &Run) {
        let Some(ended) = run.ended() else { return };
        let mut state = self.state();
        let State { jobs, other_runs, .. } = &mut *state;
        let Some(series) = jobs.get_mut(&run.job_id) else {
            return other_runs.count(ended.outcome.kind());
        };
        series.runs.count(ended.outcome.kind());
        if let Outcome::Completed(stored) = &ended.outcome {
            series.duration.observe(stored.duration_ms as f64 / 1e3);
            series.size.observe(stored.size_bytes as f64);
            series.last_success_ms = ended.at_ms;
        }
        if series.first_end_ms == 0 {
            series.first_end_ms = ended.at_ms;
        }
    }

    /// A check that is configured was probed.
    pub fn checked(&self, result: &CheckResult) {
        let checks = &mut self.state().checks;
        if checks.len() < MAX_CHECKS || checks.contains_key(&result.check_id) {
            let series = CheckSeries { ok: result.ok, latency_ms: result.latency_ms };
            checks.insert(result.check_id.clone(), series);
        }
    }

    /// The intervals of the jobs without a cron line. Asked without our lock: whoever answers has one of its own.
    fn intervals(&self) -> BTreeMap<String, Duration> {
        let Some(interval) = &self.0.intervals else { return BTreeMap::new() };
        let jobs = self
            .state()
            .jobs
            .iter()
            .filter(|(_, series)| series.cron.is_none())
            .map(|(id, _)| id.clone())
            .collect::<Vec<_>>();
        jobs.into_iter().filter_map(|id| interval(&id).map(|every| (id, every))).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("build", &self.0.build).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
