//! What PostgreSQL's tools mean by what they say.
//!
//! They end with 1 for everything, so the words have to be read. Those of libpq and of the tools are English
//! (the child runs under `LC_ALL=C`); those of the server may be in any language. Hence the rule for what is not
//! recognised: it is permanent, because whatever can pass by itself also brings words of libpq's own.

use std::fmt;

use super::super::exec::ExecError;
use super::super::tail::Said;
use super::super::tools::Version;

/// What PostgreSQL or its tools would not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostgresFault {
    /// No dump tool on this host.
    NoTool {
        /// Where it was looked for.
        places: String,
    },
    /// The server is newer than every tool on this host.
    ServerNewer {
        /// The server's version.
        server: String,
        /// The newest tool's version.
        tool: String,
    },
    /// Wrong password, or none where one is needed.
    Password(Said),
    /// The server's rules do not let this user in from here.
    NotAdmitted(Said),
    /// No such database.
    NoDatabase(Said),
    /// No such user.
    NoUser(Said),
    /// The user may not read everything that has to be dumped.
    Permission(Said),
    /// The user may not read the roles with their passwords.
    Roles(Said),
    /// TLS could not be agreed on, or the certificate is not trusted.
    Tls(Said),
    /// The server cannot be reached, is starting or is full.
    Unreachable(Said),
    /// The connection ended before the dump did.
    Lost(Said),
    /// Somebody else held a lock, or got in the way.
    Conflict(Said),
    /// Something else.
    Other(Said),
}

type Make = fn(Said) -> PostgresFault;

/// What is looked for, the permanent first: one failed try to connect may be followed by another's words.
const WORDS: [(Make, &[&str]); 9] = [
    (
        PostgresFault::Password,
        &["password authentication failed", "no password supplied", "requirement failed"],
    ),
    (PostgresFault::NotAdmitted, &["no pg_hba.conf entry", "authentication failed for user"]),
    (PostgresFault::NoDatabase, &["FATAL:  database \""]),
    (PostgresFault::NoUser, &["FATAL:  role \""]),
    (
        PostgresFault::Tls,
        &[
            "certificate verify failed",
            "server does not support SSL",
            "server certificate for",
            "SSL error",
            "root certificate file",
            "could not read root certificate",
        ],
    ),
    (PostgresFault::Permission, &["permission denied", "row-level security"]),
    (
        PostgresFault::Conflict,
        &[
            "due to lock timeout",
            "due to statement timeout",
            "deadlock detected",
            "conflict with recovery",
            "cache lookup failed",
        ],
    ),
    (
        PostgresFault::Lost,
        &[
            "server closed the connection unexpectedly",
            "terminating connection",
            "SSL connection has been closed unexpectedly",
            "SSL SYSCALL error",
            "could not receive data from server",
            "could not send data to server",
            "no connection to the server",
            "connection not open",
            "lost synchronization with server",
        ],
    ),
    (
        PostgresFault::Unreachable,
        &[
            "Connection refused",
            "Connection reset",
            "Connection timed out",
            "timeout expired",
            "No route to host",
            "is unreachable",
            "could not translate host name",
            "Is the server running",
            "the database system is",
            "too many clients",
            "remaining connection slots",
        ],
    ),
];

impl PostgresFault {
    /// What a tool's words mean.
    pub(in crate::drivers) fn read(said: Said) -> Self {
        if said.has_any(&["server version mismatch"])
            && let Some(server) = said.after("server version: ", &[';', ' ', '\n'])
            && let Some(tool) = said.after("pg_dump version: ", &[';', ' ', '\n'])
        {
            return Self::ServerNewer { server: server.to_owned(), tool: tool.to_owned() };
        }
        let make = WORDS.iter().find(|(_, words)| said.has_any(words)).map(|(make, _)| *make);
        make.unwrap_or(Self::Other)(said)
    }

    /// A server newer than the newest tool.
    pub(in crate::drivers) fn newer(server: Version, tool: Version) -> Self {
        Self::ServerNewer { server: server.to_string(), tool: tool.to_string() }
    }

    /// Whether it may go better by itself.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Lost(_) | Self::Conflict(_) => true,
            Self::NoTool { .. }
            | Self::ServerNewer { .. }
            | Self::Password(_)
            | Self::NotAdmitted(_)
            | Self::NoDatabase(_)
            | Self::NoUser(_)
            | Self::Permission(_)
            | Self::Roles(_)
            | Self::Tls(_)
            | Self::Other(_) => false,
        }
    }
}

