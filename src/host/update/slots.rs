//! The versions on disk, and the small file that says which of them runs.
//!
//! ```text
//! STATE/versions/          0700
//!   state.json             written aside, synced, renamed; see [`State`]
//!   <sha256>/backupy       0700, the program
//!   <sha256>/backupy.sig   its signature, DER: checked again before every start
//!   new-<sha256>/          while it arrives
//! ```
//! A slot goes one way: `trial` → `current` → `previous` → gone, or `trial` → `failed` and gone. Only the launcher counts
//! and fails; only the new process, once it has a session, confirms. Nothing here runs a program.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::digest::SHA256;

use super::arrival::Arrival;
use super::error::UpdateError;
use super::signature;
use super::state::State;
use crate::config::UpdateKey;
use crate::hex::{hex, unhex32};
use crate::store::write_aside;

/// Largest program that is taken, in bytes.
pub const MAX_PROGRAM_BYTES: u64 = 64 << 20;
/// Largest state file that is read.
const MAX_STATE_BYTES: u64 = 64 << 10;

/// The directory below the state directory.
pub const DIR: &str = "versions";
const STATE: &str = "state.json";
/// Name of the program in its slot.
pub const PROGRAM: &str = "backupy";
pub(super) const SIGNATURE: &str = "backupy.sig";
const ARRIVING: &str = "new-";

/// The directory of versions.
#[derive(Debug, Clone)]
pub struct Versions {
    dir: PathBuf,
}

impl Versions {
    /// That of a state directory, whether or not it is there.
    pub fn of(state_dir: &Path) -> Self {
        Self { dir: state_dir.join(DIR) }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the program of a slot is.
    pub fn program(&self, sha256: &str) -> PathBuf {
        self.dir.join(sha256).join(PROGRAM)
    }

    /// Whether anything was ever written here.
    pub fn are_used(&self) -> bool {
        self.dir.join(STATE).exists()
    }

    /// The state; the empty one where there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not one.
    pub fn load(&self) -> Result<State, UpdateError> {
        let path = self.dir.join(STATE);
        let bytes = match File::open(&path) {
            Ok(file) => read_bounded(file, MAX_STATE_BYTES),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(error) => Err(error),
        };
        let bytes = bytes.map_err(|error| UpdateError::io("read", &path, error))?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|error| UpdateError::io("read", &path, error.into()))?;
        // They become names of directories.
        let named = [state.current.as_ref(), state.previous.as_ref()];
        let trial = state.trial.as_ref().map(|trial| &trial.slot);
        if named.into_iter().chain([trial]).flatten().any(|slot| unhex32(&slot.sha256).is_none()) {
            let error = io::Error::other("a hash in it is none");
            return Err(UpdateError::io("read", &path, error));
        }
        Ok(state)
    }

    /// Writes the state, durably.
    ///
    /// # Errors
    /// When it is not on the disk; the old one still is.
    pub fn save(&self, state: &State) -> Result<(), UpdateError> {
        let bytes = serde_json::to_vec_pretty(state).unwrap_or_default();
        self.prepare()?;
        write_aside(&self.dir, STATE, &bytes)
            .map_err(|error| UpdateError::io("write", &self.dir.join(STATE), error))
    }

    fn prepare(&self) -> Result<(), UpdateError> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(UpdateError::io("create", &self.dir, error))
            }
            _ => Ok(()),
        }
    }

    /// A place for a program that arrives; its name is for itself only.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn arrival(&self, name: &str) -> Result<Arrival, UpdateError> {
        self.prepare()?;
        let dir = self.dir.join(format!("{ARRIVING}{name}"));
        let failed = |error| UpdateError::io("create", &dir, error);
        remove(&dir).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o700).open(dir.join(PROGRAM));
        Ok(Arrival::new(dir.clone(), file.map_err(failed)?))
    }

    /// The program of a slot, proven to be what was signed.
    ///
    /// # Errors
    /// When it is not, or cannot be read.
    pub fn verify(&self, sha256: &str, key: &UpdateKey) -> Result<(), UpdateError> {
        let dir = self.dir.join(sha256);
        verify(&dir, sha256, key)
    }

    /// Removes what no state names: interrupted arrivals, old versions. What cannot be removed stays.
    pub fn sweep(&self, state: &State) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let arriving = name.starts_with(ARRIVING);
            if (arriving || unhex32(&name).is_some())
                && !state.keeps(&name)
                && let Err(error) = remove(&entry.path())
            {
                log::warn!("failed to remove {}: {error}", entry.path().display());
            }
        }
    }
}

/// Whole in memory: the signature is over all of it.
pub(super) fn verify(dir: &Path, sha256: &str, key: &UpdateKey) -> Result<(), UpdateError> {
    let path = dir.join(PROGRAM);
    let read = |path: &Path, most| {
        File::open(path)
            .and_then(|file| read_bounded(file, most))
            .map_err(|error| UpdateError::io("read", path, error))
    };
    let program = read(&path, MAX_PROGRAM_BYTES)?;
    let found = hex(ring::digest::digest(&SHA256, &program).as_ref());
    if found != sha256 {
        return Err(UpdateError::Hash { expected: sha256.to_owned(), found });
    }
    let signature = read(&dir.join(SIGNATURE), signature::MAX_BYTES as u64)?;
    if signature::is_valid(key, &program, &signature) {
        Ok(())
    } else {
        Err(UpdateError::Signature)
    }
}

fn read_bounded(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other("it is too large"));
    }
    Ok(bytes)
}

pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::Slot;
    use super::*;

    fn slot(letter: &str, version: &str) -> Slot {
        Slot { sha256: letter.repeat(64), version: version.to_owned(), instead_of: None }
    }

    #[test]
    fn the_state_survives_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let versions = Versions::of(dir.path());
        assert!(!versions.are_used());
        assert_eq!(versions.load().unwrap(), State::default());
        let mut state = State::default();
        state.propose(slot("a", "1.0.0"), "0.1.0");
        versions.save(&state).unwrap();
        assert_eq!(versions.load().unwrap(), state);
        let path = dir.path().join(DIR).join(STATE);
        let text = fs::read_to_string(&path).unwrap();
        for bad in [text.replace(&"a".repeat(64), "../../bin"), text[..20].to_owned()] {
            fs::write(&path, bad).unwrap();
            assert!(versions.load().unwrap_err().to_string().contains("state.json"));
        }
        fs::write(&path, text.replace("\"starts\"", "\"of_a_later_version\": 1, \"starts\""))
            .unwrap();
        assert_eq!(versions.load().unwrap(), state);
    }

    #[test]
    fn a_sweep_leaves_what_the_state_names() {
        let dir = tempfile::tempdir().unwrap();
        let versions = Versions::of(dir.path());
        let mut state = State {
            current: Some(slot("a", "1")),
            previous: Some(slot("b", "1")),
            ..State::default()
        };
        state.propose(slot("c", "2"), "1");
        versions.save(&state).unwrap();
        let names = ["a", "b", "c", "d"].map(|letter| letter.repeat(64));
        for name in names.iter().cloned().chain([format!("new-{}", "c".repeat(64))]) {
            fs::create_dir(versions.dir().join(&name)).unwrap();
            fs::write(versions.program(&name), b"x").unwrap();
        }
        versions.sweep(&state);
        let left = names.iter().filter(|name| versions.dir().join(name).exists()).count();
        assert_eq!(left, 3);
        assert!(!versions.dir().join(format!("new-{}", "c".repeat(64))).exists());
        assert_eq!(versions.load().unwrap(), state);
    }
}
