//! What goes wrong with a mail server.

use std::fmt;
use std::io;

use crate::net::NetError;

/// A mail that the server did not take.
#[derive(Debug)]
pub enum SmtpError {
    /// No connection.
    Net(NetError),
    /// TLS failed.
    Tls(String),
    /// The connection broke.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The deadline passed.
    Timeout {
        /// What was being done.
        doing: &'static str,
    },
    /// The process is stopping.
    Stopped,
    /// The answer is none of SMTP's, or longer than any.
    Nonsense {
        /// What was being done.
        doing: &'static str,
    },
    /// The server says no.
    Refused {
        /// What was being done.
        doing: &'static str,
        /// Its code.
        code: u16,
        /// Its words, without ours; empty of a login.
        said: String,
    },
    /// Some recipients were refused; the others got the mail.
    Recipients {
        /// Who, with the server's words.
        refused: String,
        /// Those of them who were only put off.
        later: Vec<String>,
    },
    /// The server offers no STARTTLS.
    NoTls,
    /// It sent more than the answer to STARTTLS in the clear, as somebody in the middle would.
    Injected,
    /// It offers neither PLAIN nor LOGIN.
    NoAuth,
}

impl SmtpError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Net(error) => error.retry(),
            Self::Io { .. } | Self::Timeout { .. } | Self::Stopped | Self::Nonsense { .. } => true,
            // A machine without a clock of its own trusts no certificate before it knows the time.
            Self::Tls(_) => true,
            Self::Refused { code, .. } => (400..500).contains(code),
            Self::Recipients { later, .. } => !later.is_empty(),
            Self::NoTls | Self::Injected | Self::NoAuth => false,
        }
    }
}

impl fmt::Display for SmtpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "TLS failed: {error}"),
            Self::Io { doing, source } => write!(f, "the connection broke while {doing}: {source}"),
            Self::Timeout { doing } => write!(f, "it took too long while {doing}"),
            Self::Stopped => f.write_str("it was stopped before the mail was taken"),
            Self::Nonsense { doing } => write!(f, "its answer is not understood while {doing}"),
            Self::Refused { doing, code, said } => {
                write!(f, "refused while {doing}: {code}")?;
                if !said.is_empty() {
                    write!(f, " {said}")?;
                }
                match code {
                    530 | 534 | 535 | 538 => f.write_str("; check user and password"),
                    _ => Ok(()),
                }
            }
            Self::Recipients { refused, .. } => {
                write!(f, "it takes no mail for {refused}; the others got it")
            }
            Self::NoTls => f.write_str(
                "it offers no STARTTLS, and nothing is sent in the clear; use smtps:// if it listens there",
            ),
            Self::Injected => f.write_str(
                "it sent more in the clear than it should before TLS; somebody may be in the middle",
            ),
            Self::NoAuth => f.write_str("it offers neither AUTH PLAIN nor AUTH LOGIN"),
        }
    }
}

impl std::error::Error for SmtpError {}
