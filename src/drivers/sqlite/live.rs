//! The online backup of a database that others may have open and write to.
//!
//! In WAL mode one read transaction spans the copy: it sees one moment, and writers go on. In rollback mode a
//! read transaction would make every writer wait, so the copy is first made step by step with no lock in
//! between; a write by somebody else in such a gap makes SQLite start over. After [`MAX_RESTARTS`] of these
//! the rest happens inside one read transaction after all: then writers wait, but the copy comes to an end
//! however busy the database is. (Readers wait too then, behind a writer that waits.)
//!
//! A WAL database whose last user closes it loses `-wal` and `-shm`, and SQLite would make new ones for us, owned by
//! whoever we are: the application could be locked out. So the file is guarded first ([`guard`]).

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::inspect::{self, Seen};
use super::{SqliteFault, Stop, percent};
use crate::clock::Deadline;
use crate::drivers::workfile::with_suffix;
use crate::drivers::{Context, DriverError, space};
use crate::model::{Progress, Step};

/// Copied at once; in rollback mode nobody can write meanwhile, and nothing of it can be cancelled.
const STEP_BYTES: u32 = 1 << 20;
const MAX_RESTARTS: u32 = 3;
/// Between two tries to get a lock. Not a multiple of anything, lest we keep step with a writer.
const PAUSES_MS: [u64; 6] = [1, 2, 5, 11, 23, 37];

/// Copies the database into the (empty) file `snapshot`.
pub(super) fn copy(
    real: &Path,
    seen: &Seen,
    snapshot: &Path,
    cx: &Context<'_>,
    warnings: &mut Vec<String>,
) -> Result<(), Stop> {
    let mut patience = Patience::new(cx);
    // Declared before the connection, so that it goes after it: closing a descriptor takes the locks of all.
    let _guard = if seen.wal_mode { Some(guard(real, &mut patience)?) } else { None };
    let source = open_source(real).map_err(doubtful)?;
    let mut target = open_target(snapshot)?;
    {
        let backup = Backup::new(&source, &mut target)?;
        let space = SourceSpace::new(real, cx)?;
        let mut copy = Copy { source: &source, backup, cx, patience, space };
        if seen.wal_mode {
            copy.hold()?;
        }
        copy.run(seen, warnings)?;
    }
    target.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Holds the lock that every connection to a WAL database holds, so that nobody counts as the last one and removes the
/// companions; then makes sure that they are there. It hinders neither readers nor writers. SQLite's own lock of this
/// process follows before anything could take ours away.
fn guard(real: &Path, patience: &mut Patience<'_>) -> Result<File, Stop> {
    let file = inspect::open(real).map_err(inspect::denied)?;
    // Refused while somebody is just removing them, or keeps the database for himself. On a file system without locks
    // SQLite will say what it thinks of that.
    while let Err(Errno::AGAIN | Errno::ACCESS) =
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared)
    {
        patience.wait()?;
    }
    let there = |suffix| with_suffix(real, suffix).symlink_metadata().is_ok();
    if there("-wal") && there("-shm") { Ok(file) } else { Err(SqliteFault::Changing.into()) }
}

/// An error of the source's that the coming and going of its companions can bring about.
fn doubtful(error: rusqlite::Error) -> Stop {
    let passing = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied)
    );
    match SqliteFault::from(error) {
        fault @ SqliteFault::HotJournal => Stop::Fault(fault),
        fault if passing => Stop::Doubtful(fault),
        fault => Stop::Fault(fault),
    }
}

/// Watches the file system of the database: while we read, its WAL cannot start over and grows with every write.
struct SourceSpace<'a> {
    dir: &'a Path,
    floor: u64,
}

impl<'a> SourceSpace<'a> {
    /// A file system that was nearly full before we came is not our doing; half of what was free must stay.
    fn new(real: &'a Path, cx: &Context<'_>) -> Result<Self, DriverError> {
        let dir = real.parent().unwrap_or(Path::new("/"));
        let (free, reserve) = space::free_and_reserve(dir, cx.limits)?;
        Ok(Self { dir, floor: reserve.min(free / 2) })
    }

    fn check(&self, cx: &Context<'_>) -> Result<(), DriverError> {
        let (free, _) = space::free_and_reserve(self.dir, cx.limits)?;
        if free >= self.floor {
            return Ok(());
        }
        Err(DriverError::Space { path: self.dir.to_owned(), free, needed: self.floor })
    }
}

fn open_source(real: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(real, flags)?;
    // Waiting for locks is ours, so that a cancel can end it.
    source.busy_timeout(Duration::ZERO)?;
    source.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(source)
}

