//! When which check is probed. Pure: time is a parameter, in milliseconds of any clock that never goes back.
//!
//! - Every check has a rhythm of its own, `due + n · interval`, whose beginning comes from its id, so that equal
//!   intervals do not meet. It does not drift; turns that were missed are left out, never made up for.
//! - Two starts are at least [`GAP_MS`] apart, and a check never overlaps itself.
//! - At most [`MAX_PROBES`] run at once. Of these, checks that took longer than [`SLOW_MS`] the last time get
//!   [`SLOW_PROBES`] only: hosts that are dead never take the places of those that live.
//! - A new configuration keeps the rhythm of every check whose interval stays.

use std::collections::{BTreeSet, HashMap};

use crate::model::Check;

/// Probes at the same time.
pub const MAX_PROBES: usize = 32;
/// Of these, probes of checks that were slow the last time.
pub const SLOW_PROBES: usize = 24;
/// From here on a check is slow.
pub const SLOW_MS: u64 = 1_000;
/// Between two starts: 500 starts in a second at most.
pub const GAP_MS: u64 = 2;
/// Shortest interval in seconds.
pub const MIN_INTERVAL_SEC: u32 = 5;
/// Longest interval in seconds.
pub const MAX_INTERVAL_SEC: u32 = 86_400;
/// Longest timeout in seconds.
pub const MAX_TIMEOUT_SEC: u32 = 60;
/// First probes come within this time, or 10 ms for each check, or an interval.
const FIRST_MS: u64 = 5_000;

/// The interval that is kept: 0 is a minute, the rest is brought within bounds.
pub fn interval_sec(check: &Check) -> u32 {
    match check.interval_sec {
        0 => 60,
        other => other.clamp(MIN_INTERVAL_SEC, MAX_INTERVAL_SEC),
    }
}

/// The timeout that is kept: 0 is ten seconds, the rest is brought within bounds.
pub fn timeout_sec(check: &Check) -> u32 {
    match check.timeout_sec {
        0 => 10,
        other => other.clamp(1, MAX_TIMEOUT_SEC),
    }
}

/// A probe to start now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Tells probes apart; for [`Schedule::done`].
    pub number: u64,
    /// What to probe.
    pub check: Check,
}

#[derive(Debug)]
struct Turn {
    check: Check,
    /// When it is due in its rhythm.
    due_ms: u64,
    /// Under which time it is queued, unless it runs: `due_ms`, or earlier on request.
    queued_ms: Option<u64>,
    running: Option<u64>,
    slow: bool,
}

/// The schedule.
#[derive(Debug, Default)]
pub struct Schedule {
    turns: HashMap<String, Turn>,
    prompt: BTreeSet<(u64, String)>,
    slow: BTreeSet<(u64, String)>,
    /// Probes under way, whether anybody still wants them or not: the check, and whether it counts as slow.
    running: HashMap<u64, (String, bool)>,
    next_number: u64,
    last_start_ms: Option<u64>,
}

impl Schedule {
    /// Takes another set of checks with unique ids.
    pub fn configure(&mut self, checks: Vec<Check>, now_ms: u64) {
        let mut old = std::mem::take(&mut self.turns);
        self.prompt.clear();
        self.slow.clear();
        let count = checks.len() as u64;
        for check in checks {
            let interval = u64::from(interval_sec(&check)) * 1_000;
            let first = now_ms + phase(&check.id) % interval.min(FIRST_MS.max(count * 10));
            let turn = match old.remove(&check.id) {
                Some(turn) if turn.check == check => turn,
                // What is under way asks another question.
                Some(turn) if interval_sec(&turn.check) == interval_sec(&check) => Turn {
                    queued_ms: Some(turn.queued_ms.unwrap_or(turn.due_ms)),
                    running: None,
                    slow: false,
                    check,
                    due_ms: turn.due_ms,
                },
                Some(_) | None => Turn {
                    check,
                    due_ms: first,
                    queued_ms: Some(first),
                    running: None,
                    slow: false,
                },
            };
            let id = turn.check.id.clone();
            if let Some(at) = turn.queued_ms {
                self.queue(turn.slow).insert((at, id.clone()));
            }
            self.turns.insert(id, turn);
        }
    }

    /// Whether that check is configured.
    pub fn has(&self, id: &str) -> bool {
        self.turns.contains_key(id)
    }

    /// Brings a check to the front, its rhythm untouched; one that is being probed is not probed again.
    pub fn run_now(&mut self, id: &str, now_ms: u64) {
        let Some(turn) = self.turns.get_mut(id) else { return };
        let Some(at) = turn.queued_ms else { return };
        turn.queued_ms = Some(now_ms.min(at));
        let slow = turn.slow;
        self.queue(slow).remove(&(at, id.to_owned()));
        // Somebody waits for it: it takes no turn behind those that are slow.
        self.prompt.insert((now_ms.min(at), id.to_owned()));
        if let Some(turn) = self.turns.get_mut(id) {
            turn.slow = false;
        }
    }

