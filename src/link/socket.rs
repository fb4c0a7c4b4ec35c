//! The one WebSocket of a session: what may be done with it without blocking, and whose turn it is.
//!
//! [`Wire`] never waits. [`Socket`] hands it to one thread at a time, in the order they asked: with a plain
//! mutex a reader under a flood of frames would take it again and again and starve the writer. A turn is
//! waited for until a deadline; whoever misses it ends the socket for everybody, and nothing more is encoded.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error, Message, Utf8Bytes, WebSocket};

use super::LinkError;
use super::stream::Stream;
use crate::clock::Deadline;
use crate::wire::MAX_MESSAGE_BYTES;

/// Frames taken in one turn.
pub(super) const MAX_FRAMES: usize = 32;

/// Bytes read in one turn.
const MAX_READ_BYTES: usize = 256 * 1024;

/// Bytes of pongs that may wait to be written; beyond that only the newest is kept.
const ROOM: usize = 64 * 1024;

/// Written at once beyond this many bytes, else at the next flush.
const WRITE_BUFFER: usize = 8 * 1024;

/// Largest header of a client's frame.
const FRAME_HEAD: usize = 16;

/// The limits of the WebSocket.
pub(super) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(ROOM)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

/// Whether all bytes went to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All.
    All,
    /// Some wait until the socket can be written.
    Blocked,
}

/// What one reading turn found.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// The frames, in order. They come before `end`.
    pub(super) frames: Vec<Message>,
    /// There may be more: read again before polling.
    pub(super) more: bool,
    /// A pong or a close waits until the socket can be written.
    pub(super) blocked: bool,
    /// Reading is over.
    pub(super) end: Option<LinkError>,
}

/// The WebSocket, without any waiting.
#[derive(Debug)]
pub(super) struct Wire(WebSocket<Stream>);

impl Wire {
    pub(super) fn new(websocket: WebSocket<Stream>) -> Self {
        Self(websocket)
    }

    pub(super) fn stream(&self) -> &Stream {
        self.0.get_ref()
    }

    /// The next frame, if one is there.
    pub(super) fn read(&mut self) -> Result<Option<Message>, LinkError> {
        self.0.get_mut().allow(MAX_READ_BYTES);
        self.read_allowed()
    }

    /// Reads what is there, at most a turn's worth, and lets answers (pongs, a close) out.
    pub(super) fn read_pass(&mut self) -> Pass {
        let mut pass = Pass { more: true, ..Pass::default() };
        self.0.get_mut().allow(MAX_READ_BYTES);
        while pass.frames.len() < MAX_FRAMES {
            match self.read_allowed() {
                Ok(Some(frame)) => {
                    let last = frame.is_close();
                    pass.frames.push(frame);
                    if last {
                        break;
                    }
                }
                Ok(None) => {
                    pass.more = self.stream().starved();
                    break;
                }
                Err(error) => {
                    pass.end = Some(error);
                    return pass;
                }
            }
        }
        match self.flush() {
            Ok(sent) => pass.blocked = sent == Sent::Blocked,
            Err(error) => pass.end = Some(error),
        }
        pass.more |= self.holds_input();
        pass
    }

    /// Queues a frame behind a completed [`Wire::flush`]; it is queued whatever the answer.
    pub(super) fn put(&mut self, frame: Message) -> Result<Sent, LinkError> {
        let room = ROOM + FRAME_HEAD + frame.len();
        self.0.set_config(|config| config.max_write_buffer_size = room);
        progress(self.0.write(frame))
    }

    /// Writes what is queued.
    pub(super) fn flush(&mut self) -> Result<Sent, LinkError> {
        let sent = progress(self.0.flush())?;
        if sent == Sent::All {
            self.0.set_config(|config| config.max_write_buffer_size = ROOM);
        }
        Ok(sent)
    }

    /// Queues the goodbye.
    pub(super) fn close(&mut self, code: CloseCode) -> Result<Sent, LinkError> {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static("") };
        progress(self.0.close(Some(frame)))
    }

    /// Whether a write read something that `poll(2)` will not show.
    pub(super) fn holds_input(&self) -> bool {
        self.stream().holds_input()
    }

    fn read_allowed(&mut self) -> Result<Option<Message>, LinkError> {
        loop {
            match self.0.read() {
                Ok(frame) => return Ok(Some(frame)),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(None);
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = LinkError::from_websocket(error);
                    if matches!(error, LinkError::TooLarge) {
                        // A courtesy: whether it arrives changes nothing.
                        let _ = self.close(CloseCode::Size);
                    }
                    return Err(error);
                }
            }
        }
    }
}

fn progress(result: Result<(), Error>) -> Result<Sent, LinkError> {
    match result {
        Ok(()) => Ok(Sent::All),
        Err(Error::Io(error))
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            Ok(Sent::Blocked)
        }
        Err(error) => Err(LinkError::from_websocket(error)),
    }
}

/// Why a turn was not had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// The deadline passed; the socket is over.
    TimedOut,
    /// It was over already.
    Over,
}

/// A [`Wire`] that several threads take in turns.
#[derive(Debug)]
pub(super) struct Socket {
    turns: Mutex<Turns>,
    changed: Condvar,
    tcp: TcpStream,
}

#[derive(Debug)]
struct Turns {
    /// Nobody has it while it is here.
    wire: Option<Box<Wire>>,
    next_ticket: u64,
    served: u64,
    over: bool,
}

impl Socket {
    /// Shares the wire.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn new(wire: Wire) -> io::Result<Self> {
        let tcp = wire.stream().tcp().try_clone()?;
        let turns = Turns { wire: Some(Box::new(wire)), next_ticket: 0, served: 0, over: false };
        Ok(Self { turns: Mutex::new(turns), changed: Condvar::new(), tcp })
    }

    /// Waits for a turn and does `work` in it. The work must be short: nobody sleeps with the wire.
    pub(super) fn turn<T>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&mut Wire) -> T,
    ) -> Result<T, NoTurn> {
        let mut wire = self.take(deadline)?;
        let result = work(&mut wire);
        let mut turns = self.lock();
        turns.wire = Some(wire);
        turns.served += 1;
        self.changed.notify_all();
        Ok(result)
    }

    fn take(&self, deadline: Deadline) -> Result<Box<Wire>, NoTurn> {
        let mut turns = self.lock();
        let ticket = turns.next_ticket;
        turns.next_ticket += 1;
        loop {
            if turns.over {
                return Err(NoTurn::Over);
            }
            if turns.served == ticket
                && let Some(wire) = turns.wire.take()
            {
                return Ok(wire);
            }
            let left = deadline.remaining();
            if left.is_zero() {
                turns.over = true;
                self.changed.notify_all();
                return Err(NoTurn::TimedOut);
            }
            turns =
                self.changed.wait_timeout(turns, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends it: nobody gets another turn, and whoever polls the socket wakes up.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
        // It may be down already.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// Turns asked for so far.
    #[cfg(test)]
    pub(super) fn asked(&self) -> u64 {
        self.lock().next_ticket
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}
