//! What to start now, over all backups, and when to look again.
//!
//! The owner calls [`Planner::plan`] whenever something may have changed: the time it was told, a run that
//! ended, a new file. It stores the marks it gets *together with* the runs it starts, and tells
//! [`Planner::accept`] so; what it could not store is simply planned again.
//!
//! A run that makes up for missed slots (or a late one) leaves [`STAGGER`] to the next such run, so that a
//! machine that was off does not dump everything at once.

use std::collections::HashMap;
use std::time::Duration;

use super::{Due, Mark, Schedule, Slot, Window};

/// Pause between two make-up runs.
pub const STAGGER: Duration = Duration::from_secs(30);

/// A slot that is later than this is a make-up run.
const LATE_MS: u64 = 60_000;

/// The longest pause between two looks: a suspended machine or a moved clock shows only when somebody looks.
const LOOK_AGAIN_MS: u64 = 10 * 60_000;

/// One backup's schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The backup's name.
    pub backup: String,
    /// When it runs.
    pub schedule: Schedule,
}

/// A run to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The backup's name.
    pub backup: String,
    /// The slot that it stands for.
    pub slot: Slot,
    /// To be stored with the run.
    pub mark: Mark,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Runs to start, each with its mark.
    pub start: Vec<Start>,
    /// Other marks to store: (backup, mark).
    pub marks: Vec<(String, Mark)>,
    /// When to plan again at the latest, Unix milliseconds.
    pub again_ms: u64,
}

/// Decides what to start. Knows the marks; the catalogue keeps them.
#[derive(Debug, Default)]
pub struct Planner {
    entries: Vec<Entry>,
    window: Option<Window>,
    marks: HashMap<String, Mark>,
    makeup_from_ms: u64,
}

impl Planner {
    /// A planner for these backups, with the marks that the catalogue holds.
    pub fn new(
        entries: Vec<Entry>,
        window: Option<Window>,
        marks: impl IntoIterator<Item = (String, Mark)>,
    ) -> Self {
        Self { entries, window, marks: marks.into_iter().collect(), makeup_from_ms: 0 }
    }

    /// Takes another file's schedules; what did not change keeps its mark.
    pub fn reload(&mut self, entries: Vec<Entry>, window: Option<Window>) {
        self.entries = entries;
        self.window = window;
    }

    /// What to start at `now_ms`. `busy` says whether a run of a backup is still open: its slots wait and
    /// become one run afterwards.
    pub fn plan(&mut self, now_ms: u64, busy: &dyn Fn(&str) -> bool) -> Plan {
        let stagger_ms = u64::try_from(STAGGER.as_millis()).unwrap_or(u64::MAX);
        // A clock that went back must not hold make-up runs for longer than one pause.
        let mut makeup_from_ms = self.makeup_from_ms.min(now_ms.saturating_add(stagger_ms));
        let held_until = self.window.and_then(|window| window.ends_at(now_ms));
        let mut plan = Plan { again_ms: now_ms.saturating_add(LOOK_AGAIN_MS), ..Plan::default() };
        for entry in &self.entries {
            let mark = entry.schedule.settle(self.marks.get(&entry.backup), now_ms);
            match entry.schedule.due(&mark, now_ms) {
                Due::At(at) => plan.look_again(at),
                Due::Never => {}
                Due::Now(slot) => {
                    let makeup = slot.missed > 0 || now_ms.saturating_sub(slot.at_ms) > LATE_MS;
                    if busy(&entry.backup) {
                        // The end of the run is the owner's reason to plan again.
                    } else if let Some(end) = held_until {
                        plan.look_again(end);
                    } else if makeup && now_ms < makeup_from_ms {
                        plan.look_again(makeup_from_ms);
                    } else {
                        if makeup {
                            makeup_from_ms = now_ms.saturating_add(stagger_ms);
                        }
                        if let Some(next) = entry.schedule.next_after(slot.at_ms) {
                            plan.look_again(next);
                        }
                        let mark = entry.schedule.started(slot);
                        plan.start.push(Start { backup: entry.backup.clone(), slot, mark });
                        continue;
                    }
                }
            }
            if self.marks.get(&entry.backup) != Some(&mark) {
                plan.marks.push((entry.backup.clone(), mark));
            }
        }
        self.makeup_from_ms = makeup_from_ms;
        plan
    }

    /// Notes that a mark of a plan is stored.
    pub fn accept(&mut self, backup: &str, mark: Mark) {
        self.marks.insert(backup.to_owned(), mark);
    }

    /// The next slot of a backup after now, for `status` and `runs`.
    pub fn next_slot(&self, backup: &str, now_ms: u64) -> Option<u64> {
        let entry = self.entries.iter().find(|entry| entry.backup == backup)?;
        let mark = entry.schedule.settle(self.marks.get(backup), now_ms);
        match entry.schedule.due(&mark, now_ms) {
            Due::Now(slot) => Some(slot.at_ms),
            Due::At(at) => Some(at),
            Due::Never => None,
        }
    }
}

impl Plan {
    fn look_again(&mut self, at_ms: u64) {
        self.again_ms = self.again_ms.min(at_ms);
    }
}
