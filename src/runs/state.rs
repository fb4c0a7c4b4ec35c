//! One run as a value, and its transitions. Pure: no store, no clock, no threads.
//!
//! ```text
//! queued → running(attempt) → completed | failed | cancelled      (ended: exactly one)
//!   ↑___________|   a retry, a maintenance window, or the agent restarted
//! ```
//! "Accepted" is the moment the run is durable, which is the moment it is queued.

use serde::{Deserialize, Serialize};

use crate::model::{Compression, UploadCreds};
use crate::secret::SecretBytes;

/// Restarts of the agent that one run survives, so that a dump that kills the host does not loop.
pub const MAX_RESTARTS: u32 = 5;

/// One execution of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its name, given by the control plane.
    pub run_id: String,
    /// The job.
    pub job_id: String,
    /// Whether a person asked for it; it ignores the maintenance window then.
    pub manual: bool,
    /// When it was accepted, Unix milliseconds.
    pub accepted_ms: u64,
    /// Where the artifact goes; replaced by a repeat of the command.
    pub creds: Option<UploadCreds>,
    /// The data key as received, of whatever length; empty = none.
    #[serde(with = "crate::secret::exposed_bytes")]
    pub data_key: SecretBytes,
    /// Where it stands.
    pub phase: Phase,
    /// Attempts started under the job's policy, the running one included.
    pub attempts: u32,
    /// Attempts that ended because the agent stopped.
    pub restarts: u32,
    /// When the first attempt started, Unix milliseconds; the job's timeout counts from here.
    pub first_started_ms: Option<u64>,
    /// When the next attempt may start, Unix milliseconds.
    pub not_before_ms: u64,
    /// A cancel is stored and must be carried out.
    pub cancel_requested: bool,
    /// Why the last attempt failed.
    pub last_error: String,
    /// The store has the artifact, and post-hooks are all that is left of the run.
    #[serde(default)]
    pub stored: Option<Stored>,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waiting for its turn, a retry or the end of a window.
    Queued,
    /// An attempt is under way, or was when the agent died.
    Running,
    /// Over.
    Ended(Ended),
}

/// The one end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// How.
    pub outcome: Outcome,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The artifact is stored.
    Completed(Stored),
    /// It is not, and will not be.
    Failed {
        /// Why.
        error: String,
    },
    /// Somebody asked for it to stop.
    Cancelled,
}

/// What is known of a stored artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The key under which the control plane knows it.
    pub object_key: String,
    /// Bytes uploaded.
    pub size_bytes: u64,
    /// Lower-case hex over them.
    pub sha256: String,
    /// From the start of the first attempt.
    pub duration_ms: u64,
    /// What was used.
    pub compression: Compression,
    /// `PostgreSQL 16.2`; may be empty.
    pub engine_version: String,
}

/// The kind of an end: all that a tombstone keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndKind {
    /// See [`Outcome::Completed`].
    Completed,
    /// See [`Outcome::Failed`].
    Failed,
    /// See [`Outcome::Cancelled`].
    Cancelled,
}

impl Outcome {
    /// Its kind.
    pub fn kind(&self) -> EndKind {
        match self {
            Outcome::Completed(_) => EndKind::Completed,
            Outcome::Failed { .. } => EndKind::Failed,
            Outcome::Cancelled => EndKind::Cancelled,
        }
    }
}

/// What to do with a run that was running when the agent stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Queue it as a new attempt.
    Again,
    /// End it.
    End(Outcome),
}

impl Run {
    /// A run as it is accepted.
    pub fn accept(
        run_id: String,
        job_id: String,
        manual: bool,
        creds: Option<UploadCreds>,
        data_key: SecretBytes,
        now_ms: u64,
    ) -> Self {
        Self {
            run_id,
            job_id,
            manual,
            accepted_ms: now_ms,
            creds,
            data_key,
            phase: Phase::Queued,
            attempts: 0,
            restarts: 0,
            first_started_ms: None,
            not_before_ms: 0,
            cancel_requested: false,
            last_error: String::new(),
            stored: None,
        }
    }