/// An exit code is explained by the words; every other end keeps its own meaning.
pub(super) fn explain(error: ExecError) -> super::super::DriverError {
    match error {
        ExecError::Exit { said, code, tool } if said.lines().next().is_none() => {
            ExecError::Exit { tool, code, said }.into()
        }
        ExecError::Exit { said, .. } => {
            super::super::DriverError::Postgres(PostgresFault::read(said))
        }
        other => other.into(),
    }
}

impl fmt::Display for PostgresFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, said) = match self {
            Self::NoTool { places } => {
                return write!(
                    f,
                    "found no pg_dump in {places}; install PostgreSQL's client tools, at least of the server's version"
                );
            }
            Self::ServerNewer { server, tool } => {
                return write!(
                    f,
                    "the server is PostgreSQL {server}, newer than the newest pg_dump on this host ({tool}); \
                     install the client tools of the server's version"
                );
            }
            Self::Password(said) => {
                ("PostgreSQL refused the password; correct it in the target", said)
            }
            Self::NotAdmitted(said) => {
                ("PostgreSQL does not admit this user from this host (pg_hba.conf)", said)
            }
            Self::NoDatabase(said) => ("the database cannot be opened; correct its name", said),
            Self::NoUser(said) => ("the user cannot log in; correct the name", said),
            Self::Roles(said) => (
                "the user may not read the server's roles with their passwords; that needs a superuser",
                said,
            ),
            Self::Permission(said) => (
                "the user may not read everything in the database; grant it pg_read_all_data",
                said,
            ),
            Self::Tls(said) => {
                ("TLS to PostgreSQL failed; check the TLS mode and the CA file", said)
            }
            Self::Unreachable(said) => ("PostgreSQL cannot be reached", said),
            Self::Lost(said) => ("PostgreSQL ended the connection during the dump", said),
            Self::Conflict(said) => ("PostgreSQL gave the dump up for another session", said),
            Self::Other(said) => ("failed to dump the PostgreSQL database", said),
        };
        write!(f, "{what}: {}", said.brief())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> PostgresFault {
        PostgresFault::read(Said::from(text))
    }

    #[test]
    fn permanent() {
        for (text, make) in [
            (
                "FATAL:  password authentication failed for user \"u\"",
                PostgresFault::Password as Make,
            ),
            ("fe_sendauth: no password supplied", PostgresFault::Password),
            ("FATAL:  database \"x\" does not exist", PostgresFault::NoDatabase),
            ("FATAL:  role \"x\" does not exist", PostgresFault::NoUser),
            ("FATAL:  no pg_hba.conf entry for host \"::1\"", PostgresFault::NotAdmitted),
            (
                "pg_dump: error: query failed: ERROR:  permission denied for table t",
                PostgresFault::Permission,
            ),
            ("SSL error: certificate verify failed", PostgresFault::Tls),
            (
                "FATAL:  Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen",
                PostgresFault::Other,
            ),
        ] {
            let fault = read(text);
            assert_eq!(fault, make(Said::from(text)));
            assert!(!fault.retry(), "{fault}");
        }
    }

    #[test]
    fn passing() {
        for text in [
            "connection to server at \"127.0.0.1\", port 1 failed: Connection refused",
            "server closed the connection unexpectedly",
            "FATAL:  the database system is starting up",
            "FATAL:  sorry, too many clients already",
            "ERROR:  canceling statement due to statement timeout",
            "could not translate host name \"db\" to address: Temporary failure in name resolution",
        ] {
            assert!(read(text).retry(), "{text}");
        }
    }

    #[test]
    fn the_permanent_reason_counts_where_several_addresses_were_tried() {
        let both = "connection to \"::1\" failed: Connection refused\nconnection to \"127.0.0.1\" failed: FATAL:  password authentication failed for user \"u\"";
        assert!(!read(both).retry());
    }

    #[test]
    fn a_newer_server_in_the_tools_words() {
        let fault = read(
            "pg_dump: error: aborting because of server version mismatch\npg_dump: detail: server version: 17.2; pg_dump version: 15.18 (Debian)\n",
        );
        let expected = PostgresFault::ServerNewer { server: "17.2".into(), tool: "15.18".into() };
        assert_eq!(fault, expected);
        assert!(!fault.retry());
    }
}
