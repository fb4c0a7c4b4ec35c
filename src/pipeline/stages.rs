//! The threads between the driver and the finished artifact, and whose error counts when several fail.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crossbeam_channel::Receiver;

use super::buffers::{CHUNK_BYTES, ChunkWriter, Giver, NeighbourGone, Piece, pieces, pool};
use super::compress::{self, FrameWriter};
use super::report::Reporter;
use super::spool::{Sealed, Spool};
use super::{PipelineError, SpoolError, UploadError, seal};
use crate::artifact::{DataKey, HEAD_BYTES, SEALED_CAPACITY, SealError};
use crate::config::PipelineLimits;
use crate::drivers::{Context, Driver, DriverError, Dumped};
use crate::model::Compression;
use crate::thread::{Cancel, STACK, Why};

/// How the stages are set up.
pub(super) struct Plan<'a> {
    pub(super) compression: Compression,
    pub(super) key: Option<&'a DataKey>,
    pub(super) limits: &'a PipelineLimits,
    pub(super) size_hint_bytes: Option<u64>,
}

/// Why a stage ended without passing the whole stream on.
#[derive(Debug)]
pub(super) enum StageError {
    /// The stage before or behind ended; it has the reason.
    NeighbourGone,
    /// The compressor.
    Compress { compression: Compression, source: io::Error },
    /// The cipher.
    Seal(SealError),
    /// Memory, disk or size.
    Spool(SpoolError),
    /// A part did not reach the store.
    Upload(UploadError),
    /// A defect.
    Panicked(&'static str),
}

/// Runs the driver on this thread and the stages behind it on their own, until the last of them, called `name`, has
/// stored the whole artifact.
pub(super) fn run<T: Send>(
    driver: &mut dyn Driver,
    context: &Context<'_>,
    plan: &Plan<'_>,
    reporter: &Reporter<'_>,
    name: &'static str,
    last: impl FnOnce(Receiver<Piece>, Giver) -> Result<T, StageError> + Send,
) -> Result<(Dumped, T), PipelineError> {
    std::thread::scope(|scope| {
        let cancel = context.cancel;
        let head = if plan.key.is_some() { HEAD_BYTES } else { 0 };
        let (chunk_taker, chunk_giver) = pool(CHUNK_BYTES);
        let (frame_taker, frame_giver) = pool(SEALED_CAPACITY);
        let (chunks_in, chunks_out) = pieces();
        let (frames_in, frames_out) = pieces();
        let frames = FrameWriter::new(frame_taker, frames_in, head);
        let (compression, threads) = (plan.compression, plan.limits.compress_threads);
        let compress = spawn(scope, "compress", cancel, move || {
            compress::run(compression, threads, &chunks_out, &chunk_giver, frames)
        })?;
        let (sealing, sealed_out) = match plan.key {
            Some(key) => {
                let (sealed_in, sealed_out) = pieces();
                let run = move || seal::run(key, &frames_out, &sealed_in);
                (Some(spawn(scope, "seal", cancel, run)?), sealed_out)
            }
            None => (None, frames_out),
        };
        let store = spawn(scope, name, cancel, move || last(sealed_out, frame_giver))?;
        let writer = ChunkWriter::new(chunk_taker, chunks_in, reporter, plan.size_hint_bytes);
        let dumped = dump(driver, context, writer);
        if dumped.is_err() {
            cancel.cancel(Why::Sibling);
        }
        // Joined all of them before anything is judged: nobody outlives the attempt.
        let compress = join(compress, "compress");
        let sealing = sealing.map_or(Ok(()), |handle| join(handle, "seal"));
        let store = join(store, name);
        judge(dumped, [compress, sealing], store)
    })
}

/// The driver's part. The writer closes the stream behind it: with an end only if the dump is complete.
fn dump(
    driver: &mut dyn Driver,
    context: &Context<'_>,
    mut writer: ChunkWriter<'_>,
) -> Result<Dumped, DumpEnd> {
    let dumped = catch_unwind(AssertUnwindSafe(|| driver.dump(context, &mut writer)))
        .map_err(|_| DumpEnd::Panicked)?
        .map_err(DumpEnd::Driver)?;
    if context.cancel.is_cancelled() {
        return Err(DumpEnd::NeighbourGone);
    }
    let arrived = writer.bytes();
    if arrived != dumped.bytes {
        return Err(DumpEnd::Size { written: dumped.bytes, arrived });
    }
    writer.finish().map_err(|NeighbourGone| DumpEnd::NeighbourGone)?;
    Ok(dumped)
}

/// How the driver's part ended without a complete dump.
enum DumpEnd {
    Driver(DriverError),
    Size { written: u64, arrived: u64 },
    NeighbourGone,
    Panicked,
}

/// Hashes and keeps what arrives until the end.
pub(super) fn keep(
    mut spool: Spool<'_>,
    pieces: &Receiver<Piece>,
    used: &Giver,
) -> Result<Sealed, StageError> {
    loop {
        match pieces.recv() {
            Ok(Piece::Data(bytes)) => used.give(spool.keep(bytes).map_err(StageError::Spool)?),
            Ok(Piece::End) => return Ok(spool.finish()),
            Err(_) => return Err(StageError::NeighbourGone),
        }
    }
}

/// Starts a stage. One that fails stops the others, the driver first: it may wait for its tool, where
/// no closed channel is seen.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &'static str,
    cancel: &'scope Cancel,
    body: impl FnOnce() -> Result<T, StageError> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T, StageError>>, PipelineError> {
    Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn_scoped(scope, move || {
            let result =
                catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(StageError::Panicked(name)));
            if result.is_err() {
                cancel.cancel(Why::Sibling);
            }
            result
        })
        .map_err(PipelineError::System)
}

