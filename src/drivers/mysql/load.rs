//! A MySQL or MariaDB dump on its way back, through the command line client.
//!
//! These servers cannot undo a `CREATE TABLE`, so "all of it or nothing" is kept differently than elsewhere: the
//! dump is read to its end mark before anything is touched; it goes into a database that is new or empty; and
//! if it fails half-way, what it created is dropped, so that the database is gone or empty again. With `replace`
//! the old content is dropped first, because it cannot be kept beside the new: if the load fails then, both are
//! incomplete, and the error says so.
//!
//! A dump of all databases is not loaded: it would overwrite the users of whatever server it meets.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use super::super::exec::{self, ExecError};
use super::super::load::{Inspected, Table};
use super::super::sqltext;
use super::super::{Context, DriverError};
use super::ask::{client_tool, query};
use super::kit::{self, Program};
use super::login::{Login, Server};
use super::{FORMAT, MySqlFault, first_open};
use crate::hex::hex;
use crate::model::{Connection, Engine};
use crate::thread::Cancel;

/// The client is silent while it loads; the cancel still ends it.
const SILENCE: Duration = Duration::from_secs(24 * 3600);
const TABLES_MAX: usize = 100_000;

/// What a dump says it holds.
#[derive(Debug, Default)]
struct Contents {
    /// All databases of a server.
    all: bool,
    /// Within `all`: whose tables follow.
    current: String,
    tables: Vec<Table>,
    /// A database that the dump changes by its name.
    alters: Option<String>,
}

impl Contents {
    fn line(&mut self, line: &str) {
        let name = |rest: &str| Some(rest.trim_end().strip_suffix('`')?.replace("``", "`"));
        if let Some(rest) = line.strip_prefix("-- Table structure for table `") {
            if let Some(table) = name(rest)
                && self.tables.len() < TABLES_MAX
            {
                let dot = if self.current.is_empty() { "" } else { "." };
                self.tables
                    .push(Table { name: format!("{}{dot}{table}", self.current), rows: None });
            }
        } else if self.all
            && let Some(rest) = line.strip_prefix("-- Current Database: `")
        {
            self.current = name(rest).unwrap_or_default();
        } else if let Some(rest) = line.strip_prefix("ALTER DATABASE `") {
            self.alters = rest.split_once("` ").map(|(name, _)| name.replace("``", "`"));
        }
    }
}

fn read(dump: &Path, cx: &Context<'_>) -> Result<Contents, DriverError> {
    let head = sqltext::head(dump)?;
    let mut contents = Contents { all: holds_all(&head), ..Contents::default() };
    sqltext::scan(&FORMAT, dump, cx.cancel, &mut |line| contents.line(line))?;
    contents.tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(contents)
}

/// `-- Host: localhost    Database: shop`: without a name it is all of them.
fn holds_all(head: &str) -> bool {
    let line = head.lines().find(|line| line.starts_with("-- Host: "));
    line.is_some_and(|line| line.trim_end().ends_with(" Database:"))
}

/// Reads the whole dump, without a server.
pub(in crate::drivers) fn inspect(dump: &Path, cx: &Context<'_>) -> Result<Inspected, DriverError> {
    let contents = read(dump, cx)?;
    let note = "only the text was read: beginning, end and the names of the tables; loading it into a server proves more";
    Ok(Inspected { tables: contents.tables, warnings: vec![note.to_owned()] })
}

