//! What MySQL's and MariaDB's tools mean by what they say.
//!
//! They end with 1 or 2 for everything, but they say the error's number, which is the same in every language
//! of the server and in both families. What has no number we know is permanent.

use std::fmt;

use super::super::DriverError;
use super::super::exec::ExecError;
use super::super::tail::Said;

/// What a MySQL or MariaDB server, or one of their tools, would not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MySqlFault {
    /// No dump tool on this host.
    NoTool {
        /// Where it was looked for.
        places: String,
    },
    /// Wrong user or password.
    Password(Said),
    /// The server does not let this host in.
    NotAdmitted(Said),
    /// The tool does not know, or may not use, the account's way of logging in.
    Plugin(Said),
    /// No such database.
    NoDatabase(Said),
    /// The user may not read everything that has to be dumped.
    Permission(Said),
    /// TLS could not be agreed on, or the certificate is not trusted.
    Tls(Said),
    /// TLS is asked for, and the server has none.
    NoTls,
    /// The server cannot be reached, is stopping or is full.
    Unreachable(Said),
    /// The connection ended before the dump did.
    Lost(Said),
    /// Somebody else held a lock, or changed a table meanwhile.
    Conflict(Said),
    /// A view or routine that the server itself cannot use any more.
    Broken(Said),
    /// A row larger than one side takes.
    TooLarge(Said),
    /// Something else.
    Other(Said),
}

/// What a connection that broke says of itself under TLS.
const CUT: [&str; 4] =
    ["when dumping table", "unexpected eof", "Connection reset by peer", "Broken pipe"];

impl MySqlFault {
    /// What a tool's words mean.
    pub(in crate::drivers) fn read(said: Said) -> Self {
        let make: fn(Said) -> Self = match said.read(number) {
            Some(1045 | 1698 | 1862 | 1820) => Self::Password,
            Some(1129 | 1130) => Self::NotAdmitted,
            Some(1251 | 1524 | 2058 | 2059 | 2061) => Self::Plugin,
            Some(1049) => Self::NoDatabase,
            Some(1044 | 1142 | 1143 | 1227 | 1345 | 1370) => Self::Permission,
            // TLS that was there and ended is a lost connection.
            Some(2026) if said.has_any(&CUT) => Self::Lost,
            Some(2026 | 3159) => Self::Tls,
            Some(1040 | 1203 | 1226 | 2001..=2005 | 2009) => Self::Unreachable,
            Some(1153 | 2020) => Self::TooLarge,
            Some(1053 | 1077..=1080 | 1152..=1161 | 1927 | 2006 | 2012 | 2013 | 2055 | 4031) => {
                Self::Lost
            }
            Some(1146 | 1205 | 1213 | 1305 | 1317 | 1412 | 1969 | 3024) => Self::Conflict,
            Some(1356 | 1449) => Self::Broken,
            _ if said.has_any(&["insufficent privileges", "insufficient privileges"]) => {
                Self::Permission
            }
            _ => Self::Other,
        };
        make(said)
    }

    /// Whether it may go better by itself.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Lost(_) | Self::Conflict(_) => true,
            Self::NoTool { .. }
            | Self::Password(_)
            | Self::NotAdmitted(_)
            | Self::Plugin(_)
            | Self::NoDatabase(_)
            | Self::Permission(_)
            | Self::Tls(_)
            | Self::NoTls
            | Self::Broken(_)
            | Self::TooLarge(_)
            | Self::Other(_) => false,
        }
    }
}

/// The error's number: `Got error: 1045: …`, `ERROR 1045 (28000)`, `Error 2013: …`, or `(1044)` at a line's end.
fn number(text: &str) -> Option<u16> {
    text.lines().filter(|line| !is_chatter(line)).find_map(|line| {
        let after = |word: &str| digits(line.split_once(word)?.1);
        let last = || digits(line.trim_end().strip_suffix(')')?.rsplit_once('(')?.1);
        after("rror: ").or_else(|| after("rror ")).or_else(|| after("ERROR ")).or_else(last)
    })
}

fn digits(text: &str) -> Option<u16> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok().filter(|number| *number >= 1000)
}

/// Whether a line says nothing about this dump.
pub(super) fn is_chatter(line: &str) -> bool {
    line.contains("Deprecated program name")
}

/// An exit code is explained by the words; every other end keeps its own meaning.
pub(super) fn explain(error: ExecError) -> DriverError {
    match error {
        ExecError::Exit { said, code, tool } if said.lines().next().is_none() => {
            ExecError::Exit { tool, code, said }.into()
        }
        ExecError::Exit { said, .. } => DriverError::MySql(MySqlFault::read(said)),
        other => other.into(),
    }
}

