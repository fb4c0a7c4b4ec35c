//! Tells people what happened, through every channel that the file names.
//!
//! ```text
//!             ┌─▶ queue ─▶ worker ─▶ on_failure (a command)
//! tell(what) ─┼─▶ queue ─▶ worker ─▶ a webhook, a mail server, Telegram       (one worker for each [[notify]])
//!             └─▶ queue ─▶ worker ─▶ pings                                    (one for all backups)
//! ```
//! Each channel has a queue of 64 messages and a thread of its own, so that one that hangs holds up no other. A try that
//! failed is repeated after 5 s, 30 s, 2 min and 10 min where that can help, then every 10 min for a day (a success: for an
//! hour, then it is old news), then given up, loudly. What waits when the process stops waits in the control plane's store (all but the command's, and the beginnings of runs) and is sent by
//! the next one. A message may so arrive twice, if the answer to it was lost. Whoever tells never waits for a channel.
//!
//! Addresses, tokens and passwords are secrets: no log, no error and no status holds them. They are looked up for each
//! try, so that a changed file needs no restart.

pub mod channel;
pub mod command;
pub mod email;
mod error;
pub mod event;
pub mod http;
pub mod ping;
mod queue;
pub mod shrink;
pub mod telegram;
#[cfg(test)]
mod tests;
pub mod webhook;
mod worker;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::never;
use serde_json::Value;

use crate::clock::{Deadline, unix_ms};
use crate::config::{HostPolicy, ProxySettings};
use crate::control::catalogue::Catalogue;
use crate::control::durable::random_hex;
use crate::drivers::secrets;
use crate::secret::Secret;
use crate::thread::Cancel;

pub use channel::{Channel, Way};
pub use command::OnFailure;
pub use error::DeliverError;
pub use event::{Failure, Kind, Message, Topic};
pub use worker::Tester;

use worker::Worker;

/// What every channel goes through.
#[derive(Debug, Clone)]
pub struct Means {
    /// A forward proxy.
    pub proxy: ProxySettings,
    /// Which references are followed.
    pub policy: HostPolicy,
}

/// What one try has at hand.
#[derive(Debug)]
pub struct Tools<'a> {
    proxy: &'a ProxySettings,
    policy: &'a HostPolicy,
    stop: &'a Cancel,
}

impl<'a> Tools<'a> {
    /// Tools whose waits `stop` ends.
    pub fn new(means: &'a Means, stop: &'a Cancel) -> Self {
        Self { proxy: &means.proxy, policy: &means.policy, stop }
    }

    fn secret(&self, reference: &Secret) -> Result<Secret, DeliverError> {
        secrets::resolve(reference, self.policy).map_err(DeliverError::Secret)
    }
}

/// All channels; dropping it ends them, a running command included.
///
/// No lock is held while something is written or waited for: whoever tells, asks or reloads holds up nobody else.
#[derive(Debug)]
pub struct Notifier {
    workers: Mutex<Vec<Arc<Worker>>>,
    /// Held while the channels are exchanged.
    changing: Mutex<()>,
    means: Means,
    kept: Option<Catalogue>,
    /// Messages so far: the order of those of one millisecond.
    count: AtomicU32,
}

impl Notifier {
    /// Starts the channels. With `kept`, messages wait over a restart; those of the last process are sent now.
    ///
    /// # Errors
    /// When there is no thread or descriptor left.
    pub fn start(
        channels: Vec<Channel>,
        means: Means,
        kept: Option<Catalogue>,
    ) -> io::Result<Self> {
        let mut waiting: HashMap<String, Vec<Message>> = HashMap::new();
        match kept.as_ref().map(Catalogue::kept_messages) {
            None => {}
            Some(Ok(found)) => {
                for (channel, message) in found {
                    waiting.entry(channel).or_default().push(message);
                }
            }
            Some(Err(error)) => log::error!("failed to look up waiting notifications: {error}"),
        }
        let (workers, changing) = (Mutex::default(), Mutex::default());
        let notifier = Self { workers, changing, means, kept, count: AtomicU32::new(0) };
        let now_ms = unix_ms();
        let mut workers = Vec::new();
        for channel in channels {
            let mut waiting = waiting.remove(&channel.name).unwrap_or_default();
            for old in waiting.extract_if(.., |message| message.is_old_news(now_ms)) {
                notifier.forget(&channel.name, &old.id);
            }
            workers.push(notifier.worker(channel, waiting)?);
        }
        *lock(&notifier.workers) = workers;
        for (channel, messages) in waiting {
            let count = messages.len();
            log::warn!("{count} notifications waited for {channel}, which the file does not name");
            messages.iter().for_each(|message| notifier.forget(&channel, &message.id));
        }
        Ok(notifier)
    }

