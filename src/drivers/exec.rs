//! A dump tool as a child process: the one place where programs are started.
//!
//! The child gets an empty environment but for `PATH`, `LANG`, `LC_ALL`, `TZ` and what its driver adds, null
//! (or the file that it is to load) as stdin, pipes for stdout and stderr, and a process group of its own. One loop polls both pipes and the
//! cancel, so nothing can fill up unseen, and a tool that says nothing for `stuck` is ended. However the run
//! ends, the whole group is gone and the child is reaped before [`run`] returns: TERM, one second, KILL.
//!
//! If the agent itself is killed with -9 its children are not: a parent-death signal cannot be set without
//! unsafe code (it has to happen between fork and exec). What happens then: the pipe has no reader any more,
//! so the tool ends by SIGPIPE with its next write; one that waits for a lock ends by the lock timeout its
//! driver gave it. Nothing it does is visible but a connection that reads.

pub mod shell;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::container::ContainerFault;
use super::tail::{Said, Tail};
use crate::clock::Deadline;
use crate::net;
use crate::secret::Secret;
use crate::thread::{Cancel, Why, spawn};

/// Read at once; a pipe holds 64 KiB.
const CHUNK_BYTES: usize = 64 * 1024;
/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(1);
/// How long a killed child may stay in the kernel before it is left to a thread that waits for it.
const REAP: Duration = Duration::from_millis(500);
/// How often a child is looked at while it ends.
const LOOK: Duration = Duration::from_millis(10);

/// What is to be run.
pub(super) struct Tool<'a> {
    /// For messages.
    pub(super) name: &'a str,
    /// The program.
    pub(super) program: &'a Path,
    /// Its arguments; never a secret.
    pub(super) args: Vec<OsString>,
    /// Variables beyond the usual ones; never a secret.
    pub(super) env: Vec<(&'static str, OsString)>,
    /// Blotted out of what it says.
    pub(super) secrets: Vec<Secret>,
}

/// Takes a tool's output.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// How a tool's run failed.
#[derive(Debug)]
pub enum ExecError {
    /// It could not be started.
    Start {
        /// The tool.
        tool: String,
        /// The reason.
        source: io::Error,
    },
    /// It said nothing for too long and was ended.
    Stuck {
        /// The tool.
        tool: String,
        /// How long.
        after: Duration,
        /// What it said before.
        said: Said,
    },
    /// It ended with a code other than 0.
    Exit {
        /// The tool.
        tool: String,
        /// The code.
        code: i32,
        /// What it said.
        said: Said,
    },
    /// A signal of somebody else's ended it.
    Signal {
        /// The tool.
        tool: String,
        /// The number.
        signal: i32,
        /// What it said.
        said: Said,
    },
    /// Its pipes or its end could not be followed.
    Follow {
        /// The tool.
        tool: String,
        /// The reason.
        source: io::Error,
    },
    /// The container in which it should run, or ran.
    Container(ContainerFault),
    /// Whoever takes the output did not take it.
    Sink(io::Error),
    /// Somebody asked for the stop.
    Cancelled(Why),
}

impl ExecError {
    /// Whether it may go better next time by itself: after a hang, or when somebody (or the kernel, short of
    /// memory) killed the tool.
    pub fn retry(&self) -> bool {
        match self {
            Self::Stuck { .. } => true,
            Self::Container(fault) => fault.retry(),
            Self::Signal { signal, .. } => [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP]
                .iter()
                .any(|passing| passing.as_raw() == *signal),
            // Too many processes, or too little memory for one more.
            Self::Start { source, .. } => {
                matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory)
            }
            Self::Exit { .. } | Self::Follow { .. } | Self::Sink(_) | Self::Cancelled(_) => false,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match self {
            Self::Start { tool, source } => return write!(f, "failed to start {tool}: {source}"),
            Self::Follow { tool, source } => return write!(f, "failed to follow {tool}: {source}"),
            Self::Container(fault) => return fault.fmt(f),
            Self::Sink(source) => return write!(f, "failed to pass the dump on: {source}"),
            Self::Cancelled(_) => return f.write_str("cancelled"),
            Self::Stuck { tool, after, said } => {
                write!(f, "{tool} said nothing for {} s and was ended", after.as_secs())?;
                said
            }
            Self::Exit { tool, code, said } => {
                write!(f, "{tool} failed with exit code {code}")?;
                said
            }
            Self::Signal { tool, signal, said } => {
                write!(f, "{tool} was ended by signal {signal}{}", explain(*signal))?;
                said
            }
        };
        match said.brief() {
            brief if brief.is_empty() => Ok(()),
            brief => write!(f, ": {brief}"),
        }
    }
}

impl std::error::Error for ExecError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start { source, .. } | Self::Follow { source, .. } | Self::Sink(source) => {
                Some(source)
            }
            Self::Container(fault) => Some(fault),
            _ => None,
        }
    }
}

