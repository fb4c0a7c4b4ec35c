//! A dump tool of the container's own image, run inside it by way of the Docker API.
//!
//! What runs there is `sh -c run.sh` (its head tells the steps), and the two sides shake hands: the script names
//! its process and waits; only then is the secret sent, so nothing on stdout can be anything but the tool's
//! output; the output ends with a line of the script's own ([`trailer`]), and the script stays until it is told
//! that this has arrived. A run is good only with that end mark *and* the same exit code from Docker.
//!
//! The secret goes through stdin into a file without a name (`/proc/self/fd/3`): it is in no argument, no
//! environment, nothing that `docker inspect` shows, and nothing of it can stay behind. Whatever a target says
//! is a positional argument and never part of a script.
//!
//! However a run ends, the tool is gone: the end of stdin makes the script end it, TERM and then KILL, which also
//! happens if the agent itself is killed; and if that does not help, a second command kills it. The script
//! always outlives the tool and waits for it: an orphan would fall to the container's first process, and
//! PostgreSQL in that place takes an orphan that a signal ended for a crash of its own and restarts.

mod fault;
mod reach;
mod script;
#[cfg(test)]
mod tests;
mod trailer;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use fault::ContainerFault;

use self::script::Report;
use self::trailer::Trailer;
use super::exec::{ExecError, Tool};
use super::tail::{Said, Tail};
use super::{Context, DriverError};
use crate::clock::Deadline;
use crate::config::HostPolicy;
use crate::docker::{Attached, Bounds, Container, ContainerState, Docker, DockerError, Output};
use crate::model::{Connection, Trust};
use crate::secret::Secret;

pub(super) use script::SECRET_PATH;

/// For a question to the daemon.
const ASK: Duration = Duration::from_secs(15);
/// From the start of the command to its first word; a loaded small board takes seconds.
const HELLO: Duration = Duration::from_secs(60);
/// For the rest of the stream, and for the exit code, after the end mark.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Between two looks at the exit code.
const LOOK: Duration = Duration::from_millis(20);
/// For the end of a run that is given up, all in all …
const END: Duration = Duration::from_millis(1800);
/// … and of that, the time before the second command.
const GRACE: Duration = Duration::from_millis(1200);
/// How long a container that ended may still be reported as running; on a busy board that takes seconds.
const SETTLE: Duration = Duration::from_secs(5);
/// What a container may say before the script's first word.
const MAX_HELLO_BYTES: usize = 8 << 10;

/// A container as a target names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inside {
    reference: String,
}

impl Inside {
    /// The container that a target names.
    ///
    /// # Errors
    /// When that is no name or id.
    pub(super) fn of(connection: &Connection) -> Result<Self, DriverError> {
        Self::new(&connection.container).ok_or_else(|| DriverError::Setting {
            field: "container",
            problem: "is not the name or id of a container".to_owned(),
        })
    }

