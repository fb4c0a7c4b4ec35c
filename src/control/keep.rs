//! Which artifacts may go. Pure: the runs, the rule and the time are parameters.
//!
//! An artifact is released only if **every** part of the rule releases it: `last = 7` keeps the seven newest
//! good ones, `days = 30` what is younger than 30 days; with both, an artifact goes when it is neither among the
//! seven nor young. Without any part nothing is ever released. The newest good artifact of a backup always
//! stays, and nothing goes while the clock cannot be trusted ([`LastSeen`]).
//!
//! An artifact is *good* if its run completed, it is still there and no verification failed. What is not good
//! never counts towards `last`; it goes by age alone. What was finished in the future was dated by a wrong clock:
//! it stays, and it takes nobody's place, or it would pass for the newest one for ever.

use serde::{Deserialize, Serialize};

const DAY_MS: u64 = 86_400_000;

/// Further ahead of the last time seen, a clock is not believed.
const AHEAD_MAX_MS: u64 = DAY_MS;

/// For how long a clock that is ahead must go on before it is believed: a day of running, over restarts.
const BELIEVED_AFTER_MS: u64 = DAY_MS;

/// How much of a backup stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    /// So many of the newest good artifacts.
    pub last: Option<u32>,
    /// Everything younger than so many days.
    pub days: Option<u32>,
}

/// What the rule looks at in a run of one backup that has an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact<'a> {
    /// The run.
    pub run_id: &'a str,
    /// When it ended, Unix milliseconds.
    pub finished_ms: u64,
    /// Completed, present, and no verification failed.
    pub good: bool,
}

/// The runs of one backup whose artifacts may be deleted, oldest first. In `artifacts` the order does not matter.
pub fn released<'a>(
    artifacts: &[Artifact<'a>],
    rule: Rule,
    now_ms: u64,
    seen: &LastSeen,
) -> Vec<&'a str> {
    if rule == Rule::default() || !seen.believes(now_ms) {
        return Vec::new();
    }
    let dated = |a: &&Artifact<'_>| a.finished_ms <= now_ms.saturating_add(AHEAD_MAX_MS);
    let mut newest_first: Vec<&Artifact<'a>> = artifacts.iter().filter(dated).collect();
    newest_first.sort_by_key(|a| (std::cmp::Reverse(a.finished_ms), std::cmp::Reverse(a.run_id)));
    let mut good_seen = 0u32;
    let mut gone = Vec::new();
    for artifact in newest_first {
        let rank = good_seen;
        good_seen = good_seen.saturating_add(u32::from(artifact.good));
        let last_good = artifact.good && rank == 0;
        let among_last = artifact.good && rule.last.is_some_and(|last| rank < last);
        if !last_good && !among_last && !young(artifact, rule, now_ms) {
            gone.push(artifact.run_id);
        }
    }
    gone.reverse();
    gone
}

/// Young by `days`; a bad artifact without such a rule is young for a day, so that somebody can look at it.
fn young(artifact: &Artifact<'_>, rule: Rule, now_ms: u64) -> bool {
    let days = match rule.days {
        None if artifact.good => return false,
        days => days.unwrap_or(1),
    };
    now_ms < artifact.finished_ms.saturating_add(u64::from(days) * DAY_MS)
}

/// The last time that is believed, kept in the catalogue.
///
/// A clock that is wrong by a year would release everything that rules by age keep. So a time more than a day
/// ahead of the last one seen is not believed, until the process has run with it for a day in all; meanwhile
/// everything but deleting goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastSeen {
    /// Unix milliseconds; 0 = nothing was seen yet.
    pub at_ms: u64,
    /// For how long the process has run with a clock that is ahead.
    pub ahead_ms: u64,
}

impl LastSeen {
    /// Notes the time; `elapsed_ms` is what passed on the monotonic clock since the look before, 0 at the first.
    #[must_use]
    pub fn look(self, now_ms: u64, elapsed_ms: u64) -> Self {
        if self.at_ms == 0 || self.believes(now_ms) {
            return Self { at_ms: self.at_ms.max(now_ms), ahead_ms: 0 };
        }
        let ahead_ms = self.ahead_ms.saturating_add(elapsed_ms);
        if ahead_ms >= BELIEVED_AFTER_MS {
            return Self { at_ms: now_ms, ahead_ms: 0 };
        }
        Self { ahead_ms, ..self }
    }

