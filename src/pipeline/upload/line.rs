//! The connection under one PUT: TCP (through a proxy, if there is one) and TLS, non-blocking, with a
//! deadline and the cancel in every wait.
//!
//! While a request is sent, the line also listens. A store that refuses an upload often says so at once
//! and then closes, and whoever only writes sees a reset instead of the 403. So once a final answer is
//! there, the rest of the request is thrown away ([`Exchange::answered_early`]) and ureq goes on to read
//! the answer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector as UreqConnector, LazyBuffers, NextTimeout, Transport,
};

use super::pace::Pace;
use super::url::bare_host;
use super::{Fault, Timing};
use crate::clock::Deadline;
use crate::config::ProxySettings;
use crate::drivers::address::forbidden;
use crate::net;
use crate::thread::Cancel;

/// Longest head of an answer.
pub(super) const MAX_ANSWER_HEAD: usize = 64 << 10;
const INPUT_BUFFER: usize = 16 << 10;
const OUTPUT_BUFFER: usize = 128 << 10;
/// Under a limit: small pieces, so that no line falls silent for so long that the store gives up on it.
const PACED_OUTPUT_BUFFER: usize = 16 << 10;

/// What the line tells about one exchange beside its bytes.
#[derive(Default)]
pub(super) struct Exchange {
    early: AtomicBool,
    stream: AtomicBool,
    fault: Mutex<Option<Fault>>,
}

impl Exchange {
    /// Whether the answer came before the request was sent.
    pub(super) fn answered_early(&self) -> bool {
        self.early.load(Ordering::Relaxed)
    }

    /// From now on the answer may take as long as it likes, as long as something of it comes.
    pub(super) fn stream(&self) {
        self.stream.store(true, Ordering::Relaxed);
    }

    /// What ended the line, if anything did.
    pub(super) fn take_fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps the fault, and gives ureq an error to end with.
    fn fail(&self, fault: Fault) -> ureq::Error {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        ureq::Error::ConnectionFailed
    }
}

/// Makes the line of one try.
pub(super) struct Connector {
    pub(super) proxy: ProxySettings,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) timing: Timing,
    pub(super) paces: Vec<Arc<Pace>>,
    pub(super) cancel: Cancel,
    pub(super) exchange: Arc<Exchange>,
    /// Whoever sent the URL may name any address.
    pub(super) anywhere: bool,
}

impl UreqConnector for Connector {
    type Out = Line;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Line>, ureq::Error> {
        let host = bare_host(details.uri.host().unwrap_or_default());
        let default = if self.tls.is_some() { 443 } else { 80 };
        let port = details.uri.port_u16().unwrap_or(default);
        self.open(host, port).map(Some).map_err(|fault| self.exchange.fail(fault))
    }
}

impl Connector {
    fn open(&self, host: &str, port: u16) -> Result<Line, Fault> {
        let deadline = Deadline::after(self.timing.connect);
        let stream = self.reach(host, port, deadline)?;
        let tls = match &self.tls {
            Some(config) => Some(Box::new(client(config.clone(), host)?)),
            None => None,
        };
        let mut socket = Socket {
            stream,
            tls,
            cancel: self.cancel.clone(),
            exchange: self.exchange.clone(),
            early: Vec::new(),
            interim: 0,
        };
        socket.handshake(deadline)?;
        let output = if self.paces.is_empty() { OUTPUT_BUFFER } else { PACED_OUTPUT_BUFFER };
        let buffers = LazyBuffers::new(INPUT_BUFFER, output);
        let paces = self.paces.clone();
        Ok(Line { socket, buffers, timing: self.timing, paces, answer: None })
    }
}

