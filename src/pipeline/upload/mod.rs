//! One artifact to a presigned URL: a PUT with `Content-Length`, repeated with the same bytes while the
//! failure can pass.
//!
//! - HTTP/1.1 by ureq over a transport of ours ([`line`]), so that a cancel ends every wait at once:
//!   look-up, connect, TLS, sending, and waiting for the answer. One connection per try.
//! - What is sent is hashed again. If it is not what was sealed, the last bytes are held back, so that
//!   the store never has a complete wrong object.
//! - A 2xx counts only after the last byte was handed over. An answer that comes earlier ends the
//!   sending: a refusal is what it says, a 2xx is a failure of the store.
//! - Redirects are not followed: the signature of a presigned URL covers its host, so that the other
//!   place would refuse it, and a body must not go where nobody signed for it.
//! - A control plane elsewhere cannot send us to link-local addresses and the metadata services of clouds.
//! - No error and no log line has the URL's query string.

mod body;
mod call;
mod error;
mod judge;
mod line;
mod pace;
mod pause;
mod url;

use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use ureq::SendBody;
use ureq::http::Response;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

pub use call::{Answer, Ask, Caller, Download, Head};
pub use error::{Fault, UploadError};

use super::spool::Sealed;
use crate::clock::{Deadline, unix_ms};
use crate::config::{ProxySettings, TlsSettings};
use crate::model::{Progress, UploadCreds};
use crate::net;
use crate::thread::Cancel;
use body::{Body, BodyEnd};
use line::{Connector, Exchange};
use pace::Pace;
use url::Destination;

/// Which URLs an upload may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlPolicy {
    /// `https` only.
    HttpsOnly,
    /// `http` too (the insecure-dev flag).
    AllowHttp,
    /// `http` to this address (the control plane in the same process), and `https`.
    Loopback(SocketAddr),
}

/// How long the parts of a try may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Look-up, connect, proxy and TLS together.
    pub connect: Duration,
    /// While sending: without a single byte taken.
    pub stall: Duration,
    /// From the last byte sent to the whole answer.
    pub answer: Duration,
    /// The tries and the pauses between them.
    pub tries: Tries,
}

/// The tries of one upload and the pauses between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// Tries in all.
    pub max: u32,
    /// First pause; each one doubles the one before.
    pub first_pause: Duration,
    /// Longest pause of our own.
    pub max_pause: Duration,
    /// Longest `Retry-After` that is obeyed in full.
    pub max_retry_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            answer: Duration::from_secs(300),
            tries: Tries {
                max: 6,
                first_pause: Duration::from_secs(1),
                max_pause: Duration::from_secs(30),
                max_retry_after: Duration::from_secs(120),
            },
        }
    }
}

/// Uploads artifacts. Holds settings only: trust roots are read when an upload starts and forgotten
/// when it ends, because an idle agent needs no memory for them.
#[derive(Debug, Clone)]
pub struct Uploader {
    tls: TlsSettings,
    proxy: ProxySettings,
    policy: UrlPolicy,
    timing: Timing,
    /// Limits that all its uploads, and those of its clones, keep together.
    paces: Vec<Arc<Pace>>,
}

impl Uploader {
    /// An uploader with the usual timing.
    pub fn new(tls: TlsSettings, proxy: ProxySettings, policy: UrlPolicy) -> Self {
        Self { tls, proxy, policy, timing: Timing::default(), paces: Vec::new() }
    }

    /// The same with one more limit, in bytes per second; 0 is none. Clones share it.
    #[must_use]
    pub fn limited(mut self, bytes_per_sec: u64) -> Self {
        if bytes_per_sec > 0 {
            self.paces.push(Arc::new(Pace::new(bytes_per_sec)));
        }
        self
    }

    /// The same with another timing.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Fails if these credentials cannot lead to an upload, before anything is dumped for them.
    ///
    /// # Errors
    /// When the URL is missing, malformed or not allowed, or has expired.
    pub fn check(&self, creds: &UploadCreds) -> Result<(), UploadError> {
        let destination = Destination::parse(&creds.put_url, self.policy)
            .map_err(|fault| UploadError::new("", 0, fault))?;
        if pause::expired(creds.expires_at_ms, unix_ms()) {
            return Err(UploadError::new(&destination.shown, 0, Fault::Expired));
        }
        Ok(())
    }

