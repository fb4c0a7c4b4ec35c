//! When to look: at start, every hour, and soon after news, where a storm of news is one look. Pure; time is a
//! parameter.

use std::time::{Duration, Instant};

/// Between two looks at everything.
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
/// From news to the look: containers come in groups.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// Least time between the beginnings of two looks because of news; together with a look it stays below 5 s.
pub(super) const GAP: Duration = Duration::from_secs(3);

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Containers, services and files.
    Everything,
    /// Containers alone.
    Containers,
}

/// Decides when to look, and how long to leave a daemon in peace that does not answer.
#[derive(Debug)]
pub(super) struct Pace {
    everything_at: Instant,
    last: Option<Instant>,
    news_at: Option<Instant>,
    pause: Duration,
}

impl Pace {
    /// Everything is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { everything_at: now, last: None, news_at: None, pause: FIRST_PAUSE }
    }

    /// Containers came or went.
    pub(super) fn on_news(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |last| last + GAP);
        self.news_at.get_or_insert((now + SETTLE).max(earliest));
    }

    /// Whether news wait for their look: until then nothing has to be heard.
    pub(super) fn has_news(&self) -> bool {
        self.news_at.is_some()
    }

    /// When the next look is due.
    pub(super) fn due_at(&self) -> Instant {
        self.news_at.map_or(self.everything_at, |at| at.min(self.everything_at))
    }

    /// Takes the look that is due, if one is.
    pub(super) fn take(&mut self, now: Instant) -> Option<Scope> {
        if self.due_at() > now {
            return None;
        }
        self.last = Some(now);
        self.news_at = None;
        if self.everything_at > now {
            return Some(Scope::Containers);
        }
        self.everything_at = now + HOUR;
        Some(Scope::Everything)
    }

    /// How long to leave the daemon in peace after a failure.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// The daemon has behaved for a while.
    pub(super) fn calm(&mut self) {
        self.pause = FIRST_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn at_start_and_every_hour() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.take(start), Some(Scope::Everything));
        assert_eq!(pace.take(start), None);
        assert_eq!(pace.due_at(), start + HOUR);
        assert_eq!(pace.take(start + HOUR - SECOND), None);
        assert_eq!(pace.take(start + HOUR), Some(Scope::Everything));
    }

    #[test]
    fn a_storm_is_one_look_now_and_then_and_news_never_wait_long() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.take(start);
        let (mut looks, mut oldest) = (0, None);
        // News every 10 ms for a minute.
        for step in 1..6_000 {
            let now = start + Duration::from_millis(step * 10);
            if let Some(scope) = pace.take(now) {
                assert_eq!(scope, Scope::Containers);
                assert!(now - oldest.unwrap() <= GAP + SETTLE);
                (looks, oldest) = (looks + 1, None);
            }
            pace.on_news(now);
            oldest.get_or_insert(now);
        }
        assert!((15..=20).contains(&looks), "{looks}");
    }

    #[test]
    fn lone_news_are_looked_at_after_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.take(start);
        let now = start + 60 * SECOND;
        pace.on_news(now);
        pace.on_news(now + SETTLE / 2);
        assert!(pace.has_news());
        assert_eq!(pace.due_at(), now + SETTLE);
    }

    #[test]
    fn pauses_grow_until_the_daemon_behaves() {
        let mut pace = Pace::new(Instant::now());
        let pauses: Vec<u64> = (0..8).map(|_| pace.pause().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        pace.calm();
        assert_eq!(pace.pause(), SECOND);
    }
}
