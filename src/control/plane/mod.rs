//! The embedded control plane as a whole: it decides when to back up, orders it, and keeps the books.
//!
//! ```text
//!             due, late, kept            orders                RunBackup
//! scheduler ─────────────────▶ plane ─────────────▶ session ─────────────▶ agent
//!                              │  ▲                    │                     │ PUT
//!              catalogue ◀─────┘  └─── results ◀───────┘      storage ◀──────┘
//! ```
//! | thread | owns | blocks in |
//! |---|---|---|
//! | `schedule` | what is due, late or released | the nudge channel, until the next time that matters |
//! | `http-accept`, `http-conn` | the agent's session, uploads | `poll(2)` |
//! | `notify` | one way to people each: a command, a webhook … | its queue, the other side |
//!
//! A run is durable before its agent hears of it, and its end is durable before its agent's report is
//! confirmed. The board (memory) knows the moment, the books (disk) know the truth; the board's lock is
//! never held while the books write.

mod board;
mod books;
mod checks;
mod desk;
mod error;
mod runs;
mod status;
mod telling;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use board::Board;
pub use books::Books;
pub use error::BooksError;

use super::file::Settings;
use super::manifest::Trigger;
use super::notify::{Notifier, Tester};
use super::schedule::Planner;
use super::session::Command;
use super::view::RunView;
use super::watch::{Patience, Stage};
use crate::clock::unix_ms;
use crate::wire::ServerMessage;

/// The name of the one agent that an embedded control plane has.
pub const LOCAL_AGENT: &str = "local";

/// Why a file cannot be applied to a running control plane.
#[derive(Debug, PartialEq, Eq)]
pub struct NeedsRestart(&'static str);

impl fmt::Display for NeedsRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a changed {} takes effect only after a restart; nothing was applied", self.0)
    }
}

impl std::error::Error for NeedsRestart {}

/// Why a backup cannot be begun.
#[derive(Debug)]
pub enum BeginError {
    /// The file has no backup of that name.
    Unknown(String),
    /// The books cannot take it.
    Books(BooksError),
}

impl BeginError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unknown(_) => false,
            Self::Books(error) => error.retry(),
        }
    }
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(
                f,
                "there is no backup called \"{name}\"; `backupy runs` and the file of `up` know the names"
            ),
            Self::Books(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BeginError {}

/// The control plane. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Plane(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    books: Books,
    board: Mutex<Board>,
    notifier: Notifier,
    patience: Patience,
    nudge: Sender<()>,
    nudged: Receiver<()>,
}

impl Plane {
    /// A control plane over opened books: people hear what the last one did not come to tell; nothing else happens until
    /// [`Self::tick`] is called.
    ///
    /// # Errors
    /// When the books cannot be read.
    pub fn new(
        settings: Settings,
        books: Books,
        notifier: Notifier,
        patience: Patience,
        now_ms: u64,
    ) -> Result<Self, BooksError> {
        let planner = Planner::new(settings.entries(), settings.window, books.marks()?);
        books.catalogue().keep_alarms(&|name| settings.backup(name).is_some())?;
        let standings = checks::recall(&books, &settings, now_ms)?;
        let mut board = Board::new(Arc::new(settings), now_ms, planner);
        board.checks = standings;
        for run in books.open_runs()? {
            board.track(&run.run_id, &run.backup, run.trigger == Trigger::Manual, now_ms);
        }
        let (nudge, nudged) = bounded(1);
        let board = Mutex::new(board);
        let plane = Self(Arc::new(Shared { books, board, notifier, patience, nudge, nudged }));
        plane.catch_up(now_ms)?;
        Ok(plane)
    }

