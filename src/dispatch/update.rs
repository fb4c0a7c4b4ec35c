//! Updates of the program itself, as far as runs and sessions are concerned: when an order is taken, when nothing runs
//! any more, and when a new version has proven itself.
//!
//! ```text
//! order ── stored, acknowledged ──→ obtaining (thread `update`) ──→ waiting for runs ──→ leaving
//! ```
//! A version on trial starts no run: it gets a session, writes that down, and makes room for itself as the real thing.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::messages;
use super::{Dispatch, DispatchError};
use crate::clock::unix_ms;
use crate::host::update::{Order, Restart, UpdateError, Updater};
use crate::observe::tap::TOLD;
use crate::redact::clean;
use crate::secret::Secret;
use crate::store::{Space, Store};
use crate::thread::{self, Cancel, Why};
use crate::wire::{LogLevel, SelfUpdate};

/// The order that is being carried out, in [`Space::Meta`].
const PENDING_KEY: &[u8] = b"update/pending";
/// How long no new run starts so that the running ones come to an end. After that, runs are started again, and the
/// update waits for a moment in which none runs.
const HOLD: Duration = Duration::from_secs(600);

/// An order from somebody at the host.
#[derive(Debug)]
pub struct Ordered {
    /// What.
    pub order: Order,
    /// Gets the reason of a refusal.
    pub answer: Sender<Result<(), String>>,
}

/// How getting a version ended.
pub type Obtained = Result<(), UpdateError>;

/// Where an update stands.
pub(super) struct Updates {
    updater: Arc<Updater>,
    restart: Restart,
    phase: Phase,
    /// When a process that lives counts as one that came up.
    lived_at: Option<Instant>,
    nothing: Receiver<Obtained>,
}

enum Phase {
    Idle,
    Obtaining { order: Order, cancel: Cancel, thread: JoinHandle<()>, result: Receiver<Obtained> },
    Waiting { order: Order, hold_until: Instant },
    Leaving,
}

/// An order as it is stored; the URL may hold a signature, which the store seals.
#[derive(Serialize, Deserialize)]
struct Pending {
    version: String,
    url: Option<String>,
    sha256: String,
    signature: Vec<u8>,
    force: bool,
    /// When it was taken, Unix milliseconds.
    #[serde(default)]
    at_ms: u64,
}

impl Updates {
    pub(super) fn new(updater: Arc<Updater>, restart: Restart) -> Self {
        let lived_at = Instant::now() + updater.settings().confirm_timeout;
        Self { updater, restart, phase: Phase::Idle, lived_at: Some(lived_at), nothing: never() }
    }

    pub(super) fn obtained(&self) -> &Receiver<Obtained> {
        match &self.phase {
            Phase::Obtaining { result, .. } => result,
            Phase::Idle | Phase::Waiting { .. } | Phase::Leaving => &self.nothing,
        }
    }

    /// Whether no run may start now.
    pub(super) fn hold_runs(&self, now: Instant) -> bool {
        match &self.phase {
            Phase::Waiting { hold_until, .. } => now < *hold_until,
            Phase::Leaving => true,
            Phase::Idle | Phase::Obtaining { .. } => self.updater.on_trial(),
        }
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        let hold = match &self.phase {
            Phase::Waiting { hold_until, .. } => Some(*hold_until),
            Phase::Idle | Phase::Obtaining { .. } | Phase::Leaving => None,
        };
        let now = Instant::now();
        [hold.filter(|until| *until > now), self.lived_at].into_iter().flatten().min()
    }

    pub(super) fn stop(&self) {
        if let Phase::Obtaining { cancel, .. } = &self.phase {
            cancel.cancel(Why::Shutdown);
        }
    }

    /// Joins the thread that [`Updates::stop`] has told to end.
    pub(super) fn leave(&mut self) {
        if let Phase::Obtaining { thread, .. } = std::mem::replace(&mut self.phase, Phase::Leaving)
            && thread.join().is_err()
        {
            log::error!("the update thread panicked");
        }
    }

    pub(super) fn value(&self) -> Value {
        let mut value = self.updater.status();
        let (phase, version) = match &self.phase {
            Phase::Idle => return value,
            Phase::Obtaining { order, .. } => ("getting", order.version.as_str()),
            Phase::Waiting { order, .. } => ("waiting for runs to end", order.version.as_str()),
            Phase::Leaving => ("restarting", ""),
        };
        value["phase"] = phase.into();
        value["version"] = version.into();
        value
    }

    fn order(&self) -> Option<&Order> {
        match &self.phase {
            Phase::Obtaining { order, .. } | Phase::Waiting { order, .. } => Some(order),
            Phase::Idle | Phase::Leaving => None,
        }
    }
}

impl Dispatch {
    /// `Ok(Err(reason))` is a refusal.
    pub(super) fn on_self_update(
        &mut self,
        command: &SelfUpdate,
    ) -> Result<Result<(), String>, DispatchError> {
        if !self.config.advanced.auto_update_enabled {
            return Ok(
                Err("auto_update_enabled is false in this agent's configuration".to_owned()),
            );
        }
        let order = Order::read(
            &command.target_version,
            Some(command.binary_url.clone()),
            &command.sha256,
            &command.cosign_signature,
            command.force,
        );
        match order {
            Ok(order) => self.take_order(order),
            Err(reason) => Ok(Err(reason)),
        }
    }

