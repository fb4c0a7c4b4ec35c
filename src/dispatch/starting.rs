//! Starting runs: asks [`admission`](super::admission), makes the start durable, then starts the thread.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::admission::{Waiting, admit};
use super::messages;
use super::results::{Decision, Verdict};
use super::{Dispatch, DispatchError, MAX_PARALLEL, Running, STORE_RETRY};
use crate::clock::{Deadline, unix_ms};
use crate::model::{Job, Target};
use crate::observe::tap::TOLD;
use crate::runs::state::{Outcome, Phase, Run};
use crate::runs::worker::{self, Attempt, CredsCell};
use crate::thread::{Cancel, Why};
use crate::wire::LogLevel;

impl Dispatch {
    /// Starts what may start, ends what never can, and remembers when to look again.
    pub(super) fn admit(&mut self) {
        self.admit_at = None;
        if self.stopping.is_some() || self.updates.hold_runs(Instant::now()) {
            return;
        }
        let now = Instant::now();
        let mut queued: Vec<&Run> = self
            .table
            .open()
            .filter(|run| run.phase == Phase::Queued && !self.is_unsaved(&run.run_id))
            .collect();
        if queued.is_empty() {
            return;
        }
        queued.sort_by_key(|run| (run.accepted_ms, &run.run_id));
        let waiting: Vec<Waiting<'_>> = queued
            .iter()
            .map(|run| Waiting {
                run_id: &run.run_id,
                job_id: &run.job_id,
                manual: run.manual,
                pause: self.pause_left(run, now),
                expires_at_ms: run.expires_at_ms(),
                timeout_left: self.timeout_left(run),
            })
            .collect();
        let running: BTreeSet<&str> =
            self.running.values().map(|running| running.job_id.as_str()).collect();
        let parallel = usize::try_from(self.config.advanced.max_parallel_jobs)
            .map_or(MAX_PARALLEL, |n| n.clamp(1, MAX_PARALLEL));
        let admission = admit(&waiting, &running, parallel, self.window, unix_ms());
        self.admit_at = admission.wake_in.map(|wait| now + wait);
        for (run_id, reason) in admission.hopeless {
            self.end_waiting(&run_id, reason);
        }
        for run_id in admission.start {
            self.start(&run_id);
        }
    }

    fn pause_left(&self, run: &Run, now: Instant) -> Duration {
        let until = self.pauses.get(&run.run_id);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// What is left of a run's timeout; it counts from the first attempt only.
    fn timeout_left(&self, run: &Run) -> Option<Duration> {
        run.first_started_ms?;
        let job = self.config.jobs.iter().find(|job| job.id == run.job_id)?;
        run.timeout_left_ms(u64::from(job.timeout_sec) * 1_000, unix_ms())
            .map(Duration::from_millis)
    }

    fn end_waiting(&mut self, run_id: &str, mut reason: String) {
        let Some(run) = self.table.get_open(run_id).cloned() else { return };
        if !run.last_error.is_empty() {
            reason = format!("{reason}; the last attempt failed: {}", run.last_error);
        }
        self.settle(Decision {
            run_id: run.run_id,
            verdict: Verdict::End(Outcome::Failed { error: reason }),
            warnings: Vec::new(),
        });
    }

    fn start(&mut self, run_id: &str) {
        let Some(run) = self.table.get_open(run_id).cloned() else { return };
        let found = match self.job_and_target(&run.job_id) {
            Ok(found) => found,
            Err(reason) => return self.end_waiting(run_id, reason),
        };
        let now_ms = unix_ms();
        let timeout_ms = u64::from(found.0.timeout_sec) * 1_000;
        let left = run.timeout_left_ms(timeout_ms, now_ms).map(Duration::from_millis);
        let run = run.started(now_ms);
        // Running is durable before anything is done, so that a crash finds it.
        let line = format!("run {run_id} of job {} starts, attempt {}", run.job_id, run.attempts);
        let message = messages::run_log(LogLevel::Info, &run, &line);
        if let Err(error) = self.commit(vec![run.clone()], vec![message]) {
            return self.look_again_later(run_id, &error);
        }
        log::info!(target: TOLD, "{line}");
        if let Err(error) = self.spawn(run.clone(), found, left) {
            log::error!("failed to start a thread for run {run_id}: {error}");
            let outcome = worker::AttemptOutcome::Failed {
                error: format!("failed to start a thread: {error}"),
                retry: true,
            };
            let warnings = Vec::new();
            let run_id = run_id.to_owned();
            self.on_report(worker::Report { run_id, outcome, warnings, hooks_follow: false });
        }
    }

    fn spawn(
        &mut self,
        run: Run,
        (job, target): (Job, Target),
        left: Option<Duration>,
    ) -> std::io::Result<()> {
        let (cancel, hurry) = (Cancel::new()?, Cancel::new()?);
        let finishing = Arc::<AtomicBool>::default();
        let ask = |upload_id: &str| messages::part_urls_asker(self.slots.clone(), &run, upload_id);
        let Some(creds) = run.creds.clone().map(|creds| CredsCell::new(creds, ask)) else {
            return Err(std::io::Error::other("the run came without an upload URL"));
        };
        if run.cancel_requested {
            cancel.cancel(Why::Requested);
        }
        let name = format!("run-{}", self.next_name);
        self.next_name += 1;
        let run_id = run.run_id.clone();
        let running = Running {
            job_id: run.job_id.clone(),
            cancel: cancel.clone(),
            hurry: hurry.clone(),
            finishing: finishing.clone(),
            asked: false,
            creds: creds.clone(),
            deadline: left.map(|left| Instant::now() + left),
            thread: worker::start(
                &name,
                self.workshop.clone(),
                Attempt {
                    run,
                    job,
                    target,
                    deadline: left.map(Deadline::after),
                    creds,
                    hurry,
                    finishing,
                },
                cancel,
                self.on_progress.clone(),
                self.reports.0.clone(),
            )?,
        };
        self.running.insert(run_id, running);
        self.share();
        Ok(())
    }

    fn job_and_target(&self, job_id: &str) -> Result<(Job, Target), String> {
        let job =
            self.config.jobs.iter().find(|job| job.id == job_id).ok_or_else(|| {
                format!("job {job_id:?} is no longer in this agent's configuration")
            })?;
        let target =
            self.config.targets.iter().find(|target| target.id == job.target_id).ok_or_else(
                || format!("target {:?} of job {job_id:?} is not configured", job.target_id),
            )?;
        Ok((job.clone(), target.clone()))
    }

    fn look_again_later(&mut self, run_id: &str, error: &DispatchError) {
        log::error!(
            "failed to store the state of run {run_id}; trying again in {} s: {error}",
            STORE_RETRY.as_secs()
        );
        self.pause_until(run_id, Instant::now() + STORE_RETRY);
        if let Some(run) = self.table.get_open(run_id) {
            self.slots.put_progress(run_id, messages::standing(run));
        }
        let at = Instant::now() + STORE_RETRY;
        self.admit_at = Some(self.admit_at.map_or(at, |other| other.min(at)));
    }
}
