//! One HTTP/1.1 request to the daemon on a connection of its own: head, body (by length, in chunks or to the
//! end), or the connection itself after an upgrade. Bounded everywhere; whatever is odd is an error.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;
use serde_json::Value;

use super::attach::Attached;
use super::body::Body;
use super::{Bounds, DockerError};
use crate::net::{Waited, wait_readable, wait_writable};

const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// The line with a chunk's size, extensions included.
const MAX_CHUNK_LINE: usize = 256;
const READ_BYTES: usize = 16 << 10;
/// Shown of an error's words.
const MAX_MESSAGE_CHARS: usize = 300;
/// Between two tries at a daemon whose queue of connections is full.
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    method: &'static str,
    pub(super) path: String,
    body: Option<String>,
}

impl Request {
    pub(super) fn get(path: &str) -> Self {
        Self { method: "GET", path: path.to_owned(), body: None }
    }

    pub(super) fn post(path: &str, body: &Value) -> Self {
        Self { method: "POST", path: path.to_owned(), body: Some(body.to_string()) }
    }

    fn render(&self, upgrade: bool) -> String {
        let connection = if upgrade { "Upgrade\r\nUpgrade: tcp" } else { "close" };
        let mut text = format!(
            "{} {} HTTP/1.1\r\nHost: docker\r\nConnection: {connection}\r\n",
            self.method, self.path
        );
        if let Some(body) = &self.body {
            let head = "Content-Type: application/json\r\nContent-Length: ";
            text.push_str(&format!("{head}{}\r\n\r\n{body}", body.len()));
        } else {
            text.push_str("\r\n");
        }
        text
    }
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The words of an error: Docker's `{"message": …}`, or whatever it is, on one line.
    pub(super) fn message(&self) -> String {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let text = serde_json::from_slice::<Message>(&self.body).map_or_else(
            |_| String::from_utf8_lossy(&self.body).into_owned(),
            |found| found.message,
        );
        let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        clean.take(MAX_MESSAGE_CHARS).collect::<String>().trim().to_owned()
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(usize),
    /// With an empty chunk.
    Chunks,
    /// With the connection.
    ToEnd,
}

/// The head of an answer.
struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
}

/// A connection with one exchange on it.
pub(super) struct Line<'a> {
    stream: UnixStream,
    pub(super) bounds: Bounds<'a>,
    doing: &'static str,
    /// Read, but not yet looked at.
    pub(super) ahead: Vec<u8>,
}

