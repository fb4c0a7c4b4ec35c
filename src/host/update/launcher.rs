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

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::plan::{Plan, plan};
use super::slots::{DIR, PROGRAM, Slot, State, Versions};
use crate::clock::unix_ms;
use crate::config::UpdateSettings;
use crate::exit::Exit;
use crate::hex::unhex32;
use crate::store::{self, Migrations};
use crate::thread;

/// For a version that was started from a slot: the installed binary, and its version.
const INSTALLED: &str = "BACKUPY_INSTALLED";
const INSTALLED_VERSION: &str = "BACKUPY_INSTALLED_VERSION";
/// For the child that becomes the version on trial: its program, and the process that watches it.
const STAGE: &str = "BACKUPY_LAUNCH_STAGE";
const WATCHER: &str = "BACKUPY_LAUNCH_WATCHER";
/// The exit codes of a shell for a program that cannot be executed.
const CANNOT_EXECUTE: u8 = 126;

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

/// Where a process came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The installed binary, which starts the others; `None` = somebody started a slot by hand.
    pub installed: Option<PathBuf>,
    /// Its version.
    pub installed_version: String,
    /// The slot that this process was started from; `None` = it is the installed binary.
    pub slot: Option<String>,
    /// Whether a launcher waits for its end.
    pub watched: bool,
}

impl Origin {
    /// That of this process. To be asked at the start: the files may be replaced later.
    pub fn of_this_process(state_dir: &Path, own_version: &str) -> Self {
        let exe = env::current_exe().unwrap_or_default();
        let Some(slot) = slot_of(state_dir, &exe) else {
            let installed = Some(named_by(env::args_os().next(), exe));
            let installed_version = own_version.to_owned();
            return Self { installed, installed_version, slot: None, watched: false };
        };
        let parent = getppid().map(|pid| pid.as_raw_nonzero().to_string());
        Self {
            installed: env::var_os(INSTALLED).map(PathBuf::from),
            installed_version: env::var(INSTALLED_VERSION).unwrap_or_default(),
            slot: Some(slot),
            watched: parent.is_some() && env::var(WATCHER).ok() == parent,
        }
    }
}

impl Origin {
    pub(super) fn is_on_trial(&self, state: &State) -> bool {
        let trial = state.trial.as_ref().map(|trial| trial.slot.sha256.as_str());
        self.watched && trial.is_some() && trial == self.slot.as_deref()
    }

    /// As [`super::Updater::migrations`], where there is no updater yet.
    pub fn migrations(&self, state_dir: &Path) -> Migrations {
        let state = Versions::of(state_dir).load().unwrap_or_default();
        if self.is_on_trial(&state) { Migrations::Deferred } else { Migrations::Allowed }
    }
}

/// The slot that `exe` lies in.
fn slot_of(state_dir: &Path, exe: &Path) -> Option<String> {
    let versions = fs::canonicalize(state_dir).ok()?.join(DIR);
    let mut below = exe.strip_prefix(versions).ok()?.iter();
    let sha256 = below.next()?.to_str()?.to_owned();
    (unhex32(&sha256).is_some() && below.next()? == PROGRAM).then_some(sha256)
}

/// The name under which the binary was called, which a package or a link may lead elsewhere by the next start, where it
/// is a whole path of the same file; else the file.
fn named_by(argv0: Option<OsString>, exe: PathBuf) -> PathBuf {
    let named = argv0.map(PathBuf::from).filter(|path| path.is_absolute());
    named.filter(|path| fs::canonicalize(path).is_ok_and(|real| real == exe)).unwrap_or(exe)
}

impl Launcher<'_> {
    /// Starts what should run. Returns when this process is to be the agent itself (`None`), or with the exit code of the
    /// version that it watched.
    pub fn start(&self) -> Option<u8> {
        if let Some(code) = enter_stage() {
            return Some(code);
        }
        let versions = Versions::of(self.state_dir);
        let origin = Origin::of_this_process(self.state_dir, self.own_version);
        if origin.slot.is_some() || !versions.are_used() || is_locked(self.state_dir) {
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

    fn tell_origin(&self, command: &mut Command, origin: &Origin) {
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
        // As asked; or it had not come so far that it listens for signals.
        let as_asked = [Exit::HandedOver.code(), code_of_signal(SIGTERM), code_of_signal(SIGINT)];
        let as_asked = outcome.asked_to_stop && as_asked.contains(&code);
        Some(if as_asked { Exit::Ok.code() } else { code })
    }

    /// Executes the installed binary, whatever it is by now; comes back only if that is not possible.
    fn again(&self, origin: &Origin) -> Option<u8> {
        let installed = origin.installed.clone().unwrap_or_default();
        let error = same_again(&installed).exec();
        (self.say)(&format!("failed to execute {} again: {error}", installed.display()));
        None
    }

    fn watch_child(&self, versions: &Versions, origin: &Origin, slot: &Slot) -> Watched {
        let failed = |what: &str, error: io::Error| Watched {
            failure: Some(format!("{what}: {error}")),
            ..Watched::default()
        };
        let events = match listen() {
            Ok(events) => events,
            Err(error) => return failed("the launcher cannot listen for signals", error),
        };
        let mut command = same_again(Path::new("/proc/self/exe"));
        self.tell_origin(&mut command, origin);
        let spawned = command
            .env(STAGE, versions.program(&slot.sha256))
            .env(WATCHER, std::process::id().to_string())
            // It would be asked to prove that this process lives.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            // A signal from the terminal reaches it once, through us.
            .process_group(0)
            .spawn();
        match spawned {
            Ok(child) => self.follow(versions, slot, child, &events),
            Err(error) => failed("failed to start a process for it", error),
        }
    }

    fn follow(
        &self,
        versions: &Versions,
        slot: &Slot,
        mut child: Child,
        events: &Receiver<i32>,
    ) -> Watched {
        let timeout = self.settings.confirm_timeout;
        let mut deadline = Some(Instant::now() + timeout);
        let mut watched = Watched::default();
        loop {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    watched.code = Some(code_of(status));
                    if !confirmed(versions, slot) {
                        let ended = format!("{}, before it had a session", describe(status));
                        watched.failure.get_or_insert(ended);
                    } else {
                        watched.failure = None;
                    }
                    return watched;
                }
                Err(error) => {
                    watched.failure = Some(format!("the launcher lost it: {error}"));
                    return watched;
                }
            }
            match next(events, deadline) {
                Some(SIGCHLD) => {}
                // It reads everything anew anyway, and might not be listening yet.
                Some(SIGHUP) => {}
                Some(signal) => {
                    watched.asked_to_stop = true;
                    send(&child, signal);
                }
                None if confirmed(versions, slot) => deadline = None,
                None => {
                    deadline = None;
                    watched.failure = Some(format!(
                        "it had no session with the control plane within {} s",
                        timeout.as_secs()
                    ));
                    if let Err(error) = child.kill() {
                        (self.say)(&format!("failed to end version {}: {error}", slot.version));
                    }
                }
            }
        }
    }
}

