//! One attempt of a run: prepare, dump, compress, seal, upload, verify.
//!
//! ```text
//! driver.dump → 1 MiB chunks → compress → frames → seal (in place) → hash, memory or spool → one PUT
//! (caller's)    (pool of 4)    (thread)   (pool of 4) (thread)       (thread)                (caller's)
//!                                                                  → hash, parts in memory → Complete
//!                                                                    (one or two threads)    (caller's)
//! ```
//!
//! - The stages are scoped threads joined by bounded channels of recycled buffers, so that the memory of
//!   a run is a constant: two pools of 4 MiB, the in-memory part of the artifact
//!   ([`PipelineLimits::memory_bytes`]), and the compressor's window.
//! - A store wants to know the length before it takes a PUT, so the sealed stream is complete before the
//!   upload starts: small ones stay in memory, others go into an unlinked file under the state directory.
//!   With credentials for an upload in parts nothing is kept but the parts that are on their way.
//! - A stage that fails cancels its siblings; the first cause is what is reported. A stage that panics
//!   fails the run. Every stage passes an explicit end on: a channel that only closes is a broken
//!   stream, never a short one.
//! - The store's 2xx (in parts: to Complete, with a result in it) is the commit point: a cancel before it wins, after it loses.
//!
//! The pipeline knows nothing of the wire, of retries with a new dump, or of where results go.

mod buffers;
mod compress;
mod error;
mod report;
mod seal;
mod spool;
mod stages;
pub mod upload;

use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread::Builder;

use crossbeam_channel::{Receiver, at, bounded, never, select};

pub use error::PipelineError;
pub use spool::{MAX_PUT_BYTES, Sealed, SpoolError};
pub use upload::multipart::Places;
pub use upload::{UploadError, Uploader, UrlPolicy};

use crate::artifact::DataKey;
use crate::clock::Deadline;
use crate::config::{HostPolicy, PipelineLimits};
use crate::drivers::{Context, Driver, Dumped, Prepared};
use crate::model::{Compression, Progress, Step, UploadCreds};
use crate::thread::{Cancel, Never, STACK, Why};
use report::Reporter;
use upload::multipart::plan::PartPlan;

/// One attempt to make.
pub struct Order<'a> {
    /// What is dumped.
    pub driver: Box<dyn Driver + Send>,
    /// How the dump is compressed.
    pub compression: Compression,
    /// The key; `None` stores the compressed stream as it is.
    pub key: Option<DataKey>,
    /// Where the artifact goes; asked again when the upload starts, because a control plane may have sent
    /// fresh ones while the dump took its time.
    pub creds: &'a (dyn Fn() -> UploadCreds + Sync),
    /// With credentials for an upload in parts: where these go.
    pub places: Option<Places>,
    /// The way there.
    pub upload: &'a Uploader,
    /// How far the host lets a control plane reach.
    pub policy: &'a HostPolicy,
    /// Sizes and times.
    pub limits: &'a PipelineLimits,
    /// The spool and the drivers' files are in directories of their own under it.
    pub state_dir: &'a Path,
    /// The end of the run's timeout.
    pub deadline: Option<Deadline>,
    /// Asks for the stop; obeyed within 2 s.
    pub cancel: &'a Cancel,
    /// Told each step, and within a step about once a second how far it is.
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

/// An artifact that the store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The key under which the control plane knows it.
    pub object_key: String,
    /// Size of the artifact.
    pub size_bytes: u64,
    /// SHA-256 over its exact bytes.
    pub sha256: [u8; 32],
    /// The compression that was used.
    pub compression: Compression,
    /// For example `PostgreSQL 15.18`; may be empty.
    pub engine_version: String,
    /// Size of the dump before compression.
    pub dump_bytes: u64,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Makes one attempt, on this thread and scoped ones under it.
