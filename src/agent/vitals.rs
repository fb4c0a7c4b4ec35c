//! Whether this process is alive, for whoever feeds its watchdog, and how it is in one line.
//!
//! Alive means that it does its work or knows why not; a server that is down or a disk that is full is nothing that a
//! restart would heal. Looked at, without writing to the disk:
//!
//! | what | how | a hang shows because |
//! |---|---|---|
//! | dispatch | it answers a question | it is the one thread that writes the agent's state: a write that never returns holds it up |
//! | the store | one read, which reopens it where needed | an engine that cannot come back needs another process |
//! | the link | its threads keep their promise to move again ([`crate::pulse`]) | a session hears something within its idle deadline, an attempt has deadlines |
//! | `up` | the session with its own control plane, and what that says of itself | its desk answers each heartbeat |

use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::SESSION_PATIENCE;
use crate::dispatch::{Queries, Shared};
use crate::host::update::Restart;
use crate::link::{LinkSnapshot, LinkStatus};
use crate::observe::supervisor::Vitals;
use crate::store::{Space, Store, StoreError};

/// Whether something else that belongs to this process is alive; why not.
pub type Vital = Box<dyn Fn() -> Result<(), String> + Send>;

/// What is looked at.
pub(super) struct Organs {
    pub(super) queries: Queries,
    pub(super) link: LinkStatus,
    pub(super) shared: Shared,
    pub(super) store: Store,
    /// The control plane is in this process, so that there is no excuse for having no session.
    pub(super) own_plane: bool,
    pub(super) extra: Option<Vital>,
    pub(super) stop_grace: Duration,
    pub(super) restart: Restart,
}

/// What a look found.
#[derive(Debug, Default)]
struct Findings {
    dispatch_answers: bool,
    store_error: Option<String>,
    link_late: Option<Duration>,
    session_lost: Option<Duration>,
    extra: Option<String>,
}

impl Organs {
    pub(super) fn vitals(self) -> Vitals {
        let (nudge, changed) = bounded(1);
        self.link.watch(nudge.clone());
        self.shared.watch(nudge);
        let (link, shared) = (self.link.clone(), self.shared.clone());
        let (stop_within, restart) = (self.stop_grace, self.restart.clone());
        Vitals {
            changed,
            status: Box::new(move || status_line(&link.snapshot(), &shared.active_jobs())),
            alive: Box::new(move |patience| judge(&self.look(patience))),
            stop_within,
            hands_over: Box::new(move || restart.is_requested()),
        }
    }

    fn look(&self, patience: Duration) -> Findings {
        let dispatch_answers = self.queries.snapshot(patience).is_some();
        let now = Instant::now();
        let lost = self.link.without_session(now).filter(|time| *time >= SESSION_PATIENCE);
        Findings {
            dispatch_answers,
            store_error: self
                .store
                .get(Space::Config, b"agent")
                .err()
                .filter(StoreError::wants_restart)
                .map(|error| error.to_string()),
            link_late: self.link.late(now),
            session_lost: lost.filter(|_| self.own_plane),
            extra: self.extra.as_ref().and_then(|vital| vital().err()),
        }
    }
}

fn judge(found: &Findings) -> Result<(), String> {
    if !found.dispatch_answers {
        return Err("dispatch does not answer".into());
    }
    if let Some(error) = &found.store_error {
        return Err(format!("the store does not work: {error}"));
    }
    if let Some(late) = found.link_late {
        return Err(format!("the link hangs: it should have moved {} s ago", late.as_secs()));
    }
    if let Some(time) = found.session_lost {
        let sec = time.as_secs();
        return Err(format!("no session with the control plane in this process for {sec} s"));
    }
    found.extra.clone().map_or(Ok(()), Err)
}

fn status_line(link: &LinkSnapshot, active: &[String]) -> String {
    let link = match (link.connected_since_ms, &link.last_error) {
        (Some(_), _) => "connected".to_owned(),
        (None, None) => "connecting".to_owned(),
        (None, Some(error)) => format!("not connected ({error})"),
    };
    match active {
        [] => format!("{link}; no run active"),
        [job] => format!("{link}; 1 run active: {job}"),
        jobs => format!("{link}; {} runs active: {}", jobs.len(), jobs.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_hangs_is_named() {
        let fine = || Findings { dispatch_answers: true, ..Findings::default() };
        assert_eq!(judge(&fine()), Ok(()));
        let sec = Duration::from_secs(200);
        let cases = [
            (Findings::default(), "dispatch does not answer"),
            (Findings { store_error: Some("closed".into()), ..fine() }, "the store"),
            (Findings { link_late: Some(sec), ..fine() }, "the link hangs"),
            (Findings { session_lost: Some(sec), ..fine() }, "no session"),
            (Findings { extra: Some("the scheduler hangs".into()), ..fine() }, "the scheduler"),
        ];
        for (found, word) in cases {
            assert!(judge(&found).unwrap_err().contains(word), "{found:?}");
        }
    }

    #[test]
    fn one_line_says_link_and_runs() {
        let mut link = LinkSnapshot::default();
        assert_eq!(status_line(&link, &[]), "connecting; no run active");
        link.last_error = Some("connection refused".into());
        let one = ["shop".to_owned()];
        assert_eq!(
            status_line(&link, &one),
            "not connected (connection refused); 1 run active: shop"
        );
        link.connected_since_ms = Some(1);
        let two = ["shop".to_owned(), "blog".to_owned()];
        assert_eq!(status_line(&link, &two), "connected; 2 runs active: shop, blog");
    }
}
