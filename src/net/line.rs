//! The connection under one HTTP exchange, as ureq's transport: TCP and perhaps TLS, non-blocking, with a deadline and
//! the cancel in every wait. Whoever opens it has connected already, says how long each phase may take, and what its
//! end means to him; beside the bytes it tells by way of its [`Talk`].
//!
//! A line can listen while it sends. A server that refuses a long request often says so at once and then closes, and
//! whoever only writes sees a reset instead of the 403. So once a final answer is there, the rest of the request is
//! thrown away ([`Talk::answered_early`]) and ureq goes on to read the answer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection};
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, Connector, LazyBuffers, NextTimeout, Transport};

use super::wait_any;
use crate::clock::Deadline;
use crate::thread::{Cancel, Why};

/// Longest head of an answer.
const MAX_HEAD: usize = 64 << 10;

/// What a line was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Agreeing on TLS.
    Tls,
    /// Sending the request.
    Send,
    /// Waiting for the answer, or for more of it.
    Answer,
}

/// What ended a line.
#[derive(Debug)]
pub enum LineError {
    /// Somebody asked for the stop.
    Cancelled(Why),
    /// A phase took too long.
    TimedOut {
        /// Which one.
        phase: Phase,
        /// What it was given.
        timeout: Duration,
    },
    /// The connection broke.
    Io {
        /// In which phase.
        phase: Phase,
        /// How.
        source: io::Error,
    },
    /// The peer and we do not agree.
    Tls(rustls::Error),
    /// The host is no name that a certificate could have.
    Name(String),
    /// Interim answers without end, before the request was over.
    Endless,
}

/// How long the phases may take, and what is done beside.
#[derive(Clone)]
pub struct Terms {
    /// From now until TLS has begun.
    pub open: Duration,
    /// While sending, without a byte that was taken.
    pub stall: Duration,
    /// From the first wait for it to the whole answer; once it streams, without a byte of it there is `stall`.
    pub answer: Duration,
    /// Bounds all of it together.
    pub end: Option<Deadline>,
    /// Whether an answer that comes early ends the sending.
    pub listens: bool,
    /// Size of the buffers for the answer and for the request.
    pub buffers: (usize, usize),
    /// Called before so many bytes are sent; may wait.
    pub pace: Option<Arc<dyn Fn(usize) + Send + Sync>>,
}

/// What a line and its user tell each other beside the bytes.
#[derive(Debug, Default)]
pub struct Talk {
    early: AtomicBool,
    stream: AtomicBool,
    error: Mutex<Option<LineError>>,
}

impl Talk {
    /// Whether the answer came before the request was sent.
    pub fn answered_early(&self) -> bool {
        self.early.load(Ordering::Relaxed)
    }

    /// From now on the answer may take as long as it likes, as long as something of it comes.
    pub fn stream(&self) {
        self.stream.store(true, Ordering::Relaxed);
    }

    /// What ended the line, if anything did.
    pub fn take_error(&self) -> Option<LineError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps the error, and gives ureq one to end with.
    fn fail(&self, error: LineError) -> ureq::Error {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        ureq::Error::ConnectionFailed
    }
}

/// An agent for one exchange over such a line: nothing of its own that would wait, follow, reuse, look names up, or
/// read the environment.
pub fn agent(connector: impl Connector, user_agent: &str) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .user_agent(user_agent)
        .max_response_header_size(MAX_HEAD)
        .build();
    ureq::Agent::with_parts(config, connector, NoResolver)
}

/// Whoever connects looks names up as well, with a deadline and a cancel.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &ureq::http::Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// The transport.
pub struct Line {
    socket: Socket,
    buffers: LazyBuffers,
    /// Until when the whole answer must be there; set when it is first waited for.
    answer: Option<Deadline>,
}

