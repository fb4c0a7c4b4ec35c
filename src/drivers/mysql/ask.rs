//! What the server is asked before the dump, with the command line client: every reason not to get in shows here,
//! before anything is uploaded.
//!
//! Two questions: the first every server answers (version, TLS); the second (size, tables that are not
//! transactional, grants) is for the operator, and the dump does not wait for it for long or depend on it.

use std::ffi::OsString;

use super::super::exec::{ExecError, Tool};
use super::super::{Context, DriverError};
use super::kit::{Program, SHORT};
use super::login::{Credentials, Login, Server};
use super::{fault, grants};
use crate::drivers::MySqlFault;

/// Tables that a warning names.
const NAMED_TABLES: usize = 5;
const ANSWER_BYTES: usize = 256 * 1024;

const FIRST: &str = "SELECT 'version', VERSION(); SHOW SESSION STATUS LIKE 'Ssl_cipher'";

/// Tables of every engine that has no transactions; sequences and views are no base tables.
const TABLES: &str = "SELECT 'table', table_schema, table_name, engine FROM information_schema.tables \
                      WHERE table_type = 'BASE TABLE' AND engine NOT IN \
                      (SELECT engine FROM information_schema.engines WHERE transactions = 'YES')";
const SIZE: &str = "SELECT 'size', COALESCE(SUM(data_length), 0) FROM information_schema.tables";
const SYSTEM: &str = "('mysql', 'sys', 'information_schema', 'performance_schema')";

/// What the server says about itself and the database.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// As it says it.
    pub(super) version: String,
    pub(super) size_bytes: Option<u64>,
    pub(super) warnings: Vec<String>,
    /// Whether tables are hidden from the user.
    pub(super) blind: bool,
}

/// Asks it.
pub(super) fn ask(
    login: &Login,
    client: &Program,
    server: &Server,
    cx: &Context<'_>,
) -> Result<Facts, DriverError> {
    let answer = query(FIRST, login, client, server, cx).map_err(Failed::explained)?;
    let mut facts = Facts::default();
    let mut encrypted = false;
    for line in answer.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["version", version] => facts.version = version.to_owned(),
            ["Ssl_cipher", cipher] => encrypted = !cipher.is_empty(),
            _ => {}
        }
    }
    if login.must_see_tls(client.family) && !encrypted {
        return Err(DriverError::MySql(MySqlFault::NoTls));
    }
    match query(&second(&login.database), login, client, server, cx) {
        Ok(answer) => read(&answer, &login.database, &mut facts),
        Err(Failed::Driver(error)) => return Err(error),
        Err(Failed::Exec(ExecError::Cancelled(why))) => return Err(DriverError::Cancelled(why)),
        Err(Failed::Exec(error)) => log::debug!("the server was not asked for its tables: {error}"),
    }
    Ok(facts)
}

/// Why there is no answer.
pub(super) enum Failed {
    Driver(DriverError),
    Exec(ExecError),
}

impl Failed {
    /// With the meaning of the tool's words.
    pub(super) fn explained(self) -> DriverError {
        match self {
            Self::Driver(error) => error,
            Self::Exec(error) => fault::explain(error),
        }
    }
}

fn second(database: &str) -> String {
    let limit = NAMED_TABLES + 1;
    let here = match database {
        "" => format!("table_schema NOT IN {SYSTEM}"),
        _ => "table_schema = DATABASE()".to_owned(),
    };
    format!("SHOW GRANTS; {TABLES} AND {here} LIMIT {limit}; {SIZE} WHERE {here}")
}

fn read(answer: &str, database: &str, facts: &mut Facts) {
    let (mut tables, mut granted) = (Vec::new(), Vec::new());
    for line in answer.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["size", size] => facts.size_bytes = size.parse().ok(),
            ["table", schema, table, engine] => tables.push(format!("{schema}.{table} ({engine})")),
            _ => granted.push(line.to_owned()),
        }
    }
    if !tables.is_empty() {
        let more = if tables.len() > NAMED_TABLES { " and more" } else { "" };
        tables.truncate(NAMED_TABLES);
        facts.warnings.push(format!(
            "not transactional, so in the dump as of different moments if written to meanwhile: {}{more}",
            tables.join(", ")
        ));
    }
    let unseen = grants::unseen(&granted, database);
    facts.blind = unseen.iter().any(|what| what.starts_with("tables"));
    if !unseen.is_empty() {
        facts.warnings.push(format!(
            "the user may not see everything, and what it does not see is not in the dump; grant it the rights for: {}",
            unseen.join(", ")
        ));
    }
}

pub(super) fn query(
    sql: &str,
    login: &Login,
    client: &Program,
    server: &Server,
    cx: &Context<'_>,
) -> Result<String, Failed> {
    let credentials = login.credentials(client.family, server, cx).map_err(Failed::Driver)?;
    let tool = client_tool(client, &credentials, &login.database, Some(sql));
    let timeout = cx.limits.stuck_timeout.min(SHORT * 4);
    let file = Some(&credentials.file);
    login.site.capture(&tool, file, ANSWER_BYTES, timeout, cx).map_err(Failed::Exec)
}

/// The client with a question, or (without one) with a dump as its input.
pub(super) fn client_tool<'a>(
    client: &'a Program,
    credentials: &Credentials,
    database: &str,
    sql: Option<&str>,
) -> Tool<'a> {
    let mut file = OsString::from("--defaults-file=");
    file.push(credentials.file.path());
    let mut args = vec![file];
    let words = ["--batch", "--skip-column-names", "--default-character-set=utf8mb4"];
    args.extend(words.map(OsString::from));
    args.extend(["--connect-timeout=15", "--local-infile=0"].map(OsString::from));
    match sql {
        Some(sql) => args.push(format!("--execute={sql}").into()),
        // Nothing in the dump is a command to the client itself.
        None => args.extend(["--binary-mode", "--max-allowed-packet=1G"].map(OsString::from)),
    }
    if !database.is_empty() {
        args.extend(["--".into(), database.into()]);
    }
    Tool {
        name: client.name(),
        program: &client.path,
        args,
        env: Vec::new(),
        secrets: vec![credentials.password.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_answer() {
        let mut facts = Facts::default();
        let grants = "GRANT SELECT, TRIGGER ON *.* TO `u`@`%`\n";
        read(&format!("{grants}size\t4096\n"), "shop", &mut facts);
        assert_eq!(facts, Facts { size_bytes: Some(4096), ..Facts::default() });
        let tables: String = (0..7).map(|i| format!("table\tshop\tt{i}\tMyISAM\n")).collect();
        read(&format!("GRANT USAGE ON *.* TO `u`@`%`\n{tables}size\tNULL\n"), "shop", &mut facts);
        let [tables, grants] = &facts.warnings[..] else { panic!("{facts:?}") };
        assert!(tables.contains("shop.t4 (MyISAM) and more"), "{tables}");
        assert!(grants.contains("triggers (TRIGGER)"), "{grants}");
        assert_eq!(facts.size_bytes, None);
    }
}
