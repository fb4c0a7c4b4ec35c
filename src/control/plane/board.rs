//! What the plane knows of the moment: settings, the agent's line, open runs, who follows them.
//!
//! In memory only: all of it is rebuilt from the books and the file at start. It never waits and never
//! touches a disk, so its lock is only ever held for moments.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::control::checks::Standings;
use crate::control::file::Settings;
use crate::control::schedule::Planner;
use crate::control::session::Line;
use crate::control::watch::{Open, Stage};
use crate::wire::{JobStatus, JobUpdate};

/// An open run.
#[derive(Debug, Clone)]
pub(super) struct Tracked {
    /// Its backup's name.
    pub backup: String,
    /// Whether a person asked for it.
    pub manual: bool,
    /// How far it is and since when.
    pub open: Open,
    /// The agent's word for what it does.
    pub step: String,
    /// How far that is.
    pub percent: u32,
    /// How often it was sent; tells the answers apart.
    pub sent: u32,
    /// The agent needs another order for its next attempt.
    pub wants_order: bool,
    /// Whether it was said that the agent works on it.
    pub said: bool,
}

/// A change that a follower is told about; it looks up the rest.
#[derive(Debug)]
struct Follower {
    run_id: String,
    changed: Sender<()>,
}

/// What an update asks the plane to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing more.
    Nothing,
    /// The agent will make a new attempt: it needs a new object key.
    NewAttempt,
}

/// The board.
#[derive(Debug)]
pub(super) struct Board {
    pub settings: Arc<Settings>,
    /// Of the configuration that the agent should hold.
    pub config_version: u64,
    pub planner: Planner,
    pub line: Option<Line>,
    /// Whether the agent can upload in parts.
    pub in_parts: bool,
    /// When the agent said something last, Unix milliseconds.
    pub heard_ms: u64,
    pub open: BTreeMap<String, Tracked>,
    /// How the checks stand.
    pub checks: Standings,
    followers: Vec<Follower>,
    /// The last slot of each backup of which it was told that it could not be started.
    missed: HashMap<String, u64>,
    /// The highest entry of each agent's store that was dealt with.
    known: HashMap<String, u64>,
}

