//! The other requests to a store: small ones with a bounded answer, and a download as a stream.
//!
//! They go over the same transport as uploads and obey the same rules: a cancel ends every wait, redirects are
//! not followed, nothing shows a URL's query. What an answer means is the caller's business; only what says
//! "not now" is asked again here, because each request made here may be repeated.

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use ureq::http::{HeaderMap, Method, Request, Response};

use super::line::{Connector, Exchange};
use super::send::{agent, client_config};
use super::url::Destination;
use super::{Fault, Timing, UrlPolicy, judge, pause};
use crate::clock::{Deadline, unix_ms};
use crate::config::{ProxySettings, TlsSettings};
use crate::secret::Secret;
use crate::thread::Cancel;

/// Trust roots are read again after so long.
const ROOTS_FOR: Duration = Duration::from_secs(600);

/// A request, signed for one try.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The method.
    pub method: Method,
    /// The presigned URL.
    pub url: Secret,
    /// Headers that no signature covers.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// The body; sent with its length where there is one.
    pub body: Option<&'a [u8]>,
}

/// The head of an answer.
#[derive(Debug, Clone)]
pub struct Head {
    /// HTTP status.
    pub status: u16,
    headers: HeaderMap,
}

impl Head {
    /// A header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether it is a 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// `Content-Length`.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its head.
    pub head: Head,
    /// Its body; of a refusal only the beginning.
    pub body: Vec<u8>,
    /// Whether that is all of it.
    pub whole: bool,
}

/// Makes such requests. Clones share the trust roots.
#[derive(Debug, Clone)]
pub struct Caller {
    tls: TlsSettings,
    proxy: ProxySettings,
    policy: UrlPolicy,
    timing: Timing,
    cancel: Cancel,
    roots: Arc<Mutex<Option<Roots>>>,
    anywhere: bool,
}

/// Trust roots, and when they were read.
#[derive(Debug)]
struct Roots {
    config: Arc<ClientConfig>,
    read: Instant,
}

impl Caller {
    /// A caller whose waits `cancel` ends.
    pub fn new(
        tls: TlsSettings,
        proxy: ProxySettings,
        policy: UrlPolicy,
        timing: Timing,
        cancel: Cancel,
    ) -> Self {
        Self { tls, proxy, policy, timing, cancel, roots: Arc::default(), anywhere: true }
    }

    /// The same for URLs from elsewhere, which must not lead to link-local addresses and metadata services.
    #[must_use]
    pub fn guarded(self) -> Self {
        Self { anywhere: false, ..self }
    }

