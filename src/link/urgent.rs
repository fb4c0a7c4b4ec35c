//! What the reader and the beat want from the writer: answers to pings, the heartbeat, a flush.
//!
//! Bounded: a server that sends pings faster than it takes the answers gets no more of them than fit.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::wire::Heartbeat;

/// Answers that wait.
const MAX_ACKS: usize = 64;

/// Bytes of correlation ids that wait.
const MAX_ACK_BYTES: usize = 64 * 1024;

/// The urgent slot of one session.
#[derive(Debug)]
pub(super) struct Urgent {
    state: Mutex<State>,
    ready: (Sender<()>, Receiver<()>),
}

#[derive(Debug, Default)]
struct State {
    acks: VecDeque<String>,
    ack_bytes: usize,
    heartbeat: Option<Heartbeat>,
    flush: bool,
}

impl Urgent {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), ready: bounded(1) }
    }

    /// Asks for an Ack; false if too many wait already.
    pub(super) fn ack(&self, correlation_id: String) -> bool {
        let mut state = self.lock();
        let bytes = state.ack_bytes + correlation_id.len();
        if state.acks.len() >= MAX_ACKS || bytes > MAX_ACK_BYTES {
            return false;
        }
        state.ack_bytes = bytes;
        state.acks.push_back(correlation_id);
        drop(state);
        self.wake();
        true
    }

    /// Replaces the heartbeat.
    pub(super) fn heartbeat(&self, heartbeat: Heartbeat) {
        self.lock().heartbeat = Some(heartbeat);
        self.wake();
    }

    /// Asks the writer to flush as soon as the socket takes it.
    pub(super) fn flush(&self) {
        self.lock().flush = true;
        self.wake();
    }

    fn wake(&self) {
        // Full: a wake-up is under way already.
        let _ = self.ready.0.try_send(());
    }

    /// The writer was woken.
    pub(super) fn ready(&self) -> &Receiver<()> {
        &self.ready.1
    }

    /// Takes up to `room` correlation ids to acknowledge.
    pub(super) fn take_acks(&self, room: usize) -> Vec<String> {
        let mut state = self.lock();
        let count = state.acks.len().min(room);
        let taken: Vec<String> = state.acks.drain(..count).collect();
        state.ack_bytes -= taken.iter().map(String::len).sum::<usize>();
        taken
    }

    /// Takes the heartbeat.
    pub(super) fn take_heartbeat(&self) -> Option<Heartbeat> {
        self.lock().heartbeat.take()
    }

    /// Takes the wish for a flush.
    pub(super) fn take_flush(&self) -> bool {
        std::mem::take(&mut self.lock().flush)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_bounded_in_number_and_bytes() {
        let urgent = Urgent::new();
        let taken = (0..1000).filter(|n| urgent.ack(format!("ping {n}"))).count();
        assert_eq!(taken, MAX_ACKS);
        assert_eq!(urgent.take_acks(10).len(), 10);
        assert_eq!(urgent.take_acks(1000).len(), MAX_ACKS - 10);
        assert!(!urgent.ack("x".repeat(MAX_ACK_BYTES + 1)));
        assert!(urgent.ack("x".repeat(MAX_ACK_BYTES)));
        assert!(!urgent.ack("x".to_owned()));
        urgent.take_acks(1);
        assert!(urgent.ack("x".to_owned()));
    }
}
