//! Which waiting runs start now, which can never start, and when to look again. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::calendar::window::Window;

/// Longest wait before another look while runs wait: windows and expiry follow the wall clock, which may be
/// set, and which goes on while the machine sleeps.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A run that waits.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// The run.
    pub run_id: &'a str,
    /// Its job; two runs of one job never overlap.
    pub job_id: &'a str,
    /// Whether it ignores the maintenance window.
    pub manual: bool,
    /// What is left of the pause before its next attempt.
    pub pause: Duration,
    /// When its upload URL expires, Unix milliseconds; 0 = unknown.
    pub expires_at_ms: u64,
    /// What is left of its timeout, once it has had a first attempt.
    pub timeout_left: Option<Duration>,
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Runs to start, in this order.
    pub start: Vec<String>,
    /// Runs that cannot start before their upload URL expires, with the reason.
    pub hopeless: Vec<(String, String)>,
    /// Look again after this long; `None` = when something else happens.
    pub wake_in: Option<Duration>,
}

/// Decides over `waiting`, oldest first, while `running` jobs go on.
pub fn admit(
    waiting: &[Waiting<'_>],
    running: &BTreeSet<&str>,
    max_parallel: usize,
    window: Option<Window>,
    now_ms: u64,
) -> Admission {
    let mut admission = Admission::default();
    let mut busy: BTreeSet<&str> = running.clone();
    let window_left = window
        .and_then(|window| window.ends_at(now_ms))
        .map_or(Duration::ZERO, |end| Duration::from_millis(end.saturating_sub(now_ms)));
    for run in waiting {
        let window_left = if run.manual { Duration::ZERO } else { window_left };
        let wait = run.pause.max(window_left);
        if let Some(reason) = hopeless(run, wait, window_left, now_ms) {
            admission.hopeless.push((run.run_id.to_owned(), reason));
        } else if !wait.is_zero() {
            admission.wake_within(wait.min(run.timeout_left.unwrap_or(wait)));
        } else if busy.len() < max_parallel && !busy.contains(run.job_id) {
            busy.insert(run.job_id);
            admission.start.push(run.run_id.to_owned());
        } else {
            // It waits for another run; look again when its own time is up.
            if run.expires_at_ms != 0 {
                let left = run.expires_at_ms.saturating_sub(now_ms);
                admission.wake_within(Duration::from_millis(left));
            }
            if let Some(left) = run.timeout_left {
                admission.wake_within(left);
            }
        }
    }
    admission
}

impl Admission {
    fn wake_within(&mut self, wait: Duration) {
        let wait = wait.min(MAX_WAIT);
        self.wake_in = Some(self.wake_in.map_or(wait, |other| other.min(wait)));
    }
}

fn hopeless(
    run: &Waiting<'_>,
    wait: Duration,
    window_left: Duration,
    now_ms: u64,
) -> Option<String> {
    if run.timeout_left.is_some_and(|left| left.is_zero()) {
        return Some("the run did not finish within its timeout".to_owned());
    }
    let earliest = now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    if run.expires_at_ms == 0 || earliest < run.expires_at_ms {
        return None;
    }
    Some(if now_ms >= run.expires_at_ms {
        "the upload URL expired before the run could start".to_owned()
    } else if wait == window_left {
        "the upload URL expires before the maintenance window ends".to_owned()
    } else {
        "the upload URL expires before the next attempt may start".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn waiting<'a>(run_id: &'a str, job_id: &'a str) -> Waiting<'a> {
        Waiting {
            run_id,
            job_id,
            manual: false,
            pause: Duration::ZERO,
            expires_at_ms: 0,
            timeout_left: None,
        }
    }

    #[test]
    fn parallelism_is_bounded_and_runs_of_a_job_do_not_overlap() {
        let runs = [waiting("1", "a"), waiting("2", "a"), waiting("3", "b"), waiting("4", "c")];
        let admission = admit(&runs, &BTreeSet::new(), 2, None, 0);
        assert_eq!(admission.start, ["1", "3"]);
        let admission = admit(&runs, &BTreeSet::from(["b"]), 2, None, 0);
        assert_eq!(admission.start, ["1"]);
        let admission = admit(&runs, &BTreeSet::from(["a", "b"]), 2, None, 0);
        assert_eq!(admission, Admission::default());
    }

    #[test]
    fn a_scheduled_run_waits_for_the_window_and_a_manual_one_does_not() {
        let window = Some(Window::parse("02:00", "04:00").unwrap());
        let manual = Waiting { manual: true, ..waiting("m", "b") };
        let runs = [waiting("s", "a"), manual];
        let admission = admit(&runs, &BTreeSet::new(), 9, window, 3 * HOUR_MS);
        assert_eq!(admission.start, ["m"]);
        assert_eq!(admission.wake_in, Some(MAX_WAIT), "clocks are set");
        let late = [Waiting { expires_at_ms: 4 * HOUR_MS, ..waiting("s", "a") }];
        let admission = admit(&late, &BTreeSet::new(), 9, window, 3 * HOUR_MS);
        assert!(admission.hopeless[0].1.contains("maintenance"), "{admission:?}");
    }

    #[test]
    fn an_expired_url_ends_the_wait() {
        let run = Waiting { expires_at_ms: 5_000, ..waiting("1", "a") };
        let busy = BTreeSet::from(["a"]);
        let admission = admit(&[run], &busy, 1, None, 4_000);
        assert_eq!(admission.wake_in, Some(Duration::from_secs(1)));
        let admission = admit(&[run], &busy, 1, None, 5_000);
        assert_eq!(admission.hopeless.len(), 1);
        let paused = Waiting { pause: Duration::from_secs(2), ..run };
        let admission = admit(&[paused], &BTreeSet::new(), 1, None, 4_000);
        assert!(admission.hopeless[0].1.contains("next attempt"), "{admission:?}");
    }

    #[test]
    fn a_timeout_ends_the_wait_for_whatever_it_is() {
        let left = Duration::from_secs(7);
        let run = Waiting { timeout_left: Some(left), ..waiting("1", "a") };
        let window = Some(Window::parse("02:00", "04:00").unwrap());
        let paused = Waiting { pause: Duration::from_secs(9), ..run };
        let busy = BTreeSet::from(["a"]);
        for admission in [
            admit(&[run], &busy, 1, None, 0),
            admit(&[paused], &BTreeSet::new(), 1, None, 0),
            admit(&[run], &BTreeSet::new(), 1, window, 3 * HOUR_MS),
        ] {
            assert_eq!((admission.wake_in, admission.hopeless.len()), (Some(left), 0));
        }
        let over = Waiting { timeout_left: Some(Duration::ZERO), ..run };
        let admission = admit(&[over], &busy, 1, None, 0);
        assert!(admission.hopeless[0].1.contains("timeout"), "{admission:?}");
    }

    #[test]
    fn the_earliest_pause_wakes() {
        let runs = [
            Waiting { pause: Duration::from_secs(9), ..waiting("1", "a") },
            Waiting { pause: Duration::from_secs(3), ..waiting("2", "b") },
        ];
        let admission = admit(&runs, &BTreeSet::new(), 1, None, 0);
        assert_eq!(admission.wake_in, Some(Duration::from_secs(3)));
        assert!(admission.start.is_empty());
    }
}
