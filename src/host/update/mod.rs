//! Updates of the program itself that cannot leave a host without an agent.
//!
//! ```text
//! order → judge → arrival: download, hash, signature, machine, its own word for its version → slot
//!       → (no run is active) → trial, written down → the process ends in order and executes the installed binary
//!       → launcher: the new version has one minute to a session with the control plane → confirmed | given up
//! ```
//! The installed binary is never written to, so that it may lie on a read-only file system and belong to a package; it is
//! what is left when everything else fails. [`state`] is what is known of versions, [`slots`] where they are, [`plan`] which version runs, [`launcher`] how
//! it is started and watched, [`order`] what is refused. Nothing here knows of sessions or runs: dispatch does.

mod arrival;
pub mod by_hand;
mod download;
mod error;
mod feed;
mod inspect;
pub mod launcher;
mod order;
mod origin;
mod plan;
mod signature;
mod slots;
mod state;
mod version;
mod watch;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::clock::unix_ms;
use crate::config::{ProxySettings, TlsSettings, UpdateSettings};
use crate::model::Trust;
use crate::pipeline::UrlPolicy;
use crate::pipeline::upload::{Caller, Timing};
use crate::store::Migrations;
use crate::thread::Cancel;

pub use error::UpdateError;
pub use order::Order;
pub use origin::Origin;
pub use slots::{MAX_PROGRAM_BYTES, Versions};
pub use state::{Last, Slot, State};
pub use version::Version;

/// Whether this process could start again just as it did.
pub type StartCheck = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Set when the process shall execute the installed binary once it has ended in order. Clones share it.
#[derive(Clone)]
pub struct Restart(Arc<Inner>);

struct Inner {
    requested: AtomicBool,
    check: StartCheck,
}

impl Restart {
    /// Not requested. `check` reads again what a start would read: settings that somebody broke meanwhile would end the
    /// new version and the old one alike.
    pub fn checked_by(check: StartCheck) -> Self {
        Self(Arc::new(Inner { requested: AtomicBool::new(false), check }))
    }

    /// Fails if a start would.
    ///
    /// # Errors
    /// Why.
    pub fn check(&self) -> Result<(), String> {
        (self.0.check)()
    }

    /// Asks for it.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::SeqCst);
    }

    /// Whether somebody did.
    pub fn is_requested(&self) -> bool {
        self.0.requested.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Restart").field(&self.is_requested()).finish()
    }
}

/// What an updater is made from.
#[derive(Debug, Clone)]
pub struct Means {
    /// Version of this process.
    pub version: &'static str,
    /// Whose signature counts, and how long a trial may take.
    pub settings: UpdateSettings,
    /// Where this process came from.
    pub origin: Origin,
    /// Trust roots of a download.
    pub tls: TlsSettings,
    /// Proxy of a download.
    pub proxy: ProxySettings,
    /// Who sends URLs.
    pub trust: Trust,
}

/// The versions on this host, as the process that runs sees them.
#[derive(Debug)]
pub struct Updater {
    means: Means,
    versions: Versions,
    /// Whether the state could be read.
    is_known: bool,
    state: Mutex<State>,
}

impl Updater {
    /// Reads the state. A damaged one is reported and begun anew: the installed version runs then.
    pub fn open(state_dir: &Path, means: Means) -> Self {
        let versions = Versions::of(state_dir);
        let loaded = versions.load().inspect_err(|error| {
            log::error!("{error}; nothing is known of other versions, and none is removed");
        });
        let is_known = loaded.is_ok();
        Self { means, versions, is_known, state: Mutex::new(loaded.unwrap_or_default()) }
    }

    /// Removes versions that no longer count and what interrupted downloads left. For whoever holds the lock of the state
    /// directory. Where the installed version overtook the confirmed one, no other is needed.
    pub fn tidy(&self) {
        // It may be read next time, and name any of them.
        if !self.is_known {
            return;
        }
        let mut state = self.lock();
        let installed = &self.means.origin.installed_version;
        let is_installed = self.means.origin.slot.is_none() && state.trial.is_none();
        if is_installed
            && self.means.settings.key.is_some()
            && state.current.as_ref().is_some_and(|slot| !plan::outranks(slot, installed))
        {
            let fresh = State { current: None, previous: None, starts: 0, ..state.clone() };
            match self.versions.save(&fresh) {
                Ok(()) => *state = fresh,
                Err(error) => log::warn!("{error}"),
            }
        }
        self.versions.sweep(&state);
    }