    pub(super) fn on_ordered(&mut self, ordered: Ordered) {
        let answer = match self.take_order(ordered.order) {
            Ok(answer) => answer,
            Err(error) => Err(error.to_string()),
        };
        // A caller that no longer waits is not an error.
        let _ = ordered.answer.try_send(answer);
    }

    fn take_order(&mut self, order: Order) -> Result<Result<(), String>, DispatchError> {
        if self.stopping.is_some() {
            return Ok(Err("the process is stopping".to_owned()));
        }
        if let Some(other) = self.updates.order() {
            let same = other.sha256 == order.sha256 && other.version == order.version;
            return Ok(if same {
                Ok(())
            } else {
                Err(format!("an update to version {} is under way", other.version))
            });
        }
        if let Err(reason) = self.updates.updater.judge(&order) {
            return Ok(Err(reason));
        }
        self.store_pending(Some(&order))?;
        log::info!("updating to version {}", order.version);
        self.obtain(order);
        Ok(Ok(()))
    }

    /// Goes on with an order that the last process was carrying out, and tells what became of the last update.
    pub(super) fn resume_update(&mut self) -> Result<(), DispatchError> {
        self.tell_of_update();
        let Some((order, at_ms)) = load_pending(&self.store)? else { return Ok(()) };
        let updater = &self.updates.updater;
        if updater.on_trial() || updater.is_settled(&order, at_ms) {
            return self.store_pending(None);
        }
        match updater.judge(&order) {
            Ok(()) => self.obtain(order),
            Err(reason) => self.update_failed(&order, &reason),
        }
        Ok(())
    }

    fn obtain(&mut self, order: Order) {
        match self.spawn_update(&order) {
            Ok((cancel, thread, result)) => {
                self.updates.phase = Phase::Obtaining { order, cancel, thread, result };
            }
            Err(error) => self.update_failed(&order, &format!("failed to start a thread: {error}")),
        }
    }

    fn spawn_update(
        &self,
        order: &Order,
    ) -> std::io::Result<(Cancel, JoinHandle<()>, Receiver<Obtained>)> {
        let (sender, result) = bounded(1);
        let cancel = Cancel::new()?;
        let (updater, order, token) = (self.updates.updater.clone(), order.clone(), cancel.clone());
        let thread = thread::spawn("update", move || {
            // Nobody waits for it once the process stops.
            let _ = sender.send(updater.obtain(&order, &token));
        })?;
        Ok((cancel, thread, result))
    }

    pub(super) fn on_obtained(&mut self, obtained: Option<Obtained>) {
        let phase = std::mem::replace(&mut self.updates.phase, Phase::Idle);
        let Phase::Obtaining { order, thread, .. } = phase else { return };
        let died = thread.join().is_err();
        match obtained {
            Some(Ok(())) => {
                if !self.running.is_empty() {
                    log::info!("version {} is ready and waits for runs to end", order.version);
                }
                let hold_until = Instant::now() + HOLD;
                self.updates.phase = Phase::Waiting { order, hold_until };
            }
            // It goes on at the next start.
            Some(Err(UpdateError::Stopped)) => {}
            Some(Err(error)) => self.update_failed(&order, &error.to_string()),
            None => {
                let what = if died { "the thread that gets it died" } else { "it has no end" };
                self.update_failed(&order, what);
            }
        }
    }

    fn update_failed(&mut self, order: &Order, error: &str) {
        let error = clean(error);
        self.updates.updater.note_failure(order, &error);
        if let Err(error) = self.store_pending(None) {
            log::warn!("failed to forget an update: {error}");
        }
        let text = format!("the update to version {} failed: {error}", order.version);
        self.tell(LogLevel::Error, "", &text);
    }

    /// Leaves once nothing runs.
    pub(super) fn go_on_with_update(&mut self, now: Instant) {
        if self.updates.lived_at.is_some_and(|at| at <= now) {
            self.updates.lived_at = None;
            if !self.updates.updater.on_trial() {
                self.updates.updater.came_up();
            }
        }
        let is_idle = self.running.is_empty() && self.unsaved.is_empty();
        if self.stopping.is_some() || !is_idle {
            return;
        }
        let Phase::Waiting { order, .. } = &self.updates.phase else { return };
        let order = order.clone();
        let proposed = self.updates.restart.check().map_err(|why| {
            format!("neither it nor the version that runs could start with the settings as they are now: {why}")
        });
        let propose = |()| self.updates.updater.propose(&order).map_err(|error| error.to_string());
        if let Err(error) = proposed.and_then(propose) {
            self.updates.phase = Phase::Idle;
            return self.update_failed(&order, &error);
        }
        // Otherwise the next start sees that it was carried out.
        if let Err(error) = self.store_pending(None) {
            log::warn!("failed to forget an update: {error}");
        }
        log::info!("stopping so that version {} can be tried", order.version);
        self.leave_for_update();
    }

