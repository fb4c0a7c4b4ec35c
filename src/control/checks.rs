//! How the checks stand, and when people are told: a check fails once two results in a row say so, and is well again
//! with the first that passes. Pure, and in memory only: after a restart a check that still fails is told again.

use std::collections::BTreeMap;

use crate::wire::HealthResult;

/// Failures in a row that count: a single lost packet wakes nobody.
const FAILURES: u32 = 2;

/// A change that people are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It fails now.
    Failing,
    /// It works again.
    Recovered,
}

/// One check.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// The last result.
    pub last: HealthResult,
    /// Failures in a row.
    pub failures: u32,
    /// Whether people were told that it fails.
    pub failing: bool,
}

/// All checks of the file, by name.
#[derive(Debug, Default)]
pub struct Standings(BTreeMap<String, Standing>);

impl Standings {
    /// Takes a result; a repeat of the last one changes nothing.
    pub fn take(&mut self, result: HealthResult) -> Option<Change> {
        let standing = self.0.entry(result.check_id.clone()).or_default();
        if standing.last.ts_ms == result.ts_ms {
            return None;
        }
        standing.failures = if result.ok { 0 } else { standing.failures.saturating_add(1) };
        let was = standing.failing;
        standing.failing = !result.ok && (was || standing.failures >= FAILURES);
        standing.last = result;
        match (was, standing.failing) {
            (false, true) => Some(Change::Failing),
            (true, false) => Some(Change::Recovered),
            (false, false) | (true, true) => None,
        }
    }

    /// The standing of one check, if it has a result.
    pub fn get(&self, name: &str) -> Option<&Standing> {
        self.0.get(name)
    }

    /// Forgets what is not in the file any more.
    pub fn keep(&mut self, known: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| known(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_failures_count_and_one_success_ends_them() {
        let mut standings = Standings::default();
        let mut ts_ms = 0;
        let mut take = |ok| {
            ts_ms += 1;
            let result =
                HealthResult { check_id: "c".into(), ts_ms, ok, ..HealthResult::default() };
            let change = standings.take(result.clone());
            assert_eq!(standings.take(result), None, "a repeat");
            change
        };
        let said: Vec<_> =
            [true, false, true, false, false, false, true, true].map(&mut take).into();
        let (failing, well) = (Some(Change::Failing), Some(Change::Recovered));
        assert_eq!(said, [None, None, None, None, failing, None, well, None]);
    }
}
