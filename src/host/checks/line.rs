//! The connection under one request of a check: how it is reached, within the check's own deadline, and what its end
//! means for a check. The line itself is [`net::Line`]. It measures from the start of the connect and notes until when
//! the peer's certificate is valid.

use std::fmt;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use ureq::unversioned::transport::{ConnectionDetails, Connector as UreqConnector};

use super::cert;
use super::fault::Fault;
use super::rules::{Place, Rules};
use crate::clock::Deadline;
use crate::config::ProxySettings;
use crate::net::{self, Line, LineError, NetError, Phase, Talk, Terms};
use crate::thread::Cancel;

const INPUT_BUFFER: usize = 4 << 10;
const OUTPUT_BUFFER: usize = 4 << 10;

/// What is told of a request beside its answer.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// What kept the line from being opened.
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

    /// What an end of the line is to a check, whose time is one for all phases.
    pub fn ended(&self, error: LineError) -> Fault {
        let doing = |phase| match phase {
            Phase::Tls => "starting TLS",
            Phase::Send => "sending the request",
            Phase::Answer => "waiting for the answer",
        };
        match error {
            LineError::Cancelled(_) => Fault::Cancelled,
            LineError::TimedOut { phase, .. } => {
                Fault::Timeout { doing: doing(phase), timeout: self.timeout }
            }
            LineError::Io { phase, source } => Fault::Io { doing: doing(phase), source },
            LineError::Tls(error) => Fault::Tls(error.to_string()),
            LineError::Name(host) => {
                Fault::Tls(format!("{host} is no name that a certificate could have"))
            }
            LineError::Endless => Fault::NoHttp,
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            open: self.timeout,
            stall: self.timeout,
            answer: self.timeout,
            end: Some(self.deadline),
            listens: false,
            buffers: (INPUT_BUFFER, OUTPUT_BUFFER),
            pace: None,
        }
    }
}

/// Makes the line of one request.
pub(super) struct Connector {
    pub way: Way,
    pub place: Place,
    pub tls: Option<Arc<ClientConfig>>,
    pub notes: Arc<Mutex<Notes>>,
    pub talk: Arc<Talk>,
}

impl UreqConnector for Connector {
    type Out = Line;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Line>, ureq::Error> {
        self.open().map(Some).map_err(|fault| {
            self.notes().fault.get_or_insert(fault);
            ureq::Error::ConnectionFailed
        })
    }
}

impl Connector {
    fn open(&self) -> Result<Line, Fault> {
        let (way, host) = (&self.way, &self.place.host);
        let (stream, started) = way.connect(&self.place)?;
        self.notes().started = Some(started);
        let line = Line::open(stream, self.tls.clone(), host, way.terms(), &way.cancel, &self.talk)
            .map_err(|error| way.ended(error))?;
        self.notes().valid_until =
            line.certificate().and_then(|certificate| cert::not_after(certificate));
        Ok(line)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}
