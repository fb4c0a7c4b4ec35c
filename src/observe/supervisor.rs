//! What a service manager is told: sd_notify(3) and its watchdog, with nothing but a datagram socket.
//!
//! ```text
//! start ──READY=1──▶ serving ──(SIGHUP) RELOADING=1 … READY=1──▶ serving ──(stop) STOPPING=1──▶ end
//!                     │ STATUS=… whenever that changed; WATCHDOG=1 after each look that found everything alive
//! ```
//! The thread `supervise` exists only where somebody listens (`NOTIFY_SOCKET`). It sleeps until it is nudged
//! and, with a watchdog (`WATCHDOG_USEC`), until half its interval has passed: a look costs no disk write.
//! Whether the process is alive is for the owner to say ([`Vitals`]); a look that hangs is an answer, too.
//!
//! Nobody's health depends on this: a manager that does not listen is a line in the log. The variables stay in
//! this process; every program that it starts gets an environment of its own, but for a version on trial, which speaks for itself.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, never, select};

use crate::net::notify_address;
use crate::thread::{Cancel, spawn};

/// What a start may take at most until it says something again: an SD card with a store to be repaired is slow.
pub const START_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// How long the manager may take to accept a datagram.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest status line, in bytes.
const STATUS_MAX: usize = 300;
/// The shortest pause between two looks, whatever the manager asks for.
const LOOK_MIN: Duration = Duration::from_millis(100);
/// How long a look may take where no watchdog says so.
const FIRST_LOOK: Duration = Duration::from_secs(20);
/// On top of what the last steps of a stop take by themselves.
const STOP_MARGIN: Duration = Duration::from_secs(45);

/// The service manager as the environment names it. Clones talk to the same one; without one nothing is said.
#[derive(Debug, Clone, Default)]
pub struct Supervisor(Option<Arc<Manager>>);

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    /// READY=1 was sent.
    ready: AtomicBool,
    /// The stop has begun, which nothing takes back.
    stopping: AtomicBool,
}

/// What the owner of the process knows about it.
pub struct Vitals {
    /// Something that [`Vitals::status`] tells may have changed.
    pub changed: Receiver<()>,
    /// How things stand, in one line.
    pub status: Box<dyn Fn() -> String + Send>,
    /// Whether everything that must go on does, within the time given; why not. May hang itself.
    pub alive: Box<dyn Fn(Duration) -> Result<(), String> + Send>,
    /// The longest that a stop takes by itself.
    pub stop_within: Duration,
    /// Whether a stop only makes room for another version of this program in the same service.
    pub hands_over: Box<dyn Fn() -> bool + Send>,
}

impl Supervisor {
    /// The manager that `env` names, if any. What cannot be used is a warning.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let Some(name) = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self(None);
        };
        let watchdog = watchdog(env, std::process::id());
        match Manager::reach(&name, watchdog) {
            Ok(manager) => Self(Some(Arc::new(manager))),
            Err(error) => {
                log::warn!("failed to reach the service manager at {name}: {error}");
                Self(None)
            }
        }
    }

    /// Half the watchdog's interval, if there is a watchdog.
    fn look_every(&self) -> Option<Duration> {
        let watchdog = self.0.as_ref()?.watchdog?;
        Some((watchdog / 2).max(LOOK_MIN))
    }

    /// The start takes longer, for this reason: the manager shall have patience for so long. For one that takes over from
    /// another version the service is up and its watchdog runs.
    pub fn starting(&self, why: &str, patience: Duration) {
        if let Some(manager) = &self.0 {
            let status = one_line(why);
            let usec = patience.as_micros();
            let watchdog = manager.watchdog.map(|watchdog| watchdog.max(patience));
            let watchdog = watchdog_line(watchdog);
            manager.send(&format!("STATUS={status}\nEXTEND_TIMEOUT_USEC={usec}{watchdog}"));
        }
    }

    /// Settings are read again by `reload`.
    pub fn reloading(&self, reload: impl FnOnce()) {
        let Some(manager) = self.0.as_ref().filter(|manager| manager.is_serving()) else {
            return reload();
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_usec = Duration::try_from(now).map_or(0, |now| now.as_micros());
        manager.send(&format!("RELOADING=1\nMONOTONIC_USEC={now_usec}"));
        reload();
        // A stop may have come meanwhile, and that is what the manager shall go on believing.
        if manager.is_serving() {
            manager.send("READY=1");
        }
    }

    /// Starts the thread that says READY=1 and everything after it, if somebody listens. It ends with `over`.
    ///
    /// # Errors
    /// When the system refuses another thread.
    pub fn watch(
        &self,
        vitals: Vitals,
        stop: Cancel,
        over: Cancel,
    ) -> io::Result<Option<JoinHandle<()>>> {
        let Some(manager) = self.0.clone() else { return Ok(None) };
        let look_every = self.look_every();
        spawn("supervise", move || {
            Watch { manager, vitals, look_every, said: String::new() }.run(&stop, &over)
        })
        .map(Some)
    }
}