/// Loads the dump into a new or empty database; with `replace` it is emptied first.
pub(in crate::drivers) fn load(
    engine: Engine,
    connection: &Connection,
    dump: &Path,
    replace: bool,
    cx: &Context<'_>,
) -> Result<(), DriverError> {
    let login = Login::new(connection)?;
    let contents = read(dump, cx)?;
    may_go_into(&contents, &login.database)?;
    let Some(client) = kit::client(engine, &login.site, cx)? else {
        let places = kit::places(cx.policy);
        return refuse(format!("needs the `mariadb` or `mysql` client, which is not in {places}"));
    };
    let work = Loader { login, client, cx };
    let mut servers = work.login.servers(cx)?;
    let (at, found) = first_open(&servers, |server| work.look(server))?;
    let server = servers.swap_remove(at);
    if found.as_ref().is_some_and(|found| found.objects > 0) && !replace {
        return refuse(format!(
            "the database {} is not empty; name a new one, or say --replace to drop what is in it",
            quoted(&work.login.database)
        ));
    }
    work.load(&server, found.as_ref(), dump)
}

fn refuse<T>(problem: String) -> Result<T, DriverError> {
    Err(DriverError::Load { problem })
}

fn may_go_into(contents: &Contents, database: &str) -> Result<(), DriverError> {
    if contents.all {
        return refuse(
            "it holds all databases of a server, its users included; restore it to a file (--to) and load that into a \
             new server with the `mariadb` or `mysql` client"
                .to_owned(),
        );
    }
    if database.is_empty() {
        return refuse("the URL names no database to load it into: add /name".to_owned());
    }
    match &contents.alters {
        Some(own) if own != database => refuse(format!(
            "it sets the character set of the database {} by its name, so only a database of that name can take it",
            quoted(own)
        )),
        _ => Ok(()),
    }
}

/// A database that is there.
#[derive(Debug, PartialEq, Eq)]
struct There {
    charset: String,
    collation: String,
    /// Tables, views, routines and events.
    objects: u64,
}

struct Loader<'a> {
    login: Login,
    client: Program,
    cx: &'a Context<'a>,
}

