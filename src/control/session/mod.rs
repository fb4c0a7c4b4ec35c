//! One agent's session, from its upgrade to its end: the server's side of the wire.
//!
//! ```text
//! upgraded ── Register within 15 s ──▶ RegisterAck ──▶ open ── idle, mute, broken, replaced, stop ──▶ over
//! ```
//! The connection's own thread does everything: it sleeps in `poll(2)` on the socket, on the line
//! through which the control plane sends commands, and on the two stop tokens. What an agent says goes to
//! the [`Desk`] in the order it came, and an agent that understands confirmations gets one
//! (`Ack{seq-<n>}`) only after the desk has on its disk everything up to `n`. A desk that cannot store
//! ends the session without confirming: the agent keeps what it has and comes again.
//!
//! It never decides anything about runs, and it knows no other session.

mod line;
mod socket;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

pub use line::{Command, Line};
use socket::{Pass, Socket, SocketError};

use crate::clock::{Deadline, unix_ms};
use crate::control::http::{Conn, HttpError};
use crate::model::AgentConfig;
use crate::net::wait_any;
use crate::wire::{self, Ack, AgentMessage, Header, Register, RegisterAck, ServerMessage};

/// The wire's times, so that tests can shrink them.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the upgrade to Register.
    pub register: Duration,
    /// Without any frame from the agent.
    pub idle: Duration,
    /// One write.
    pub write: Duration,
    /// A frame goes out at least so often, because agents too give up on silence.
    pub speak: Duration,
    /// Told to agents.
    pub heartbeat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            register: Duration::from_secs(15),
            idle: Duration::from_secs(90),
            write: Duration::from_secs(10),
            speak: Duration::from_secs(40),
            heartbeat: Duration::from_secs(30),
        }
    }
}

/// What the desk holds against a message: it could not be stored.
#[derive(Debug)]
pub struct NotStored(pub String);

impl fmt::Display for NotStored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotStored {}

/// The control plane as a session sees it.
pub trait Desk: Send + Sync {
    /// An agent has registered: the configuration it should hold. Commands go into `line` from now on;
    /// they leave after the RegisterAck.
    fn welcome(&self, agent: &str, register: &Register, line: &Line) -> AgentConfig;

    /// Takes messages; returns once everything that must survive is on the disk.
    ///
    /// # Errors
    /// When it cannot be; the session ends unconfirmed.
    fn receive(&self, line: &Line, messages: Vec<(Header, AgentMessage)>) -> Result<(), NotStored>;

    /// The session is over.
    fn farewell(&self, line: &Line, reason: &str);
}

/// Why a session ended.
#[derive(Debug)]
enum End {
    Socket(SocketError),
    Silent,
    NotRegistered,
    Replaced,
    Stopping,
    NotStored(NotStored),
    System(std::io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => error.fmt(f),
            Self::Silent => f.write_str("the agent was silent for too long"),
            Self::NotRegistered => f.write_str("the agent did not register"),
            Self::Replaced => f.write_str("the agent connected anew"),
            Self::Stopping => f.write_str("the control plane is stopping"),
            Self::NotStored(error) => write!(f, "failed to store what the agent sent: {error}"),
            Self::System(error) => write!(f, "failed to wait for the agent: {error}"),
        }
    }
}

impl From<SocketError> for End {
    fn from(error: SocketError) -> Self {
        Self::Socket(error)
    }
}

/// Answers the upgrade with `accept_key` and serves the agent until its session ends.
///
/// # Errors
/// When the upgrade cannot be answered; how a session ends afterwards is only logged.
pub fn serve(
    conn: &mut Conn,
    accept_key: &str,
    agent: &str,
    desk: &Arc<dyn Desk>,
    timing: Timing,
) -> Result<(), HttpError> {
    let line = Line::new(agent).map_err(HttpError::Socket)?;
    let (stream, ahead) = conn.switch(accept_key)?;
    let socket = Socket::new(stream, ahead, timing);
    let heard = Deadline::after(timing.register);
    let speak = Deadline::after(timing.speak);
    let confirms = false;
    let stop = conn.stop().clone();
    let desk = desk.clone();
    let mut session =
        Session { socket, line, stop, desk, timing, heard, speak, confirms, seq: unix_ms() << 20 };
    let (registered, end) = match session.register() {
        Ok(rest) => (true, session.open(rest)),
        Err(end) => (false, end),
    };
    session.socket.close();
    if registered {
        session.desk.farewell(&session.line, &end.to_string());
    }
    log::info!("session {} of agent {agent} is over: {end}", session.line.id());
    if let End::NotStored(_) = end {
        // The agent will be back within a second or two; the disk hardly will.
        session.stop.sleep(timing.write);
    }
    Ok(())
}

struct Session {
    socket: Socket,
    line: Line,
    stop: crate::thread::Cancel,
    desk: Arc<dyn Desk>,
    timing: Timing,
    /// The agent is given up unless it is heard by then.
    heard: Deadline,
    /// Something should go out by then.
    speak: Deadline,
    /// Whether the agent understands confirmations.
    confirms: bool,
    seq: u64,
}

