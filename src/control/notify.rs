//! The `on_failure` command: tells people what went wrong, outside this process.
//!
//! One thread runs one command at a time, `sh -c` in a process group of its own and in `/`, for a bounded time; what
//! it leaves in its group ends with it, what waits is bounded too. The command learns of the failure by environment variables, never by its text, so
//! that no name and no error message is ever read by the shell. It inherits the environment of `up`
//! without our own variables and without those that the file names as passwords.

use std::ffi::OsString;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

use crate::clock::Deadline;
use crate::drivers::ExecError;
use crate::drivers::shell::{self, End, Finished, Shell};
use crate::redact::clean;
use crate::thread::{Cancel, Why, spawn_vital};

/// The command, and the variables that it must not see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnFailure {
    /// For `sh -c`.
    pub command: String,
    /// Names of variables that hold passwords.
    pub hidden: Vec<String>,
}

/// How one failure is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// The backup's or the check's name (`BACKUPY_NAME`).
    pub name: String,
    /// The run, empty if there was none (`BACKUPY_RUN_ID`).
    pub run_id: String,
    /// `failed`, `late`, `missed`, `check-failed`, `check-recovered`, or `down` when `up` itself cannot start (`BACKUPY_STATUS`).
    pub status: String,
    /// What went wrong (`BACKUPY_ERROR`).
    pub error: String,
}

/// The thread that runs the command; dropping it ends it, the running command included.
#[derive(Debug)]
pub struct Notifier {
    queue: Option<Sender<Failure>>,
    command: Arc<Mutex<Option<OnFailure>>>,
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    /// Failures that may wait; a command that is so far behind helps nobody.
    const BOUND: usize = 64;

    /// Starts the thread. A command gets `timeout`, then its process group is killed.
    ///
    /// # Errors
    /// When there is no thread or descriptor left.
    pub fn start(command: Option<OnFailure>, timeout: Duration) -> io::Result<Self> {
        let (sender, receiver) = bounded(Self::BOUND);
        let command = Arc::new(Mutex::new(command));
        let stop = Cancel::new()?;
        let work = (command.clone(), stop.clone());
        let thread = spawn_vital("notify", move || run(&receiver, &work.0, &work.1, timeout))?;
        Ok(Self { queue: Some(sender), command, stop, thread: Some(thread) })
    }

    /// Takes another command, from the next failure on.
    pub fn set_command(&self, command: Option<OnFailure>) {
        *self.command.lock().unwrap_or_else(PoisonError::into_inner) = command;
    }

    /// Tells of a failure, never waiting for the command.
    pub fn tell(&self, failure: Failure) {
        match self.queue.as_ref().map(|queue| queue.try_send(failure)) {
            Some(Ok(())) | None => {}
            Some(Err(TrySendError::Full(failure) | TrySendError::Disconnected(failure))) => {
                log::error!(
                    "did not run on_failure for {}: too many failures wait for it",
                    failure.name
                );
            }
        }
    }

