//! Finding database tools on the host, and their versions.
//!
//! Looked at, in this order: the configured directory, `PATH`, and where distributions put one directory per
//! version. Debian's `/usr/bin/pg_dump` is a wrapper that picks a version by its own rules; it is passed over,
//! as the directories it picks from are looked at anyway. What the configured directory holds is taken as
//! chosen: nothing else is then considered.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directories with one entry per version: (parent, prefix of the entry, what follows it).
const VERSIONED: [(&str, &str, &str); 11] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/usr/lib64", "postgresql-", "bin"),
    ("/usr/lib", "postgresql-", "bin"),
    ("/usr/local", "pgsql", "bin"),
    ("/opt", "pgsql", "bin"),
    ("/opt/bitnami", "postgresql", "bin"),
    ("/opt/bitnami", "mongodb", "bin"),
    ("/opt", "mongodb-database-tools", "bin"),
    ("/usr/local", "mongodb-database-tools", "bin"),
];
const WRAPPER: &str = "pg_wrapper";
/// More entries of one parent are not looked at.
const MAX_ENTRIES: usize = 1_000;

/// A PostgreSQL version; before 10 the major version had two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Reads the first number of the form `15.18` or `17` (also `17beta1`) in `text`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let word =
            text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut parts = word.split('.').map(leading_number);
        let major = parts.next()??;
        Some(Self { major, minor: parts.next().flatten().unwrap_or(0) })
    }

    /// Whether a dump tool of this version can dump a server of `server`'s.
    pub(super) fn can_dump(self, server: Self) -> bool {
        self.series().cmp(&server.series()) != Ordering::Less
    }

    /// What changes with a major release.
    pub(super) fn series(self) -> (u32, u32) {
        (self.major, if self.major < 10 { self.minor } else { 0 })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.major, self.minor).cmp(&(other.major, other.minor))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

/// Every program called `name` that may be meant, each once.
pub(super) fn candidates(name: &str, configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(dir) = configured {
        return executable(&dir.join(name)).into_iter().collect();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(versioned());
    let mut seen = HashSet::new();
    dirs.filter_map(|dir| executable(&dir.join(name)))
        .filter(|found| seen.insert(real(found)))
        .collect()
}

/// Where [`candidates`] looks, for a message.
pub(super) fn places(configured: Option<&Path>) -> String {
    match configured {
        Some(dir) => format!("{} (BACKUPY_PG_BIN_DIR)", dir.display()),
        None => "PATH, /usr/lib/postgresql/*/bin, /usr/pgsql-*/bin and the like".to_owned(),
    }
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn executable(path: &Path) -> Option<PathBuf> {
    let meta = fs::metadata(path).ok()?;
    let runs = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    let wrapper = real(path).file_name().is_some_and(|name| name == WRAPPER);
    (runs && !wrapper).then(|| path.to_owned())
}

fn versioned() -> impl Iterator<Item = PathBuf> {
    VERSIONED.iter().flat_map(|&(parent, prefix, suffix)| {
        fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .take(MAX_ENTRIES)
            .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(move |entry| entry.path().join(suffix))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn versions_in_the_wild() {
        for (text, shown) in [
            ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "15.18"),
            ("pg_dump (PostgreSQL) 17beta2", "17.0"),
            ("9.6.24", "9.6"),
            ("16.2 (Ubuntu 16.2-1.pgdg22.04+1)", "16.2"),
        ] {
            assert_eq!(version(text).to_string(), shown);
        }
        assert_eq!(Version::parse("pg_dump"), None);
        assert_eq!(Version::parse(""), None);
    }

    #[test]
    fn a_tool_dumps_its_own_release_and_older_ones() {
        assert!(version("15.1").can_dump(version("15.18")), "minor releases do not matter");
        assert!(version("16.0").can_dump(version("9.6")));
        assert!(!version("15.18").can_dump(version("16.0")));
        assert!(!version("9.5").can_dump(version("9.6")));
        assert!(version("17.0") > version("9.6"));
    }

    #[test]
    fn executables_only_and_no_wrapper() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let make = |name: &str, mode: u32| {
            fs::write(at(name), "#!/bin/sh\n").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        make("pg_dump", 0o755);
        make("pg_wrapper", 0o755);
        make("plain", 0o644);
        symlink(at("pg_wrapper"), at("wrapped")).unwrap();
        assert_eq!(candidates("pg_dump", Some(dir.path())), [at("pg_dump")]);
        for none in ["wrapped", "plain", "gone"] {
            assert!(candidates(none, Some(dir.path())).is_empty(), "{none}");
        }
    }
}
