//! The server's end of a WebSocket over a non-blocking socket, driven by one thread.
//!
//! Frames go into tungstenite's buffer and from there to the socket as it takes them; a peer that takes
//! nothing for the write timeout is given up. Nothing here waits: the session's loop does, in `poll(2)`.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::Timing;
use crate::clock::Deadline;
use crate::wire;

/// Why a socket is of no more use.
#[derive(Debug)]
pub enum SocketError {
    /// The peer closed it.
    Closed,
    /// The peer took nothing for too long.
    Mute,
    /// The peer sent something that is no WebSocket frame, or one that is too large.
    Protocol(String),
    /// The system's.
    Io(io::Error),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the agent closed the connection"),
            Self::Mute => f.write_str("the agent took nothing for too long"),
            Self::Protocol(what) => write!(f, "the agent broke the protocol: {what}"),
            Self::Io(error) => write!(f, "the connection failed: {error}"),
        }
    }
}

impl std::error::Error for SocketError {}

/// What one pass over the socket brought.
#[derive(Debug, Default)]
pub struct Pass {
    /// Binary messages, in order.
    pub messages: Vec<Vec<u8>>,
    /// Whether any frame came at all: the peer lives.
    pub alive: bool,
    /// Whether there may be more without another wait.
    pub more: bool,
}

/// The WebSocket.
#[derive(Debug)]
pub struct Socket {
    ws: WebSocket<TcpStream>,
    timing: Timing,
    /// Set while the socket takes no more.
    blocked: Option<Deadline>,
}

impl Socket {
    /// Frames per pass, so that a flood does not starve the commands.
    const FRAMES: usize = 32;
    /// Bytes per pass.
    const BYTES: usize = 256 << 10;

    /// The server's end, after the upgrade was answered; `ahead` came behind the request.
    pub fn new(stream: TcpStream, ahead: Vec<u8>, timing: Timing) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(8 << 10)
            .write_buffer_size(8 << 10)
            .max_write_buffer_size(3 * wire::MAX_MESSAGE_BYTES)
            .max_message_size(Some(wire::MAX_MESSAGE_BYTES))
            .max_frame_size(Some(wire::MAX_MESSAGE_BYTES));
        let ws = WebSocket::from_partially_read(stream, ahead, Role::Server, Some(config));
        Self { ws, timing, blocked: None }
    }

    /// While set, nothing new should be sent; the wait should be for writability too, until then.
    pub fn blocked(&self) -> Option<Deadline> {
        self.blocked
    }

    /// Queues a message and sends what the socket takes.
    ///
    /// # Errors
    /// When the socket is of no more use.
    pub fn send(&mut self, bytes: Vec<u8>) -> Result<(), SocketError> {
        self.put(Message::Binary(bytes.into()))
    }

    /// Queues a WebSocket ping.
    ///
    /// # Errors
    /// When the socket is of no more use.
    pub fn ping(&mut self) -> Result<(), SocketError> {
        self.put(Message::Ping(tungstenite::Bytes::new()))
    }

    /// Says goodbye, as far as that goes without waiting.
    pub fn close(&mut self) {
        let _ = self.ws.close(None);
        let _ = self.ws.flush();
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// When the socket is of no more use, or took nothing for the write timeout.
    pub fn flush(&mut self) -> Result<(), SocketError> {
        let outcome = self.ws.flush();
        self.wrote(outcome)
    }

    /// Reads what there is.
    ///
    /// # Errors
    /// When the socket is of no more use.
    pub fn read(&mut self) -> Result<Pass, SocketError> {
        let mut pass = Pass::default();
        let mut bytes = 0;
        for _ in 0..Self::FRAMES {
            match self.ws.read() {
                Ok(Message::Binary(message)) => {
                    bytes += message.len();
                    pass.messages.push(message.into());
                }
                Ok(Message::Text(_)) => log::warn!("ignored a text frame from an agent"),
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    let _ = self.ws.flush();
                    return Err(SocketError::Closed);
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(pass);
                }
                Err(error) => return Err(translate(error)),
            }
            pass.alive = true;
            if bytes >= Self::BYTES {
                break;
            }
        }
        pass.more = true;
        Ok(pass)
    }

    fn put(&mut self, message: Message) -> Result<(), SocketError> {
        let outcome = self.ws.write(message).and_then(|()| self.ws.flush());
        self.wrote(outcome)
    }

    fn wrote(&mut self, outcome: Result<(), Error>) -> Result<(), SocketError> {
        match outcome {
            Ok(()) => self.blocked = None,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                let deadline =
                    *self.blocked.get_or_insert_with(|| Deadline::after(self.timing.write));
                if deadline.passed() {
                    return Err(SocketError::Mute);
                }
            }
            Err(Error::WriteBufferFull(_)) => return Err(SocketError::Mute),
            Err(error) => return Err(translate(error)),
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ws.get_ref().as_fd()
    }
}

fn translate(error: Error) -> SocketError {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => SocketError::Closed,
        Error::Io(error) => SocketError::Io(error),
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            SocketError::Closed
        }
        other => SocketError::Protocol(other.to_string()),
    }
}
