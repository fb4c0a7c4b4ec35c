//! An artifact as a stream that knows its length: one that breaks off is taken up where it broke, and one that
//! cannot be is an error, never a short artifact.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use rusty_s3::Method;

use super::client::{Client, Request};
use super::error::{Doing, S3Error, S3Fault};
use crate::pipeline::upload::{Download, Fault, Head};

/// Breaks in a row without a single byte between them.
const BREAKS_MAX: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The stream.
pub(super) struct Stream {
    client: Arc<Client>,
    object: String,
    etag: Option<String>,
    length: u64,
    at: u64,
    body: Option<Download>,
    breaks: u32,
    pause: Duration,
}

impl Stream {
    /// Begins; `None` if there is no such object.
    pub(super) fn open(client: &Arc<Client>, object: String) -> Result<Option<Self>, S3Error> {
        let opened = client.open(&Request::new(Doing::Fetch, Method::Get, &object))?;
        let Some((head, body)) = opened else { return Ok(None) };
        let Some(length) = head.length() else {
            let fault = S3Fault::Nonsense("the object has no length");
            return client.note(Doing::Fetch, Err(fault));
        };
        let etag = head.header("etag").map(str::to_owned);
        Ok(Some(Self {
            client: client.clone(),
            object,
            etag,
            length,
            at: 0,
            body: Some(body),
            breaks: 0,
            pause: FIRST_PAUSE,
        }))
    }

    #[cfg(test)]
    pub(super) fn without_pauses(mut self) -> Self {
        self.pause = Duration::ZERO;
        self
    }

    /// Asks for what is left.
    fn resume(&mut self) -> Result<Download, S3Error> {
        let range = format!("bytes={}-", self.at);
        let mut headers = vec![("range", range.as_str())];
        if let Some(etag) = &self.etag {
            headers.push(("if-match", etag));
        }
        let request =
            Request { headers: &headers, ..Request::new(Doing::Fetch, Method::Get, &self.object) };
        let failed = |fault| self.client.error(Doing::Fetch, fault);
        match self.client.open(&request) {
            Ok(Some((head, body))) if self.continues(&head) => Ok(body),
            Ok(Some(_)) => Err(failed(S3Fault::Short { got: self.at, announced: self.length })),
            Ok(None) => Err(failed(S3Fault::Changed)),
            Err(S3Error { fault: S3Fault::Refused { status: 412 | 416, .. }, .. }) => {
                Err(failed(S3Fault::Changed))
            }
            Err(error) => Err(error),
        }
    }

    fn continues(&self, head: &Head) -> bool {
        let range = format!("bytes {}-{}/{}", self.at, self.length - 1, self.length);
        head.status == 206 && head.header("content-range").map(str::trim) == Some(&range)
    }

    /// Notes a break; whether to go on after a pause.
    fn broke(&mut self, fault: Fault) -> io::Result<()> {
        self.body = None;
        self.breaks += 1;
        let cancelled = matches!(fault, Fault::Cancelled(_));
        if cancelled || self.breaks >= BREAKS_MAX {
            return Err(self.end(S3Fault::Unreachable(fault)));
        }
        log::warn!(
            "{} broke off after {} of {} bytes and is taken up there: {fault}",
            self.object,
            self.at,
            self.length
        );
        let pause = self.pause.saturating_mul(2u32.pow(self.breaks - 1));
        if self.client.cancel().sleep(pause) {
            return Ok(());
        }
        Err(self.end(S3Fault::Unreachable(fault)))
    }

    fn end(&self, fault: S3Fault) -> io::Error {
        io::Error::other(self.client.error(Doing::Fetch, fault))
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
        let most = out.len().min(left);
        if most == 0 {
            return Ok(0);
        }
        loop {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    let body = self.resume().map_err(io::Error::other)?;
                    self.body.insert(body)
                }
            };
            let fault = match body.read(&mut out[..most]) {
                Ok(0) => Fault::Io {
                    doing: "waiting for the answer",
                    source: io::ErrorKind::UnexpectedEof.into(),
                },
                Ok(count) => {
                    self.at += count as u64;
                    self.breaks = 0;
                    return Ok(count);
                }
                Err(error) => body.fault(&error),
            };
            self.broke(fault)?;
        }
    }
}
