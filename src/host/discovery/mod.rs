//! Which databases there are on this host: in containers, as services, as files. Read-only, and never a value of any
//! variable. Who is told is not known here.
//!
//! ```text
//! discover ── events ◀── Docker           news ──▶ pace ──▶ look ──▶ report ──▶ latest, on_report
//!                                         an hour ──┘        ▲
//! status ─────────────────────────────────────────────────────┘  (asked for by a person)
//! ```
//! The thread `discover` waits for the daemon's events and the hour. Where no daemon answers it wakes up to dial the
//! socket, in the end every minute, and for nothing else. Whatever the daemon does (missing, hanging, restarting, lying), it costs this thread a deadline and nobody else anything.

mod containers;
mod files;
pub mod hints;
pub mod images;
pub mod listeners;
mod look;
mod pace;
pub mod ports;
mod processes;
pub mod protect;
pub mod report;
#[cfg(test)]
mod tests;
pub mod view;
mod watch;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub use look::Settings;
pub use report::Report;

use self::look::Looker;
use self::watch::Watch;
use crate::thread::{Cancel, Why, spawn};

/// Gets every report of the thread.
pub type OnReport = Box<dyn Fn(&Report) + Send>;

/// What was found last, and the way to look again. Clones share it.
#[derive(Debug, Clone)]
pub struct Finder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    looker: Mutex<Looker>,
    latest: Mutex<Option<Arc<Report>>>,
    enabled: bool,
    /// The thread ended by a defect.
    ended: AtomicBool,
    socket: PathBuf,
}

impl Finder {
    /// Nothing was looked at yet.
    pub fn new(settings: Settings) -> Self {
        let (enabled, socket) = (settings.enabled, settings.docker_socket.clone());
        let looker = Mutex::new(Looker::new(settings));
        let ended = AtomicBool::new(false);
        Self(Arc::new(Shared { looker, latest: Mutex::new(None), enabled, ended, socket }))
    }

    /// Whether anybody may look unasked.
    pub fn is_enabled(&self) -> bool {
        self.0.enabled
    }

    /// What was found last, where somebody looks again by the hour: anything else would never age.
    pub fn latest(&self) -> Option<Arc<Report>> {
        lock(&self.0.latest).clone()
    }

    /// Looks at everything now: up to half a minute where the daemon hangs.
    pub fn look_now(&self, cancel: &Cancel) -> Arc<Report> {
        // Held until the report is out, so that the newer look is the one that stays.
        let mut looker = lock(&self.0.looker);
        let report = looker.look_now(cancel);
        self.keep(report)
    }

    fn keep(&self, report: Report) -> Arc<Report> {
        let report = Arc::new(report);
        let mut latest = lock(&self.0.latest);
        if self.0.enabled && !self.0.ended.load(Ordering::Relaxed) {
            *latest = Some(report.clone());
        }
        report
    }

    /// Nobody will look by the hour any more.
    fn end(&self) {
        let mut latest = lock(&self.0.latest);
        self.0.ended.store(true, Ordering::Relaxed);
        *latest = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread `discover`; dropping it stops and joins it.
#[derive(Debug)]
pub struct Discovery {
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Discovery {
    /// Starts the thread, or none where discovery is switched off.
    ///
    /// # Errors
    /// When the system refuses a thread or a descriptor.
    pub fn start(finder: &Finder, on_report: OnReport) -> io::Result<Self> {
        let stop = Cancel::new()?;
        if !finder.is_enabled() {
            return Ok(Self { stop, thread: None });
        }
        let mut watch = Watch::new(finder.clone(), on_report, stop.clone());
        let finder = finder.clone();
        // Nothing depends on this thread, so its end is not the process's.
        let thread = spawn("discover", move || {
            if catch_unwind(AssertUnwindSafe(|| watch.run())).is_err() {
                finder.end();
                log::error!(
                    "the discovery of databases ended by a defect; restart to have it again"
                );
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.stop.cancel(Why::Shutdown);
        if let Some(thread) = self.thread.take() {
            // It has caught its own panics.
            let _ = thread.join();
        }
    }
}
