//! The `on_failure` command: tells people what went wrong, outside this process.
//!
//! `sh -c` in a process group of its own and in `/`, for a bounded time; what it leaves in its group ends with it. The
//! command learns of the failure by environment variables, never by its text, so that no name and no error message is
//! ever read by the shell. It inherits the environment of `up` without our own variables and without those that the
//! file names as passwords. It is never run a second time for the same thing: nobody knows how much the first one did.

use std::ffi::OsString;
use std::time::Duration;

use super::error::DeliverError;
use super::event::Failure;
use crate::drivers::ExecError;
use crate::drivers::shell::{self, End, Finished, Shell};
use crate::redact::clean;
use crate::thread::Cancel;

/// The command, and the variables that it must not see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnFailure {
    /// For `sh -c`.
    pub command: String,
    /// Names of variables that hold passwords.
    pub hidden: Vec<String>,
}

/// What the command gets.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
/// When it cannot be run or says that it failed.
pub(super) fn deliver(
    hook: &OnFailure,
    failure: &Failure,
    stop: &Cancel,
    timeout: Duration,
) -> Result<(), DeliverError> {
    let finished = execute(hook, failure, stop, timeout)
        .map_err(|error| DeliverError::Command(error.to_string()))?;
    let said = clean(&finished.stderr);
    Err(DeliverError::Command(match finished.end {
        End::Code(0) => return Ok(()),
        End::Stopped => return Err(DeliverError::Stopped),
        End::Code(code) => format!("the command failed with exit code {code}: {said}"),
        End::Signal(signal) => format!("the command was ended by signal {signal}: {said}"),
        End::TimedOut => {
            format!("the command did not end within {} s and was ended: {said}", timeout.as_secs())
        }
    }))
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

    use super::*;
    use crate::clock::Deadline;

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

    #[test]
    fn the_command_learns_what_failed_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let command = format!(
            "cd {} && env | grep -e ^BACKUP -e ^CARGO_PKG_NAME= -e ^CARGO_PKG_VERSION= > out",
            dir.path().display()
        );
        deliver(&hook(&command), &failure(), &Cancel::new().unwrap(), PATIENCE).unwrap();
        let text = fs::read_to_string(out).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
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
    fn a_failing_command_is_an_error_and_its_words_are_in_it() {
        let stop = Cancel::new().unwrap();
        let command = hook("echo token=abcdef >&2; exit 3");
        let error = deliver(&command, &failure(), &stop, PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "the command failed with exit code 3: token=***");
        assert!(!error.retry());
    }
}
