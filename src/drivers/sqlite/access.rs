//! Which files may be backed up as SQLite databases.
//!
//! A control plane elsewhere may name what the host lists in `BACKUPY_ALLOW_PATHS` (files, or directories
//! of such), links followed; without a list any SQLite database that the agent can read. The agent's own
//! state directory is never backed up, whoever asks: what lies there are other runs' snapshots and the keys.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::SqliteFault;
use crate::config::HostPolicy;
use crate::drivers::{Context, DriverError};
use crate::model::Trust;

/// Checks the path as it is written.
pub(super) fn check_form(path: &Path, policy: &HostPolicy) -> Result<(), DriverError> {
    let problem = if !path.is_absolute() {
        "must be the file's absolute path"
    } else if policy.trust == Trust::Remote && path.components().any(|c| c == Component::ParentDir)
    {
        "must not contain '..'"
    } else {
        return Ok(());
    };
    Err(DriverError::Setting { field: "database", problem: problem.to_owned() })
}

/// The real path, links followed, if the file may be backed up.
///
/// What the host does not allow is refused with the same words whether it exists or not.
pub(super) fn admit(path: &Path, cx: &Context<'_>) -> Result<PathBuf, DriverError> {
    let real = fs::canonicalize(path);
    if !allowed(path, real.as_deref().ok(), cx.policy) {
        let what = "this SQLite file (BACKUPY_ALLOW_PATHS lists those it may)".to_owned();
        return Err(DriverError::NotAllowed { what });
    }
    let fault = |fault| DriverError::Sqlite { path: path.to_owned(), fault };
    let real = real.map_err(|error| {
        fault(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SqliteFault::Missing,
            _ => SqliteFault::Denied(error),
        })
    })?;
    if in_state_dir(&real, cx.work_dir) {
        return Err(DriverError::Setting {
            field: "database",
            problem: "is inside the agent's own state directory".to_owned(),
        });
    }
    Ok(real)
}

fn allowed(path: &Path, real: Option<&Path>, policy: &HostPolicy) -> bool {
    let (Trust::Remote, Some(list)) = (policy.trust, &policy.allow_paths) else { return true };
    let under = |path: &Path, entry: &Path| path.starts_with(entry);
    list.iter().any(|entry| match (real, fs::canonicalize(entry)) {
        (Some(real), Ok(entry)) => under(real, &entry),
        // The file is missing, which may be said only where it may be named.
        (None, _) => under(path, entry),
        (Some(_), Err(_)) => false,
    })
}

/// The work directory lies directly under the state directory.
fn in_state_dir(real: &Path, work_dir: &Path) -> bool {
    let real_work = fs::canonicalize(work_dir).unwrap_or_else(|_| work_dir.to_owned());
    [Some(real_work.as_path()), real_work.parent()]
        .into_iter()
        .flatten()
        .filter(|dir| dir.parent().is_some())
        .any(|dir| real.starts_with(dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn policy(trust: Trust, allow: Option<Vec<PathBuf>>) -> HostPolicy {
        HostPolicy {
            trust,
            secrets_dir: None,
            allow_paths: allow,
            allow_containers: None,
            allow_checks: None,
            allow_hooks: false,
            pg_bin_dir: None,
            mongo_bin_dir: None,
        }
    }

    #[test]
    fn the_form_of_a_path() {
        let (local, remote) = (policy(Trust::Local, None), policy(Trust::Remote, None));
        for bad in ["", "app.db", "./app.db", "file:/srv/app.db?mode=rwc", ":memory:"] {
            assert!(check_form(Path::new(bad), &local).is_err(), "{bad}");
        }
        let climbs = Path::new("/srv/../etc/app.db");
        assert!(check_form(climbs, &local).is_ok() && check_form(climbs, &remote).is_err());
    }

    #[test]
    fn a_list_binds_a_control_plane_by_real_paths() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for sub in ["yes", "yes-not", "no"] {
            fs::create_dir(base.join(sub)).unwrap();
            fs::write(base.join(sub).join("a.db"), "x").unwrap();
        }
        symlink(base.join("no/a.db"), base.join("yes/escape.db")).unwrap();
        symlink(base.join("yes/a.db"), base.join("no/in.db")).unwrap();
        symlink(base.join("yes"), base.join("alias")).unwrap();
        let list = Some(vec![base.join("alias"), base.join("no/b.db")]);
        let remote = policy(Trust::Remote, list.clone());
        let asked = |name: &str, policy: &HostPolicy| {
            let path = base.join(name);
            allowed(&path, fs::canonicalize(&path).ok().as_deref(), policy)
        };
        for yes in ["yes/a.db", "alias/a.db", "no/in.db", "alias/missing.db", "no/b.db"] {
            assert!(asked(yes, &remote), "{yes}");
        }
        for no in ["yes/escape.db", "no/a.db", "yes-not/a.db", "no/missing.db"] {
            assert!(!asked(no, &remote), "{no}");
            assert!(asked(no, &policy(Trust::Local, list.clone())), "{no}");
            assert!(asked(no, &policy(Trust::Remote, None)), "{no}");
        }
        assert!(!asked("yes/a.db", &policy(Trust::Remote, Some(vec![]))));
    }

    #[test]
    fn the_state_directory_is_out_of_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().canonicalize().unwrap().join("state");
        fs::create_dir_all(state.join("work")).unwrap();
        assert!(in_state_dir(&state.join("work/driver-snapshot-1-1"), &state.join("work")));
        assert!(in_state_dir(&state.join("store/x"), &state.join("work")));
        assert!(in_state_dir(&state.join("store/x"), &state.join("not-made-yet")));
        assert!(!in_state_dir(&dir.path().join("app.db"), &state.join("work")));
    }
}