    fn leave_for_update(&mut self) {
        self.updates.phase = Phase::Leaving;
        self.updates.restart.request();
        self.stop.cancel(Why::Shutdown);
    }

    /// There is a session.
    pub(super) fn prove_version(&mut self) {
        if !self.updates.updater.on_trial() {
            self.updates.lived_at = None;
            return self.updates.updater.came_up();
        }
        match self.updates.updater.confirm() {
            Ok(()) => {
                self.tell_of_update();
                self.leave_for_update();
            }
            Err(error) => log::error!("this version works and cannot write that down: {error}"),
        }
    }

    /// Says what became of the last update, once.
    fn tell_of_update(&mut self) {
        let Some(last) = self.updates.updater.untold() else { return };
        let (level, text) = match &last.error {
            None => {
                (LogLevel::Info, format!("updated from version {} to {}", last.from, last.version))
            }
            Some(error) => (
                LogLevel::Error,
                format!("the update to version {} was taken back: {error}", last.version),
            ),
        };
        match self.commit(Vec::new(), vec![messages::log_event(level, "", &text)]) {
            Ok(()) => self.updates.updater.told(),
            Err(error) => log::warn!(target: TOLD, "failed to queue a log event: {error}"),
        }
        match level {
            LogLevel::Error => log::error!(target: TOLD, "{text}"),
            _ => log::info!(target: TOLD, "{text}"),
        }
    }

    fn store_pending(&self, order: Option<&Order>) -> Result<(), DispatchError> {
        let mut batch = self.store.batch();
        match order {
            None => batch.delete(Space::Meta, PENDING_KEY.to_vec()),
            Some(order) => {
                batch.put(Space::Meta, PENDING_KEY.to_vec(), pending(order, unix_ms()));
            }
        }
        Ok(self.store.commit(batch)?)
    }
}

fn pending(order: &Order, at_ms: u64) -> Vec<u8> {
    let pending = Pending {
        version: order.version.clone(),
        url: order.url.as_ref().map(|url| url.expose().to_owned()),
        sha256: order.sha256.clone(),
        signature: order.signature.clone(),
        force: order.force,
        at_ms,
    };
    serde_json::to_vec(&pending).unwrap_or_default()
}

/// The order, and when it was taken. One that does not read is of a version that knew more; it is forgotten.
fn load_pending(store: &Store) -> Result<Option<(Order, u64)>, DispatchError> {
    let Some(bytes) = store.get(Space::Meta, PENDING_KEY)? else { return Ok(None) };
    let pending = serde_json::from_slice::<Pending>(&bytes)
        .map_err(|error| {
            log::warn!("forgot an update that was ordered: its record does not read: {error}")
        })
        .ok();
    Ok(pending.map(|pending| {
        let order = Order {
            version: pending.version,
            url: pending.url.map(Secret::new),
            sha256: pending.sha256,
            signature: pending.signature,
            force: pending.force,
        };
        (order, pending.at_ms)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ProxySettings, TlsSettings, UpdateSettings};
    use crate::host::update::{Means, Origin};
    use crate::model::Trust;
    use crate::secret::Secret;
    use crate::store::StoreKeys;

    fn order() -> Order {
        let url = Some(Secret::new("https://h.example/b?sig=1"));
        Order::read("9.9.9", url, &"a".repeat(64), &[0x30; 70], true).unwrap()
    }

    fn updates(dir: &std::path::Path) -> Updates {
        let means = Means {
            version: "0.1.0",
            settings: UpdateSettings::default(),
            origin: Origin::of_this_process(dir, "0.1.0"),
            tls: TlsSettings::default(),
            proxy: ProxySettings::default(),
            trust: Trust::Remote,
        };
        Updates::new(Arc::new(Updater::open(dir, means)), Restart::checked_by(Box::new(|| Ok(()))))
    }

    #[test]
    fn runs_are_held_for_a_while_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut updates = updates(dir.path());
        let now = Instant::now();
        assert!(!updates.hold_runs(now));
        updates.phase = Phase::Waiting { order: order(), hold_until: now + HOLD };
        assert!(updates.hold_runs(now));
        assert!(updates.next_timer().unwrap() <= now + HOLD);
        assert!(!updates.hold_runs(now + HOLD));
        assert_eq!(updates.value()["phase"], "waiting for runs to end");
        updates.phase = Phase::Leaving;
        assert!(updates.hold_runs(now + HOLD));
    }

    #[test]
    fn an_order_survives_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let keys = StoreKeys { current: Secret::new("k"), previous: None };
        let store = Store::open(dir.path(), &Space::AGENT, &keys).unwrap();
        assert_eq!(load_pending(&store).unwrap(), None);
        let mut batch = store.batch();
        batch.put(Space::Meta, PENDING_KEY.to_vec(), pending(&order(), 7));
        store.commit(batch).unwrap();
        assert_eq!(load_pending(&store).unwrap(), Some((order(), 7)));
        let mut batch = store.batch();
        batch.put(Space::Meta, PENDING_KEY.to_vec(), b"of a later version".to_vec());
        store.commit(batch).unwrap();
        assert_eq!(load_pending(&store).unwrap(), None);
    }
}
