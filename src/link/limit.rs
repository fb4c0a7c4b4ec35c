//! Warnings about what a peer does, at most one a minute: a flood must not fill the log.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(60);

/// Lets one warning a minute through and counts the others.
#[derive(Debug, Default)]
pub(super) struct Limit {
    last: Option<Instant>,
    held_back: u64,
}

impl Limit {
    /// Whether to warn now, and how many were held back since the last time.
    pub(super) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }

    /// Warns, or counts.
    pub(super) fn warn(&mut self, what: &str) {
        match self.pass(Instant::now()) {
            Some(0) => log::warn!("{what}"),
            Some(more) => log::warn!("{what} ({more} more like it since the last warning)"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_minute() {
        let mut limit = Limit::default();
        let start = Instant::now();
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start + Duration::from_secs(59)), None);
        assert_eq!(limit.pass(start + Duration::from_secs(59)), None);
        assert_eq!(limit.pass(start + Duration::from_secs(60)), Some(2));
    }
}
