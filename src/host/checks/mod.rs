//! Health checks of other services: when they are probed, how, and what came of it. Who is told is not known here.
//!
//! ```text
//! dispatch ── configure, run_now ──▶ checks ── spawns ──▶ probe-N (32 at most, one probe each)
//!     ▲                                 │  ▲                  │
//!     └── results of a second ──────────┘  └──── result ──────┘
//! ```
//! The thread `checks` exists only while a check is configured, and wakes up only for starts, ends and the end of the
//! second in which results are gathered: they leave in batches, because each batch is a write to the disk, which
//! may be an SD card. At most [`MAX_PENDING`] wait; then the oldest go.

mod cert;
mod fault;
mod line;
mod probe;
mod rules;
pub mod schedule;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, after, bounded, never, select};

use crate::clock::unix_ms;
use crate::config::{HostPolicy, ProxySettings, TlsSettings};
use crate::model::Check;
use crate::thread::{Cancel, Why, spawn, spawn_vital};
use probe::Prober;
use schedule::{MAX_PROBES, Schedule, Start};

/// Results are gathered for so long.
const BATCH: Duration = Duration::from_secs(1);
/// Results that make a batch at once.
const BATCH_RESULTS: usize = 64;
/// Results that wait for whoever takes them.
pub const MAX_PENDING: usize = 1_000;

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    /// The check.
    pub check_id: String,
    /// When it began, Unix milliseconds.
    pub ts_ms: u64,
    /// Whether it passed.
    pub ok: bool,
    /// From the start of the connect to the head of the answer, all redirects together; for a failure, all of it.
    pub latency_ms: u32,
    /// Why it failed, or a note; at most 500 characters, without the URL.
    pub error: String,
    /// HTTP status of the last answer; 0 without one.
    pub status_code: u32,
}

/// What probes need of this host.
#[derive(Debug, Clone)]
pub struct Means {
    /// How far checks may reach.
    pub policy: HostPolicy,
    /// For HTTPS.
    pub proxy: ProxySettings,
    /// Trust roots.
    pub tls: TlsSettings,
}

#[derive(Debug)]
enum Order {
    Configure(Vec<Check>),
    RunNow(String),
}

/// A probe that ended; without a result if it was stopped.
#[derive(Debug)]
struct Done {
    number: u64,
    took: Duration,
    result: Option<CheckResult>,
}

/// The thread `checks`; dropping it stops it and every probe, and joins them.
#[derive(Debug)]
pub struct Checks {
    orders: Sender<Order>,
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Checks {
    /// Starts the thread, without a check. Batches of results leave by `results`; what does not fit stays and is
    /// tried again a second later.
    ///
    /// # Errors
    /// When the system refuses a thread or a descriptor.
    pub fn start(means: &Means, results: Sender<Vec<CheckResult>>) -> io::Result<Self> {
        let (orders, received) = bounded(64);
        let stop = Cancel::new()?;
        let prober = Prober::new(&means.policy, means.proxy.clone(), means.tls.clone());
        let mut desk = Desk {
            schedule: Schedule::default(),
            epoch: Instant::now(),
            prober: Arc::new(prober),
            stop: stop.clone(),
            done: bounded(MAX_PROBES),
            probes: HashMap::new(),
            hurried: Vec::new(),
            pending: Vec::new(),
            flush_at: None,
            results,
        };
        let thread = spawn_vital("checks", move || desk.run(&received))?;
        Ok(Self { orders, stop, thread: Some(thread) })
    }

    /// Takes another set of checks, with unique ids; what did not change keeps its rhythm.
    pub fn configure(&self, checks: Vec<Check>) {
        // The thread takes orders whatever its probes do; it only ends with this.
        let _ = self.orders.send(Order::Configure(checks));
    }

    /// Probes one at once; its result does not wait for others. False if too many such wishes wait.
    pub fn run_now(&self, check_id: &str) -> bool {
        self.orders.try_send(Order::RunNow(check_id.to_owned())).is_ok()
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.stop.cancel(Why::Shutdown);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the checks thread panicked");
        }
    }
}

