//! The life of a run as the plane drives it: begun when due, ordered from the agent, watched, ended.
//!
//! Each step is on the disk before the next one is taken, and none holds the board's lock while it writes.

use super::error::BooksError;
use super::{Plane, RUN_PREFIX};
use crate::control::file::Backup;
use crate::control::notify::Failure;
use crate::control::schedule::Start;
use crate::control::session::Command;
use crate::control::watch::{Late, Stage, Verdict};
use crate::wire::{RunBackup, ServerMessage};

impl Plane {
    /// Starts what the schedules ask for; returns when to look again.
    pub(super) fn start_due(&self, now_ms: u64) -> u64 {
        /// After books that could not take a run.
        const AGAIN_MS: u64 = 60_000;
        let _begin = self.0.books.begin_lock();
        let (plan, settings) = {
            let mut guard = self.board();
            let board = &mut *guard;
            let open: Vec<_> = board.open.values().map(|run| run.backup.clone()).collect();
            let busy = |backup: &str| open.iter().any(|b| b == backup);
            (board.planner.plan(now_ms, &busy), board.settings.clone())
        };
        let mut again_ms = plan.again_ms;
        for (backup, mark) in plan.marks {
            match self.0.books.set_mark(&backup, &mark) {
                Ok(()) => self.board().planner.accept(&backup, mark),
                Err(error) => {
                    log::error!("failed to note the schedule of {backup}: {error}");
                    again_ms = again_ms.min(now_ms + AGAIN_MS);
                }
            }
        }
        for start in plan.start {
            let Some(backup) = settings.backup(&start.backup) else { continue };
            match self.begin(backup, Some(&start), now_ms) {
                Ok(_) => self.board().planner.accept(&start.backup, start.mark),
                Err(error) => {
                    self.missed(&start, &error, now_ms);
                    again_ms = again_ms.min(now_ms + AGAIN_MS);
                }
            }
        }
        again_ms
    }

    /// Writes a new run down; it is sent with the next [`Self::send_waiting`].
    pub(super) fn begin(
        &self,
        backup: &Backup,
        start: Option<&Start>,
        now_ms: u64,
    ) -> Result<String, BooksError> {
        let run_id = self.0.books.begin(backup, start, now_ms)?;
        match start {
            Some(start) if start.slot.missed > 0 => log::warn!(
                "run {run_id} of {} is due; it makes up for {} missed ones",
                backup.name,
                start.slot.missed
            ),
            Some(_) => log::info!("run {run_id} of {} is due", backup.name),
            None => log::info!("run {run_id} of {} was asked for", backup.name),
        }
        self.board().track(&run_id, &backup.name, start.is_none(), now_ms);
        Ok(run_id)
    }

    /// A run that was due could not even be begun.
    fn missed(&self, start: &Start, error: &BooksError, now_ms: u64) {
        log::error!("the backup {} is due and cannot be started: {error}", start.backup);
        if self.board().first_miss(&start.backup, start.slot.at_ms) {
            let what = Failure {
                name: start.backup.clone(),
                run_id: String::new(),
                status: "missed".into(),
                error: error.to_string(),
            };
            self.alarm(what, now_ms);
        }
    }

    /// Orders what waits: at once, or, where that asks a service elsewhere that may hang, on the scheduler's thread.
    pub(super) fn order_waiting(&self, now_ms: u64) {
        if self.0.books.orders_take_time() { self.nudge() } else { self.send_waiting(now_ms) }
    }

    /// Sends the runs that their agent was not told of.
    pub(super) fn send_waiting(&self, now_ms: u64) {
        let waiting = {
            let board = self.board();
            if board.line.is_none() {
                return;
            }
            board.unsent()
        };
        for run_id in waiting {
            self.send(&run_id, now_ms);
        }
    }

