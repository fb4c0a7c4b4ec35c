//! What Redis and Valkey mean by what they say.
//!
//! An error begins with a code in capitals; where that is only `ERR`, the words have to be read.

use std::fmt;
use std::io;
use std::time::Duration;

use super::rdb::RdbFault;
use crate::drivers::tail::{Said, Tail};
use crate::secret::Secret;

/// What a server would not do, or did wrong.
#[derive(Debug)]
pub enum RedisFault {
    /// Nobody answers there.
    Unreachable {
        /// Where.
        place: String,
        /// The reason.
        reason: String,
    },
    /// TLS could not be agreed on, or the certificate is not trusted.
    Tls(String),
    /// Wrong password, or none where one is needed.
    Password(Said),
    /// A user was named, but the server is older than users.
    NoUsers,
    /// The user may not run a command.
    Permission(Said),
    /// The server admits nobody from another host.
    Protected(Said),
    /// The server is reading its data in.
    Loading(Said),
    /// A replica that has no link to its master.
    NoMaster(Said),
    /// The server cannot do it now: full, busy, no fork.
    Busy(Said),
    /// `PSYNC` and `SYNC` are switched off, renamed or were never there.
    NoSync(Said),
    /// Whatever answers there is not Redis.
    NotRedis {
        /// What was odd.
        what: &'static str,
    },
    /// The connection ended before the RDB did.
    Lost {
        /// Bytes of the RDB that had come.
        received: u64,
        /// The system's reason; `None` if the server closed it.
        source: Option<io::Error>,
    },
    /// Nothing came for so long.
    Silent(Duration),
    /// What came is no whole RDB.
    Rdb(RdbFault),
    /// A dump cannot be loaded into a running server.
    NoLoader,
    /// Something else.
    Refused(Said),
}

/// What an error's first word means.
const CODES: [(&str, Make); 11] = [
    ("NOAUTH", RedisFault::Password),
    ("WRONGPASS", RedisFault::Password),
    ("NOPERM", RedisFault::Permission),
    ("DENIED", RedisFault::Protected),
    ("LOADING", RedisFault::Loading),
    ("NOMASTERLINK", RedisFault::NoMaster),
    ("MASTERDOWN", RedisFault::NoMaster),
    ("BUSY", RedisFault::Busy),
    ("MISCONF", RedisFault::Busy),
    ("TRYAGAIN", RedisFault::Busy),
    ("OOM", RedisFault::Busy),
];

/// What the words after `ERR` mean.
const WORDS: [(&str, Make); 8] = [
    ("invalid password", RedisFault::Password),
    ("operation not permitted", RedisFault::Password),
    ("max number of clients", RedisFault::Busy),
    ("BGSAVE failed", RedisFault::Busy),
    ("to perform background save", RedisFault::Busy),
    ("perform BGSAVE", RedisFault::Busy),
    ("not connected with my master", RedisFault::NoMaster),
    ("unknown command", RedisFault::NoSync),
];

type Make = fn(Said) -> RedisFault;

impl RedisFault {
    /// What an error line (without its `-`) means.
    pub(super) fn read(line: &str, secrets: &[Secret]) -> Self {
        // A server that does not know a command repeats what came with it, cut, so that no search would find a secret.
        let line = line.split(", with args beginning with").next().unwrap_or(line);
        let mut tail = Tail::default();
        tail.push(line.as_bytes());
        let said = tail.text(secrets);
        let code = line.split(' ').next().unwrap_or_default();
        let by_code = CODES.iter().find(|(known, _)| *known == code).map(|(_, make)| *make);
        let by_words =
            || WORDS.iter().find(|(words, _)| line.contains(words)).map(|(_, make)| *make);
        by_code.or_else(by_words).unwrap_or(Self::Refused)(said)
    }

    /// Whether it may go better by itself.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Loading(_)
            | Self::NoMaster(_)
            | Self::Busy(_)
            | Self::Lost { .. }
            | Self::Silent(_) => true,
            Self::Rdb(fault) => fault.retry(),
            Self::Tls(_)
            | Self::Password(_)
            | Self::NoUsers
            | Self::Permission(_)
            | Self::Protected(_)
            | Self::NoSync(_)
            | Self::NotRedis { .. }
            | Self::NoLoader
            | Self::Refused(_) => false,
        }
    }
}

