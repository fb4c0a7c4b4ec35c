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
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::error::UpdateError;
use super::signature;
use crate::config::UpdateKey;
use crate::hex::{hex, unhex32};
use crate::store::write_aside;

/// Largest program that is taken, in bytes.
pub const MAX_PROGRAM_BYTES: u64 = 64 << 20;
/// So much stays free on the disk of the state directory.
const MIN_FREE_BYTES: u64 = 32 << 20;
/// Largest state file that is read.
const MAX_STATE_BYTES: u64 = 64 << 10;
/// Failed versions that are remembered.
const MAX_FAILED: usize = 16;

/// The directory below the state directory.
pub const DIR: &str = "versions";
const STATE: &str = "state.json";
/// Name of the program in its slot.
pub const PROGRAM: &str = "backupy";
const SIGNATURE: &str = "backupy.sig";
const ARRIVING: &str = "new-";

/// A version in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// SHA-256 of the program, hex; also the name of its directory.
    pub sha256: String,
    /// What it calls itself.
    pub version: String,
    /// The installed version that somebody wants it to run instead of, although it is not newer (`force`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
}

/// A version that must still prove itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Which.
    pub slot: Slot,
    /// The version that it follows.
    pub from: String,
    /// How often it was begun; counted before each start.
    pub attempts: u32,
}

/// A version that is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// SHA-256 of the program.
    pub sha256: String,
    /// What it calls itself.
    pub version: String,
    /// What happened.
    pub reason: String,
}

/// What became of the last update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// The version that was to run.
    pub version: String,
    /// The version before.
    pub from: String,
    /// Why it does not run; `None` = it does.
    pub error: Option<String>,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// Whether the control plane was told.
    pub told: bool,
}

/// Which version runs, ran, should run, and must not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The confirmed version.
    pub current: Option<Slot>,
    /// The confirmed version before it.
    pub previous: Option<Slot>,
    /// Starts of `current` since it last had a session or lived for a while.
    pub starts: u32,
    /// The version that must still prove itself.
    pub trial: Option<Trial>,
    /// Versions that failed, the newest last.
    pub failed: Vec<Failed>,
    /// What became of the last update.
    pub last: Option<Last>,
}

impl State {
    /// Puts a version on trial at the next start.
    pub fn propose(&mut self, slot: Slot, from: &str) {
        self.failed.retain(|failed| failed.sha256 != slot.sha256);
        self.trial = Some(Trial { slot, from: from.to_owned(), attempts: 0 });
    }

    /// The version on trial has proven itself.
    pub fn confirm(&mut self, now_ms: u64) {
        let Some(trial) = self.trial.take() else { return };
        let replaced = self.current.replace(trial.slot.clone());
        self.previous =
            replaced.filter(|slot| slot.sha256 != trial.slot.sha256).or(self.previous.take());
        self.starts = 0;
        self.last = Some(Last {
            version: trial.slot.version,
            from: trial.from,
            error: None,
            at_ms: now_ms,
            told: false,
        });
    }

    /// A version, on trial or current, is given up.
    pub fn fail(&mut self, sha256: &str, reason: &str, now_ms: u64) {
        let (slot, from) = match (&self.trial, &self.current) {
            (Some(trial), _) if trial.slot.sha256 == sha256 => {
                (trial.slot.clone(), trial.from.clone())
            }
            (_, Some(slot)) if slot.sha256 == sha256 => (slot.clone(), slot.version.clone()),
            _ => return,
        };
        self.trial.take_if(|trial| trial.slot.sha256 == sha256);
        if self.current.as_ref().is_some_and(|current| current.sha256 == sha256) {
            self.current = self.previous.take();
            self.starts = 0;
        }
        self.refuse(&slot, reason);
        self.last = Some(Last {
            version: slot.version,
            from,
            error: Some(reason.to_owned()),
            at_ms: now_ms,
            told: false,
        });
    }

    fn refuse(&mut self, slot: &Slot, reason: &str) {
        self.failed.retain(|failed| failed.sha256 != slot.sha256);
        self.failed.push(Failed {
            sha256: slot.sha256.clone(),
            version: slot.version.clone(),
            reason: reason.to_owned(),
        });
        let surplus = self.failed.len().saturating_sub(MAX_FAILED);
        self.failed.drain(..surplus);
    }