/// What the thread owns.
struct Desk {
    schedule: Schedule,
    epoch: Instant,
    prober: Arc<Prober>,
    stop: Cancel,
    done: (Sender<Done>, Receiver<Done>),
    probes: HashMap<u64, JoinHandle<()>>,
    /// Checks whose next result is waited for.
    hurried: Vec<String>,
    pending: Vec<CheckResult>,
    flush_at: Option<Instant>,
    results: Sender<Vec<CheckResult>>,
}

impl Desk {
    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            while let Some(start) = self.schedule.take(self.now_ms()) {
                self.begin(start);
            }
            let next = self.schedule.next_ms().map(|ms| self.epoch + Duration::from_millis(ms));
            let wake = next.into_iter().chain(self.flush_at).min();
            let timer =
                wake.map_or_else(never, |at| after(at.saturating_duration_since(Instant::now())));
            select! {
                recv(self.stop.done()) -> _ => break,
                recv(orders) -> order => match order {
                    Ok(Order::Configure(checks)) => {
                        self.schedule.configure(checks, self.now_ms());
                        self.hurried.retain(|id| self.schedule.has(id));
                    }
                    Ok(Order::RunNow(id)) if self.schedule.has(&id) => {
                        self.schedule.run_now(&id, self.now_ms());
                        self.hurried.retain(|other| *other != id);
                        self.hurried.push(id);
                    }
                    Ok(Order::RunNow(_)) => {}
                    Err(_) => break,
                },
                recv(self.done.1) -> done => if let Ok(done) = done { self.end(done) },
                recv(timer) -> _ => {}
            }
            if self.flush_at.is_some_and(|at| at <= Instant::now()) {
                self.flush();
            }
        }
        self.stop.cancel(Why::Shutdown);
        for (_, probe) in self.probes.drain() {
            let _ = probe.join();
        }
        self.pending.extend(self.done.1.try_iter().filter_map(|done| done.result));
        self.flush();
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn begin(&mut self, start: Start) {
        let Start { number, check } = start;
        let (prober, stop, done) = (self.prober.clone(), self.stop.clone(), self.done.0.clone());
        let id = check.id.clone();
        let began = Instant::now();
        let probe = spawn(&format!("probe-{number}"), move || {
            let result = catch_unwind(AssertUnwindSafe(|| prober.probe(&check, &stop)))
                .unwrap_or_else(|_| Some(failed(&check.id, "internal error: the probe panicked")));
            // There is a place for every probe that may run.
            let _ = done.send(Done { number, took: began.elapsed(), result });
        });
        match probe {
            Ok(probe) => {
                self.probes.insert(number, probe);
            }
            Err(error) => {
                let result = failed(&id, &format!("failed to start a thread for it: {error}"));
                self.end(Done { number, took: Duration::ZERO, result: Some(result) });
            }
        }
    }

    fn end(&mut self, done: Done) {
        if let Some(probe) = self.probes.remove(&done.number) {
            // It has said its last word.
            let _ = probe.join();
        }
        let took_ms = u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX);
        let wanted = self.schedule.done(done.number, took_ms, self.now_ms());
        let Some(result) = done.result.filter(|_| wanted) else { return };
        let hurried = self.hurried.contains(&result.check_id);
        self.hurried.retain(|id| *id != result.check_id);
        self.pending.push(result);
        if hurried || self.pending.len() >= BATCH_RESULTS {
            self.flush();
        } else {
            self.flush_at.get_or_insert_with(|| Instant::now() + BATCH);
        }
    }

    fn flush(&mut self) {
        self.flush_at = None;
        if self.pending.is_empty() {
            return;
        }
        match self.results.try_send(std::mem::take(&mut self.pending)) {
            Ok(()) => {}
            Err(TrySendError::Full(pending) | TrySendError::Disconnected(pending)) => {
                self.pending = pending;
                let many = self.pending.len().saturating_sub(MAX_PENDING);
                if many > 0 {
                    log::warn!("dropped {many} results of health checks: nobody takes them");
                    self.pending.drain(..many);
                }
                self.flush_at = Some(Instant::now() + BATCH);
            }
        }
    }
}

fn failed(check_id: &str, error: &str) -> CheckResult {
    CheckResult {
        check_id: check_id.to_owned(),
        ts_ms: unix_ms(),
        ok: false,
        latency_ms: 0,
        error: error.to_owned(),
        status_code: 0,
    }
}
