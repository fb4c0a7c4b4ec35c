//! What people are told of runs, and what is remembered of it until a good run comes.
//!
//! The memory ([`Alarm`](crate::control::catalogue::Alarm)) is in the books, so that the first good run after a restart
//! is a recovery too. A cancelled run is neither good nor bad: somebody wanted it so.
//!
//! That a run's end is still to be told is noted together with it, and taken back once the messages wait on the disk: a
//! process that ends in between tells it twice, never not at all.

use std::time::Duration;

use super::{BooksError, Plane};
use crate::control::catalogue::{Run, State};
use crate::control::notify::{Failure, Kind, shrink};

impl Plane {
    /// Something is wrong with a backup.
    pub(super) fn alarm(&self, what: Failure, now_ms: u64) {
        if let Err(error) = self.0.books.catalogue().raise_alarm(&what.name, now_ms) {
            log::warn!("failed to note that {} has to recover: {error}", what.name);
        }
        self.notifier().tell(what);
    }

    /// People were told that this control plane cannot start, and now it did.
    pub fn works_again(&self) {
        self.say("backupy", "", "up", String::new());
    }

    /// The agent works on a run; said once.
    pub(super) fn working(&self, run_id: &str) {
        let backup = self.board().first_work(run_id);
        if let Some(backup) = backup {
            self.say(&backup, run_id, "started", String::new());
        }
    }

    /// Tells of the ends that the last process did not come to tell of.
    pub(super) fn catch_up(&self, now_ms: u64) -> Result<(), BooksError> {
        for run_id in self.0.books.catalogue().owed()? {
            self.ended(&run_id, now_ms);
        }
        Ok(())
    }

    /// A run has ended, in the books: everybody is told.
    pub(super) fn ended(&self, run_id: &str, now_ms: u64) {
        let catalogue = self.0.books.catalogue();
        match catalogue.get(run_id) {
            Ok(Some(run)) => self.tell_end(&run, now_ms),
            Ok(None) => {}
            Err(error) => return log::error!("failed to tell how run {run_id} ended: {error}"),
        }
        if let Err(error) = catalogue.settle_owed(run_id) {
            log::warn!("failed to note that the end of run {run_id} was told: {error}");
        }
    }

    fn tell_end(&self, run: &Run, now_ms: u64) {
        let (run_id, backup) = (&run.run_id, &run.backup);
        match run.state {
            State::Open => {}
            // Somebody wanted it so: that is no failure to be woken up for.
            State::Cancelled => {
                log::warn!("run {run_id} of {backup} was cancelled: {}", run.error);
            }
            State::Failed => {
                log::error!("run {run_id} of {backup} failed: {}", run.error);
                let what = Failure {
                    name: backup.clone(),
                    run_id: run_id.clone(),
                    status: "failed".into(),
                    error: run.error.clone(),
                };
                self.alarm(what, now_ms);
            }
            State::Completed => {
                let size = run.object.as_ref().map_or(0, |object| object.size_bytes);
                self.stored(run, size, now_ms);
            }
        }
    }

    /// A run is stored: the pings hear of it, and people of what is remarkable about it.
    fn stored(&self, run: &Run, size: u64, now_ms: u64) {
        let (run_id, backup) = (run.run_id.as_str(), run.backup.as_str());
        let passed = Duration::from_millis(now_ms.saturating_sub(run.finished_ms));
        if Kind::Succeeded.tries_for().is_none_or(|most| passed < most) {
            self.say(backup, run_id, "succeeded", format!("{size} bytes are stored"));
        }
        match self.0.books.catalogue().alarm(backup) {
            Ok(None) => {}
            Ok(Some(alarm)) => {
                let minutes = now_ms.saturating_sub(alarm.since_ms) / 60_000;
                let text =
                    format!("the first good run since {minutes} min; {size} bytes are stored");
                self.say(backup, run_id, "recovered", text);
                if let Err(error) = self.0.books.catalogue().clear_alarm(backup) {
                    log::warn!("failed to note that {backup} recovered: {error}");
                }
            }
            Err(error) => log::warn!("failed to look up whether {backup} recovered: {error}"),
        }
        let percent = self.settings().backup(backup).and_then(|backup| backup.shrink_alarm);
        let Some(percent) = percent else { return };
        match self.0.books.sizes_before(backup, run_id, shrink::MOST) {
            Ok(before) => {
                if let Some(median) = shrink::shrunk(size, &before, percent) {
                    let text = format!(
                        "it has {size} bytes, less than {percent}% of what the good runs before it had \
                         ({median}, the median of {}); is all of the data still there?",
                        before.len()
                    );
                    log::warn!("run {run_id} of {backup} is far smaller than before: {text}");
                    self.say(backup, run_id, "shrunk", text);
                }
            }
            Err(error) => log::warn!("failed to compare {backup} with its predecessors: {error}"),
        }
    }

    fn say(&self, backup: &str, run_id: &str, status: &str, error: String) {
        let (name, run_id, status) = (backup.to_owned(), run_id.to_owned(), status.to_owned());
        self.notifier().tell(Failure { name, run_id, status, error });
    }
}