fn join<T>(
    handle: ScopedJoinHandle<'_, Result<T, StageError>>,
    name: &'static str,
) -> Result<T, StageError> {
    handle.join().unwrap_or(Err(StageError::Panicked(name)))
}

/// The artifact, or the error that came first in the way of the data: a stage that says nothing of its
/// own only followed another one.
fn judge<T>(
    dumped: Result<Dumped, DumpEnd>,
    between: [Result<(), StageError>; 2],
    store: Result<T, StageError>,
) -> Result<(Dumped, T), PipelineError> {
    let (store, kept) = match store {
        Ok(stored) => (Ok(()), Some(stored)),
        Err(error) => (Err(error), None),
    };
    for result in [store].into_iter().chain(between) {
        match result {
            Ok(()) | Err(StageError::NeighbourGone) => {}
            Err(StageError::Compress { compression, source }) => {
                return Err(PipelineError::Compress { compression, source });
            }
            Err(StageError::Seal(error)) => return Err(PipelineError::Seal(error)),
            Err(StageError::Spool(error)) => return Err(PipelineError::Spool(error)),
            Err(StageError::Upload(error)) => return Err(PipelineError::Upload(error)),
            Err(StageError::Panicked(stage)) => return Err(PipelineError::Panicked { stage }),
        }
    }
    match (dumped, kept) {
        (Ok(dumped), Some(stored)) => Ok((dumped, stored)),
        (Err(DumpEnd::Driver(error)), _) => Err(PipelineError::Driver(error)),
        (Err(DumpEnd::Size { written, arrived }), _) => {
            Err(PipelineError::DumpSize { written, arrived })
        }
        (Err(DumpEnd::Panicked), _) => Err(PipelineError::Panicked { stage: "dump" }),
        (Ok(_) | Err(DumpEnd::NeighbourGone), _) => Err(PipelineError::Broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> Result<(), StageError> {
        Err(StageError::NeighbourGone)
    }

    #[test]
    fn a_panicking_stage_cancels_and_is_an_error() {
        let cancel = Cancel::new().unwrap();
        let result = std::thread::scope(|scope| {
            let stage = spawn::<()>(scope, "stage", &cancel, || panic!("a defect"));
            join(stage.unwrap(), "stage")
        });
        assert!(matches!(result, Err(StageError::Panicked("stage"))));
        assert_eq!(cancel.why(), Some(Why::Sibling));
    }

    #[test]
    fn the_first_cause_is_reported() {
        let sink = || Err(DumpEnd::Driver(DriverError::Cancelled(Why::Sibling)));
        let full = || SpoolError::TooLarge { at_least: 1 };
        let kept: Result<Sealed, _> = Err(StageError::Spool(full()));
        let error = judge(sink(), [gone(), gone()], kept).unwrap_err();
        assert!(matches!(error, PipelineError::Spool(_)), "{error}");
        let sealing = Err(StageError::Seal(SealError::AfterShort));
        let error = judge::<Sealed>(sink(), [gone(), sealing], Err(StageError::NeighbourGone));
        assert!(matches!(error.unwrap_err(), PipelineError::Seal(_)));
        let error = judge::<Sealed>(sink(), [gone(), gone()], Err(StageError::NeighbourGone));
        assert!(matches!(error.unwrap_err(), PipelineError::Driver(_)));
        let error = judge::<Sealed>(
            Ok(Dumped::default()),
            [Ok(()), Ok(())],
            Err(StageError::NeighbourGone),
        );
        assert!(matches!(error.unwrap_err(), PipelineError::Broken));
    }
}
