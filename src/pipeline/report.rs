//! Progress on its way out: each step once, and within a step at most one report a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::{Progress, Step};

const EVERY: Duration = Duration::from_secs(1);

/// Thins out progress. Shared by the stages.
pub(super) struct Reporter<'a> {
    sink: &'a (dyn Fn(Progress) + Sync),
    state: Mutex<State>,
}

struct State {
    step: Option<Step>,
    last: Instant,
    /// The driver reports on the dump itself, so the pipeline's own count would only contradict it.
    driver_reports: bool,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(sink: &'a (dyn Fn(Progress) + Sync)) -> Self {
        let state = State { step: None, last: Instant::now(), driver_reports: false };
        Self { sink, state: Mutex::new(state) }
    }

    /// A step begins.
    pub(super) fn enter(&self, step: Step) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.step = Some(step);
        state.last = Instant::now();
        drop(state);
        (self.sink)(Progress { step, percent: None, bytes: 0 });
    }

    /// How far a step is. A report about another step than the one entered comes late and is dropped.
    pub(super) fn report(&self, progress: Progress) {
        if self.is_due(progress.step, true) {
            (self.sink)(progress);
        }
    }

    /// As [`Reporter::report`], for the bytes of the dump that the pipeline counts by itself where the
    /// driver says nothing.
    pub(super) fn count_dump(&self, bytes: u64, size_hint_bytes: Option<u64>) {
        if self.is_due(Step::Dumping, false) {
            let percent = size_hint_bytes.and_then(|total| percent(bytes, total, 99));
            (self.sink)(Progress { step: Step::Dumping, percent, bytes });
        }
    }

    fn is_due(&self, step: Step, by_driver: bool) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if by_driver && step == Step::Dumping {
            state.driver_reports = true;
        }
        let now = Instant::now();
        if state.step != Some(step)
            || now.duration_since(state.last) < EVERY
            || (!by_driver && state.driver_reports)
        {
            return false;
        }
        state.last = now;
        true
    }
}

/// The share of `total` in percent, at most `cap`; `None` where there is no total.
pub(super) fn percent(bytes: u64, total: u64, cap: u8) -> Option<u8> {
    if total == 0 {
        return None;
    }
    let share = u128::from(bytes) * 100 / u128::from(total);
    Some(u8::try_from(share).unwrap_or(u8::MAX).min(cap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        assert_eq!(percent(0, 0, 100), None);
        assert_eq!(percent(1, 3, 100), Some(33));
        assert_eq!(percent(u64::MAX, u64::MAX, 100), Some(100));
        assert_eq!(percent(900, 3, 99), Some(99));
    }

    #[test]
    fn steps_pass_and_a_burst_does_not() {
        let seen = Mutex::new(Vec::new());
        let sink = |progress: Progress| seen.lock().unwrap().push(progress.step);
        let reporter = Reporter::new(&sink);
        reporter.enter(Step::Validating);
        reporter.enter(Step::Dumping);
        for bytes in 0..1000 {
            reporter.report(Progress { step: Step::Dumping, percent: None, bytes });
            reporter.report(Progress { step: Step::Validating, percent: None, bytes });
        }
        reporter.enter(Step::Uploading);
        let steps = [Step::Validating, Step::Dumping, Step::Uploading];
        assert_eq!(*seen.lock().unwrap(), steps);
    }

    #[test]
    fn due_after_a_second_and_the_driver_goes_first() {
        let sink = |_: Progress| ();
        let reporter = Reporter::new(&sink);
        reporter.enter(Step::Dumping);
        let age = || reporter.state.lock().unwrap().last -= EVERY;
        assert!(!reporter.is_due(Step::Dumping, false));
        age();
        assert!(reporter.is_due(Step::Dumping, false));
        age();
        assert!(reporter.is_due(Step::Dumping, true));
        age();
        assert!(!reporter.is_due(Step::Dumping, false));
        assert!(reporter.is_due(Step::Dumping, true));
    }
}
