//! The control plane's part of `status`: how every backup stands, and what needs a person.

use serde_json::{Value, json};

use super::Plane;
use crate::control::checks::Told;
use crate::control::file::Backup;
use crate::control::storage::Storage as _;
use crate::control::view::RunView;
use crate::control::watch::{Open, Verdict};
use crate::model::Check;

/// A due run that has not begun by then is overdue.
const OVERDUE_MS: u64 = 15 * 60_000;

impl Plane {
    /// How things stand, and what is wrong in words. What only wants doing some day is in the value, under
    /// `warnings`.
    pub fn status(&self, now_ms: u64) -> (Value, Vec<String>) {
        let settings = self.settings();
        let mut problems = Vec::new();
        problems.extend(self.0.books.storage().trouble());
        if let Err(error) = self.0.books.key_in_place(&settings.master_key) {
            problems.push(format!(
                "{error} (this process still holds it: `backupy key rotate` writes the file again)"
            ));
        }
        let warnings = self.0.books.unexported_key().map(|id| {
            format!("master key {id} has no copy outside this machine yet: backupy key export")
        });
        let backups: Vec<Value> =
            settings.backups.iter().map(|b| self.backup_status(b, now_ms, &mut problems)).collect();
        let checks: Vec<Value> =
            settings.checks.iter().map(|c| self.check_status(c, &mut problems)).collect();
        let (channels, silent) = self.notifier().status();
        problems.extend(silent);
        let (connected, heard_ms, version) = {
            let board = self.board();
            (board.line.is_some(), board.heard_ms, board.config_version)
        };
        let control = json!({
            "storage": settings.storage.to_string(),
            "agent_connected": connected,
            "agent_heard_ms": heard_ms,
            "config_version": version,
            "backups": backups,
            "checks": checks,
            "notify": channels,
            "warnings": warnings.as_slice(),
        });
        (control, problems)
    }

    fn check_status(&self, check: &Check, problems: &mut Vec<String>) -> Value {
        let standing = self.board().checks.get(&check.name).cloned();
        let told = standing.as_ref().map_or(Told::Well, |standing| standing.told);
        let error = standing.as_ref().map_or("", |standing| &standing.last.error);
        match told {
            Told::Well => {}
            Told::Failing => problems.push(format!("the check {} fails: {error}", check.name)),
            Told::Silent => problems.push(format!("the check {} is silent: {error}", check.name)),
        }
        let last = standing.as_ref().map(|standing| &standing.last).filter(|last| last.ts_ms > 0);
        json!({
            "name": check.name,
            "failing": told == Told::Failing,
            "silent": told == Told::Silent,
            "last_ms": last.map(|last| last.ts_ms),
            "ok": last.map(|last| last.ok),
            "latency_ms": last.map(|last| last.latency_ms),
            "error": standing.as_ref().map(|standing| standing.last.error.as_str()),
        })
    }

    fn backup_status(&self, backup: &Backup, now_ms: u64, problems: &mut Vec<String>) -> Value {
        let name = &backup.name;
        let (last, good) = match self.0.books.last_runs(name) {
            Ok(found) => found,
            Err(error) => {
                problems.push(format!("failed to look up the runs of {name}: {error}"));
                (None, None)
            }
        };
        let (next_ms, held, open) = {
            let board = self.board();
            let window = board.settings.window;
            let held = window.is_some_and(|window| window.ends_at(now_ms).is_some());
            let open = board.open.iter().find(|(_, run)| &run.backup == name);
            let open = open.map(|(id, run)| (id.clone(), run.open));
            (board.planner.next_slot(name, now_ms), held, open)
        };
        if let Some((run_id, open)) = &open
            && let Verdict::Late(late) | Verdict::GiveUp(late) =
                (Open { told: None, ..*open }).verdict(&self.0.patience, now_ms)
        {
            problems.push(format!("run {run_id} of {name} is late: {late}"));
        }
        let overdue = !held
            && open.is_none()
            && next_ms.is_some_and(|next| next.saturating_add(OVERDUE_MS) < now_ms);
        if overdue {
            problems.push(format!("the backup {name} is due and has not begun"));
        }
        if let Some(run) = last.as_ref().filter(|run| run.state == "failed") {
            problems.push(format!("the last run of {name} failed: {}", run.error));
        }
        let field = |run: &Option<RunView>, of: &dyn Fn(&RunView) -> Value| {
            run.as_ref().map_or(Value::Null, of)
        };
        json!({
            "name": name,
            "schedule": backup.schedule.to_string(),
            "next_ms": next_ms,
            "overdue": overdue,
            "open_run": open.map(|(id, _)| id),
            "last_state": field(&last, &|run| json!(run.state)),
            "last_error": field(&last, &|run| json!(run.error)),
            "last_good_ms": field(&good, &|run| json!(run.finished_ms)),
            "last_good_run": field(&good, &|run| json!(run.run_id)),
        })
    }
}