/// How a watched trial ended.
#[derive(Debug, Default)]
struct Watched {
    code: Option<u8>,
    /// Why it is not confirmed.
    failure: Option<String>,
    /// Somebody wants the whole thing to end, so that nothing is proven.
    asked_to_stop: bool,
}

/// Between fork and the version on trial: dies with its parent, then becomes that version. `None` in any other process.
fn enter_stage() -> Option<u8> {
    let program = env::var_os(STAGE)?;
    let watcher = env::var(WATCHER).unwrap_or_default();
    let tied = set_parent_process_death_signal(Some(Signal::KILL));
    let parent = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if tied.is_err() || parent.as_deref() != Some(watcher.as_str()) {
        // The parent died before the tie, or there is none: nobody would ever end us.
        return Some(CANNOT_EXECUTE);
    }
    let mut command = same_again(Path::new(&program));
    let error = command.env_remove(STAGE).exec();
    eprintln!("backupy: failed to execute {}: {error}", Path::new(&program).display());
    Some(CANNOT_EXECUTE)
}

/// A command with this process's arguments, its name included.
fn same_again(program: &Path) -> Command {
    let mut args = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    command
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

fn confirmed(versions: &Versions, slot: &Slot) -> bool {
    versions.load().is_ok_and(|state| {
        state.current.is_some_and(|current| current.sha256 == slot.sha256) && state.trial.is_none()
    })
}

/// Whether another process works with the state directory: it decides there, not we.
pub(super) fn is_locked(state_dir: &Path) -> bool {
    let Ok(file) = File::open(state_dir.join(store::LOCK)) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

/// Signals as values. The thread ends with this process, which is executed anew or exits.
fn listen() -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])?;
    let (sender, events) = unbounded();
    thread::spawn("launcher", move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                break;
            }
        }
    })?;
    Ok(events)
}

/// The next signal; `None` when the deadline passed.
fn next(events: &Receiver<i32>, deadline: Option<Instant>) -> Option<i32> {
    let Some(deadline) = deadline else { return events.recv().ok() };
    match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(signal) => Some(signal),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
    }
}

fn send(child: &Child, signal: i32) {
    let signal = match signal {
        SIGINT => Signal::INT,
        _ => Signal::TERM,
    };
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Gone already is as good: it is waited for.
        let _ = kill_process(pid, signal);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => code_of_signal(signal),
        (None, None) => Exit::Internal.code(),
    }
}

/// As a shell has it.
fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or(u8::MAX).saturating_add(128)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(CANNOT_EXECUTE) => {
            "it could not be executed".to_owned()
        }
        (Some(code), _) if code == i32::from(Exit::State.code()) => {
            "it could not use the state directory (exit code 3)".to_owned()
        }
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_known_by_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        let sha256 = "a".repeat(64);
        let exe = real.join(DIR).join(&sha256).join(PROGRAM);
        assert_eq!(slot_of(dir.path(), &exe), Some(sha256.clone()));
        assert_eq!(slot_of(&real.join("elsewhere"), &exe), None);
        for other in ["/usr/local/bin/backupy", "/", ""] {
            assert_eq!(slot_of(dir.path(), Path::new(other)), None);
        }
        assert_eq!(slot_of(dir.path(), &real.join(DIR).join("new-x").join(PROGRAM)), None);
        assert_eq!(slot_of(dir.path(), &exe.with_file_name("other")), None);
    }

    #[test]
    fn the_name_that_was_called_counts_where_it_leads_to_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        let (exe, link, other) = (real.join("backupy-1"), real.join("backupy"), real.join("sh"));
        fs::write(&exe, b"").unwrap();
        fs::write(&other, b"").unwrap();
        std::os::unix::fs::symlink(&exe, &link).unwrap();
        assert_eq!(named_by(Some(link.clone().into()), exe.clone()), link);
        for argv0 in ["backupy".into(), other.into(), OsString::new()] {
            assert_eq!(named_by(Some(argv0), exe.clone()), exe);
        }
    }

    #[test]
    fn a_directory_in_use_is_left_to_its_user() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_locked(dir.path()));
        let file = File::create(dir.path().join(store::LOCK)).unwrap();
        assert!(!is_locked(dir.path()));
        flock(&file, FlockOperation::LockExclusive).unwrap();
        assert!(is_locked(dir.path()));
    }
}
