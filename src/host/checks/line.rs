//! The connection under one request: TCP and TLS, non-blocking, every wait bounded by the check's own deadline and
//! its cancel. It measures from the start of the connect and notes until when the peer's certificate is valid.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector as UreqConnector, LazyBuffers, NextTimeout, Transport,
};

use super::cert;
use super::fault::Fault;
use super::rules::{Place, Rules};
use crate::clock::Deadline;
use crate::config::ProxySettings;
use crate::net::{self, NetError, Waited};
use crate::thread::Cancel;

const INPUT_BUFFER: usize = 4 << 10;
const OUTPUT_BUFFER: usize = 4 << 10;

/// What the line tells beside its bytes.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub fault: Option<Fault>,
    /// When the connect began.
    pub started: Option<Instant>,
    /// Until when the peer's certificate is valid, Unix seconds.
    pub valid_until: Option<i64>,
}

/// What a probe may take, and how it gets there.
#[derive(Clone)]
pub(super) struct Way {
    pub rules: Rules,
    pub proxy: ProxySettings,
    pub timeout: Duration,
    pub deadline: Deadline,
    pub cancel: Cancel,
    /// Places of look-ups: a resolver that hangs must not take all that the process has.
    pub lookups: (crossbeam_channel::Sender<()>, crossbeam_channel::Receiver<()>),
}

impl Way {
    /// Connects; also when that began.
    pub fn connect(&self, place: &Place) -> Result<(TcpStream, Instant), Fault> {
        let (host, port) = (place.host.as_str(), place.port);
        let addresses = self.resolve(host, port)?;
        self.rules.judge(host, &addresses)?;
        let started = Instant::now();
        // As HTTPS_PROXY says: for HTTPS only.
        let proxied =
            place.tls && self.proxy.url.is_some() && !net::bypassed(&self.proxy.bypass, host, port);
        let stream = if proxied {
            net::open_tunnel(&self.proxy, host, port, self.deadline, &self.cancel)
        } else {
            net::connect_any(host, &addresses, self.deadline, &self.cancel)
        };
        Ok((stream.map_err(|error| self.failed(error))?, started))
    }

    fn resolve(&self, host: &str, port: u16) -> Result<Vec<std::net::SocketAddr>, Fault> {
        let (take, give) = &self.lookups;
        crossbeam_channel::select! {
            send(take, ()) -> _ => {}
            recv(self.cancel.done()) -> _ => return Err(Fault::Cancelled),
            default(self.deadline.remaining()) => {
                return Err(Fault::Net(NetError::LookupTimeout { host: host.to_owned() }));
            }
        }
        let found = net::resolve_sparing(host, port, self.deadline, &self.cancel);
        let _ = give.try_recv();
        found.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: NetError) -> Fault {
        match error {
            NetError::Cancelled(_) => Fault::Cancelled,
            other => Fault::Net(other),
        }
    }

    /// Waits for the socket.
    fn wait(&self, stream: &TcpStream, write: bool, doing: &'static str) -> Result<(), Fault> {
        let waited = if write {
            net::wait_writable(stream, self.deadline, Some(&self.cancel))
        } else {
            net::wait_readable(stream, self.deadline, Some(&self.cancel))
        };
        match waited {
            Ok(Waited::Ready) => self.alive(doing),
            Ok(Waited::TimedOut) => Err(Fault::Timeout { doing, timeout: self.timeout }),
            Ok(Waited::Cancelled) => Err(Fault::Cancelled),
            Err(source) => Err(Fault::Io { doing, source }),
        }
    }

    /// Also for a peer that never stops talking.
    fn alive(&self, doing: &'static str) -> Result<(), Fault> {
        if self.deadline.passed() {
            return Err(Fault::Timeout { doing, timeout: self.timeout });
        }
        if self.cancel.is_cancelled() { Err(Fault::Cancelled) } else { Ok(()) }
    }
}

/// Makes the line of one request.
pub(super) struct Connector {
    pub way: Way,
    pub place: Place,
    pub tls: Option<Arc<ClientConfig>>,
    pub notes: Arc<Mutex<Notes>>,
}

