//! How the checks stand, and when people are told: a check fails once two results in a row say so, and is well again
//! with the first that passes. One that reports nothing for three of its intervals, and for five minutes at least, is
//! silent, which is told as loudly. Pure.
//!
//! What was told is a [`Mark`] that outlives the process: nobody is told the same twice because of a restart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{Check, seconds_or};
use crate::wire::HealthResult;

/// Failures in a row that count: a single lost packet wakes nobody.
const FAILURES: u32 = 2;
/// Intervals without a result that count.
const SILENT_INTERVALS: u64 = 3;
/// The least time without a result that counts.
const SILENT_LEAST_MS: u64 = 5 * 60_000;
/// Of the time between two looks no more counts: in the rest the machine slept, or its clock was set.
const LOOK_MOST_MS: u64 = 90_000;

/// A change that people are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It fails now.
    Failing,
    /// It does not report any more.
    Silent,
    /// It works again.
    Recovered,
}

/// What people know of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// That it works, or nothing.
    #[default]
    Well,
    /// That it fails.
    Failing,
    /// That nothing is heard of it.
    Silent,
}

/// What of a standing outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mark {
    /// What people know.
    pub told: Told,
    /// The error that they were told.
    pub error: String,
}

/// One check.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// The last result; before the first one, what is known from before the restart.
    pub last: HealthResult,
    /// Failures in a row.
    pub failures: u32,
    /// What people were told.
    pub told: Told,
    /// For how long nothing was heard of it, milliseconds.
    pub quiet_ms: u64,
}

impl Standing {
    /// What is to be remembered of it.
    pub fn mark(&self) -> Mark {
        match self.told {
            Told::Well => Mark::default(),
            Told::Failing | Told::Silent => {
                Mark { told: self.told, error: self.last.error.clone() }
            }
        }
    }

    fn take(&mut self, result: HealthResult) -> Option<Change> {
        self.quiet_ms = 0;
        self.failures = if result.ok { 0 } else { self.failures.saturating_add(1) };
        self.last = result;
        let change = match self.told {
            Told::Failing | Told::Silent if self.last.ok => Change::Recovered,
            Told::Well | Told::Silent if self.failures >= FAILURES => Change::Failing,
            Told::Well | Told::Failing | Told::Silent => return None,
        };
        self.told = if change == Change::Recovered { Told::Well } else { Told::Failing };
        Some(change)
    }
}

/// All checks of the file, by name.
#[derive(Debug, Default)]
pub struct Standings {
    checks: BTreeMap<String, Standing>,
    /// When silence was looked for last, Unix milliseconds.
    looked_ms: u64,
}

impl Standings {
    /// As they were before a restart.
    pub fn new(marks: Vec<(String, Mark)>, now_ms: u64) -> Self {
        let standing = |(name, mark): (String, Mark)| {
            let last = HealthResult {
                check_id: name.clone(),
                error: mark.error,
                ..HealthResult::default()
            };
            (name, Standing { last, told: mark.told, ..Standing::default() })
        };
        Self { checks: marks.into_iter().map(standing).collect(), looked_ms: now_ms }
    }

    /// Takes a result; a repeat of the last one changes nothing.
    pub fn take(&mut self, result: HealthResult) -> Option<Change> {
        let standing = self.checks.entry(result.check_id.clone()).or_default();
        if standing.last.ts_ms == result.ts_ms {
            return None;
        }
        standing.take(result)
    }

    /// Looks for checks that have fallen silent: their names, and when to look again, Unix milliseconds.
    pub fn look(&mut self, checks: &[Check], now_ms: u64) -> (Vec<String>, u64) {
        let passed_ms = now_ms.saturating_sub(self.looked_ms).min(LOOK_MOST_MS);
        self.looked_ms = now_ms;
        let (mut silent, mut again_ms) = (Vec::new(), u64::MAX);
        for check in checks {
            let standing = self.checks.entry(check.name.clone()).or_default();
            standing.quiet_ms = standing.quiet_ms.saturating_add(passed_ms);
            let allowed_ms = allowed_ms(check);
            if standing.quiet_ms < allowed_ms {
                again_ms = again_ms.min(now_ms.saturating_add(allowed_ms - standing.quiet_ms));
            } else if standing.told != Told::Silent {
                standing.told = Told::Silent;
                standing.last.error = silence(standing.quiet_ms);
                silent.push(check.name.clone());
            }
        }
        (silent, again_ms)
    }

    /// The file was changed: what is checked in another way now begins anew, so that its quiet time does too.
    pub fn redefined(&mut self, before: &[Check], now: &[Check]) {
        for check in now.iter().filter(|check| !before.contains(check)) {
            if let Some(standing) = self.checks.get_mut(&check.name) {
                standing.quiet_ms = 0;
            }
        }
    }

    /// The standing of one check, if there is one.
    pub fn get(&self, name: &str) -> Option<&Standing> {
        self.checks.get(name)
    }

    /// Forgets what is not in the file any more; the names.
    pub fn keep(&mut self, checks: &[Check]) -> Vec<String> {
        let known = |name: &str| checks.iter().any(|check| check.name == name);
        self.checks.extract_if(.., |name, _| !known(name)).map(|(name, _)| name).collect()
    }
}

fn allowed_ms(check: &Check) -> u64 {
    let interval = seconds_or(check.interval_sec, 60).as_secs() * 1_000;
    interval.saturating_mul(SILENT_INTERVALS).max(SILENT_LEAST_MS)
}

