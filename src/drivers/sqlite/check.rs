//! Whether the snapshot is a sound database: header, size and `quick_check`.
//!
//! `quick_check` walks every page of every table. What it finds wrong with the structure fails the run; what
//! it finds wrong with the data (a NULL where the schema now forbids it) is the application's and only a
//! warning: such a database is backed up as it is. Where the schema needs functions, collations or modules
//! that only the application has, the tables are checked one by one and those that cannot be are counted.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded, select};
use rusqlite::{Connection, OpenFlags, Row, ffi};

use super::SqliteFault;
use super::inspect::MAGIC;
use crate::thread::{Cancel, Never, STACK};

/// Findings about the content, not the structure, by their beginning and a part of what follows.
const CONTENT: [(&str, &str); 8] = [
    ("NULL value in ", ""),
    ("CHECK constraint failed in ", ""),
    ("non-", " value in "),
    ("TEXT value in ", ""),
    ("NUMERIC value in ", ""),
    ("malformed inverted index for ", ""),
    ("unable to validate the inverted index for ", ""),
    ("index ", " stores an imprecise floating-point value "),
];
const SHOWN: usize = 3;
/// Warnings about content in all; more are counted.
const MAX_WARNINGS: usize = 10;
/// Between two interrupts.
const AGAIN: Duration = Duration::from_millis(50);

/// Checks the snapshot; its size in bytes.
///
/// # Errors
/// When it is not sound, or the check was cut short by the cancel.
pub(super) fn check(
    snapshot: &Path,
    cancel: &Cancel,
    warnings: &mut Vec<String>,
) -> Result<u64, SqliteFault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(snapshot, flags)?;
    // The schema is somebody else's: it may call nothing that has an effect. Constraints are not our business.
    copy.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA ignore_check_constraints = ON;")?;
    interruptible(&copy, cancel, || quick_check(&copy, warnings))?;
    if number(&copy, "SELECT count(*) FROM sqlite_schema")? == 0 {
        warnings.push("the SQLite database has no tables".to_owned());
    }
    size(&copy, snapshot)
}

/// The one number that a query answers with.
pub(super) fn number(copy: &Connection, sql: &str) -> rusqlite::Result<u64> {
    let number: i64 = copy.query_row(sql, [], |row| row.get(0))?;
    Ok(u64::try_from(number).unwrap_or(0))
}

/// Page count × page size, if that is what the file has and it begins as a database.
fn size(copy: &Connection, snapshot: &Path) -> Result<u64, SqliteFault> {
    let pages = number(copy, "PRAGMA page_count")?;
    let page = number(copy, "PRAGMA page_size")?;
    let mut magic = [0; MAGIC.len()];
    let mut file = File::open(snapshot).map_err(SqliteFault::Denied)?;
    let length = file.metadata().map_err(SqliteFault::Denied)?.len();
    file.read_exact(&mut magic).map_err(SqliteFault::Denied)?;
    if &magic != MAGIC {
        return Err(SqliteFault::NotADatabase);
    }
    if pages.checked_mul(page) != Some(length) {
        let detail = format!("{pages} pages of {page} bytes in a file of {length}");
        return Err(SqliteFault::Corrupt(detail));
    }
    Ok(length)
}

fn quick_check(copy: &Connection, warnings: &mut Vec<String>) -> Result<(), SqliteFault> {
    match findings(copy, "PRAGMA quick_check") {
        Ok(found) => judge(found, warnings),
        Err(error) if needs_the_application(&error) => check_each_table(copy, warnings),
        Err(error) => Err(error.into()),
    }
}

/// A plain `SQLITE_ERROR`: an unknown function, collation or module. Damage has codes of its own.
pub(super) fn needs_the_application(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| e.extended_code & 0xff == ffi::SQLITE_ERROR)
}

fn check_each_table(copy: &Connection, warnings: &mut Vec<String>) -> Result<(), SqliteFault> {
    let list = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0";
    let mut names = copy.prepare(list)?;
    let names = names.query_map([], text)?;
    let (mut tables, mut skipped) = (0, 0);
    let mut content = Vec::new();
    for name in names {
        tables += 1;
        let sql = format!("PRAGMA quick_check('{}')", name?.replace('\'', "''"));
        match findings(copy, &sql) {
            Ok(found) => judge(found, &mut content)?,
            Err(error) if needs_the_application(&error) => skipped += 1,
            Err(error) => return Err(error.into()),
        }
    }
    let more = content.len().saturating_sub(MAX_WARNINGS);
    warnings.extend(content.into_iter().take(MAX_WARNINGS));
    if more > 0 {
        warnings.push(format!("the SQLite database breaks its own rules in {more} more places"));
    }
    warnings.push(format!(
        "{skipped} of {tables} tables were copied but not checked: they use functions, collations or modules \
         that only the application has"
    ));
    Ok(())
}

/// The findings; empty if all is well.
pub(super) fn findings(copy: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = copy.prepare(sql)?;
    let rows = statement.query_map([], text)?;
    let all = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let lines = all.iter().flat_map(|row| row.lines());
    Ok(lines.filter(|line| *line != "ok").map(clean).collect())
}

/// A row's one text, whatever bytes its author put into it.
pub(super) fn text(row: &Row<'_>) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned())
}

fn clean(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn is_content(line: &str) -> bool {
    CONTENT.iter().any(|(start, part)| line.starts_with(start) && line.contains(part))
}

pub(super) fn judge(found: Vec<String>, warnings: &mut Vec<String>) -> Result<(), SqliteFault> {
    let (content, structure): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|line| is_content(line));
    if !structure.is_empty() {
        let shown: Vec<_> = structure.into_iter().take(SHOWN).collect();
        return Err(SqliteFault::Corrupt(shown.join("; ")));
    }
    for line in content.into_iter().take(SHOWN) {
        warnings.push(format!("the SQLite database breaks its own rules: {line}"));
    }
    Ok(())
}

/// Runs `work`, interrupting the connection's statements as soon as the cancel comes.
pub(super) fn interruptible<T>(
    copy: &Connection,
    cancel: &Cancel,
    work: impl FnOnce() -> Result<T, SqliteFault>,
) -> Result<T, SqliteFault> {
    let handle = copy.get_interrupt_handle();
    let (over, end) = bounded::<Never>(0);
    std::thread::scope(|scope| {
        let watch = move || {
            select! {
                recv(cancel.done()) -> _ => {}
                recv(end) -> _ => return,
            }
            // Again and again: an interrupt between two statements is lost.
            while matches!(end.recv_timeout(AGAIN), Err(RecvTimeoutError::Timeout)) {
                handle.interrupt();
            }
        };
        std::thread::Builder::new()
            .name("sqlite-cancel".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, watch)
            .map_err(|error| SqliteFault::Failed(error.to_string()))?;
        let result = work();
        drop(over);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_fails_and_content_warns() {
        let mut warnings = Vec::new();
        judge(vec!["NULL value in t.a".to_owned()], &mut warnings).unwrap();
        assert_eq!(warnings, ["the SQLite database breaks its own rules: NULL value in t.a"]);
        let bad = vec!["NULL value in t.a".into(), "Tree 2 page 2: btreeInitPage() error".into()];
        let fault = judge(bad, &mut warnings).unwrap_err();
        assert!(matches!(fault, SqliteFault::Corrupt(detail) if detail.starts_with("Tree 2")));
        assert!(is_content("non-INT value in t.c"));
        assert!(is_content("index i stores an imprecise floating-point value for row 7"));
        assert!(!is_content("non-unique entry in index i"));
    }
}
