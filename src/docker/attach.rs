//! A connection that the daemon gave up to a command: its output in frames, its input as it is.
//!
//! Nothing is read ahead of whoever takes the output, so a slow reader slows the command down by way of the
//! socket, and loses nothing.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::frames::{Frames, Stream};
use super::http::{judge, later};
use super::{Bounds, DockerError};
use crate::net::{wait_readable, wait_writable};

/// Read at once.
const CHUNK_BYTES: usize = 64 << 10;
const READING: &str = "reading the command's output";
const WRITING: &str = "writing the command's input";

/// A piece of what the command wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output<'a> {
    /// On stdout.
    Stdout(&'a [u8]),
    /// On stderr.
    Stderr(&'a [u8]),
}

/// The connection. Dropping it closes it, which the command sees as the end of its input.
pub struct Attached {
    stream: UnixStream,
    frames: Frames,
    buffer: Vec<u8>,
    /// What of the buffer has been read and not handed on.
    filled: std::ops::Range<usize>,
}

impl Attached {
    /// `ahead` is what came along with the head.
    pub(super) fn new(stream: UnixStream, ahead: Vec<u8>) -> Self {
        let filled = 0..ahead.len();
        let mut buffer = ahead;
        buffer.resize(CHUNK_BYTES.max(buffer.len()), 0);
        Self { stream, frames: Frames::default(), buffer, filled }
    }

    /// The next piece of output; `None` at the end.
    ///
    /// # Errors
    /// When nothing comes until the deadline, the connection breaks or ends within a frame, or it is not
    /// framed as Docker frames.
    pub fn next(&mut self, bounds: Bounds<'_>) -> Result<Option<Output<'_>>, DockerError> {
        // In two steps because of the borrow: first where the piece is, then the piece.
        let (stream, range) = loop {
            let start = self.filled.start;
            let mut input = self.buffer.get(self.filled.clone()).unwrap_or_default();
            let whole = input.len();
            let piece = self
                .frames
                .next(&mut input)
                .map_err(|problem| DockerError::Answer { doing: READING, problem })?;
            let used = whole - input.len();
            self.filled.start = start + used;
            if let Some((stream, piece)) = piece {
                let end = start + used;
                break (stream, end - piece.len()..end);
            }
            if !self.fill(bounds)? {
                return Ok(None);
            }
        };
        let piece = self.buffer.get(range).unwrap_or_default();
        Ok(Some(match stream {
            Stream::Stdout => Output::Stdout(piece),
            Stream::Stderr => Output::Stderr(piece),
        }))
    }

    /// Fills the empty buffer; false at the end of the stream.
    fn fill(&mut self, bounds: Bounds<'_>) -> Result<bool, DockerError> {
        let broken = |source| DockerError::Broken { doing: READING, source };
        loop {
            // Also before data that is there already: a cancel must not wait for the end of a fast stream.
            if let Some(why) = bounds.cancel.and_then(crate::thread::Cancel::why) {
                return Err(DockerError::Cancelled(why));
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) if self.frames.between() => return Ok(false),
                Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => {
                    self.filled = 0..length;
                    return Ok(true);
                }
                Err(error) if later(&error) => {}
                Err(source) => return Err(broken(source)),
            }
            let waited = wait_readable(&self.stream, bounds.deadline, bounds.cancel);
            judge(waited.map_err(broken)?, bounds, READING)?;
        }
    }

    /// Writes to the command's stdin.
    ///
    /// # Errors
    /// When it is not taken until the deadline, or the connection breaks.
    pub fn write(&mut self, mut bytes: &[u8], bounds: Bounds<'_>) -> Result<(), DockerError> {
        let broken = |source| DockerError::Broken { doing: WRITING, source };
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if later(&error) => {
                    let waited = wait_writable(&self.stream, bounds.deadline, bounds.cancel);
                    judge(waited.map_err(broken)?, bounds, WRITING)?;
                }
                Err(source) => return Err(broken(source)),
            }
        }
        Ok(())
    }

    /// Ends the command's stdin; its output goes on.
    ///
    /// # Errors
    /// When the connection is broken already.
    pub fn close_stdin(&mut self) -> Result<(), DockerError> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(|source| DockerError::Broken { doing: WRITING, source })
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}
