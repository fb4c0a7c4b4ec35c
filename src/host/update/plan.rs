//! Which version the launcher starts. Pure.
//!
//! | there is | it starts |
//! |---|---|
//! | a trial that was begun less than twice | the trial, watched |
//! | a confirmed version that is newer than the installed one | that one, in its own place |
//! | a confirmed version that did not come up five times in a row | none of it: it is given up |
//! | anything else | the installed one: it may have been upgraded by a package |

use super::state::{Slot, State};
use super::version::Version;

/// A trial is begun once more when the launcher did not see its end: it was killed, or the machine was.
const MAX_TRIALS: u32 = 2;
/// Starts of a confirmed version that came to nothing.
const MAX_STARTS: u32 = 5;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// Be the agent: the installed version it is.
    Own,
    /// Become this confirmed version.
    Become(Slot),
    /// Watch this one.
    Watch(Slot),
    /// Give this one up and look again.
    GiveUp(Slot, String),
}

/// Decides, for an installed version `own`. `can_go_back` is false where an older version could not read the store.
pub fn plan(state: &State, own: &str, can_go_back: bool) -> Plan {
    if let Some(trial) = &state.trial {
        if !outranks(&trial.slot, own) {
            return Plan::GiveUp(
                trial.slot.clone(),
                format!("version {own} was installed meanwhile, which is not older"),
            );
        }
        if trial.attempts < MAX_TRIALS {
            return Plan::Watch(trial.slot.clone());
        }
        return Plan::GiveUp(
            trial.slot.clone(),
            format!(
                "it was begun {MAX_TRIALS} times, and the process that watches it did not survive that"
            ),
        );
    }
    match &state.current {
        Some(slot) if !outranks(slot, own) => Plan::Own,
        Some(slot) if state.starts >= MAX_STARTS && can_go_back => Plan::GiveUp(
            slot.clone(),
            format!(
                "it was started {MAX_STARTS} times and ended each time before it had a session"
            ),
        ),
        Some(slot) => Plan::Become(slot.clone()),
        None => Plan::Own,
    }
}

/// Whether a version runs instead of the installed one.
pub fn outranks(slot: &Slot, own: &str) -> bool {
    if slot.instead_of.as_deref() == Some(own) {
        return true;
    }
    match (Version::parse(&slot.version), Version::parse(own)) {
        (Some(slot), Some(own)) => slot > own,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(version: &str) -> Slot {
        Slot { sha256: "a".repeat(64), version: version.to_owned(), instead_of: None }
    }

    fn current(version: &str, starts: u32) -> State {
        State { current: Some(slot(version)), starts, ..State::default() }
    }

    #[test]
    fn the_newest_of_installed_and_confirmed_runs() {
        assert_eq!(plan(&State::default(), "1.0.0", true), Plan::Own);
        assert_eq!(plan(&current("1.1.0", 0), "1.0.0", true), Plan::Become(slot("1.1.0")));
        for upgraded in ["1.1.0", "1.2.0", "not a version"] {
            assert_eq!(plan(&current("1.1.0", 0), upgraded, true), Plan::Own, "{upgraded}");
        }
    }

    #[test]
    fn a_forced_step_back_holds_until_something_else_is_installed() {
        let older = Slot { instead_of: Some("1.0.0".to_owned()), ..slot("0.9.0") };
        let state = State { current: Some(older.clone()), ..State::default() };
        assert_eq!(plan(&state, "1.0.0", true), Plan::Become(older));
        assert_eq!(plan(&state, "1.0.1", true), Plan::Own);
    }

    #[test]
    fn a_trial_is_begun_twice_at_most() {
        let mut state = current("1.1.0", 0);
        state.propose(Slot { sha256: "b".repeat(64), ..slot("1.2.0") }, "1.1.0");
        for attempts in 0..2 {
            state.trial.as_mut().unwrap().attempts = attempts;
            assert!(matches!(plan(&state, "1.0.0", true), Plan::Watch(_)), "{attempts}");
        }
        state.trial.as_mut().unwrap().attempts = 2;
        let Plan::GiveUp(slot, reason) = plan(&state, "1.0.0", true) else { panic!("given up") };
        assert_eq!(slot.version, "1.2.0");
        assert!(reason.contains("2 times"), "{reason}");
        assert!(matches!(plan(&state, "1.2.0", true), Plan::GiveUp(..)), "a package was faster");
    }

    #[test]
    fn a_version_that_never_comes_up_is_given_up_where_the_store_allows_it() {
        assert!(matches!(plan(&current("1.1.0", 4), "1.0.0", true), Plan::Become(_)));
        assert!(matches!(plan(&current("1.1.0", 5), "1.0.0", true), Plan::GiveUp(..)));
        assert!(matches!(plan(&current("1.1.0", 5), "1.0.0", false), Plan::Become(_)));
    }
}