    /// Puts a new master key before the others; its id.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn rotate_key(&self, now_ms: u64) -> Result<String, BooksError> {
        let path = self.settings().master_key.clone();
        self.0.books.rotate_key(&path, now_ms)
    }

    /// Wakes the scheduler: something may have changed.
    pub fn nudge(&self) {
        // Full means that it will look anyway.
        let _ = self.0.nudge.try_send(());
    }

    /// The channel of [`Self::nudge`], for the scheduler.
    pub(super) fn nudged(&self) -> &Receiver<()> {
        &self.0.nudged
    }

    /// The books.
    pub fn books(&self) -> &Books {
        &self.0.books
    }

    /// The settings of the moment.
    pub fn settings(&self) -> Arc<Settings> {
        self.board().settings.clone()
    }

    /// Notes, before the next [`Self::tick`], that the clock was set or that the machine slept for so long.
    pub fn clock_jumped(&self, jump_ms: i64, now_ms: u64) {
        let sec = jump_ms / 1000;
        log::warn!(
            "the clock jumped by {sec} s, or this machine slept: schedules go by its new time"
        );
        self.board().clock_jumped(jump_ms, now_ms);
    }

    /// Does what is due and returns when to look again, Unix milliseconds.
    pub fn tick(&self, now_ms: u64) -> u64 {
        if let Err(error) = self.0.books.saw(now_ms) {
            log::error!("failed to note the time in the catalogue: {error}");
        }
        let looked = self.0.books.look_for_storage(now_ms);
        let planned = self.start_due(now_ms);
        let watched = self.watch(now_ms);
        let checked = self.watch_checks(now_ms);
        self.send_waiting(now_ms);
        let given_up = self.0.books.give_up_uploads(now_ms);
        let tidied = self.0.books.tidy(&self.settings(), now_ms);
        planned.min(watched).min(tidied).min(looked).min(given_up).min(checked)
    }

    /// Returns once the board was free and the books could be read.
    ///
    /// # Errors
    /// When the books cannot be read, and another process may do better.
    pub fn answers(&self) -> Result<(), BooksError> {
        drop(self.board());
        match self.0.books.marks() {
            Err(error) if error.wants_restart() => Err(error),
            _ => Ok(()),
        }
    }

    /// Begins a run that a person asked for, or finds the open one; returns its id.
    ///
    /// # Errors
    /// See [`BeginError`].
    pub fn back_up(&self, name: &str, now_ms: u64) -> Result<String, BeginError> {
        let settings = self.settings();
        let backup = settings.backup(name).ok_or_else(|| BeginError::Unknown(name.to_owned()))?;
        // Looking and beginning are one step for everybody who begins runs.
        let _begin = self.0.books.begin_lock();
        if let Some(run_id) = self.board().open_run(name) {
            return Ok(run_id.to_owned());
        }
        let run_id = self.begin(backup, None, now_ms).map_err(BeginError::Books)?;
        self.order_waiting(now_ms);
        self.nudge();
        Ok(run_id)
    }

    /// Asks the agent to stop the runs of a backup; false if it is not connected.
    pub fn cancel(&self, name: &str) -> bool {
        let message = ServerMessage::CancelJob { job_id: name.to_owned() };
        let correlation_id = format!("cancel-{:x}", unix_ms());
        let line = self.board().line.clone();
        line.is_some_and(|line| line.send(Command { correlation_id, message }))
    }

    /// A channel that hears of changes of an open run and ends with it.
    pub fn follow(&self, run_id: &str) -> Receiver<()> {
        let mut board = self.board();
        let receiver = board.follow(run_id);
        if !board.open.contains_key(run_id) {
            board.over(run_id);
        }
        receiver
    }

    /// A run as it stands now.
    ///
    /// # Errors
    /// When the books cannot be read.
    pub fn run(&self, run_id: &str) -> Result<Option<RunView>, BooksError> {
        let Some(mut view) = self.0.books.run(run_id)? else { return Ok(None) };
        self.colour(&mut view);
        Ok(Some(view))
    }

    /// The newest runs, newest first.
    ///
    /// # Errors
    /// When the books cannot be read.
    pub fn runs(&self, backup: Option<&str>, most: usize) -> Result<Vec<RunView>, BooksError> {
        let mut views = self.0.books.runs(backup, most)?;
        views.iter_mut().for_each(|view| self.colour(view));
        Ok(views)
    }

    /// Applies a changed file; what did not change is not disturbed. Returns whether the agent was told.
    ///
    /// # Errors
    /// When the change needs a restart.
    pub fn reload(&self, settings: Settings, now_ms: u64) -> Result<bool, NeedsRestart> {
        let mut board = self.board();
        let old = board.settings.clone();
        if old.state_dir != settings.state_dir {
            return Err(NeedsRestart("state_dir"));
        }
        if old.storage != settings.storage {
            return Err(NeedsRestart("[storage]"));
        }
        if old.master_key != settings.master_key {
            return Err(NeedsRestart("[keys] master"));
        }
        if old.metrics_listen != settings.metrics_listen {
            return Err(NeedsRestart("metrics_listen"));
        }
        let told = old.agent_config(0) != settings.agent_config(0);
        if told {
            board.config_version = now_ms.max(board.config_version + 1);
            let config = settings.agent_config(board.config_version);
            let correlation_id = format!("config-{}", board.config_version);
            if let Some(line) = &board.line {
                let message = ServerMessage::ConfigUpdate(Some(config));
                line.send(Command { correlation_id, message });
            }
        }
        board.planner.reload(settings.entries(), settings.window);
        let channels = settings.channels();
        let gone = board.checks.keep(&settings.checks);
        board.checks.redefined(&old.checks, &settings.checks);
        board.settings = Arc::new(settings);
        drop(board);
        gone.iter().for_each(|name| checks::note(&self.0.books, name, &Default::default()));
        self.notifier().set_channels(channels);
        self.nudge();
        Ok(told)
    }

    /// For a test of the ways to people.
    pub fn testers(&self) -> Vec<Tester> {
        self.notifier().testers()
    }

    /// Lets what people are being told arrive, for a while.
    pub fn stop(&self, grace: Duration) {
        self.notifier().stop(grace, None);
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notifier(&self) -> &Notifier {
        &self.0.notifier
    }

    /// Puts what the board knows of an open run into its view.
    fn colour(&self, view: &mut RunView) {
        if let Some(run) = self.board().open.get(&view.run_id) {
            view.state =
                if run.open.stage == Stage::Running { "running" } else { "waiting" }.into();
            view.step.clone_from(&run.step);
            view.percent = run.percent;
        }
    }
}

/// Prefix of the correlation id of RunBackup: `run/<run_id>/<n>`.
const RUN_PREFIX: &str = "run/";

#[cfg(test)]
mod tests;
