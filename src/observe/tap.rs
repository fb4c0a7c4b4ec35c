//! Warnings and errors of the log on their way to the control plane.
//!
//! The logger offers every record to the [`Tap`], which takes the ones that somebody elsewhere should see and puts them
//! on a bounded channel; dispatch makes LogEvents of them. A host in trouble repeats itself, and every event is a write
//! to its disk, so only so many pass: [`BURST`] at once, then one per [`REFILL`]. What is left out is counted, and the
//! next one that passes says how many there were.
//!
//! Never tapped: what was told already ([`TOLD`]), and what the link has to say, which is about the other end of the
//! connection and would mostly be said while there is none.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::Level;

/// Target of records that reach the control plane in another way.
pub const TOLD: &str = "backupy::told";

/// Passes at once.
const BURST: u32 = 20;
/// Then one for every so much time.
const REFILL: Duration = Duration::from_secs(30);
/// Lines that wait for dispatch.
const WAITING: usize = 64;

/// A record for the control plane, cleaned of secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `Warn` or `Error`.
    pub level: Level,
    /// What it says.
    pub text: String,
}

/// The logger's end.
#[derive(Debug)]
pub struct Tap {
    lines: Sender<Line>,
    valve: Mutex<Valve>,
}

/// A tap and the lines that come out of it.
pub fn tap() -> (Tap, Receiver<Line>) {
    let (lines, out) = bounded(WAITING);
    (Tap { lines, valve: Mutex::new(Valve::new(Instant::now())) }, out)
}

impl Tap {
    /// Takes the record if it is one to tell and the rate allows it. Never waits.
    pub(super) fn offer(&self, target: &str, level: Level, text: &str) {
        if !is_news(target, level) {
            return;
        }
        let passed = self.lock().pass(Instant::now());
        let Some(left_out) = passed else { return };
        let text = match left_out {
            0 => text.to_owned(),
            n => format!("{text} ({n} more before this one are in the agent's own log only)"),
        };
        if self.lines.try_send(Line { level, text }).is_err() {
            self.lock().left_out += left_out + 1;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Valve> {
        self.valve.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_news(target: &str, level: Level) -> bool {
    level <= Level::Warn && target != TOLD && !target.starts_with("backupy::link")
}

/// The rate, with time as a parameter.
#[derive(Debug)]
struct Valve {
    left: u32,
    refilled: Instant,
    left_out: u64,
}

impl Valve {
    fn new(now: Instant) -> Self {
        Self { left: BURST, refilled: now, left_out: 0 }
    }

    /// Whether one may pass now, and then how many did not since the last one.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        while self.left < BURST && now.duration_since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_elsewhere_or_only_informs_is_not_news() {
        assert!(is_news("backupy::dispatch", Level::Warn));
        assert!(is_news("fjall", Level::Error));
        assert!(!is_news("backupy::dispatch", Level::Info));
        assert!(!is_news("backupy::link::read", Level::Error));
        assert!(!is_news(TOLD, Level::Error));
    }

    #[test]
    fn a_storm_passes_as_a_burst_and_is_counted() {
        let start = Instant::now();
        let mut valve = Valve::new(start);
        let passed = (0..1000).filter_map(|_| valve.pass(start)).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(valve.pass(start + REFILL - Duration::from_millis(1)), None);
        assert_eq!(valve.pass(start + REFILL), Some(1000 - u64::from(BURST) + 1));
        assert_eq!(valve.pass(start + REFILL), None);
        let later = start + REFILL * 100_000;
        assert_eq!((0..1000).filter_map(|_| valve.pass(later)).count(), BURST as usize);
    }

    #[test]
    fn nobody_who_takes_the_lines_is_no_reason_to_wait() {
        let (tap, lines) = tap();
        for _ in 0..BURST {
            tap.offer("backupy::runs", Level::Error, "trouble");
        }
        assert_eq!(lines.len(), BURST as usize);
        drop(lines);
        tap.offer("backupy::runs", Level::Error, "trouble");
    }
}
