//! One connection: reads with deadlines that a stop cuts short, and answers that reach the peer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::super::{Waited, wait_readable, wait_writable};
use super::Limits;
use super::head::{self, Request, Status};
use crate::clock::Deadline;
use crate::thread::Cancel;

/// Why a request got no further.
#[derive(Debug)]
pub enum HttpError {
    /// The request is not acceptable; this is the answer to it.
    Bad(Status, &'static str),
    /// The peer went away.
    Gone,
    /// The peer sent or took nothing for too long.
    Stalled,
    /// The server is stopping.
    Stopped,
    /// The socket failed.
    Socket(io::Error),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad(status, why) => write!(f, "the request was refused ({status}): {why}"),
            Self::Gone => f.write_str("the peer closed the connection"),
            Self::Stalled => f.write_str("the peer stalled"),
            Self::Stopped => f.write_str("the server is stopping"),
            Self::Socket(error) => write!(f, "the connection failed: {error}"),
        }
    }
}

impl std::error::Error for HttpError {}

/// One accepted connection, non-blocking underneath.
#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    stop: Cancel,
    limits: Limits,
    /// When it is cut, whatever it is doing.
    end: Deadline,
    /// Bytes that came behind the head.
    ahead: Vec<u8>,
    /// Whether the peer waits for `100 Continue` before it sends the body.
    expects: bool,
    answered: bool,
}

impl Conn {
    pub(super) fn new(stream: TcpStream, stop: Cancel, limits: &Limits) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let limits = limits.clone();
        let end = Deadline::after(limits.connection_timeout);
        Ok(Self { stream, stop, limits, end, ahead: Vec::new(), expects: false, answered: false })
    }

    /// The token that ends this connection.
    pub fn stop(&self) -> &Cancel {
        &self.stop
    }

    pub(super) fn read_head(&mut self) -> Result<Request, HttpError> {
        let deadline = Deadline::after(self.limits.head_timeout);
        let mut bytes = Vec::new();
        let mut chunk = [0u8; 2048];
        loop {
            let n = match self.read_some(&mut chunk, deadline) {
                Err(HttpError::Stalled) => {
                    return Err(HttpError::Bad(Status::TIMEOUT, "the request took too long"));
                }
                other => other?,
            };
            if n == 0 {
                return Err(HttpError::Gone);
            }
            bytes.extend_from_slice(&chunk[..n]);
            let parsed = head::parse(&bytes, self.limits.headers)
                .map_err(|(status, why)| HttpError::Bad(status, why))?;
            if let Some((request, used)) = parsed {
                if used > self.limits.head_bytes {
                    return Err(too_large());
                }
                self.ahead = bytes.split_off(used);
                self.expects = request.header_has("expect", "100-continue");
                return Ok(request);
            }
            if bytes.len() > self.limits.head_bytes {
                return Err(too_large());
            }
        }
    }

    /// The body, exactly `length` bytes of it.
    ///
    /// # Errors
    /// When the go-ahead that the peer asked for cannot be sent.
    pub fn body(&mut self, length: u64) -> Result<Body<'_>, HttpError> {
        if std::mem::take(&mut self.expects) && self.ahead.is_empty() && length > 0 {
            self.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(Body { conn: self, left: length })
    }

    /// Answers with a line of text.
    ///
    /// # Errors
    /// When the peer does not take it.
    pub fn respond(&mut self, status: Status, text: &str) -> Result<(), HttpError> {
        self.respond_as(status, "text/plain; charset=utf-8", &format!("{text}\n"))
    }

    /// Answers with a whole body of this media type.
    ///
    /// # Errors
    /// When the peer does not take it.
    pub fn respond_as(
        &mut self,
        status: Status,
        media_type: &str,
        body: &str,
    ) -> Result<(), HttpError> {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            body.len()
        );
        self.answered = true;
        self.write_all(head.as_bytes())?;
        self.write_all(body.as_bytes())
    }

    /// Answers 200 with `length` bytes of `reader`.
    ///
    /// # Errors
    /// When the peer does not take them, or the reader fails or ends early: the connection is then cut,
    /// so that the peer sees a short body and not a whole one.
    pub fn respond_with(&mut self, length: u64, reader: &mut dyn Read) -> Result<(), HttpError> {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        );
        self.answered = true;
        self.write_all(head.as_bytes())?;
        let mut buffer = vec![0u8; 64 << 10];
        let mut reader = reader.take(length);
        let mut sent = 0;
        while sent < length {
            let n = reader.read(&mut buffer).map_err(HttpError::Socket)?;
            if n == 0 {
                return Err(HttpError::Socket(io::ErrorKind::UnexpectedEof.into()));
            }
            self.write_all(&buffer[..n])?;
            sent += n as u64;
        }
        Ok(())
    }

    /// Answers 101 to an upgrade and gives the socket away with the bytes that came ahead.
    ///
    /// # Errors
    /// When the peer does not take it.
    pub fn switch(&mut self, accept_key: &str) -> Result<(TcpStream, Vec<u8>), HttpError> {
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept_key}\r\n\r\n"
        );
        self.answered = true;
        self.write_all(head.as_bytes())?;
        let stream = self.stream.try_clone().map_err(HttpError::Socket)?;
        Ok((stream, std::mem::take(&mut self.ahead)))
    }

    /// Whether an answer was begun.
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Ends the connection so that the answer survives it: a socket that is closed over unread bytes
    /// resets, and the reset can overtake the answer.
    pub(super) fn close(self) {
        self.close_within(Duration::from_secs(2));
    }

    /// As [`Self::close`], with the time that the peer gets to take the answer.
    pub(super) fn close_within(mut self, linger: Duration) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Deadline::after(linger);
        let mut sink = [0u8; 16 << 10];
        while matches!(self.read_some(&mut sink, deadline), Ok(n) if n > 0) {}
    }

    /// Reads what there is; 0 at the end of the stream.
    fn read_some(&mut self, buffer: &mut [u8], deadline: Deadline) -> Result<usize, HttpError> {
        let deadline = deadline.min(self.end);
        loop {
            if deadline.passed() {
                return Err(HttpError::Stalled);
            }
            match self.stream.read(buffer) {
                Ok(n) => return Ok(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    waited(wait_readable(&self.stream, deadline, Some(&self.stop)))?;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(HttpError::Gone);
                }
                Err(error) => return Err(HttpError::Socket(error)),
            }
        }
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), HttpError> {
        let mut deadline = Deadline::after(self.limits.stall_timeout).min(self.end);
        while !bytes.is_empty() {
            if self.end.passed() {
                return Err(HttpError::Stalled);
            }
            match self.stream.write(bytes) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    deadline = Deadline::after(self.limits.stall_timeout).min(self.end);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    waited(wait_writable(&self.stream, deadline, Some(&self.stop)))?;
                }
                Err(error) => return Err(HttpError::Socket(error)),
            }
        }
        Ok(())
    }
}

