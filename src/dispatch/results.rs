//! What becomes of an attempt's report: the end of the run, another attempt, or a second try to store it.

use std::time::Instant;

use super::messages;
use super::retry::next_attempt;
use super::{Dispatch, DispatchError, STORE_RETRY};
use crate::clock::unix_ms;
use crate::model::RetryPolicy;
use crate::observe::tap::TOLD;
use crate::runs::state::{Outcome, Run};
use crate::runs::worker::{AttemptOutcome, Report};
use crate::thread::Why;
use crate::wire::LogLevel;

/// What happens to a run next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    End(Outcome),
    /// Another attempt after this pause.
    Again {
        error: String,
        pause: std::time::Duration,
    },
    /// The process stops; the run goes on at the next start.
    Interrupted,
}

/// A verdict that must become durable. A commit that failed may have reached the disk all the same, so the
/// first decision over a run stays, whatever comes before it is stored: one kind of result, never two.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) run_id: String,
    pub(super) verdict: Verdict,
    pub(super) warnings: Vec<String>,
}

impl Dispatch {
    pub(super) fn on_report(&mut self, report: Report) {
        if report.hooks_follow {
            return self.on_stored(report);
        }
        if let Some(running) = self.running.remove(&report.run_id)
            && running.thread.join().is_err()
        {
            log::error!("the thread of run {} panicked after its report", report.run_id);
        }
        self.slots.clear_part_urls_request(&report.run_id);
        self.share();
        let Some(run) = self.table.get_open(&report.run_id) else {
            log::error!("run {} reported and is not open", report.run_id);
            return;
        };
        let job = self.config.jobs.iter().find(|job| job.id == run.job_id);
        let policy = job.map(|job| job.retry.clone()).unwrap_or_default();
        let timeout_sec = job.map_or(0, |job| job.timeout_sec);
        let verdict = judge(run, &report.outcome, &policy, timeout_sec);
        self.settle(Decision { run_id: report.run_id, verdict, warnings: report.warnings });
    }

    /// Post-hooks are about to run; should the agent be killed meanwhile, the run is complete all the same.
    fn on_stored(&mut self, report: Report) {
        let AttemptOutcome::Stored(stored) = report.outcome else { return };
        let Some(run) = self.table.get_open(&report.run_id).cloned() else { return };
        if let Err(error) = self.commit(vec![Run { stored: Some(stored), ..run }], Vec::new()) {
            log::warn!(
                "failed to note that the artifact of run {} is stored; a kill before its post-hooks end would repeat it: {error}",
                report.run_id
            );
        }
    }

    /// Tries again what the store refused.
    pub(super) fn save_unsaved(&mut self) {
        self.retry_unsaved_at = None;
        for decision in std::mem::take(&mut self.unsaved) {
            self.settle(decision);
        }
    }

    /// Whether a decision over this run waits to be stored; until then nothing else may be stored about it.
    pub(super) fn is_unsaved(&self, run_id: &str) -> bool {
        self.unsaved.iter().any(|decision| decision.run_id == run_id)
    }

    /// Makes a decision durable, now or as soon as the store lets us.
    pub(super) fn settle(&mut self, decision: Decision) {
        if let Err(error) = self.try_settle(&decision) {
            log::error!(
                "failed to store what became of run {}; trying again in {} s: {error}",
                decision.run_id,
                STORE_RETRY.as_secs()
            );
            self.settle_later(decision);
        }
    }

    /// Keeps a decision for the next try.
    pub(super) fn settle_later(&mut self, decision: Decision) {
        self.unsaved.push(decision);
        self.retry_unsaved_at = Some(Instant::now() + STORE_RETRY);
    }

    fn try_settle(&mut self, decision: &Decision) -> Result<(), DispatchError> {
        let Some(run) = self.table.get_open(&decision.run_id).cloned() else { return Ok(()) };
        match &decision.verdict {
            Verdict::End(outcome) => self.end_run(run, outcome.clone(), &decision.warnings),
            Verdict::Again { error, pause } => {
                let text = format!(
                    "run {} failed and is tried again in {} s: {error}",
                    run.run_id,
                    pause.as_secs()
                );
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                let (run_id, job_id) = (run.run_id.clone(), run.job_id.clone());
                let run = run.retried(error.clone(), unix_ms().saturating_add(pause_ms));
                let standing = messages::standing(&run);
                self.commit(vec![run], Vec::new())?;
                self.slots.put_progress(&run_id, standing);
                self.pause_until(&run_id, Instant::now() + *pause);
                for warning in &decision.warnings {
                    self.tell(LogLevel::Warn, &job_id, &format!("run {run_id}: {warning}"));
                }
                self.tell(LogLevel::Warn, &job_id, &text);
                Ok(())
            }
            Verdict::Interrupted => {
                let (run_id, job_id) = (run.run_id.clone(), run.job_id.clone());
                self.commit(vec![run.interrupted()], Vec::new())?;
                for warning in &decision.warnings {
                    self.tell(LogLevel::Warn, &job_id, &format!("run {run_id}: {warning}"));
                }
                Ok(())
            }
        }
    }