    /// Whether things may be deleted at this time. Never before a first look.
    pub fn believes(&self, now_ms: u64) -> bool {
        self.at_ms != 0 && now_ms <= self.at_ms.saturating_add(AHEAD_MAX_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_000 * DAY_MS;
    const SEEN: LastSeen = LastSeen { at_ms: NOW, ahead_ms: 0 };

    fn daily(names: &[&'static str]) -> Vec<Artifact<'static>> {
        let aged = names.iter().zip(0u64..);
        aged.map(|(run_id, age)| Artifact {
            run_id,
            finished_ms: NOW - age * DAY_MS - 1,
            good: true,
        })
        .collect()
    }

    fn rule(last: Option<u32>, days: Option<u32>) -> Rule {
        Rule { last, days }
    }

    #[test]
    fn only_what_every_part_releases_goes() {
        let runs = daily(&["a", "b", "c", "d", "e"]);
        assert_eq!(released(&runs, rule(Some(2), None), NOW, &SEEN), ["e", "d", "c"]);
        assert_eq!(released(&runs, rule(None, Some(3)), NOW, &SEEN), ["e", "d"]);
        assert_eq!(released(&runs, rule(Some(2), Some(4)), NOW, &SEEN), ["e"]);
        assert_eq!(released(&runs, rule(Some(4), Some(2)), NOW, &SEEN), ["e"]);
        assert!(released(&runs, rule(None, None), NOW, &SEEN).is_empty());
    }

    #[test]
    fn the_last_good_one_stays_whatever_the_rule() {
        let mut runs = daily(&["a", "b", "c"]);
        runs[0].good = false;
        let later = NOW + 400 * DAY_MS;
        let seen = LastSeen { at_ms: later, ahead_ms: 0 };
        assert_eq!(released(&runs, rule(None, Some(1)), later, &seen), ["c", "a"]);
        assert_eq!(released(&runs, rule(Some(0), None), later, &seen), ["c", "a"]);
    }

    #[test]
    fn one_from_the_future_stays_and_protects_nobody_elses_place() {
        let mut runs = daily(&["a", "b", "c", "d"]);
        runs[3].finished_ms = NOW + 20_000 * DAY_MS;
        assert_eq!(released(&runs, rule(Some(1), None), NOW, &SEEN), ["c", "b"]);
        // The clock went back: what it says about the newest ones lets none of them go.
        let back = NOW - 30 * DAY_MS;
        assert!(released(&runs, rule(Some(1), Some(1)), back, &SEEN).is_empty());
    }

    #[test]
    fn bad_ones_do_not_count_and_go_by_age() {
        let mut runs = daily(&["a", "b", "c", "d"]);
        runs[0].good = false;
        runs[1].good = false;
        assert_eq!(released(&runs, rule(Some(2), None), NOW, &SEEN), ["b"]);
    }

    #[test]
    fn nothing_goes_while_the_clock_is_ahead() {
        let runs = daily(&["a", "b", "c"]);
        let last = rule(Some(1), None);
        assert!(released(&runs, last, NOW + DAY_MS + 1, &SEEN).is_empty());
        assert_eq!(released(&runs, last, NOW + DAY_MS, &SEEN).len(), 2);
        assert!(released(&runs, last, NOW, &LastSeen::default()).is_empty(), "nothing seen yet");
    }

    #[test]
    fn a_clock_that_stays_ahead_is_believed_after_a_day_of_running() {
        let ahead = NOW + 30 * DAY_MS;
        let mut seen = SEEN.look(ahead, 0);
        assert_eq!(seen, SEEN, "a restart alone changes nothing");
        for hour in 1..24u64 {
            seen = seen.look(ahead + hour * DAY_MS / 24, DAY_MS / 24);
            assert!(!seen.believes(ahead));
        }
        seen = seen.look(ahead + DAY_MS, DAY_MS / 24);
        assert!(seen.believes(ahead + DAY_MS));
        assert_eq!(seen.look(NOW, 5).at_ms, ahead + DAY_MS, "the last time seen never goes back");
        assert_eq!(LastSeen { at_ms: NOW, ahead_ms: 7 }.look(NOW + 1, 1).ahead_ms, 0);
    }

    proptest! {
        #[test]
        fn invariants(
            ages in prop::collection::vec((0u64..100, any::<bool>()), 0..30),
            last in prop::option::of(0u32..10),
            days in prop::option::of(0u32..60),
        ) {
            let names: Vec<String> = (0..ages.len()).map(|i| format!("r{i:02}")).collect();
            let runs: Vec<Artifact<'_>> = ages.iter().zip(&names)
                .map(|(&(age, good), run_id)| Artifact { run_id, finished_ms: NOW - age * DAY_MS, good })
                .collect();
            let gone = released(&runs, rule(last, days), NOW, &SEEN);
            let kept_good = runs.iter().filter(|r| r.good && !gone.contains(&r.run_id)).count();
            let good = runs.iter().filter(|r| r.good).count();
            prop_assert!(kept_good >= good.min(last.unwrap_or(1).max(1) as usize));
            for run in runs.iter().filter(|r| gone.contains(&r.run_id)) {
                prop_assert!(now_days(run) >= u64::from(days.unwrap_or(0)));
            }
            if let Some(newest) = runs.iter().filter(|r| r.good).max_by_key(|r| (r.finished_ms, r.run_id)) {
                prop_assert!(!gone.contains(&newest.run_id));
            }
        }
    }

    fn now_days(run: &Artifact<'_>) -> u64 {
        (NOW - run.finished_ms) / DAY_MS
    }
}
