//! How things stand, as JSON for the status socket.

use serde_json::{Value, json};

use super::commands::load_config;
use super::{CONFIG_KEY, Dispatch, DispatchError};
use crate::calendar::cron::CronLine;
use crate::clock::unix_ms;
use crate::model::{AgentConfig, Job};
use crate::outbox::{Outbox, OutboxLimits};
use crate::runs::state::{Phase, Run};
use crate::runs::table::{LastResults, Table};
use crate::store::{Space, Store};

/// Open runs that are listed, the oldest first: an answer has its bound.
const MAX_SHOWN: usize = 100;

impl Dispatch {
    pub(super) fn snapshot(&self) -> Value {
        let mut value = stored(&self.store, &self.outbox, &self.table, &self.config);
        value["unsaved_results"] = self.unsaved.len().into();
        if !self.config.checks.is_empty() {
            value["checks"] = self.checks_value();
        }
        value["update"] = self.updates.value();
        value["stopping"] = self.stopping.is_some().into();
        value
    }
}

/// How things stand in the store of an agent that is not running. Changes nothing but what opening does.
///
/// # Errors
/// When the store cannot be read.
pub fn of_stopped(store: &Store) -> Result<Value, DispatchError> {
    let config = load_config(store)?;
    let outbox = Outbox::open(store.clone(), OutboxLimits::default())?;
    let table = Table::load(store.clone())?;
    Ok(stored(store, &outbox, &table, &config))
}

fn stored(store: &Store, outbox: &Outbox, table: &Table, config: &AgentConfig) -> Value {
    let now_ms = unix_ms();
    let jobs: Vec<Value> =
        config.jobs.iter().map(|job| job_value(config, table, job, now_ms)).collect();
    let mut open: Vec<&Run> = table.open().collect();
    open.sort_by_key(|run| (run.accepted_ms, &run.run_id));
    let open_count = open.len();
    let open: Vec<Value> = open.into_iter().take(MAX_SHOWN).map(run_value).collect();
    let dropped = outbox.dropped();
    json!({
        "config_version": config.version,
        "jobs": jobs,
        "open_count": open_count,
        "open_runs": open,
        "store_error": store.get(Space::Config, CONFIG_KEY).err().map(|e| e.to_string()),
        "queue_depth": outbox.depth(),
        "undelivered_results": outbox.undelivered_results(),
        "dropped": {"logs": dropped.logs, "health": dropped.health},
    })
}

fn job_value(config: &AgentConfig, table: &Table, job: &Job, now_ms: u64) -> Value {
    let target = config.targets.iter().find(|target| target.id == job.target_id);
    let last = table.last_results().get(&job.id).cloned().unwrap_or_default();
    let overdue = overdue_after(&job.cron, &last).is_some_and(|due| now_ms > due);
    json!({
        "job_id": job.id,
        "target": target.map(|target| target.display_name.clone()),
        "engine": target.map(|target| target.engine.to_string()),
        "cron": job.cron,
        "last_kind": last.last_kind,
        "last_end_ms": last.last_end_ms,
        "last_error": last.last_error,
        "last_success_ms": last.last_success_ms,
        "last_success_bytes": last.last_success_bytes,
        "overdue": overdue,
    })
}

/// When a job counts as overdue without another success (Unix milliseconds): after the second time that
/// its schedule came round since the last one. `None` without a schedule or before its first run ended,
/// because an agent cannot know since when a job has been scheduled.
pub fn overdue_after(cron: &str, last: &LastResults) -> Option<u64> {
    let since = if last.last_success_ms != 0 { last.last_success_ms } else { last.first_end_ms };
    if since == 0 {
        return None;
    }
    let cron = CronLine::parse(cron).ok()?;
    cron.next_after(cron.next_after(since)?)
}

fn run_value(run: &Run) -> Value {
    json!({
        "run_id": run.run_id,
        "job_id": run.job_id,
        "phase": match run.phase {
            Phase::Queued => "queued",
            Phase::Running => "running",
            Phase::Ended(_) => "ended",
        },
        "accepted_ms": run.accepted_ms,
        "attempts": run.attempts,
        "restarts": run.restarts,
        "last_error": run.last_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overdue_after_the_second_missed_turn() {
        const HOUR: u64 = 3_600_000;
        let last = LastResults { last_success_ms: 10 * HOUR + 5, ..LastResults::default() };
        assert_eq!(overdue_after("0 * * * *", &last), Some(12 * HOUR));
        let never = LastResults { first_end_ms: 10 * HOUR + 5, ..LastResults::default() };
        assert_eq!(overdue_after("0 * * * *", &never), Some(12 * HOUR));
        assert_eq!(overdue_after("0 * * * *", &LastResults::default()), None);
        assert_eq!(overdue_after("", &last), None);
    }
}