impl UreqConnector for Connector {
    type Out = Line;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Line>, ureq::Error> {
        self.open().map(Some).map_err(|fault| fail(&self.notes, fault))
    }
}

impl Connector {
    fn open(&self) -> Result<Line, Fault> {
        let (stream, started) = self.way.connect(&self.place)?;
        lock(&self.notes).started = Some(started);
        let tls = match &self.tls {
            Some(config) => Some(Box::new(client(config.clone(), &self.place.host)?)),
            None => None,
        };
        let mut line = Line {
            stream,
            tls,
            way: self.way.clone(),
            notes: self.notes.clone(),
            buffers: LazyBuffers::new(INPUT_BUFFER, OUTPUT_BUFFER),
        };
        line.handshake()?;
        Ok(line)
    }
}

fn client(config: Arc<ClientConfig>, host: &str) -> Result<ClientConnection, Fault> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Fault::Tls(format!("{host} is no name that a certificate could have")))?;
    ClientConnection::new(config, name).map_err(|error| Fault::Tls(error.to_string()))
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the fault, and gives ureq an error to end with.
fn fail(notes: &Mutex<Notes>, fault: Fault) -> ureq::Error {
    lock(notes).fault.get_or_insert(fault);
    ureq::Error::ConnectionFailed
}

/// The transport that ureq talks through.
pub(super) struct Line {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    way: Way,
    notes: Arc<Mutex<Notes>>,
    buffers: LazyBuffers,
}

impl Transport for Line {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let bytes = self.buffers.output()[..amount].to_vec();
        self.send(&bytes).map_err(|fault| fail(&self.notes, fault))
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let mut chunk = [0; 2048];
        let most = self.buffers.input_append_buf().len().min(chunk.len());
        let count = self.receive(&mut chunk[..most]).map_err(|fault| fail(&self.notes, fault))?;
        self.buffers.input_append_buf()[..count].copy_from_slice(&chunk[..count]);
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

impl Line {
    fn handshake(&mut self) -> Result<(), Fault> {
        const DOING: &str = "starting TLS";
        while let Some(tls) = self.tls.as_mut()
            && (tls.is_handshaking() || tls.wants_write())
        {
            self.way.alive(DOING)?;
            let write = tls.wants_write();
            let moved = if write {
                tls.write_tls(&mut self.stream)
            } else {
                tls.read_tls(&mut self.stream)
            };
            match moved {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(Fault::Io { doing: DOING, source });
                }
                Ok(_) if write => {}
                Ok(_) => {
                    if let Err(error) = tls.process_new_packets() {
                        // The alert that tells the peer why; whether it arrives does not matter.
                        let _ = tls.write_tls(&mut self.stream);
                        return Err(Fault::Tls(error.to_string()));
                    }
                }
                Err(error) if is_later(&error) => self.way.wait(&self.stream, write, DOING)?,
                Err(source) => return Err(Fault::Io { doing: DOING, source }),
            }
        }
        let certificate = self.tls.as_ref().and_then(|tls| tls.peer_certificates()?.first());
        let valid_until = certificate.and_then(|certificate| cert::not_after(certificate));
        lock(&self.notes).valid_until = valid_until;
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        const DOING: &str = "sending the request";
        while !bytes.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            self.way.alive(DOING)?;
            let step = match &mut self.tls {
                Some(tls) if tls.wants_write() => tls.write_tls(&mut self.stream).map(|_| 0),
                Some(tls) => tls.writer().write(bytes),
                None => self.stream.write(bytes),
            };
            match step {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_later(&error) => self.way.wait(&self.stream, true, DOING)?,
                Err(source) => return Err(Fault::Io { doing: DOING, source }),
            }
        }
        Ok(())
    }

    /// The next bytes of the answer; 0 at its end.
    fn receive(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        const DOING: &str = "waiting for the answer";
        loop {
            self.way.alive(DOING)?;
            match self.pull(out) {
                Ok(count) => return Ok(count),
                Err(error) if is_later(&error) => self.way.wait(&self.stream, false, DOING)?,
                Err(source) => return Err(Fault::Io { doing: DOING, source }),
            }
        }
    }

    fn pull(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.read(out) };
        loop {
            match tls.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
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