    /// Sends the artifact until the store has it.
    ///
    /// # Errors
    /// When the store refuses it, or the tries, the URL's time or the run's time are used up.
    pub fn put(
        &self,
        creds: &UploadCreds,
        sealed: &Sealed,
        deadline: Option<Deadline>,
        cancel: &Cancel,
        progress: &dyn Fn(Progress),
    ) -> Result<(), UploadError> {
        self.check(creds)?;
        let destination = Destination::parse(&creds.put_url, self.policy)
            .map_err(|fault| UploadError::new("", 0, fault))?;
        let failed = |tries, fault| UploadError::new(&destination.shown, tries, fault);
        let tls = self.tls_config(&destination).map_err(|fault| failed(0, fault))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let Err(fault) = self.one_try(&destination, tls.clone(), sealed, cancel, progress)
            else {
                return Ok(());
            };
            let left = deadline.map(Deadline::remaining);
            let next = pause::next(
                &self.timing.tries,
                tries,
                fault.retry_after(),
                unix_ms(),
                creds.expires_at_ms,
                left,
            );
            let Some(pause) = next.filter(|_| fault.retry_same_bytes()) else {
                return Err(failed(tries, fault));
            };
            log::warn!("upload try {tries} failed, again in {} ms: {fault}", pause.as_millis());
            if !cancel.sleep(pause) {
                let fault = cancel.why().map_or(fault, Fault::Cancelled);
                return Err(failed(tries, fault));
            }
        }
    }

    fn tls_config(&self, destination: &Destination) -> Result<Option<Arc<ClientConfig>>, Fault> {
        if destination.tls { client_config(&self.tls).map(Some) } else { Ok(None) }
    }

    fn one_try(
        &self,
        destination: &Destination,
        tls: Option<Arc<ClientConfig>>,
        sealed: &Sealed,
        cancel: &Cancel,
        progress: &dyn Fn(Progress),
    ) -> Result<(), Fault> {
        let exchange = Arc::new(Exchange::default());
        let connector = Connector {
            // This machine itself is never reached through a proxy.
            proxy: if destination.direct { ProxySettings::default() } else { self.proxy.clone() },
            tls,
            timing: self.timing,
            paces: self.paces.clone(),
            cancel: cancel.clone(),
            exchange: exchange.clone(),
            anywhere: matches!(self.policy, UrlPolicy::Loopback(_)),
        };
        let mut body = Body::new(sealed, &exchange, progress);
        let result = agent(connector)
            .put(destination.uri.clone())
            .header("content-type", "application/octet-stream")
            .header("content-length", sealed.len().to_string())
            .send(SendBody::from_reader(&mut body));
        match result {
            Ok(response) => verdict(response, &exchange, body.end()),
            Err(error) => Err(exchange.take_fault().unwrap_or_else(|| match body.end() {
                BodyEnd::Failed(fault) => fault,
                BodyEnd::Complete | BodyEnd::Incomplete => Fault::from_ureq(&error),
            })),
        }
    }
}

fn client_config(tls: &TlsSettings) -> Result<Arc<ClientConfig>, Fault> {
    let roots = net::root_store(tls.ca_file.as_deref()).map_err(Fault::Net)?;
    let mut config = ClientConfig::builder_with_provider(net::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::Tls { error: error.to_string(), permanent: true })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// An agent for one exchange: nothing of its own that would wait, follow, reuse, or read the environment.
fn agent(connector: Connector) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .user_agent(concat!("backupy/", env!("CARGO_PKG_VERSION")))
        .max_response_header_size(line::MAX_ANSWER_HEAD)
        .build();
    ureq::Agent::with_parts(config, connector, NoResolver)
}

/// What an answer means.
fn verdict(
    mut response: Response<ureq::Body>,
    exchange: &Exchange,
    body: BodyEnd,
) -> Result<(), Fault> {
    let status = response.status().as_u16();
    if response.status().is_success() {
        return match (exchange.answered_early(), body) {
            (false, BodyEnd::Complete) => Ok(()),
            (_, BodyEnd::Failed(fault)) => Err(fault),
            (_, BodyEnd::Complete | BodyEnd::Incomplete) => Err(Fault::EarlyAnswer { status }),
        };
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let location = header("location").map(str::to_owned);
    let retry_after = header("retry-after").and_then(|value| pause::retry_after(value, unix_ms()));
    let text = read_bounded(response.body_mut().as_reader());
    Err(judge::refusal(status, &text, location.as_deref(), retry_after))
}

/// The start of an error's body, for its code. That it breaks off does not matter.
fn read_bounded(reader: impl Read) -> String {
    let mut text = Vec::new();
    let _ = reader.take(judge::MAX_BODY).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The connector looks names up itself, with a deadline and a cancel.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &ureq::http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

impl fmt::Display for UrlPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UrlPolicy::HttpsOnly => f.write_str("https"),
            UrlPolicy::AllowHttp => f.write_str("https or http"),
            UrlPolicy::Loopback(address) => write!(f, "https, or http to {address}"),
        }
    }
}

#[cfg(test)]
mod tests;
