//! Why a probe failed, in words that hold no secret: a host and a port at most, never a URL.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::net::NetError;

#[derive(Debug)]
pub(super) enum Fault {
    /// The target cannot be read; what of it.
    Target(&'static str),
    /// A kind of check that this version does not know.
    Kind,
    /// Link-local, or a metadata service.
    Forbidden,
    /// Not in the host's list.
    NotAllowed { host: String, port: u16 },
    /// Look-up or connect.
    Net(NetError),
    /// No trust roots, no TLS, or no trust in the peer.
    Tls(String),
    /// The connection broke.
    Io { doing: &'static str, source: io::Error },
    /// The check's time is up.
    Timeout { doing: &'static str, timeout: Duration },
    /// The answer is not HTTP, or its head has no end.
    NoHttp,
    /// Another status than wanted; `expected` 0 = any 2xx.
    Status { expected: u32, got: u16 },
    /// A redirect without a place that one could go to.
    Location,
    /// Too many redirects.
    Redirects,
    /// The process stops, or the check was changed: no result at all.
    Cancelled,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(problem) => write!(f, "the check's target {problem}"),
            Self::Kind => f.write_str("this version knows checks by HTTP, HTTPS and TCP only"),
            Self::Forbidden => f.write_str(
                "the target is a link-local or metadata address, which checks may not reach; \
                 BACKUPY_ALLOW_CHECKS on this host can name it",
            ),
            Self::NotAllowed { host, port } => write!(
                f,
                "checks may not reach {host} port {port}; BACKUPY_ALLOW_CHECKS on this host does not name it"
            ),
            Self::Net(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "failed to start TLS: {error}"),
            Self::Io { doing, source } => write!(f, "failed while {doing}: {source}"),
            Self::Timeout { doing, timeout } => {
                write!(f, "no answer within {} s, while {doing}", timeout.as_secs())
            }
            Self::NoHttp => f.write_str("the answer is not HTTP, or its head is too long"),
            Self::Status { expected: 0, got } => write!(f, "answered {got}, not 2xx"),
            Self::Status { expected, got } => write!(f, "answered {got}, not {expected}"),
            Self::Location => f.write_str("redirected to nowhere that could be followed"),
            Self::Redirects => f.write_str("redirected more than 5 times"),
            Self::Cancelled => f.write_str("the check was stopped"),
        }
    }
}

impl std::error::Error for Fault {}
