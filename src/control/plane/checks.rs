//! The checks' results as the plane takes them: what changes is logged, told and noted.
//!
//! People are told before it is noted: a process that ends in between tells them twice, never not at all.

use super::{BooksError, Plane};
use crate::control::checks::{Change, Mark, Standings};
use crate::control::file::Settings;
use crate::control::notify::Failure;
use crate::control::plane::Books;
use crate::wire::HealthResult;

/// The standings as they were noted, without those of checks that are gone.
pub(super) fn recall(
    books: &Books,
    settings: &Settings,
    now_ms: u64,
) -> Result<Standings, BooksError> {
    let mut standings = Standings::new(books.check_marks()?, now_ms);
    for name in standings.keep(&settings.checks) {
        note(books, &name, &Mark::default());
    }
    Ok(standings)
}

/// Notes what people know; if that fails they may be told once more than they should.
pub(super) fn note(books: &Books, name: &str, mark: &Mark) {
    if let Err(error) = books.set_check_mark(name, mark) {
        log::error!("failed to note how the check {name} stands: {error}");
    }
}

impl Plane {
    /// A check's result.
    pub(super) fn checked(&self, result: HealthResult) {
        let name = result.check_id.clone();
        let change = {
            let mut board = self.board();
            if !board.settings.checks.iter().any(|check| check.name == name) {
                return;
            }
            board.checks.take(result)
        };
        if let Some(change) = change {
            self.check_changed(name, change);
        }
    }

    /// Finds the checks that report nothing; returns when to look again.
    pub(super) fn watch_checks(&self, now_ms: u64) -> u64 {
        let (silent, again_ms) = {
            let mut board = self.board();
            let settings = board.settings.clone();
            board.checks.look(&settings.checks, now_ms)
        };
        for name in silent {
            self.check_changed(name, Change::Silent);
        }
        again_ms
    }

    fn check_changed(&self, name: String, change: Change) {
        let Some(mark) = self.board().checks.get(&name).map(|standing| standing.mark()) else {
            return;
        };
        let error = mark.error.clone();
        let status = match change {
            Change::Failing => {
                log::error!("the check {name} fails: {error}");
                "check-failed"
            }
            Change::Silent => {
                log::error!("the check {name} is silent: {error}");
                "check-silent"
            }
            Change::Recovered => {
                log::info!("the check {name} works again");
                "check-recovered"
            }
        };
        let failure =
            Failure { name: name.clone(), run_id: String::new(), status: status.into(), error };
        self.notifier().tell(failure);
        note(&self.0.books, &name, &mark);
    }
}