    fn keeps(&self, sha256: &str) -> bool {
        let trial = self.trial.as_ref().map(|trial| &trial.slot);
        [self.current.as_ref(), self.previous.as_ref(), trial]
            .into_iter()
            .flatten()
            .any(|slot| slot.sha256 == sha256)
    }
}

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
            .and_then(|()| own(&self.dir, &self.dir.join(STATE)))
            .map_err(|error| UpdateError::io("write", &self.dir.join(STATE), error))
    }

    /// Makes the directory, for the owner of the state directory.
    fn prepare(&self) -> Result<(), UpdateError> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Ok(()) => {
                own(&self.dir, &self.dir).map_err(|e| UpdateError::io("create", &self.dir, e))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(UpdateError::io("create", &self.dir, error)),
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
        let file = Some(file.map_err(failed)?);
        Ok(Arrival { dir, digest: Context::new(&SHA256), bytes: 0, file, kept: false })
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

/// A program that arrives; unless it is kept, it is removed again.
pub struct Arrival {
    dir: PathBuf,
    file: Option<File>,
    digest: Context,
    bytes: u64,
    kept: bool,
}

impl Arrival {
    /// The next piece.
    ///
    /// # Errors
    /// When there are too many, or no room.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), UpdateError> {
        const LOOK_EVERY: u64 = 1 << 20;
        let after = self.bytes + piece.len() as u64;
        if after > MAX_PROGRAM_BYTES {
            return Err(UpdateError::TooBig);
        }
        if self.bytes == 0 || self.bytes / LOOK_EVERY != after / LOOK_EVERY {
            self.look_for_room(piece.len() as u64)?;
        }
        self.digest.update(piece);
        self.bytes = after;
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(piece).map_err(|error| UpdateError::io("write", &self.dir, error))
    }

    /// Fails unless so many more bytes leave enough for the store.
    ///
    /// # Errors
    /// [`UpdateError::NoRoom`].
    pub fn look_for_room(&self, wanted: u64) -> Result<(), UpdateError> {
        let system = rustix::fs::statvfs(&self.dir)
            .map_err(|error| UpdateError::io("look at", &self.dir, error.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if free >= wanted.saturating_add(MIN_FREE_BYTES) {
            return Ok(());
        }
        Err(UpdateError::NoRoom { dir: self.dir.clone(), free, needed: wanted + MIN_FREE_BYTES })
    }

    /// SHA-256 of what came so far, hex.
    pub fn sha256(&self) -> String {
        hex(self.digest.clone().finish().as_ref())
    }

    /// All of it is there: fails unless it is what was announced and signed. Closes the file, so that it can be run.
    ///
    /// # Errors
    /// When it is not.
    pub fn prove(
        &mut self,
        sha256: &str,
        signature: &[u8],
        key: &UpdateKey,
    ) -> Result<PathBuf, UpdateError> {
        let found = self.sha256();
        if found != sha256 {
            return Err(UpdateError::Hash { expected: sha256.to_owned(), found });
        }
        let failed = |error| UpdateError::io("write", &self.dir, error);
        if let Some(file) = self.file.take() {
            file.sync_all().map_err(failed)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.dir.join(SIGNATURE))
            .map_err(failed)?;
        file.write_all(signature).and_then(|()| file.sync_all()).map_err(failed)?;
        verify(&self.dir, sha256, key)?;
        Ok(self.dir.join(PROGRAM))
    }

    /// Makes it a slot.
    ///
    /// # Errors
    /// When it cannot be put in its place.
    pub fn keep(mut self, sha256: &str) -> Result<(), UpdateError> {
        let failed = |error| UpdateError::io("write", &self.dir, error);
        let versions = self.dir.parent().map(Path::to_owned).unwrap_or_default();
        let slot = versions.join(sha256);
        for path in [self.dir.join(PROGRAM), self.dir.join(SIGNATURE), self.dir.clone()] {
            own(&versions, &path).map_err(failed)?;
        }
        let sync = |dir: &Path| File::open(dir)?.sync_all();
        sync(&self.dir).map_err(failed)?;
        remove(&slot).map_err(failed)?;
        fs::rename(&self.dir, &slot).and_then(|()| sync(&versions)).map_err(failed)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.dir)
        {
            log::warn!("failed to remove {}: {error}", self.dir.display());
        }
    }
}

/// Whole in memory: the signature is over all of it.
fn verify(dir: &Path, sha256: &str, key: &UpdateKey) -> Result<(), UpdateError> {
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

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Root may put a version into the state directory of another user, who has to read it.
fn own(beside: &Path, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let parent = beside.parent().unwrap_or(beside);
    let owner = fs::metadata(parent)?;
    chown(path, Some(owner.uid()), Some(owner.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(letter: &str, version: &str) -> Slot {
        Slot { sha256: letter.repeat(64), version: version.to_owned(), instead_of: None }
    }

    #[test]
    fn a_trial_becomes_current_and_the_one_before_is_kept() {
        let mut state = State::default();
        state.propose(slot("a", "1.0.0"), "0.1.0");
        state.confirm(1);
        state.propose(slot("b", "2.0.0"), "1.0.0");
        assert_eq!(state.current, Some(slot("a", "1.0.0")));
        state.confirm(2);
        assert_eq!(
            (&state.current, &state.previous),
            (&Some(slot("b", "2.0.0")), &Some(slot("a", "1.0.0")))
        );
        assert_eq!(state.last.as_ref().unwrap().error, None);
        state.propose(slot("b", "2.0.0"), "2.0.0");
        state.confirm(3);
        assert_eq!(state.previous, Some(slot("a", "1.0.0")), "the same once more is no step");
    }

    #[test]
    fn a_failure_goes_back_and_is_remembered_until_it_is_proposed_again() {
        let mut state = State { current: Some(slot("a", "1.0.0")), ..State::default() };
        state.propose(slot("b", "2.0.0"), "1.0.0");
        state.fail(&"b".repeat(64), "it hung", 5);
        assert_eq!((&state.current, &state.trial), (&Some(slot("a", "1.0.0")), &None));
        assert_eq!(state.failed[0].reason, "it hung");
        let last = state.last.clone().unwrap();
        assert_eq!(
            (last.version.as_str(), last.from.as_str(), last.told),
            ("2.0.0", "1.0.0", false)
        );
        state.propose(slot("b", "2.0.0"), "1.0.0");
        assert_eq!(state.failed, []);
        let mut state = State {
            current: Some(slot("b", "2")),
            previous: Some(slot("a", "1")),
            starts: 9,
            ..State::default()
        };
        state.fail(&"b".repeat(64), "it never came up", 6);
        assert_eq!((state.current, state.previous, state.starts), (Some(slot("a", "1")), None, 0));
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut state = State::default();
        for number in 0..40 {
            let slot = Slot { sha256: format!("{number:064x}"), ..slot("a", "1.0.0") };
            state.propose(slot.clone(), "0");
            state.fail(&slot.sha256, "no", 0);
        }
        assert_eq!(state.failed.len(), MAX_FAILED);
        assert_eq!(state.failed[MAX_FAILED - 1].sha256, format!("{:064x}", 39));
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
