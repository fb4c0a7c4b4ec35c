//! The `on_failure` command: tells people what went wrong, outside this process.
//!
//! One thread runs one command at a time, `sh -c` in a process group of its own, for a bounded time; what
//! waits is bounded too. The command learns of the failure by environment variables, never by its text, so
//! that no name and no error message is ever read by the shell. It inherits the environment of `up`
//! without our own variables and without those that the file names as passwords.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::clock::Deadline;
use crate::net::{Waited, wait_readable};
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
    /// The backup's name (`BACKUPY_NAME`).
    pub name: String,
    /// The run, empty if there was none (`BACKUPY_RUN_ID`).
    pub run_id: String,
    /// `failed`, `late`, `missed`, or `down` when `up` itself cannot start (`BACKUPY_STATUS`).
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
            Ok(status) if status.success() => log::info!("on_failure ran for {}", failure.name),
            Ok(status) => log::error!("on_failure for {} ended with {status}", failure.name),
            Err(error) => log::error!("failed to run on_failure for {}: {error}", failure.name),
        }
    }
}

fn execute(
    hook: &OnFailure,
    failure: &Failure,
    stop: &Cancel,
    timeout: Duration,
) -> io::Result<ExitStatus> {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(&hook.command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    for (name, _) in std::env::vars_os() {
        let ours =
            name.to_str().is_some_and(|n| n.starts_with("BACKUPY_") || n.starts_with("BACKUP_"));
        if ours {
            command.env_remove(name);
        }
    }
    for name in &hook.hidden {
        command.env_remove(name);
    }
    command
        .env("BACKUPY_NAME", &failure.name)
        .env("BACKUPY_RUN_ID", &failure.run_id)
        .env("BACKUPY_STATUS", &failure.status)
        .env("BACKUPY_ERROR", clean(&failure.error));
    let mut child = command.spawn()?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let ended = wait(&mut child, group, Deadline::after(timeout), stop);
    if !matches!(ended, Ok(true))
        && let Some(group) = group
    {
        // Whatever it left in its group goes too; it is not reaped yet, so the number is still its own.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    if ended? {
        Ok(status)
    } else if stop.is_cancelled() {
        Err(io::Error::other("the process is stopping"))
    } else {
        Err(io::Error::other(format!("it did not end within {} s", timeout.as_secs())))
    }
}

/// True once the child has ended, false if the deadline or the stop came first.
fn wait(
    child: &mut Child,
    pid: Option<Pid>,
    deadline: Deadline,
    stop: &Cancel,
) -> io::Result<bool> {
    const LOOK: Duration = Duration::from_millis(100);
    if let Some(fd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        return Ok(wait_readable(&fd, deadline, Some(stop))? == Waited::Ready);
    }
    // A kernel before 5.3 has no such descriptor.
    while child.try_wait()?.is_none() {
        if deadline.passed() || !stop.sleep(LOOK) {
            return Ok(false);
        }
    }
    Ok(true)
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
        let error =
            execute(&hook(&line), &failure(), &stop, Duration::from_millis(500)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
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
        assert_eq!(execute(&hook("exit 3"), &failure(), &stop, PATIENCE).unwrap().code(), Some(3));
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
