//! A MongoDB archive on its way back: read by ourselves, loaded through `mongorestore --archive`.
//!
//! mongorestore knows no transaction: what it has loaded before it fails stays, which the error says. Without
//! `replace` the first document that is there already ends it; with it, every collection that the archive holds is
//! dropped before it is loaded, and collections that are only in the database stay.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::super::exec::{self, Tool};
use super::super::load::{Inspected, Table};
use super::super::tail::Said;
use super::super::{Context, DriverError};
use super::archive::{Closed, Damage, Walker};
use super::target::check_database;
use super::{Login, MongoDb, MongoFault, fault, find};
use crate::model::Connection;

const TOOL: &str = "mongorestore";

/// The tool is silent while it builds a large index; the cancel still ends it.
const SILENCE: Duration = Duration::from_secs(24 * 3600);

/// Namespaces that are told; the rest are read all the same.
const MAX_TABLES: usize = 100_000;
const CHUNK_BYTES: usize = 256 << 10;

/// Reads the whole archive, its checksums included.
pub(in crate::drivers) fn inspect(dump: &Path, cx: &Context<'_>) -> Result<Inspected, DriverError> {
    let contents = read(dump, cx)?;
    let mut tables: Vec<Table> = contents
        .closed
        .iter()
        .map(|closed| Table { name: name(closed), rows: Some(closed.documents) })
        .collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    let mut warnings = Vec::new();
    if contents.more > 0 {
        warnings.push(format!("{} more collections are not listed", contents.more));
    }
    Ok(Inspected { tables, warnings })
}

/// Loads the archive. A target with a database takes the archive's one database, or that of its own name.
pub(in crate::drivers) fn load(
    connection: &Connection,
    dump: &Path,
    replace: bool,
    cx: &Context<'_>,
) -> Result<(), DriverError> {
    let contents = read(dump, cx)?;
    let driver = MongoDb::new(connection, cx.policy)?;
    let mut args = vec![super::option("archive", dump)];
    args.extend(names(&contents.databases(), &driver.target.database)?);
    match replace {
        true => args.push("--drop".into()),
        false => args.extend(["--stopOnError".into(), "--maintainInsertionOrder".into()]),
    }
    let program = find(TOOL, &driver.site, cx)?;
    // Not the database: which one is said by the patterns.
    let Login { args: login, secrets, config: _config } = driver.login("", cx)?;
    args.extend(login);
    let tool = Tool { name: TOOL, program: &program, args, env: Vec::new(), secrets };
    let said = exec::run(&tool, SILENCE, cx.cancel, &mut |_| Ok(())).map_err(fault::explain)?;
    match failures(&said) {
        Some("0") | None => Ok(()),
        Some(_) => Err(DriverError::Mongo(MongoFault::NotLoaded(said))),
    }
}

/// What `3 document(s) failed to restore.` counts.
fn failures(said: &Said) -> Option<&str> {
    said.after("document(s) restored successfully. ", &[' '])
}

/// The patterns that bring the archive's databases into the target's.
fn names(databases: &BTreeSet<&str>, into: &str) -> Result<Vec<OsString>, DriverError> {
    let wrong = |problem: String| Err(DriverError::Setting { field: "database", problem });
    if into.is_empty() {
        return Ok(Vec::new());
    }
    if databases.contains(into) {
        return Ok(vec![super::option("nsInclude", format!("{into}.*"))]);
    }
    match databases.iter().collect::<Vec<_>>().as_slice() {
        [] => wrong("cannot be found in the archive, which names no collection; name none to load it as it is".to_owned()),
        [one] => {
            check_database(one)?;
            let from = super::option("nsFrom", format!("{one}.*"));
            Ok(vec![from, super::option("nsTo", format!("{into}.*"))])
        }
        several => wrong(format!(
            "is none of the {} in the archive; name none to load them all",
            several.len()
        )),
    }
}

struct Contents {
    closed: Vec<Closed>,
    more: usize,
}

impl Contents {
    fn databases(&self) -> BTreeSet<&str> {
        self.closed.iter().map(|closed| closed.database.as_str()).collect()
    }
}

fn read(dump: &Path, cx: &Context<'_>) -> Result<Contents, DriverError> {
    let failed = |source| DriverError::Work { path: dump.to_owned(), source };
    let damaged = |damage: Damage| DriverError::Mongo(MongoFault::Archive(damage));
    let mut file = File::open(dump).map_err(failed)?;
    let mut walker = Walker::new(true);
    let mut contents = Contents { closed: Vec::new(), more: 0 };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        if let Some(why) = cx.cancel.why() {
            return Err(DriverError::Cancelled(why));
        }
        let length = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let chunk = buffer.get(..length).unwrap_or_default();
        let note = &mut |closed| match contents.closed.len() < MAX_TABLES {
            true => contents.closed.push(closed),
            false => contents.more += 1,
        };
        walker.feed(chunk, note).map_err(damaged)?;
    }
    walker.finish().map_err(damaged)?;
    Ok(contents)
}

/// `shop.orders`; what is no printable name is not printed as it is.
fn name(closed: &Closed) -> String {
    let name = format!("{}.{}", closed.database, closed.collection);
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn into_which_database() {
        let texts = |databases: &[&str], into: &str| {
            let names = names(&databases.iter().copied().collect(), into)?;
            Ok::<_, DriverError>(
                names.iter().map(|n| n.to_str().unwrap().to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(texts(&["a", "b"], "").unwrap(), Vec::<String>::new());
        assert_eq!(texts(&["a", "b"], "b").unwrap(), ["--nsInclude=b.*"]);
        assert_eq!(texts(&["a"], "c").unwrap(), ["--nsFrom=a.*", "--nsTo=c.*"]);
        assert!(texts(&["a", "b"], "c").is_err());
        assert!(texts(&["*"], "c").is_err(), "a name from the archive is no pattern");
    }

    #[test]
    fn documents_that_were_not_taken() {
        let said = |text: &str| Said::from(text);
        let good = "2023\t3 document(s) restored successfully. 0 document(s) failed to restore.";
        assert_eq!(failures(&said(good)), Some("0"));
        assert_eq!(failures(&said(&good.replace("0 doc", "12 doc"))), Some("12"));
        assert_eq!(failures(&said("done")), None);
    }
}