impl Session {
    /// Waits for Register and answers it; returns what came behind it in the same pass.
    fn register(&mut self) -> Result<Vec<Vec<u8>>, End> {
        loop {
            let pass = self.socket.read()?;
            let mut messages = pass.messages.into_iter();
            if let Some(first) = messages.next() {
                let register = match wire::decode_agent(&first) {
                    Ok((_, AgentMessage::Register(register))) => register,
                    Ok(_) | Err(_) => return Err(End::NotRegistered),
                };
                self.greet(&register)?;
                return Ok(messages.collect());
            }
            if self.heard.passed() {
                return Err(End::NotRegistered);
            }
            self.wait(self.heard)?;
        }
    }

    fn greet(&mut self, register: &Register) -> Result<(), End> {
        self.confirms = register.capabilities.iter().any(|c| c == wire::DURABLE_ACKS);
        self.line.set_store_id(&register.store_id);
        let config = self.desk.welcome(self.line.agent(), register, &self.line);
        log::info!(
            "agent {} ({} {} on {}, configuration {}) is connected, session {}",
            self.line.agent(),
            register.arch,
            register.agent_version,
            register.hostname,
            register.last_known_config_version,
            self.line.id()
        );
        self.heard = Deadline::after(self.timing.idle);
        self.say(
            String::new(),
            ServerMessage::RegisterAck(RegisterAck {
                session_id: self.line.id().to_owned(),
                config: Some(config),
                heartbeat_interval_sec: u32::try_from(self.timing.heartbeat.as_secs())
                    .unwrap_or(u32::MAX)
                    .max(1),
                server_time_iso: jiff::Timestamp::now().to_string(),
                durable_acks: true,
            }),
        )
    }

    /// The session proper, until something ends it.
    fn open(&mut self, rest: Vec<Vec<u8>>) -> End {
        let mut pass = Pass { messages: rest, alive: true, more: true };
        loop {
            if let Err(end) = self.turn(pass) {
                return end;
            }
            pass = match self.socket.read() {
                Ok(pass) => pass,
                Err(error) => return error.into(),
            };
        }
    }

    /// Deals with what a pass brought, sends what is due, and waits for more.
    fn turn(&mut self, pass: Pass) -> Result<(), End> {
        if pass.alive {
            self.heard = Deadline::after(self.timing.idle);
        }
        if !pass.messages.is_empty() {
            self.take(pass.messages)?;
        }
        self.socket.flush()?;
        self.commands()?;
        if self.heard.passed() {
            return Err(End::Silent);
        }
        self.keep_alive(pass.alive)?;
        if pass.more {
            return self.stopped();
        }
        self.wait(self.heard.min(self.speak))
    }

    fn take(&mut self, frames: Vec<Vec<u8>>) -> Result<(), End> {
        let mut up_to = 0;
        let mut confirm = false;
        let mut messages = Vec::with_capacity(frames.len());
        for frame in frames {
            match wire::decode_agent(&frame) {
                Ok((header, message)) => {
                    up_to = up_to.max(header.seq);
                    confirm |= header.entry_id != 0;
                    messages.push((header, message));
                }
                Err(error) => log::warn!("ignored a frame of agent {}: {error}", self.line.agent()),
            }
        }
        self.desk.receive(&self.line, messages).map_err(End::NotStored)?;
        if self.confirms && confirm {
            let ack = Ack::ok(format!("{}{up_to}", wire::ACK_SEQ_PREFIX));
            self.say(String::new(), ServerMessage::Ack(ack))?;
        }
        Ok(())
    }

    /// Sends the commands that wait in the line, as long as the agent takes them.
    fn commands(&mut self) -> Result<(), End> {
        self.line.heed();
        while self.socket.blocked().is_none()
            && let Some(command) = self.line.next()
        {
            self.say(command.correlation_id, command.message)?;
        }
        Ok(())
    }

    /// Speaks when it is time, preferably right after the agent did: one wake-up instead of two.
    fn keep_alive(&mut self, alive: bool) -> Result<(), End> {
        let early = alive && self.speak.remaining() < self.timing.speak / 2;
        if (early || self.speak.passed()) && self.socket.blocked().is_none() {
            self.socket.ping()?;
            self.speak = Deadline::after(self.timing.speak);
        }
        Ok(())
    }

    fn say(&mut self, correlation_id: String, message: ServerMessage) -> Result<(), End> {
        self.seq = self.seq.max(unix_ms() << 20) + 1;
        let header = Header { seq: self.seq, ts_ms: unix_ms(), correlation_id, entry_id: 0 };
        self.speak = Deadline::after(self.timing.speak);
        self.socket.send(wire::encode_server(header, message))?;
        Ok(())
    }

    fn wait(&self, deadline: Deadline) -> Result<(), End> {
        let (flags, deadline) = match self.socket.blocked() {
            Some(write) => (PollFlags::IN | PollFlags::OUT, self.heard.min(write)),
            None => (PollFlags::IN, deadline),
        };
        let mut fds = [
            PollFd::new(&self.socket, flags),
            PollFd::new(self.line.wake(), PollFlags::IN),
            PollFd::new(self.line.replaced(), PollFlags::IN),
            PollFd::new(&self.stop, PollFlags::IN),
        ];
        // While the socket is blocked the line may be readable without being read: only its waits matter.
        let watched = if self.socket.blocked().is_some() {
            fds.swap(1, 3);
            3
        } else {
            4
        };
        wait_any(&mut fds[..watched], Some(deadline)).map_err(End::System)?;
        self.stopped()
    }

    fn stopped(&self) -> Result<(), End> {
        if self.stop.is_cancelled() {
            return Err(End::Stopping);
        }
        if self.line.replaced().is_cancelled() {
            return Err(End::Replaced);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
