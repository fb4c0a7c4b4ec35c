//! SQLite through the linked-in library: a consistent snapshot in the work directory, checked, then streamed.
//!
//! How the snapshot is made depends on who is there ([`inspect`]):
//!
//! | the database | how | |
//! |---|---|---|
//! | WAL mode, `-wal` and `-shm` exist: somebody is connected, or was and crashed | [`live`] | one read transaction over the whole copy; writers go on |
//! | rollback mode | [`live`] | stepwise, writers go on; after 3 restarts inside one read transaction, which holds writers up: a warning |
//! | WAL mode and nobody connected (`-wal` or `-shm` is missing) | [`quiet`] | the files copied as they are, and unchanged since |
//! | rollback mode with a hot journal (a crash) and nobody connected | [`quiet`] | as above, the journal with it; rolled back in the copy |
//!
//! The source is only ever opened for reading, so nothing is written to its data: no checkpoint, no rollback (after a
//! crash SQLite may build the index in an existing `-shm` anew, which holds no data). The
//! second half of the table exists because merely reading a WAL database that nobody has open would create
//! `-wal` and `-shm` beside it, owned by whoever the agent runs as, which can lock the application out.
//!
//! The agent's process opens and closes the file itself as well, and POSIX takes **all** locks of a process
//! on a file away when any descriptor of it is closed; so only one copy of a file is made at a time
//! ([`turn`]).
//!
//! A missing file and one of 0 bytes are errors: SQLite would take both for a fresh database, but in a place
//! where there is something to back up it means that the data are gone.

mod access;
mod check;
mod fault;
mod inspect;
mod live;
pub(super) mod load;
mod quiet;
mod turn;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use fault::SqliteFault;
pub use turn::{Turn, try_take};

use self::inspect::inspect;
use super::workfile::{self, WorkFile};
use super::{Context, Driver, DriverError, Dumped, Prepared, space};
use crate::clock::Deadline;
use crate::config::HostPolicy;
use crate::model::{Connection, Progress, Step};

const CHUNK_BYTES: usize = 256 * 1024;
/// Tries to copy a database with a hot journal as files, before SQLite is asked again.
const HOT_TRIES: u32 = 30;
/// Tries that may fail because a companion came or went.
const MAX_DOUBTS: u32 = 5;

/// The driver of one SQLite file.
pub(super) struct Sqlite {
    /// As the target names it.
    path: PathBuf,
}

impl Sqlite {
    /// A driver for the file that the target names.
    pub(super) fn new(connection: &Connection, policy: &HostPolicy) -> Result<Self, DriverError> {
        let path = PathBuf::from(&connection.database);
        access::check_form(&path, policy)?;
        Ok(Self { path })
    }

    fn fault(&self, fault: SqliteFault) -> DriverError {
        DriverError::Sqlite { path: self.path.clone(), fault }
    }
}

impl Driver for Sqlite {
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
        let real = access::admit(&self.path, cx)?;
        let _turn = turn::take(&real, cx.cancel).map_err(|f| self.or_cancelled(f, cx))?;
        let seen = inspect(&real).map_err(|fault| self.fault(fault))?;
        workfile::ensure(cx.work_dir)?;
        space::check(cx.work_dir, seen.bytes(), cx.limits)?;
        Ok(Prepared {
            engine_version: format!("SQLite {}", rusqlite::version()),
            size_hint_bytes: Some(seen.bytes()),
            warnings: Vec::new(),
        })
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        let real = access::admit(&self.path, cx)?;
        let mut warnings = Vec::new();
        let snapshot = self.snapshot(&real, cx, &mut warnings)?;
        let bytes = check::check(snapshot.path(), cx.cancel, &mut warnings)
            .map_err(|fault| self.or_cancelled(fault, cx))?;
        stream(snapshot.path(), bytes, cx, out)?;
        Ok(Dumped { bytes, warnings })
    }
}

