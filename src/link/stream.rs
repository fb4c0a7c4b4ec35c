//! The bytes under the WebSocket: TLS or plain TCP, always non-blocking.
//!
//! Two things rustls' own stream would get wrong here. When its buffer is full and it read something
//! meanwhile, its `write` answers `Ok(0)`, which tungstenite takes for the end of the connection; here it is
//! `WouldBlock`. And a peer could keep one call of tungstenite's `read` busy for ever, with fragments that
//! never make a message; so reading has an allowance, after which it is `WouldBlock` too.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustls::{ClientConnection, StreamOwned};

use super::LinkError;
use crate::clock::Deadline;
use crate::net::wait_any;
use crate::thread::Cancel;

/// TLS or plain TCP.
#[derive(Debug)]
pub(super) struct Stream {
    kind: Kind,
    allowance: usize,
    starved: bool,
    write_blocked: bool,
}

#[derive(Debug)]
enum Kind {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    pub(super) fn plain(tcp: TcpStream) -> Self {
        Self::new(Kind::Plain(tcp))
    }

    pub(super) fn tls(connection: ClientConnection, tcp: TcpStream) -> Self {
        Self::new(Kind::Tls(Box::new(StreamOwned::new(connection, tcp))))
    }

    fn new(kind: Kind) -> Self {
        Self { kind, allowance: 0, starved: false, write_blocked: false }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        match &self.kind {
            Kind::Plain(tcp) => tcp,
            Kind::Tls(tls) => &tls.sock,
        }
    }

    /// Lets the next reads take `bytes`.
    pub(super) fn allow(&mut self, bytes: usize) {
        self.allowance = bytes;
        self.starved = false;
    }

    /// Whether the last `WouldBlock` of a read was only the allowance.
    pub(super) fn starved(&self) -> bool {
        self.starved
    }

    /// Whether there is input that `poll(2)` on the socket does not show, because a write read it: rustls wants
    /// no more while it holds some, nor after the peer's last word.
    pub(super) fn holds_input(&self) -> bool {
        match &self.kind {
            Kind::Plain(_) => false,
            Kind::Tls(tls) => !tls.conn.wants_read(),
        }
    }

    /// The TLS handshake, if there is TLS.
    pub(super) fn shake_hands(
        &mut self,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<(), LinkError> {
        while let Kind::Tls(tls) = &mut self.kind
            && tls.conn.is_handshaking()
        {
            match tls.conn.complete_io(&mut tls.sock) {
                Ok((0, 0)) => return Err(LinkError::Dropped),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(deadline, cancel)? {
                        return Err(LinkError::HandshakeTimeout("set up TLS with the server"));
                    }
                }
                Err(error) => return Err(LinkError::from_io(error)),
            }
        }
        Ok(())
    }

    /// Waits until there is something to do for one thread that reads and writes.
    pub(super) fn wait(&self, deadline: Deadline, cancel: &Cancel) -> Result<bool, LinkError> {
        let mut flags = PollFlags::IN;
        let pending = matches!(&self.kind, Kind::Tls(tls) if tls.conn.wants_write());
        if pending || self.write_blocked {
            flags |= PollFlags::OUT;
        }
        let mut fds = [PollFd::new(self, flags), PollFd::new(cancel, PollFlags::IN)];
        let ready = wait_any(&mut fds, Some(deadline)).map_err(LinkError::System)?;
        if cancel.is_cancelled() { Err(LinkError::Stopped) } else { Ok(ready) }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.allowance == 0 {
            self.starved = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = match &mut self.kind {
            Kind::Plain(tcp) => tcp.read(buffer)?,
            Kind::Tls(tls) => tls.read(buffer)?,
        };
        self.allowance = self.allowance.saturating_sub(count);
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = match &mut self.kind {
            Kind::Plain(tcp) => tcp.write(buffer),
            Kind::Tls(tls) => tls.write(buffer),
        };
        let written = match written {
            Ok(0) if !buffer.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            other => other,
        };
        self.write_blocked = is_blocked(&written);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match &mut self.kind {
            Kind::Plain(tcp) => tcp.flush(),
            Kind::Tls(tls) => tls.flush(),
        };
        self.write_blocked = is_blocked(&flushed);
        flushed
    }
}

fn is_blocked<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