    /// The container with this name or id (a leading slash, as Docker lists names, is no part of it).
    fn new(reference: &str) -> Option<Self> {
        let name = reference.strip_prefix('/').unwrap_or(reference);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let good = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain);
        (good && name.len() <= 255).then(|| Self { reference: name.to_owned() })
    }

    /// As the target names it.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// The container, which may be named and runs, and its daemon.
    fn admit(&self, cx: &Context<'_>) -> Result<(Docker, Container), ExecError> {
        let docker = Docker::connect(&cx.policy.docker_socket, ask(cx)).map_err(failed)?;
        let container = docker.inspect(&self.reference, ask(cx)).map_err(failed)?;
        if !allowed(&container, cx.policy) {
            let container = self.reference.clone();
            return Err(ContainerFault::NotAllowed { container }.into());
        }
        if container.state != ContainerState::Running {
            let Container { name, state, .. } = container;
            return Err(ContainerFault::State { container: name, state }.into());
        }
        Ok((docker, container))
    }

    /// Which of `names` there are in the container: of programs the path, of a path itself if it is a socket.
    pub(super) fn find(&self, names: &[&str], cx: &Context<'_>) -> Result<Vec<PathBuf>, ExecError> {
        let mut args: Vec<_> = ["-c", script::WHICH, "sh"].iter().map(Into::into).collect();
        args.extend(names.iter().map(Into::into));
        let program = Path::new("sh");
        let tool = Tool { name: "sh", program, args, env: Vec::new(), secrets: Vec::new() };
        let mut answer = Vec::new();
        self.run(&tool, None, ASK, cx, &mut |chunk| {
            answer.extend_from_slice(chunk);
            if answer.len() > 64 << 10 { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
        })?;
        let answer = String::from_utf8_lossy(&answer);
        Ok(answer.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect())
    }

    /// As [`super::exec::run`], inside the container; `secret` is what [`SECRET_PATH`] holds for the tool.
    ///
    /// # Errors
    /// Every end but a whole output and exit code 0; the tool is gone by then.
    pub(super) fn run(
        &self,
        tool: &Tool<'_>,
        secret: Option<&Secret>,
        stuck: Duration,
        cx: &Context<'_>,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Said, ExecError> {
        Running::start(self, tool, secret.is_some(), cx)?.carry_out(secret, stuck, sink)
    }

    /// As [`Inside::run`], for a tool that talks on stderr all the time: only its output shows that it gets on.
    ///
    /// # Errors
    /// As [`Inside::run`].
    pub(super) fn run_by_output(
        &self,
        tool: &Tool<'_>,
        secret: Option<&Secret>,
        stuck: Duration,
        cx: &Context<'_>,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Said, ExecError> {
        let mut running = Running::start(self, tool, secret.is_some(), cx)?;
        running.chatty = true;
        running.carry_out(secret, stuck, sink)
    }
}

fn allowed(found: &Container, policy: &HostPolicy) -> bool {
    let Some(list) = policy.allow_containers.as_deref().filter(|_| policy.trust == Trust::Remote)
    else {
        return true;
    };
    // Twelve digits are what `docker ps` shows; fewer could mean any.
    let is_id = |entry: &str| entry.len() >= 12 && found.id.starts_with(entry);
    list.iter().any(|entry| entry.strip_prefix('/').unwrap_or(entry) == found.name || is_id(entry))
}

/// A command inside a container. Whoever gives it up calls [`Running::end`]; a drop without it closes the
/// connection, which has the script end everything by itself.
struct Running<'a> {
    tool: &'a Tool<'a>,
    cx: &'a Context<'a>,
    docker: Docker,
    container: Container,
    token: String,
    exec: String,
    attached: Attached,
    /// The script's process, once it has named it.
    process: Option<script::Process>,
    tail: Tail,
    /// Words on stderr are no sign of life.
    chatty: bool,
}

impl<'a> Running<'a> {
    fn start(
        inside: &Inside,
        tool: &'a Tool<'a>,
        secret: bool,
        cx: &'a Context<'a>,
    ) -> Result<Self, ExecError> {
        let (docker, container) = inside.admit(cx)?;
        let follow = |source| ExecError::Follow { tool: tool.name.to_owned(), source };
        let token = script::token().map_err(follow)?;
        let command = script::command(tool, &token, secret, cx.limits.nice).map_err(follow)?;
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let exec = docker.exec_create(&container, &words, ask(cx)).map_err(failed)?;
        let attached = docker.exec_start(&exec, ask(cx)).map_err(failed)?;
        let (tail, process) = (Tail::default(), None);
        let chatty = false;
        Ok(Self { tool, cx, docker, container, token, exec, attached, process, tail, chatty })
    }

    /// The whole conversation; however it ends, the tool is gone.
    fn carry_out(
        mut self,
        secret: Option<&Secret>,
        stuck: Duration,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Said, ExecError> {
        let result = self
            .hello()
            .and_then(|()| self.hand_over(secret))
            .and_then(|()| self.follow(stuck, sink))
            .and_then(|code| self.confirm(code));
        let code = match result {
            Ok(code) => code,
            Err(error) => {
                self.end();
                return Err(self.explain(error));
            }
        };
        let (tool, said) = (self.tool.name.to_owned(), self.said());
        match code {
            0 => Ok(said),
            // As a shell reports the end by a signal.
            129..=159 => Err(ExecError::Signal { tool, signal: code - 128, said }),
            code => Err(ExecError::Exit { tool, code, said }),
        }
    }

    fn within(&self, timeout: Duration) -> Bounds<'a> {
        Bounds { deadline: Deadline::after(timeout), cancel: Some(self.cx.cancel) }
    }

