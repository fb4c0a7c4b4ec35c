//! For people whose state directory is in trouble: all records in the clear, and a way to start afresh that deletes
//! nothing.

use std::fs::{self, DirBuilder};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::files::{self, Lock};
use super::{Space, Store, StoreError, highwater};

/// A record in the clear.
#[derive(Debug)]
pub struct Record<'a> {
    /// Its space.
    pub space: Space,
    /// Its key.
    pub key: &'a [u8],
    /// Its value. May be a secret.
    pub value: &'a [u8],
}

impl Record<'_> {
    /// As JSON. Without `secrets`, of the value only its size is told.
    pub fn to_json(&self, secrets: bool) -> Value {
        let mut object = json!({
            "space": self.space.name(),
            "key": text(self.key),
            "size_bytes": self.value.len(),
        });
        if secrets {
            object["value"] =
                serde_json::from_slice(self.value).unwrap_or_else(|_| text(self.value).into());
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
                flow = f(Record { space, key, value });
                flow
            })?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }
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
