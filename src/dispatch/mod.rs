//! The thread that owns the runs: it takes commands, admits, starts, cancels and ends runs, and publishes
//! what came of them.
//!
//! One closed [`Event`] enum, one `select!`: [`Dispatch::next_event`] waits, [`Dispatch::handle_event`] acts.
//! The order is always the same: decide (pure), make durable together with the report, then act.
//! Dispatch lives on across sessions; a lost connection is an event like any other.

mod abandoned;
pub mod admission;
mod checks;
mod commands;
mod messages;
mod recovery;
mod results;
pub mod retry;
mod snapshot;
mod starting;
#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, never, select};
use serde_json::Value;

use crate::calendar::window::Window;
use crate::clock::unix_ms;
use crate::host::checks::{CheckResult, Checks, Means};
use crate::host::discovery::protect::Backup;
use crate::host::update::{Order, Restart, Updater};
use crate::link::{self, Slots};
use crate::model::AgentConfig;
use crate::observe::metrics::Metrics;
use crate::observe::tap::Line;
use crate::outbox::{Message, Outbox, OutboxError};
use crate::runs::state::Run;
use crate::runs::table::{Table, TableError};
use crate::runs::worker::{CredsCell, OnProgress, Report, Workshop};
use crate::store::highwater::{Highwater, OpenRun};
use crate::store::{Batch, Store, StoreError};
use crate::thread::{Cancel, Never, Why};

pub use snapshot::{of_stopped, overdue_after};
pub use update::Ordered;

/// Open runs and undelivered results together: beyond that RunBackup is refused.
const MAX_OPEN: usize = 1_000;
/// Longest id of a run, a job or a check that is accepted, in bytes: thousands of them stay in memory.
const MAX_ID_BYTES: usize = 1 << 10;
/// Batches of check results that wait; more stay with the checks.
const CHECK_BATCHES: usize = 4;
/// Runs at the same time, whatever the configuration says.
const MAX_PARALLEL: usize = 16;
/// Pause before something that the store refused is tried again.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Pause between two looks for records that are too old.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3_600);
/// How long a cancelled run may take to end before the process stops without it.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);
/// Key of the configuration in [`Space::Config`].
const CONFIG_KEY: &[u8] = b"agent";

/// Everything that dispatch reacts to.
#[derive(Debug)]
pub enum Event {
    /// From the link.
    Link(link::Event),
    /// An attempt ended.
    Report(Report),
    /// Health checks have results.
    Checked(Vec<CheckResult>),
    /// The log has something for the control plane.
    Log(Line),
    /// Somebody asks how things stand.
    Query(Sender<Value>),
    /// Somebody at the host wants another version of this program.
    Ordered(Ordered),
    /// A new version arrived, or did not; `None` when the thread that gets it died.
    Obtained(Option<update::Obtained>),
    /// The process shall stop.
    Stop,
    /// A pause, a window, a timeout or a retry is over.
    Timer,
}

/// What dispatch cannot start without.
#[derive(Debug)]
pub enum DispatchError {
    /// The table of runs.
    Table(TableError),
    /// The store.
    Store(StoreError),
    /// The outbox.
    Outbox(OutboxError),
    /// The configuration in the store is not readable.
    Config(String),
}

impl fmt::Display for DispatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DispatchError::Table(error) => error.fmt(f),
            DispatchError::Store(error) => error.fmt(f),
            DispatchError::Outbox(error) => error.fmt(f),
            DispatchError::Config(error) => {
                write!(f, "failed to read the stored configuration: {error}")
            }
        }
    }
}

impl std::error::Error for DispatchError {}

impl From<TableError> for DispatchError {
    fn from(error: TableError) -> Self {
        DispatchError::Table(error)
    }
}

impl From<StoreError> for DispatchError {
    fn from(error: StoreError) -> Self {
        DispatchError::Store(error)
    }
}

impl From<OutboxError> for DispatchError {
    fn from(error: OutboxError) -> Self {
        DispatchError::Outbox(error)
    }
}

/// What dispatch is made of.
#[derive(Debug)]
pub struct Parts {
    /// Holds runs, configuration and queue.
    pub store: Store,
    /// Takes reports.
    pub outbox: Outbox,
    /// Takes progress.
    pub slots: Slots,
    /// What attempts need.
    pub workshop: Arc<Workshop>,
    /// What health checks need.
    pub checks: Means,
    /// The directory of the high-water file.
    pub state_dir: PathBuf,
    /// Messages of the link.
    pub link_events: Receiver<link::Event>,
    /// Asks the process to stop.
    pub stop: Cancel,
    /// How long runs may go on after that.
    pub stop_grace: Duration,
    /// Level to go back to when the configuration names none.
    pub log_level: log::LevelFilter,
    /// Warnings and errors to tell the control plane.
    pub log_lines: Receiver<Line>,
    /// The versions of this program.
    pub updater: Arc<Updater>,
    /// Told when another version shall run.
    pub restart: Restart,
    /// Counts ends of runs and results of checks.
    pub metrics: Metrics,
}