    /// The run's end and its result in one batch.
    pub(super) fn end_run(
        &mut self,
        run: Run,
        outcome: Outcome,
        warnings: &[String],
    ) -> Result<(), DispatchError> {
        let run_id = run.run_id.clone();
        let run = run.end(outcome, unix_ms());
        let line = end_line(&run);
        let mut messages: Vec<_> =
            warnings.iter().map(|text| messages::run_log(LogLevel::Warn, &run, text)).collect();
        messages.push(match &line {
            Ok(line) => messages::run_log(LogLevel::Info, &run, line),
            Err(line) => messages::run_log(LogLevel::Error, &run, line),
        });
        messages.extend(messages::result(&run));
        // Progress must not be sent behind the result.
        self.slots.clear_progress(&run_id);
        self.commit(vec![run], messages)?;
        for warning in warnings {
            log::warn!(target: TOLD, "run {run_id}: {warning}");
        }
        match line {
            Ok(line) => log::info!(target: TOLD, "{line}"),
            Err(line) => log::error!(target: TOLD, "{line}"),
        }
        self.forget(&run_id);
        self.highwater_or_log();
        Ok(())
    }
}

/// `Ok` for an end that is fine, `Err` for one that somebody should look at.
fn end_line(run: &Run) -> Result<String, String> {
    let (run_id, job_id) = (&run.run_id, &run.job_id);
    match run.ended().map(|ended| &ended.outcome) {
        Some(Outcome::Completed(stored)) => Ok(format!(
            "run {run_id} of job {job_id} completed: {} bytes in {} ms",
            stored.size_bytes, stored.duration_ms
        )),
        Some(Outcome::Failed { error }) => {
            Err(format!("run {run_id} of job {job_id} failed: {error}"))
        }
        Some(Outcome::Cancelled) => Ok(format!("run {run_id} of job {job_id} was cancelled")),
        None => Err(format!("run {run_id} of job {job_id} has no end")),
    }
}

/// Decides over a report. Pure.
fn judge(run: &Run, outcome: &AttemptOutcome, policy: &RetryPolicy, timeout_sec: u32) -> Verdict {
    if let Some(stored) = &run.stored {
        return Verdict::End(Outcome::Completed(stored.clone()));
    }
    match outcome {
        // The store has it: a cancel after that loses.
        AttemptOutcome::Stored(stored) => Verdict::End(Outcome::Completed(stored.clone())),
        _ if run.cancel_requested => Verdict::End(Outcome::Cancelled),
        AttemptOutcome::Stopped(Why::Requested) => Verdict::End(Outcome::Cancelled),
        AttemptOutcome::Stopped(Why::Timeout) => Verdict::End(Outcome::Failed {
            error: format!("the run did not finish within its timeout of {timeout_sec} s"),
        }),
        AttemptOutcome::Stopped(Why::Shutdown) => {
            run.too_many_restarts().map_or(Verdict::Interrupted, Verdict::End)
        }
        AttemptOutcome::Stopped(Why::Sibling) => Verdict::End(Outcome::Failed {
            error: "internal error: a stage was stopped by a sibling that reported no error"
                .to_owned(),
        }),
        AttemptOutcome::Failed { error, retry } => {
            match next_attempt(policy, run.attempts).filter(|_| *retry) {
                Some(pause) => Verdict::Again { error: error.clone(), pause },
                None => Verdict::End(Outcome::Failed { error: error.clone() }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Compression;
    use crate::runs::state::{MAX_RESTARTS, Stored};
    use crate::secret::SecretBytes;

    fn run() -> Run {
        Run::accept("r".into(), "j".into(), false, None, SecretBytes::default(), 0).started(0)
    }

    fn failed(retry: bool) -> AttemptOutcome {
        AttemptOutcome::Failed { error: "e".into(), retry }
    }

    #[test]
    fn only_passing_failures_are_tried_again() {
        let policy = RetryPolicy { max_attempts: 2, backoff_sec: vec![3] };
        assert!(matches!(judge(&run(), &failed(true), &policy, 0), Verdict::Again { .. }));
        assert!(matches!(judge(&run(), &failed(false), &policy, 0), Verdict::End(_)));
        let second = Run { attempts: 2, ..run() };
        assert!(matches!(judge(&second, &failed(true), &policy, 0), Verdict::End(_)));
    }

    #[test]
    fn a_cancel_wins_before_the_store_has_it_and_loses_after() {
        let policy = RetryPolicy { max_attempts: 9, backoff_sec: vec![] };
        let cancelled = Run { cancel_requested: true, ..run() };
        let end = |outcome| Verdict::End(outcome);
        assert_eq!(judge(&cancelled, &failed(true), &policy, 0), end(Outcome::Cancelled));
        let shutdown = AttemptOutcome::Stopped(Why::Shutdown);
        assert_eq!(judge(&cancelled, &shutdown, &policy, 0), end(Outcome::Cancelled));
        let stored = Stored {
            object_key: "o".into(),
            size_bytes: 1,
            sha256: String::new(),
            duration_ms: 1,
            compression: Compression::Zstd,
            engine_version: String::new(),
        };
        let outcome = AttemptOutcome::Stored(stored.clone());
        assert_eq!(judge(&cancelled, &outcome, &policy, 0), end(Outcome::Completed(stored)));
    }

    #[test]
    fn a_timeout_fails_and_a_stop_interrupts() {
        let policy = RetryPolicy::default();
        let timeout = AttemptOutcome::Stopped(Why::Timeout);
        let Verdict::End(Outcome::Failed { error }) = judge(&run(), &timeout, &policy, 90) else {
            panic!("a timeout fails the run");
        };
        assert!(error.contains("90 s"), "{error}");
        let stop = AttemptOutcome::Stopped(Why::Shutdown);
        assert_eq!(judge(&run(), &stop, &policy, 0), Verdict::Interrupted);
        let tired = Run { restarts: MAX_RESTARTS, ..run() };
        assert!(matches!(judge(&tired, &stop, &policy, 0), Verdict::End(Outcome::Failed { .. })));
    }
}