impl Board {
    pub fn new(settings: Arc<Settings>, config_version: u64, planner: Planner) -> Self {
        Self {
            settings,
            config_version,
            planner,
            line: None,
            in_parts: false,
            heard_ms: 0,
            open: BTreeMap::new(),
            checks: Standings::default(),
            followers: Vec::new(),
            missed: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// The open run of a backup.
    pub fn open_run(&self, backup: &str) -> Option<&str> {
        self.open.iter().find(|(_, run)| run.backup == backup).map(|(id, _)| id.as_str())
    }

    /// Begins to track a run.
    pub fn track(&mut self, run_id: &str, backup: &str, manual: bool, now_ms: u64) {
        let timeout = self.settings.backup(backup).map_or(LOST_TIMEOUT, |backup| backup.timeout);
        self.open.insert(
            run_id.to_owned(),
            Tracked {
                backup: backup.to_owned(),
                manual,
                open: Open::new(timeout, now_ms),
                step: String::new(),
                percent: 0,
                sent: 0,
                wants_order: false,
                said: false,
            },
        );
    }

    /// The session is over: what the agent was told and has not answered may not have reached it.
    pub fn hung_up(&mut self, line: &Line, now_ms: u64) {
        if self.line.as_ref().is_some_and(|current| current.id() == line.id()) {
            self.line = None;
        }
        for run in self.open.values_mut().filter(|run| run.open.stage == Stage::Sent) {
            run.open.enter(Stage::Waiting, now_ms);
        }
    }

    /// The runs that the agent must be told of.
    pub fn unsent(&self) -> Vec<String> {
        let waiting =
            |(_, run): &(&String, &Tracked)| run.open.stage == Stage::Waiting || run.wants_order;
        self.open.iter().filter(waiting).map(|(id, _)| id.clone()).collect()
    }

    /// Takes a report that is not a result.
    pub fn update(&mut self, update: &JobUpdate, now_ms: u64) -> Asks {
        let Some(run) = self.open.get_mut(&update.run_id) else { return Asks::Nothing };
        run.step.clone_from(&update.current_step);
        run.percent = update.progress_percent.min(100);
        let asks = match (run.open.stage, update.status) {
            (Stage::Running, JobStatus::Queued) => Asks::NewAttempt,
            _ => Asks::Nothing,
        };
        match update.status {
            JobStatus::Queued => run.open.enter(Stage::Accepted, now_ms),
            JobStatus::Running => run.open.enter(Stage::Running, now_ms),
            JobStatus::Unspecified
            | JobStatus::Success
            | JobStatus::Failed
            | JobStatus::Cancelled => {}
        }
        run.wants_order |= asks == Asks::NewAttempt;
        self.changed(&update.run_id);
        asks
    }

    /// The clock jumped, or the machine slept.
    pub fn clock_jumped(&mut self, jump_ms: i64, now_ms: u64) {
        for run in self.open.values_mut() {
            run.open.clock_jumped(jump_ms, now_ms);
        }
    }

    /// The backup of a run that the agent works on, the first time.
    pub fn first_work(&mut self, run_id: &str) -> Option<String> {
        let run = self.open.get_mut(run_id).filter(|run| run.open.stage == Stage::Running)?;
        let said = std::mem::replace(&mut run.said, true);
        (!said).then(|| run.backup.clone())
    }

    /// The agent has taken a run on.
    pub fn accepted(&mut self, run_id: &str, now_ms: u64) {
        if let Some(run) = self.open.get_mut(run_id)
            && matches!(run.open.stage, Stage::Waiting | Stage::Sent)
        {
            run.open.enter(Stage::Accepted, now_ms);
        }
    }

    /// The run is over: its followers see their channel end.
    pub fn over(&mut self, run_id: &str) -> Option<Tracked> {
        self.followers.retain(|follower| follower.run_id != run_id);
        self.open.remove(run_id)
    }

    /// Whether this is the first word about a slot that could not be started.
    pub fn first_miss(&mut self, backup: &str, slot_ms: u64) -> bool {
        self.missed.insert(backup.to_owned(), slot_ms) != Some(slot_ms)
    }

    /// Whether an entry was dealt with: entries come in order, so all up to the highest were.
    pub fn is_known(&self, store_id: &str, entry_id: u64) -> bool {
        entry_id != 0 && self.known.get(store_id).is_some_and(|highest| entry_id <= *highest)
    }

    /// Notes that an entry was dealt with.
    pub fn dealt_with(&mut self, store_id: &str, entry_id: u64) {
        /// Stores come and go with reinstalled agents; results are idempotent without this memory.
        const STORES: usize = 64;
        if entry_id == 0 || store_id.is_empty() {
            return;
        }
        if self.known.len() >= STORES && !self.known.contains_key(store_id) {
            self.known.clear();
        }
        let highest = self.known.entry(store_id.to_owned()).or_default();
        *highest = entry_id.max(*highest);
    }

    /// A channel that hears of changes of a run and ends with it; a change that nobody took yet stands for
    /// those after it.
    pub fn follow(&mut self, run_id: &str) -> Receiver<()> {
        let (changed, receiver) = bounded(1);
        self.followers.push(Follower { run_id: run_id.to_owned(), changed });
        receiver
    }

    fn changed(&mut self, run_id: &str) {
        self.followers.retain(|follower| {
            follower.run_id != run_id
                || !matches!(
                    follower.changed.try_send(()),
                    Err(crossbeam_channel::TrySendError::Disconnected(()))
                )
        });
    }
}

/// For an open run whose backup is no longer in the file.
const LOST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(12 * 3600);