impl fmt::Display for RedisFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { place, reason } => {
                write!(f, "failed to connect to Redis at {place}: {reason}; check that it runs and listens there")
            }
            Self::Tls(reason) => write!(
                f,
                "failed to agree on TLS with Redis: {reason}; check the port, the TLS mode and the CA file"
            ),
            Self::Password(said) => {
                write!(f, "Redis did not accept the password: {}; check user and password", said.brief())
            }
            Self::NoUsers => f.write_str(
                "this Redis is older than version 6 and knows no users; leave the target's username empty",
            ),
            Self::Permission(said) => write!(
                f,
                "the Redis user may not make a dump: {}; give it the ACL rules +psync +replconf +sync +ping \
                 (and +info for the version)",
                said.brief()
            ),
            Self::Protected(said) => write!(
                f,
                "Redis admits nobody from this host: {}; give it a password or let it bind an address",
                said.brief()
            ),
            Self::Loading(said) => write!(f, "Redis is still loading its data: {}", said.brief()),
            Self::NoMaster(said) => {
                write!(f, "this Redis is a replica that has no link to its master: {}", said.brief())
            }
            Self::Busy(said) => write!(f, "Redis cannot make a dump now: {}", said.brief()),
            Self::NoSync(said) => write!(
                f,
                "this Redis does not let anybody replicate: {}; PSYNC is switched off or renamed there, as at \
                 some hosted services, which have backups of their own",
                said.brief()
            ),
            Self::NotRedis { what } => {
                write!(f, "what answers there is not Redis: {what}; check host and port")
            }
            Self::Lost { received, source } => {
                match source {
                    Some(source) => write!(f, "the connection to Redis broke: {source}")?,
                    None => f.write_str("Redis closed the connection")?,
                }
                match received {
                    0 => f.write_str(" before the dump began"),
                    received => write!(f, " after {received} bytes of the dump"),
                }
            }
            Self::Silent(after) => write!(f, "Redis sent nothing for {} s", after.as_secs()),
            Self::Rdb(fault) => write!(f, "what Redis sent is not a whole RDB: {fault}"),
            Self::NoLoader => f.write_str(
                "a running Redis does not load a dump: restore it with --to FILE, stop the server, put the file \
                 where its settings dir and dbfilename point (with appendonly no), and start it",
            ),
            Self::Refused(said) => write!(f, "Redis refused: {}", said.brief()),
        }
    }
}

impl std::error::Error for RedisFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lost { source: Some(source), .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> RedisFault {
        RedisFault::read(line, &[])
    }

    #[test]
    fn errors_by_their_code_and_words() {
        type Is = fn(&RedisFault) -> bool;
        let cases: [(&str, Is, bool); 14] = [
            ("NOAUTH Authentication required.", |f| matches!(f, RedisFault::Password(_)), false),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                |f| matches!(f, RedisFault::Password(_)),
                false,
            ),
            ("ERR invalid password", |f| matches!(f, RedisFault::Password(_)), false),
            (
                "NOPERM this user has no permissions to run the 'psync' command",
                |f| matches!(f, RedisFault::Permission(_)),
                false,
            ),
            (
                "DENIED Redis is running in protected mode because",
                |f| matches!(f, RedisFault::Protected(_)),
                false,
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                |f| matches!(f, RedisFault::Loading(_)),
                true,
            ),
            (
                "NOMASTERLINK Can't SYNC while not connected with my master",
                |f| matches!(f, RedisFault::NoMaster(_)),
                true,
            ),
            (
                "ERR Can't SYNC while not connected with my master",
                |f| matches!(f, RedisFault::NoMaster(_)),
                true,
            ),
            ("MASTERDOWN Link with MASTER is down", |f| matches!(f, RedisFault::NoMaster(_)), true),
            ("ERR max number of clients reached", |f| matches!(f, RedisFault::Busy(_)), true),
            (
                "ERR BGSAVE failed, replication can't continue",
                |f| matches!(f, RedisFault::Busy(_)),
                true,
            ),
            ("BUSY Redis is busy running a script.", |f| matches!(f, RedisFault::Busy(_)), true),
            (
                "ERR unknown command 'PSYNC', with args beginning with: '?' '-1' ",
                |f| matches!(f, RedisFault::NoSync(_)),
                false,
            ),
            ("ERR something new", |f| matches!(f, RedisFault::Refused(_)), false),
        ];
        for (line, is, retry) in cases {
            let fault = read(line);
            assert!(is(&fault), "{line}: {fault:?}");
            assert_eq!(fault.retry(), retry, "{line}");
            assert!(!fault.to_string().contains('\n'), "{fault}");
        }
    }

    #[test]
    fn a_server_that_repeats_the_password() {
        let fault =
            RedisFault::read("ERR no hunter2hunter2 here", &[Secret::new("hunter2hunter2")]);
        assert!(!format!("{fault} {fault:?}").contains("hunter2"), "{fault}");
    }

    #[test]
    fn how_far_it_came() {
        let lost = |received| RedisFault::Lost { received, source: None }.to_string();
        assert_eq!(lost(0), "Redis closed the connection before the dump began");
        assert_eq!(lost(7), "Redis closed the connection after 7 bytes of the dump");
    }
}