impl Connector {
    /// TCP to the store. What a name means is judged on the very addresses that are connected to; only a proxy looks
    /// names up itself.
    fn reach(&self, host: &str, port: u16, deadline: Deadline) -> Result<TcpStream, Fault> {
        let failed = |error| match error {
            net::NetError::Cancelled(why) => Fault::Cancelled(why),
            other => Fault::Net(other),
        };
        let proxied = self.proxy.url.is_some() && !net::bypassed(&self.proxy.bypass, host, port);
        if self.anywhere || (proxied && host.parse::<IpAddr>().is_err()) {
            return net::open_tunnel(&self.proxy, host, port, deadline, &self.cancel)
                .map_err(failed);
        }
        let addresses = net::resolve(host, port, deadline, &self.cancel).map_err(failed)?;
        if addresses.iter().any(|address| forbidden(address.ip())) {
            return Err(Fault::Url {
                problem: "leads to a link-local or metadata address, where no store is",
            });
        }
        if proxied {
            return net::open_tunnel(&self.proxy, host, port, deadline, &self.cancel)
                .map_err(failed);
        }
        net::connect_any(host, &addresses, deadline, &self.cancel).map_err(failed)
    }
}

fn client(config: Arc<ClientConfig>, host: &str) -> Result<ClientConnection, Fault> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Fault::Tls {
        error: format!("{host} is no name that a certificate could have"),
        permanent: true,
    })?;
    ClientConnection::new(config, name).map_err(tls_fault)
}

