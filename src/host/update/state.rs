//! Which version runs, ran, should run and must not, and how one becomes another. Pure; where it is written, is in `slots`.

use serde::{Deserialize, Serialize};

/// Failed versions that are remembered.
const MAX_FAILED: usize = 16;

/// A version in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// SHA-256 of the program, hex; also the name of its directory.
    pub sha256: String,
    /// What it calls itself.
    pub version: String,
    /// The installed version that somebody wants it to run instead of, although it is not newer (`force`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
}

/// A version that must still prove itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Which.
    pub slot: Slot,
    /// The version that it follows.
    pub from: String,
    /// How often it was begun; counted before each start.
    pub attempts: u32,
}

/// A version that is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// SHA-256 of the program.
    pub sha256: String,
    /// What it calls itself.
    pub version: String,
    /// What happened.
    pub reason: String,
}

/// What became of the last update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// The version that was to run.
    pub version: String,
    /// The version before.
    pub from: String,
    /// Why it does not run; `None` = it does.
    pub error: Option<String>,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// Whether the control plane was told.
    pub told: bool,
}

/// Which version runs, ran, should run, and must not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The confirmed version.
    pub current: Option<Slot>,
    /// The confirmed version before it.
    pub previous: Option<Slot>,
    /// Starts of `current` since it last had a session or lived for a while.
    pub starts: u32,
    /// The version that must still prove itself.
    pub trial: Option<Trial>,
    /// Versions that failed, the newest last.
    pub failed: Vec<Failed>,
    /// What became of the last update.
    pub last: Option<Last>,
}

impl State {
    /// Puts a version on trial at the next start.
    pub fn propose(&mut self, slot: Slot, from: &str) {
        self.failed.retain(|failed| failed.sha256 != slot.sha256);
        self.trial = Some(Trial { slot, from: from.to_owned(), attempts: 0 });
    }

    /// The version on trial has proven itself.
    pub fn confirm(&mut self, now_ms: u64) {
        let Some(trial) = self.trial.take() else { return };
        let replaced = self.current.replace(trial.slot.clone());
        self.previous =
            replaced.filter(|slot| slot.sha256 != trial.slot.sha256).or(self.previous.take());
        self.starts = 0;
        self.last = Some(Last {
            version: trial.slot.version,
            from: trial.from,
            error: None,
            at_ms: now_ms,
            told: false,
        });
    }

    /// A version, on trial or current, is given up.
    pub fn fail(&mut self, sha256: &str, reason: &str, now_ms: u64) {
        let (slot, from) = match (&self.trial, &self.current) {
            (Some(trial), _) if trial.slot.sha256 == sha256 => {
                (trial.slot.clone(), trial.from.clone())
            }
            (_, Some(slot)) if slot.sha256 == sha256 => (slot.clone(), slot.version.clone()),
            _ => return,
        };
        // Of a failed trial of the very binary that is current, the trial is what failed.
        let was_on_trial = self.trial.take_if(|trial| trial.slot.sha256 == sha256).is_some();
        if !was_on_trial && self.current.as_ref().is_some_and(|current| current.sha256 == sha256) {
            self.current = self.previous.take();
            self.starts = 0;
        }
        self.refuse(&slot, reason);
        self.last = Some(Last {
            version: slot.version,
            from,
            error: Some(reason.to_owned()),
            at_ms: now_ms,
            told: false,
        });
    }

    fn refuse(&mut self, slot: &Slot, reason: &str) {
        self.failed.retain(|failed| failed.sha256 != slot.sha256);
        self.failed.push(Failed {
            sha256: slot.sha256.clone(),
            version: slot.version.clone(),
            reason: reason.to_owned(),
        });
        let surplus = self.failed.len().saturating_sub(MAX_FAILED);
        self.failed.drain(..surplus);
    }

    /// Whether the slot is of use.
    pub fn keeps(&self, sha256: &str) -> bool {
        let trial = self.trial.as_ref().map(|trial| &trial.slot);
        [self.current.as_ref(), self.previous.as_ref(), trial]
            .into_iter()
            .flatten()
            .any(|slot| slot.sha256 == sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(letter: &str, version: &str) -> Slot {
        Slot { sha256: letter.repeat(64), version: version.to_owned(), instead_of: None }
    }

    #[test]
    fn a_trial_becomes_current_and_the_one_before_is_kept() {
        let mut state = State::default();
        state.propose(slot("a", "1.0.0"), "0.1.0");
        state.confirm(1);
        state.propose(slot("b", "2.0.0"), "1.0.0");
        assert_eq!(state.current, Some(slot("a", "1.0.0")));
        state.confirm(2);
        assert_eq!(
            (&state.current, &state.previous),
            (&Some(slot("b", "2.0.0")), &Some(slot("a", "1.0.0")))
        );
        assert_eq!(state.last.as_ref().unwrap().error, None);
        state.propose(slot("b", "2.0.0"), "2.0.0");
        state.confirm(3);
        assert_eq!(state.previous, Some(slot("a", "1.0.0")), "the same once more is no step");
    }

    #[test]
    fn a_failure_goes_back_and_is_remembered_until_it_is_proposed_again() {
        let mut state = State { current: Some(slot("a", "1.0.0")), ..State::default() };
        state.propose(slot("b", "2.0.0"), "1.0.0");
        state.fail(&"b".repeat(64), "it hung", 5);
        assert_eq!((&state.current, &state.trial), (&Some(slot("a", "1.0.0")), &None));
        assert_eq!(state.failed[0].reason, "it hung");
        let last = state.last.clone().unwrap();
        assert_eq!(
            (last.version.as_str(), last.from.as_str(), last.told),
            ("2.0.0", "1.0.0", false)
        );
        state.propose(slot("b", "2.0.0"), "1.0.0");
        assert_eq!(state.failed, []);
        let mut state = State { current: Some(slot("b", "2")), ..State::default() };
        state.propose(slot("b", "2"), "1");
        state.fail(&"b".repeat(64), "it hung", 5);
        assert_eq!((&state.current, &state.trial), (&Some(slot("b", "2")), &None));
        let mut state = State {
            current: Some(slot("b", "2")),
            previous: Some(slot("a", "1")),
            starts: 9,
            ..State::default()
        };
        state.fail(&"b".repeat(64), "it never came up", 6);
        assert_eq!((state.current, state.previous, state.starts), (Some(slot("a", "1")), None, 0));
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut state = State::default();
        for number in 0..40 {
            let slot = Slot { sha256: format!("{number:064x}"), ..slot("a", "1.0.0") };
            state.propose(slot.clone(), "0");
            state.fail(&slot.sha256, "no", 0);
        }
        assert_eq!(state.failed.len(), MAX_FAILED);
        assert_eq!(state.failed[MAX_FAILED - 1].sha256, format!("{:064x}", 39));
    }
}