    /// Whether this process still has to prove itself.
    pub fn on_trial(&self) -> bool {
        self.means.origin.is_on_trial(&self.lock())
    }

    /// What this process may do to a store: a version on trial may be taken back, and the one before could not read
    /// what it changed.
    pub fn migrations(&self) -> Migrations {
        if self.on_trial() { Migrations::Deferred } else { Migrations::Allowed }
    }

    /// Why this host takes no updates; `None` = it does.
    pub fn disabled(&self) -> Option<String> {
        if self.means.settings.key.is_none() {
            return Some(
                "this host takes no updates: there is no update key (BACKUPY_UPDATE_PUBLIC_KEY)"
                    .to_owned(),
            );
        }
        match &self.means.origin.installed {
            None => Some(
                "this process was started from a slot by hand, so that nothing could start another"
                    .to_owned(),
            ),
            Some(path) if !path.is_file() => {
                Some(format!("the installed binary {} is gone", path.display()))
            }
            Some(_) => None,
        }
    }

    /// Whether the control plane may be told that this host takes updates.
    pub fn is_able(&self) -> bool {
        let dir = self.versions.dir();
        let dir = if dir.exists() { Some(dir) } else { dir.parent() };
        let writable =
            dir.is_some_and(|dir| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok());
        self.disabled().is_none() && writable
    }

    /// Whether the order is taken.
    ///
    /// # Errors
    /// The reason why not.
    pub fn judge(&self, order: &Order) -> Result<(), String> {
        if let Some(why) = self.disabled() {
            return Err(why);
        }
        order::judge(order, self.means.version, &self.lock())
    }

    /// Whether an order of `at_ms` is settled: what it names is on trial, runs, or has failed since.
    pub fn is_settled(&self, order: &Order, at_ms: u64) -> bool {
        let state = self.lock();
        let is_it = |slot: &Slot| slot.sha256 == order.sha256;
        state.current.as_ref().is_some_and(is_it)
            || state.trial.as_ref().is_some_and(|trial| is_it(&trial.slot))
            || state
                .last
                .as_ref()
                .is_some_and(|last| last.version == order.version && last.at_ms >= at_ms)
            || (!order.force && state.failed.iter().any(|failed| failed.sha256 == order.sha256))
    }

    /// Gets the version into its slot and makes sure that it is the one that was ordered. May take minutes.
    ///
    /// # Errors
    /// See [`UpdateError`]; nothing is left of it then.
    pub fn obtain(&self, order: &Order, cancel: &Cancel) -> Result<(), UpdateError> {
        let Some(key) = &self.means.settings.key else { return Err(UpdateError::Signature) };
        let there = self.versions.verify(&order.sha256, key);
        let Some(url) = order.url.as_ref().filter(|_| there.is_err()) else {
            there?;
            return check(&self.versions.program(&order.sha256), &order.version, cancel);
        };
        let caller = Caller::new(
            self.means.tls.clone(),
            self.means.proxy.clone(),
            UrlPolicy::HttpsOnly,
            Timing::default(),
            cancel.clone(),
        );
        let caller = if self.means.trust == Trust::Local { caller } else { caller.guarded() };
        let mut arrival = self.versions.arrival(&order.sha256)?;
        download::fetch(&caller, url, &mut arrival)?;
        let program = arrival.prove(&order.sha256, &order.signature, key)?;
        check(&program, &order.version, cancel)?;
        arrival.keep(&order.sha256, key)
    }

    /// Writes down that the next start tries it.
    ///
    /// # Errors
    /// When that is not on the disk; nothing changes then.
    pub fn propose(&self, order: &Order) -> Result<(), UpdateError> {
        let slot = order.slot(&self.means.origin.installed_version);
        self.change(|state| state.propose(slot, self.means.version))
    }

