//! For people whose state directory is in trouble: all records in the clear, what is left of a damaged store, and a way
//! to start afresh that deletes nothing.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::engine::Engine;
use super::files::{self, Lock};
use super::{Space, Store, StoreError, StoreKeys, highwater, journal};

/// A record as it is shown.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its space.
    pub space: Space,
    /// Its key.
    pub key: &'a [u8],
    /// Its value in the clear, which may be a secret; `None` if it does not open.
    pub value: Option<&'a [u8]>,
}

impl Record<'_> {
    /// As JSON. Without `secrets`, of the value only its size is told.
    pub fn to_json(&self, secrets: bool) -> Value {
        let mut object = json!({ "space": self.space.name(), "key": text(self.key) });
        match self.value {
            None => object["damaged"] = true.into(),
            Some(value) => {
                object["size_bytes"] = value.len().into();
                if secrets {
                    object["value"] =
                        serde_json::from_slice(value).unwrap_or_else(|_| text(value).into());
                }
            }
        }
        object
    }
}

/// Text as it is, anything else escaped.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

impl Store {
    /// Calls `f` with every record of every space that the store was opened with, until it breaks.
    ///
    /// # Errors
    /// When a record is damaged or cannot be read.
    pub fn walk(&self, f: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>) -> Result<(), StoreError> {
        for &space in &self.0.spaces {
            let mut flow = ControlFlow::Continue(());
            self.scan(space, &[], &mut |key, value| {
                flow = f(Record { space, key, value: Some(value) });
                flow
            })?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// For a store that does not open: shows every record that the engine still finds, with its value where one of the keys
/// opens it. Works on a copy in the same directory, because the engine repairs by forgetting.
///
/// # Errors
/// When another process uses the directory, it cannot be copied, or the engine finds nothing at all.
pub fn salvage(
    dir: &Path,
    keys: &StoreKeys,
    f: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let _lock = Lock::acquire(dir)?;
    let copy = dir.join(SALVAGE);
    let unusable = |e| StoreError::writing(dir, &copy, "make a copy of the database in", e);
    match fs::remove_dir_all(&copy) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unusable(e)),
        _ => {}
    }
    let copied = copy_tree(&dir.join(files::DATABASE), &copy).and_then(|()| mend(&copy));
    let result = copied.map_err(unusable).and_then(|()| {
        let engine = Engine::open(&copy, &Space::ALL).map_err(|e| super::open::error(dir, e))?;
        let result = show_all(dir, &engine, keys, f);
        engine.close();
        result
    });
    // Only a copy; the next salvage would remove it as well.
    let _ = fs::remove_dir_all(&copy);
    result
}

const SALVAGE: &str = "db.salvage";

fn show_all(
    dir: &Path,
    engine: &Engine,
    keys: &StoreKeys,
    f: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let sealer = super::open::find_sealer(engine, keys);
    for space in Space::ALL {
        let mut bound = Bound::Unbounded;
        loop {
            let start = bound.as_ref().map(Vec::as_slice);
            let page = engine
                .page(space, start, super::PAGE_RECORDS, super::PAGE_BYTES)
                .map_err(|e| super::open::error(dir, e))?;
            let Some((last, _)) = page.last() else { break };
            let next = Bound::Excluded(last.clone());
            for (key, sealed) in &page {
                let value = sealer.as_ref().and_then(|s| s.open(space.name(), key, sealed));
                let value = value.as_ref().map(|value| value.as_slice());
                if f(Record { space, key, value }).is_break() {
                    return Ok(());
                }
            }
            bound = next;
        }
    }
    Ok(())
}

/// Takes out of a copy what the engine would stumble over.
fn mend(copy: &Path) -> io::Result<()> {
    let numbered = |path: &Path| {
        path.file_stem().and_then(OsStr::to_str).is_some_and(|stem| stem.parse::<u64>().is_ok())
    };
    let mut journals = 0;
    for entry in fs::read_dir(copy)?.chain(fs::read_dir(copy.join("keyspaces"))?) {
        let path = entry?.path();
        let journal = path.extension() == Some(OsStr::new("jnl"));
        if path.is_dir() && path.parent() != Some(copy) && !numbered(&path) {
            fs::remove_dir_all(&path)?;
        } else if journal && path.is_file() && numbered(&path) {
            journal::keep_whole_batches(&path)?;
            journals += 1;
        } else if journal && path.is_dir() {
            fs::remove_dir_all(&path)?;
        }
    }
    if journals == 0 {
        fs::write(copy.join("0.jnl"), b"")?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

/// For `reset`: moves what belongs to the store in `dir` into a directory of its own, `<dir>.damaged-<unix>` or, where
/// that cannot be made, `<dir>/damaged-<unix>`, and returns which. Nothing is deleted, and nothing but the store's
/// files is moved.
///
/// # Errors
/// When another process uses the directory, or a file cannot be moved (those before it stay moved).
pub fn set_aside(dir: &Path, unix_sec: u64) -> Result<PathBuf, StoreError> {
    let _lock = Lock::acquire(dir)?;
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".damaged-{unix_sec}"));
    let beside = dir.with_file_name(name);
    let inside = dir.join(format!("damaged-{unix_sec}"));
    match move_to(dir, &beside) {
        Ok(()) => Ok(beside),
        // The parent is not ours to write, or is another file system.
        Err(_) => move_to(dir, &inside)
            .map(|()| inside.clone())
            .map_err(|e| StoreError::unusable(&inside, "move the state to", e)),
    }
}

fn move_to(dir: &Path, aside: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(aside)?;
    for name in [files::DATABASE, files::MARKER, files::CLEAN, highwater::FILE, files::BALLAST] {
        match fs::rename(dir.join(name), aside.join(name)) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                // Only if it is still empty, so that nothing is lost and no empty directory stays.
                let _ = fs::remove_dir(aside);
                return Err(e);
            }
        }
    }
    files::sync_dir(aside)?;
    files::sync_dir(dir)
}
