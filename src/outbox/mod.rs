//! What must arrive, from the moment it is decided until the other side has it.
//!
//! ```text
//! publish: state change + messages, one durable batch → entries, in order
//! session: next → sent(seq) → confirmed → deleted, one durable batch per confirmation
//! ```
//! An entry is confirmed by the server's cumulative acknowledgement (`durable_acks`) or by the pong to a ping sent
//! behind it. A pong proves receipt, not storage, so a result is kept, marked durably, and sent once more in a later
//! session before it is deleted. Whatever is unconfirmed is sent again in the next session.
//!
//! The outbox is bounded in entries and bytes. When it is full, the oldest log events go, then the oldest health
//! results, then the oldest acknowledgements (the server repeats a command that nobody acknowledged); results never.
//! In memory there is only a small index; messages are read back when their turn comes. It knows no sockets and no
//! runs: [`window`] decides, [`log`] stores.

mod log;
mod seq;
pub mod window;

use std::fmt;

use crate::store::StoreError;
use crate::wire::{AgentMessage, LogLevel, MAX_MESSAGE_BYTES};

pub use log::{Outbox, Outgoing, Session};
pub use seq::SeqCounter;

/// What a message is, as far as its delivery goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The one terminal JobUpdate of a run.
    Terminal,
    /// The BackupCompleted in front of it.
    Completed,
    /// The answer to a command.
    Ack,
    /// A health check's result.
    Health,
    /// A log event.
    Log(LogLevel),
}

impl Kind {
    /// Whether it belongs to the result of a run, which is never dropped.
    pub fn is_result(self) -> bool {
        matches!(self, Self::Terminal | Self::Completed)
    }
}

/// A message on its way into the outbox.
#[derive(Debug, Clone)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The run it is about, if it is about one.
    pub run_id: Option<String>,
    /// Ties it to a command; may be empty.
    pub correlation_id: String,
    /// The message itself.
    pub message: AgentMessage,
}

/// The bounds of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Entries that wait.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that were sent in this session and are not confirmed yet.
    pub in_flight: usize,
    /// Their bytes; a single larger entry may still go.
    pub in_flight_bytes: u64,
    /// Results that were received once and wait for a later session to be sent again; beyond it the oldest are
    /// taken for delivered, because a session may last for months.
    pub repeats: usize,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self {
            entries: 5_000,
            bytes: 4 << 20,
            in_flight: 64,
            in_flight_bytes: 1 << 20,
            repeats: 500,
        }
    }
}

/// What was given up because the outbox was full, since the store was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dropped {
    /// Log events.
    pub logs: u64,
    /// Health results.
    pub health: u64,
    /// Answers to commands.
    pub acks: u64,
}

impl Dropped {
    /// All of it.
    pub fn total(self) -> u64 {
        self.logs + self.health + self.acks
    }

    fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Log(_) => self.logs += 1,
            Kind::Health => self.health += 1,
            Kind::Ack => self.acks += 1,
            Kind::Terminal | Kind::Completed => {}
        }
    }
}

/// Largest stored message: what a frame may hold, without what is put in front of it.
pub const MAX_STORED_BYTES: usize = MAX_MESSAGE_BYTES - 64;

/// Why the outbox did not do what it was asked.
#[derive(Debug)]
pub enum OutboxError {
    /// The store did not.
    Store(StoreError),
    /// An entry reads, but makes no sense.
    Entry {
        /// Which.
        entry_id: u64,
    },
    /// A message is larger than what can be sent. Nothing of the batch was done.
    TooLarge {
        /// Its size.
        size_bytes: usize,
    },
}

impl OutboxError {
    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Store(error) => error.retry(),
            Self::Entry { .. } | Self::TooLarge { .. } => false,
        }
    }
}

impl fmt::Display for OutboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Entry { entry_id } => write!(
                f,
                "failed to read entry {entry_id} of the outbox: a newer version wrote it, or it is damaged; \
                 look at it with `backupy dump-state`"
            ),
            Self::TooLarge { size_bytes } => write!(
                f,
                "failed to queue a message of {size_bytes} bytes: at most {MAX_STORED_BYTES} can be sent"
            ),
        }
    }
}

impl std::error::Error for OutboxError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Entry { .. } | Self::TooLarge { .. } => None,
        }
    }
}

impl From<StoreError> for OutboxError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
mod tests;
