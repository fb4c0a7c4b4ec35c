//! A shell command of somebody's own (a hook, `on_failure`): `sh -c`, bounded in time and output.
//!
//! The caller gives the whole environment; nothing of this process's own reaches the command unless it is in
//! there. As with every child: null as stdin, `/` as directory, a process group of its own that is gone when
//! [`run`] returns, whatever it left in the background included. What shall live on has to leave the group
//! (`setsid`, or better the service manager).

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::process::{PidfdFlags, Signal, pidfd_open};

use super::{CHUNK_BYTES, ExecError, Running, Tool, read_some};
use crate::clock::Deadline;
use crate::drivers::tail::Tail;
use crate::net;
use crate::thread::Cancel;

const SH: &str = "/bin/sh";
/// How often a child is looked at on kernels (before 5.3) that cannot tell of its end.
const LOOK: Duration = Duration::from_millis(100);

/// A command to run.
#[derive(Debug)]
pub struct Shell<'a> {
    /// For messages.
    pub name: &'a str,
    /// For `sh -c`.
    pub command: &'a str,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// After so long its group is ended.
    pub timeout: Duration,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Code(i32),
    /// By somebody else's signal.
    Signal(i32),
    /// By us, as its time was up.
    TimedOut,
    /// By us, as somebody asked for the stop.
    Stopped,
}

/// A command that has ended, its group too.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub end: End,
    /// The last 8 KiB of its stdout.
    pub stdout: String,
    /// The last 8 KiB of its stderr.
    pub stderr: String,
}

/// Runs a command until it ends, its time is up or one of `stops` is cancelled (2 s at most after that).
///
/// # Errors
/// When it cannot be started or followed.
pub fn run(shell: &Shell<'_>, stops: &[&Cancel]) -> Result<Finished, ExecError> {
    let args = vec!["-c".into(), shell.command.into()];
    let (env, secrets) = (Vec::new(), Vec::new());
    let tool = Tool { name: shell.name, program: Path::new(SH), args, env, secrets };
    let mut command = Command::new(tool.program);
    command
        .args(&tool.args)
        .env_clear()
        .envs(shell.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir("/")
        .process_group(0);
    let mut running = Running::spawn(&tool, command)?;
    let mut stdout = Tail::default();
    let end = follow(&mut running, &mut stdout, Deadline::after(shell.timeout), stops)?;
    let end = match end {
        Some(end) => end,
        None => status(&mut running)?,
    };
    let said = running.tail.recent();
    drop(running);
    Ok(Finished { end, stdout: stdout.recent(), stderr: said })
}

/// Takes the output until the command itself has ended (`None`), whoever still holds its pipes, or must end.
fn follow(
    running: &mut Running<'_>,
    stdout: &mut Tail,
    deadline: Deadline,
    stops: &[&Cancel],
) -> Result<Option<End>, ExecError> {
    let pidfd = running.pid().and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        let ended = running.ended();
        drain(running, stdout)?;
        if ended {
            return Ok(None);
        }
        if stops.iter().any(|stop| stop.is_cancelled()) {
            return Ok(Some(End::Stopped));
        }
        if deadline.passed() {
            return Ok(Some(End::TimedOut));
        }
        wait(running, pidfd.as_ref(), deadline, stops).map_err(|e| running.lost(e))?;
    }
}

fn wait(
    running: &Running<'_>,
    pidfd: Option<&OwnedFd>,
    deadline: Deadline,
    stops: &[&Cancel],
) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> =
        stops.iter().map(|stop| PollFd::new(*stop, PollFlags::IN)).collect();
    fds.extend(running.stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    fds.extend(running.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
    let until = match pidfd {
        Some(fd) => {
            fds.push(PollFd::new(fd, PollFlags::IN));
            deadline
        }
        None => deadline.min(Deadline::after(LOOK)),
    };
    net::wait_any(&mut fds, Some(until)).map(|_| ())
}

/// Takes what both pipes hold now.
fn drain(running: &mut Running<'_>, stdout: &mut Tail) -> Result<(), ExecError> {
    let mut buffer = [0; 4096];
    for _ in 0..CHUNK_BYTES / buffer.len() {
        match read_some(&mut running.stdout, &mut buffer).map_err(|e| running.lost(e))? {
            Some(length) => stdout.push(buffer.get(..length).unwrap_or_default()),
            None => break,
        }
    }
    running.drain_stderr()
}

/// Ends what the command left behind and reaps it.
fn status(running: &mut Running<'_>) -> Result<End, ExecError> {
    // Before the reaping, while the group's number cannot mean anybody else.
    running.signal(Signal::KILL);
    let child = running.child.take();
    let mut child = child.ok_or_else(|| running.lost(io::ErrorKind::NotFound.into()))?;
    let status = child.wait().map_err(|e| running.lost(e))?;
    Ok(match status.code() {
        Some(code) => End::Code(code),
        None => End::Signal(status.signal().unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests;
