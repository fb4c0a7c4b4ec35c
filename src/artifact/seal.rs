//! The writing side of format version 1: one frame at a time, sealed in the buffer it came in.

use std::fmt;

use ring::aead::{Aad, LessSafeKey, Nonce};
use ring::rand::{SecureRandom, SystemRandom};

use super::{DataKey, FRAME_BYTES, NONCE_BYTES, TAG_BYTES};

/// Room that a buffer keeps free in front of its plaintext for the frame's length and nonce.
pub const HEAD_BYTES: usize = 4 + NONCE_BYTES;
/// What stands behind the last frame.
pub const END_MARKER: [u8; 4] = [0; 4];
/// Capacity with which sealing never reallocates.
pub(crate) const SEALED_CAPACITY: usize = HEAD_BYTES + FRAME_BYTES + TAG_BYTES;

/// Seals frames with one key. The caller writes [`END_MARKER`] behind the last one.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
    /// A short frame was sealed, so that no other may follow.
    ended: bool,
}

impl Sealer {
    /// A sealer for one artifact.
    ///
    /// # Errors
    /// None that a [`DataKey`] can cause.
    pub fn new(key: &DataKey) -> Result<Self, SealError> {
        let key = key.aead().ok_or(SealError::Crypto)?;
        Ok(Self { key, random: SystemRandom::new(), ended: false })
    }

    /// Turns `buffer` (any [`HEAD_BYTES`], then 1 byte to 1 MiB of plaintext) into a frame.
    ///
    /// # Errors
    /// When the plaintext is empty or too long, when a frame before it was short, or when the system
    /// gives no random numbers.
    pub fn seal(&mut self, buffer: &mut Vec<u8>) -> Result<(), SealError> {
        let plain = buffer.len().saturating_sub(HEAD_BYTES);
        if plain == 0 || plain > FRAME_BYTES {
            return Err(SealError::Length(plain));
        }
        if self.ended {
            return Err(SealError::AfterShort);
        }
        self.ended = plain < FRAME_BYTES;
        let mut nonce = [0; NONCE_BYTES];
        self.random.fill(&mut nonce).map_err(|_| SealError::Crypto)?;
        self.seal_with(buffer, nonce)
    }

    /// The frame itself, under a nonce that is never used twice.
    pub(super) fn seal_with(
        &self,
        buffer: &mut Vec<u8>,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<(), SealError> {
        let (head, body) = buffer.split_at_mut(HEAD_BYTES);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), body)
            .map_err(|_| SealError::Crypto)?;
        let length = u32::try_from(NONCE_BYTES + body.len() + TAG_BYTES)
            .map_err(|_| SealError::Length(body.len()))?;
        head[..4].copy_from_slice(&length.to_be_bytes());
        head[4..].copy_from_slice(&nonce);
        buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(***)")
    }
}

/// A frame that could not be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealError {
    /// The plaintext is empty or longer than a frame.
    Length(usize),
    /// Only the last frame may be short, and one was.
    AfterShort,
    /// The random generator or the cipher failed.
    Crypto,
}

impl SealError {
    /// Only a lack of random numbers can pass.
    pub fn retry(&self) -> bool {
        match self {
            SealError::Length(_) | SealError::AfterShort => false,
            SealError::Crypto => true,
        }
    }
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SealError::Length(length) => {
                write!(f, "failed to seal a frame: it has {length} bytes of plaintext")
            }
            SealError::AfterShort => {
                f.write_str("failed to seal a frame: the one before it was short, and so the last")
            }
            SealError::Crypto => {
                f.write_str("failed to seal a frame: the random generator or the cipher failed")
            }
        }
    }
}

impl std::error::Error for SealError {}

/// Seals a whole stream at once, for tests.
#[cfg(test)]
pub(crate) fn seal_all(key: &DataKey, plain: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(key).unwrap();
    let mut artifact = Vec::new();
    for chunk in plain.chunks(FRAME_BYTES) {
        let mut frame = vec![0; HEAD_BYTES];
        frame.extend_from_slice(chunk);
        sealer.seal(&mut frame).unwrap();
        artifact.extend_from_slice(&frame);
    }
    artifact.extend_from_slice(&END_MARKER);
    artifact
}
