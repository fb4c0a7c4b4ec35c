//! What must be there before the engine may open the directory: it repairs by forgetting, so it is asked last.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::files::{self, Marker};
use super::journal::{self, Verdict};

/// What is in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No database, and no sign that there ever was one.
    Nothing,
    /// A database that nothing is wrong with so far.
    Database,
}

/// Looks at everything that the engine would silently do without.
pub fn before_open(dir: &Path, marker: Option<&Marker>) -> Result<Found, StoreError> {
    let database = dir.join(files::DATABASE);
    if !exists(&database.join("version"))? {
        return match marker {
            Some(_) => Err(StoreError::damaged(dir, "the database is gone")),
            None if exists(&dir.join(super::highwater::FILE))? => {
                Err(StoreError::damaged(dir, "the database is gone, the high-water file is there"))
            }
            None if !list(&database)?.is_empty() => {
                Err(StoreError::damaged(dir, "the database has lost its `version` file"))
            }
            None => Ok(Found::Nothing),
        };
    }
    keyspaces(dir, &database, marker)?;
    journals(dir, &database, marker.is_some())?;
    Ok(Found::Database)
}

fn keyspaces(dir: &Path, database: &Path, marker: Option<&Marker>) -> Result<(), StoreError> {
    let root = database.join("keyspaces");
    for entry in list(&root)? {
        let number = entry.file_name().and_then(OsStr::to_str).map(str::parse::<u64>);
        // The engine takes every name but a plain file's for a number, and gives up on the process where it is none.
        let kind = fs::symlink_metadata(&entry)
            .map_err(|e| StoreError::unusable(&entry, "look at", e))?
            .file_type();
        let is_keyspace = kind.is_dir() && matches!(number, Some(Ok(_)));
        if !is_keyspace && !kind.is_file() {
            return Err(StoreError::damaged(dir, format!("{} is not ours", entry.display())));
        }
    }
    let Some(marker) = marker else { return Ok(()) };
    let spaces = marker.spaces.iter().map(|(name, number)| (name.as_str(), *number));
    for (name, number) in spaces.chain([("(engine)", 0)]) {
        let home = root.join(number.to_string());
        if !exists(&home.join("current"))? {
            let what = format!("`{name}` has lost its `current` file ({})", home.display());
            return Err(StoreError::damaged(dir, what));
        }
    }
    Ok(())
}

fn journals(dir: &Path, database: &Path, marked: bool) -> Result<(), StoreError> {
    let clean = clean_end(dir)?;
    let journals = journal_files(database)?;
    if marked && journals.is_empty() {
        return Err(StoreError::damaged(dir, "the journal is gone"));
    }
    let newest = journals.len().saturating_sub(1);
    for (i, (_, path)) in journals.iter().enumerate() {
        if !path.is_file() {
            return Err(StoreError::damaged(dir, format!("{} is not a file", path.display())));
        }
        let verdict =
            journal::check(path).map_err(|e| StoreError::unusable(path, "read the journal", e))?;
        let damaged = |at: u64| {
            StoreError::damaged(dir, format!("{} is broken at byte {at}", path.display()))
        };
        match verdict {
            Verdict::Damaged { at } => return Err(damaged(at)),
            Verdict::Torn { end } if i < newest || clean.is_some() => return Err(damaged(end)),
            Verdict::Torn { end } => {
                log::warn!(
                    "the last write before a crash was incomplete, it is dropped: {} ends at byte {end}",
                    path.display()
                );
                // The engine forgives one that was cut short, but not one with a hole in it.
                journal::cut(path, end)
                    .map_err(|e| StoreError::unusable(path, "cut the journal", e))?;
            }
            Verdict::Whole { end } => {
                if i == newest && clean.is_some_and(|clean| clean != end) {
                    return Err(damaged(end));
                }
            }
        }
    }
    Ok(())
}

/// The engine's journals, oldest first.
pub fn journal_files(database: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut journals: Vec<_> = list(database)?
        .into_iter()
        .filter(|path| path.extension() == Some(OsStr::new("jnl")))
        .filter_map(|path| Some((path.file_stem()?.to_str()?.parse().ok()?, path)))
        .collect();
    journals.sort();
    Ok(journals)
}

/// Where the newest journal ended when the store was closed last, if that was a clean close and we may know.
fn clean_end(dir: &Path) -> Result<Option<u64>, StoreError> {
    let path = dir.join(files::CLEAN);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Ok(None)
        }
        Err(e) => Err(StoreError::unusable(&path, "read", e)),
    }
}

/// From here on a crash may leave a torn journal behind.
pub fn mark_open(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(files::CLEAN);
    match fs::remove_file(&path) {
        Ok(()) => files::sync_dir(dir).map_err(|e| StoreError::unusable(dir, "sync", e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(StoreError::unusable(&path, "remove", e)),
    }
}

/// Remembers how the journal ended. It is only a help for the next opening, so nothing fails with it.
pub fn mark_clean(dir: &Path) {
    let Ok(journals) = journal_files(&dir.join(files::DATABASE)) else { return };
    let Some((_, newest)) = journals.last() else { return };
    if let Ok(Verdict::Whole { end }) = journal::check(newest) {
        let _ = files::write_aside(dir, files::CLEAN, end.to_string().as_bytes());
    }
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(|e| StoreError::unusable(path, "look at", e))
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let read = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    match read() {
        Ok(paths) => Ok(paths),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(StoreError::unusable(dir, "list", e)),
    }
}
