//! Tells people what happened, through every channel that the file names.
//!
//! ```text
//!             ┌─▶ queue ─▶ worker ─▶ on_failure (a command)
//! tell(what) ─┼─▶ queue ─▶ worker ─▶ a webhook, a mail server, Telegram       (one worker for each [[notify]])
//!             └─▶ queue ─▶ worker ─▶ pings                                    (one for all backups)
//! ```
//! Each channel has a queue of 64 messages and a thread of its own, so that one that hangs holds up no other. A try that
//! failed is repeated after 5 s, 30 s, 2 min and 10 min where that can help, then given up, loudly. What waits when the
//! process stops waits in the control plane's store (all but the command's, and the beginnings of runs) and is sent by
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
use std::time::Duration;

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
#[derive(Debug)]
pub struct Notifier {
    workers: Vec<Worker>,
    means: Means,
    kept: Option<Catalogue>,
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
        let mut notifier = Self { workers: Vec::new(), means, kept };
        for channel in channels {
            let waiting = waiting.remove(&channel.name).unwrap_or_default();
            notifier.add(channel, waiting)?;
        }
        for (channel, messages) in waiting {
            let count = messages.len();
            log::warn!("{count} notifications waited for {channel}, which the file does not name");
            for message in messages {
                if let Some(Err(error)) =
                    notifier.kept.as_ref().map(|kept| kept.forget_message(&channel, &message.id))
                {
                    log::warn!("failed to forget a notification: {error}");
                }
            }
        }
        Ok(notifier)
    }

    fn add(&mut self, channel: Channel, waiting: Vec<Message>) -> io::Result<()> {
        let worker = Worker::start(channel, self.means.clone(), self.kept.clone(), waiting)?;
        self.workers.push(worker);
        Ok(())
    }

    /// Takes another file's channels: what waits for one that stays is sent as the new file says.
    pub fn set_channels(&mut self, channels: Vec<Channel>) {
        let mut old = std::mem::take(&mut self.workers);
        for channel in channels {
            // A command's messages are kept nowhere, so that a channel of another kind is another one.
            let same = |worker: &Worker| {
                let was = worker.channel();
                was.name == channel.name && was.way.kind() == channel.way.kind()
            };
            if let Some(at) = old.iter().position(same) {
                let worker = old.remove(at);
                worker.set_channel(channel);
                self.workers.push(worker);
            } else if let Err(error) = self.add(channel, Vec::new()) {
                log::error!("failed to start a thread for notifications: {error}");
            }
        }
        old.into_iter().for_each(Worker::discard);
    }

    /// Tells everybody who wants to hear it, never waiting for a channel.
    pub fn tell(&self, what: Failure) {
        let message = message(what);
        self.workers.iter().for_each(|worker| worker.tell(&message));
    }

    /// How the channels stand, and what is wrong in words.
    pub fn status(&self) -> (Vec<Value>, Vec<String>) {
        let (values, problems): (Vec<_>, Vec<_>) = self.workers.iter().map(Worker::status).unzip();
        (values, problems.into_iter().flatten().collect())
    }

    /// For a test of every channel, or of one.
    pub fn testers(&self) -> Vec<Tester> {
        self.workers.iter().map(Worker::tester).collect()
    }

    /// Sends what is due for up to `grace`, then cuts short what is under way. What is kept nowhere is tried again within
    /// that time, and given up at its end.
    pub fn stop(&mut self, grace: Duration) {
        let deadline = Deadline::after(grace);
        self.workers.iter().for_each(Worker::close);
        self.workers.iter_mut().for_each(|worker| worker.join(deadline));
    }
}

/// A message of this machine and moment.
fn message(what: Failure) -> Message {
    let at_ms = unix_ms();
    let host = rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned();
    let random = random_hex(6).unwrap_or_default();
    Message { id: format!("{at_ms:012x}-{random}"), at_ms, host, what }
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
        let message = message(Failure { name, status, ..Failure::default() });
        channel.deliver(&message, &Tools::new(means, stop))
    })
}
