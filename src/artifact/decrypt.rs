//! From an artifact back to the dump: open, decompress, and compare the hash, in one pass and with
//! constant memory.
//!
//! The output is written as it comes, so that only the caller can make sure that nobody uses it before
//! [`decrypt`] returned `Ok`: whoever writes a file writes it aside and renames it afterwards.

use std::fmt;
use std::io::{self, Read, Write};

use ring::digest::{Context, SHA256};

use super::unpack::{Detected, Unpacker, detect, peek};
use super::{DataKey, OpenError, Opener};
use crate::model::Compression;

const COPY_BYTES: usize = 64 << 10;

/// What to do with the stream inside.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Leave the stream compressed.
    pub skip_decompress: bool,
    /// SHA-256 that the artifact's exact bytes must have.
    pub expected_sha256: Option<[u8; 32]>,
}

/// What was read and written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decrypted {
    /// Size of the artifact.
    pub bytes_in: u64,
    /// SHA-256 over the artifact.
    pub sha256: [u8; 32],
    /// Size of what was written.
    pub bytes_out: u64,
    /// The compression that was found (also where it was left in place).
    pub compression: Compression,
}

/// Reads an artifact from `input` to its end and writes the dump to `output`. Without a key the artifact
/// must be one that was stored without encryption.
///
/// # Errors
/// When anything about the artifact is wrong; what was written until then must not be used.
pub fn decrypt(
    input: impl Read,
    key: Option<&DataKey>,
    output: &mut dyn Write,
    options: Options,
) -> Result<Decrypted, DecryptError> {
    let mut artifact = Hashing { input, context: Context::new(&SHA256), bytes: 0, broken: false };
    let result = match key {
        Some(key) => {
            let mut opener = Opener::new(&mut artifact, key).map_err(DecryptError::Open)?;
            let result = unpack(&mut opener, output, options, true);
            match opener.failure() {
                Some(error) => Err(DecryptError::Open(error)),
                None => result,
            }
        }
        None => unpack(&mut artifact, output, options, false),
    };
    // What went wrong below a decompressor comes out of it as if it were its own.
    let (bytes_out, compression) = result.map_err(|error| match error {
        DecryptError::Decompress { error, .. } if artifact.broken => DecryptError::Input(error),
        other => other,
    })?;
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(artifact.context.finish().as_ref());
    if let Some(expected) = options.expected_sha256
        && expected != sha256
    {
        return Err(DecryptError::Sha256 { expected, found: sha256 });
    }
    Ok(Decrypted { bytes_in: artifact.bytes, sha256, bytes_out, compression })
}

fn unpack(
    source: &mut dyn Read,
    output: &mut dyn Write,
    options: Options,
    opened: bool,
) -> Result<(u64, Compression), DecryptError> {
    let (head, stream) = peek(source).map_err(DecryptError::Input)?;
    let compression = match detect(&head) {
        Detected::Stream(compression) => compression,
        // Behind the seal a leading zero byte is only data.
        Detected::Sealed if opened => Compression::None,
        Detected::Sealed => return Err(DecryptError::KeyNeeded),
    };
    let way = if options.skip_decompress { Compression::None } else { compression };
    let unpacking = |error| DecryptError::Decompress { compression: way, error };
    let mut unpacker = Unpacker::new(stream, way).map_err(unpacking)?;
    let bytes_out = copy(&mut unpacker, output, way)?;
    output.flush().map_err(DecryptError::Output)?;
    // Only at the end of the artifact is it known to be whole.
    let mut rest = [0; 1];
    match unpacker.get_mut().read(&mut rest) {
        Ok(0) => Ok((bytes_out, compression)),
        Ok(_) => Err(unpacking(io::Error::other("bytes follow the compressed stream"))),
        Err(error) => Err(DecryptError::Input(error)),
    }
}

fn copy(
    from: &mut dyn Read,
    to: &mut dyn Write,
    compression: Compression,
) -> Result<u64, DecryptError> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut total = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if compression == Compression::None => {
                return Err(DecryptError::Input(error));
            }
            Err(error) => return Err(DecryptError::Decompress { compression, error }),
        };
        to.write_all(&buffer[..count]).map_err(DecryptError::Output)?;
        total += count as u64;
    }
}

/// Hashes and counts what is read through it.
struct Hashing<R> {
    input: R,
    context: Context,
    bytes: u64,
    /// The input itself failed.
    broken: bool,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(out).inspect_err(|error| {
            self.broken |= error.kind() != io::ErrorKind::Interrupted;
        })?;
        self.context.update(&out[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Why an artifact did not become a dump.
#[derive(Debug)]
pub enum DecryptError {
    /// The artifact could not be read.
    Input(io::Error),
    /// The dump could not be written.
    Output(io::Error),
    /// It is encrypted and no key was given.
    KeyNeeded,
    /// The frames are wrong.
    Open(OpenError),
    /// The stream inside is wrong.
    Decompress {
        /// What it was taken for.
        compression: Compression,
        /// The decompressor's error.
        error: io::Error,
    },
    /// The artifact is not the one that was uploaded.
    Sha256 {
        /// What it should be.
        expected: [u8; 32],
        /// What it is.
        found: [u8; 32],
    },
}

impl DecryptError {
    /// Only reading and writing can go better the next time.
    pub fn retry(&self) -> bool {
        match self {
            DecryptError::Input(_) | DecryptError::Output(_) => true,
            DecryptError::KeyNeeded
            | DecryptError::Open(_)
            | DecryptError::Decompress { .. }
            | DecryptError::Sha256 { .. } => false,
        }
    }
}

impl fmt::Display for DecryptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecryptError::Input(error) => write!(f, "failed to read the artifact: {error}"),
            DecryptError::Output(error) => write!(f, "failed to write the output: {error}"),
            DecryptError::KeyNeeded => {
                f.write_str("the artifact is encrypted: a token or a key file is needed")
            }
            DecryptError::Open(error) => error.fmt(f),
            DecryptError::Decompress { compression, error } => write!(
                f,
                "failed to decompress the {} stream inside the artifact: {error}",
                compression.as_str()
            ),
            DecryptError::Sha256 { expected, found } => write!(
                f,
                "the artifact is not the one that was uploaded: its SHA-256 is {}, but it should be {}",
                crate::hex::hex(found),
                crate::hex::hex(expected)
            ),
        }
    }
}

impl std::error::Error for DecryptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DecryptError::Input(error)
            | DecryptError::Output(error)
            | DecryptError::Decompress { error, .. } => Some(error),
            DecryptError::Open(error) => Some(error),
            DecryptError::KeyNeeded | DecryptError::Sha256 { .. } => None,
        }
    }
}
