//! MySQL and MariaDB through `mariadb-dump` or `mysqldump`.
//!
//! `prepare` finds the tools and logs in with the client where there is one ([`ask`]): version, size, what is not
//! transactional and what the user cannot see. `dump` runs the tool in one transaction, passes nothing on before
//! the banner was seen, and takes the dump for complete only if its last line is the end mark. An empty database
//! name means all databases, the server's own (users, grants) included, in one dump.
//!
//! In a container it is the same with the tools of its image, over its own socket unless the target says otherwise.
//!
//! User, password and place are in an option file for the time of one program ([`optionfile`], [`login`]); the only
//! thing of the target in argv is the database's name, behind `--`.

mod ask;
mod fault;
mod grants;
mod kit;
pub(super) mod load;
mod login;
mod optionfile;

use std::ffi::OsString;
use std::io::Write;

pub use fault::MySqlFault;
pub(super) use kit::has_dump_tool;

use self::ask::Facts;
use self::kit::{Family, Program};
use self::login::{Login, Server};
use super::exec::{ExecError, Tool};
use super::sqltext::{Flow, Format};
use super::{Context, Driver, DriverError, Dumped, Prepared};
use crate::model::{Connection, Engine};

/// In every dump of all databases by a user who may see them.
const OWN_DATABASE: &str = "-- Current Database: `mysql`";
/// Warnings of the tool that are passed on.
const MAX_WARNINGS: usize = 5;

/// What both families write.
static FORMAT: Format = Format { banners: &["-- MariaDB dump ", "-- MySQL dump "], ended };

/// `-- Dump completed on 2026-11-25 16:09:56`, alone on the last line.
fn ended(tail: &str) -> bool {
    let Some(line) =
        tail.strip_suffix('\n').and_then(|t| t.trim_end_matches('\n').rsplit_once('\n'))
    else {
        return false;
    };
    line.1.trim_end_matches('\r').strip_prefix("-- Dump completed").is_some_and(|rest| {
        let date = rest.strip_prefix(" on ").unwrap_or(rest);
        date.len() <= 24 && date.chars().all(|c| c.is_ascii_digit() || " -:".contains(c))
    })
}

/// The driver of one MySQL or MariaDB database, or of all of a server's.
pub(super) struct MySql {
    engine: Engine,
    login: Login,
    /// Found by `prepare`.
    found: Option<Found>,
    version: Option<String>,
}

/// What is known before the dump.
struct Found {
    tool: Program,
    /// The way that was open a moment ago first.
    servers: Vec<Server>,
    facts: Option<Facts>,
}

impl MySql {
    /// A driver for the target's database.
    pub(super) fn new(engine: Engine, connection: &Connection) -> Result<Self, DriverError> {
        Ok(Self { engine, login: Login::new(connection)?, found: None, version: None })
    }

    fn find(&self, cx: &Context<'_>) -> Result<Found, DriverError> {
        let site = &self.login.site;
        let tool = kit::dump_tool(self.engine, site, cx)?;
        let client = kit::client(self.engine, site, cx)?;
        let mut servers = self.login.servers(cx)?;
        let Some(client) = client else {
            if self.login.must_see_tls(tool.family) {
                return Err(DriverError::Setting {
                    field: "TLS mode",
                    problem: "cannot be `require` without the `mariadb` client beside mariadb-dump, which does \
                              not insist on it; install the client or use verify-full"
                        .to_owned(),
                });
            }
            // What cannot be asked can at least be refused before the dump.
            for server in &servers {
                drop(self.login.credentials(tool.family, server, cx)?);
            }
            return Ok(Found { tool, servers, facts: None });
        };
        let (at, facts) =
            first_open(&servers, |server| ask::ask(&self.login, &client, server, cx))?;
        servers.swap(0, at);
        if self.login.database.is_empty() && facts.blind {
            return Err(DriverError::Setting {
                field: "user name",
                problem: "is of a user who may not read all databases; GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON *.* to it, or \
                          name one database"
                    .to_owned(),
            });
        }
        Ok(Found { tool, servers, facts: Some(facts) })
    }