    /// When to call [`Self::take`] next; `None` while nothing can start before a probe ends.
    pub fn next_ms(&self) -> Option<u64> {
        let (at, _) = self.head()?;
        Some(self.last_start_ms.map_or(*at, |last| (*at).max(last + GAP_MS)))
    }

    /// The next probe, if one is due.
    pub fn take(&mut self, now_ms: u64) -> Option<Start> {
        if self.next_ms()? > now_ms {
            return None;
        }
        let head = self.head()?.clone();
        let turn = self.turns.get_mut(&head.1)?;
        let slow = turn.slow;
        self.next_number += 1;
        let number = self.next_number;
        turn.running = Some(number);
        turn.queued_ms = None;
        let interval = u64::from(interval_sec(&turn.check)) * 1_000;
        if turn.due_ms <= now_ms {
            turn.due_ms += ((now_ms - turn.due_ms) / interval + 1) * interval;
        }
        let check = turn.check.clone();
        self.queue(slow).remove(&head);
        self.running.insert(number, (head.1, slow));
        self.last_start_ms = Some(now_ms);
        Some(Start { number, check })
    }

    /// A probe ended after `took_ms`; whether its result still answers a question that is asked.
    pub fn done(&mut self, number: u64, took_ms: u64, now_ms: u64) -> bool {
        let Some((id, _)) = self.running.remove(&number) else { return false };
        let Some(turn) = self.turns.get_mut(&id) else { return false };
        if turn.running != Some(number) {
            return false;
        }
        turn.running = None;
        turn.slow = took_ms >= SLOW_MS;
        let interval = u64::from(interval_sec(&turn.check)) * 1_000;
        if turn.due_ms < now_ms {
            turn.due_ms += (now_ms - turn.due_ms).div_ceil(interval) * interval;
        }
        let (at, slow) = (turn.due_ms, turn.slow);
        turn.queued_ms = Some(at);
        self.queue(slow).insert((at, id));
        true
    }

    fn queue(&mut self, slow: bool) -> &mut BTreeSet<(u64, String)> {
        if slow { &mut self.slow } else { &mut self.prompt }
    }

    /// The first of those that may start at all.
    fn head(&self) -> Option<&(u64, String)> {
        if self.running.len() >= MAX_PROBES {
            return None;
        }
        let crawling = self.running.values().filter(|(_, slow)| *slow).count();
        let slow = self.slow.first().filter(|_| crawling < SLOW_PROBES);
        match (self.prompt.first(), slow) {
            (Some(prompt), Some(slow)) => Some(prompt.min(slow)),
            (prompt, slow) => prompt.or(slow),
        }
    }
}

