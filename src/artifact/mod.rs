//! The artifact, format version 1: what a run uploads, and the way back to the dump.
//!
//! `dump → compress → seal`. A sealed artifact is a sequence of frames, integers big-endian:
//!
//! ```text
//! frame := u32 length of what follows · 12-byte random nonce · AES-256-GCM ciphertext · 16-byte tag
//! end   := u32 0
//! ```
//!
//! - A frame seals up to 1 MiB of the compressed stream, without associated data; only the last one may
//!   be shorter. An empty stream is the end marker alone.
//! - A stream without its end marker is truncated and refused, and so are bytes behind it, a frame whose
//!   length is impossible, and a short frame with another one behind it.
//! - The frames do not know their place, so that reordered ones of full length open. The SHA-256 over
//!   the whole artifact, which the control plane and the token hold, is what notices that.
//!
//! [`Sealer`] and [`Opener`] are the two directions, [`decrypt`] is everything between an artifact and
//! the dump that was read. Nothing in here touches the network or knows of runs.

mod decrypt;
mod key;
mod open;
mod seal;
mod token;
mod unpack;

pub use decrypt::{DecryptError, Decrypted, Options, decrypt};
pub use key::{DataKey, KeyFileError, KeyLengthError};
pub use open::{OpenError, Opener};
pub(crate) use seal::SEALED_CAPACITY;
pub use seal::{END_MARKER, HEAD_BYTES, SealError, Sealer};
pub use token::{Token, TokenError};
pub use unpack::{Detected, MAX_ZSTD_WINDOW_LOG, detect};

/// Most plaintext that one frame seals; every frame but the last has exactly so much.
pub const FRAME_BYTES: usize = 1 << 20;
/// Length of a frame's nonce.
const NONCE_BYTES: usize = 12;
/// Length of a frame's tag.
const TAG_BYTES: usize = 16;
/// Smallest possible value of a frame's length field.
const MIN_FRAME_LENGTH: usize = NONCE_BYTES + TAG_BYTES;
/// Largest possible value of a frame's length field.
const MAX_FRAME_LENGTH: usize = NONCE_BYTES + FRAME_BYTES + TAG_BYTES;

#[cfg(test)]
mod tests;
