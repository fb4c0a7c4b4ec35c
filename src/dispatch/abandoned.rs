//! Multipart uploads that nobody will complete: the parts in the store cost money until somebody gives them up.
//!
//! A run that ends without an artifact gives up its upload, after its end is durable and on a thread of its own, so that
//! neither the result nor dispatch waits for the store. An attempt that has another one behind it gives nothing up: the
//! next one uses the same upload, also after a restart. What is not done here (a crash just then, a store that does
//! not answer, too many at once) the control plane cleans up, as it does for agents that never come back.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::Dispatch;
use crate::clock::Deadline;
use crate::model::{Multipart, UploadCreds};
use crate::runs::state::{EndKind, Run};
use crate::thread::{self, Cancel, Never, Why};

/// Uploads that are given up at the same time.
const MAX_AT_ONCE: usize = 8;
/// How long they hold up the end of the process.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// The threads that give up uploads.
#[derive(Default)]
pub(super) struct Abandoned(Vec<GivingUp>);

struct GivingUp {
    cancel: Cancel,
    /// Disconnects with the thread.
    done: Receiver<Never>,
    thread: JoinHandle<()>,
}

impl Dispatch {
    /// The upload that has no use once this new state of its run is stored.
    pub(super) fn upload_to_give_up(&self, run: &Run) -> Option<UploadCreds> {
        let ended = run.ended()?;
        if ended.outcome.kind() == EndKind::Completed {
            return None;
        }
        self.table.get_open(&run.run_id)?.creds.clone()
    }

    /// Gives up the upload that these credentials are for, if they are for one.
    pub(super) fn give_up(&mut self, run_id: &str, creds: Option<UploadCreds>) {
        let Some(multipart) = creds.and_then(|creds| creds.multipart) else { return };
        self.abandoned.join_finished();
        if self.abandoned.0.len() >= MAX_AT_ONCE {
            log::info!("left the upload of run {run_id} to the control plane's clean-up");
            return;
        }
        match self.spawn_give_up(run_id.to_owned(), multipart) {
            Ok(started) => self.abandoned.0.push(started),
            Err(error) => log::warn!("failed to give up the upload of run {run_id}: {error}"),
        }
    }

    fn spawn_give_up(&self, run_id: String, multipart: Multipart) -> std::io::Result<GivingUp> {
        let cancel = Cancel::new()?;
        let (here, done) = bounded::<Never>(0);
        let (token, workshop) = (cancel.clone(), self.workshop.clone());
        let thread = thread::spawn("give-up", move || {
            let _here = here;
            match workshop.uploader.abort(&multipart, &token) {
                Ok(()) => log::info!("gave up the upload of run {run_id}"),
                Err(error) => log::info!(
                    "did not give up the upload of run {run_id}, the control plane cleans it up: {error}"
                ),
            }
        })?;
        Ok(GivingUp { cancel, done, thread })
    }
}

impl Abandoned {
    fn join_finished(&mut self) {
        for one in self.0.extract_if(.., |one| one.thread.is_finished()) {
            join(one.thread);
        }
    }

    /// Gives the last ones a moment, then stops them.
    pub(super) fn leave(&mut self) {
        let until = Deadline::after(LEAVE_PATIENCE);
        for one in self.0.drain(..) {
            let _ = one.done.recv_timeout(until.remaining());
            one.cancel.cancel(Why::Shutdown);
            join(one.thread);
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        log::error!("a thread that gave up an upload panicked");
    }
}
