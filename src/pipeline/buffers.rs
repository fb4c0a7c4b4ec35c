//! Recycled buffers and the channels they travel on.
//!
//! A pool is a number of permits: the upstream stage takes a buffer, the downstream one gives it back. A
//! buffer that is kept (an artifact in memory) is replaced by an empty one, which grows when it is taken.

use std::io::{self, Write};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::report::Reporter;

/// Size of a chunk of the dump.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// Buffers per pool.
const BUFFERS: usize = 4;
/// Buffers that wait between two stages.
const DEPTH: usize = 2;

/// What travels between two stages.
pub(super) enum Piece {
    /// Bytes.
    Data(Vec<u8>),
    /// The stream is complete. Without it a closed channel means that the stage before failed.
    End,
}

/// A stage ended because its neighbour did; the neighbour has the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NeighbourGone;

/// A channel of pieces.
pub(super) fn pieces() -> (Sender<Piece>, Receiver<Piece>) {
    bounded(DEPTH)
}

/// A pool of buffers of `capacity` bytes.
pub(super) fn pool(capacity: usize) -> (Taker, Giver) {
    let (give, free) = bounded(BUFFERS);
    (Taker { free, left: BUFFERS, capacity }, Giver(give))
}

/// The upstream end of a pool.
pub(super) struct Taker {
    free: Receiver<Vec<u8>>,
    /// Permits that were never used: small dumps allocate one buffer, not all.
    left: usize,
    capacity: usize,
}

impl Taker {
    /// An empty buffer, as soon as one is free.
    pub(super) fn take(&mut self) -> Result<Vec<u8>, NeighbourGone> {
        let mut buffer = match self.free.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if self.left > 0 => {
                self.left -= 1;
                Vec::new()
            }
            Err(_) => self.free.recv().map_err(|_| NeighbourGone)?,
        };
        buffer.clear();
        buffer.reserve_exact(self.capacity);
        Ok(buffer)
    }
}

/// The downstream end of a pool.
pub(super) struct Giver(Sender<Vec<u8>>);

impl Giver {
    /// Hands a buffer (or, for one that is kept, an empty one) back.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        // There is room for every buffer; a taker that is gone needs none.
        let _ = self.0.try_send(buffer);
    }
}

/// The driver's sink: cuts what it writes into chunks and passes them on.
pub(super) struct ChunkWriter<'a> {
    pool: Taker,
    next: Sender<Piece>,
    chunk: Vec<u8>,
    bytes: u64,
    failed: bool,
    reporter: &'a Reporter<'a>,
    size_hint_bytes: Option<u64>,
}

impl<'a> ChunkWriter<'a> {
    pub(super) fn new(
        pool: Taker,
        next: Sender<Piece>,
        reporter: &'a Reporter<'a>,
        size_hint_bytes: Option<u64>,
    ) -> Self {
        let chunk = Vec::new();
        Self { pool, next, chunk, bytes: 0, failed: false, reporter, size_hint_bytes }
    }

    /// Bytes that were written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Passes the rest and the end on.
    pub(super) fn finish(mut self) -> Result<(), NeighbourGone> {
        // A driver that went on after a failed write must not turn into a complete dump.
        if self.failed {
            return Err(NeighbourGone);
        }
        if !self.chunk.is_empty() {
            self.pass_on()?;
        }
        self.next.send(Piece::End).map_err(|_| NeighbourGone)
    }

    fn pass_on(&mut self) -> Result<(), NeighbourGone> {
        let chunk = std::mem::take(&mut self.chunk);
        self.next.send(Piece::Data(chunk)).map_err(|_| NeighbourGone)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, NeighbourGone> {
        if self.chunk.capacity() == 0 {
            self.chunk = self.pool.take()?;
        }
        let count = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        self.bytes += count as u64;
        if self.chunk.len() == CHUNK_BYTES {
            self.pass_on()?;
            self.reporter.count_dump(self.bytes, self.size_hint_bytes);
        }
        Ok(count)
    }
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let result = if self.failed { Err(NeighbourGone) } else { self.put(bytes) };
        result.map_err(|NeighbourGone| {
            self.failed = true;
            io::Error::new(io::ErrorKind::BrokenPipe, "the next stage of the backup ended")
        })
    }

    /// Chunks leave when they are full: there is nobody behind who waits for less.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