/// What other threads may see without asking: the heartbeat needs it.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<SharedState>>);

#[derive(Debug, Default)]
struct SharedState {
    config_version: u64,
    active_jobs: Vec<String>,
    backups: Arc<[Backup]>,
    /// Nudged at every change.
    watcher: Option<Sender<()>>,
}

impl Shared {
    /// Version of the configuration that is held.
    pub fn config_version(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).config_version
    }

    /// Ids of the jobs that are running.
    pub fn active_jobs(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).active_jobs.clone()
    }

    /// What the jobs reach: which databases are protected.
    pub fn backups(&self) -> Arc<[Backup]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).backups.clone()
    }

    /// Nudges this channel whenever one of these changes.
    pub fn watch(&self, watcher: Sender<()>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).watcher = Some(watcher);
    }

    fn set(&self, config_version: u64, active_jobs: Vec<String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.config_version, state.active_jobs) = (config_version, active_jobs);
        if let Some(watcher) = &state.watcher {
            // Full: it will look anyway.
            let _ = watcher.try_send(());
        }
    }

    fn set_backups(&self, backups: Vec<Backup>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).backups = backups.into();
    }
}

/// The owner of the runs.
pub struct Dispatch {
    store: Store,
    outbox: Outbox,
    slots: Slots,
    workshop: Arc<Workshop>,
    state_dir: PathBuf,
    table: Table,
    config: AgentConfig,
    window: Option<Window>,
    log_level: log::LevelFilter,
    shared: Shared,
    metrics: Metrics,
    on_progress: OnProgress,

    check_means: Means,
    checks: Option<Checks>,
    checked: (Sender<Vec<CheckResult>>, Receiver<Vec<CheckResult>>),
    last_checks: checks::LastChecks,
    running: BTreeMap<String, Running>,
    /// Ends of pauses, for runs that wait for another attempt.
    pauses: BTreeMap<String, Instant>,
    /// Decisions that could not be made durable yet.
    unsaved: Vec<results::Decision>,
    retry_unsaved_at: Option<Instant>,
    /// The high-water file could not be written since the runs that are open last changed.
    highwater_stale: bool,
    prune_at: Instant,
    admit_at: Option<Instant>,
    next_name: u64,
    abandoned: abandoned::Abandoned,
    updates: update::Updates,

    link_events: Receiver<link::Event>,
    log_lines: Receiver<Line>,
    reports: (Sender<Report>, Receiver<Report>),
    queries: Receiver<Sender<Value>>,
    orders: Receiver<Ordered>,
    _here: Sender<Never>,
    stop: Cancel,
    stop_grace: Duration,
    stopping: Option<Stopping>,
}

/// An attempt under way.
struct Running {
    job_id: String,
    cancel: Cancel,
    /// Ends the post-hooks.
    hurry: Cancel,
    /// The outcome stands, only post-hooks are left.
    finishing: Arc<AtomicBool>,
    /// A cancel came while post-hooks ran.
    asked: bool,
    creds: CredsCell,
    thread: JoinHandle<()>,
    deadline: Option<Instant>,
}

impl Running {
    fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::SeqCst)
    }

    /// Somebody wants it to end. Post-hooks may have a service to start again, so they end when asked twice.
    fn cancel(&mut self) {
        if !self.is_finishing() {
            self.cancel.cancel(Why::Requested);
        } else if self.asked || self.cancel.is_cancelled() {
            self.hurry.cancel(Why::Requested);
        }
        self.asked = true;
    }
}

/// A stop under way.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    /// Until then runs may go on; afterwards they are cancelled.
    grace_until: Instant,
    /// Until then cancelled runs may take to end.
    give_up_at: Instant,
}

/// Asks dispatch how things stand; it is also the proof that dispatch and store are alive.
#[derive(Debug, Clone)]
pub struct Queries {
    ask: Sender<Sender<Value>>,
    order: Sender<Ordered>,
    /// Disconnects with dispatch: a question that nobody took stays in its channel and would look alive.
    gone: Receiver<Never>,
}

impl Queries {
    /// The snapshot, or `None` when dispatch does not answer within `timeout`.
    pub fn snapshot(&self, timeout: Duration) -> Option<Value> {
        let (answer, answers) = bounded(1);
        self.ask.send_timeout(answer, timeout).ok()?;
        select! {
            recv(answers) -> answer => answer.ok(),
            // The answer may have been its last word.
            recv(self.gone) -> _ => answers.try_recv().ok(),
            default(timeout) => None,
        }
    }