    /// Waits for the script's first word.
    fn hello(&mut self) -> Result<(), ExecError> {
        let bounds = self.within(HELLO);
        let mut heard = Vec::new();
        while let Some(output) = self.attached.next(bounds).map_err(failed)? {
            // Docker writes there why it could not start the command.
            let (Output::Stdout(bytes) | Output::Stderr(bytes)) = output;
            heard.extend_from_slice(bytes);
            match script::report(&heard, &self.token) {
                Some(Report::Ready(process)) => {
                    self.process = Some(process);
                    return Ok(());
                }
                Some(Report::Missing(problem)) => {
                    let container = self.container.name.clone();
                    return Err(ContainerFault::Script { container, problem }.into());
                }
                None if heard.len() > MAX_HELLO_BYTES => break,
                None => {}
            }
        }
        self.tail.push(&heard);
        let (container, said) = (self.container.name.clone(), self.said());
        Err(match script::no_shell(&heard) {
            true => ContainerFault::NoShell { container, said }.into(),
            false => {
                let (tool, code) = (self.tool.name.to_owned(), self.code_now());
                ContainerFault::Lost { tool, container, code, said }.into()
            }
        })
    }

    /// Sends the secret and the line that ends it.
    fn hand_over(&mut self, secret: Option<&Secret>) -> Result<(), ExecError> {
        let bounds = self.within(ASK);
        if let Some(secret) = secret {
            self.attached.write(secret.expose().as_bytes(), bounds).map_err(failed)?;
            if !secret.expose().ends_with('\n') {
                self.attached.write(b"\n", bounds).map_err(failed)?;
            }
        }
        self.tell_token(bounds)
    }

    fn tell_token(&mut self, bounds: Bounds<'_>) -> Result<(), ExecError> {
        let line = format!("{}\n", self.token);
        self.attached.write(line.as_bytes(), bounds).map_err(failed)
    }

