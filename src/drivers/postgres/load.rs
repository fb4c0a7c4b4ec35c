//! A PostgreSQL dump on its way back, through `pg_restore`.
//!
//! The newest tool is taken: an older one cannot read what a newer `pg_dump` wrote. Loading is one transaction,
//! so that a failure leaves the database as it was.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::exec::{self, ExecError, Tool};
use super::super::load::{Inspected, Table};
use super::super::tools::{self, Version};
use super::super::{Context, DriverError};
use super::{ANSWER_BYTES, Postgres, PostgresFault, SHORT, cluster};
use crate::model::Connection;

const TOOL: &str = "pg_restore";

/// The tool is silent while it reads one large table or builds one large index; the cancel still ends it.
const SILENCE: Duration = Duration::from_secs(24 * 3600);

/// Largest table of contents that is read, and most tables that are told.
const CONTENTS_BYTES: usize = 64 << 20;
const TABLES_MAX: usize = 100_000;

/// Reads the whole dump to nowhere.
pub(in crate::drivers) fn inspect(dump: &Path, cx: &Context<'_>) -> Result<Inspected, DriverError> {
    if cluster::is_one(dump)? {
        return cluster::inspect(dump, cx);
    }
    let program = newest(cx)?;
    let whole = vec!["--file=/dev/null".into(), dump.into()];
    exec::run(&tool(&program, whole), SILENCE, cx.cancel, &mut |_| Ok(()))?;
    let contents = vec!["--list".into(), dump.into()];
    let contents = exec::capture(&tool(&program, contents), CONTENTS_BYTES, SILENCE, cx.cancel)?;
    let mut tables: Vec<Table> = contents.lines().filter_map(table).take(TABLES_MAX).collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Inspected { tables, warnings: Vec::new() })
}

/// Loads the dump in one transaction; with `replace` what the dump holds is dropped first.
pub(in crate::drivers) fn load(
    connection: &Connection,
    dump: &Path,
    replace: bool,
    cx: &Context<'_>,
) -> Result<(), DriverError> {
    let refuse = |problem: &str| Err(DriverError::Load { problem: problem.to_owned() });
    if cluster::is_one(dump)? {
        return refuse(
            "it holds the roles of a server, or all of it; restore it to a file (--to) and load that with \
             `psql --file FILE --dbname postgres`, all of a server into a new one",
        );
    }
    if connection.database.is_empty() {
        return refuse("the URL names no database to load it into: add /name");
    }
    let program = newest(cx)?;
    let login = Postgres::new(connection)?.login(cx)?;
    let mut args: Vec<OsString> = vec!["--single-transaction".into(), "--no-password".into()];
    if replace {
        args.extend(["--clean".into(), "--if-exists".into()]);
    }
    args.push(format!("--dbname={}", login.conninfo).into());
    args.push(dump.into());
    let tool = login.tool(TOOL, &program, args);
    match exec::run(&tool, SILENCE, cx.cancel, &mut |_| Ok(())) {
        Ok(_) => Ok(()),
        Err(error) => Err(explain(error)),
    }
}

/// Only what says something about the connection: the rest of the words there are about dumping.
fn explain(error: ExecError) -> DriverError {
    if let ExecError::Exit { said, .. } = &error {
        let fault = PostgresFault::read(said.clone());
        match fault {
            PostgresFault::Unreachable(_)
            | PostgresFault::Password(_)
            | PostgresFault::NotAdmitted(_)
            | PostgresFault::NoDatabase(_)
            | PostgresFault::NoUser(_)
            | PostgresFault::Tls(_) => return DriverError::Postgres(fault),
            PostgresFault::NoTool { .. }
            | PostgresFault::ServerNewer { .. }
            | PostgresFault::Permission(_)
            | PostgresFault::Roles(_)
            | PostgresFault::Lost(_)
            | PostgresFault::Conflict(_)
            | PostgresFault::Other(_) => {}
        }
    }
    error.into()
}

fn tool(program: &Path, args: Vec<OsString>) -> Tool<'_> {
    Tool { name: TOOL, program, args, env: Vec::new(), secrets: Vec::new() }
}

fn newest(cx: &Context<'_>) -> Result<PathBuf, DriverError> {
    let configured = cx.policy.pg_bin_dir.as_deref();
    let mut newest: Option<(Version, PathBuf)> = None;
    for program in tools::candidates(TOOL, configured) {
        let answer = exec::capture(
            &tool(&program, vec!["--version".into()]),
            ANSWER_BYTES,
            SHORT,
            cx.cancel,
        );
        let version = match answer {
            Err(ExecError::Cancelled(why)) => return Err(DriverError::Cancelled(why)),
            // A broken one beside a good one does no harm.
            Err(_) => continue,
            Ok(answer) => Version::parse(&answer),
        };
        if let Some(version) = version
            && newest.as_ref().is_none_or(|(best, _)| version > *best)
        {
            newest = Some((version, program));
        }
    }
    let places = tools::places(configured);
    newest.map(|(_, program)| program).ok_or(DriverError::Setting {
        field: "dump",
        problem: format!(
            "needs pg_restore, which is not in {places}; install PostgreSQL's client tools"
        ),
    })
}

/// `3345; 0 16386 TABLE DATA public orders postgres` → `public.orders`.
fn table(line: &str) -> Option<Table> {
    if line.starts_with(';') {
        return None;
    }
    let (_, rest) = line.split_once(" TABLE DATA ")?;
    // The owner stands last; it and the names may have spaces, which this is not exact about.
    let (name, _) = rest.rsplit_once(' ')?;
    Some(Table { name: name.replacen(' ', ".", 1), rows: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_contents() {
        let name = |line| table(line).map(|table| table.name);
        assert_eq!(
            name("3345; 0 16386 TABLE DATA public orders postgres").unwrap(),
            "public.orders"
        );
        assert_eq!(name("215; 1259 16386 TABLE public orders postgres"), None);
        assert_eq!(name("; Archive created at TABLE DATA x y z"), None);
    }
}