impl fmt::Display for MySqlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, said) = match self {
            Self::NoTool { places } => {
                return write!(
                    f,
                    "found no mariadb-dump and no mysqldump in {places}; install MariaDB's or MySQL's client tools"
                );
            }
            Self::NoTls => {
                return f.write_str(
                    "the target asks for TLS, but the database server has none; enable it there, or choose another TLS mode",
                );
            }
            Self::Password(said) => {
                ("the database server refused user or password; correct them in the target", said)
            }
            Self::NotAdmitted(said) => {
                ("the database server does not admit this host; create the account for it", said)
            }
            Self::Plugin(said) => (
                "the account's way of logging in cannot be used from here; give it mysql_native_password, or TLS with verify-full, or use the server's own client tools",
                said,
            ),
            Self::NoDatabase(said) => ("the database cannot be opened; correct its name", said),
            Self::Permission(said) => (
                "the user may not read everything that is to be dumped; GRANT it SELECT, SHOW VIEW, TRIGGER and EVENT on \
                 the database (for all databases: ON *.*), and for stored routines SELECT on mysql.proc (MariaDB) or \
                 SHOW_ROUTINE (MySQL 8)",
                said,
            ),
            Self::Tls(said) => {
                ("TLS to the database server failed; check the TLS mode and the CA file", said)
            }
            Self::Unreachable(said) => ("the database server cannot be reached", said),
            Self::Lost(said) => ("the database server ended the connection during the dump", said),
            Self::Conflict(said) => ("the dump gave way to another session", said),
            Self::Broken(said) => (
                "the database has a view or routine that its server cannot use any more; repair or drop it",
                said,
            ),
            Self::TooLarge(said) => {
                ("a row is larger than the server takes; raise its max_allowed_packet", said)
            }
            Self::Other(said) => ("failed to dump the database", said),
        };
        write!(f, "{what}: {}", said.brief())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Make = fn(Said) -> MySqlFault;

    #[test]
    fn permanent() {
        for (text, make) in [
            (
                "mariadb-dump: Got error: 1045: \"Access denied for user 'u'@'h' (using password: YES)\" when trying to connect",
                MySqlFault::Password as Make,
            ),
            ("ERROR 1698 (28000): Access denied for user 'root'@'localhost'", MySqlFault::Password),
            ("ERROR 1049 (42000): Unknown database 'x'", MySqlFault::NoDatabase),
            ("ERROR 1049 (42000): Unbekannte Datenbank 'x'", MySqlFault::NoDatabase),
            (
                "mysqldump: Couldn't execute 'show events': Access denied for user 'u'@'%' to database 'shop' (1044)",
                MySqlFault::Permission,
            ),
            (
                "mysqldump: u@% has insufficent privileges to SHOW CREATE PROCEDURE `p`!",
                MySqlFault::Permission,
            ),
            ("ERROR 2026 (HY000): TLS/SSL error: self-signed certificate", MySqlFault::Tls),
            (
                "ERROR 1130 (HY000): Host '10.0.0.1' is not allowed to connect",
                MySqlFault::NotAdmitted,
            ),
            (
                "ERROR 2059 (HY000): Authentication plugin 'dialog' cannot be loaded",
                MySqlFault::Plugin,
            ),
            (
                "mysqldump: Error 2020: Got packet bigger than 'max_allowed_packet' bytes when dumping table `t` at row: 1",
                MySqlFault::TooLarge,
            ),
            ("ERROR 1153 (08S01) at line 40: Got a packet bigger than", MySqlFault::TooLarge),
            ("mysqldump: unknown variable 'x=1'", MySqlFault::Other),
        ] {
            let fault = MySqlFault::read(Said::from(text));
            assert_eq!(fault, make(Said::from(text)));
            assert!(!fault.retry(), "{fault}");
        }
    }

    #[test]
    fn passing() {
        for text in [
            "mysqldump: Got error: 2002: \"Can't connect to server on '127.0.0.1' (115)\" when trying to connect",
            "ERROR 2003 (HY000): Can't connect to MySQL server on '127.0.0.1:1' (111)",
            "ERROR 2005 (HY000): Unknown server host 'db' (-2)",
            "mysqldump: Error 2013: Lost connection to server during query when dumping table `t` at row: 7",
            "ERROR 1040 (08004): Too many connections",
            "mysqldump: Couldn't execute 'SELECT 1': Lost connection to MySQL server during query (2013)",
            "mysqldump: Error 1412: Table definition has changed, please retry transaction when dumping table `t`",
            "mysqldump: Deprecated program name 1045. Use '/usr/bin/mariadb-dump' instead\nERROR 1205 (HY000): Lock wait timeout",
        ] {
            let fault = MySqlFault::read(Said::from(text));
            assert!(fault.retry(), "{text}: {fault:?}");
        }
    }
}
