//! An upload's speed limit: a token bucket that uploads share.
//!
//! [`Bucket`] is pure, time is a parameter. A piece may always go whole once the bucket is not in debt; what it
//! takes too much is waited for before the next one. So the average keeps the limit, whatever the pieces' size, and
//! nobody starves: whoever shares it waits behind the debt of all.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::thread::Cancel;

/// How much may go at once after a pause, as time.
const BURST: Duration = Duration::from_millis(250);

/// A limit that uploads share.
#[derive(Debug)]
pub(super) struct Pace(Mutex<Bucket>);

impl Pace {
    /// A limit in bytes per second; not 0.
    pub(super) fn new(bytes_per_sec: u64) -> Self {
        Self(Mutex::new(Bucket::new(bytes_per_sec, Instant::now())))
    }

    /// Waits until `bytes` may go; false if the cancel came first.
    pub(super) fn wait(&self, bytes: usize, cancel: &Cancel) -> bool {
        let now = Instant::now();
        let pause = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(bytes as u64, now);
        pause.is_zero() || cancel.sleep(pause)
    }
}

/// The account: how far ahead of the limit the bytes so far are.
#[derive(Debug)]
struct Bucket {
    bytes_per_sec: u64,
    /// When everything that has gone would have gone at the limit.
    paid_until: Instant,
}

impl Bucket {
    fn new(bytes_per_sec: u64, now: Instant) -> Self {
        Self { bytes_per_sec: bytes_per_sec.max(1), paid_until: now }
    }

    /// Books `bytes` and says how long to wait before they go.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        // Time in which nothing went is not saved up, but for a moment's worth.
        if let Some(floor) = now.checked_sub(BURST) {
            self.paid_until = self.paid_until.max(floor);
        }
        let pause = self.paid_until.saturating_duration_since(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_sec);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_until = self.paid_until.checked_add(cost).unwrap_or(self.paid_until);
        pause
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::thread::Why;

    const RATE: u64 = 1 << 20;

    /// Sends pieces as fast as the bucket lets them go, after idle times; how long it took, without the idling.
    fn drive(bucket: &mut Bucket, start: Instant, pieces: &[u64]) -> Duration {
        let mut now = start;
        for piece in pieces {
            now += bucket.take(*piece, now);
        }
        now - start
    }

    #[test]
    fn a_second_carries_the_limit() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        let took = drive(&mut bucket, start, &[RATE / 8; 81]);
        assert!(
            (Duration::from_secs_f64(9.7)..=Duration::from_secs(10)).contains(&took),
            "{took:?}"
        );
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        let later = start + Duration::from_secs(3600);
        let took = drive(&mut bucket, later, &[RATE; 4]);
        assert_eq!(took, Duration::from_secs(3) - BURST);
    }

    #[test]
    fn a_cancel_ends_the_wait() {
        let (pace, cancel) = (Pace::new(1), Cancel::new().unwrap());
        assert!(pace.wait(1 << 30, &cancel), "the first piece goes at once");
        cancel.cancel(Why::Requested);
        assert!(!pace.wait(1, &cancel));
    }

    proptest! {
        #[test]
        fn never_faster_than_the_limit(
            rate in 1u64..1 << 40,
            pieces in proptest::collection::vec((0u64..1 << 24, 0u64..5_000), 1..50),
        ) {
            let start = Instant::now() + Duration::from_secs(3600);
            let mut bucket = Bucket::new(rate, start);
            let (mut now, mut gone, mut last) = (start, 0u128, 0u64);
            for (bytes, idle_ms) in pieces {
                now += Duration::from_millis(idle_ms);
                now += bucket.take(bytes, now);
                gone += u128::from(bytes);
                last = bytes;
            }
            // All but the last piece are paid for, a burst excepted.
            let allowed = ((now - start) + BURST).as_nanos() * u128::from(rate) / 1_000_000_000;
            prop_assert!(gone - u128::from(last) <= allowed + 50);
        }
    }
}
