//! What is inside the frames: which compression it is, by its magic, and the stream behind it.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::model::Compression;

/// Largest zstd window that is accepted (128 MiB, zstd's own default limit), so that a malicious stream
/// cannot ask for gigabytes of memory.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// How many bytes [`detect`] needs to see.
pub(super) const MAGIC_BYTES: usize = 4;

/// What a stream starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// A compressed stream, or (for `None`) something that is not compressed.
    Stream(Compression),
    /// What a sealed artifact starts with: a plausible frame length, or the end marker.
    Sealed,
}

/// Looks at the first bytes of a stream. A sealed artifact starts with at least one zero byte, which no
/// dump and no compressed stream does.
pub fn detect(head: &[u8]) -> Detected {
    match head {
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Detected::Stream(Compression::Zstd)
        }
        [0x1f, 0x8b, ..] => Detected::Stream(Compression::Gzip),
        [0, high, ..] if *high <= 0x10 => Detected::Sealed,
        _ => Detected::Stream(Compression::None),
    }
}

/// A stream that is decompressed on the way. Several zstd frames and several gzip members in a row are
/// one stream; anything else behind them is an error.
pub(super) enum Unpacker<R: BufRead> {
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
    Gzip(Box<MultiGzDecoder<R>>),
    None(R),
}

impl<R: BufRead> Unpacker<R> {
    pub(super) fn new(input: R, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Unpacker::Zstd(Box::new(decoder))
            }
            Compression::Gzip => Unpacker::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::None => Unpacker::None(input),
        })
    }

    /// The stream behind, for reading what the decompressor left.
    pub(super) fn get_mut(&mut self) -> &mut R {
        match self {
            Unpacker::Zstd(decoder) => decoder.get_mut(),
            Unpacker::Gzip(decoder) => decoder.get_mut(),
            Unpacker::None(input) => input,
        }
    }
}

impl<R: BufRead> Read for Unpacker<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Unpacker::Zstd(decoder) => decoder.read(out),
            Unpacker::Gzip(decoder) => decoder.read(out),
            Unpacker::None(input) => input.read(out),
        }
    }
}

/// A reader that has been looked into: the first bytes, and a stream that still starts with them.
pub(super) type Peeked<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

/// Reads the first [`MAGIC_BYTES`] (or fewer, at the end) and gives a stream that starts with them again.
pub(super) fn peek<R: Read>(mut input: R) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut head = Vec::with_capacity(MAGIC_BYTES);
    input.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut head)?;
    let stream = io::Cursor::new(head.clone()).chain(input);
    Ok((head, BufReader::with_capacity(64 << 10, stream)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_numbers() {
        use Compression::{Gzip, None, Zstd};
        let zstd = zstd::encode_all(&b"x"[..], 3).unwrap();
        let cases: [(&[u8], Detected); 9] = [
            (&zstd, Detected::Stream(Zstd)),
            (&[0x50, 0x2a, 0x4d, 0x18, 0, 0], Detected::Stream(Zstd)),
            (&[0x1f, 0x8b, 8, 0], Detected::Stream(Gzip)),
            (b"PGDMP", Detected::Stream(None)),
            (b"SQLite format 3\0", Detected::Stream(None)),
            (b"", Detected::Stream(None)),
            (&[0, 0, 0, 0], Detected::Sealed),
            (&[0, 0x10, 0, 0x1c], Detected::Sealed),
            (&[0, 0x11, 0, 0], Detected::Stream(None)),
        ];
        for (head, expected) in cases {
            assert_eq!(detect(head), expected, "{head:?}");
        }
    }
}