    /// Passes the tool's output on until its end mark; the exit code in it.
    fn follow(
        &mut self,
        stuck: Duration,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<i32, ExecError> {
        let cancel = self.cx.cancel;
        let mut pass = |piece: &[u8]| {
            sink(piece)
                .map_err(|error| cancel.why().map_or(ExecError::Sink(error), ExecError::Cancelled))
        };
        let mut trailer = Trailer::new(&self.token);
        let mut deadline = Deadline::after(stuck);
        loop {
            let bounds = Bounds { deadline, cancel: Some(cancel) };
            let words = match self.attached.next(bounds) {
                Ok(Some(Output::Stdout(bytes))) => {
                    trailer.feed(bytes, &mut pass)?;
                    if let Some(code) = trailer.code() {
                        return Ok(code);
                    }
                    false
                }
                Ok(Some(Output::Stderr(bytes))) => {
                    self.tail.push(bytes);
                    true
                }
                Ok(None) => return Err(self.lost()),
                Err(DockerError::Timeout { .. }) => return Err(self.stuck(stuck)),
                Err(error) => return Err(failed(error)),
            };
            if !(words && self.chatty) {
                deadline = Deadline::after(stuck);
            } else if deadline.passed() {
                return Err(self.stuck(stuck));
            }
        }
    }

    /// Lets the script go, takes what is left on stderr, and compares the exit code with Docker's.
    fn confirm(&mut self, own: i32) -> Result<i32, ExecError> {
        let bounds = self.within(LAST_WORDS);
        self.tell_token(bounds)?;
        loop {
            match self.attached.next(bounds).map_err(failed)? {
                Some(Output::Stderr(bytes)) => self.tail.push(bytes),
                // After the end mark there is nothing that could be the tool's.
                Some(Output::Stdout(_)) => return Err(self.lost()),
                None => break,
            }
        }
        let code = self.code_within(bounds)?;
        match code {
            Some(code) if code == i64::from(own) => Ok(own),
            code => Err(ContainerFault::Code { tool: self.tool.name.to_owned(), own, code }.into()),
        }
    }

    /// Docker's exit code, once the command has ended; `None` if there is none by then.
    fn code_within(&self, bounds: Bounds<'_>) -> Result<Option<i64>, ExecError> {
        loop {
            let state = self.docker.exec_inspect(&self.exec, bounds).map_err(failed)?;
            if !state.running || bounds.deadline.passed() {
                return Ok(state.exit_code);
            }
            if !self.cx.cancel.sleep(LOOK.min(bounds.deadline.remaining())) {
                let why = self.cx.cancel.why().unwrap_or(crate::thread::Why::Requested);
                return Err(ExecError::Cancelled(why));
            }
        }
    }

    /// The exit code of a command that failed, if it can be had.
    fn code_now(&self) -> Option<i64> {
        self.code_within(self.within(LAST_WORDS)).ok().flatten()
    }

    fn stuck(&self, after: Duration) -> ExecError {
        ExecError::Stuck { tool: self.tool.name.to_owned(), after, said: self.said() }
    }

    fn lost(&self) -> ExecError {
        let (tool, container) = (self.tool.name.to_owned(), self.container.name.clone());
        ContainerFault::Lost { tool, container, code: self.code_now(), said: self.said() }.into()
    }

    fn said(&self) -> Said {
        self.tail.text(&self.tool.secrets)
    }

    /// What is behind an error: often the container itself has stopped or was paused.
    fn explain(&self, error: ExecError) -> ExecError {
        let doubtful = match &error {
            ExecError::Stuck { .. } => true,
            ExecError::Container(fault) => match fault {
                ContainerFault::Docker(DockerError::Cancelled(_)) => false,
                ContainerFault::Docker(_)
                | ContainerFault::Lost { .. }
                | ContainerFault::Code { .. } => true,
                ContainerFault::NotAllowed { .. }
                | ContainerFault::State { .. }
                | ContainerFault::NoAddress { .. }
                | ContainerFault::NoShell { .. }
                | ContainerFault::Script { .. } => false,
            },
            ExecError::Start { .. }
            | ExecError::Exit { .. }
            | ExecError::Signal { .. }
            | ExecError::Follow { .. }
            | ExecError::Sink(_)
            | ExecError::Cancelled(_) => false,
        };
        if !doubtful {
            return error;
        }
        halted(&self.docker, &self.container.id, self.cx).map_or(error, ExecError::from)
    }

    /// Ends the tool.
    fn end(&mut self) {
        let Some(process) = self.process.take() else { return };
        let deadline = Deadline::after(END);
        // The script takes the end of its input for the order to kill.
        let asked = self.attached.close_stdin().is_ok();
        if asked && self.drained(deadline.min(Deadline::after(GRACE))) {
            return;
        }
        let command = script::kill(&process);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let bounds = Bounds { deadline, cancel: None };
        let killed = self.docker.exec_create(&self.container, &words, bounds).and_then(|exec| {
            let mut attached = self.docker.exec_start(&exec, bounds)?;
            while attached.next(bounds)?.is_some() {}
            Ok(())
        });
        if let Err(error) = killed {
            log::warn!(
                "{} in the container {} may still run: {error}",
                self.tool.name,
                self.container.name
            );
        }
    }

    /// Reads the rest of the stream to nowhere; true if it ended.
    fn drained(&mut self, deadline: Deadline) -> bool {
        let bounds = Bounds { deadline, cancel: None };
        loop {
            match self.attached.next(bounds) {
                Ok(Some(_)) if deadline.passed() => return false,
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}

fn ask<'a>(cx: &Context<'a>) -> Bounds<'a> {
    Bounds { deadline: Deadline::after(ASK), cancel: Some(cx.cancel) }
}

/// What a container that was at work does now instead; `None` if it runs after all, or nobody can tell.
fn halted(docker: &Docker, reference: &str, cx: &Context<'_>) -> Option<ContainerFault> {
    // A container that ends takes its commands along a moment before it is reported as ended.
    let deadline = Deadline::after(SETTLE);
    loop {
        let Container { name, state, .. } = docker.inspect(reference, ask(cx)).ok()?;
        if state != ContainerState::Running {
            return Some(ContainerFault::State { container: name, state });
        }
        if deadline.passed() || !cx.cancel.sleep(LOOK * 5) {
            return None;
        }
    }
}

/// A cancel keeps its meaning.
fn failed(error: DockerError) -> ExecError {
    match error {
        DockerError::Cancelled(why) => ExecError::Cancelled(why),
        other => ContainerFault::Docker(other).into(),
    }
}

impl From<ContainerFault> for ExecError {
    fn from(fault: ContainerFault) -> Self {
        Self::Container(fault)
    }
}
