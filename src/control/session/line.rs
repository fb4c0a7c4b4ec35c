//! The line from the control plane to one session: commands that wait to be sent, bounded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::clock::unix_ms;
use crate::thread::{Cancel, Why};
use crate::wake::Wake;
use crate::wire::ServerMessage;

/// A message for the agent, with the id under which it will answer.
#[derive(Debug, Clone)]
pub struct Command {
    /// May be empty.
    pub correlation_id: String,
    /// What is said.
    pub message: ServerMessage,
}

/// The sending side of a session. Clones are the same line.
#[derive(Debug, Clone)]
pub struct Line(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    agent: String,
    store_id: OnceLock<String>,
    sender: Sender<Command>,
    queue: Receiver<Command>,
    wake: Wake,
    replaced: Cancel,
}

impl Line {
    /// Commands that may wait; an agent that takes fewer is as good as gone.
    const BOUND: usize = 1024;

    pub(crate) fn new(agent: &str) -> std::io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let (sender, queue) = bounded(Self::BOUND);
        Ok(Self(Arc::new(Inner {
            id: format!("{:x}-{count:x}", unix_ms()),
            agent: agent.to_owned(),
            store_id: OnceLock::new(),
            sender,
            queue,
            wake: Wake::new()?,
            replaced: Cancel::new()?,
        })))
    }

    /// The session's id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Whose session it is.
    pub fn agent(&self) -> &str {
        &self.0.agent
    }

    /// The id of the agent's store; empty where the agent has none.
    pub fn store_id(&self) -> &str {
        self.0.store_id.get().map_or("", String::as_str)
    }

    /// Queues a command; false if the line is full, and then the session ends.
    pub fn send(&self, command: Command) -> bool {
        let taken = self.0.sender.try_send(command).is_ok();
        if !taken {
            self.hang_up();
        }
        self.0.wake.wake();
        taken
    }

    /// Ends the session: the agent came again, or is not wanted any more.
    pub fn hang_up(&self) {
        self.0.replaced.cancel(Why::Requested);
    }

    pub(crate) fn set_store_id(&self, id: &str) {
        // A session registers once.
        let _ = self.0.store_id.set(id.to_owned());
    }

    /// Takes the wake-up back, before the queue is looked at.
    pub(super) fn heed(&self) {
        self.0.wake.drain();
    }

    pub(crate) fn next(&self) -> Option<Command> {
        self.0.queue.try_recv().ok()
    }

    pub(super) fn wake(&self) -> &Wake {
        &self.0.wake
    }

    pub(super) fn replaced(&self) -> &Cancel {
        &self.0.replaced
    }
}
