//! How a watchdog sees a thread that hangs, without waking it.
//!
//! A thread promises to move again within so much time, each time it goes to wait. Nobody asks it; whoever
//! feeds a watchdog looks whether a promise was broken. Monotonic time, which stands still while the machine
//! sleeps, so that a lid that was closed breaks no promise.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One thread's promise; clones share it. New, and after [`Pulse::rest`], nothing is promised.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Mutex<Option<Instant>>>);

impl Pulse {
    /// Promises to move again within `span`.
    pub fn within(&self, span: Duration) {
        *self.lock() = Instant::now().checked_add(span);
    }

    /// Promises nothing any more: the thread ends, or waits for something that has no bound.
    pub fn rest(&self) {
        *self.lock() = None;
    }

    /// By how much the promise is broken.
    pub fn late(&self, now: Instant) -> Option<Duration> {
        let due = (*self.lock())?;
        (now > due).then(|| now - due)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_only_after_a_promise_that_was_not_renewed() {
        let pulse = Pulse::default();
        let begun = Instant::now();
        let hour = Duration::from_secs(3600);
        assert_eq!(pulse.late(begun + 100 * hour), None, "nothing was promised");
        pulse.within(hour);
        assert_eq!(pulse.late(begun + hour), None);
        assert!(pulse.late(begun + 2 * hour).unwrap() > hour / 2);
        pulse.clone().within(3 * hour);
        assert_eq!(pulse.late(begun + 2 * hour), None, "renewed through a clone");
        pulse.rest();
        assert_eq!(pulse.late(begun + 100 * hour), None);
    }
}
