//! Requests to one bucket: each signed for the try it is made for, repeated while the store says "not now", and
//! judged. Remembers what was wrong the last time, so that `status` need not ask.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusty_s3::Method;
use ureq::http;

use super::error::{Doing, S3Error, S3Fault};
use super::judge::{self, Refusal};
use super::settings::S3Settings;
use super::signing::Signing;
use crate::clock::{Deadline, unix_ms};
use crate::config::TlsSettings;
use crate::control::storage::{Presigned, Reach};
use crate::pipeline::upload::{Answer, Ask, Caller, Download, Fault, Head, Timing, Tries};
use crate::thread::Cancel;

/// A signature of our own requests is good for so long; far less than a try may take to begin.
const GOOD_FOR_MS: u64 = 15 * 60_000;
/// A small request with all its tries.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Shorter than for an upload: what asks here is a scheduler, a session or a person.
pub(super) fn timing() -> Timing {
    let usual = Timing::default();
    Timing {
        connect: Duration::from_secs(15),
        stall: Duration::from_secs(60),
        answer: Duration::from_secs(45),
        tries: Tries {
            max: 5,
            first_pause: Duration::from_millis(500),
            max_pause: Duration::from_secs(8),
            max_retry_after: Duration::from_secs(20),
            ..usual.tries
        },
        ..usual
    }
}

/// The client of one bucket.
pub(super) struct Client {
    signing: Signing,
    caller: Caller,
    place: String,
    prefix: String,
    trouble: Mutex<Vec<Trouble>>,
}

/// What went wrong and has not gone well since.
struct Trouble {
    doing: Doing,
    away: bool,
    words: String,
}

/// One request.
pub(super) struct Request<'a> {
    pub doing: Doing,
    pub method: Method,
    /// Below the prefix; `None` for the bucket itself.
    pub object: Option<&'a str>,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: &'a [(&'static str, &'a str)],
    pub body: Option<&'a [u8]>,
    /// Longest answer, bytes.
    pub most: u64,
    /// With all its tries.
    pub timeout: Duration,
}

impl<'a> Request<'a> {
    pub(super) fn new(doing: Doing, method: Method, object: &'a str) -> Self {
        let object = Some(object);
        let (most, timeout) = (64 << 10, TIMEOUT);
        Self { doing, method, object, query: &[], headers: &[], body: None, most, timeout }
    }
}

impl Client {
    pub(super) fn new(
        settings: &S3Settings,
        reach: &Reach,
        timing: Timing,
    ) -> Result<Self, S3Error> {
        let place = settings.to_string();
        let signing = Signing::new(settings, &reach.policy).map_err(|why| S3Error {
            place: place.clone(),
            doing: Doing::Read,
            fault: S3Fault::Setting(why),
        })?;
        let tls = TlsSettings { ca_file: settings.ca_file.clone(), ..TlsSettings::default() };
        let (proxy, cancel) = (reach.proxy.clone(), reach.cancel.clone());
        let caller = Caller::new(tls, proxy, settings.policy(), timing, cancel);
        let prefix = settings.prefix.clone();
        Ok(Self { signing, caller, place, prefix, trouble: Mutex::default() })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn error(&self, doing: Doing, fault: S3Fault) -> S3Error {
        S3Error { place: self.place.clone(), doing, fault }
    }

    /// What was wrong the last time, if anything was.
    pub(super) fn trouble(&self) -> Option<String> {
        self.troubles().last().map(|trouble| trouble.words.clone())
    }

    /// Whether it was out of reach the last time.
    pub(super) fn is_away(&self) -> bool {
        self.troubles().iter().any(|trouble| trouble.away)
    }

    fn troubles(&self) -> MutexGuard<'_, Vec<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what is wrong until the same goes well; that it was out of reach, until anything does.
    pub(super) fn note<T>(&self, doing: Doing, result: Result<T, S3Fault>) -> Result<T, S3Error> {
        let error = match result {
            Ok(done) => {
                self.troubles().retain(|trouble| trouble.doing != doing && !trouble.away);
                return Ok(done);
            }
            Err(fault) => self.error(doing, fault),
        };
        if !matches!(error.fault, S3Fault::Unreachable(Fault::Cancelled(_))) {
            let mut troubles = self.troubles();
            troubles.retain(|trouble| trouble.doing != doing);
            let (away, words) = (error.fault.is_away(), error.to_string());
            troubles.push(Trouble { doing, away, words });
        }
        Err(error)
    }

    pub(super) fn cancel(&self) -> &Cancel {
        self.caller.cancel()
    }

    pub(super) fn presign(
        &self,
        method: Method,
        object: &str,
        query: &[(&str, &str)],
        until_ms: u64,
    ) -> Presigned {
        let object = format!("{}{object}", self.prefix);
        self.signing.presign(method, Some(&object), query, unix_ms(), until_ms)
    }

    /// The answer; `None` if there is no such object.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<Option<Answer>, S3Error> {
        let deadline = Deadline::after(request.timeout);
        let answer = self.caller.ask(&mut || self.sign(request), request.most, deadline);
        let answer = answer.map_err(S3Fault::Unreachable).and_then(|answer| self.judged(answer));
        self.note(request.doing, answer)
    }

    /// The answer as a stream; `None` if there is no such object.
    pub(super) fn open(&self, request: &Request<'_>) -> Result<Option<(Head, Download)>, S3Error> {
        let deadline = Deadline::after(request.timeout);
        let opened = match self.caller.open(&mut || self.sign(request), deadline) {
            Ok(Ok(opened)) => Ok(Some(opened)),
            Ok(Err(answer)) => self.judged(answer).map(|_| None),
            Err(fault) => Err(S3Fault::Unreachable(fault)),
        };
        self.note(request.doing, opened)
    }

    fn judged(&self, answer: Answer) -> Result<Option<Answer>, S3Fault> {
        if answer.head.is_success() {
            let long = S3Fault::Nonsense("it is longer than any real one");
            return if answer.whole { Ok(Some(answer)) } else { Err(long) };
        }
        if judge::is_missing_object(answer.head.status, &answer.body) {
            return Ok(None);
        }
        let refusal = Refusal {
            status: answer.head.status,
            body: &answer.body,
            date: answer.head.header("date"),
            region: answer.head.header("x-amz-bucket-region"),
            location: answer.head.header("location"),
        };
        Err(judge::fault(&refusal, unix_ms()))
    }

    fn sign<'a>(&self, request: &Request<'a>) -> Ask<'a> {
        let object = request.object.map(|object| format!("{}{object}", self.prefix));
        let now_ms = unix_ms();
        let Presigned { url, .. } = self.signing.presign(
            request.method,
            object.as_deref(),
            request.query,
            now_ms,
            now_ms + GOOD_FOR_MS,
        );
        let headers =
            request.headers.iter().map(|(name, value)| ((*name).into(), (*value).to_owned()));
        Ask {
            method: http_method(request.method),
            url,
            headers: headers.collect(),
            body: request.body,
        }
    }
}

fn http_method(method: Method) -> http::Method {
    match method {
        Method::Head => http::Method::HEAD,
        Method::Get => http::Method::GET,
        Method::Post => http::Method::POST,
        Method::Put => http::Method::PUT,
        Method::Delete => http::Method::DELETE,
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("place", &self.place).finish_non_exhaustive()
    }
}