impl Loader<'_> {
    fn run(&self, sql: &str, server: &Server, cx: &Context<'_>) -> Result<String, DriverError> {
        query(sql, &self.login.without_database(), &self.client, server, cx)
            .map_err(|failed| explain(failed.explained()))
    }

    /// What is there under the database's name.
    fn look(&self, server: &Server) -> Result<Option<There>, DriverError> {
        let name = hex(self.login.database.as_bytes());
        let is = |column: &str| {
            format!("{column} = CONVERT(0x{name} USING utf8mb4) COLLATE utf8mb4_bin")
        };
        let count = |table: &str, column: &str| {
            format!("(SELECT COUNT(*) FROM information_schema.{table} WHERE {})", is(column))
        };
        let sql = format!(
            "SELECT 'there', default_character_set_name, default_collation_name, {} + {} + {} \
             FROM information_schema.schemata WHERE {}; SHOW SESSION STATUS LIKE 'Ssl_cipher'",
            count("tables", "table_schema"),
            count("routines", "routine_schema"),
            count("events", "event_schema"),
            is("schema_name"),
        );
        let answer = self.run(&sql, server, self.cx)?;
        let (mut found, mut encrypted) = (None, false);
        for line in answer.lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["there", charset, collation, objects] => {
                    let objects = objects.parse().unwrap_or(u64::MAX);
                    let (charset, collation) = (charset.to_owned(), collation.to_owned());
                    found = Some(There { charset, collation, objects });
                }
                ["Ssl_cipher", cipher] => encrypted = !cipher.is_empty(),
                _ => {}
            }
        }
        if self.login.must_see_tls(self.client.family) && !encrypted {
            return Err(DriverError::MySql(MySqlFault::NoTls));
        }
        Ok(found)
    }

    fn load(&self, server: &Server, found: Option<&There>, dump: &Path) -> Result<(), DriverError> {
        let name = quoted(&self.login.database);
        let (before, after) = match found {
            None => (format!("CREATE DATABASE {name}"), format!("DROP DATABASE {name}")),
            Some(There { charset, collation, objects }) => {
                let anew = format!(
                    "DROP DATABASE {name}; CREATE DATABASE {name} CHARACTER SET {charset} COLLATE {collation}"
                );
                (if *objects > 0 { anew.clone() } else { "DO 1".to_owned() }, anew)
            }
        };
        self.run(&before, server, self.cx)?;
        let Err(error) = self.feed(server, dump) else { return Ok(()) };
        let left = if found.is_some_and(|found| found.objects > 0) {
            "what was in the database before is gone, and what is in it now is incomplete: repair the cause and repeat"
        } else if self.clean(&after, server).is_ok() {
            "what was created until then was dropped again"
        } else {
            "what was created until then could not be dropped again and is incomplete"
        };
        match error {
            DriverError::Cancelled(why) => {
                log::warn!("loading the dump was cancelled; {left}");
                Err(DriverError::Cancelled(why))
            }
            error => refuse(format!("{error}; {left}")),
        }
    }

    fn feed(&self, server: &Server, dump: &Path) -> Result<(), DriverError> {
        let file = File::open(dump)
            .map_err(|source| DriverError::Work { path: dump.to_owned(), source })?;
        let credentials = self.login.credentials(self.client.family, server, self.cx)?;
        let tool = client_tool(&self.client, &credentials, &self.login.database, None);
        match exec::feed(file, &tool, SILENCE, self.cx.cancel) {
            Ok(_) => Ok(()),
            Err(ExecError::Exit { said, .. }) => {
                Err(explain(DriverError::MySql(MySqlFault::read(said))))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Drops what a failed load left, even if it failed because somebody asked for the stop.
    fn clean(&self, sql: &str, server: &Server) -> Result<(), DriverError> {
        let own = Cancel::new()
            .map_err(|source| DriverError::Work { path: self.cx.work_dir.to_owned(), source })?;
        let Context { policy, limits, work_dir, progress, .. } = *self.cx;
        let cx = Context { cancel: &own, policy, limits, work_dir, progress };
        self.run(sql, server, &cx).map(|_| ())
    }
}

/// The words for what is about the dump, not the connection, are about dumping; here they say what is missing.
fn explain(error: DriverError) -> DriverError {
    let problem = match &error {
        DriverError::MySql(MySqlFault::Permission(said)) => format!(
            "{}; the user needs all rights on the database, and SUPER or SET USER (MySQL 8: SET_USER_ID) where views, triggers or \
             routines belong to somebody else",
            said.brief()
        ),
        DriverError::MySql(
            MySqlFault::Conflict(said) | MySqlFault::Broken(said) | MySqlFault::Other(said),
        ) => said.brief(),
        _ => return error,
    };
    DriverError::Load { problem }
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(all: bool, text: &str) -> Contents {
        let mut contents = Contents { all, ..Contents::default() };
        text.lines().for_each(|line| contents.line(line));
        contents
    }

    #[test]
    fn tables_of_one_database_and_of_all() {
        let text = "-- Current Database: `a``b`\n-- Table structure for table `t 1`\n-- Table structure for table `odd";
        let names = |all| -> Vec<_> {
            contents(all, text).tables.into_iter().map(|table| table.name).collect()
        };
        assert_eq!(names(false), ["t 1"]);
        assert_eq!(names(true), ["a`b.t 1"]);
        assert!(holds_all("-- MariaDB dump\n-- Host: localhost    Database: \n"));
        assert!(!holds_all("-- MariaDB dump\n-- Host: localhost    Database: shop\n"));
        assert!(!holds_all("-- MariaDB dump\n"));
    }

    #[test]
    fn where_a_dump_may_go() {
        let plain = contents(false, "-- Table structure for table `t`");
        may_go_into(&plain, "copy").unwrap();
        assert!(may_go_into(&plain, "").is_err());
        assert!(may_go_into(&contents(true, ""), "copy").is_err());
        let alters =
            contents(false, "ALTER DATABASE `shop` CHARACTER SET latin1 COLLATE latin1_bin ;");
        may_go_into(&alters, "shop").unwrap();
        let error = may_go_into(&alters, "copy").unwrap_err();
        assert!(error.to_string().contains("`shop`") && !error.retry(), "{error}");
    }
}
