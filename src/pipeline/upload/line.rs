//! The connection under one PUT or other request to a store: how it is reached (through a proxy, if there is one),
//! how long its phases may take, and what its end means for an upload. The line itself is [`net::Line`], which listens
//! while it sends, so that a refusal is seen.

use std::fmt;
use std::net::{IpAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use ureq::unversioned::transport::{ConnectionDetails, Connector as UreqConnector};

use super::pace::Pace;
use super::url::bare_host;
use super::{Fault, Timing};
use crate::clock::Deadline;
use crate::config::ProxySettings;
use crate::drivers::address::forbidden;
use crate::net::{self, Line, LineError, Phase, Talk, Terms};
use crate::thread::Cancel;

const INPUT_BUFFER: usize = 16 << 10;
const OUTPUT_BUFFER: usize = 128 << 10;
/// Under a limit: small pieces, so that no line falls silent for so long that the store gives up on it.
const PACED_OUTPUT_BUFFER: usize = 16 << 10;

/// What the line tells about one exchange beside its bytes.
#[derive(Default)]
pub(super) struct Exchange {
    talk: Arc<Talk>,
    /// What kept the line from being opened.
    fault: Mutex<Option<Fault>>,
}

impl Exchange {
    /// Whether the answer came before the request was sent.
    pub(super) fn answered_early(&self) -> bool {
        self.talk.answered_early()
    }

    /// From now on the answer may take as long as it likes, as long as something of it comes.
    pub(super) fn stream(&self) {
        self.talk.stream();
    }

    /// What ended the line, if anything did.
    pub(super) fn take_fault(&self) -> Option<Fault> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        fault.or_else(|| self.talk.take_error().map(Fault::from))
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
        self.open(host, port).map(Some).map_err(|fault| {
            let mut kept = self.exchange.fault.lock().unwrap_or_else(PoisonError::into_inner);
            kept.get_or_insert(fault);
            ureq::Error::ConnectionFailed
        })
    }
}

impl Connector {
    fn open(&self, host: &str, port: u16) -> Result<Line, Fault> {
        let deadline = Deadline::after(self.timing.connect);
        let stream = self.reach(host, port, deadline)?;
        let terms = Terms {
            open: deadline.remaining(),
            stall: self.timing.stall,
            answer: self.timing.answer,
            end: None,
            listens: true,
            buffers: match self.paces.is_empty() {
                true => (INPUT_BUFFER, OUTPUT_BUFFER),
                false => (INPUT_BUFFER, PACED_OUTPUT_BUFFER),
            },
            pace: self.pace(),
        };
        let line =
            Line::open(stream, self.tls.clone(), host, terms, &self.cancel, &self.exchange.talk)?;
        Ok(line)
    }

    fn pace(&self) -> Option<Arc<dyn Fn(usize) + Send + Sync>> {
        if self.paces.is_empty() {
            return None;
        }
        let (paces, cancel) = (self.paces.clone(), self.cancel.clone());
        Some(Arc::new(move |bytes| {
            for pace in &paces {
                pace.wait(bytes, &cancel);
            }
        }))
    }

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

impl From<LineError> for Fault {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Cancelled(why) => Self::Cancelled(why),
            LineError::TimedOut { phase: Phase::Tls, .. } => {
                Self::Tls { error: "no end in time".to_owned(), permanent: false }
            }
            LineError::TimedOut { phase: Phase::Send, timeout } => Self::Stalled { timeout },
            LineError::TimedOut { phase: Phase::Answer, timeout } => Self::NoAnswer { timeout },
            LineError::Io { phase, source } => {
                let doing = match phase {
                    Phase::Tls => "starting TLS",
                    Phase::Send => "sending",
                    Phase::Answer => "waiting for the answer",
                };
                Self::Io { doing, source }
            }
            LineError::Tls(error) => {
                let permanent = matches!(
                    error,
                    rustls::Error::InvalidCertificate(_)
                        | rustls::Error::PeerIncompatible(_)
                        | rustls::Error::NoCertificatesPresented
                        | rustls::Error::InvalidMessage(_)
                );
                Self::Tls { error: error.to_string(), permanent }
            }
            LineError::Name(host) => Self::Tls {
                error: format!("{host} is no name that a certificate could have"),
                permanent: true,
            },
            LineError::Endless => {
                Self::Protocol("it answers without end before the upload is over")
            }
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}