///
/// # Errors
/// Whatever stood in the way; nothing is stored then, unless the store's answer was lost.
pub fn back_up(order: Order<'_>) -> Result<Outcome, PipelineError> {
    // Of our own, so that a failing stage can stop its siblings without cancelling the run.
    let cancel = Cancel::new().map_err(PipelineError::System)?;
    let (outer, deadline) = (order.cancel, order.deadline);
    std::thread::scope(|scope| {
        let (finish, finished) = bounded(0);
        let inner = cancel.clone();
        Builder::new()
            .name("run-watch".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, move || watch(outer, deadline, &inner, &finished))
            .map_err(PipelineError::System)?;
        let result = attempt(order, &cancel);
        drop::<crossbeam_channel::Sender<Never>>(finish);
        match (result, cancel.why()) {
            (Ok(outcome), _) => Ok(outcome),
            // Whatever failed then failed because of it.
            (Err(_), Some(why @ (Why::Requested | Why::Timeout | Why::Shutdown))) => {
                Err(PipelineError::Cancelled(why))
            }
            (Err(error), Some(Why::Sibling) | None) => Err(error),
        }
    })
}

/// Removes what a killed agent left in the spool directory. Only before the first run.
pub fn sweep(state_dir: &Path) {
    spool::sweep(&spool_dir(state_dir));
}

/// Where drivers keep their files; `drivers::sweep` cleans it.
pub fn work_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("work")
}

fn spool_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("spool")
}

/// Passes the caller's cancel and the deadline on to the attempt's own token.
fn watch(outer: &Cancel, deadline: Option<Deadline>, inner: &Cancel, finished: &Receiver<Never>) {
    let timeout = deadline.map_or_else(never, |deadline| at(deadline.instant()));
    select! {
        recv(outer.done()) -> _ => inner.cancel(outer.why().unwrap_or(Why::Requested)),
        recv(timeout) -> _ => inner.cancel(Why::Timeout),
        recv(finished) -> _ => false,
    };
}

fn attempt(mut order: Order<'_>, cancel: &Cancel) -> Result<Outcome, PipelineError> {
    if let Some(why) = order.cancel.why() {
        cancel.cancel(why);
        return Err(PipelineError::Cancelled(why));
    }
    let reporter = Reporter::new(order.progress);
    reporter.enter(Step::Validating);
    let creds = (order.creds)();
    order.upload.check(&creds)?;
    let (work_dir, spool_dir) = (work_dir(order.state_dir), spool_dir(order.state_dir));
    make_dir(&work_dir)?;
    make_dir(&spool_dir)?;
    let report = |progress: Progress| reporter.report(progress);
    let context = Context {
        cancel,
        policy: order.policy,
        limits: order.limits,
        work_dir: &work_dir,
        progress: &report,
    };
    let prepared = prepare(order.driver.as_mut(), &context)?;
    let key = order.key.take();
    let bench = Setup {
        context: &context,
        reporter: &reporter,
        stages: stages::Plan {
            compression: order.compression,
            key: key.as_ref(),
            limits: order.limits,
            size_hint_bytes: prepared.size_hint_bytes,
        },
    };
    let in_peace = order.driver.hurries()
        && !creds.put_url.is_empty()
        && prepared.size_hint_bytes.is_some_and(|bytes| bytes <= MAX_PUT_BYTES);
    let made = match (order.places.clone(), &creds.multipart) {
        // Its server must not wait for the upload, so it is completed here first; as long as one PUT can take it.
        (Some(_), Some(_)) if in_peace => {
            order.upload.check_single(&creds)?;
            in_one(order, &bench, &spool_dir)?
        }
        (Some(places), Some(multipart)) => {
            in_parts(order, &bench, &places, multipart.part_size_bytes)?
        }
        _ => in_one(order, &bench, &spool_dir)?,
    };
    reporter.enter(Step::Verifying);
    Ok(outcome(prepared, made))
}

/// What both ways to the store work with.
struct Setup<'a> {
    context: &'a Context<'a>,
    reporter: &'a Reporter<'a>,
    stages: stages::Plan<'a>,
}

/// An artifact that the store has, and the dump in it.
struct Made {
    object_key: String,
    size_bytes: u64,
    sha256: [u8; 32],
    compression: Compression,
    exact_version: Option<String>,
    dumped: Dumped,
}