    /// Sends RunBackup with a new object key; a repeat of an open run only replaces its credentials.
    pub(super) fn send(&self, run_id: &str, now_ms: u64) {
        let (line, backup, manual, timeout, count, in_parts) = {
            let mut board = self.board();
            let Some(line) = board.line.clone() else { return };
            let in_parts = board.in_parts;
            let Some(run) = board.open.get_mut(run_id) else { return };
            run.sent += 1;
            (line, run.backup.clone(), run.manual, run.open.timeout, run.sent, in_parts)
        };
        let key_file = &self.settings().master_key;
        let order = self.0.books.key_in_place(key_file);
        let order = match order.and_then(|()| self.0.books.order(run_id, timeout, in_parts, now_ms))
        {
            Ok(order) => order,
            Err(error) => return self.not_ordered(run_id, manual, &error, now_ms),
        };
        let correlation_id = format!("{RUN_PREFIX}{run_id}/{count}");
        let message = ServerMessage::RunBackup(RunBackup {
            job_id: backup,
            run_id: run_id.to_owned(),
            manual_trigger: manual,
            upload_creds: Some(order.creds),
            encrypted_dek: order.data_key,
        });
        if line.send(Command { correlation_id, message })
            && let Some(run) = self.board().open.get_mut(run_id)
        {
            run.wants_order = false;
            if run.open.stage == Stage::Waiting {
                run.open.enter(Stage::Sent, now_ms);
            }
        }
    }

    /// A run that cannot be ordered now: whoever asked for it is told at once; a scheduled one is tried again
    /// with every tick as long as that may help, and people are told once.
    fn not_ordered(&self, run_id: &str, manual: bool, error: &BooksError, now_ms: u64) {
        if manual || !error.retry() {
            if let Err(error) = self.end(run_id, false, &error.to_string(), now_ms) {
                log::error!("failed to note that run {run_id} failed: {error}");
            }
            return;
        }
        let backup = {
            let mut board = self.board();
            let Some(run) = board.open.get_mut(run_id) else { return };
            if run.open.told.replace(Stage::Waiting) == Some(Stage::Waiting) {
                return;
            }
            run.backup.clone()
        };
        log::error!("run {run_id} of {backup} cannot start yet: {error}");
        let what = Failure {
            name: backup,
            run_id: run_id.to_owned(),
            status: "late".into(),
            error: error.to_string(),
        };
        self.alarm(what, now_ms);
    }

    /// Tells of open runs that are late, and gives the lost ones up; returns when to look again.
    pub(super) fn watch(&self, now_ms: u64) -> u64 {
        let mut again_ms = u64::MAX;
        let mut found = Vec::new();
        {
            let mut board = self.board();
            for (run_id, run) in &mut board.open {
                match run.open.verdict(&self.0.patience, now_ms) {
                    Verdict::Fine(until) => again_ms = again_ms.min(until),
                    Verdict::Late(late) => {
                        run.open.told = Some(late.stage);
                        again_ms = again_ms.min(now_ms + 1000);
                        found.push((run_id.clone(), run.backup.clone(), late, false));
                    }
                    Verdict::GiveUp(late) => {
                        found.push((run_id.clone(), run.backup.clone(), late, true));
                    }
                }
            }
        }
        for (run_id, backup, late, lost) in found {
            if lost {
                self.give_up(&run_id, &backup, &late, now_ms);
            } else {
                self.late(&run_id, &backup, &late, now_ms);
            }
        }
        again_ms
    }

    fn late(&self, run_id: &str, backup: &str, late: &Late, now_ms: u64) {
        log::error!("run {run_id} of {backup} is late: {late}");
        let what = Failure {
            name: backup.to_owned(),
            run_id: run_id.to_owned(),
            status: "late".into(),
            error: late.to_string(),
        };
        self.alarm(what, now_ms);
    }

    fn give_up(&self, run_id: &str, backup: &str, late: &Late, now_ms: u64) {
        let error = format!("given up: {late}");
        // Where the agent still has it, the next run of this backup must not wait behind it. Without a line
        // there is nobody to tell, and the run's upload is refused because it is over.
        self.cancel(backup);
        if let Err(error) = self.end(run_id, false, &error, now_ms) {
            log::error!("failed to note that run {run_id} was given up: {error}");
        }
    }

    /// Ends a run without an artifact, in the books and then for everybody.
    pub(super) fn end(
        &self,
        run_id: &str,
        cancelled: bool,
        error: &str,
        now_ms: u64,
    ) -> Result<(), BooksError> {
        let changed = self.0.books.end(run_id, cancelled, error, now_ms)?;
        self.board().over(run_id);
        self.nudge();
        if changed {
            self.ended(run_id, now_ms);
        }
        Ok(())
    }
}
