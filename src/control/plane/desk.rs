//! The plane as its agent's session sees it.
//!
//! Everything here is idempotent by run and kind of result, so that an agent may say the same thing in
//! any session again. What came with an entry id that was dealt with is not even looked at.

use std::time::Duration;

use super::{LOCAL_AGENT, Plane, RUN_PREFIX};
use crate::clock::unix_ms;
use crate::control::plane::board::Asks;
use crate::control::session::{Command, Desk, Line, NotStored};
use crate::model::AgentConfig;
use crate::wire::{
    Ack, AgentMessage, BackupCompleted, Header, JobStatus, JobUpdate, LogEvent, LogLevel,
    MULTIPART, PartUrlsRequest, Register, ServerMessage,
};

use super::books::Completed;
use super::error::BooksError;

impl Desk for Plane {
    fn welcome(&self, agent: &str, register: &Register, line: &Line) -> AgentConfig {
        debug_assert_eq!(agent, LOCAL_AGENT);
        let now_ms = unix_ms();
        let (config, old) = {
            let mut board = self.board();
            let old = board.line.take();
            if let Some(old) = &old {
                board.hung_up(old, now_ms);
            }
            board.line = Some(line.clone());
            board.in_parts = register.capabilities.iter().any(|one| one == MULTIPART);
            board.heard_ms = now_ms;
            (board.settings.agent_config(board.config_version), old)
        };
        if let Some(old) = old {
            old.hang_up();
        }
        self.order_waiting(now_ms);
        config
    }

    fn receive(&self, line: &Line, messages: Vec<(Header, AgentMessage)>) -> Result<(), NotStored> {
        let now_ms = unix_ms();
        self.board().heard_ms = now_ms;
        for (header, message) in messages {
            if self.board().is_known(line.store_id(), header.entry_id) {
                continue;
            }
            self.hear(message, now_ms).map_err(|error| NotStored(error.to_string()))?;
            self.board().dealt_with(line.store_id(), header.entry_id);
        }
        Ok(())
    }

    fn farewell(&self, line: &Line, _: &str) {
        self.board().hung_up(line, unix_ms());
        self.nudge();
    }
}

impl Plane {
    fn hear(&self, message: AgentMessage, now_ms: u64) -> Result<(), BooksError> {
        match message {
            AgentMessage::JobUpdate(update) => self.job_update(&update, now_ms),
            AgentMessage::BackupCompleted(completed) => self.completed(&completed, now_ms),
            AgentMessage::PartUrlsRequest(request) => self.more_parts(&request, now_ms),
            AgentMessage::Ack(ack) => self.acknowledged(&ack, now_ms),
            AgentMessage::Log(event) => {
                repeat(&event);
                Ok(())
            }
            AgentMessage::HealthResult(result) => {
                self.checked(result);
                Ok(())
            }
            // The embedded plane has no discovery and no remote restores to keep.
            AgentMessage::Heartbeat(_)
            | AgentMessage::Discovery(_)
            | AgentMessage::RestoreUpdate(_)
            | AgentMessage::Register(_)
            | AgentMessage::Unknown => Ok(()),
        }
    }

    fn job_update(&self, update: &JobUpdate, now_ms: u64) -> Result<(), BooksError> {
        match update.status {
            JobStatus::Failed => {
                let why = match update.error_message.as_str() {
                    "" => "the agent gave no reason",
                    why => why,
                };
                self.end(&update.run_id, false, why, now_ms)
            }
            JobStatus::Cancelled => {
                let why = match update.error_message.as_str() {
                    "" => "the backup was cancelled",
                    why => why,
                };
                self.end(&update.run_id, true, why, now_ms)
            }
            // BackupCompleted has said it with the artifact's size and hash.
            JobStatus::Success => Ok(()),
            JobStatus::Queued | JobStatus::Running | JobStatus::Unspecified => {
                // Not in the condition: the board's lock would be held below.
                let asks = self.board().update(update, now_ms);
                self.working(&update.run_id);
                if asks == Asks::NewAttempt {
                    self.order_waiting(now_ms);
                }
                Ok(())
            }
        }
    }

    fn completed(&self, report: &BackupCompleted, now_ms: u64) -> Result<(), BooksError> {
        match self.0.books.complete(report, now_ms)? {
            Completed::Stored => {
                let run = self.board().over(&report.run_id);
                let backup = run.map_or_else(|| report.job_id.clone(), |run| run.backup);
                log::info!(
                    "run {} of {backup} is stored: {} bytes as {}",
                    report.run_id,
                    report.size_bytes,
                    report.s3_key
                );
                self.ended(&report.run_id, now_ms);
                self.nudge();
                Ok(())
            }
            Completed::Known => {
                // The board may have learnt of the run's end from nobody else.
                self.board().over(&report.run_id);
                Ok(())
            }
            Completed::Untrue(why) => self.end(&report.run_id, false, &why, now_ms),
        }
    }

    /// Answers an upload that goes on; it asks again where nothing comes.
    fn more_parts(&self, request: &PartUrlsRequest, now_ms: u64) -> Result<(), BooksError> {
        let (line, timeout) = {
            let board = self.board();
            let Some(line) = board.line.clone() else { return Ok(()) };
            let run = board.open.get(&request.run_id);
            (line, run.map_or(Duration::ZERO, |run| run.open.timeout))
        };
        let answer = self.0.books.more_parts(request, timeout, now_ms)?;
        let correlation_id = format!("parts/{}/{}", request.run_id, request.first_part);
        line.send(Command { correlation_id, message: ServerMessage::PartUrls(answer) });
        Ok(())
    }

    fn acknowledged(&self, ack: &Ack, now_ms: u64) -> Result<(), BooksError> {
        let run_id = ack
            .correlation_id
            .strip_prefix(RUN_PREFIX)
            .and_then(|rest| rest.rsplit_once('/'))
            .map(|(run_id, _)| run_id);
        match run_id {
            Some(run_id) if ack.accepted => {
                self.board().accepted(run_id, now_ms);
                Ok(())
            }
            Some(run_id) => {
                let why = format!("the agent refused the run: {}", ack.reason);
                self.end(run_id, false, &why, now_ms)
            }
            None if !ack.accepted => {
                log::warn!("the agent refused {}: {}", ack.correlation_id, ack.reason);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The agent of `up` lives in this process and has logged this itself; another one's words are repeated.
fn repeat(event: &LogEvent) {
    if event.level >= LogLevel::Warn {
        log::debug!("the agent says: {} {}", event.job_id, event.message);
    }
}