impl Manager {
    fn reach(name: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = notify_address(name)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let (ready, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { socket, address, watchdog, ready, stopping })
    }

    fn send(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            log::warn!("failed to tell the service manager: {error}");
        }
    }

    fn is_serving(&self) -> bool {
        self.ready.load(Ordering::SeqCst) && !self.stopping.load(Ordering::SeqCst)
    }
}

/// The thread.
struct Watch {
    manager: Arc<Manager>,
    vitals: Vitals,
    look_every: Option<Duration>,
    said: String,
}

impl Watch {
    fn run(mut self, stop: &Cancel, over: &Cancel) {
        let nothing = never();
        let mut look_at = Some(Instant::now());
        loop {
            let stopping = self.manager.stopping.load(Ordering::SeqCst);
            if stopping {
                // From here on the stop's own deadline counts.
                look_at = None;
            } else if stop.is_cancelled() {
                self.stopping();
                continue;
            }
            if look_at.is_some_and(|at| at <= Instant::now()) {
                look_at = self.look().map(|pause| Instant::now() + pause);
            }
            self.say_status();
            let timer = look_at
                .map_or_else(never, |at| after(at.saturating_duration_since(Instant::now())));
            select! {
                recv(self.vitals.changed) -> changed => if changed.is_err() { return },
                recv(if stopping { &nothing } else { stop.done() }) -> _ => {}
                recv(over.done()) -> _ => {
                    // Both may have come at once.
                    if !stopping {
                        self.stopping();
                    }
                    return;
                }
                recv(timer) -> _ => {}
            }
        }
    }

    /// Feeds the watchdog if everything is alive; the first time that makes the service ready. Returns the pause
    /// until the next look, if there is to be one.
    fn look(&mut self) -> Option<Duration> {
        let ready = self.manager.ready.load(Ordering::SeqCst);
        let pause = self.look_every.unwrap_or(FIRST_LOOK);
        if let Err(why) = (self.vitals.alive)(pause * 3 / 4) {
            match ready {
                true => log::error!("the watchdog is not fed: {why}"),
                false => log::warn!("not ready yet: {why}"),
            }
            return Some(pause / 8);
        }
        if ready {
            self.manager.send("WATCHDOG=1");
        } else {
            self.said = one_line(&(self.vitals.status)());
            // What the start changed about it.
            let watchdog = watchdog_line(self.manager.watchdog);
            self.manager.send(&format!("READY=1\nSTATUS={}\nWATCHDOG=1{watchdog}", self.said));
            self.manager.ready.store(true, Ordering::SeqCst);
        }
        self.look_every
    }

    fn stopping(&mut self) {
        self.manager.stopping.store(true, Ordering::SeqCst);
        if (self.vitals.hands_over)() {
            // For the manager the service goes on; STOPPING=1 would let it end what comes next.
            return self.manager.send("STATUS=making room for another version\nWATCHDOG=1");
        }
        let extend = self.vitals.stop_within + STOP_MARGIN;
        self.manager.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", extend.as_micros()));
    }

    fn say_status(&mut self) {
        if !self.manager.ready.load(Ordering::SeqCst) {
            return;
        }
        let status = one_line(&(self.vitals.status)());
        if status != self.said {
            self.manager.send(&format!("STATUS={status}"));
            self.said = status;
        }
    }
}

/// The watchdog's interval, if it is for this process. A supervisor that starts us through another process may
/// leave the pid out.
fn watchdog(env: &dyn Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
    let usec: u64 = env("WATCHDOG_USEC")?.parse().ok()?;
    let mine = env("WATCHDOG_PID").is_none_or(|theirs| theirs.parse() == Ok(pid));
    (mine && usec > 0).then(|| Duration::from_micros(usec))
}

/// What sets the manager's watchdog to an interval, if it has one.
fn watchdog_line(interval: Option<Duration>) -> String {
    interval.map_or_else(String::new, |it| format!("\nWATCHDOG_USEC={}", it.as_micros()))
}

/// At most [`STATUS_MAX`] bytes without anything that would end the line or begin another assignment.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=STATUS_MAX.min(line.len())).rev().find(|&at| line.is_char_boundary(at));
    line.truncate(end.unwrap_or(0));
    line
}

#[cfg(test)]
mod tests;
