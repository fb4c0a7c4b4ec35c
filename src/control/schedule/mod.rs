//! When a backup is due: cron lines (UTC) and intervals. Pure: the time is a parameter.
//!
//! A schedule is a set of *slots*, points in time. A [`Mark`] says up to which point everything is dealt
//! with; it is kept in the catalogue, so that a restart goes on where it stopped. Slots between the mark and
//! now that nobody ran (machine off, asleep, busy) become **one** run that stands for the latest of them.
//!
//! - `every` counts from the mark, so its phase survives restarts; without a mark it is due at once.
//! - A cron line without a mark, or one that was changed, counts from now.
//! - A mark that lies in the future means that the clock went back: beyond one interval (an hour at most) it
//!   is brought back to now, so that nothing starves; within it, it stays, so that nothing runs twice.
//!
//! [`plan`] decides for all backups together, [`crate::calendar::window`] about the maintenance window.

pub mod plan;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::calendar::cron::{CronError, CronLine};
pub use crate::calendar::window::Window;
pub use plan::{Plan, Planner, Start};

/// How many missed slots are counted; more are reported as this many.
pub const MISSED_MAX: u32 = 1000;

/// Furthest a mark may lie in the future before the clock is taken to have gone back.
const AHEAD_MAX_MS: u64 = 3_600_000;

/// When a backup runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// At the times of a cron line, UTC.
    Cron(CronLine),
    /// After every interval; a minute at least.
    Every(Duration),
}

/// How far a backup's schedule has been dealt with. Kept in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The schedule that the mark belongs to, as [`Schedule`] displays it.
    pub schedule: String,
    /// Everything up to here was started or is accounted for, Unix milliseconds.
    pub from_ms: u64,
}

/// A slot to be run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The latest slot that has passed; the run stands for it.
    pub at_ms: u64,
    /// Earlier slots that this run makes up, [`MISSED_MAX`] at most.
    pub missed: u32,
}

/// What a schedule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// A run, now.
    Now(Slot),
    /// Nothing before this time.
    At(u64),
    /// Nothing any more: the cron line has no further date.
    Never,
}

impl Schedule {
    /// The first slot after `after_ms`.
    pub fn next_after(&self, after_ms: u64) -> Option<u64> {
        match self {
            Self::Cron(line) => line.next_after(after_ms),
            Self::Every(interval) => after_ms.checked_add(interval_ms(*interval)),
        }
    }

    /// The mark as it should stand at `now_ms`: made if there is none, brought back if the clock went back,
    /// begun anew if a cron line was changed. Store it when it differs from what is stored.
    pub fn settle(&self, mark: Option<&Mark>, now_ms: u64) -> Mark {
        let from_ms = match (self, mark) {
            (Self::Cron(_), None) => now_ms,
            (Self::Every(interval), None) => now_ms.saturating_sub(interval_ms(*interval)),
            (Self::Cron(line), Some(mark)) if mark.schedule != line.text() => now_ms,
            (_, Some(mark)) => self.brought_back(mark.from_ms, now_ms),
        };
        Mark { schedule: self.to_string(), from_ms }
    }

    fn brought_back(&self, from_ms: u64, now_ms: u64) -> u64 {
        let ahead_ms = from_ms.saturating_sub(now_ms);
        let gap_ms = self.next_after(from_ms).map_or(AHEAD_MAX_MS, |next| next - from_ms);
        if ahead_ms > gap_ms.min(AHEAD_MAX_MS) { now_ms } else { from_ms }
    }

    /// What is due at `now_ms`, given a settled mark.
    pub fn due(&self, mark: &Mark, now_ms: u64) -> Due {
        match self.next_after(mark.from_ms) {
            None => Due::Never,
            Some(next) if next > now_ms => Due::At(next),
            Some(first) => Due::Now(self.latest(first, now_ms)),
        }
    }

    fn latest(&self, first_ms: u64, now_ms: u64) -> Slot {
        match self {
            Self::Every(interval) => {
                let passed = (now_ms - first_ms) / interval_ms(*interval);
                let missed = u32::try_from(passed).unwrap_or(MISSED_MAX).min(MISSED_MAX);
                Slot { at_ms: first_ms + passed * interval_ms(*interval), missed }
            }
            Self::Cron(line) => {
                let at_ms = line.latest_until(now_ms).unwrap_or(first_ms).max(first_ms);
                Slot { at_ms, missed: line.count(first_ms, at_ms, MISSED_MAX) }
            }
        }
    }

    /// The mark after a slot was started.
    pub fn started(&self, slot: Slot) -> Mark {
        Mark { schedule: self.to_string(), from_ms: slot.at_ms }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cron(line) => f.write_str(line.text()),
            Self::Every(interval) => {
                write!(f, "every {}", crate::calendar::duration::display(*interval))
            }
        }
    }
}

/// Never 0, so that nothing divides by it.
fn interval_ms(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1)
}
