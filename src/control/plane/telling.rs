//! What people are told of runs, and what is remembered of it until a good run comes.
//!
//! The memory ([`Alarm`](crate::control::catalogue::Alarm)) is in the books, so that the first good run after a restart
//! is a recovery too. A cancelled run is neither good nor bad: somebody wanted it so.

use super::Plane;
use crate::control::notify::{Failure, shrink};
use crate::wire::BackupCompleted;

impl Plane {
    /// Something is wrong with a backup.
    pub(super) fn alarm(&self, what: Failure, now_ms: u64) {
        if let Err(error) = self.0.books.catalogue().raise_alarm(&what.name, now_ms) {
            log::warn!("failed to note that {} has to recover: {error}", what.name);
        }
        self.notifier().tell(what);
    }

    /// The agent works on a run; said once.
    pub(super) fn working(&self, run_id: &str) {
        let backup = self.board().first_work(run_id);
        if let Some(backup) = backup {
            self.say(&backup, run_id, "started", String::new());
        }
    }

    /// A run is stored: the pings hear of it, and people of what is remarkable about it.
    pub(super) fn stored(&self, backup: &str, report: &BackupCompleted, now_ms: u64) {
        let (run_id, size) = (report.run_id.as_str(), report.size_bytes);
        self.say(backup, run_id, "succeeded", format!("{size} bytes are stored"));
        match self.0.books.catalogue().clear_alarm(backup) {
            Ok(None) => {}
            Ok(Some(alarm)) => {
                let minutes = now_ms.saturating_sub(alarm.since_ms) / 60_000;
                let text =
                    format!("the first good run since {minutes} min; {size} bytes are stored");
                self.say(backup, run_id, "recovered", text);
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