/// FNV-1a: the same check has the same place after every restart.
fn phase(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::CheckKind;

    fn check(id: &str, interval_sec: u32) -> Check {
        Check {
            id: id.to_owned(),
            name: String::new(),
            kind: CheckKind::Tcp,
            target: String::new(),
            interval_sec,
            timeout_sec: 0,
            expected_status: 0,
        }
    }

    /// Runs until `end_ms`, each probe taking `took`; the starts.
    fn play(
        schedule: &mut Schedule,
        from_ms: u64,
        end_ms: u64,
        took: impl Fn(&str) -> u64,
    ) -> Vec<(u64, String)> {
        let mut starts = Vec::new();
        let mut ends: BTreeSet<(u64, u64, u64)> = BTreeSet::new();
        let mut now = from_ms;
        while now <= end_ms {
            while let Some((at, number, took)) = ends.first().copied().filter(|end| end.0 <= now) {
                ends.remove(&(at, number, took));
                assert!(schedule.done(number, took, now));
            }
            while let Some(start) = schedule.take(now) {
                let took = took(&start.check.id);
                ends.insert((now + took, start.number, took));
                starts.push((now, start.check.id));
                assert!(ends.len() <= MAX_PROBES);
            }
            let next = schedule.next_ms().into_iter().chain(ends.first().map(|end| end.0));
            now = next.min().unwrap_or(end_ms + 1).max(now);
        }
        starts
    }

    proptest! {
        #[test]
        fn every_check_keeps_its_interval_and_no_two_start_together(
            intervals in prop::collection::vec(5u32..40, 1..60),
            took in 0u64..900,
        ) {
            let mut schedule = Schedule::default();
            let checks: Vec<_> =
                intervals.iter().enumerate().map(|(n, i)| check(&format!("c{n}"), *i)).collect();
            schedule.configure(checks, 1_000);
            let starts = play(&mut schedule, 1_000, 200_000, |_| took);
            for pair in starts.windows(2) {
                prop_assert!(pair[1].0 >= pair[0].0 + GAP_MS, "{pair:?}");
            }
            for (n, interval) in intervals.iter().enumerate() {
                let id = format!("c{n}");
                let own: Vec<u64> =
                    starts.iter().filter(|start| start.1 == id).map(|start| start.0).collect();
                prop_assert!(own[0] <= 1_000 + FIRST_MS + 1_000, "{own:?}");
                for (turn, at) in own.iter().enumerate() {
                    let due = own[0] + turn as u64 * u64::from(*interval) * 1_000;
                    prop_assert!(at.abs_diff(due) <= 1_000, "{id} {at} {due}");
                }
            }
        }

        #[test]
        fn a_change_keeps_the_rhythm_of_the_rest(keep in 5u32..60, change_at in 10_000u64..90_000) {
            let run = |changes: bool| {
                let mut schedule = Schedule::default();
                schedule.configure(vec![check("keep", keep), check("other", 10)], 0);
                let mut starts = play(&mut schedule, 0, change_at, |_| 0);
                let other = check("other", if changes { 7 } else { 10 });
                schedule.configure(vec![other, check("keep", keep)], change_at);
                starts.extend(play(&mut schedule, change_at + 1, 200_000, |_| 0));
                starts.retain(|start| start.1 == "keep");
                starts
            };
            let (quiet, changed) = (run(false), run(true));
            prop_assert_eq!(quiet.len(), changed.len());
            for (a, b) in quiet.iter().zip(&changed) {
                prop_assert!(a.0.abs_diff(b.0) <= 2 * GAP_MS);
            }
        }
    }

    #[test]
    fn dead_hosts_do_not_hold_up_the_living() {
        let mut schedule = Schedule::default();
        let mut checks: Vec<_> = (0..500).map(|n| check(&format!("dead{n}"), 60)).collect();
        checks.push(check("alive", 10));
        schedule.configure(checks, 0);
        let took = |id: &str| if id == "alive" { 5 } else { 60_000 };
        let starts = play(&mut schedule, 0, 3_600_000, took);
        let own: Vec<u64> = starts.iter().filter(|s| s.1 == "alive").map(|s| s.0).collect();
        // Once the dead ones are known for what they are, nothing waits for them.
        let late = own.iter().filter(|at| **at > 1_800_000).count();
        assert_eq!(late, 180, "{own:?}");
    }

    #[test]
    fn missed_turns_are_left_out() {
        let mut schedule = Schedule::default();
        schedule.configure(vec![check("a", 10)], 0);
        let first = play(&mut schedule, 0, 9_000, |_| 0);
        assert_eq!(first.len(), 1);
        let after = play(&mut schedule, 1_000_000, 1_009_999, |_| 0);
        assert!(after.len() <= 2, "{after:?}");
    }

    #[test]
    fn run_now_comes_first_and_leaves_the_rhythm() {
        let mut schedule = Schedule::default();
        schedule.configure(vec![check("a", 60)], 0);
        let start = schedule.take(schedule.next_ms().unwrap()).unwrap();
        schedule.done(start.number, 0, 5_000);
        let due = schedule.next_ms().unwrap();
        schedule.run_now("a", 20_000);
        assert_eq!(schedule.next_ms(), Some(20_000));
        let start = schedule.take(20_000).unwrap();
        assert!(schedule.done(start.number, 0, 20_010));
        assert_eq!(schedule.next_ms(), Some(due));
    }

    #[test]
    fn the_answer_to_an_old_question_is_no_result() {
        let mut schedule = Schedule::default();
        schedule.configure(vec![check("a", 60)], 0);
        let start = schedule.take(10_000).unwrap();
        schedule.configure(vec![Check { target: "other".into(), ..check("a", 60) }], 10_001);
        assert!(!schedule.done(start.number, 0, 10_002));
        let start = schedule.take(100_000).unwrap();
        schedule.configure(Vec::new(), 100_001);
        assert!(!schedule.has("a") && !schedule.done(start.number, 0, 100_002));
    }

    #[test]
    fn absurd_values_are_brought_within_bounds() {
        let with = |interval, timeout| Check { timeout_sec: timeout, ..check("a", interval) };
        let kept = |check: Check| (interval_sec(&check), timeout_sec(&check));
        assert_eq!(kept(with(0, 0)), (60, 10));
        assert_eq!(kept(with(1, 1)), (5, 1));
        assert_eq!(kept(with(u32::MAX, u32::MAX)), (86_400, 60));
    }
}