impl Line {
    /// Over a connected stream; with TLS it is agreed on here, for this host.
    ///
    /// # Errors
    /// See [`LineError`].
    pub fn open(
        stream: TcpStream,
        tls: Option<Arc<ClientConfig>>,
        host: &str,
        terms: Terms,
        cancel: &Cancel,
        talk: &Arc<Talk>,
    ) -> Result<Self, LineError> {
        let tls = match tls {
            Some(config) => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|_| LineError::Name(host.to_owned()))?;
                Some(Box::new(ClientConnection::new(config, name).map_err(LineError::Tls)?))
            }
            None => None,
        };
        let buffers = LazyBuffers::new(terms.buffers.0, terms.buffers.1);
        let (cancel, talk) = (cancel.clone(), talk.clone());
        let mut socket = Socket { stream, tls, terms, cancel, talk, early: Vec::new(), interim: 0 };
        socket.handshake()?;
        Ok(Self { socket, buffers, answer: None })
    }

    /// What the peer has shown; `None` without TLS.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.socket.tls.as_ref()?.peer_certificates()?.first()
    }
}

impl Transport for Line {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let socket = &mut self.socket;
        if let Some(pace) = socket.terms.pace.as_ref().filter(|_| !socket.talk.answered_early()) {
            // What a cancel cut short ends with the send.
            pace(amount);
        }
        let bytes = &self.buffers.output()[..amount];
        socket.send(bytes).map_err(|error| socket.talk.fail(error))
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let socket = &mut self.socket;
        let streams = socket.talk.stream.load(Ordering::Relaxed);
        let timeout = if streams { socket.terms.stall } else { socket.terms.answer };
        let deadline = match streams {
            true => Deadline::after(timeout),
            false => *self.answer.get_or_insert_with(|| Deadline::after(timeout)),
        };
        let received = socket.receive(self.buffers.input_append_buf(), deadline);
        let count = match received {
            Ok(Some(count)) => Ok(count),
            Ok(None) => Err(LineError::TimedOut { phase: Phase::Answer, timeout }),
            Err(error) => Err(error),
        }
        .map_err(|error| socket.talk.fail(error))?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    /// Never used for a second exchange.
    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        self.socket.tls.is_some()
    }
}

/// The socket with or without TLS.
struct Socket {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    terms: Terms,
    cancel: Cancel,
    talk: Arc<Talk>,
    /// What arrived while the request was sent.
    early: Vec<u8>,
    /// How many bytes arrived while the request was sent.
    interim: usize,
}