/// Completes the artifact here, then sends it by one PUT.
fn in_one(
    mut order: Order<'_>,
    bench: &Setup<'_>,
    spool_dir: &Path,
) -> Result<Made, PipelineError> {
    let Setup { context, reporter, stages } = bench;
    let compression = order.compression;
    spool::check_plan(spool_dir, order.limits, compression, stages.size_hint_bytes)?;
    reporter.enter(Step::Dumping);
    let spool = spool::Spool::new(order.limits, spool_dir);
    let (dumped, sealed) =
        stages::run(order.driver.as_mut(), context, stages, reporter, "spool", |pieces, used| {
            stages::keep(spool, &pieces, &used)
        })?;
    let exact_version = order.driver.dumped_version();
    // The driver's connections, passwords and snapshots are not needed any more.
    drop(order.driver);

    reporter.enter(Step::Uploading);
    let creds = (order.creds)();
    order.upload.put(&creds, &sealed, order.deadline, context.cancel, context.progress)?;
    let (object_key, size_bytes, sha256) = (creds.object_key, sealed.len(), sealed.sha256());
    Ok(Made { object_key, size_bytes, sha256, compression, exact_version, dumped })
}

/// Sends the artifact while it is made. It becomes an object only after the dump has ended well.
fn in_parts(
    mut order: Order<'_>,
    bench: &Setup<'_>,
    places: &Places,
    part_size_bytes: u64,
) -> Result<Made, PipelineError> {
    let Setup { context, reporter, stages } = bench;
    let compression = order.compression;
    let least = spool::least_size(compression, stages.size_hint_bytes.unwrap_or(0));
    let plan = PartPlan::new(part_size_bytes)
        .and_then(|plan| plan.for_dump_of(stages.size_hint_bytes))
        .and_then(|plan| plan.check_size(least).map(|()| plan))
        .map_err(UploadError::from)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let compressor = compress::memory_bytes(compression, order.limits.compress_threads);
    // Lines that share a limit wait for each other.
    let workers = if order.upload.is_limited() { 1 } else { plan.workers(cores, compressor) };
    reporter.enter(Step::Dumping);
    let sender = upload::Sender::new(order.upload, order.deadline, context.cancel);
    let (dumped, parts) =
        stages::run(order.driver.as_mut(), context, stages, reporter, "parts", |pieces, used| {
            upload::multipart::stream(&sender, places, plan, workers, pieces, used)
        })?;
    let exact_version = order.driver.dumped_version();
    drop(order.driver);

    reporter.enter(Step::Uploading);
    let creds = (order.creds)();
    let multipart = creds.multipart.ok_or(PipelineError::Broken)?;
    let stored = upload::multipart::complete(&sender, &multipart, parts)?;
    let (object_key, size_bytes, sha256) = (creds.object_key, stored.size_bytes, stored.sha256);
    Ok(Made { object_key, size_bytes, sha256, compression, exact_version, dumped })
}

fn prepare(driver: &mut dyn Driver, context: &Context<'_>) -> Result<Prepared, PipelineError> {
    catch_unwind(AssertUnwindSafe(|| driver.prepare(context)))
        .map_err(|_| PipelineError::Panicked { stage: "prepare" })?
        .map_err(PipelineError::Driver)
}

fn outcome(prepared: Prepared, made: Made) -> Outcome {
    let mut warnings = prepared.warnings;
    warnings.extend(made.dumped.warnings);
    Outcome {
        object_key: made.object_key,
        size_bytes: made.size_bytes,
        sha256: made.sha256,
        compression: made.compression,
        engine_version: made.exact_version.unwrap_or(prepared.engine_version),
        dump_bytes: made.dumped.bytes,
        warnings,
    }
}

fn make_dir(path: &Path) -> Result<(), PipelineError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| PipelineError::Spool(SpoolError::Io { dir: path.to_owned(), source }))
}

#[cfg(test)]
mod parts_store;
#[cfg(test)]
mod parts_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