impl<'a> Line<'a> {
    /// Connects; the stream is non-blocking.
    pub(super) fn open(
        socket: &Path,
        bounds: Bounds<'a>,
        doing: &'static str,
    ) -> Result<Self, DockerError> {
        let failed = |source: io::Error| DockerError::Connect { socket: socket.to_owned(), source };
        let address = SocketAddrUnix::new(socket).map_err(|e| failed(e.into()))?;
        loop {
            not_cancelled(bounds)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .map_err(|e| failed(e.into()))?;
            match connect(&fd, &address) {
                Ok(()) => {
                    let ahead = Vec::new();
                    return Ok(Self { stream: fd.into(), bounds, doing, ahead });
                }
                // A unix socket says so when its queue is full, and cannot be waited for.
                Err(Errno::AGAIN) if !bounds.deadline.passed() => pause(bounds),
                Err(Errno::AGAIN) => return Err(DockerError::Timeout { doing }),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    /// Sends the request and takes the whole answer, its body at most `limit` bytes.
    pub(super) fn exchange(
        &mut self,
        request: &Request,
        limit: usize,
    ) -> Result<Answer, DockerError> {
        self.send(request.render(false).as_bytes())?;
        let head = self.head()?;
        let body = self.body(&head, limit)?;
        Ok(Answer { status: head.status, body })
    }

    /// Sends the request; the body of a good answer is taken piece by piece.
    pub(super) fn stream(mut self, request: &Request) -> Result<Body<'a>, DockerError> {
        self.send(request.render(false).as_bytes())?;
        let head = self.head()?;
        if head.status != 200 {
            let body = self.body(&head, MAX_HEAD_BYTES)?;
            let answer = Answer { status: head.status, body };
            let (status, message) = (head.status, answer.message());
            return Err(DockerError::Refused { doing: self.doing, status, message });
        }
        let framing = match head.length {
            _ if head.chunked => Framing::Chunks,
            Some(length) => Framing::Length(length),
            None => Framing::ToEnd,
        };
        Ok(Body::new(self, framing))
    }

    /// Sends the request and takes the connection over; an answer other than an upgrade is an error.
    pub(super) fn upgrade(mut self, request: &Request) -> Result<Attached, DockerError> {
        self.send(request.render(true).as_bytes())?;
        let head = self.head()?;
        let raw = head.length.is_none() && !head.chunked;
        // Without an upgrade on the way (a proxy that drops it) Docker answers 200 and does the same.
        if head.status == 101 || (head.status == 200 && raw) {
            return Ok(Attached::new(self.stream, self.ahead));
        }
        let body = self.body(&head, MAX_HEAD_BYTES)?;
        let answer = Answer { status: head.status, body };
        match head.status {
            404 => Err(DockerError::NoExec),
            status => {
                Err(DockerError::Refused { doing: self.doing, status, message: answer.message() })
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<(), DockerError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if later(&error) => self.wait(PollFlags::OUT)?,
                Err(source) => return Err(self.broken(source)),
            }
        }
        Ok(())
    }

    /// Reads more; false at the end of the stream.
    pub(super) fn more(&mut self) -> Result<bool, DockerError> {
        let mut buffer = [0; READ_BYTES];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    self.ahead.extend_from_slice(buffer.get(..length).unwrap_or_default());
                    return Ok(true);
                }
                Err(error) if later(&error) => self.wait(PollFlags::IN)?,
                Err(source) => return Err(self.broken(source)),
            }
        }
    }

    fn must_have_more(&mut self) -> Result<(), DockerError> {
        match self.more()? {
            true => Ok(()),
            false => Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn head(&mut self) -> Result<Head, DockerError> {
        loop {
            if let Some((head, used)) = parse_head(&self.ahead).map_err(|p| self.odd(p))? {
                self.ahead.drain(..used);
                return Ok(head);
            }
            if self.ahead.len() > MAX_HEAD_BYTES {
                return Err(self.odd("its head has no end"));
            }
            self.must_have_more()?;
        }
    }

    fn body(&mut self, head: &Head, limit: usize) -> Result<Vec<u8>, DockerError> {
        if head.chunked {
            return self.chunks(limit);
        }
        let Some(length) = head.length else {
            while self.ahead.len() <= limit {
                if !self.more()? {
                    return Ok(std::mem::take(&mut self.ahead));
                }
            }
            return Err(self.odd("it is too long"));
        };
        if length > limit {
            return Err(self.odd("it is too long"));
        }
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, DockerError> {
        while self.ahead.len() < length {
            self.must_have_more()?;
        }
        Ok(self.ahead.drain(..length).collect())
    }

    fn chunks(&mut self, limit: usize) -> Result<Vec<u8>, DockerError> {
        let mut body = Vec::new();
        loop {
            let size = self.chunk_size()?;
            if size == 0 {
                // Trailers say nothing that we want, and the connection is not used again.
                return Ok(body);
            }
            if size > limit - body.len() {
                return Err(self.odd("it is too long"));
            }
            body.extend_from_slice(&self.take(size)?);
            self.end_of_chunk()?;
        }
    }

    pub(super) fn chunk_size(&mut self) -> Result<usize, DockerError> {
        let line = self.chunk_line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let size = usize::from_str_radix(digits, 16).ok().filter(|_| plain);
        size.ok_or_else(|| self.odd("a chunk has no size"))
    }

    pub(super) fn end_of_chunk(&mut self) -> Result<(), DockerError> {
        match self.take(2)?.as_slice() {
            b"\r\n" => Ok(()),
            _ => Err(self.odd("a chunk is longer than its size")),
        }
    }

    fn chunk_line(&mut self) -> Result<String, DockerError> {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end)?;
                self.take(2)?;
                return String::from_utf8(line).map_err(|_| self.odd("a chunk has no size"));
            }
            if self.ahead.len() > MAX_CHUNK_LINE {
                return Err(self.odd("a chunk has no size"));
            }
            self.must_have_more()?;
        }
    }

    fn wait(&self, flags: PollFlags) -> Result<(), DockerError> {
        let waited = if flags.contains(PollFlags::OUT) {
            wait_writable(&self.stream, self.bounds.deadline, self.bounds.cancel)
        } else {
            wait_readable(&self.stream, self.bounds.deadline, self.bounds.cancel)
        };
        let waited = waited.map_err(|source| self.broken(source))?;
        judge(waited, self.bounds, self.doing)
    }

    pub(super) fn check_cancel(&self) -> Result<(), DockerError> {
        not_cancelled(self.bounds)
    }

    pub(super) fn broken(&self, source: io::Error) -> DockerError {
        DockerError::Broken { doing: self.doing, source }
    }

    pub(super) fn odd(&self, problem: &'static str) -> DockerError {
        DockerError::Answer { doing: self.doing, problem }
    }
}

fn not_cancelled(bounds: Bounds<'_>) -> Result<(), DockerError> {
    bounds
        .cancel
        .and_then(crate::thread::Cancel::why)
        .map_or(Ok(()), |why| Err(DockerError::Cancelled(why)))
}

/// What a wait means.
pub(super) fn judge(
    waited: Waited,
    bounds: Bounds<'_>,
    doing: &'static str,
) -> Result<(), DockerError> {
    use crate::thread::{Cancel, Why};
    match waited {
        Waited::Ready => Ok(()),
        Waited::TimedOut => Err(DockerError::Timeout { doing }),
        Waited::Cancelled => Err(DockerError::Cancelled(
            bounds.cancel.and_then(Cancel::why).unwrap_or(Why::Requested),
        )),
    }
}

pub(super) fn later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn pause(bounds: Bounds<'_>) {
    let time = FULL_PAUSE.min(bounds.deadline.remaining());
    match bounds.cancel {
        Some(cancel) => {
            cancel.sleep(time);
        }
        None => {
            let _ = crossbeam_channel::never::<()>().recv_timeout(time);
        }
    }
}

/// The head if all of it is there, and its length.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let used = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("it is not HTTP"),
    };
    let mut head = Head { status: parsed.code.unwrap_or_default(), length: None, chunked: false };
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| "a header is not text")?.trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| "its length is no number")?;
            if head.length.replace(length).is_some_and(|other: usize| other != length) {
                return Err("it has two lengths");
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err("its encoding is unknown");
            }
            head.chunked = true;
        }
    }
    if head.status == 204 || head.status == 304 {
        head.length = Some(0);
    }
    Ok(Some((head, used)))
}