fn waited(outcome: io::Result<Waited>) -> Result<(), HttpError> {
    match outcome.map_err(HttpError::Socket)? {
        Waited::Ready => Ok(()),
        Waited::TimedOut => Err(HttpError::Stalled),
        Waited::Cancelled => Err(HttpError::Stopped),
    }
}

fn too_large() -> HttpError {
    HttpError::Bad(Status::HEAD_TOO_LARGE, "the request's head is too large")
}

/// A request's body: ends after its declared length, never before.
#[derive(Debug)]
pub struct Body<'a> {
    conn: &'a mut Conn,
    left: u64,
}

impl Body<'_> {
    /// Reads the next part of the body; 0 once all of it was read.
    ///
    /// # Errors
    /// When the peer goes away or stalls before the end.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<usize, HttpError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = if self.conn.ahead.is_empty() {
            let deadline = Deadline::after(self.conn.limits.stall_timeout);
            self.conn.read_some(&mut buffer[..most], deadline)?
        } else {
            let n = most.min(self.conn.ahead.len());
            buffer[..n].copy_from_slice(&self.conn.ahead[..n]);
            self.conn.ahead.drain(..n);
            n
        };
        if n == 0 {
            return Err(HttpError::Gone);
        }
        self.left -= n as u64;
        Ok(n)
    }

    /// Ends the body: whatever has come behind it by now means that its declared length is wrong.
    ///
    /// # Errors
    /// When there is more, or something is still missing.
    pub fn finish(self) -> Result<(), HttpError> {
        if self.left > 0 {
            return Err(HttpError::Gone);
        }
        let mut probe = [0u8; 1];
        if !self.conn.ahead.is_empty() || matches!(self.conn.stream.read(&mut probe), Ok(1)) {
            return Err(HttpError::Bad(Status::BAD_REQUEST, "more was sent than was announced"));
        }
        Ok(())
    }
}
