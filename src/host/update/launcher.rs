//! What the installed binary does before it becomes the agent: it starts the version that should run.
//!
//! ```text
//! installed ── exec ──→ confirmed version            (same pid; nothing stays behind)
//!     │
//!     └─ child: stage ── exec ──→ version on trial   (does nothing but prove itself)
//!           ↑ dies with its parent                    │ has a session: writes "confirmed", ends with HANDED_OVER
//!     waits at most the time to confirm ←─────────────┘
//!     confirmed: exec installed, which becomes it     anything else: "failed", exec installed
//! ```
//! A trial is watched by a process that cannot be changed by it, so that it works bare, where nobody restarts anything.
//! The installed binary is executed anew after each trial: a package may have replaced it, and handlers and memory of
//! this one end with it. Attempts are counted on disk before each start; one that was stopped on request is taken back.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::origin::{INSTALLED, INSTALLED_VERSION, Origin, STAGE, WATCHER, same_again};
use super::plan::{Plan, plan};
use super::slots::Versions;
use super::state::{Slot, State};
use super::watch::enter_stage;
use crate::clock::unix_ms;
use crate::config::UpdateSettings;
use crate::exit::Exit;
use crate::store;

/// What the launcher needs to know.
pub struct Launcher<'a> {
    /// The state directory.
    pub state_dir: &'a Path,
    /// Every directory of a store that the agent opens.
    pub stores: &'a [PathBuf],
    /// Version of this binary.
    pub own_version: &'a str,
    /// Whose signature counts, and how long a trial may take.
    pub settings: UpdateSettings,
    /// What is wrong with these settings.
    pub problems: Vec<String>,
    /// Tells the person who reads the log: there is no logger yet.
    pub say: &'a dyn Fn(&str),
}

