//! Why a message did not arrive. What is shown names the other side's host, never its URL or a token: in a webhook the
//! path is the password.

use std::fmt;

use super::email::SmtpError;
use crate::drivers::secrets::SecretError;
use crate::pipeline::upload::Fault;
use crate::redact::clean;

/// Most that is repeated of an answer, in characters.
const SAID_MAX: usize = 200;
/// Shorter parts of a URL are no secrets.
const PART_MIN: usize = 6;

/// A try that failed.
#[derive(Debug)]
pub enum DeliverError {
    /// The reference to a secret leads nowhere.
    Secret(SecretError),
    /// What a reference led to, or the trust root, cannot be used.
    Setting(String),
    /// No connection, or one that broke.
    Http {
        /// The other side.
        host: String,
        /// What happened.
        fault: Fault,
    },
    /// The answer says no.
    Refused {
        /// The other side.
        host: String,
        /// HTTP status.
        status: u16,
        /// The beginning of what it said, without what we sent.
        said: String,
    },
    /// The mail server.
    Smtp {
        /// It.
        host: String,
        /// What happened.
        error: SmtpError,
    },
    /// The command of `on_failure`; what happened.
    Command(String),
    /// The process is stopping, or the channel has gone.
    Stopped,
}

impl DeliverError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            // A file of secrets may be written at any moment, and the message matters.
            Self::Secret(error) => matches!(error, SecretError::Read { .. }),
            Self::Setting(_) | Self::Command(_) => false,
            Self::Http { fault, .. } => match fault {
                Fault::Net(error) => error.retry(),
                // A machine without a clock of its own trusts no certificate before it knows the time.
                Fault::Tls { .. } => true,
                Fault::Url { .. } => false,
                _ => true,
            },
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Smtp { error, .. } => error.retry(),
            Self::Stopped => true,
        }
    }

    /// The recipients that a mail server put off while it took the mail for the others.
    pub(super) fn later(&self) -> Option<&[String]> {
        match self {
            Self::Smtp { error: SmtpError::Recipients { later, .. }, .. } if !later.is_empty() => {
                Some(later)
            }
            _ => None,
        }
    }

    pub(super) fn http(host: &str, fault: Fault) -> Self {
        match fault {
            Fault::Cancelled(_) => Self::Stopped,
            fault => Self::Http { host: host.to_owned(), fault },
        }
    }

    pub(super) fn refused(host: &str, status: u16, said: &str, secrets: &[&str]) -> Self {
        Self::Refused { host: host.to_owned(), status, said: hide(said, secrets) }
    }
}

impl fmt::Display for DeliverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(error) => error.fmt(f),
            Self::Setting(why) | Self::Command(why) => f.write_str(why),
            Self::Http { host, fault } => http(f, host, fault),
            Self::Refused { host, status, said } => {
                write!(f, "{host} answered {status}")?;
                match status {
                    300..=399 => f.write_str(" and points elsewhere; name the final URL")?,
                    401 | 403 => f.write_str("; check the token and its rights")?,
                    404 | 410 => f.write_str("; check the URL")?,
                    _ => {}
                }
                if said.is_empty() { Ok(()) } else { write!(f, ": {said}") }
            }
            Self::Smtp { host, error } => write!(f, "mail server {host}: {error}"),
            Self::Stopped => f.write_str("it was stopped before it got an answer"),
        }
    }
}

/// The transport's faults speak of a store.
fn http(f: &mut fmt::Formatter<'_>, host: &str, fault: &Fault) -> fmt::Result {
    match fault {
        Fault::Url { problem } => write!(f, "the URL {problem}"),
        Fault::Net(error) => write!(f, "{error}"),
        Fault::Tls { error, .. } => write!(f, "TLS with {host} failed: {error}"),
        Fault::Io { doing, source } => {
            write!(f, "the connection to {host} broke while {doing}: {source}")
        }
        Fault::Stalled { timeout } | Fault::NoAnswer { timeout } => {
            write!(f, "{host} gave no answer within {} s", timeout.as_secs())
        }
        _ => write!(f, "the answer of {host} is not understood"),
    }
}

impl std::error::Error for DeliverError {}

/// The beginning of somebody's words, without the secrets that they may repeat, and without their parts: a 404 likes to
/// quote the path, and JSON escapes its slashes.
pub(super) fn hide(text: &str, secrets: &[&str]) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for secret in secrets {
        let words = secret.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c));
        parts.extend(words.filter(|word| word.len() >= PART_MIN));
        parts.push(secret);
    }
    parts.retain(|part| !part.is_empty());
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    let mut text = text.to_owned();
    for part in parts {
        text = text.replace(part, crate::redact::HIDDEN);
    }
    clean(&text).chars().take(SAID_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_quotes_the_url_gives_nothing_away() {
        let url = "https://hooks.example/services/T0AAAA1/B0BBBB2/sEcReTsEcReT?key=qwertz12";
        for said in [
            "Cannot POST /services/T0AAAA1/B0BBBB2/sEcReTsEcReT?key=qwertz12",
            r#"{"path":"\/services\/T0AAAA1\/B0BBBB2\/sEcReTsEcReT","q":"qwertz12"}"#,
            url,
        ] {
            let shown = DeliverError::refused("hooks.example", 404, said, &[url]).to_string();
            for secret in ["T0AAAA1", "B0BBBB2", "sEcReTsEcReT", "qwertz12"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
        let shown = hide("chat not found", &["123456:ABC-DEF_ghi"]);
        assert_eq!(shown, "chat not found");
        assert!(hide(&"x".repeat(9999), &[]).len() <= SAID_MAX);
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let refused = |status| DeliverError::refused("h", status, "", &[]).retry();
        assert!([408, 429, 500, 502, 503].into_iter().all(refused));
        assert!(![301, 400, 401, 403, 404, 410].into_iter().any(refused));
        assert!(!DeliverError::Command(String::new()).retry());
    }
}
