//! The body of an answer as it comes, by length, in chunks or to the end of the connection: for lists of any length and
//! for streams that never end. Nothing is kept that was handed on.

use std::io;

use super::http::{Framing, Line};
use super::{Bounds, DockerError};

/// A body under way.
pub(super) struct Body<'a> {
    line: Line<'a>,
    left: Left,
}

/// What is to come.
enum Left {
    /// So many bytes, and then nothing.
    Bytes(usize),
    /// So many bytes of this chunk.
    Chunk(usize),
    /// A chunk's size.
    Size,
    /// Everything until the connection ends.
    ToEnd,
    Nothing,
}

impl<'a> Body<'a> {
    pub(super) fn new(line: Line<'a>, framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(length) => Left::Bytes(length),
            Framing::Chunks => Left::Size,
            Framing::ToEnd => Left::ToEnd,
        };
        Self { line, left }
    }

    /// From here on these bounds count.
    pub(super) fn within(&mut self, bounds: Bounds<'a>) {
        self.line.bounds = bounds;
    }

    /// Hands the next piece to `take`; `None` at the end. What is there is taken even if the deadline has passed.
    pub(super) fn piece<T>(
        &mut self,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, DockerError> {
        loop {
            let most = match self.left {
                Left::Nothing | Left::Bytes(0) => return Ok(None),
                Left::Chunk(0) => {
                    self.line.end_of_chunk()?;
                    self.left = Left::Size;
                    continue;
                }
                Left::Size => {
                    // Trailers say nothing that we want, and the connection is not used again.
                    self.left = match self.line.chunk_size()? {
                        0 => Left::Nothing,
                        size => Left::Chunk(size),
                    };
                    continue;
                }
                Left::Bytes(most) | Left::Chunk(most) => most,
                Left::ToEnd => usize::MAX,
            };
            self.line.check_cancel()?;
            if self.line.ahead.is_empty() && !self.line.more()? {
                if matches!(self.left, Left::ToEnd) {
                    self.left = Left::Nothing;
                    return Ok(None);
                }
                return Err(self.line.broken(io::ErrorKind::UnexpectedEof.into()));
            }
            let length = self.line.ahead.len().min(most);
            let taken = take(self.line.ahead.get(..length).unwrap_or_default());
            self.line.ahead.drain(..length);
            match &mut self.left {
                Left::Bytes(left) | Left::Chunk(left) => *left -= length,
                Left::Size | Left::ToEnd | Left::Nothing => {}
            }
            return Ok(Some(taken));
        }
    }

    pub(super) fn odd(&self, problem: &'static str) -> DockerError {
        self.line.odd(problem)
    }
}
