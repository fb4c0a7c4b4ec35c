//! The stage that compresses: chunks of the dump in, frames' worth of compressed bytes out.
//!
//! zstd at its default level with a window of 2 MiB (a constant few MiB of memory, whatever the
//! dump), with its own checksum, so that `zstd -t` can check what was decrypted. With more than one thread it
//! compresses jobs of 2 MiB side by side, which costs about 5 MiB for each of them and 1 % of the ratio.

use std::io::{self, Write};

use crossbeam_channel::{Receiver, Sender};
use zstd::zstd_safe::CParameter;

use super::buffers::{Giver, Piece, Taker};
use super::stages::StageError;
use crate::artifact::FRAME_BYTES;
use crate::model::Compression;

const ZSTD_LEVEL: i32 = 3;
/// 2 MiB, what the level asks for by itself; pinned, because the memory of a run is a promise.
const ZSTD_WINDOW_LOG: u32 = 21;
/// Bytes that a thread compresses at a time.
const ZSTD_JOB_BYTES: u32 = 2 << 20;
const GZIP_LEVEL: u32 = 6;

/// About how much memory it takes.
pub(super) fn memory_bytes(compression: Compression, threads: u32) -> usize {
    let threads = usize::try_from(threads).unwrap_or(usize::MAX);
    match compression {
        Compression::Zstd => (8 << 20) + threads.saturating_mul(5 << 20),
        Compression::Gzip => 1 << 20,
        Compression::None => 0,
    }
}

/// Compresses until the end. Buffers get `head` bytes in front, for the seal.
pub(super) fn run(
    compression: Compression,
    threads: u32,
    chunks: &Receiver<Piece>,
    used: &Giver,
    frames: FrameWriter,
) -> Result<(), StageError> {
    let failed = |source| StageError::Compress { compression, source };
    let mut encoder = Encoder::new(compression, threads, frames).map_err(failed)?;
    loop {
        match chunks.recv() {
            Ok(Piece::Data(chunk)) => {
                encoder.write_all(&chunk).map_err(|error| blame(error, compression))?;
                used.give(chunk);
            }
            Ok(Piece::End) => break,
            Err(_) => return Err(StageError::NeighbourGone),
        }
    }
    encoder.finish(compression)?.finish()
}

enum Encoder {
    Zstd(Box<zstd::stream::write::Encoder<'static, FrameWriter>>),
    Gzip(Box<flate2::write::GzEncoder<FrameWriter>>),
    None(FrameWriter),
}

impl Encoder {
    fn new(compression: Compression, threads: u32, frames: FrameWriter) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(frames, ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_LOG)?;
                encoder.include_checksum(true)?;
                if threads > 1 {
                    encoder.multithread(threads)?;
                    encoder.set_parameter(CParameter::JobSize(ZSTD_JOB_BYTES))?;
                }
                Encoder::Zstd(Box::new(encoder))
            }
            Compression::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(frames, level)))
            }
            Compression::None => Encoder::None(frames),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Encoder::Zstd(encoder) => encoder.write_all(bytes),
            Encoder::Gzip(encoder) => encoder.write_all(bytes),
            Encoder::None(frames) => frames.write_all(bytes),
        }
    }

    fn finish(self, compression: Compression) -> Result<FrameWriter, StageError> {
        let result = match self {
            Encoder::Zstd(encoder) => encoder.finish(),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::None(frames) => Ok(frames),
        };
        result.map_err(|error| blame(error, compression))
    }
}

/// Tells an error of the next stage, which says why itself, from one of the compressor.
fn blame(source: io::Error, compression: Compression) -> StageError {
    match source.kind() {
        io::ErrorKind::BrokenPipe => StageError::NeighbourGone,
        _ => StageError::Compress { compression, source },
    }
}

/// Collects compressed bytes into buffers of exactly a frame, the last one excepted.
pub(super) struct FrameWriter {
    pool: Taker,
    next: Sender<Piece>,
    frame: Vec<u8>,
    head: usize,
}

impl FrameWriter {
    pub(super) fn new(pool: Taker, next: Sender<Piece>, head: usize) -> Self {
        Self { pool, next, frame: Vec::new(), head }
    }

    fn finish(mut self) -> Result<(), StageError> {
        if self.frame.len() > self.head {
            self.pass_on()?;
        }
        self.next.send(Piece::End).map_err(|_| StageError::NeighbourGone)
    }

    fn pass_on(&mut self) -> Result<(), StageError> {
        let frame = std::mem::take(&mut self.frame);
        self.next.send(Piece::Data(frame)).map_err(|_| StageError::NeighbourGone)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, StageError> {
        if self.frame.capacity() == 0 {
            self.frame = self.pool.take().map_err(|_| StageError::NeighbourGone)?;
            self.frame.resize(self.head, 0);
        }
        let full = self.head + FRAME_BYTES;
        let count = bytes.len().min(full - self.frame.len());
        self.frame.extend_from_slice(&bytes[..count]);
        if self.frame.len() == full {
            self.pass_on()?;
        }
        Ok(count)
    }
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.put(bytes).map_err(|_| {
            io::Error::new(io::ErrorKind::BrokenPipe, "the next stage of the backup ended")
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