fn explain(signal: i32) -> &'static str {
    match Signal::from_named_raw(signal) {
        Some(Signal::KILL) => " (SIGKILL: by an operator, or the kernel was out of memory)",
        Some(Signal::TERM) => " (SIGTERM)",
        Some(Signal::INT) => " (SIGINT)",
        Some(Signal::HUP) => " (SIGHUP)",
        Some(Signal::SEGV) => " (SIGSEGV: it crashed)",
        Some(Signal::ABORT) => " (SIGABRT: it gave up)",
        Some(Signal::BUS) => " (SIGBUS: it crashed)",
        Some(Signal::PIPE) => " (SIGPIPE)",
        _ => "",
    }
}

/// Runs a tool to its end, handing its output to `sink` as it comes; what it said if it ended with 0.
///
/// # Errors
/// Every other end; the child's group is gone by then.
pub(super) fn run(
    tool: &Tool<'_>,
    stuck: Duration,
    cancel: &Cancel,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Said, ExecError> {
    conclude(Running::start(tool)?, stuck, cancel, sink)
}

/// As [`run`], with a file as the tool's input, from where it stands; what the tool prints is dropped.
///
/// # Errors
/// As [`run`].
pub(super) fn feed(
    input: File,
    tool: &Tool<'_>,
    stuck: Duration,
    cancel: &Cancel,
) -> Result<Said, ExecError> {
    let mut command = command(tool);
    command.stdin(input);
    conclude(Running::spawn(tool, command)?, stuck, cancel, &mut |_| Ok(()))
}

/// As [`run`], for a tool that talks on stderr all the time: only its output shows that it gets on.
///
/// # Errors
/// As [`run`].
pub(super) fn run_by_output(
    tool: &Tool<'_>,
    stuck: Duration,
    cancel: &Cancel,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Said, ExecError> {
    let mut running = Running::start(tool)?;
    running.chatty = true;
    conclude(running, stuck, cancel, sink)
}

fn conclude(
    mut running: Running<'_>,
    stuck: Duration,
    cancel: &Cancel,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Said, ExecError> {
    let status = running.follow(stuck, cancel, sink)?;
    let said = running.said();
    let tool = running.tool.name.to_owned();
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(said),
        (Some(code), _) => Err(ExecError::Exit { tool, code, said }),
        (None, signal) => Err(ExecError::Signal { tool, signal: signal.unwrap_or(0), said }),
    }
}

/// Runs a tool that answers in a few words.
///
/// # Errors
/// As [`run`]; more than `limit` bytes are an error too.
pub(super) fn capture(
    tool: &Tool<'_>,
    limit: usize,
    timeout: Duration,
    cancel: &Cancel,
) -> Result<String, ExecError> {
    capture_with(limit, |sink| run(tool, timeout, cancel, sink))
}

/// What `run` hands to its sink, as text of at most `limit` bytes.
///
/// # Errors
/// Those of `run`; more is an error too.
pub(super) fn capture_with(
    limit: usize,
    run: impl FnOnce(Sink<'_>) -> Result<Said, ExecError>,
) -> Result<String, ExecError> {
    let mut answer = Vec::new();
    run(&mut |chunk| {
        if answer.len() + chunk.len() > limit {
            return Err(io::Error::other("the tool's answer is too long"));
        }
        answer.extend_from_slice(chunk);
        Ok(())
    })?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A child and its pipes. Dropping it ends and reaps the whole group.
struct Running<'a> {
    tool: &'a Tool<'a>,
    /// `None` once it was reaped.
    child: Option<Child>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    tail: Tail,
    /// Words on stderr are no sign of life.
    chatty: bool,
}

impl<'a> Running<'a> {
    fn start(tool: &'a Tool<'a>) -> Result<Self, ExecError> {
        Self::spawn(tool, command(tool))
    }

    /// Starts `command`, which has pipes for both streams and a group of its own; `tool` says what it is called.
    fn spawn(tool: &'a Tool<'a>, mut command: Command) -> Result<Self, ExecError> {
        let failed = |source| ExecError::Start { tool: tool.name.to_owned(), source };
        let mut child = command.spawn().map_err(failed)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // From here on the drop cleans up.
        let running =
            Self { tool, child: Some(child), stdout, stderr, tail: Tail::default(), chatty: false };
        if let Some(pipe) = &running.stdout {
            rustix::io::ioctl_fionbio(pipe, true).map_err(|e| failed(e.into()))?;
        }
        if let Some(pipe) = &running.stderr {
            rustix::io::ioctl_fionbio(pipe, true).map_err(|e| failed(e.into()))?;
        }
        Ok(running)
    }

    /// Passes on all output, then waits for the end.
    fn follow(
        &mut self,
        stuck: Duration,
        cancel: &Cancel,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<ExitStatus, ExecError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut deadline = Deadline::after(stuck);
        while self.stdout.is_some() {
            self.wait(deadline, stuck, cancel)?;
            self.drain_stderr()?;
            if !self.chatty {
                deadline = Deadline::after(stuck);
            } else if deadline.passed() {
                return Err(self.stuck(stuck));
            }
            if let Some(length) = self.read_stdout(&mut buffer)? {
                sink(buffer.get(..length).unwrap_or_default()).map_err(|error| {
                    cancel.why().map_or(ExecError::Sink(error), ExecError::Cancelled)
                })?;
                // However long the sink took, the tool had no part in it.
                deadline = Deadline::after(stuck);
            }
        }
        let status = self.wait_for_end(Deadline::after(stuck), stuck, cancel)?;
        self.drain_stderr()?;
        Ok(status)
    }

    /// Waits until a pipe can be read.
    fn wait(&self, deadline: Deadline, stuck: Duration, cancel: &Cancel) -> Result<(), ExecError> {
        let mut fds = vec![PollFd::new(cancel, PollFlags::IN)];
        fds.extend(self.stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        fds.extend(self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let ready = net::wait_any(&mut fds, Some(deadline)).map_err(|e| self.lost(e))?;
        if let Some(why) = cancel.why() {
            return Err(ExecError::Cancelled(why));
        }
        if ready { Ok(()) } else { Err(self.stuck(stuck)) }
    }

    /// Waits, output at its end, until the child has ended; then ends what it left behind and reaps it.
    fn wait_for_end(
        &mut self,
        deadline: Deadline,
        stuck: Duration,
        cancel: &Cancel,
    ) -> Result<ExitStatus, ExecError> {
        let mut look = Duration::from_millis(1);
        while !self.ended() {
            self.drain_stderr()?;
            if deadline.passed() {
                return Err(self.stuck(stuck));
            }
            if !cancel.sleep(look) {
                return Err(ExecError::Cancelled(cancel.why().unwrap_or(Why::Requested)));
            }
            look = (look * 2).min(LOOK * 5);
        }
        // Before the reaping, while the group's number cannot mean anybody else.
        self.signal(Signal::KILL);
        let mut child =
            self.child.take().ok_or_else(|| self.lost(io::ErrorKind::NotFound.into()))?;
        child.wait().map_err(|e| self.lost(e))
    }

    /// Whether the child has ended (it is not reaped by looking).
    fn ended(&self) -> bool {
        let Some(pid) = self.pid() else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(rustix::process::waitid(WaitId::Pid(pid), options), Ok(None))
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.as_ref()?.id()).ok()?)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // The group is empty: just as well.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// The next bytes of stdout; `None` if there are none now. At its end the pipe is let go.
    fn read_stdout(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, ExecError> {
        let read = read_some(&mut self.stdout, buffer);
        read.map_err(|e| self.lost(e))
    }

    /// Takes what is on stderr now, up to what a pipe holds.
    fn drain_stderr(&mut self) -> Result<(), ExecError> {
        let mut buffer = [0; 4096];
        for _ in 0..CHUNK_BYTES / buffer.len() {
            match read_some(&mut self.stderr, &mut buffer).map_err(|e| self.lost(e))? {
                Some(length) => self.tail.push(buffer.get(..length).unwrap_or_default()),
                None => break,
            }
        }
        Ok(())
    }

    fn said(&self) -> Said {
        self.tail.text(&self.tool.secrets)
    }

    fn stuck(&self, after: Duration) -> ExecError {
        ExecError::Stuck { tool: self.tool.name.to_owned(), after, said: self.said() }
    }

    fn lost(&self, source: io::Error) -> ExecError {
        ExecError::Follow { tool: self.tool.name.to_owned(), source }
    }

    /// Waits at most `timeout` for the child's end.
    fn ends_within(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        while !self.ended() {
            if deadline.passed() {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        // A reader that is gone ends most tools at once.
        self.stdout = None;
        self.signal(Signal::TERM);
        self.ends_within(GRACE);
        self.signal(Signal::KILL);
        let ended = self.ends_within(REAP);
        let Some(mut child) = self.child.take() else { return };
        if ended {
            // It has ended, so this does not wait.
            let _ = child.wait();
        } else {
            log::warn!(
                "{} (pid {}) does not end although it was killed",
                self.tool.name,
                child.id()
            );
            // Stuck in the kernel, on a dead disk say. Nobody joins this thread: it ends with the child.
            let _ = spawn("reap", move || child.wait());
        }
    }
}

fn command(tool: &Tool<'_>) -> Command {
    let mut command = Command::new(tool.program);
    command.args(&tool.args).env_clear().envs([("LANG", "C"), ("LC_ALL", "C")]);
    for name in ["PATH", "TZ"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .envs(tool.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir("/")
        .process_group(0);
    command
}

fn read_some(pipe: &mut Option<impl Read>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let Some(open) = pipe else { return Ok(None) };
    match open.read(buffer) {
        Ok(0) => {
            *pipe = None;
            Ok(None)
        }
        Ok(length) => Ok(Some(length)),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
