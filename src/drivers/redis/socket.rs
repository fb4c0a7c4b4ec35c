//! The connection: bytes in and out, every wait with a deadline and the cancel, every answer bounded.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::fault::RedisFault;
use super::place::{Place, Settings, socket_in};
use super::tls::{self, TlsStream};
use crate::clock::Deadline;
use crate::drivers::{Context, DriverError};
use crate::net::{self, NetError, Waited, wait_readable, wait_writable};
use crate::thread::{Cancel, Why};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// Longer than any line that a server says to us.
const LINE_MAX: usize = 8 << 10;
/// More than `INFO` of one section.
const BULK_MAX: usize = 64 << 10;

/// Any kind of socket, non-blocking.
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    Unix(UnixStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.sock.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    /// TLS keeps what the socket did not take.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(stream) => stream.flush(),
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// Connects to the target's server.
    ///
    /// # Errors
    /// When nobody takes the connection in time, or the host does not allow the address.
    pub(super) fn connect(settings: &Settings, cx: &Context<'_>) -> Result<Self, DriverError> {
        let deadline = Deadline::after(CONNECT_TIMEOUT);
        let (host, addresses, place) = match &settings.place {
            Place::Tcp { host, port } => {
                let addresses = settings.addresses(host, *port, deadline, cx)?;
                (host, addresses, format!("{host} port {port}"))
            }
            Place::Socket(path) => return unix(&socket_in(path)).map(Self::Unix),
            Place::Container { inside, name, port } => {
                let addresses = inside.addresses(*port, cx)?;
                let shown = addresses.first().map(ToString::to_string).unwrap_or_default();
                (name, addresses, format!("{shown} (the container {})", inside.reference()))
            }
        };
        match net::connect_any(host, &addresses, deadline, cx.cancel) {
            Ok(stream) => match &settings.tls {
                None => Ok(Self::Tcp(stream)),
                Some(wanted) => {
                    tls::agree(stream, host, wanted, deadline, cx).map(Box::new).map(Self::Tls)
                }
            },
            Err(NetError::Cancelled(why)) => Err(DriverError::Cancelled(why)),
            Err(error) => {
                let reason = match error {
                    NetError::Connect { source, .. } => source.to_string(),
                    NetError::ConnectTimeout { .. } => "no answer".to_owned(),
                    other => other.to_string(),
                };
                Err(RedisFault::Unreachable { place, reason }.into())
            }
        }
    }
}

/// A socket on this host takes the connection at once or not at all.
fn unix(path: &Path) -> Result<UnixStream, DriverError> {
    let fail = |error: Errno| {
        let place = path.display().to_string();
        let reason = match error {
            Errno::AGAIN => "too many others wait for it".to_owned(),
            error => io::Error::from(error).to_string(),
        };
        DriverError::from(RedisFault::Unreachable { place, reason })
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let address = SocketAddrUnix::new(path).map_err(|_| DriverError::Setting {
        field: "host",
        problem: "is longer than the path of a socket can be".to_owned(),
    })?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(fail)?;
    rustix::net::connect(&socket, &address).map_err(fail)?;
    Ok(UnixStream::from(socket))
}

/// A connection with what came and was not looked at yet.
pub(super) struct Line<'a> {
    stream: Stream,
    buffer: Vec<u8>,
    /// What `buffer` holds are its bytes from `start` to `end`.
    start: usize,
    end: usize,
    /// Silence for so long is the end.
    patience: Duration,
    cancel: &'a Cancel,
}

impl<'a> Line<'a> {
    /// A connection of which nothing was read.
    pub(super) fn new(stream: Stream, patience: Duration, cancel: &'a Cancel) -> Self {
        Self { stream, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, patience, cancel }
    }

    /// The deadline for whatever begins now.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.patience)
    }

    /// Sends all of it. A peer that closes may have said why, so that a broken pipe shows when its answer is read.
    ///
    /// # Errors
    /// When it is not taken in time.
    pub(super) fn send(&mut self, mut bytes: &[u8]) -> Result<(), DriverError> {
        let deadline = self.deadline();
        loop {
            let taken = match bytes {
                [] => self.stream.flush().map(|()| 0),
                bytes => self.stream.write(bytes),
            };
            match taken {
                Ok(_) if bytes.is_empty() => return Ok(()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let waited = wait_writable(&self.stream, deadline, Some(self.cancel));
                    self.settle(waited)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(()),
            }
        }
    }

    /// What came and was not taken yet.
    pub(super) fn window(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes bytes away from the beginning of [`Line::window`].
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Adds to [`Line::window`], which must be smaller than the buffer; waits until there is something to add.
    ///
    /// # Errors
    /// At the end of the connection, the deadline and the cancel.
    pub(super) fn fill(&mut self, deadline: Deadline) -> Result<(), DriverError> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            if let Some(why) = self.cancel.why() {
                return Err(DriverError::Cancelled(why));
            }
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(RedisFault::Lost { received: 0, source: None }.into()),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let waited = wait_readable(&self.stream, deadline, Some(self.cancel));
                    self.settle(waited)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(RedisFault::Lost { received: 0, source: Some(error) }.into());
                }
            }
        }
    }

    fn settle(&self, waited: io::Result<Waited>) -> Result<(), DriverError> {
        match waited {
            Ok(Waited::Ready) => Ok(()),
            Ok(Waited::TimedOut) => Err(RedisFault::Silent(self.patience).into()),
            Ok(Waited::Cancelled) => {
                Err(DriverError::Cancelled(self.cancel.why().unwrap_or(Why::Requested)))
            }
            Err(source) => Err(RedisFault::Lost { received: 0, source: Some(source) }.into()),
        }
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// As [`Line::fill`], and for a line that no server says.
    pub(super) fn line(&mut self, deadline: Deadline) -> Result<String, DriverError> {
        loop {
            if let Some(length) = self.window().iter().position(|byte| *byte == b'\n') {
                let line = &self.window()[..length];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let text = String::from_utf8_lossy(line).into_owned();
                self.consume(length + 1);
                return Ok(text);
            }
            if self.window().len() > LINE_MAX {
                return Err(RedisFault::NotRedis { what: "it sends a line without an end" }.into());
            }
            self.fill(deadline)?;
        }
    }

    /// A text of `length` bytes with the line end behind it.
    ///
    /// # Errors
    /// As [`Line::fill`], and for a text that is too long.
    pub(super) fn bulk(
        &mut self,
        length: usize,
        deadline: Deadline,
    ) -> Result<String, DriverError> {
        if length > BULK_MAX {
            return Err(RedisFault::NotRedis { what: "its answer is too long" }.into());
        }
        while self.window().len() < length + 2 {
            self.fill(deadline)?;
        }
        let text = String::from_utf8_lossy(&self.window()[..length]).into_owned();
        self.consume(length + 2);
        Ok(text)
    }
}