fn silence(quiet_ms: u64) -> String {
    format!("it has not reported for {} min", quiet_ms / 60_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CheckKind;

    const MIN: u64 = 60_000;
    const T0: u64 = 1_800_000_000_000;

    fn result(ts_ms: u64, ok: bool) -> HealthResult {
        let error = if ok { String::new() } else { "refused".to_owned() };
        HealthResult { check_id: "c".into(), ts_ms, ok, error, ..HealthResult::default() }
    }

    fn checks(interval_sec: u32) -> Vec<Check> {
        vec![Check {
            id: "c".into(),
            name: "c".into(),
            kind: CheckKind::Http,
            target: "http://h/".into(),
            interval_sec,
            timeout_sec: 0,
            expected_status: 0,
        }]
    }

    #[test]
    fn two_failures_count_and_one_success_ends_them() {
        let mut standings = Standings::default();
        let mut ts_ms = 0;
        let mut take = |ok| {
            ts_ms += 1;
            let change = standings.take(result(ts_ms, ok));
            assert_eq!(standings.take(result(ts_ms, ok)), None, "a repeat");
            change
        };
        let said: Vec<_> =
            [true, false, true, false, false, false, true, true].map(&mut take).into();
        let (failing, well) = (Some(Change::Failing), Some(Change::Recovered));
        assert_eq!(said, [None, None, None, None, failing, None, well, None]);
    }

    #[test]
    fn what_was_told_is_told_once_for_several_processes() {
        let mut before = Standings::default();
        before.take(result(1, false));
        assert_eq!(before.take(result(2, false)), Some(Change::Failing));
        let mark = before.get("c").unwrap().mark();
        assert_eq!((mark.told, mark.error.as_str()), (Told::Failing, "refused"));
        let restarted = || Standings::new(vec![("c".to_owned(), mark.clone())], T0);
        let mut after = restarted();
        assert_eq!(after.get("c").unwrap().last.error, "refused");
        assert!([3, 4, 5].into_iter().all(|ts| after.take(result(ts, false)).is_none()));
        assert_eq!(after.take(result(6, true)), Some(Change::Recovered));
        assert_eq!(after.get("c").unwrap().mark(), Mark::default());
        assert_eq!(restarted().take(result(3, true)), Some(Change::Recovered));
    }

    #[test]
    fn silence_is_told_once_and_ends_with_a_result() {
        for (interval_sec, allowed) in [(5, 5 * MIN), (0, 5 * MIN), (600, 30 * MIN)] {
            let checks = checks(interval_sec);
            let mut standings = Standings::new(Vec::new(), T0);
            let mut now_ms = T0;
            // Never heard of counts as well as not heard of any more.
            for ts_ms in [1, 2] {
                let heard_ms = now_ms;
                while now_ms < heard_ms + allowed - MIN {
                    now_ms += MIN;
                    let looked = standings.look(&checks, now_ms);
                    assert_eq!(looked, (vec![], heard_ms + allowed), "{interval_sec}");
                }
                assert_eq!(standings.look(&checks, heard_ms + allowed).0, ["c"]);
                now_ms = heard_ms + allowed + MIN;
                assert_eq!(standings.look(&checks, now_ms), (vec![], u64::MAX), "once");
                let standing = standings.get("c").unwrap();
                assert!(standing.mark().error.starts_with("it has not reported for "));
                assert_eq!(standings.take(result(ts_ms, true)), Some(Change::Recovered));
            }
        }
    }

    #[test]
    fn after_silence_a_check_may_fail_too() {
        let (checks, mut standings) = (checks(60), Standings::new(Vec::new(), T0));
        for minute in 1..=5 {
            standings.look(&checks, T0 + minute * MIN);
        }
        assert_eq!(standings.get("c").unwrap().told, Told::Silent);
        assert_eq!(standings.take(result(1, false)), None, "once may be chance");
        assert_eq!(standings.take(result(2, false)), Some(Change::Failing));
    }

    #[test]
    fn a_check_that_is_defined_anew_has_all_its_time_again() {
        let (slow, fast) = (checks(3600), checks(60));
        let mut standings = Standings::new(Vec::new(), T0);
        for minute in 1..=100 {
            assert_eq!(standings.look(&slow, T0 + minute * MIN).0, [""; 0]);
        }
        standings.redefined(&slow, &fast);
        assert_eq!(standings.look(&fast, T0 + 101 * MIN).0, [""; 0]);
        standings.redefined(&fast, &fast);
        for minute in 102..105 {
            assert_eq!(standings.look(&fast, T0 + minute * MIN).0, [""; 0], "{minute}");
        }
        assert_eq!(standings.look(&fast, T0 + 105 * MIN).0, ["c"], "the same file resets nothing");
    }

    #[test]
    fn a_machine_that_slept_and_a_clock_that_was_set_make_nobody_silent() {
        let (checks, mut standings) = (checks(60), Standings::new(Vec::new(), T0));
        for now_ms in [T0 + 86_400_000, T0, T0 + 30 * MIN] {
            assert_eq!(standings.look(&checks, now_ms).0, [""; 0], "{now_ms}");
        }
    }

    #[test]
    fn who_is_not_in_the_file_is_forgotten() {
        let mut standings = Standings::new(vec![("old".to_owned(), Mark::default())], T0);
        standings.take(result(1, true));
        assert_eq!(standings.keep(&checks(60)), ["old"]);
        assert!(standings.get("old").is_none() && standings.get("c").is_some());
    }
}