    /// It came to nothing before it was tried.
    pub fn note_failure(&self, order: &Order, error: &str) {
        let last = Last {
            version: order.version.clone(),
            from: self.means.version.to_owned(),
            error: Some(error.to_owned()),
            at_ms: unix_ms(),
            told: true,
        };
        if let Err(error) = self.change(|state| state.last = Some(last)) {
            log::warn!("{error}");
        }
    }

    /// There is a session: this version works.
    ///
    /// # Errors
    /// When that is not on the disk.
    pub fn confirm(&self) -> Result<(), UpdateError> {
        self.change(|state| state.confirm(unix_ms()))
    }

    /// This process did not die at its start.
    pub fn came_up(&self) {
        if self.means.origin.slot.is_none() || self.lock().starts == 0 {
            return;
        }
        if let Err(error) = self.change(|state| state.starts = 0) {
            log::warn!("{error}");
        }
    }

    /// What became of the last update, unless it was told before.
    pub fn untold(&self) -> Option<Last> {
        self.lock().last.clone().filter(|last| !last.told)
    }

    /// It was told. Should that be lost, it is told twice.
    pub fn told(&self) {
        let told = self.change(|state| {
            if let Some(last) = &mut state.last {
                last.told = true;
            }
        });
        if let Err(error) = told {
            log::warn!("{error}");
        }
    }

    /// Where this process came from.
    pub fn origin(&self) -> &Origin {
        &self.means.origin
    }

    /// The time that a version has to prove itself.
    pub fn settings(&self) -> &UpdateSettings {
        &self.means.settings
    }

    /// For `status`.
    pub fn status(&self) -> Value {
        let state = self.lock();
        let last = state.last.as_ref().map(|last| {
            json!({"version": last.version, "from": last.from, "at_ms": last.at_ms, "error": last.error})
        });
        json!({
            "disabled": self.disabled(),
            "installed": self.means.origin.installed,
            "installed_version": self.means.origin.installed_version,
            "slot": self.means.origin.slot,
            "on_trial": state.trial.as_ref().map(|trial| trial.slot.version.clone()),
            "previous": state.previous.as_ref().map(|slot| slot.version.clone()),
            "last": last,
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Result<(), UpdateError> {
        let mut state = self.lock();
        let mut new = state.clone();
        change(&mut new);
        if new != *state {
            self.versions.save(&new)?;
            *state = new;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The binary's own word, after its hash and signature.
fn check(program: &Path, announced: &str, cancel: &Cancel) -> Result<(), UpdateError> {
    inspect::check_machine(program)?;
    let found = inspect::version_of(program, cancel)?;
    if version::bare(&found) == announced {
        return Ok(());
    }
    Err(UpdateError::Version { announced: announced.to_owned(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn updater(dir: &Path) -> Updater {
        let means = Means {
            version: "1.0.0",
            settings: UpdateSettings::default(),
            origin: Origin::of_this_process(dir, "1.0.0"),
            tls: TlsSettings::default(),
            proxy: ProxySettings::default(),
            trust: Trust::Remote,
        };
        Updater::open(dir, means)
    }

    #[test]
    fn nothing_is_removed_where_the_state_does_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let versions = Versions::of(dir.path());
        versions.save(&State::default()).unwrap();
        let slot = versions.dir().join("a".repeat(64));
        std::fs::create_dir(&slot).unwrap();
        std::fs::write(versions.dir().join("state.json"), b"{").unwrap();
        updater(dir.path()).tidy();
        assert!(slot.exists());
        versions.save(&State::default()).unwrap();
        updater(dir.path()).tidy();
        assert!(!slot.exists());
    }

    #[test]
    fn an_order_by_force_is_settled_by_what_came_of_it_and_not_by_what_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let updater = updater(dir.path());
        let order = |version| Order::read(version, None, &"a".repeat(64), &[0x30; 70], true);
        let order = |version| order(version).unwrap();
        let before = unix_ms();
        updater.note_failure(&order("2.0.0"), "it hung");
        let at_ms = updater.lock().last.as_ref().unwrap().at_ms;
        assert!(updater.is_settled(&order("2.0.0"), before));
        assert!(!updater.is_settled(&order("2.0.0"), at_ms + 1), "ordered again since");
        assert!(!updater.is_settled(&order("2.0.1"), before));
    }
}
