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
//! this one end with it. Attempts are counted on disk before each start.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::origin::{INSTALLED, INSTALLED_VERSION, Origin, STAGE, WATCHER, same_again};
use super::plan::{Plan, plan};
use super::slots::Versions;
use super::state::{Slot, State};
use super::watch::{Watched, enter_stage};
use crate::clock::unix_ms;
use crate::config::UpdateSettings;
use crate::exit::Exit;
use crate::store;

/// What the launcher needs to know.
pub struct Launcher<'a> {
    /// The state directory.
    pub state_dir: &'a Path,
    /// Version of this binary.
    pub own_version: &'a str,
    /// Whose signature counts, and how long a trial may take.
    pub settings: UpdateSettings,
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
        if origin.slot.is_some() || !versions.are_used() || store::is_in_use(self.state_dir) {
            return None;
        }
        // Each pass removes a candidate or ends here.
        for _ in 0..8 {
            let mut state = match versions.load() {
                Ok(state) => state,
                Err(error) => {
                    (self.say)(&format!("{error}; the installed version runs"));
                    return None;
                }
            };
            let can_go_back = store::is_readable_by_this_version(self.state_dir);
            match plan(&state, self.own_version, can_go_back) {
                Plan::Own => return None,
                Plan::GiveUp(slot, reason) => {
                    self.give_up(&versions, &mut state, &slot, &reason)?
                }
                Plan::Become(slot) => {
                    let why = self.become_slot(&versions, &origin, &mut state, &slot)?;
                    self.give_up(&versions, &mut state, &slot, &why)?;
                }
                Plan::Watch(slot) => return self.watch(&versions, &origin, &mut state, &slot),
            }
        }
        None
    }

    /// `None` when that cannot be noted: the installed version runs then.
    fn give_up(
        &self,
        versions: &Versions,
        state: &mut State,
        slot: &Slot,
        why: &str,
    ) -> Option<()> {
        (self.say)(&format!("version {} is given up: {why}", slot.version));
        state.fail(&slot.sha256, why, unix_ms());
        self.save(versions, state)
    }

    fn save(&self, versions: &Versions, state: &State) -> Option<()> {
        let saved = versions.save(state);
        saved.map_err(|error| (self.say)(&format!("{error}; the installed version runs"))).ok()
    }

    /// Whether the slot's program is what was signed; `None` without a key.
    fn verify(&self, versions: &Versions, slot: &Slot) -> Option<Result<(), String>> {
        let Some(key) = &self.settings.key else {
            (self.say)(&format!(
                "version {} is not started: there is no update key (BACKUPY_UPDATE_PUBLIC_KEY) to \
                 check it with; the installed version runs",
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
        if let Err(error) = versions.save(state) {
            (self.say)(&error.to_string());
        }
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
    fn watch(
        &self,
        versions: &Versions,
        origin: &Origin,
        state: &mut State,
        slot: &Slot,
    ) -> Option<u8> {
        let Some(trial) = &mut state.trial else { return None };
        trial.attempts += 1;
        self.save(versions, state)?;
        (self.say)(&format!("trying version {}", slot.version));
        let outcome = match self.verify(versions, slot)? {
            Ok(()) => self.watch_child(versions, origin, slot),
            Err(why) => Watched { failure: Some(why), ..Watched::default() },
        };
        match &outcome.failure {
            // Somebody looked into the state directory just then: it proves nothing, and is counted.
            Some(_) if outcome.code == Some(Exit::Busy.code()) && !outcome.asked_to_stop => {
                self.again(origin)
            }
            Some(failure) if !outcome.asked_to_stop => {
                self.give_up(versions, state, slot, failure);
                self.again(origin)
            }
            _ => self.after(origin, &outcome),
        }
    }

    /// A trial that did not fail: it handed over, or ended in a way that is not the launcher's business.
    fn after(&self, origin: &Origin, outcome: &Watched) -> Option<u8> {
        let code = outcome.code.unwrap_or(Exit::Internal.code());
        if code == Exit::HandedOver.code() && !outcome.asked_to_stop {
            return self.again(origin);
        }
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
