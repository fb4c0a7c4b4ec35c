//! A version on trial as a child: started so that it cannot outlive its watcher, given a time, asked to stop when we are.

use std::env;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::feed::Feeder;
use super::launcher::Launcher;
use super::origin::{Origin, STAGE, WATCHER, same_again};
use super::slots::Versions;
use super::state::Slot;
use crate::exit::Exit;
use crate::thread;

/// The exit code of a shell for a program that cannot be executed.
const CANNOT_EXECUTE: u8 = 126;

/// How long a confirmed version may take to make room for itself: it runs no backups, so that nothing is to be waited for.
const HAND_OVER: Duration = Duration::from_secs(60);

/// How a watched trial ended.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) code: Option<u8>,
    /// Why it is not confirmed.
    pub(super) failure: Option<String>,
    /// Somebody wants the whole thing to end, so that nothing is proven.
    pub(super) asked_to_stop: bool,
    /// What still comes.
    events: Option<Receiver<i32>>,
}

impl Watched {
    /// Whether somebody has asked for the end, at the latest now.
    pub(super) fn hear_stop(&mut self) -> bool {
        let mut late = self.events.iter().flat_map(Receiver::try_iter);
        self.asked_to_stop |= late.any(|signal| matches!(signal, SIGTERM | SIGINT));
        self.asked_to_stop
    }

    /// Whether it ended as it was asked to; or it had not come so far that it listens for signals.
    pub(super) fn ended_as_asked(&self) -> bool {
        let fine = [Exit::HandedOver.code(), code_of_signal(SIGTERM), code_of_signal(SIGINT)];
        self.asked_to_stop && self.code.is_some_and(|code| fine.contains(&code))
    }
}

impl Launcher<'_> {
    /// Runs the slot's program as a child until it has ended, or was ended because it did not confirm in time.
    pub(super) fn watch_child(&self, versions: &Versions, origin: &Origin, slot: &Slot) -> Watched {
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
            Ok(child) => {
                let watched = self.follow(versions, slot, child, &events);
                Watched { events: Some(events), ..watched }
            }
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
        let mut leave_by = None;
        let mut watched = Watched::default();
        let mut feeder = Feeder::of_environment();
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
            if let Some(feeder) = &mut feeder {
                feeder.feed(Instant::now());
            }
            let wake_at = deadline.into_iter().chain(feeder.as_ref().map(Feeder::next)).min();
            let signal = next(events, wake_at);
            let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
            match signal {
                // A reload reads everything anew anyway, and might come before anybody listens.
                Some(SIGCHLD | SIGHUP) => {}
                Some(signal) => {
                    watched.asked_to_stop = true;
                    send(&child, signal);
                }
                None if !is_over => {}
                None if leave_by.is_none() && confirmed(versions, slot) => {
                    // From here on it speaks for itself.
                    feeder = None;
                    leave_by = Some(Instant::now() + HAND_OVER);
                    deadline = leave_by;
                }
                None => {
                    deadline = None;
                    // Where it is confirmed, it is not held against it.
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

/// Between fork and the version on trial: dies with its parent, then becomes that version. `None` in any other process.
pub(super) fn enter_stage(say: &dyn Fn(&str)) -> Option<u8> {
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
    say(&format!("failed to execute {}: {error}", Path::new(&program).display()));
    Some(CANNOT_EXECUTE)
}

fn confirmed(versions: &Versions, slot: &Slot) -> bool {
    versions.load().is_ok_and(|state| {
        state.current.is_some_and(|current| current.sha256 == slot.sha256) && state.trial.is_none()
    })
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
    events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
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
