//! What MongoDB's tools mean by what they say.
//!
//! They end with 1 for everything, so the words have to be read; those of the server come in English, too. What is
//! not recognised is permanent, because whatever can pass by itself also brings words of the driver's own.

use std::fmt;

use super::super::DriverError;
use super::super::exec::ExecError;
use super::super::tail::Said;
use super::archive::Damage;

/// What MongoDB or its tools would not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MongoFault {
    /// The tool is not on this host.
    NoTool {
        /// Which.
        tool: &'static str,
        /// Where it was looked for.
        places: String,
    },
    /// The tool is too old for `--config`.
    ToolTooOld(Said),
    /// Wrong user or password.
    Password(Said),
    /// The user may not read everything that has to be dumped.
    Permission(Said),
    /// TLS could not be agreed on, or the certificate is not trusted.
    Tls(Said),
    /// The server cannot be reached.
    Unreachable(Said),
    /// The connection ended before the dump did.
    Lost(Said),
    /// The tool ended without an error, but the archive is not whole.
    Archive(Damage),
    /// Some documents could not be loaded.
    NotLoaded(Said),
    /// Something else.
    Other(Said),
}

type Make = fn(Said) -> MongoFault;

/// What is looked for, the permanent first: whoever cannot log in cannot select a server either, and says both.
const WORDS: [(Make, &[&str]); 6] = [
    (MongoFault::ToolTooOld, &["unknown option \"config\"", "unknown flag `config'"]),
    (
        MongoFault::Password,
        &["auth error", "AuthenticationFailed", "Authentication failed", "unable to authenticate"],
    ),
    (
        MongoFault::Permission,
        &[
            "not authorized on",
            "(Unauthorized)",
            "requires authentication",
            "not allowed to do action",
        ],
    ),
    (
        MongoFault::Tls,
        &["x509:", "tls: ", "certificate", "server gave HTTP response", "SSL routines"],
    ),
    (
        MongoFault::Lost,
        &[
            "socket was unexpectedly closed",
            "incomplete read of message header",
            "connection closed",
            "broken pipe",
            "InterruptedAtShutdown",
            "NotPrimaryOrSecondary",
            "NotWritablePrimary",
            "PrimarySteppedDown",
            "ShutdownInProgress",
            "CursorNotFound",
        ],
    ),
    (
        MongoFault::Unreachable,
        &[
            "connection refused",
            "connection reset",
            "no such host",
            "i/o timeout",
            "no route to host",
            "network is unreachable",
            "no reachable servers",
            "server selection error",
            "server selection timeout",
            "context deadline exceeded",
            "error parsing uri: lookup",
        ],
    ),
];

impl MongoFault {
    /// What a tool's words mean.
    pub(super) fn read(said: Said) -> Self {
        let make = said.read(|text| {
            // Before it stand the names of collections, which may be any of the words.
            let failure = text.rsplit_once("Failed: ").map_or(text, |(_, failure)| failure);
            let occurs = |words: &&[&str]| words.iter().any(|word| failure.contains(word));
            WORDS.iter().find(|(_, words)| occurs(words)).map(|(make, _)| *make)
        });
        make.unwrap_or(Self::Other)(said)
    }

    /// Whether it may go better by itself.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Lost(_) => true,
            // A tool that says it is done has been seen to stop early only when something else went wrong.
            Self::Archive(_)
            | Self::NoTool { .. }
            | Self::ToolTooOld(_)
            | Self::Password(_)
            | Self::Permission(_)
            | Self::Tls(_)
            | Self::NotLoaded(_)
            | Self::Other(_) => false,
        }
    }
}

/// An exit code is explained by the words; every other end keeps its own meaning.
pub(super) fn explain(error: ExecError) -> DriverError {
    match error {
        ExecError::Exit { said, code, tool } if said.lines().next().is_none() => {
            ExecError::Exit { tool, code, said }.into()
        }
        ExecError::Exit { said, .. } => DriverError::Mongo(MongoFault::read(said)),
        other => other.into(),
    }
}

impl fmt::Display for MongoFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, said) = match self {
            Self::NoTool { tool, places } => {
                return write!(
                    f,
                    "found no {tool} in {places}; install the MongoDB Database Tools, version 100.3 or later"
                );
            }
            Self::Archive(damage) => {
                return write!(f, "the MongoDB archive is not whole: {damage}");
            }
            Self::ToolTooOld(said) => (
                "MongoDB's tools on this host are too old to be given a password safely; install version 100.3 or later",
                said,
            ),
            Self::Password(said) => (
                "MongoDB refused the login; correct user, password or authSource in the target",
                said,
            ),
            Self::Permission(said) => {
                ("the user may not dump this database; give it the role backup or read", said)
            }
            Self::Tls(said) => ("failed to agree on TLS with MongoDB", said),
            Self::Unreachable(said) => ("failed to reach MongoDB", said),
            Self::Lost(said) => ("the connection to MongoDB was lost", said),
            Self::NotLoaded(said) => ("MongoDB did not take all of the documents", said),
            Self::Other(said) => ("MongoDB's tool failed", said),
        };
        write!(f, "{what}: {}", said.brief())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> MongoFault {
        MongoFault::read(Said::from(text))
    }

    #[test]
    fn words_of_the_tools() {
        let auth = "Failed: can't create session: failed to connect to mongodb://h:27017/: server selection error: \
                    server selection timeout, current topology: { Last error: connection() error occurred during \
                    connection handshake: auth error: sasl conversation error: unable to authenticate using \
                    mechanism \"SCRAM-SHA-256\": (AuthenticationFailed) Authentication failed. }";
        assert!(matches!(read(auth), MongoFault::Password(_)));
        let refused = "Failed: can't create session: could not connect to server: server selection error: server \
                       selection timeout, current topology: { dial tcp 127.0.0.1:1: connect: connection refused }";
        assert!(matches!(read(refused), MongoFault::Unreachable(_)) && read(refused).retry());
        let denied = "Failed: error getting collections for database `app`: (Unauthorized) not authorized on app to \
                      execute command";
        assert!(matches!(read(denied), MongoFault::Permission(_)) && !read(denied).retry());
        let tls = "server selection error: x509: certificate signed by unknown authority";
        assert!(matches!(read(tls), MongoFault::Tls(_)));
        let lost = "Failed: error reading collection: connection(h:27017[-4]) incomplete read of message header: EOF";
        assert!(matches!(read(lost), MongoFault::Lost(_)) && read(lost).retry());
        let old = "error parsing command line options: unknown option \"config\"";
        assert!(matches!(read(old), MongoFault::ToolTooOld(_)));
        assert!(matches!(read("Failed: the moon is full"), MongoFault::Other(_)));
    }
}