impl Launcher<'_> {
    /// Starts what should run. Returns when this process is to be the agent itself (`None`), or with the exit code of the
    /// version that it watched.
    pub fn start(&self) -> Option<u8> {
        if let Some(code) = enter_stage(self.say) {
            return Some(code);
        }
        let versions = Versions::of(self.state_dir);
        let origin = Origin::of_this_process(self.state_dir, self.own_version);
        if origin.slot.is_some() || !versions.are_used() || self.are_in_use() {
            return None;
        }
        let mut state = match versions.load() {
            Ok(state) => state,
            Err(error) => {
                (self.say)(&format!("{error}; the installed version runs"));
                return None;
            }
        };
        let can_go_back = self.stores.iter().all(|dir| store::is_readable_by_this_version(dir));
        let mut trials = true;
        // Each pass removes a candidate or ends here.
        for _ in 0..8 {
            let seen = State { trial: state.trial.clone().filter(|_| trials), ..state.clone() };
            match plan(&seen, self.own_version, can_go_back) {
                Plan::Own => return None,
                Plan::GiveUp(slot, reason) => self.give_up(&versions, &mut state, &slot, &reason),
                Plan::Become(slot) => {
                    let why = self.become_slot(&versions, &origin, &mut state, &slot)?;
                    self.give_up(&versions, &mut state, &slot, &why);
                }
                Plan::Watch(slot) => match self.verify(&versions, &slot)? {
                    Err(why) => self.give_up(&versions, &mut state, &slot, &why),
                    Ok(()) if self.count_attempt(&versions, &mut state) => {
                        return self.watch(&versions, &origin, &slot);
                    }
                    Ok(()) => trials = false,
                },
            }
        }
        None
    }

    fn are_in_use(&self) -> bool {
        self.stores.iter().any(|dir| store::is_in_use(dir))
    }

    /// Where that cannot be noted, it counts for this start only.
    fn give_up(&self, versions: &Versions, state: &mut State, slot: &Slot, why: &str) {
        (self.say)(&format!("version {} is given up: {why}", slot.version));
        state.fail(&slot.sha256, why, unix_ms());
        self.save(versions, state);
    }

    fn save(&self, versions: &Versions, state: &State) -> bool {
        let saved = versions.save(state);
        saved.map_err(|error| (self.say)(&error.to_string())).is_ok()
    }

    /// A trial that is not counted could be begun for ever: the version before it runs then.
    fn count_attempt(&self, versions: &Versions, state: &mut State) -> bool {
        let mut counted = state.clone();
        let Some(trial) = &mut counted.trial else { return false };
        trial.attempts += 1;
        let saved = self.save(versions, &counted);
        if saved {
            *state = counted;
        }
        saved
    }

    /// A stop on request says nothing about the version.
    fn take_back_attempt(&self, versions: &Versions, slot: &Slot) {
        let Ok(mut state) = versions.load() else { return };
        if let Some(trial) = state.trial.as_mut().filter(|trial| trial.slot == *slot) {
            trial.attempts = trial.attempts.saturating_sub(1);
            self.save(versions, &state);
        }
    }

    /// Whether the slot's program is what was signed; `None` without a key.
    fn verify(&self, versions: &Versions, slot: &Slot) -> Option<Result<(), String>> {
        let Some(key) = &self.settings.key else {
            let why = match self.problems.as_slice() {
                [] => "there is no update key (BACKUPY_UPDATE_PUBLIC_KEY)".to_owned(),
                problems => problems.join("; "),
            };
            (self.say)(&format!(
                "version {} cannot be checked and is not started: {why}; the installed version runs",
                slot.version
            ));
            return None;
        };
        Some(versions.verify(&slot.sha256, key).map_err(|error| error.to_string()))
    }

    /// Does not come back, but for the reason why the slot cannot be started; `None` = not its fault.
    fn become_slot(
        &self,
        versions: &Versions,
        origin: &Origin,
        state: &mut State,
        slot: &Slot,
    ) -> Option<String> {
        if let Err(why) = self.verify(versions, slot)? {
            return Some(why);
        }
        state.starts += 1;
        // A full disk is no reason for another version.
        self.save(versions, state);
        let mut command = same_again(&versions.program(&slot.sha256));
        self.tell_origin(&mut command, origin);
        Some(format!("failed to start it: {}", command.exec()))
    }

    pub(super) fn tell_origin(&self, command: &mut Command, origin: &Origin) {
        if let Some(installed) = &origin.installed {
            command.env(INSTALLED, installed);
        }
        command.env(INSTALLED_VERSION, self.own_version).env_remove(WATCHER).env_remove(STAGE);
    }

    /// Watches a version on trial until it is confirmed and hands over, or has failed.
    fn watch(&self, versions: &Versions, origin: &Origin, slot: &Slot) -> Option<u8> {
        (self.say)(&format!("trying version {}", slot.version));
        let mut outcome = self.watch_child(versions, origin, slot);
        if !outcome.hear_stop() {
            match &outcome.failure {
                // Somebody looked into the state directory just then: it proves nothing, and is counted, as it might
                // go on like that.
                Some(_) if outcome.code == Some(Exit::Busy.code()) => {}
                Some(failure) => match versions.load() {
                    Ok(mut state) if state.trial.as_ref().is_some_and(|it| it.slot == *slot) => {
                        self.give_up(versions, &mut state, slot, failure);
                    }
                    Ok(_) => {}
                    Err(error) => (self.say)(&format!("{error}; {failure}")),
                },
                // Confirmed: however it ended, nobody but us starts it again.
                None => {}
            }
        } else if outcome.failure.is_some() && outcome.code == Some(Exit::Ok.code()) {
            // One that hangs at its start would otherwise be tried for ever by a manager that stops it then.
            self.take_back_attempt(versions, slot);
        }
        // A stop that is asked for from here on ends what is executed.
        if !outcome.hear_stop() {
            return self.again(origin);
        }
        let code = outcome.code.unwrap_or(Exit::Internal.code());
        Some(if outcome.ended_as_asked() { Exit::Ok.code() } else { code })
    }

    /// Executes the installed binary, whatever it is by now; comes back only if that is not possible.
    fn again(&self, origin: &Origin) -> Option<u8> {
        let installed = origin.installed.clone().unwrap_or_default();
        let error = same_again(&installed).exec();
        (self.say)(&format!("failed to execute {} again: {error}", installed.display()));
        None
    }
}

