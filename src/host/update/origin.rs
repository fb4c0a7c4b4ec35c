//! Where a process of ours came from: installed, or started from a slot, and by whom.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::getppid;

use super::slots::{DIR, PROGRAM, Versions};
use super::state::State;
use crate::hex::unhex32;
use crate::store::Migrations;

/// For a version that was started from a slot: the installed binary, and its version.
pub(super) const INSTALLED: &str = "BACKUPY_INSTALLED";
pub(super) const INSTALLED_VERSION: &str = "BACKUPY_INSTALLED_VERSION";
/// For the child that becomes the version on trial: its program, and the process that watches it.
pub(super) const STAGE: &str = "BACKUPY_LAUNCH_STAGE";
pub(super) const WATCHER: &str = "BACKUPY_LAUNCH_WATCHER";

/// Where a process came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The installed binary, which starts the others; `None` = somebody started a slot by hand.
    pub installed: Option<PathBuf>,
    /// Its version.
    pub installed_version: String,
    /// The slot that this process was started from; `None` = it is the installed binary.
    pub slot: Option<String>,
    /// Whether a launcher waits for its end.
    pub watched: bool,
}

impl Origin {
    /// That of this process. To be asked at the start: the files may be replaced later.
    pub fn of_this_process(state_dir: &Path, own_version: &str) -> Self {
        let exe = env::current_exe().unwrap_or_default();
        let Some(slot) = slot_of(state_dir, &exe) else {
            let installed = Some(named_by(env::args_os().next(), exe));
            let installed_version = own_version.to_owned();
            return Self { installed, installed_version, slot: None, watched: false };
        };
        let parent = getppid().map(|pid| pid.as_raw_nonzero().to_string());
        Self {
            installed: env::var_os(INSTALLED).map(PathBuf::from),
            installed_version: env::var(INSTALLED_VERSION).unwrap_or_default(),
            slot: Some(slot),
            watched: parent.is_some() && env::var(WATCHER).ok() == parent,
        }
    }

    pub(super) fn is_on_trial(&self, state: &State) -> bool {
        let trial = state.trial.as_ref().map(|trial| trial.slot.sha256.as_str());
        self.watched && trial.is_some() && trial == self.slot.as_deref()
    }

    /// As [`super::Updater::migrations`], where there is no updater yet.
    pub fn migrations(&self, state_dir: &Path) -> Migrations {
        let state = Versions::of(state_dir).load().unwrap_or_default();
        if self.is_on_trial(&state) { Migrations::Deferred } else { Migrations::Allowed }
    }
}

/// The slot that `exe` lies in.
fn slot_of(state_dir: &Path, exe: &Path) -> Option<String> {
    let versions = fs::canonicalize(state_dir).ok()?.join(DIR);
    let mut below = exe.strip_prefix(versions).ok()?.iter();
    let sha256 = below.next()?.to_str()?.to_owned();
    (unhex32(&sha256).is_some() && below.next()? == PROGRAM).then_some(sha256)
}

/// The name under which the binary was called, which a package or a link may lead elsewhere by the next start, where it
/// is a whole path of the same file; else the file.
fn named_by(argv0: Option<OsString>, exe: PathBuf) -> PathBuf {
    let named = argv0.map(PathBuf::from).filter(|path| path.is_absolute());
    named.filter(|path| fs::canonicalize(path).is_ok_and(|real| real == exe)).unwrap_or(exe)
}

/// A command with this process's arguments, its name included.
pub(super) fn same_again(program: &Path) -> Command {
    let mut args = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_known_by_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        let sha256 = "a".repeat(64);
        let exe = real.join(DIR).join(&sha256).join(PROGRAM);
        assert_eq!(slot_of(dir.path(), &exe), Some(sha256.clone()));
        assert_eq!(slot_of(&real.join("elsewhere"), &exe), None);
        for other in ["/usr/local/bin/backupy", "/", ""] {
            assert_eq!(slot_of(dir.path(), Path::new(other)), None);
        }
        assert_eq!(slot_of(dir.path(), &real.join(DIR).join("new-x").join(PROGRAM)), None);
        assert_eq!(slot_of(dir.path(), &exe.with_file_name("other")), None);
    }

    #[test]
    fn the_name_that_was_called_counts_where_it_leads_to_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        let (exe, link, other) = (real.join("backupy-1"), real.join("backupy"), real.join("sh"));
        fs::write(&exe, b"").unwrap();
        fs::write(&other, b"").unwrap();
        std::os::unix::fs::symlink(&exe, &link).unwrap();
        assert_eq!(named_by(Some(link.clone().into()), exe.clone()), link);
        for argv0 in ["backupy".into(), other.into(), OsString::new()] {
            assert_eq!(named_by(Some(argv0), exe.clone()), exe);
        }
    }
}
