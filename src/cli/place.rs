//! Where a command finds the state directory, the storage and the master key.
//!
//! `--config`, else the default file if there is one, else `--state-dir` or `BACKUPY_STATE_DIR` alone:
//! a running or former `up` leaves a note there about its storage and key ([`Note`]), because it may have
//! been started by flags.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, DEFAULT_STATE_DIR, Env, HostConfig, process_env};
use crate::control::durable::{self, Existing};
use crate::control::file::{self, Problem, Settings, StorageSettings};
use crate::control::plane::Books;
use crate::control::storage::Reach;
use crate::exit::Exit;
use crate::model::Trust;
use crate::thread::Cancel;

/// The file of `up` that is used unless another is named.
pub const DEFAULT_CONFIG: &str = "/etc/backupy/backupy.toml";

/// Name of the note in the state directory.
const NOTE: &str = "up.json";

/// What `up` leaves in its state directory for commands that come without its file. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Where the storage is.
    pub storage: StorageSettings,
    /// The master key's file.
    pub master_key: PathBuf,
}

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The settings, where there is a file.
    pub settings: Option<Settings>,
    /// Storage and key, where anybody knows them.
    pub note: Option<Note>,
}

/// Why there is no place.
#[derive(Debug)]
pub enum PlaceError {
    /// The file is wrong.
    File(PathBuf, Vec<Problem>),
    /// The note is.
    Note(PathBuf, String),
}

impl PlaceError {
    /// The exit code of a command that ends with this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::File(..) => Exit::Usage,
            Self::Note(..) => Exit::State,
        }
    }
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, problems) => f.write_str(&tell(path, problems)),
            Self::Note(path, why) => write!(
                f,
                "failed to read {}: {why}; name the file of `up` with --config instead",
                path.display()
            ),
        }
    }
}

impl std::error::Error for PlaceError {}

/// Problems of a file as lines `path:line: message`.
pub fn tell(path: &Path, problems: &[Problem]) -> String {
    let line = |problem: &Problem| match problem.line {
        0 => format!("{}: {}", path.display(), problem.message),
        line => format!("{}:{line}: {}", path.display(), problem.message),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl Note {
    /// The note about these settings.
    pub fn of(settings: &Settings) -> Self {
        Self { storage: settings.storage.clone(), master_key: settings.master_key.clone() }
    }

    /// Leaves it in the state directory.
    ///
    /// # Errors
    /// Of the file system.
    pub fn leave(&self, state_dir: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        durable::write(&state_dir.join(NOTE), &bytes, 0o600, Existing::Replace)
    }

    fn find(state_dir: &Path) -> Result<Option<Self>, PlaceError> {
        let path = state_dir.join(NOTE);
        let wrong = |why: String| PlaceError::Note(path.clone(), why);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| wrong(e.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

impl Place {
    /// The note, which a command cannot do without.
    ///
    /// # Errors
    /// What to do about a missing one.
    pub fn known_note(&self) -> Result<&Note, (String, Exit)> {
        self.note.as_ref().ok_or_else(|| {
            let why = format!(
                "nothing in {} says where storage and master key are; name the file of `up` with --config",
                self.state_dir.display()
            );
            (why, Exit::Usage)
        })
    }

    /// The books of a control plane that is not running.
    ///
    /// # Errors
    /// Why they cannot be opened.
    pub fn open_books(&self) -> Result<Books, (String, Exit)> {
        let note = self.known_note()?;
        let reach = reach()?;
        Books::open_offline(&self.state_dir, &note.storage, &note.master_key, &reach)
            .map_err(|error| (error.to_string(), error.exit()))
    }

    /// The books for a rebuild, where the state may have been lost.
    ///
    /// # Errors
    /// Why they cannot be opened.
    pub fn rebuild_books(&self) -> Result<Books, (String, Exit)> {
        let note = self.known_note()?;
        let reach = reach()?;
        Books::open_to_rebuild(&self.state_dir, &note.storage, &note.master_key, &reach)
            .map_err(|error| (error.to_string(), error.exit()))
    }

    /// Finds the place that the flags and the environment name.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn find(
        config: Option<&str>,
        state_dir: Option<&str>,
        env: Env<'_>,
    ) -> Result<Self, PlaceError> {
        let default = Path::new(DEFAULT_CONFIG);
        let config = match (config, state_dir) {
            (Some(path), _) => Some(Path::new(path)),
            (None, None) if env("BACKUPY_STATE_DIR").is_none() && default.exists() => Some(default),
            (None, _) => None,
        };
        let Some(path) = config else {
            let state_dir = state_dir
                .map(str::to_owned)
                .or_else(|| env("BACKUPY_STATE_DIR").filter(|dir| !dir.is_empty()))
                .unwrap_or_else(|| DEFAULT_STATE_DIR.to_owned());
            let state_dir = absolute(&state_dir);
            let note = Note::find(&state_dir)?;
            return Ok(Self { state_dir, settings: None, note });
        };
        let settings =
            file::load(path).map_err(|problems| PlaceError::File(path.to_owned(), problems))?;
        let note = Some(Note::of(&settings));
        let state_dir = state_dir.map_or_else(|| settings.state_dir.clone(), absolute);
        Ok(Self { state_dir, settings: Some(settings), note })
    }
}

/// What a command reaches a storage, or people, elsewhere with.
pub(super) fn reach() -> Result<Reach, (String, Exit)> {
    let host = HostConfig::load(&process_env, &config::Flags::default(), Trust::Local)
        .map_err(|error| (error.to_string(), Exit::Usage))?;
    let cancel = Cancel::new().map_err(|error| (error.to_string(), Exit::Internal))?;
    Ok(Reach { proxy: host.proxy, policy: host.policy, cancel })
}

/// A path from the command line, which may be relative there.
fn absolute(path: &str) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_found_again_and_a_bad_one_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().to_str().unwrap();
        let find = || Place::find(None, Some(state_dir), &|_| None);
        assert!(find().unwrap().note.is_none());
        let note =
            Note { storage: StorageSettings::Directory("/s".into()), master_key: "/k".into() };
        note.leave(dir.path()).unwrap();
        assert_eq!(find().unwrap().note, Some(note));
        std::fs::write(dir.path().join(NOTE), b"{").unwrap();
        let error = find().unwrap_err();
        assert!(error.to_string().contains("--config"), "{error}");
        assert_eq!(error.exit(), Exit::State);
    }

    #[test]
    fn a_file_says_it_all_and_its_problems_have_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.toml");
        let text = "state_dir = \"/st\"\n[storage]\ndirectory = \"/sto\"\n[[backup]]\nname = \"a\"\n\
                    database = \"sqlite:///a.db\"\nevery = \"6h\"\n";
        std::fs::write(&path, text).unwrap();
        let place = Place::find(path.to_str(), None, &|_| None).unwrap();
        assert_eq!(place.state_dir, Path::new("/st"));
        assert_eq!(place.note.unwrap().storage.directory(), Some(Path::new("/sto")));
        std::fs::write(&path, format!("{text}evry = 1\n")).unwrap();
        let error = Place::find(path.to_str(), None, &|_| None).unwrap_err();
        assert!(error.to_string().contains("b.toml:8: "), "{error}");
    }
}
