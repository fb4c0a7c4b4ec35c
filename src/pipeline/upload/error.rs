//! Why an artifact did not reach the store.

use std::fmt;
use std::io;
use std::time::Duration;

use super::multipart::plan::PlanError;
use crate::net::NetError;
use crate::thread::Why;

/// An upload that failed, with where it went (without the query) and how often it was tried.
#[derive(Debug)]
pub struct UploadError {
    destination: String,
    tries: u32,
    /// What was wrong the last time.
    pub fault: Fault,
}

impl UploadError {
    pub(super) fn new(destination: &str, tries: u32, fault: Fault) -> Self {
        Self { destination: destination.to_owned(), tries, fault }
    }

    /// How often it was tried; 0 = not at all.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        self.fault.retry()
    }
}

impl From<PlanError> for UploadError {
    fn from(error: PlanError) -> Self {
        Self::new("", 0, Fault::Plan(error))
    }
}

impl fmt::Display for UploadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to upload")?;
        if !self.destination.is_empty() {
            write!(f, " to {}", self.destination)?;
        }
        if self.tries > 1 {
            write!(f, " ({} tries)", self.tries)?;
        }
        write!(f, ": {}", self.fault)
    }
}

impl std::error::Error for UploadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            Fault::Net(error) => Some(error),
            Fault::Io { source, .. } | Fault::Spool(source) => Some(source),
            Fault::Plan(error) => Some(error),
            Fault::Url { .. }
            | Fault::Expired
            | Fault::Cancelled(_)
            | Fault::Tls { .. }
            | Fault::Stalled { .. }
            | Fault::NoAnswer { .. }
            | Fault::EarlyAnswer { .. }
            | Fault::Refused { .. }
            | Fault::Busy { .. }
            | Fault::Redirected { .. }
            | Fault::Changed
            | Fault::NoPlace { .. }
            | Fault::PlaceTimeout { .. }
            | Fault::Unsure
            | Fault::Protocol(_) => None,
        }
    }
}

