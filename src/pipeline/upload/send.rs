//! Requests to presigned URLs: one try, and the loop around it that repeats the same bytes while the failure can pass.

use std::io::Read;
use std::sync::{Arc, OnceLock};

use rustls::ClientConfig;
use ureq::SendBody;
use ureq::http::Response;

use super::body::{Body, BodyEnd};
use super::line::{Connector, Exchange};
use super::url::Destination;
use super::{Fault, Tries, UploadError, Uploader, UrlPolicy, judge, pause};
use crate::clock::{Deadline, unix_ms};
use crate::config::{ProxySettings, TlsSettings};
use crate::model::Progress;
use crate::net;
use crate::pipeline::spool::Sealed;
use crate::thread::Cancel;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Keep these bytes.
    Put,
    /// Do what this XML says.
    Post,
    /// Forget it; without a body.
    Delete,
}

/// An answer's head and what is still to be read of it.
pub(super) type Answer = Response<ureq::Body>;

/// What the requests of one upload have in common.
pub(in crate::pipeline) struct Sender<'a> {
    uploader: &'a Uploader,
    deadline: Option<Deadline>,
    cancel: &'a Cancel,
    /// Made for the first URL that needs it.
    tls: OnceLock<Arc<ClientConfig>>,
}

impl<'a> Sender<'a> {
    pub(in crate::pipeline) fn new(
        uploader: &'a Uploader,
        deadline: Option<Deadline>,
        cancel: &'a Cancel,
    ) -> Self {
        Self { uploader, deadline, cancel, tls: OnceLock::new() }
    }

    pub(super) fn cancel(&self) -> &Cancel {
        self.cancel
    }

    pub(super) fn uploader(&self) -> &Uploader {
        self.uploader
    }

    /// Repeats `once` until it succeeds, or `max` tries, the URL's time (0 = unknown) or the run's time are used up.
    pub(super) fn repeat<T>(
        &self,
        shown: &str,
        expires_at_ms: u64,
        max: u32,
        mut once: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T, UploadError> {
        let failed = |tries, fault| UploadError::new(shown, tries, fault);
        let rule = Tries { max, ..self.uploader.timing.tries };
        let mut tries = 0;
        loop {
            tries += 1;
            let fault = match once() {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            let next = pause::next(
                &rule,
                tries,
                fault.retry_after(),
                unix_ms(),
                expires_at_ms,
                self.deadline.map(Deadline::remaining),
            );
            let Some(pause) = next.filter(|_| fault.retry_same_bytes()) else {
                return Err(failed(tries, fault));
            };
            log::warn!("upload try {tries} failed, again in {} ms: {fault}", pause.as_millis());
            if !self.cancel.sleep(pause) {
                let fault = self.cancel.why().map_or(fault, Fault::Cancelled);
                return Err(failed(tries, fault));
            }
        }
    }

    /// One request. A 2xx that comes when it may is judged by `accept`.
    pub(super) fn once<T>(
        &self,
        method: Method,
        destination: &Destination,
        content: &Sealed,
        progress: &dyn Fn(Progress),
        accept: &dyn Fn(&mut Answer) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let exchange = Arc::new(Exchange::default());
        let agent = agent(self.connector(destination, exchange.clone())?);
        let mut body = Body::new(content, &exchange, progress);
        let uri = destination.uri.clone();
        let request = match method {
            Method::Put => agent.put(uri).header("content-type", "application/octet-stream"),
            Method::Post => agent.post(uri).header("content-type", "application/xml"),
            Method::Delete => {
                let result = agent.delete(uri).call();
                return self.judge(result, &exchange, BodyEnd::Complete, accept);
            }
        };
        let result = request
            .header("content-length", content.len().to_string())
            .send(SendBody::from_reader(&mut body));
        let end = body.end();
        self.judge(result, &exchange, end, accept)
    }

    fn judge<T>(
        &self,
        result: Result<Answer, ureq::Error>,
        exchange: &Exchange,
        body: BodyEnd,
        accept: &dyn Fn(&mut Answer) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match result {
            Ok(answer) => verdict(answer, exchange, body, accept),
            Err(error) => Err(exchange.take_fault().unwrap_or_else(|| match body {
                BodyEnd::Failed(fault) => fault,
                BodyEnd::Complete | BodyEnd::Incomplete => Fault::from_ureq(&error),
            })),
        }
    }

    fn connector(
        &self,
        destination: &Destination,
        exchange: Arc<Exchange>,
    ) -> Result<Connector, Fault> {
        let Uploader { proxy, policy, timing, paces, .. } = self.uploader;
        Ok(Connector {
            // This machine itself is never reached through a proxy.
            proxy: if destination.direct { ProxySettings::default() } else { proxy.clone() },
            tls: if destination.tls { Some(self.tls_config()?) } else { None },
            timing: *timing,
            paces: paces.clone(),
            cancel: self.cancel.clone(),
            exchange,
            anywhere: matches!(policy, UrlPolicy::Loopback(_)),
        })
    }

    fn tls_config(&self) -> Result<Arc<ClientConfig>, Fault> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let config = client_config(&self.uploader.tls)?;
        Ok(self.tls.get_or_init(|| config).clone())
    }
}

pub(super) fn client_config(tls: &TlsSettings) -> Result<Arc<ClientConfig>, Fault> {
    let roots = net::root_store(tls.ca_file.as_deref()).map_err(Fault::Net)?;
    let mut config = ClientConfig::builder_with_provider(net::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::Tls { error: error.to_string(), permanent: true })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// An agent for one exchange.
pub(super) fn agent(connector: Connector) -> ureq::Agent {
    net::agent(connector, concat!("backupy/", env!("CARGO_PKG_VERSION")))
}

/// What an answer means.
fn verdict<T>(
    mut answer: Answer,
    exchange: &Exchange,
    body: BodyEnd,
    accept: &dyn Fn(&mut Answer) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let status = answer.status().as_u16();
    if answer.status().is_success() {
        return match (exchange.answered_early(), body) {
            (false, BodyEnd::Complete) => {
                // What ended the line while the answer was read says more.
                accept(&mut answer).map_err(|fault| exchange.take_fault().unwrap_or(fault))
            }
            (_, BodyEnd::Failed(fault)) => Err(fault),
            (_, BodyEnd::Complete | BodyEnd::Incomplete) => Err(Fault::EarlyAnswer { status }),
        };
    }
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let location = header("location").map(str::to_owned);
    let retry_after = header("retry-after").and_then(|value| pause::retry_after(value, unix_ms()));
    let text = read_bounded(answer.body_mut().as_reader());
    Err(judge::refusal(status, &text, location.as_deref(), retry_after))
}

/// The start of an answer's body. That it breaks off is for the caller to see.
pub(super) fn read_bounded(reader: impl Read) -> String {
    let mut text = Vec::new();
    let _ = reader.take(judge::MAX_BODY).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}