    /// Lets the running command end for up to `grace`, gives up what waits, and joins the thread.
    pub fn stop(&mut self, grace: Duration) {
        drop(self.queue.take());
        let Some(thread) = self.thread.take() else { return };
        let deadline = Deadline::after(grace);
        while !thread.is_finished() && !deadline.passed() {
            self.stop.sleep(Duration::from_millis(20));
        }
        self.stop.cancel(Why::Shutdown);
        if thread.join().is_err() {
            log::error!("the notify thread panicked");
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

fn run(
    queue: &Receiver<Failure>,
    command: &Mutex<Option<OnFailure>>,
    stop: &Cancel,
    timeout: Duration,
) {
    loop {
        let failure = select! {
            recv(queue) -> failure => match failure { Ok(failure) => failure, Err(_) => return },
            recv(stop.done()) -> _ => return,
        };
        let hook = command.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(hook) = hook else { continue };
        match execute(&hook, &failure, stop, timeout) {
            Ok(finished) => tell_end(&failure.name, &finished, timeout),
            Err(error) => log::error!("failed to run on_failure for {}: {error}", failure.name),
        }
    }
}

fn tell_end(name: &str, finished: &Finished, timeout: Duration) {
    let said = clean(&finished.stderr);
    match finished.end {
        End::Code(0) => log::info!("on_failure ran for {name}"),
        End::Code(code) => {
            log::error!("on_failure for {name} failed with exit code {code}: {said}")
        }
        End::Signal(signal) => {
            log::error!("on_failure for {name} was ended by signal {signal}: {said}");
        }
        End::TimedOut => log::error!(
            "on_failure for {name} did not end within {} s and was ended: {said}",
            timeout.as_secs()
        ),
        End::Stopped => {
            log::error!("on_failure for {name} was ended because the process is stopping");
        }
    }
}

fn execute(
    hook: &OnFailure,
    failure: &Failure,
    stop: &Cancel,
    timeout: Duration,
) -> Result<Finished, ExecError> {
    let seen = |name: &OsString| {
        let ours = |name: &str| name.starts_with("BACKUPY_") || name.starts_with("BACKUP_");
        !name.to_str().is_some_and(ours)
            && !hook.hidden.iter().any(|hidden| name == hidden.as_str())
    };
    let told = [
        ("BACKUPY_NAME", failure.name.clone()),
        ("BACKUPY_RUN_ID", failure.run_id.clone()),
        ("BACKUPY_STATUS", failure.status.clone()),
        ("BACKUPY_ERROR", clean(&failure.error)),
    ];
    let env = std::env::vars_os()
        .filter(|(name, _)| seen(name))
        .chain(told.map(|(name, value)| (name.into(), value.replace('\0', "").into())))
        .collect();
    let shell = Shell { name: "on_failure", command: &hook.command, env, timeout };
    shell::run(&shell, &[stop])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn hook(command: &str) -> OnFailure {
        OnFailure { command: command.to_owned(), hidden: vec!["CARGO_PKG_NAME".to_owned()] }
    }

    fn failure() -> Failure {
        Failure {
            name: "shop".into(),
            run_id: "r1".into(),
            status: "failed".into(),
            error: "$(touch evil) `id`\npassword=hunter2".into(),
        }
    }

    /// Waits for a file that a command renames into place.
    fn written(path: &Path) -> String {
        let deadline = Deadline::after(PATIENCE);
        loop {
            if let Ok(text) = fs::read_to_string(path) {
                return text;
            }
            assert!(!deadline.passed(), "{} was never written", path.display());
            crate::control::moment();
        }
    }

    #[test]
    fn the_command_learns_what_failed_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let command = format!(
            "cd {0} && env | grep -e ^BACKUP -e ^CARGO_PKG_NAME= -e ^CARGO_PKG_VERSION= > new && mv new {1}",
            dir.path().display(),
            out.display()
        );
        let notifier = Notifier::start(Some(hook(&command)), PATIENCE).unwrap();
        notifier.tell(failure());
        let mut lines: Vec<_> = written(&out).lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines[0], "BACKUPY_ERROR=$(touch evil) `id` password=***");
        assert_eq!(
            lines[1..],
            [
                "BACKUPY_NAME=shop",
                "BACKUPY_RUN_ID=r1",
                "BACKUPY_STATUS=failed",
                concat!("CARGO_PKG_VERSION=", env!("CARGO_PKG_VERSION"))
            ],
            "and no variable that holds a password"
        );
        assert!(!dir.path().join("evil").exists(), "the error is never read by the shell");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let stop = Cancel::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let finished =
            execute(&hook(&line), &failure(), &stop, Duration::from_millis(500)).unwrap();
        assert_eq!(finished.end, End::TimedOut);
        let pid = fs::read_to_string(&pid_file).unwrap();
        let deadline = Deadline::after(PATIENCE);
        // Gone, or a zombie until whoever inherited it looks.
        let alive = |pid: &str| {
            fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
                .is_ok_and(|stat| !stat.contains(") Z"))
        };
        while alive(&pid) {
            assert!(!deadline.passed(), "the grandchild lives");
            crate::control::moment();
        }
    }

    #[test]
    fn a_failing_command_is_an_error_status_and_a_stop_does_not_wait() {
        let stop = Cancel::new().unwrap();
        let finished = execute(&hook("exit 3"), &failure(), &stop, PATIENCE).unwrap();
        assert_eq!(finished.end, End::Code(3));
        let mut notifier = Notifier::start(Some(hook("sleep 1000")), PATIENCE).unwrap();
        notifier.tell(failure());
        notifier.stop(Duration::from_millis(50));
    }

    #[test]
    fn without_a_command_nothing_runs_and_nothing_fills_up() {
        let notifier = Notifier::start(None, PATIENCE).unwrap();
        for _ in 0..500 {
            notifier.tell(failure());
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        // Those before may still wait, so keep telling until one gets through.
        notifier
            .set_command(Some(hook(&format!("touch {0}.new && mv {0}.new {0}", out.display()))));
        let deadline = Deadline::after(PATIENCE);
        while !out.exists() {
            notifier.tell(failure());
            assert!(!deadline.passed());
            crate::control::moment();
        }
    }
}