    fn dump_from(
        &self,
        found: &Found,
        server: &Server,
        cx: &Context<'_>,
        flow: &mut Flow<'_>,
    ) -> Result<Vec<String>, DriverError> {
        let Program { path, family, .. } = &found.tool;
        let name = found.tool.name();
        let credentials = self.login.credentials(*family, server, cx)?;
        let mut file = OsString::from("--defaults-file=");
        file.push(credentials.file.path());
        let mut args = vec![file];
        args.extend(dump_args(&found.tool, found.facts.as_ref(), &self.login.database));
        let secrets = vec![credentials.password.clone()];
        let tool = Tool { name, program: path, args, env: Vec::new(), secrets };
        let (file, stuck) = (Some(&credentials.file), cx.limits.stuck_timeout);
        let ended = self.login.site.run(&tool, file, stuck, cx, &mut |chunk| flow.pass(chunk));
        flow.begins_as_a_dump(name)?;
        let said = ended.map_err(|error| self.explain(found, error))?;
        flow.is_whole(name)?;
        if flow.lacks_line() {
            let problem = "does not hold the server's own database: the user may not see everything; GRANT SELECT, SHOW VIEW, \
                           TRIGGER, EVENT ON *.* to it, or name one database";
            return Err(DriverError::BadDump { problem });
        }
        Ok(said.lines().filter(|line| !fault::is_chatter(line)).take(MAX_WARNINGS).collect())
    }
}

impl MySql {
    /// The client was in this database a moment ago, but MariaDB's tool looks for the events of one with a quote in
    /// its name under another.
    fn explain(&self, found: &Found, error: ExecError) -> DriverError {
        match fault::explain(error) {
            DriverError::MySql(MySqlFault::NoDatabase(_))
                if found.facts.is_some() && self.login.database.contains(['\'', '"', '\\']) =>
            {
                DriverError::Setting {
                    field: "database",
                    problem: format!(
                        "has a quote or a backslash in its name and events in it, which {} cannot dump; rename it, or drop the events",
                        found.tool.name()
                    ),
                }
            }
            error => error,
        }
    }
}

/// Tries one way after the other while nobody is there; the first answer, and whose.
fn first_open<T>(
    servers: &[Server],
    mut reach: impl FnMut(&Server) -> Result<T, DriverError>,
) -> Result<(usize, T), DriverError> {
    for (at, server) in servers.iter().enumerate() {
        match reach(server) {
            Ok(answer) => return Ok((at, answer)),
            Err(DriverError::MySql(MySqlFault::Unreachable(_))) if at + 1 < servers.len() => {}
            Err(error) => return Err(error),
        }
    }
    Err(DriverError::Setting { field: "host", problem: "has no address".to_owned() })
}

impl Driver for MySql {
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
        let found = self.find(cx)?;
        let mut prepared = Prepared::default();
        if let Some(facts) = &found.facts {
            prepared.engine_version = kit::engine_version(&facts.version).unwrap_or_default();
            prepared.size_hint_bytes = facts.size_bytes;
            prepared.warnings.clone_from(&facts.warnings);
        }
        self.found = Some(found);
        Ok(prepared)
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        let found = match self.found.take() {
            Some(found) => found,
            None => self.find(cx)?,
        };
        let size_bytes = found.facts.as_ref().and_then(|facts| facts.size_bytes);
        let mut flow = Flow::new(&FORMAT, size_bytes, cx, out);
        if self.login.database.is_empty() {
            // The tool leaves out what the user cannot see, without a word.
            flow.want_line(OWN_DATABASE);
        }
        let (_, warnings) = first_open(&found.servers, |server| {
            match self.dump_from(&found, server, cx, &mut flow) {
                // What was passed on cannot be taken back.
                Err(DriverError::MySql(MySqlFault::Unreachable(said))) if flow.bytes > 0 => {
                    Err(DriverError::MySql(MySqlFault::Lost(said)))
                }
                other => other,
            }
        })?;
        self.version = dumped_version(&flow.marks.head());
        Ok(Dumped { bytes: flow.bytes, warnings })
    }

    fn dumped_version(&self) -> Option<String> {
        self.version.clone()
    }

    /// A server hangs up on a reader that pauses for `net_write_timeout`, 60 s, which `mariadb-dump` cannot raise.
    fn hurries(&self) -> bool {
        true
    }
}

