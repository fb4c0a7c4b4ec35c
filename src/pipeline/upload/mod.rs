//! One artifact to presigned URLs: a PUT with `Content-Length`, or one for each part ([`multipart`]), repeated with
//! the same bytes while the failure can pass.
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
pub mod multipart;
mod pace;
mod pause;
mod send;
mod url;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use call::{Answer, Ask, Caller, Download, Head};
pub use error::{Fault, UploadError};

use super::spool::Sealed;
use crate::clock::{Deadline, unix_ms};
use crate::config::{ProxySettings, TlsSettings};
use crate::model::{Multipart, Progress, UploadCreds};
use crate::secret::Secret;
use crate::thread::Cancel;
use multipart::plan::PartPlan;
use pace::Pace;
use send::Method;
use url::Destination;

pub(super) use send::Sender;

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
    /// For the control plane to send the URL of a part, reconnects included.
    pub part_urls: Duration,
    /// Between two requests for the same URLs.
    pub part_urls_again: Duration,
    /// The tries and the pauses between them.
    pub tries: Tries,
}

/// For an answer to an abort: the control plane cleans up as well.
const ABORT_PATIENCE: Duration = Duration::from_secs(15);

/// The tries of one upload and the pauses between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// Tries in all.
    pub max: u32,
    /// Tries of one part and of Complete: a failed one costs the whole dump, so that a store may be busy for minutes.
    pub max_part: u32,
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
            part_urls: Duration::from_secs(1_800),
            part_urls_again: Duration::from_secs(30),
            tries: Tries {
                max: 6,
                max_part: 12,
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

    /// Whether its uploads keep to a limit.
    pub fn is_limited(&self) -> bool {
        !self.paces.is_empty()
    }

    /// The same with another timing.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Fails if these credentials cannot lead to an upload, before anything is dumped for them.
    ///
    /// # Errors
    /// When a URL is missing, malformed or not allowed, or has expired, when the abort is about another upload, or the parts have a size that nobody takes.
    pub fn check(&self, creds: &UploadCreds) -> Result<(), UploadError> {
        let Some(multipart) = &creds.multipart else {
            return self.check_url(&creds.put_url, creds.expires_at_ms).map(drop);
        };
        let complete = self.check_url(&multipart.complete_url, multipart.expires_at_ms)?;
        let abort = self.check_url(&multipart.abort_url, multipart.expires_at_ms)?;
        multipart::ends_of_one_upload(&complete, &abort)
            .map_err(|fault| UploadError::new(&abort.shown, 0, fault))?;
        PartPlan::new(multipart.part_size_bytes)?;
        Ok(())
    }

    /// As [`Uploader::check`], for the single PUT beside an upload in parts.
    ///
    /// # Errors
    /// When its URL is malformed or not allowed, or has expired.
    pub fn check_single(&self, creds: &UploadCreds) -> Result<(), UploadError> {
        self.check_url(&creds.put_url, creds.expires_at_ms).map(drop)
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
        let destination = self.check_url(&creds.put_url, creds.expires_at_ms)?;
        let sender = Sender::new(self, deadline, cancel);
        sender.repeat(&destination.shown, creds.expires_at_ms, self.timing.tries.max, || {
            sender.once(Method::Put, &destination, sealed, progress, &|_| Ok(()))
        })
    }

    /// Has the store forget the parts of an upload that nobody will complete. Not for an attempt that has
    /// another one behind it, which may use the same upload.
    ///
    /// # Errors
    /// When the store does not say that they are gone.
    pub fn abort(&self, multipart: &Multipart, cancel: &Cancel) -> Result<(), UploadError> {
        let timing = Timing { connect: ABORT_PATIENCE, answer: ABORT_PATIENCE, ..self.timing };
        let hasty = self.clone().with_timing(timing);
        multipart::abort(&Sender::new(&hasty, None, cancel), multipart)
    }

    fn check_url(&self, url: &Secret, expires_at_ms: u64) -> Result<Destination, UploadError> {
        let destination =
            Destination::parse(url, self.policy).map_err(|fault| UploadError::new("", 0, fault))?;
        if pause::expired(expires_at_ms, unix_ms()) {
            return Err(UploadError::new(&destination.shown, 0, Fault::Expired));
        }
        Ok(destination)
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