    /// The end, if it has ended.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.phase {
            Phase::Ended(ended) => Some(ended),
            Phase::Queued | Phase::Running => None,
        }
    }

    /// When its upload URLs expire; 0 = unknown.
    pub fn expires_at_ms(&self) -> u64 {
        self.creds.as_ref().map_or(0, |creds| match &creds.multipart {
            Some(multipart) => multipart.expires_at_ms,
            None => creds.expires_at_ms,
        })
    }

    /// An attempt starts.
    #[must_use]
    pub fn started(mut self, now_ms: u64) -> Self {
        self.phase = Phase::Running;
        self.attempts = self.attempts.saturating_add(1);
        self.first_started_ms.get_or_insert(now_ms);
        self
    }

    /// The attempt failed and another one follows, not before `not_before_ms`.
    #[must_use]
    pub fn retried(mut self, error: String, not_before_ms: u64) -> Self {
        self.phase = Phase::Queued;
        self.last_error = error;
        self.not_before_ms = not_before_ms;
        self
    }

    /// The attempt ended because the agent stops or stopped: it does not count for the policy.
    #[must_use]
    pub fn interrupted(mut self) -> Self {
        self.phase = Phase::Queued;
        self.attempts = self.attempts.saturating_sub(1);
        self.restarts = self.restarts.saturating_add(1);
        self.not_before_ms = 0;
        self
    }

    /// The run is over. What it does not need any more (the upload URL, a key that sealed nothing) is forgotten.
    #[must_use]
    pub fn end(mut self, outcome: Outcome, now_ms: u64) -> Self {
        if outcome.kind() != EndKind::Completed {
            self.data_key = SecretBytes::default();
        }
        self.phase = Phase::Ended(Ended { at_ms: now_ms, outcome });
        self.creds = None;
        // The outcome says it now.
        self.stored = None;
        self
    }

    /// What becomes of a run that is found `running` when the agent starts.
    pub fn resume(&self, now_ms: u64) -> Resume {
        if let Some(stored) = &self.stored {
            return Resume::End(Outcome::Completed(stored.clone()));
        }
        if self.cancel_requested {
            return Resume::End(Outcome::Cancelled);
        }
        if let Some(outcome) = self.too_many_restarts() {
            return Resume::End(outcome);
        }
        let expires = self.expires_at_ms();
        if expires != 0 && expires <= now_ms {
            let error = "the agent stopped during this run and its upload URL has expired since";
            return Resume::End(Outcome::Failed { error: error.to_owned() });
        }
        Resume::Again
    }

    /// The end of a run that is stopped once more than it may be.
    pub fn too_many_restarts(&self) -> Option<Outcome> {
        (self.restarts >= MAX_RESTARTS).then(|| Outcome::Failed {
            error: format!(
                "the agent stopped {} times during this run; it is not tried again",
                self.restarts.saturating_add(1)
            ),
        })
    }

    /// Milliseconds that are left of `timeout_ms` (0 = unbounded), counted from the first attempt.
    /// A clock that was set back cannot give a run more than the whole timeout.
    pub fn timeout_left_ms(&self, timeout_ms: u64, now_ms: u64) -> Option<u64> {
        if timeout_ms == 0 {
            return None;
        }
        let used = self.first_started_ms.map_or(0, |started| now_ms.saturating_sub(started));
        Some(timeout_ms.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn run() -> Run {
        let creds = UploadCreds {
            put_url: Secret::new("https://s/o?sig"),
            expires_at_ms: 10_000,
            object_key: "o".into(),
            ..UploadCreds::default()
        };
        Run::accept("r".into(), "j".into(), false, Some(creds), SecretBytes::new([1; 32]), 1_000)
    }

    #[test]
    fn restarts_are_counted_apart_from_attempts() {
        let run = run().started(1_000).interrupted().started(2_000);
        assert_eq!((run.attempts, run.restarts), (1, 1));
        assert_eq!(run.first_started_ms, Some(1_000));
    }

    #[test]
    fn a_run_found_running_is_resumed_until_it_cannot() {
        let mut found = run().started(1_000);
        assert_eq!(found.resume(5_000), Resume::Again);
        assert!(matches!(found.resume(10_000), Resume::End(Outcome::Failed { .. })));
        found.cancel_requested = true;
        assert_eq!(found.resume(5_000), Resume::End(Outcome::Cancelled));
        found.cancel_requested = false;
        found.restarts = MAX_RESTARTS;
        assert!(matches!(found.resume(5_000), Resume::End(Outcome::Failed { .. })));
    }

    #[test]
    fn an_ended_run_forgets_its_url() {
        let ended = run().started(1_000).end(Outcome::Cancelled, 2_000);
        assert_eq!(ended.creds, None);
        assert_eq!(ended.ended().unwrap().outcome.kind(), EndKind::Cancelled);
    }

    #[test]
    fn the_timeout_counts_from_the_first_attempt() {
        let run = run().started(1_000);
        assert_eq!(run.timeout_left_ms(0, 9_000), None);
        assert_eq!(run.timeout_left_ms(5_000, 4_000), Some(2_000));
        assert_eq!(run.timeout_left_ms(5_000, 9_000), Some(0));
        assert_eq!(run.timeout_left_ms(5_000, 0), Some(5_000), "a clock set back");
    }

    #[test]
    fn a_record_survives_the_round_trip_and_shows_no_secret_in_debug() {
        let run = run();
        let bytes = serde_json::to_vec(&run).unwrap();
        assert_eq!(serde_json::from_slice::<Run>(&bytes).unwrap(), run);
        assert!(!format!("{run:?}").contains("sig"));
    }
}