/// What the dump's head says of its server.
fn dumped_version(head: &str) -> Option<String> {
    let line = head.lines().find_map(|line| line.strip_prefix("-- Server version"))?;
    kit::engine_version(line.trim())
}

/// Compression is somebody else's, so only what is in the dump is said here. Beyond the usual: every character as
/// it is, rows as large as the protocol has them, and of MySQL's own tools neither replication state nor statistics,
/// for which they ask rights, or tables that other servers do not have.
fn dump_args(tool: &Program, facts: Option<&Facts>, database: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> = [
        "--single-transaction",
        "--quick",
        "--routines",
        "--triggers",
        "--events",
        "--hex-blob",
        "--comments",
        "--no-tablespaces",
        "--default-character-set=utf8mb4",
        "--max-allowed-packet=1G",
    ]
    .map(OsString::from)
    .into();
    if tool.family == Family::MySql {
        args.push("--set-gtid-purged=OFF".into());
        let has_statistics = facts.is_some_and(|facts| {
            let major = facts.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
            !facts.version.contains("MariaDB") && major.is_some_and(|major| major >= 8)
        });
        if tool.version.series().0 >= 8 && !has_statistics {
            args.push("--column-statistics=0".into());
        }
    }
    match database {
        "" => args.extend(["--all-databases", "--flush-privileges"].map(OsString::from)),
        name => args.extend(["--".into(), name.into()]),
    }
    args
}

#[cfg(test)]
mod tests {
    use super::super::tools::Version;
    use super::*;

    #[test]
    fn end_marks() {
        for good in [
            "x;\n\n-- Dump completed on 2026-11-25 16:09:56\n",
            "x;\n-- Dump completed on 2026-11-25  6:09:56\n",
            "x;\n-- Dump completed\n",
            "x;\n-- Dump completed on 2026-11-25 16:09:56\n\n",
        ] {
            assert!(ended(good), "{good:?}");
        }
        for bad in [
            "",
            "-- Dump completed\n",
            "x;\n-- Dump completed on 2026-11-25 16:09:56",
            "x;\n-- Dump completed on 2026-11-25 16:09:56\nINSERT 1;\n",
            "INSERT INTO t VALUES ('-- Dump completed on 2026-11-25 16:09:56\n",
            "x;\n-- Dump completed on time\n",
            "x;\n  -- Dump completed\n",
        ] {
            assert!(!ended(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_is_asked_of_each_tool() {
        let args = |family, version: &str, server: Option<&str>, database: &str| {
            let version = Version::parse(version).unwrap();
            let tool = Program { path: "/usr/bin/x".into(), family, version };
            let facts = server.map(|v| Facts { version: v.to_owned(), ..Facts::default() });
            let args = dump_args(&tool, facts.as_ref(), database);
            args.into_iter().map(|arg| arg.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        let text = args(Family::MariaDb, "10.11.19", None, "--x");
        assert!(text.ends_with("--max-allowed-packet=1G -- --x"), "{text}");
        let text = args(Family::MySql, "8.0.36", Some("8.0.36"), "shop");
        assert!(text.ends_with(" --set-gtid-purged=OFF -- shop"), "{text}");
        for server in [None, Some("10.11.19-MariaDB"), Some("5.7.44")] {
            let text = args(Family::MySql, "8.0.36", server, "");
            let end = "--column-statistics=0 --all-databases --flush-privileges";
            assert!(text.ends_with(end), "{text}");
        }
        assert!(!args(Family::MySql, "5.7.44", None, "x").contains("statistics"));
    }

    #[test]
    fn the_server_in_the_head() {
        let head = "/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump 10.19\n-- Server version\t10.11.19-MariaDB-0+deb12u1\n";
        assert_eq!(dumped_version(head).as_deref(), Some("MariaDB 10.11.19"));
        assert_eq!(dumped_version("-- Server version\t8.0.36\n").as_deref(), Some("MySQL 8.0.36"));
        assert_eq!(dumped_version("-- MySQL dump\n"), None);
    }
}
