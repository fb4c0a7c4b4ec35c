//! Which of MySQL's and MariaDB's tools there are, on this host or in a container.
//!
//! Either family dumps either server, but each knows its own server best, so the target's own family is taken
//! if it is there. Which family a program is of, it says itself: `mysqldump` is often MariaDB's. A container has
//! those of its own server, so there the first that answers is taken.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::exec::{ExecError, Tool};
use super::super::site::Site;
use super::super::tools::{self, Version};
use super::super::{Context, DriverError};
use super::fault::MySqlFault;
use crate::config::HostPolicy;
use crate::model::Engine;

/// For `--version` and for small questions.
pub(super) const SHORT: Duration = Duration::from_secs(30);
const ANSWER_BYTES: usize = 4096;
const DUMP: [&str; 2] = ["mariadb-dump", "mysqldump"];
const CLIENT: [&str; 2] = ["mariadb", "mysql"];

/// Whose tool, or server, it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    MariaDb,
    MySql,
}

/// A program that was asked for its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) family: Family,
    pub(super) version: Version,
}

impl Program {
    /// Its own name, for messages.
    pub(super) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or("the tool")
    }
}

/// Whether there is a dump tool.
pub(in crate::drivers) fn has_dump_tool(policy: &HostPolicy) -> bool {
    DUMP.iter().any(|name| !tools::candidates(name, policy.mysql_bin_dir.as_deref()).is_empty())
}

/// Where tools are looked for.
pub(super) fn places(policy: &HostPolicy) -> String {
    match &policy.mysql_bin_dir {
        Some(dir) => format!("{} (BACKUPY_MYSQL_BIN_DIR)", dir.display()),
        None => "PATH, /usr/local/mysql*/bin, /opt/mariadb*/bin and the like".to_owned(),
    }
}

/// The dump tool for a server of this engine.
pub(super) fn dump_tool(
    engine: Engine,
    site: &Site,
    cx: &Context<'_>,
) -> Result<Program, DriverError> {
    let places = || site.places(|| places(cx.policy));
    find(&DUMP, engine, site, cx)?
        .ok_or_else(|| DriverError::MySql(MySqlFault::NoTool { places: places() }))
}

/// The client, if there is one.
pub(super) fn client(
    engine: Engine,
    site: &Site,
    cx: &Context<'_>,
) -> Result<Option<Program>, DriverError> {
    match find(&CLIENT, engine, site, cx) {
        // The container is another matter; without a client the dump can do.
        Err(error @ DriverError::Exec(ExecError::Container(_))) => Err(error),
        Err(DriverError::Exec(_) | DriverError::Mark { .. }) => Ok(None),
        other => other,
    }
}

fn find(
    names: &[&str],
    engine: Engine,
    site: &Site,
    cx: &Context<'_>,
) -> Result<Option<Program>, DriverError> {
    let wanted = if engine == Engine::MySql { Family::MySql } else { Family::MariaDb };
    let (mut best, mut broken): (Option<Program>, _) = (None, None);
    for path in paths(names, site, cx)? {
        match ask_version(&path, site, cx) {
            Ok(found) if matches!(site, Site::Container(_)) => return Ok(Some(found)),
            Ok(found) => {
                let rank = |p: &Program| (p.family == wanted, p.version);
                if best.as_ref().is_none_or(|best| rank(&found) > rank(best)) {
                    best = Some(found);
                }
            }
            Err(error @ DriverError::Cancelled(_)) => return Err(error),
            // A broken one beside a good one does no harm.
            Err(error) => broken = Some(error),
        }
    }
    match (best, broken) {
        (None, Some(error)) => Err(error),
        (best, _) => Ok(best),
    }
}

/// The programs of these names, each once.
fn paths(names: &[&str], site: &Site, cx: &Context<'_>) -> Result<Vec<PathBuf>, DriverError> {
    if let Site::Container(inside) = site {
        return Ok(inside.find(names, cx)?);
    }
    let mut seen = HashSet::new();
    let all =
        names.iter().flat_map(|name| tools::candidates(name, cx.policy.mysql_bin_dir.as_deref()));
    // One name is often a link to the other.
    Ok(all
        .filter(|path| seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone())))
        .collect())
}

fn ask_version(path: &Path, site: &Site, cx: &Context<'_>) -> Result<Program, DriverError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let args: Vec<OsString> = vec!["--no-defaults".into(), "--version".into()];
    let tool = Tool { name: &name, program: path, args, env: Vec::new(), secrets: Vec::new() };
    let answer =
        site.capture(&tool, None, ANSWER_BYTES, SHORT, cx).map_err(|error| match error {
            ExecError::Sink(_) => DriverError::Mark { tool: name.clone() },
            other => other.into(),
        })?;
    let (family, version) =
        read_version(&answer).ok_or(DriverError::Mark { tool: name.clone() })?;
    Ok(Program { path: path.to_owned(), family, version })
}

/// `… Ver 10.19 Distrib 10.11.19-MariaDB, for …`, `… from 11.4.2-MariaDB, client 10.19 …`, `… Ver 8.0.36 for Linux …`.
fn read_version(answer: &str) -> Option<(Family, Version)> {
    let family = if answer.contains("MariaDB") { Family::MariaDb } else { Family::MySql };
    let after = |word: &str| answer.split_once(word).and_then(|(_, rest)| Version::parse(rest));
    let version = after(" Distrib ").or_else(|| after(" from ")).or_else(|| after(" Ver "))?;
    Some((family, version))
}

/// A server's version, such as `10.11.19-MariaDB-0+deb12u1`, as it is reported: `MariaDB 10.11.19`.
pub(super) fn engine_version(text: &str) -> Option<String> {
    let family = if text.contains("MariaDB") { "MariaDB" } else { "MySQL" };
    // What MariaDB puts before its version so that MySQL's own tools take it for one of theirs.
    let text = text.strip_prefix("5.5.5-").filter(|_| family == "MariaDB").unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text.get(..end)?.trim_end_matches('.');
    number.starts_with(|c: char| c.is_ascii_digit()).then(|| format!("{family} {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_tools() {
        for (text, family, version) in [
            (
                "mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)",
                Family::MariaDb,
                "10.11",
            ),
            (
                "mysqldump from 11.4.2-MariaDB, client 10.19 for Linux (x86_64)",
                Family::MariaDb,
                "11.4",
            ),
            (
                "mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)",
                Family::MySql,
                "8.0",
            ),
            (
                "mysqldump  Ver 10.13 Distrib 5.7.44, for linux-glibc2.12 (x86_64)",
                Family::MySql,
                "5.7",
            ),
        ] {
            let (found, number) = read_version(text).unwrap();
            assert_eq!((found, number.to_string().as_str()), (family, version));
        }
        assert_eq!(read_version("hello"), None);
    }

    #[test]
    fn versions_of_servers() {
        for (text, shown) in [
            ("10.11.19-MariaDB-0+deb12u1", "MariaDB 10.11.19"),
            ("5.5.5-10.11.19-MariaDB", "MariaDB 10.11.19"),
            ("8.0.36", "MySQL 8.0.36"),
            ("8.0.36-0ubuntu0.22.04.1", "MySQL 8.0.36"),
            ("5.5.5", "MySQL 5.5.5"),
        ] {
            assert_eq!(engine_version(text).as_deref(), Some(shown));
        }
        assert_eq!(engine_version("unknown"), None);
    }
}
