//! A SQLite dump on its way back: it is the database itself.
//!
//! A database that is not there yet is copied aside and renamed. One that is there is only replaced when asked
//! to, and then page by page through the library's own backup, in one transaction: whoever has it open sees the
//! old or the new content, and no journal of the old one is ever applied to the new.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::super::load::{Inspected, Table};
use super::super::workfile::with_suffix;
use super::super::{Context, DriverError};
use super::{SqliteFault, check};
use crate::clock::{Deadline, unix_ms};
use crate::model;

/// Pages in one step.
const STEP_PAGES: i32 = 1000;
/// How long somebody else may hold the database.
const BUSY: Duration = Duration::from_secs(30);
/// Between two tries at a locked database.
const AGAIN: Duration = Duration::from_millis(100);
const TABLES_MAX: usize = 100_000;

const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' \
                      ESCAPE '\\' ORDER BY name";

/// Checks the whole of it, and counts its rows.
pub(in crate::drivers) fn inspect(dump: &Path, cx: &Context<'_>) -> Result<Inspected, DriverError> {
    let fault = |fault: SqliteFault| match cx.cancel.why() {
        Some(why) => DriverError::Cancelled(why),
        None => DriverError::Sqlite { path: dump.to_owned(), fault },
    };
    let mut inspected = Inspected::default();
    check::check(dump, cx.cancel, &mut inspected.warnings).map_err(fault)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(dump, flags).map_err(|error| fault(error.into()))?;
    check::interruptible(&copy, cx.cancel, || examine(&copy, &mut inspected)).map_err(fault)?;
    Ok(inspected)
}

fn examine(copy: &Connection, inspected: &mut Inspected) -> Result<(), SqliteFault> {
    copy.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA ignore_check_constraints = ON;")?;
    match check::findings(copy, "PRAGMA integrity_check") {
        Ok(found) => {
            let mut content = Vec::new();
            check::judge(found, &mut content)?;
            // What quick_check found already is not told twice.
            content.retain(|line| !inspected.warnings.contains(line));
            inspected.warnings.extend(content);
        }
        // Then quick_check has gone table by table, and said so.
        Err(error) if check::needs_the_application(&error) => {}
        Err(error) => return Err(error.into()),
    }
    let mut names = copy.prepare(TABLES)?;
    let names = names.query_map([], check::text)?;
    for name in names.take(TABLES_MAX) {
        let name = name?;
        let sql = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
        let rows = match check::number(copy, &sql) {
            Ok(rows) => Some(rows),
            Err(error) if check::needs_the_application(&error) => None,
            Err(error) => return Err(error.into()),
        };
        inspected.tables.push(Table { name, rows });
    }
    Ok(())
}

/// Puts the dump in the place of the database.
pub(in crate::drivers) fn load(
    connection: &model::Connection,
    dump: &Path,
    replace: bool,
    cx: &Context<'_>,
) -> Result<(), DriverError> {
    let path = PathBuf::from(&connection.database);
    super::access::check_form(&path, cx.policy)?;
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    if !exists(&path) {
        for companion in ["-wal", "-journal"] {
            if exists(&with_suffix(&path, companion)) {
                return setting(&format!(
                    "has a {companion} file without a database beside it; move that away first"
                ));
            }
        }
        return place(dump, &path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => there_already(),
            _ => DriverError::Work { path, source },
        });
    }
    if !replace {
        return Err(there_already());
    }
    overwrite(dump, &path, cx)
}

fn setting<T>(problem: &str) -> Result<T, DriverError> {
    Err(DriverError::Setting { field: "database", problem: problem.to_owned() })
}

fn there_already() -> DriverError {
    let problem = "exists already; name a new file, or say that it may be replaced".to_owned();
    DriverError::Setting { field: "database", problem }
}

/// A new file: as a whole or not at all.
fn place(dump: &Path, path: &Path) -> io::Result<()> {
    // Not the pid alone: in a container that is the same after a crash.
    let aside = with_suffix(path, &format!(".{}-{}.part", std::process::id(), unix_ms()));
    let placed = place_aside(dump, &aside, path);
    if placed.is_err() {
        // The first error is the one that matters.
        let _ = std::fs::remove_file(&aside);
    }
    placed
}

fn place_aside(dump: &Path, aside: &Path, path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)?;
    io::copy(&mut File::open(dump)?, &mut file)?;
    file.sync_all()?;
    match renameat_with(CWD, aside, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system (NFS, older ZFS) can rename without replacing, but all have links.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::hard_link(aside, path)?;
            std::fs::remove_file(aside)?;
        }
        renamed => renamed?,
    }
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn overwrite(dump: &Path, path: &Path, cx: &Context<'_>) -> Result<(), DriverError> {
    let fault = |fault: SqliteFault| DriverError::Sqlite { path: path.to_owned(), fault };
    let read = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let write = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(dump, read).map_err(|e| fault(e.into()))?;
    let mut target = Connection::open_with_flags(path, write).map_err(|e| fault(e.into()))?;
    let backup = Backup::new(&source, &mut target).map_err(|e| fault(e.into()))?;
    let mut deadline = Deadline::after(BUSY);
    loop {
        if let Some(why) = cx.cancel.why() {
            return Err(DriverError::Cancelled(why));
        }
        match backup.step(STEP_PAGES).map_err(|e| in_place(e, path))? {
            StepResult::Done => return Ok(()),
            StepResult::More => deadline = Deadline::after(BUSY),
            _ if deadline.passed() => return Err(fault(SqliteFault::Busy { waited: BUSY })),
            _ => {
                cx.cancel.sleep(AGAIN);
            }
        }
    }
}

/// Why a database cannot be overwritten. The dump was checked before, so it is the one that stands there, and on the
/// day when it is damaged its owner needs a way that works.
fn in_place(error: rusqlite::Error, path: &Path) -> DriverError {
    let why = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => "is itself damaged",
        Some(ErrorCode::ReadOnly) => {
            "cannot be written in place: it is read-only for this user, or in WAL mode with another page size"
        }
        _ => return DriverError::Sqlite { path: path.to_owned(), fault: error.into() },
    };
    let problem = format!(
        "{why}; move it and its -wal, -shm and -journal files aside, keep them until the restored one has proven \
         itself, and restore again as a new file"
    );
    DriverError::Setting { field: "database", problem }
}