    /// Ends every wait, now and later.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Asks until there is an answer that is none of "not now", and reads it: at most `most` bytes of a success (more
    /// is left unread).
    /// `sign` makes the request of each try anew, so that a signature is never older than its try. The last answer is
    /// given even if it says "not now".
    ///
    /// # Errors
    /// When there is no answer, or one that breaks off; see [`Fault`].
    pub fn ask<'a>(
        &self,
        sign: &mut dyn FnMut() -> Ask<'a>,
        most: u64,
        deadline: Deadline,
    ) -> Result<Answer, Fault> {
        self.again(deadline, &mut || {
            let (head, mut body) = self.send(&sign())?;
            let most = if head.is_success() { most } else { judge::MAX_BODY };
            let mut bytes = Vec::new();
            let read = body.by_ref().take(most + 1).read_to_end(&mut bytes);
            // That a refusal breaks off does not matter.
            if let Err(error) = read
                && head.is_success()
            {
                return Err(body.fault(&error));
            }
            let whole = bytes.len() as u64 <= most;
            Ok(tried(Answer { head, body: bytes, whole }, |answer| answer))
        })
    }

    /// As [`Self::ask`], with the body of a success as a stream. No deadline ends the stream, but a stall does.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn open<'a>(
        &self,
        sign: &mut dyn FnMut() -> Ask<'a>,
        deadline: Deadline,
    ) -> Result<Result<(Head, Download), Answer>, Fault> {
        self.again(deadline, &mut || {
            let (head, body) = self.send(&sign())?;
            if head.is_success() {
                body.exchange.stream();
                return Ok(Tried::Done(Ok((head, body))));
            }
            let mut bytes = Vec::new();
            let _ = body.take(judge::MAX_BODY).read_to_end(&mut bytes);
            Ok(tried(Answer { head, body: bytes, whole: true }, Err))
        })
    }

    fn again<T>(
        &self,
        deadline: Deadline,
        once: &mut dyn FnMut() -> Result<Tried<T>, Fault>,
    ) -> Result<T, Fault> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (retry_after, told, outcome) = match once() {
                Ok(Tried::Done(outcome)) => return Ok(outcome),
                Ok(Tried::NotNow(outcome, fault)) => {
                    (fault.retry_after(), fault.to_string(), Ok(outcome))
                }
                Err(fault) if fault.retry_same_bytes() => (None, fault.to_string(), Err(fault)),
                Err(fault) => return Err(fault),
            };
            let left = Some(deadline.remaining());
            let next = pause::next(&self.timing.tries, tries, retry_after, unix_ms(), 0, left);
            let Some(pause) = next else { return outcome };
            log::debug!("try {tries} failed, again in {} ms: {told}", pause.as_millis());
            if !self.cancel.sleep(pause) {
                return self.cancel.why().map_or(outcome, |why| Err(Fault::Cancelled(why)));
            }
        }
    }

    fn send(&self, ask: &Ask<'_>) -> Result<(Head, Download), Fault> {
        if let Some(why) = self.cancel.why() {
            return Err(Fault::Cancelled(why));
        }
        let destination = Destination::parse(&ask.url, self.policy)?;
        let exchange = Arc::new(Exchange::default());
        let connector = Connector {
            proxy: if destination.direct { ProxySettings::default() } else { self.proxy.clone() },
            tls: if destination.tls { Some(self.roots()?) } else { None },
            timing: self.timing,
            cancel: self.cancel.clone(),
            exchange: exchange.clone(),
            anywhere: self.anywhere,
            paces: Vec::new(),
        };
        let mut request = Request::builder().method(ask.method.clone()).uri(destination.uri);
        for (name, value) in &ask.headers {
            request = request.header(name.as_ref(), value);
        }
        let malformed = |_| Fault::Url { problem: "is malformed" };
        let agent = agent(connector);
        let result = match ask.body {
            Some(body) => agent.run(request.body(body).map_err(malformed)?),
            None => agent.run(request.body(()).map_err(malformed)?),
        };
        match result {
            Ok(response) => {
                let (head, body) = split(response);
                Ok((head, Download { body: Box::new(body), exchange }))
            }
            Err(error) => Err(exchange.take_fault().unwrap_or_else(|| Fault::from_ureq(&error))),
        }
    }

    fn roots(&self) -> Result<Arc<ClientConfig>, Fault> {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(roots) = roots.as_ref().filter(|roots| roots.read.elapsed() < ROOTS_FOR) {
            return Ok(roots.config.clone());
        }
        let config = client_config(&self.tls)?;
        *roots = Some(Roots { config: config.clone(), read: Instant::now() });
        Ok(config)
    }
}

fn split(response: Response<ureq::Body>) -> (Head, ureq::BodyReader<'static>) {
    let (parts, body) = response.into_parts();
    (Head { status: parts.status.as_u16(), headers: parts.headers }, body.into_reader())
}

/// What became of one try that was answered.
enum Tried<T> {
    Done(T),
    /// The store says: not now.
    NotNow(T, Fault),
}

fn tried<T>(answer: Answer, wrap: fn(Answer) -> T) -> Tried<T> {
    if answer.head.is_success() {
        return Tried::Done(wrap(answer));
    }
    let retry_after = answer.head.header("retry-after");
    let retry_after = retry_after.and_then(|value| pause::retry_after(value, unix_ms()));
    let text = String::from_utf8_lossy(&answer.body);
    let location = answer.head.header("location");
    let fault = judge::refusal(answer.head.status, &text, location, retry_after);
    if fault.retry_same_bytes() {
        Tried::NotNow(wrap(answer), fault)
    } else {
        Tried::Done(wrap(answer))
    }
}

/// The body of an answer.
pub struct Download {
    body: Box<ureq::BodyReader<'static>>,
    exchange: Arc<Exchange>,
}

impl Download {
    /// What a failed read really was.
    pub fn fault(&self, error: &io::Error) -> Fault {
        self.exchange.take_fault().unwrap_or_else(|| Fault::Io {
            doing: "waiting for the answer",
            source: io::Error::from(error.kind()),
        })
    }
}

impl Read for Download {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.body.read(out)
    }
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Download")
    }
}
