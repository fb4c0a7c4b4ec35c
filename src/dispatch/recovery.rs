//! What a start finds: runs that were interrupted, and runs that the store has lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::messages;
use super::{Dispatch, DispatchError};
use crate::clock::unix_ms;
use crate::outbox::Outbox;
use crate::runs::state::{Outcome, Phase, Resume, Run};
use crate::runs::table::Found;
use crate::secret::SecretBytes;
use crate::store::highwater::{Highwater, OpenRun};
use crate::wire::LogLevel;

/// Room for a million entries in every millisecond since 1970: ids outrun what any process handed out.
const ENTRY_IDS_PER_MS: u64 = 1 << 20;
/// A clock that is centuries ahead must not use the ids up.
const ENTRY_ID_START_MAX: u64 = u64::MAX / 2;

/// Entries that the store may have lost without a trace never share an id with new ones, because a server
/// that saw the old one would take the new one for a repeat. Before anything is published; returns the
/// newest id that the store came with.
pub(super) fn skip_entry_ids(outbox: &Outbox) -> u64 {
    let newest = outbox.last_entry_id();
    outbox.skip_to(unix_ms().saturating_mul(ENTRY_IDS_PER_MS).min(ENTRY_ID_START_MAX));
    newest
}

impl Dispatch {
    /// Settles everything that the last process left open.
    /// `newest` is the newest entry that the store came with.
    pub(super) fn recover(&mut self, newest: u64) -> Result<(), DispatchError> {
        if let Some(mark) = Highwater::load(&self.state_dir)? {
            self.settle_lost(&mark, newest)?;
        }
        self.resume_interrupted()?;
        self.restore_pauses();
        // A disk that is full is no reason not to start: the queue has to drain.
        self.highwater_or_log();
        Ok(())
    }

    /// The high-water file knows runs and entries that the store does not: the store went back in time.
    fn settle_lost(&mut self, mark: &Highwater, newest: u64) -> Result<(), DispatchError> {
        let mut known = BTreeSet::new();
        for run in &mark.open_runs {
            if self.table.find(&run.run_id)? != Found::Unknown {
                known.insert(run.run_id.as_str());
            }
        }
        let verdict = mark.compare(self.store.id(), newest, |run_id| known.contains(run_id));
        if !verdict.is_alarm() {
            return Ok(());
        }
        let lost: Vec<Run> = verdict.lost_runs.into_iter().map(lost_run).collect();
        let text = format!(
            "the store in {} {}: {} runs are lost, and perhaps queued messages; the disk may be failing",
            self.state_dir.display(),
            if verdict.foreign { "is another one than before" } else { "went back in time" },
            lost.len(),
        );
        let messages = lost.iter().flat_map(messages::result).collect();
        self.commit(lost, messages)?;
        self.tell(LogLevel::Error, "", &text);
        Ok(())
    }

    fn resume_interrupted(&mut self) -> Result<(), DispatchError> {
        let now_ms = unix_ms();
        let interrupted: Vec<Run> =
            self.table.open().filter(|run| run.phase == Phase::Running).cloned().collect();
        for run in interrupted {
            match run.resume(now_ms) {
                Resume::Again => {
                    log::info!("run {} was interrupted and is started again", run.run_id);
                    self.commit(vec![run.interrupted()], Vec::new())?;
                }
                Resume::End(outcome) => self.end_run(run, outcome, &[])?,
            }
        }
        Ok(())
    }

    /// A pause goes on after a restart, but never longer than it was: the clock may have moved.
    fn restore_pauses(&mut self) {
        let (now, now_ms) = (Instant::now(), unix_ms());
        let pauses: Vec<(String, Duration)> = self
            .table
            .open()
            .filter(|run| run.phase == Phase::Queued && run.not_before_ms > now_ms)
            .map(|run| (run.run_id.clone(), self.longest_pause(&run.job_id), run.not_before_ms))
            .map(|(run_id, longest, until)| {
                (run_id, Duration::from_millis(until - now_ms).min(longest))
            })
            .collect();
        for (run_id, pause) in pauses {
            self.pause_until(&run_id, now + pause);
        }
    }

    fn longest_pause(&self, job_id: &str) -> Duration {
        let job = self.config.jobs.iter().find(|job| job.id == job_id);
        let seconds = job.and_then(|job| job.retry.backoff_sec.iter().max()).copied().unwrap_or(0);
        Duration::from_secs(u64::from(seconds))
    }
}

/// The end of a run of which only the names are left.
fn lost_run(run: OpenRun) -> Run {
    let now_ms = unix_ms();
    let run = Run::accept(run.run_id, run.job_id, false, None, SecretBytes::default(), now_ms);
    let error = "state lost: the agent's store has forgotten this run; look at the disk of its \
                 state directory";
    run.end(Outcome::Failed { error: error.to_owned() }, now_ms)
}
