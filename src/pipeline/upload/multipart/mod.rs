//! An artifact of unknown size, streamed to the store in equal parts: nothing is spooled.
//!
//! ```text
//! pieces → cutter (one at a time: fill a buffer, hash) → worker: wait for the URL → PUT, again with the same bytes
//!                                                        worker: …                                  → ETags
//! ```
//! - Each worker owns one buffer of a part's size, so that memory is one part per worker. While one fills its part, the
//!   other sends; where the compressor takes much memory there is one only.
//! - The parts become an object only by Complete, which is called after the dump's exit status and end mark.
//! - A new attempt uses the same upload as long as its URLs are good: a part that comes again takes the place of the
//!   one before, and Complete names only what the last attempt sent. So a failed attempt gives nothing up by itself;
//!   whoever ends the run calls [`Uploader::abort`](super::Uploader::abort).

mod complete;
mod cutter;
mod places;
pub mod plan;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use crossbeam_channel::Receiver;

pub(in crate::pipeline::upload) use complete::ends_of_one_upload;
pub(in crate::pipeline) use complete::{abort, complete};
pub use places::{Ask, Places};

use super::send::{Answer, Method, Sender};
use super::url::Destination;
use super::{Fault, UploadError};
use crate::pipeline::buffers::{Giver, Piece};
use crate::pipeline::stages::StageError;
use crate::thread::{STACK, Why};
use cutter::{Cutter, Part};
use plan::PartPlan;

/// Longest ETag that is kept: ten thousand of them are.
const MAX_ETAG: usize = 128;

/// Parts that the store has and that make a whole stream.
#[derive(Debug)]
pub(in crate::pipeline) struct Completable {
    /// Of part 1 and those behind it.
    etags: Vec<String>,
    size_bytes: u64,
    sha256: [u8; 32],
}

/// An object that the store has.
#[derive(Debug)]
pub(in crate::pipeline) struct Stored {
    pub(in crate::pipeline) size_bytes: u64,
    pub(in crate::pipeline) sha256: [u8; 32],
}

/// Sends the stream until its end.
pub(in crate::pipeline) fn stream(
    sender: &Sender<'_>,
    places: &Places,
    plan: PartPlan,
    workers: usize,
    pieces: Receiver<Piece>,
    used: Giver,
) -> Result<Completable, StageError> {
    let crew = Crew {
        sender,
        places,
        cutter: Mutex::new(Cutter::new(plan, pieces, used)),
        etags: Mutex::default(),
        failed: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let mut helpers = Vec::new();
        for number in 1..workers {
            let builder = Builder::new().name(format!("part-{number}")).stack_size(STACK);
            match builder.spawn_scoped(scope, || crew.work()) {
                Ok(helper) => helpers.push(helper),
                // One worker does as well.
                Err(error) => log::warn!("failed to start a thread for parts: {error}"),
            }
        }
        crew.work();
        for helper in helpers {
            if helper.join().is_err() {
                crew.fail(StageError::Panicked("part"));
            }
        }
    });
    crew.finish()
}

/// The workers and what they share.
struct Crew<'a> {
    sender: &'a Sender<'a>,
    places: &'a Places,
    cutter: Mutex<Cutter>,
    etags: Mutex<BTreeMap<u32, String>>,
    /// The first failure, which the others only follow.
    failed: Mutex<Option<StageError>>,
}

impl Crew<'_> {
    fn work(&self) {
        if let Err(error) = self.send_parts() {
            self.fail(error);
        }
    }

    fn fail(&self, error: StageError) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*failed, None | Some(StageError::NeighbourGone)) {
            *failed = Some(error);
        }
        drop(failed);
        self.sender.cancel().cancel(Why::Sibling);
    }

    fn send_parts(&self) -> Result<(), StageError> {
        let mut buffer = Vec::new();
        loop {
            let next = self.cutter.lock().unwrap_or_else(PoisonError::into_inner).next(buffer)?;
            let Some(part) = next else { return Ok(()) };
            let etag = self.send(&part).map_err(|error| match error.fault {
                // Whoever cancelled has the reason.
                Fault::Cancelled(_) => StageError::NeighbourGone,
                _ => StageError::Upload(error),
            })?;
            self.etags.lock().unwrap_or_else(PoisonError::into_inner).insert(part.number, etag);
            buffer = part.content.into_buffer();
        }
    }

    /// Sends one part; a URL that has expired is replaced once.
    fn send(&self, part: &Part) -> Result<String, UploadError> {
        let error = match self.send_once(part) {
            Err(error) if matches!(error.fault, Fault::Expired) => error,
            result => return result,
        };
        log::warn!("asking for other URLs for part {} and those behind it: {error}", part.number);
        self.send_once(part)
    }

    fn send_once(&self, part: &Part) -> Result<String, UploadError> {
        let failed = |fault| UploadError::new("", 0, fault);
        let timing = self.sender.uploader().timing;
        let place = self
            .places
            .wait(part.number, timing.part_urls, timing.part_urls_again, self.sender.cancel())
            .map_err(failed)?;
        let destination =
            Destination::parse(&place.url, self.sender.uploader().policy).map_err(failed)?;
        let max = timing.tries.max_part;
        let result = self.sender.repeat(&destination.shown, place.expires_at_ms, max, || {
            self.sender.once(Method::Put, &destination, &part.content, &|_| (), &etag)
        });
        if let Err(UploadError { fault: Fault::Expired, .. }) = &result {
            self.places.expired(&place);
        }
        result
    }

    fn finish(self) -> Result<Completable, StageError> {
        if let Some(error) = self.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let etags = self.etags.into_inner().unwrap_or_else(PoisonError::into_inner);
        let cutter = self.cutter.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (size_bytes, sha256) = cutter.finish();
        Ok(Completable { etags: etags.into_values().collect(), size_bytes, sha256 })
    }
}

/// The store's name for a part.
fn etag(answer: &mut Answer) -> Result<String, Fault> {
    let header = answer.headers().get("etag").and_then(|value| value.to_str().ok());
    match header.map(str::trim) {
        Some(etag) if !etag.is_empty() && etag.len() <= MAX_ETAG => Ok(etag.to_owned()),
        Some(_) => Err(Fault::Protocol("its ETag is none")),
        None => Err(Fault::Protocol("it has no ETag, which every part has")),
    }
}