fn tls_fault(error: rustls::Error) -> Fault {
    let permanent = matches!(
        error,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::PeerIncompatible(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::InvalidMessage(_)
    );
    Fault::Tls { error: error.to_string(), permanent }
}

/// The transport that ureq talks through.
pub(super) struct Line {
    socket: Socket,
    buffers: LazyBuffers,
    timing: Timing,
    paces: Vec<Arc<Pace>>,
    /// Until when the whole answer must be there; set when it is first waited for.
    answer: Option<Deadline>,
}

impl Transport for Line {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let socket = &mut self.socket;
        for pace in self.paces.iter().filter(|_| !socket.exchange.answered_early()) {
            // What a cancel cut short ends with the send.
            pace.wait(amount, &socket.cancel);
        }
        let bytes = &self.buffers.output()[..amount];
        self.socket.send(bytes, self.timing).map_err(|fault| self.socket.exchange.fail(fault))
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let streams = self.socket.exchange.stream.load(Ordering::Relaxed);
        let timeout = if streams { self.timing.stall } else { self.timing.answer };
        let deadline = match streams {
            true => Deadline::after(timeout),
            false => *self.answer.get_or_insert_with(|| Deadline::after(timeout)),
        };
        let received = self.socket.receive(self.buffers.input_append_buf(), deadline);
        let count = match received {
            Ok(Some(count)) => Ok(count),
            Ok(None) => Err(Fault::NoAnswer { timeout }),
            Err(fault) => Err(fault),
        }
        .map_err(|fault| self.socket.exchange.fail(fault))?;
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
    cancel: Cancel,
    exchange: Arc<Exchange>,
    /// What arrived while the request was sent.
    early: Vec<u8>,
    /// How many bytes arrived while the request was sent.
    interim: usize,
}

impl Socket {
    fn handshake(&mut self, deadline: Deadline) -> Result<(), Fault> {
        while let Some(tls) = self.tls.as_mut()
            && (tls.is_handshaking() || tls.wants_write())
        {
            if deadline.passed() {
                return Err(Fault::Tls { error: "no end in time".to_owned(), permanent: false });
            }
            if tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(_) => continue,
                    Err(error) if is_later(&error) => {}
                    Err(source) => return Err(Fault::Io { doing: "starting TLS", source }),
                }
            }
            if tls.is_handshaking() {
                match tls.read_tls(&mut self.stream) {
                    Ok(0) => {
                        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return Err(Fault::Io { doing: "starting TLS", source });
                    }
                    Ok(_) => {
                        if let Err(error) = tls.process_new_packets() {
                            // The alert that tells the peer why; whether it arrives does not matter.
                            let _ = tls.write_tls(&mut self.stream);
                            return Err(tls_fault(error));
                        }
                        continue;
                    }
                    Err(error) if is_later(&error) => {}
                    Err(source) => return Err(Fault::Io { doing: "starting TLS", source }),
                }
            }
            let write = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
            let flags = if write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            if !self.wait(flags, deadline)? {
                return Err(Fault::Tls { error: "no answer in time".to_owned(), permanent: false });
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, unless the answer comes first.
    fn send(&mut self, bytes: &[u8], timing: Timing) -> Result<(), Fault> {
        // Nothing left to send: an answer that is here by now is not early.
        if bytes.is_empty() {
            return Ok(());
        }
        // A socket that takes everything at once is never waited for.
        if let Some(why) = self.cancel.why() {
            return Err(Fault::Cancelled(why));
        }
        let mut rest = bytes;
        let mut deadline = Deadline::after(timing.stall);
        self.listen()?;
        while !self.exchange.answered_early() && (!rest.is_empty() || self.wants_write()) {
            match self.push(&mut rest) {
                Ok(()) => deadline = Deadline::after(timing.stall),
                Err(error) if is_later(&error) => {
                    if !self.wait(PollFlags::IN | PollFlags::OUT, deadline)? {
                        return Err(Fault::Stalled { timeout: timing.stall });
                    }
                    self.listen()?;
                }
                Err(source) => {
                    // Behind a reset there may be an answer that arrived before it.
                    let heard = self.listen();
                    if !self.exchange.answered_early() {
                        heard?;
                        return Err(Fault::Io { doing: "sending", source });
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
    fn listen(&mut self) -> Result<(), Fault> {
        let mut buffer = [0; 4096];
        while !self.exchange.answered_early() {
            if self.interim >= MAX_ANSWER_HEAD {
                return Err(Fault::Protocol("it answers without end before the upload is over"));
            }
            match self.pull(&mut buffer) {
                Ok(0) => {
                    let source = io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the store closed the connection",
                    );
                    return Err(Fault::Io { doing: "sending", source });
                }
                Ok(count) => {
                    self.interim += count;
                    self.early.extend_from_slice(&buffer[..count]);
                    self.look_for_answer();
                }
                Err(error) if is_later(&error) => return Ok(()),
                Err(source) => return Err(Fault::Io { doing: "sending", source }),
            }
        }
        Ok(())
    }

    /// Drops interim answers (1xx) and notices a final one.
    fn look_for_answer(&mut self) {
        while self.early.len() >= b"HTTP/1.1 1".len() {
            if !self.early.starts_with(b"HTTP/1.") || self.early[9] != b'1' {
                self.exchange.early.store(true, Ordering::Relaxed);
                return;
            }
            let end = self.early.windows(4).position(|window| window == b"\r\n\r\n");
            let Some(end) = end else { return };
            self.early.drain(..end + 4);
        }
    }

    /// Waits for the next bytes of the answer: 0 at its end, `None` when the deadline passed first.
    fn receive(&mut self, out: &mut [u8], deadline: Deadline) -> Result<Option<usize>, Fault> {
        if !self.early.is_empty() {
            let count = out.len().min(self.early.len());
            out[..count].copy_from_slice(&self.early[..count]);
            self.early.drain(..count);
            return Ok(Some(count));
        }
        loop {
            // Also for a store that never stops answering.
            if let Some(why) = self.cancel.why() {
                return Err(Fault::Cancelled(why));
            }
            if deadline.passed() {
                return Ok(None);
            }
            match self.pull(out) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if is_later(&error) => {
                    if !self.wait(PollFlags::IN, deadline)? {
                        return Ok(None);
                    }
                }
                Err(source) => {
                    return Err(Fault::Io { doing: "waiting for the answer", source });
                }
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

    /// Waits for the socket; false when the deadline passed first.
    fn wait(&self, flags: PollFlags, deadline: Deadline) -> Result<bool, Fault> {
        let mut fds = [PollFd::new(&self.stream, flags), PollFd::new(&self.cancel, PollFlags::IN)];
        let ready = net::wait_any(&mut fds, Some(deadline))
            .map_err(|source| Fault::Io { doing: "waiting", source })?;
        match self.cancel.why() {
            Some(why) => Err(Fault::Cancelled(why)),
            None => Ok(ready),
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}