    fn worker(&self, channel: Channel, waiting: Vec<Message>) -> io::Result<Arc<Worker>> {
        Worker::start(channel, self.means.clone(), self.kept.clone(), waiting).map(Arc::new)
    }

    fn forget(&self, channel: &str, id: &str) {
        if let Some(Err(error)) = self.kept.as_ref().map(|kept| kept.forget_message(channel, id)) {
            log::warn!("failed to forget a notification: {error}");
        }
    }

    fn workers(&self) -> Vec<Arc<Worker>> {
        lock(&self.workers).clone()
    }

    /// Takes another file's channels: what waits for one that stays is sent as the new file says. One stays if it leads
    /// to the same place, whatever its name is now; what waits for another is dropped, loudly.
    pub fn set_channels(&self, channels: Vec<Channel>) {
        let _changing = lock(&self.changing);
        let mut gone = self.workers();
        let mut staying: Vec<Option<Arc<Worker>>> = channels.iter().map(|_| None).collect();
        for by_name in [true, false] {
            for (stays, channel) in staying.iter_mut().zip(&channels) {
                let same = |worker: &Arc<Worker>| {
                    let was = worker.channel();
                    was.way.is_same_place(&channel.way) && (!by_name || was.name == channel.name)
                };
                if stays.is_none() {
                    *stays = gone.iter().position(same).map(|at| gone.remove(at));
                }
            }
        }
        *lock(&self.workers) = staying.iter().flatten().cloned().collect();
        gone.iter().for_each(|worker| worker.discard());
        let (mut workers, mut moved) = (Vec::new(), Vec::new());
        for (stays, channel) in staying.into_iter().zip(channels) {
            match stays {
                Some(worker) => {
                    moved.extend(worker.set_channel(channel));
                    workers.push(worker);
                }
                None => match self.worker(channel, Vec::new()) {
                    Ok(worker) => workers.push(worker),
                    Err(error) => {
                        log::error!("failed to start a thread for notifications: {error}");
                    }
                },
            }
        }
        // Two channels may have exchanged their names, and a message has the same id in both.
        let present: Vec<_> = workers.iter().flat_map(|worker| worker.records()).collect();
        for (channel, id) in moved.iter().filter(|record| !present.contains(record)) {
            self.forget(channel, id);
        }
        *lock(&self.workers) = workers;
    }

    /// Tells everybody who wants to hear it, never waiting for a channel.
    pub fn tell(&self, what: Failure) {
        let message = message(what, self.count.fetch_add(1, Ordering::Relaxed));
        self.workers().iter().for_each(|worker| worker.tell(&message));
    }

    /// How the channels stand, and what is wrong in words.
    pub fn status(&self) -> (Vec<Value>, Vec<String>) {
        let (values, problems): (Vec<_>, Vec<_>) =
            self.workers().iter().map(|worker| worker.status()).unzip();
        (values, problems.into_iter().flatten().collect())
    }

    /// Whether any channel took a message.
    pub fn has_told(&self) -> bool {
        self.workers().iter().any(|worker| worker.has_told())
    }

    /// For a test of every channel, or of one.
    pub fn testers(&self) -> Vec<Tester> {
        self.workers().iter().map(|worker| worker.tester()).collect()
    }

    /// Sends what is due for up to `grace`, or until `cut` is cancelled, then cuts short what is under way. What is kept
    /// nowhere is tried again within that time, and given up at its end.
    pub fn stop(&self, grace: Duration, cut: Option<&Cancel>) {
        let deadline = Deadline::after(grace);
        let cut = cut.map_or_else(never, |cut| cut.done().clone());
        let workers = self.workers();
        workers.iter().for_each(|worker| worker.close());
        workers.iter().for_each(|worker| worker.join(deadline, &cut));
    }
}

/// A message of this machine and moment.
fn message(what: Failure, count: u32) -> Message {
    let at_ms = unix_ms();
    let host = rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned();
    let random = random_hex(6).unwrap_or_default();
    Message {
        id: format!("{at_ms:012x}-{count:08x}-{random}"),
        at_ms,
        host,
        what,
        only: Vec::new(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a test message through a channel; of pings, one for each backup that has one. The first that fails ends it.
///
/// # Errors
/// When one does not arrive.
pub fn test(channel: &Channel, means: &Means, stop: &Cancel) -> Result<(), DeliverError> {
    let names: Vec<&str> = match &channel.way {
        Way::Pings(urls) => urls.keys().map(String::as_str).collect(),
        _ => vec!["backupy"],
    };
    names.into_iter().try_for_each(|name| {
        let (name, status) = (name.to_owned(), "test".to_owned());
        let message = message(Failure { name, status, ..Failure::default() }, 0);
        channel.deliver(&message, &Tools::new(means, stop))
    })
}