    /// Orders another version; the reason when it is refused, `None` when dispatch does not answer in time.
    pub fn order(&self, order: Order, timeout: Duration) -> Option<Result<(), String>> {
        let (answer, answers) = bounded(1);
        self.order.send_timeout(Ordered { order, answer }, timeout).ok()?;
        select! {
            recv(answers) -> answer => answer.ok(),
            recv(self.gone) -> _ => answers.try_recv().ok(),
            default(timeout) => None,
        }
    }
}

impl Dispatch {
    /// Reads the state and settles what the last process left: interrupted runs, lost state.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn open(parts: Parts) -> Result<(Self, Queries, Shared), DispatchError> {
        let newest = recovery::skip_entry_ids(&parts.outbox);
        let table = Table::load(parts.store.clone())?;
        let config = commands::load_config(&parts.store)?;
        let (ask, queries) = bounded(4);
        let (order, orders) = bounded(4);
        let (here, gone) = bounded(0);
        let shared = Shared::default();
        let on_progress = messages::progress_reporter(parts.slots.clone());
        let mut dispatch = Self {
            store: parts.store,
            outbox: parts.outbox,
            slots: parts.slots,
            workshop: parts.workshop,
            state_dir: parts.state_dir,
            table,
            config: AgentConfig::default(),
            window: None,
            log_level: parts.log_level,
            shared: shared.clone(),
            metrics: parts.metrics,
            on_progress,
            check_means: parts.checks,
            checks: None,
            checked: bounded(CHECK_BATCHES),
            last_checks: BTreeMap::new(),
            running: BTreeMap::new(),
            pauses: BTreeMap::new(),
            unsaved: Vec::new(),
            retry_unsaved_at: None,
            highwater_stale: false,
            prune_at: Instant::now(),
            admit_at: None,
            next_name: 1,
            abandoned: abandoned::Abandoned::default(),
            updates: update::Updates::new(parts.updater, parts.restart),
            link_events: parts.link_events,
            log_lines: parts.log_lines,
            reports: bounded(MAX_PARALLEL * 2),
            queries,
            orders,
            _here: here,
            stop: parts.stop,
            stop_grace: parts.stop_grace,
            stopping: None,
        };
        dispatch.use_config(config);
        dispatch.recover(newest)?;
        dispatch.resume_update()?;
        Ok((dispatch, Queries { ask, order, gone }, shared))
    }

    /// Works until the process shall stop and the runs have ended or been given up.
    pub fn run(mut self) {
        self.admit();
        while !self.finished() {
            let event = self.next_event();
            self.handle_event(event);
        }
        self.leave();
    }

    /// Waits for whatever comes first.
    fn next_event(&self) -> Event {
        let timer = self
            .next_timer()
            .map_or_else(never, |at| after(at.saturating_duration_since(Instant::now())));
        // Once stopping, the token is always ready; it has said what it had to say.
        let nothing = never();
        let stop = if self.stopping.is_some() { &nothing } else { self.stop.done() };
        select! {
            recv(self.reports.1) -> report => report.map_or(Event::Timer, Event::Report),
            recv(self.checked.1) -> results => results.map_or(Event::Timer, Event::Checked),
            recv(self.link_events) -> event => event.map_or(Event::Timer, Event::Link),
            recv(self.queries) -> query => query.map_or(Event::Timer, Event::Query),
            recv(self.orders) -> order => order.map_or(Event::Timer, Event::Ordered),
            recv(self.updates.obtained()) -> obtained => Event::Obtained(obtained.ok()),
            recv(self.log_lines) -> line => line.map_or(Event::Timer, Event::Log),
            recv(stop) -> _ => Event::Stop,
            recv(timer) -> _ => Event::Timer,
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Link(event) => self.on_link(event),
            Event::Report(report) => self.on_report(report),
            Event::Checked(results) => self.on_checked(results),
            Event::Log(line) => self.on_log(&line),
            Event::Query(answer) => {
                // A caller that no longer waits is not an error.
                let _ = answer.try_send(self.snapshot());
            }
            Event::Ordered(ordered) => self.on_ordered(ordered),
            Event::Obtained(obtained) => self.on_obtained(obtained),
            Event::Stop => self.on_stop(),
            Event::Timer => {}
        }
        self.on_time();
    }

    /// Everything that becomes due by time alone.
    fn on_time(&mut self) {
        let now = Instant::now();
        if self.retry_unsaved_at.is_some_and(|at| at <= now) {
            self.save_unsaved();
        }
        for running in self.running.values() {
            if !running.is_finishing() && running.deadline.is_some_and(|deadline| deadline <= now) {
                running.cancel.cancel(Why::Timeout);
            }
        }
        if self.stopping.is_some_and(|stopping| stopping.grace_until <= now) {
            for running in self.running.values() {
                running.cancel.cancel(Why::Shutdown);
                if running.cancel.why() != Some(Why::Shutdown) {
                    running.hurry.cancel(Why::Shutdown);
                }
            }
        }
        if self.prune_at <= now {
            self.prune(now);
        }
        self.pauses.retain(|_, until| *until > now);
        self.go_on_with_update(now);
        self.admit();
    }

    fn next_timer(&self) -> Option<Instant> {
        let deadlines = self
            .running
            .values()
            .filter(|running| !running.cancel.is_cancelled() && !running.is_finishing())
            .filter_map(|running| running.deadline);
        let stopping = self.stopping.map(|stopping| {
            let all_told = self.running.values().all(|running| {
                running.cancel.why() == Some(Why::Shutdown) || running.hurry.is_cancelled()
            });
            if all_told { stopping.give_up_at } else { stopping.grace_until }
        });
        let update = self.updates.next_timer();
        [self.retry_unsaved_at, self.admit_at, Some(self.prune_at), stopping, update]
            .into_iter()
            .flatten()
            .chain(deadlines)
            .min()
    }

    fn on_stop(&mut self) {
        let now = Instant::now();
        let grace_until = now + self.stop_grace;
        self.stopping = Some(Stopping { grace_until, give_up_at: grace_until + CANCEL_PATIENCE });
        self.stop_checks();
        self.updates.stop();
        if !self.running.is_empty() {
            log::info!(
                "stopping: {} running backups have {} s to finish",
                self.running.len(),
                self.stop_grace.as_secs()
            );
        }
    }

    fn finished(&self) -> bool {
        let Some(stopping) = self.stopping else { return false };
        let idle = self.running.is_empty() && self.unsaved.is_empty();
        idle || stopping.give_up_at <= Instant::now()
    }

    fn leave(mut self) {
        self.abandoned.leave();
        self.updates.leave();
        if self.running.is_empty() && self.unsaved.is_empty() {
            return;
        }
        // They stay `running` in the table, which the next start resumes.
        log::warn!(
            "stopping without {} runs that did not end in time",
            self.running.len() + self.unsaved.len()
        );
    }

    fn prune(&mut self, now: Instant) {
        let config = &self.config;
        let is_job = |job_id: &str| config.jobs.iter().any(|job| job.id == job_id);
        self.prune_at = now + PRUNE_INTERVAL;
        match self.table.prune(unix_ms(), &is_job) {
            Ok(true) => self.prune_at = now,
            Ok(false) => {}
            Err(error) => log::warn!("failed to prune old runs: {error}"),
        }
    }

    /// One atomic durable step: the runs' new states and the messages about them; then both apply.
    fn commit(&mut self, runs: Vec<Run>, messages: Vec<Message>) -> Result<(), DispatchError> {
        let mut batch = self.store.batch();
        for run in &runs {
            self.table.stage(&mut batch, run)?;
        }
        self.publish(batch, messages)?;
        for run in runs {
            let given_up = self.upload_to_give_up(&run);
            let run_id = run.run_id.clone();
            self.metrics.run_changed(&run);
            self.table.apply(run);
            self.give_up(&run_id, given_up);
        }
        if self.table.is_overfull() {
            self.prune_at = Instant::now();
        }
        self.share();
        Ok(())
    }

    fn publish(&mut self, batch: Batch, messages: Vec<Message>) -> Result<(), DispatchError> {
        Ok(self.outbox.publish(batch, messages)?)
    }

    /// Writes which runs are open beside the store, so that a store that went back in time is noticed.
    fn save_highwater(&mut self) -> Result<(), DispatchError> {
        self.highwater_stale = true;
        let open_runs = self
            .table
            .open()
            .map(|run| OpenRun { run_id: run.run_id.clone(), job_id: run.job_id.clone() })
            .collect();
        let mark = Highwater {
            store_id: self.store.id().to_owned(),
            last_entry_id: self.outbox.last_durable_id(),
            open_runs,
        };
        mark.save(&self.state_dir)?;
        self.highwater_stale = false;
        Ok(())
    }

    fn share(&self) {
        let jobs = self.running.values().map(|running| running.job_id.clone()).collect();
        self.shared.set(self.config.version, jobs);
    }
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatch").field("open", &self.table.open_count()).finish_non_exhaustive()
    }
}