/// Nobody else knows the snapshot, and if the copy fails it is thrown away: no journal, no syncing.
fn open_target(snapshot: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let target = Connection::open_with_flags(snapshot, flags)?;
    target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
    Ok(target)
}

struct Copy<'a> {
    source: &'a Connection,
    backup: Backup<'a, 'a>,
    cx: &'a Context<'a>,
    patience: Patience<'a>,
    space: SourceSpace<'a>,
}

impl Copy<'_> {
    fn run(&mut self, seen: &Seen, warnings: &mut Vec<String>) -> Result<(), Stop> {
        let pages = i32::try_from(STEP_BYTES / seen.page_bytes).unwrap_or(64).max(1);
        let mut restarts = Restarts::default();
        let mut checked = 0;
        loop {
            match self.backup.step(pages)? {
                StepResult::Done => return Ok(()),
                StepResult::More => self.patience.renew(),
                // Busy, Locked, and whatever a later version adds: not now.
                _ => {
                    self.patience.wait()?;
                    continue;
                }
            }
            self.patience.check_cancel()?;
            let done = self.report(seen);
            if done >= checked + space::EVERY_BYTES {
                checked = done;
                space::check(self.cx.work_dir, 0, self.cx.limits)?;
                self.space.check(self.cx)?;
            }
            if restarts.seen(self.backup.progress().remaining) && restarts.count == MAX_RESTARTS {
                checked = 0;
                self.hold()?;
                warnings.push(format!(
                    "the SQLite database was written to during {MAX_RESTARTS} tries to copy it, so writers, \
                     and readers behind them, had to wait while it was copied; WAL mode (PRAGMA journal_mode = WAL) avoids that"
                ));
            }
        }
    }

    /// Begins the read transaction that keeps the database as it is now, for us.
    fn hold(&mut self) -> Result<(), Stop> {
        self.source.execute_batch("BEGIN")?;
        loop {
            // Any read will do; this one needs nothing of the schema.
            let read = self.source.query_row("PRAGMA schema_version", [], |_| Ok(()));
            match read.map_err(doubtful) {
                Ok(()) => return Ok(()),
                Err(Stop::Fault(SqliteFault::Busy { .. })) => self.patience.wait()?,
                Err(stop) => return Err(stop),
            }
        }
    }

    /// Tells how far it is; the bytes copied so far.
    fn report(&self, seen: &Seen) -> u64 {
        let progress = self.backup.progress();
        let total = u64::try_from(progress.pagecount).unwrap_or(0);
        let done = total.saturating_sub(u64::try_from(progress.remaining).unwrap_or(0));
        let percent = percent(0, done, total);
        (self.cx.progress)(Progress { step: Step::Dumping, percent, bytes: 0 });
        done * u64::from(seen.page_bytes)
    }
}

/// Notices that SQLite began anew: pages are left that were done before.
#[derive(Debug, Default)]
struct Restarts {
    remaining: Option<i32>,
    count: u32,
}

impl Restarts {
    /// Whether the step that left so many pages had begun anew. Every other step leaves fewer than the one
    /// before it, as a database only grows by a write, and that is what makes SQLite start over.
    fn seen(&mut self, remaining: i32) -> bool {
        let restarted = self.remaining.is_some_and(|before| remaining >= before);
        self.count += u32::from(restarted);
        self.remaining = Some(remaining);
        restarted
    }
}

/// Waits for locks, up to `stuck_timeout` without a page copied.
struct Patience<'a> {
    cx: &'a Context<'a>,
    deadline: Deadline,
    turn: usize,
}

impl<'a> Patience<'a> {
    fn new(cx: &'a Context<'a>) -> Self {
        Self { cx, deadline: Deadline::after(cx.limits.stuck_timeout), turn: 0 }
    }

    fn renew(&mut self) {
        *self = Self::new(self.cx);
    }

    fn wait(&mut self) -> Result<(), Stop> {
        if self.deadline.passed() {
            return Err(SqliteFault::Busy { waited: self.cx.limits.stuck_timeout }.into());
        }
        let pause = PAUSES_MS.get(self.turn % PAUSES_MS.len()).copied().unwrap_or(1);
        self.turn += 1;
        self.cx.cancel.sleep(Duration::from_millis(pause));
        self.check_cancel()
    }

    fn check_cancel(&self) -> Result<(), Stop> {
        match self.cx.cancel.why() {
            Some(why) => Err(DriverError::Cancelled(why).into()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_a_step_that_leaves_no_less() {
        let mut restarts = Restarts::default();
        let steps =
            [(300, false), (200, false), (300, true), (200, false), (200, true), (0, false)];
        for (remaining, restarted) in steps {
            assert_eq!(restarts.seen(remaining), restarted, "{remaining}");
        }
        assert_eq!(restarts.count, 2);
    }
}
