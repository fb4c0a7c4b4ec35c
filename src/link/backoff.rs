//! How long to wait before the next attempt. Pure: the random number is a parameter.

use std::time::Duration;

/// How the last attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A session completed its handshake, and ended later.
    Session,
    /// There was no session.
    Failed,
    /// The server does not accept the agent key.
    Refused,
}

/// Delays of 1, 2, 4 … 60 s (the defaults of [`Timing`](super::Timing)), each ±20 %.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first`, doubles up to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first.min(cap) }
    }

    /// The delay after an attempt; `random` is uniform in 0..1.
    pub fn after(&mut self, outcome: Outcome, random: f64) -> Duration {
        match outcome {
            Outcome::Session => self.next = self.first.min(self.cap),
            Outcome::Refused => self.next = self.cap,
            Outcome::Failed => {}
        }
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.cap);
        delay.mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_secs(1), Duration::from_secs(60))
    }

    #[test]
    fn doubles_to_the_cap() {
        let mut backoff = backoff();
        let delays: Vec<u64> =
            (0..9).map(|_| backoff.after(Outcome::Failed, 0.5).as_millis() as u64).collect();
        assert_eq!(delays, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn jitter_is_a_fifth_either_way() {
        let low = backoff().after(Outcome::Failed, 0.0);
        let high = backoff().after(Outcome::Failed, 1.0);
        assert_eq!((low, high), (Duration::from_millis(800), Duration::from_millis(1200)));
    }

    #[test]
    fn a_session_resets_and_a_refusal_goes_to_the_cap() {
        let mut backoff = backoff();
        for _ in 0..4 {
            backoff.after(Outcome::Failed, 0.5);
        }
        assert_eq!(backoff.after(Outcome::Session, 0.5), Duration::from_secs(1));
        assert_eq!(backoff.after(Outcome::Failed, 0.5), Duration::from_secs(2));
        assert_eq!(backoff.after(Outcome::Refused, 0.5), Duration::from_secs(60));
        assert_eq!(backoff.after(Outcome::Failed, 0.5), Duration::from_secs(60));
        assert_eq!(backoff.after(Outcome::Session, 0.5), Duration::from_secs(1));
    }
}
