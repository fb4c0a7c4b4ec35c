//! What the outbox and the slots are told about runs, built from the runs' records.

use std::sync::Arc;

use crate::clock::unix_ms;
use crate::host::checks::CheckResult;
use crate::link::Slots;
use crate::model::Progress;
use crate::outbox::{Kind, Message};
use crate::pipeline::upload::multipart::Ask;
use crate::runs::state::{EndKind, Outcome, Phase, Run};
use crate::runs::worker::OnProgress;
use crate::wire::{
    Ack, AgentMessage, BackupCompleted, HealthResult, JobStatus, JobUpdate, LogEvent, LogLevel,
    PartUrlsRequest,
};

/// The result of an ended run: one message, or two that stay adjacent.
pub(super) fn result(run: &Run) -> Vec<Message> {
    let Some(ended) = run.ended() else { return Vec::new() };
    let terminal = |status, error: &str| {
        let message = AgentMessage::JobUpdate(JobUpdate {
            job_id: run.job_id.clone(),
            run_id: run.run_id.clone(),
            status,
            progress_percent: if status == JobStatus::Success { 100 } else { 0 },
            current_step: String::new(),
            error_message: error.to_owned(),
        });
        of_run(run, Kind::Terminal, message)
    };
    match &ended.outcome {
        Outcome::Completed(stored) => {
            let completed = AgentMessage::BackupCompleted(BackupCompleted {
                job_id: run.job_id.clone(),
                run_id: run.run_id.clone(),
                s3_key: stored.object_key.clone(),
                size_bytes: stored.size_bytes,
                sha256: stored.sha256.clone(),
                duration_ms: stored.duration_ms,
                dek_kms_id: String::new(),
                encrypted_dek: run.data_key.clone(),
                compression: stored.compression.as_str().to_owned(),
                db_engine_version: stored.engine_version.clone(),
            });
            vec![of_run(run, Kind::Completed, completed), terminal(JobStatus::Success, "")]
        }
        Outcome::Failed { error } => vec![terminal(JobStatus::Failed, error)],
        Outcome::Cancelled => vec![terminal(JobStatus::Cancelled, "cancelled on request")],
    }
}

/// The answer to a repeat of a run of which only the kind of its end is known.
pub(super) fn tombstone(run_id: &str, job_id: &str, kind: EndKind) -> Message {
    let status = match kind {
        EndKind::Completed => JobStatus::Success,
        EndKind::Failed => JobStatus::Failed,
        EndKind::Cancelled => JobStatus::Cancelled,
    };
    Message {
        kind: Kind::Terminal,
        run_id: Some(run_id.to_owned()),
        correlation_id: String::new(),
        message: AgentMessage::JobUpdate(JobUpdate {
            job_id: job_id.to_owned(),
            run_id: run_id.to_owned(),
            status,
            progress_percent: 0,
            current_step: String::new(),
            error_message: "this run ended long ago; its details are no longer kept".to_owned(),
        }),
    }
}

/// The answer to a command; none without a correlation id.
pub(super) fn ack(ack: Ack) -> Option<Message> {
    if ack.correlation_id.is_empty() {
        return None;
    }
    Some(Message {
        kind: Kind::Ack,
        run_id: None,
        correlation_id: ack.correlation_id.clone(),
        message: AgentMessage::Ack(ack),
    })
}

/// What a health check found.
pub(super) fn check_result(result: &CheckResult) -> Message {
    Message {
        kind: Kind::Health,
        run_id: None,
        correlation_id: String::new(),
        message: AgentMessage::HealthResult(HealthResult {
            check_id: result.check_id.clone(),
            ts_ms: result.ts_ms,
            ok: result.ok,
            latency_ms: result.latency_ms,
            error: result.error.clone(),
            status_code: result.status_code,
        }),
    }
}

/// A line for the control plane's log.
pub(super) fn log_event(level: LogLevel, job_id: &str, text: &str) -> Message {
    Message {
        kind: Kind::Log(level),
        run_id: None,
        correlation_id: String::new(),
        message: AgentMessage::Log(LogEvent {
            ts_ms: unix_ms(),
            level,
            job_id: job_id.to_owned(),
            message: crate::redact::clean(text),
            fields: Vec::new(),
        }),
    }
}

/// A line about a run for the control plane's log.
pub(super) fn run_log(level: LogLevel, run: &Run, text: &str) -> Message {
    let mut message = log_event(level, &run.job_id, text);
    if let AgentMessage::Log(event) = &mut message.message {
        event.fields = vec![("run_id".to_owned(), run.run_id.clone())];
    }
    message
}

/// Where an open run stands, for a slot.
pub(super) fn standing(run: &Run) -> JobUpdate {
    JobUpdate {
        job_id: run.job_id.clone(),
        run_id: run.run_id.clone(),
        status: match run.phase {
            Phase::Running => JobStatus::Running,
            Phase::Queued | Phase::Ended(_) => JobStatus::Queued,
        },
        progress_percent: 0,
        current_step: String::new(),
        error_message: run.last_error.clone(),
    }
}

/// Turns the pipeline's progress into slots of the link.
pub(super) fn progress_reporter(slots: Slots) -> OnProgress {
    Arc::new(move |run_id: &str, job_id: &str, progress: Progress| {
        let update = JobUpdate {
            job_id: job_id.to_owned(),
            run_id: run_id.to_owned(),
            status: JobStatus::Running,
            progress_percent: u32::from(progress.percent.unwrap_or(0).min(100)),
            current_step: progress.step.as_str().to_owned(),
            error_message: String::new(),
        };
        slots.put_progress(run_id, update);
    })
}

/// How an upload in parts asks for more URLs: in a slot of the link, until they are there.
pub(super) fn part_urls_asker(slots: Slots, run: &Run, upload_id: &str) -> Ask {
    let (run_id, upload_id) = (run.run_id.clone(), upload_id.to_owned());
    Arc::new(move |first_part, count| {
        slots.put_part_urls_request(PartUrlsRequest {
            run_id: run_id.clone(),
            upload_id: upload_id.clone(),
            first_part,
            count,
        });
    })
}

fn of_run(run: &Run, kind: Kind, message: AgentMessage) -> Message {
    Message { kind, run_id: Some(run.run_id.clone()), correlation_id: String::new(), message }
}
