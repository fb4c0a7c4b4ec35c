//! Time as values: wall-clock milliseconds for records and schedules, monotonic deadlines for waits.
//!
//! Decisions never call these; they take `now` as a parameter. Only the threads that drive them do.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch; 0 if the clock stands before it.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Whether a clock shows a time before this program was written: a board without a battery starts in 1970 and stays there
/// until it hears of the time.
pub fn is_unset(now_ms: u64) -> bool {
    const WRITTEN_MS: u64 = 1_735_689_600_000;
    now_ms < WRITTEN_MS
}

/// By how much the wall clock moved more than the monotonic one between two looks, in milliseconds: somebody set it, or the
/// machine was asleep. Drift and rounding are nothing.
pub fn jump_ms(before_ms: u64, now_ms: u64, passed: Duration) -> i64 {
    const DRIFT_MS: u64 = 5_000;
    let expected_ms =
        before_ms.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
    let moved = i64::try_from(i128::from(now_ms) - i128::from(expected_ms)).unwrap_or(i64::MAX);
    if moved.unsigned_abs() > DRIFT_MS { moved } else { 0 }
}

/// A point in monotonic time that a wait must not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `timeout` from now (at most 30 years, so that no addition can overflow).
    pub fn after(timeout: Duration) -> Self {
        const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
        Self(Instant::now() + timeout.min(FAR))
    }

    /// What is left until the deadline, zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the deadline has passed.
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// The deadline as an instant.
    pub fn instant(self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_shows() {
        assert!(is_unset(0) && is_unset(1_000_000_000_000));
        assert!(!is_unset(1_795_392_000_000));
    }

    #[test]
    fn jumps_are_told_from_passing_time() {
        let (noon, minute) = (1_795_392_000_000, Duration::from_secs(60));
        assert_eq!(jump_ms(noon, noon + 60_000, minute), 0);
        assert_eq!(jump_ms(noon, noon + 64_999, minute), 0, "slewed");
        assert_eq!(jump_ms(noon, noon + 60_000 + 86_400_000, minute), 86_400_000);
        assert_eq!(jump_ms(noon, noon - 86_400_000, minute), -86_460_000);
        assert_eq!(jump_ms(0, u64::MAX, Duration::ZERO), i64::MAX);
    }
}
