//! One channel: its queue, its thread, and how it stands.
//!
//! The thread sleeps until a message comes or one is due again, so that an idle channel costs no wake-up. A channel that
//! hangs or fails holds up its own messages only.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use serde_json::{Value, json};

use super::channel::{Channel, Way};
use super::error::DeliverError;
use super::event::Message;
use super::queue::{Next, Outcome, Queue};
use super::{Means, Tools, lock};
use crate::clock::{Deadline, unix_ms};
use crate::control::catalogue::Catalogue;
use crate::thread::{Cancel, Never, Why, spawn_vital};

/// How a channel stands.
#[derive(Debug, Default)]
struct Standing {
    ok_ms: Option<u64>,
    error_ms: Option<u64>,
    error: String,
    /// Whether the last try failed.
    failing: bool,
    /// Messages that never arrived.
    lost: u64,
}

/// What the thread and its owner share.
#[derive(Debug)]
struct Shared {
    channel: Mutex<Channel>,
    queue: Mutex<Queue>,
    standing: Mutex<Standing>,
    closing: AtomicBool,
    /// The channel is not in the file any more.
    gone: AtomicBool,
    means: Means,
    /// Where messages wait over a restart.
    kept: Option<Catalogue>,
}

/// A channel and its thread; dropping it stops it.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    nudge: Sender<()>,
    stop: Cancel,
    /// Disconnects when the thread has ended.
    ended: Receiver<Never>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts the thread over what waited at the end of the last process.
    pub(super) fn start(
        channel: Channel,
        means: Means,
        kept: Option<Catalogue>,
        waiting: Vec<Message>,
    ) -> io::Result<Self> {
        let mut queue = Queue::new(matches!(channel.way, Way::Pings(_)));
        let now = Instant::now();
        let gone: Vec<Message> =
            waiting.into_iter().flat_map(|message| queue.push(message, now)).collect();
        let kept = kept.filter(|_| channel.is_kept());
        let shared = Arc::new(Shared {
            channel: Mutex::new(channel),
            queue: Mutex::new(queue),
            standing: Mutex::default(),
            closing: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            means,
            kept,
        });
        gone.iter().for_each(|message| shared.forget(message));
        let (nudge, nudged) = bounded(1);
        let (alive, ended) = bounded(0);
        let stop = Cancel::new()?;
        let work = (shared.clone(), stop.clone());
        let thread = spawn_vital("notify", move || {
            let _alive: Sender<Never> = alive;
            run(&work.0, &nudged, &work.1);
        })?;
        Ok(Self { shared, nudge, stop, ended, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn channel(&self) -> Channel {
        lock(&self.shared.channel).clone()
    }

    /// Takes what the new file says; the records of the messages under its old name, if that changed, which are to be
    /// forgotten.
    pub(super) fn set_channel(&self, channel: Channel) -> Vec<(String, String)> {
        let renamed = self.shared.name() != channel.name;
        let old = if renamed { self.records() } else { Vec::new() };
        // What is taken from the queue meanwhile is forgotten under the new name.
        let queue = lock(&self.shared.queue);
        *lock(&self.shared.channel) = channel;
        if renamed {
            queue.messages().for_each(|message| self.shared.keep(message));
        }
        old
    }

    /// Name and id of every message that waits.
    pub(super) fn records(&self) -> Vec<(String, String)> {
        let name = self.shared.name();
        lock(&self.shared.queue).messages().map(|one| (name.clone(), one.id.clone())).collect()
    }

    /// Whether a message has arrived.
    pub(super) fn has_told(&self) -> bool {
        lock(&self.shared.standing).ok_ms.is_some()
    }

    /// Takes a message, if the channel wants it; never waits for the channel.
    pub(super) fn tell(&self, message: &Message) {
        if !lock(&self.shared.channel).wants(message) {
            return;
        }
        self.shared.keep(message);
        let gone = lock(&self.shared.queue).push(message.clone(), Instant::now());
        for gone in gone {
            self.shared.forget(&gone);
            if gone.kind().lasts() {
                let name = self.shared.name();
                log::error!("too much waits for {name}; it will not say: {}", gone.title());
                lock(&self.shared.standing).lost += 1;
            }
        }
        if self.shared.gone.load(Ordering::Acquire) {
            return self.drop_all();
        }
        // Full means that it will look anyway.
        let _ = self.nudge.try_send(());
    }

    /// For `status`: how it stands, and what is wrong in words.
    pub(super) fn status(&self) -> (Value, Option<String>) {
        let channel = self.channel();
        let waiting = lock(&self.shared.queue).waiting();
        let standing = lock(&self.shared.standing);
        let problem = standing.failing.then(|| {
            format!("notifications through {} do not arrive: {}", channel.name, standing.error)
        });
        let value = json!({
            "channel": channel.name,
            "kind": channel.way.kind(),
            "failing": standing.failing,
            "waiting": waiting,
            "lost": standing.lost,
            "last_ok_ms": standing.ok_ms,
            "last_error_ms": standing.error_ms,
            "last_error": standing.error_ms.map(|_| standing.error.as_str()),
        });
        (value, problem)
    }

    /// A try outside the queue; what comes of it counts for how the channel stands.
    pub(super) fn tester(&self) -> Tester {
        Tester(self.shared.clone())
    }

    /// Asks the thread to end once nothing waits, or only what is kept and not due.
    pub(super) fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        let _ = self.nudge.try_send(());
    }

    /// Waits for that until the deadline or the end of `cut`, then cuts short what is under way, and joins.
    pub(super) fn join(&self, deadline: Deadline, cut: &Receiver<Never>) {
        self.close();
        let Some(thread) = lock(&self.thread).take() else { return };
        select! {
            recv(self.ended) -> _ => {}
            recv(cut) -> _ => {}
            recv(crossbeam_channel::after(deadline.remaining())) -> _ => {}
        }
        self.stop.cancel(Why::Shutdown);
        if thread.join().is_err() {
            log::error!("the notify thread panicked");
        }
        let left = lock(&self.shared.queue).drain();
        if !left.is_empty() && self.shared.kept.is_none() {
            let name = self.shared.name();
            log::error!("{} notifications through {name} were given up at the stop", left.len());
        }
    }

    /// The channel is not in the file any more: ends at once, and forgets what waits.
    pub(super) fn discard(&self) {
        self.shared.gone.store(true, Ordering::Release);
        self.stop.cancel(Why::Requested);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic has ended the process.
            let _ = thread.join();
        }
        self.drop_all();
    }

    fn drop_all(&self) {
        let left = lock(&self.shared.queue).drain();
        for message in left {
            log::warn!("{} is gone; it will not say: {}", self.shared.name(), message.title());
            self.shared.forget(&message);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.join(Deadline::after(std::time::Duration::ZERO), &crossbeam_channel::never());
    }
}

/// Tries a channel without its queue.
#[derive(Debug)]
pub struct Tester(Arc<Shared>);

impl Tester {
    /// The channel.
    pub fn channel(&self) -> Channel {
        lock(&self.0.channel).clone()
    }

    /// Sends a test message now, and gives what went wrong in words.
    ///
    /// # Errors
    /// When it does not arrive.
    pub fn test(&self, stop: &Cancel) -> Result<(), String> {
        let result = super::test(&self.channel(), &self.0.means, stop);
        self.0.note(&result);
        result.map_err(|error| error.to_string())
    }
}

impl Shared {
    fn name(&self) -> String {
        lock(&self.channel).name.clone()
    }

    /// Makes a message survive a restart, as far as the disk lets it.
    fn keep(&self, message: &Message) {
        let Some(kept) = self.kept.as_ref().filter(|_| message.kind().lasts()) else {
            return;
        };
        if let Err(error) = kept.keep_message(&self.name(), message) {
            log::warn!("failed to keep a notification over a restart: {error}");
        }
    }

    fn forget(&self, message: &Message) {
        let Some(kept) = self.kept.as_ref().filter(|_| message.kind().lasts()) else {
            return;
        };
        if let Err(error) = kept.forget_message(&self.name(), &message.id) {
            log::warn!("failed to note that a notification is done with: {error}");
        }
    }

    fn note(&self, result: &Result<(), DeliverError>) {
        let mut standing = lock(&self.standing);
        match result {
            Ok(()) => {
                standing.ok_ms = Some(unix_ms());
                standing.failing = false;
            }
            Err(DeliverError::Stopped) => {}
            Err(error) => {
                standing.error_ms = Some(unix_ms());
                standing.error = error.to_string();
                standing.failing = true;
            }
        }
    }

    /// One try, and what becomes of the message.
    fn attempt(&self, message: &Message, stop: &Cancel) {
        let channel = lock(&self.channel).clone();
        let name = &channel.name;
        let result = channel.deliver(message, &Tools::new(&self.means, stop));
        self.note(&result);
        let error = match result {
            Ok(()) => {
                log::debug!("{name} was told: {}", message.title());
                lock(&self.queue).done(&message.id);
                return self.forget(message);
            }
            // It waits for the next process, or goes with its channel.
            Err(DeliverError::Stopped) => return,
            Err(error) => error,
        };
        let narrowed = error.later().and_then(|later| lock(&self.queue).narrow(&message.id, later));
        if let Some(narrowed) = narrowed {
            self.keep(&narrowed);
        }
        let outcome = lock(&self.queue).failed(&message.id, error.retry(), Instant::now());
        match outcome {
            Outcome::Again(pause) => log::warn!(
                "failed to tell {name}: {error}; trying again in {} s ({})",
                pause.as_secs(),
                message.title()
            ),
            Outcome::GivenUp(tries) => {
                let title = message.title();
                log::error!("gave up telling {name} after {tries} tries: {error} ({title})");
                lock(&self.standing).lost += 1;
                self.forget(message);
            }
        }
    }
}

fn run(shared: &Shared, nudged: &Receiver<()>, stop: &Cancel) {
    while !stop.is_cancelled() {
        let stale = lock(&shared.queue).stale(Instant::now());
        for message in &stale {
            log::warn!("{} was not told in time: {}", shared.name(), message.title());
            shared.forget(message);
        }
        let next = lock(&shared.queue).next(Instant::now());
        let closing = shared.closing.load(Ordering::Acquire);
        let due = match next {
            Next::Now(message) => {
                shared.attempt(&message, stop);
                continue;
            }
            Next::Nothing if closing => return,
            // What is kept is tried again by the next process.
            Next::At(_) if closing && shared.kept.is_some() => return,
            Next::At(due) => crossbeam_channel::at(due),
            Next::Nothing => crossbeam_channel::never(),
        };
        select! {
            recv(nudged) -> _ => {}
            recv(due) -> _ => {}
            recv(stop.done()) -> _ => return,
        }
    }
}