impl Sqlite {
    /// Makes the snapshot in whatever way the state of the files asks for, looking again when it changes.
    fn snapshot(
        &self,
        real: &Path,
        cx: &Context<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<WorkFile, DriverError> {
        let _turn = turn::take(real, cx.cancel).map_err(|fault| self.or_cancelled(fault, cx))?;
        let deadline = Deadline::after(cx.limits.stuck_timeout);
        // Once the journal was found to be hot it is left alone for some tries: as root, SQLite touches it by looking.
        // Not for ever: whoever changes the database all the time has rolled it back.
        let mut hot = 0u32;
        let mut doubts = 0;
        loop {
            // Of the try that counts.
            warnings.clear();
            let seen = inspect(real).map_err(|fault| self.fault(fault))?;
            let (snapshot, file) = WorkFile::create(cx.work_dir, "snapshot")?;
            space::check(cx.work_dir, seen.bytes(), cx.limits)?;
            let made = if seen.quiet() || (hot > 0 && seen.journal.is_some()) {
                quiet::copy(real, &seen, &snapshot, file, cx)
            } else {
                live::copy(real, &seen, snapshot.path(), cx, warnings)
            };
            match made {
                Ok(()) => return Ok(snapshot),
                Err(Stop::Fault(SqliteFault::HotJournal)) if !deadline.passed() => hot = HOT_TRIES,
                Err(Stop::Fault(SqliteFault::Changing)) if !deadline.passed() => {
                    hot = hot.saturating_sub(1);
                    cx.cancel.sleep(Duration::from_millis(100));
                }
                Err(Stop::Doubtful(_)) if doubts < MAX_DOUBTS => {
                    doubts += 1;
                    cx.cancel.sleep(Duration::from_millis(100));
                }
                Err(Stop::Fault(fault) | Stop::Doubtful(fault)) => {
                    return Err(self.or_cancelled(fault, cx));
                }
                Err(Stop::Other(error)) => return Err(error),
            }
            if let Some(why) = cx.cancel.why() {
                return Err(DriverError::Cancelled(why));
            }
        }
    }

    /// A fault that a cancel brought about is the cancel.
    fn or_cancelled(&self, fault: SqliteFault, cx: &Context<'_>) -> DriverError {
        match cx.cancel.why() {
            Some(why) => DriverError::Cancelled(why),
            None => self.fault(fault),
        }
    }
}

/// Why a copy was not made: something about the database, or something about us.
enum Stop {
    Fault(SqliteFault),
    /// A fault that may only mean that somebody opened or closed the database just now.
    Doubtful(SqliteFault),
    Other(DriverError),
}

impl From<SqliteFault> for Stop {
    fn from(fault: SqliteFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Fault(error.into())
    }
}

impl From<DriverError> for Stop {
    fn from(error: DriverError) -> Self {
        Self::Other(error)
    }
}

/// Copying the snapshot is the first half of the work, streaming it the second.
fn percent(half: u64, done: u64, total: u64) -> Option<u8> {
    let share = (u128::from(done.min(total)) * 50).checked_div(u128::from(total))?;
    u8::try_from(share + u128::from(half) * 50).ok()
}

fn stream(
    snapshot: &Path,
    bytes: u64,
    cx: &Context<'_>,
    out: &mut dyn Write,
) -> Result<(), DriverError> {
    let failed = |source| DriverError::Work { path: snapshot.to_owned(), source };
    let mut file = File::open(snapshot).map_err(failed)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0;
    while done < bytes {
        if let Some(why) = cx.cancel.why() {
            return Err(DriverError::Cancelled(why));
        }
        let length = file.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.write_all(buffer.get(..length).unwrap_or_default()).map_err(|error| {
            cx.cancel.why().map_or(DriverError::Sink(error), DriverError::Cancelled)
        })?;
        done += length as u64;
        let percent = percent(1, done, bytes);
        (cx.progress)(Progress { step: Step::Dumping, percent, bytes: done });
    }
    Ok(())
}
