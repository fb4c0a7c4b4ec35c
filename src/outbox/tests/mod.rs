//! The outbox by its claims: nothing is lost, nothing is deleted too early, nothing grows without bound.

mod durable;
mod model;
mod pair;

use std::path::Path;

use super::*;
use crate::secret::Secret;
use crate::store::{Space, Store, StoreKeys};
use crate::wire::{Ack, HealthResult, JobStatus, JobUpdate, LogEvent};

fn store(dir: &Path) -> Store {
    let keys = StoreKeys { current: Secret::new("bkpy_test_a"), previous: None };
    Store::open(dir, &Space::AGENT, &keys).unwrap()
}

fn terminal(run: &str) -> Message {
    let update = JobUpdate {
        job_id: "job".into(),
        run_id: run.into(),
        status: JobStatus::Success,
        progress_percent: 100,
        current_step: String::new(),
        error_message: String::new(),
    };
    Message {
        kind: Kind::Terminal,
        run_id: Some(run.to_owned()),
        correlation_id: String::new(),
        message: AgentMessage::JobUpdate(update),
    }
}

fn completed(run: &str) -> Message {
    let completed = crate::wire::BackupCompleted { run_id: run.into(), ..Default::default() };
    Message {
        kind: Kind::Completed,
        run_id: Some(run.to_owned()),
        correlation_id: String::new(),
        message: AgentMessage::BackupCompleted(completed),
    }
}

fn line(text: &str) -> Message {
    let event = LogEvent {
        ts_ms: 1,
        level: LogLevel::Warn,
        job_id: String::new(),
        message: text.into(),
        fields: vec![],
    };
    Message {
        kind: Kind::Log(LogLevel::Warn),
        run_id: None,
        correlation_id: String::new(),
        message: AgentMessage::Log(event),
    }
}

fn health(check: &str) -> Message {
    let result = HealthResult { check_id: check.into(), ..Default::default() };
    Message {
        kind: Kind::Health,
        run_id: None,
        correlation_id: String::new(),
        message: AgentMessage::HealthResult(result),
    }
}

fn ack(command: &str) -> Message {
    Message {
        kind: Kind::Ack,
        run_id: None,
        correlation_id: command.into(),
        message: AgentMessage::Ack(Ack::ok(command)),
    }
}