/// What was wrong with one try.
#[derive(Debug)]
pub enum Fault {
    /// The URL cannot be used.
    Url {
        /// What is wrong with it; it is not repeated.
        problem: &'static str,
    },
    /// The URL's time is over.
    Expired,
    /// Somebody asked for the stop.
    Cancelled(Why),
    /// No connection.
    Net(NetError),
    /// TLS failed.
    Tls {
        /// Why.
        error: String,
        /// Whether somebody has to change something.
        permanent: bool,
    },
    /// The connection broke.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The store took nothing for so long.
    Stalled {
        /// How long.
        timeout: Duration,
    },
    /// The store took everything and said nothing for so long.
    NoAnswer {
        /// How long.
        timeout: Duration,
    },
    /// The store claims success without having read everything.
    EarlyAnswer {
        /// HTTP status.
        status: u16,
    },
    /// The store says no.
    Refused {
        /// HTTP status.
        status: u16,
        /// S3's error code; may be empty.
        code: String,
    },
    /// The store says not now.
    Busy {
        /// HTTP status.
        status: u16,
        /// S3's error code; may be empty.
        code: String,
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// The store sends us elsewhere.
    Redirected {
        /// HTTP status.
        status: u16,
        /// The other host; may be empty.
        host: String,
    },
    /// The sealed bytes could not be read back.
    Spool(io::Error),
    /// The sealed bytes are not what they were.
    Changed,
    /// The answer is not HTTP.
    Protocol(&'static str),
    /// The artifact cannot be cut into parts as the control plane wants it.
    Plan(PlanError),
    /// The control plane gives no URL for a part.
    NoPlace {
        /// The part.
        part: u32,
        /// Its reason.
        error: String,
    },
    /// The control plane sent no URL for a part.
    PlaceTimeout {
        /// The part.
        part: u32,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// Whether the store made an object of the parts cannot be known.
    Unsure,
}

/// S3's code for an upload in parts that is not there any more.
const NO_SUCH_UPLOAD: &str = "NoSuchUpload";

impl Fault {
    /// Whether the same bytes may be taken at another try.
    pub fn retry(&self) -> bool {
        match self {
            Fault::Net(error) => error.retry(),
            Fault::Tls { permanent, .. } => !permanent,
            Fault::Io { .. }
            | Fault::Stalled { .. }
            | Fault::NoAnswer { .. }
            | Fault::EarlyAnswer { .. }
            | Fault::Busy { .. }
            | Fault::PlaceTimeout { .. }
            | Fault::Protocol(_) => true,
            Fault::Cancelled(why) => *why == Why::Shutdown,
            // A new dump may go better, but these bytes are lost: see `retry_same_bytes`.
            Fault::Spool(_) | Fault::Changed => true,
            // The next attempt gets an upload of its own.
            Fault::Unsure => true,
            Fault::Refused { status: 404, code, .. } if code == NO_SUCH_UPLOAD => true,
            Fault::Url { .. }
            | Fault::Expired
            | Fault::Refused { .. }
            | Fault::Plan(_)
            | Fault::NoPlace { .. }
            | Fault::Redirected { .. } => false,
        }
    }

    /// Whether another try within this attempt makes sense.
    pub(super) fn retry_same_bytes(&self) -> bool {
        match self {
            Fault::Spool(_)
            | Fault::Changed
            | Fault::Cancelled(_)
            | Fault::PlaceTimeout { .. }
            | Fault::Unsure => false,
            Fault::Refused { code, .. } if code == NO_SUCH_UPLOAD => false,
            Fault::Url { .. }
            | Fault::Expired
            | Fault::Net(_)
            | Fault::Tls { .. }
            | Fault::Io { .. }
            | Fault::Stalled { .. }
            | Fault::NoAnswer { .. }
            | Fault::EarlyAnswer { .. }
            | Fault::Refused { .. }
            | Fault::Busy { .. }
            | Fault::Redirected { .. }
            | Fault::Plan(_)
            | Fault::NoPlace { .. }
            | Fault::Protocol(_) => self.retry(),
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Fault::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// An error of ureq's own. Its text is not used: some of its variants repeat the URL.
    pub(super) fn from_ureq(error: &ureq::Error) -> Self {
        match error {
            ureq::Error::Io(error) => {
                Fault::Io { doing: "waiting for the answer", source: io::Error::from(error.kind()) }
            }
            ureq::Error::LargeResponseHeader(..) => Fault::Protocol("its head is too long"),
            ureq::Error::Protocol(_) => Fault::Protocol("it is malformed"),
            _ => Fault::Protocol("it makes no sense"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Url { problem } => {
                write!(f, "the upload URL {problem}; the control plane has to send another")
            }
            Fault::Expired => f.write_str(
                "the upload URL has expired; the next run gets a new one (if this happens often, let \
                 URLs live longer, or check this host's clock)",
            ),
            Fault::Cancelled(Why::Timeout) => f.write_str("the run's timeout passed"),
            Fault::Cancelled(_) => f.write_str("cancelled"),
            Fault::Net(error) => error.fmt(f),
            Fault::Tls { error, .. } => write!(f, "TLS failed: {error}"),
            Fault::Io { doing, source } => write!(f, "the connection broke while {doing}: {source}"),
            Fault::Stalled { timeout } => {
                write!(f, "the store took no data for {} s", timeout.as_secs())
            }
            Fault::NoAnswer { timeout } => {
                write!(f, "the store gave no answer within {} s", timeout.as_secs())
            }
            Fault::EarlyAnswer { status } => write!(
                f,
                "the store answered {status} before it had read everything, which is no success"
            ),
            Fault::Refused { status, code } => {
                write!(f, "the store refused it: {}", Answer(*status, code))?;
                match status {
                    404 if code == NO_SUCH_UPLOAD => f.write_str(
                        "; the multipart upload was given up or cleaned away, the next run gets a new one",
                    ),
                    401 | 403 => f.write_str("; check the permissions that the URL was signed with"),
                    404 => f.write_str("; check that the bucket exists"),
                    411 | 413 => f.write_str("; the store does not take an object like this"),
                    _ => Ok(()),
                }
            }
            Fault::Busy { status, code, .. } => {
                write!(f, "the store answered {}", Answer(*status, code))
            }
            Fault::Redirected { status, host } => {
                write!(f, "the store answered {status} and points elsewhere")?;
                if !host.is_empty() {
                    write!(f, " ({host})")?;
                }
                f.write_str("; URLs must be signed for the bucket's own regional endpoint")
            }
            Fault::Spool(error) => write!(f, "the sealed artifact could not be read back: {error}"),
            Fault::Changed => f.write_str(
                "the sealed artifact changed while it waited for the upload; check this host's disk \
                 and memory",
            ),
            Fault::Protocol(problem) => {
                write!(f, "the store's answer is not understood: {problem}")
            }
            Fault::Plan(error) => error.fmt(f),
            Fault::NoPlace { part, error } => {
                write!(f, "the control plane gives no URL for part {part}: {error}")
            }
            Fault::PlaceTimeout { part, timeout } => write!(
                f,
                "the control plane sent no URL for part {part} within {} s; check the connection to it",
                timeout.as_secs()
            ),
            Fault::Unsure => f.write_str(
                "the store's answer to the end of the upload was lost, and now it does not know the \
                 upload; the object may be there, but nobody confirmed it",
            ),
        }
    }
}

/// A status with its code.
struct Answer<'a>(u16, &'a str);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Answer(status, code) = self;
        match (status, *code) {
            (507, "") => write!(f, "{status}: it is full"),
            (_, "") => write!(f, "{status}"),
            (_, code) => write!(f, "{status} {code}"),
        }
    }
}
