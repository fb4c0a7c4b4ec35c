//! The reading side of format version 1, strict: only authentic plaintext comes out, and every way in
//! which an artifact can be wrong has its own error.

use std::fmt;
use std::io::{self, Read};

use ring::aead::{Aad, LessSafeKey, Nonce};

use super::{DataKey, FRAME_BYTES, MAX_FRAME_LENGTH, MIN_FRAME_LENGTH, NONCE_BYTES, TAG_BYTES};

/// Opens the frames of a sealed artifact. An end of file is only ever reported behind a correct end
/// marker with nothing after it; after an error every further read gives the same error.
pub struct Opener<R> {
    input: R,
    key: LessSafeKey,
    /// The frame as it was read, opened in place.
    frame: Vec<u8>,
    /// What is left to hand out, within `frame`.
    plain: std::ops::Range<usize>,
    /// Number of frames opened so far.
    frames: u64,
    /// The frame before was short, so that only the end marker may follow.
    short: bool,
    state: State,
}

enum State {
    Frames,
    Ended,
    Failed(OpenError),
}

impl<R: Read> Opener<R> {
    /// Reads from `input`, which starts with the first frame. It is read in pieces of a frame, so no
    /// buffering is needed around it.
    ///
    /// # Errors
    /// None that a [`DataKey`] can cause.
    pub fn new(input: R, key: &DataKey) -> Result<Self, OpenError> {
        let key = key.aead().ok_or(OpenError::NotAuthentic { frame: 1 })?;
        let (frame, plain) = (Vec::new(), 0..0);
        Ok(Self { input, key, frame, plain, frames: 0, short: false, state: State::Frames })
    }

    /// Why the artifact was refused, if it was. An error of `input` itself is not kept here.
    pub fn failure(&self) -> Option<OpenError> {
        match self.state {
            State::Frames | State::Ended => None,
            State::Failed(error) => Some(error),
        }
    }

    /// Reads and opens the next frame, or checks the end.
    fn advance(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let frame = self.frames + 1;
        let length = u32::from_be_bytes(length);
        if length == 0 {
            return self.end();
        }
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if !(MIN_FRAME_LENGTH..=MAX_FRAME_LENGTH).contains(&size) {
            return Err(self.fail(OpenError::FrameLength { frame, length }));
        }
        if self.short {
            return Err(self.fail(OpenError::ShortFrameInside { frame: self.frames }));
        }
        let mut buffer = std::mem::take(&mut self.frame);
        buffer.resize(size, 0);
        let filled = self.fill(&mut buffer);
        self.frame = buffer;
        filled?;
        self.open_frame(frame)
    }

    fn open_frame(&mut self, frame: u64) -> io::Result<()> {
        let (nonce, body) = self.frame.split_at_mut(NONCE_BYTES);
        let opened = Nonce::try_assume_unique_for_key(nonce)
            .and_then(|nonce| self.key.open_in_place(nonce, Aad::empty(), body).map(|_| ()));
        if opened.is_err() {
            return Err(self.fail(OpenError::NotAuthentic { frame }));
        }
        self.plain = NONCE_BYTES..self.frame.len() - TAG_BYTES;
        self.frames = frame;
        self.short = self.plain.len() < FRAME_BYTES;
        Ok(())
    }

    /// The end marker was read: nothing may follow.
    fn end(&mut self) -> io::Result<()> {
        let mut one = [0; 1];
        loop {
            match self.input.read(&mut one) {
                Ok(0) => {
                    self.state = State::Ended;
                    return Ok(());
                }
                Ok(_) => return Err(self.fail(OpenError::BytesAfterEnd)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.fail(OpenError::Truncated { frames: self.frames }),
            _ => error,
        })
    }

    fn fail(&mut self, error: OpenError) -> io::Error {
        self.state = State::Failed(error);
        error.into()
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.plain.is_empty() {
            match self.state {
                State::Frames => self.advance()?,
                State::Ended => return Ok(0),
                State::Failed(error) => return Err(error.into()),
            }
        }
        let count = out.len().min(self.plain.len());
        let from = self.plain.start;
        out[..count].copy_from_slice(&self.frame[from..from + count]);
        self.plain.start += count;
        Ok(count)
    }
}

impl<R> fmt::Debug for Opener<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("frames", &self.frames).finish_non_exhaustive()
    }
}

/// Why a sealed artifact was refused. Frames are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The input ended before the end marker, after so many whole frames.
    Truncated {
        /// Whole frames before the cut.
        frames: u64,
    },
    /// A length that no frame can have.
    FrameLength {
        /// Number of the frame.
        frame: u64,
        /// What stands there.
        length: u32,
    },
    /// A short frame that is not the last one.
    ShortFrameInside {
        /// Number of the short frame.
        frame: u64,
    },
    /// The tag does not fit: a wrong key, or changed bytes.
    NotAuthentic {
        /// Number of the frame.
        frame: u64,
    },
    /// Something follows the end marker.
    BytesAfterEnd,
}

impl OpenError {
    /// Never: the same bytes stay wrong.
    pub fn retry(&self) -> bool {
        false
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Truncated { frames } => write!(
                f,
                "the artifact is truncated: it ends after {frames} whole frames without its end \
                 marker; fetch it again"
            ),
            OpenError::FrameLength { frame: 1, length } => write!(
                f,
                "this is not an encrypted artifact: its first frame would be {length} bytes long; if \
                 it was stored without encryption, leave the key away"
            ),
            OpenError::FrameLength { frame, length } => write!(
                f,
                "the artifact is damaged: frame {frame} would be {length} bytes long, which no frame is"
            ),
            OpenError::ShortFrameInside { frame } => write!(
                f,
                "the artifact is damaged: frame {frame} is shorter than the others but not the last \
                 (frames were removed, reordered or joined)"
            ),
            OpenError::NotAuthentic { frame: 1 } => f.write_str(
                "failed to open the first frame: the key is not this artifact's, or its bytes were \
                 changed",
            ),
            OpenError::NotAuthentic { frame } => write!(
                f,
                "the artifact is damaged: frame {frame} does not open although the ones before it did"
            ),
            OpenError::BytesAfterEnd => {
                f.write_str("the artifact is damaged: bytes follow its end marker")
            }
        }
    }
}

impl std::error::Error for OpenError {}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}