/// Executes the installed binary in the place of this process, which has let go of everything: it starts the version that
/// should run. Where a launcher waits, an exit code asks it to do so. Returns the code to end with.
pub fn restart(origin: &Origin) -> Exit {
    if origin.watched {
        return Exit::HandedOver;
    }
    let own = PathBuf::from("/proc/self/exe");
    for program in origin.installed.iter().chain([&own]) {
        let mut command = same_again(program);
        for name in [INSTALLED, INSTALLED_VERSION, STAGE, WATCHER] {
            command.env_remove(name);
        }
        let error = command.exec();
        log::error!("failed to execute {}: {error}", program.display());
    }
    Exit::Internal
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::fs;

    fn trial() -> (Slot, State) {
        let slot = Slot { sha256: "a".repeat(64), version: "2.0.0".to_owned(), instead_of: None };
        let mut state = State::default();
        state.propose(slot.clone(), "1.0.0");
        (slot, state)
    }

    fn with_launcher(dir: &Path, problems: &[&str], act: impl FnOnce(&Launcher<'_>)) -> String {
        let said = RefCell::new(String::new());
        act(&Launcher {
            state_dir: dir,
            stores: &[dir.to_owned(), dir.join("control")],
            own_version: "1.0.0",
            settings: UpdateSettings::default(),
            problems: problems.iter().map(|problem| (*problem).to_owned()).collect(),
            say: &|text| said.borrow_mut().push_str(text),
        });
        said.into_inner()
    }

    #[test]
    fn an_attempt_counts_only_where_it_is_written_down_and_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let versions = Versions::of(dir.path());
        let (slot, mut state) = trial();
        let attempts = || versions.load().unwrap().trial.unwrap().attempts;
        with_launcher(dir.path(), &[], |launcher| {
            assert!(launcher.count_attempt(&versions, &mut state));
            assert_eq!((attempts(), state.trial.as_ref().unwrap().attempts), (1, 1));
            launcher.take_back_attempt(&versions, &slot);
            launcher.take_back_attempt(&versions, &slot);
            assert_eq!(attempts(), 0);
        });
        fs::remove_dir_all(versions.dir()).unwrap();
        fs::write(versions.dir(), b"in the way").unwrap();
        let said = with_launcher(dir.path(), &[], |launcher| {
            let before = state.clone();
            assert!(!launcher.count_attempt(&versions, &mut state));
            assert_eq!(state, before, "the trial is there for the next start");
        });
        assert!(said.contains("failed to write"), "{said}");
    }

    #[test]
    fn why_nothing_can_be_checked_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (_, state) = trial();
        Versions::of(dir.path()).save(&state).unwrap();
        for (problems, expected) in
            [(&[][..], "BACKUPY_UPDATE_PUBLIC_KEY"), (&["failed to read /etc/key"], "/etc/key")]
        {
            let said = with_launcher(dir.path(), problems, |launcher| {
                assert_eq!(launcher.start(), None);
            });
            assert!(said.contains(expected) && said.contains("2.0.0"), "{said}");
        }
        assert_eq!(Versions::of(dir.path()).load().unwrap(), state, "no attempt is used up");
    }

    #[test]
    fn somebody_who_holds_either_store_is_not_disturbed() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        let keys = store::StoreKeys { current: crate::secret::Secret::new("k"), previous: None };
        let held = store::Store::open(&control, &store::Space::AGENT, &keys).unwrap();
        with_launcher(dir.path(), &[], |launcher| assert!(launcher.are_in_use()));
        drop(held);
        with_launcher(dir.path(), &[], |launcher| assert!(!launcher.are_in_use()));
    }
}