impl Socket {
    fn handshake(&mut self) -> Result<(), LineError> {
        const PHASE: Phase = Phase::Tls;
        let timeout = self.terms.open;
        let deadline = self.bounded(Deadline::after(timeout));
        let late = || LineError::TimedOut { phase: PHASE, timeout };
        let broken = |source| LineError::Io { phase: PHASE, source };
        while let Some(tls) = self.tls.as_mut()
            && (tls.is_handshaking() || tls.wants_write())
        {
            if deadline.passed() {
                return Err(late());
            }
            if tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(_) => continue,
                    Err(error) if is_later(&error) => {}
                    Err(source) => return Err(broken(source)),
                }
            }
            if tls.is_handshaking() {
                match tls.read_tls(&mut self.stream) {
                    Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {
                        if let Err(error) = tls.process_new_packets() {
                            // The alert that tells the peer why; whether it arrives does not matter.
                            let _ = tls.write_tls(&mut self.stream);
                            return Err(LineError::Tls(error));
                        }
                        continue;
                    }
                    Err(error) if is_later(&error) => {}
                    Err(source) => return Err(broken(source)),
                }
            }
            let flags =
                if self.wants_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            if !self.wait(flags, deadline, PHASE)? {
                return Err(late());
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, unless the answer comes first.
    fn send(&mut self, bytes: &[u8]) -> Result<(), LineError> {
        // Nothing left to send: an answer that is here by now is not early.
        if bytes.is_empty() {
            return Ok(());
        }
        let timeout = self.terms.stall;
        let mut rest = bytes;
        let mut deadline = self.bounded(Deadline::after(timeout));
        self.listen()?;
        while !self.talk.answered_early() && (!rest.is_empty() || self.wants_write()) {
            // A socket that takes everything at once is never waited for.
            if let Some(why) = self.cancel.why() {
                return Err(LineError::Cancelled(why));
            }
            if deadline.passed() {
                return Err(LineError::TimedOut { phase: Phase::Send, timeout });
            }
            match self.push(&mut rest) {
                Ok(()) => deadline = self.bounded(Deadline::after(timeout)),
                Err(error) if is_later(&error) => {
                    let listening =
                        if self.terms.listens { PollFlags::IN } else { PollFlags::empty() };
                    if !self.wait(listening | PollFlags::OUT, deadline, Phase::Send)? {
                        return Err(LineError::TimedOut { phase: Phase::Send, timeout });
                    }
                    self.listen()?;
                }
                Err(source) => {
                    // Behind a reset there may be an answer that arrived before it.
                    let heard = self.listen();
                    if !self.talk.answered_early() {
                        heard?;
                        return Err(LineError::Io { phase: Phase::Send, source });
                    }
                }
            }
        }
        Ok(())
    }

    /// One step of sending.
    fn push(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        let count = match &mut self.tls {
            Some(tls) if tls.wants_write() => return tls.write_tls(&mut self.stream).map(drop),
            Some(tls) => tls.writer().write(rest)?,
            None => self.stream.write(rest)?,
        };
        *rest = &rest[count..];
        if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Takes what has arrived while sending, without waiting for it.
    fn listen(&mut self) -> Result<(), LineError> {
        let broken = |source| LineError::Io { phase: Phase::Send, source };
        let mut buffer = [0; 4096];
        while self.terms.listens && !self.talk.answered_early() {
            if self.interim >= MAX_HEAD {
                return Err(LineError::Endless);
            }
            match self.pull(&mut buffer) {
                Ok(0) => {
                    let closed = "the server closed the connection";
                    return Err(broken(io::Error::new(io::ErrorKind::UnexpectedEof, closed)));
                }
                Ok(count) => {
                    self.interim += count;
                    self.early.extend_from_slice(&buffer[..count]);
                    self.look_for_answer();
                }
                Err(error) if is_later(&error) => return Ok(()),
                Err(source) => return Err(broken(source)),
            }
        }
        Ok(())
    }

    /// Drops interim answers (1xx) and notices a final one.
    fn look_for_answer(&mut self) {
        while self.early.len() >= b"HTTP/1.1 1".len() {
            if !self.early.starts_with(b"HTTP/1.") || self.early[9] != b'1' {
                self.talk.early.store(true, Ordering::Relaxed);
                return;
            }
            let end = self.early.windows(4).position(|window| window == b"\r\n\r\n");
            let Some(end) = end else { return };
            self.early.drain(..end + 4);
        }
    }

    /// Waits for the next bytes of the answer: 0 at its end, `None` when the deadline passed first.
    fn receive(&mut self, out: &mut [u8], deadline: Deadline) -> Result<Option<usize>, LineError> {
        if !self.early.is_empty() {
            let count = out.len().min(self.early.len());
            out[..count].copy_from_slice(&self.early[..count]);
            self.early.drain(..count);
            return Ok(Some(count));
        }
        let deadline = self.bounded(deadline);
        loop {
            // Also for a server that never stops answering.
            if let Some(why) = self.cancel.why() {
                return Err(LineError::Cancelled(why));
            }
            if deadline.passed() {
                return Ok(None);
            }
            match self.pull(out) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if is_later(&error) => {
                    if !self.wait(PollFlags::IN, deadline, Phase::Answer)? {
                        return Ok(None);
                    }
                }
                Err(source) => return Err(LineError::Io { phase: Phase::Answer, source }),
            }
        }
    }

    /// What has arrived; 0 at the end of the connection.
    fn pull(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.read(out) };
        loop {
            match tls.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Many peers close without saying so in TLS; HTTP's own lengths notice a cut.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            let count = tls.read_tls(&mut self.stream)?;
            tls.process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if count == 0 {
                return Ok(0);
            }
        }
    }

    fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// A phase's deadline within that of the whole.
    fn bounded(&self, deadline: Deadline) -> Deadline {
        self.terms.end.map_or(deadline, |end| end.min(deadline))
    }

    /// Waits for the socket; false when the deadline passed first.
    fn wait(&self, flags: PollFlags, deadline: Deadline, phase: Phase) -> Result<bool, LineError> {
        let mut fds = [PollFd::new(&self.stream, flags), PollFd::new(&self.cancel, PollFlags::IN)];
        let ready =
            wait_any(&mut fds, Some(deadline)).map_err(|source| LineError::Io { phase, source })?;
        match self.cancel.why() {
            Some(why) => Err(LineError::Cancelled(why)),
            None => Ok(ready),
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}
