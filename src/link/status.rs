//! What others may know of the link: whether there is a session, since when, and what went wrong last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::clock::unix_ms;
use crate::pulse::Pulse;

/// Shared by the link, which writes it, and everybody who asks.
#[derive(Debug, Clone)]
pub struct LinkStatus(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    snapshot: LinkSnapshot,
    /// The last moment there was a session, or the start.
    last_session: Instant,
    /// Nudged at every change.
    watcher: Option<Sender<()>>,
    pulse: Pulse,
}

/// The link at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkSnapshot {
    /// Since when there is a session, Unix milliseconds.
    pub connected_since_ms: Option<u64>,
    /// The server's name for it.
    pub session_id: Option<String>,
    /// Whether the server confirms storage.
    pub durable_acks: bool,
    /// Sessions so far, this one included.
    pub sessions: u64,
    /// Attempts that gave no session.
    pub failed_attempts: u64,
    /// Why the last session ended or the last attempt failed; kept until the next session.
    pub last_error: Option<String>,
    /// Whether an attempt to get a session is under way.
    pub connecting: bool,
    /// Whether the server refused the agent key, last time.
    pub key_refused: bool,
}

impl LinkStatus {
    /// No session yet.
    pub fn new() -> Self {
        let snapshot = LinkSnapshot::default();
        let (last_session, pulse) = (Instant::now(), Pulse::default());
        Self(Arc::new(Mutex::new(State { snapshot, last_session, watcher: None, pulse })))
    }

    /// Nudges this channel whenever a session begins or ends.
    pub fn watch(&self, watcher: Sender<()>) {
        self.lock().watcher = Some(watcher);
    }

    /// By how much the link's threads are late with moving on; `None` while they are not.
    pub fn late(&self, now: Instant) -> Option<Duration> {
        self.lock().pulse.late(now)
    }

    /// The link's promise to move on.
    pub(super) fn pulse(&self) -> Pulse {
        self.lock().pulse.clone()
    }

    /// The link now.
    pub fn snapshot(&self) -> LinkSnapshot {
        self.lock().snapshot.clone()
    }

    /// For how long there was no session; `None` while there is one.
    pub fn without_session(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        match state.snapshot.connected_since_ms {
            Some(_) => None,
            None => Some(now.saturating_duration_since(state.last_session)),
        }
    }

    pub(super) fn connecting(&self) {
        self.lock().snapshot.connecting = true;
    }

    pub(super) fn up(&self, session_id: &str, durable_acks: bool) {
        let mut state = self.lock();
        let snapshot = &mut state.snapshot;
        snapshot.connected_since_ms = Some(unix_ms());
        snapshot.session_id = Some(session_id.to_owned());
        snapshot.durable_acks = durable_acks;
        snapshot.connecting = false;
        snapshot.sessions += 1;
        snapshot.last_error = None;
        snapshot.key_refused = false;
        state.nudge();
    }

    pub(super) fn down(&self, error: String, key_refused: bool) {
        let mut state = self.lock();
        if state.snapshot.connected_since_ms.take().is_some() {
            state.last_session = Instant::now();
        } else {
            state.snapshot.failed_attempts += 1;
        }
        state.snapshot.connecting = false;
        state.snapshot.session_id = None;
        state.snapshot.last_error = Some(error);
        state.snapshot.key_refused = key_refused;
        state.nudge();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn nudge(&self) {
        if let Some(watcher) = &self.watcher {
            // Full: it will look anyway.
            let _ = watcher.try_send(());
        }
    }
}

impl Default for LinkStatus {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_and_down() {
        let status = LinkStatus::new();
        let later = Instant::now() + Duration::from_secs(200);
        assert!(status.without_session(later).unwrap() > Duration::from_secs(180));
        status.down("refused".to_owned(), true);
        assert!(status.snapshot().key_refused);
        status.connecting();
        assert!(status.snapshot().connecting);
        status.up("s1", true);
        assert!(!status.snapshot().connecting);
        assert_eq!(status.without_session(later), None);
        let snapshot = status.snapshot();
        assert_eq!((snapshot.sessions, snapshot.failed_attempts), (1, 1));
        assert_eq!((snapshot.last_error, snapshot.key_refused), (None, false));
        status.down("gone".to_owned(), false);
        assert!(status.without_session(later).is_some());
        assert_eq!(status.snapshot().failed_attempts, 1);
    }
}
