//! What can go wrong before a connection stands.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::thread::Why;

/// A connection that did not come about, or trust roots that cannot be used.
#[derive(Debug)]
pub enum NetError {
    /// The name could not be looked up.
    Lookup {
        /// The name.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// The resolver said nothing until the deadline.
    LookupTimeout {
        /// The name.
        host: String,
    },
    /// The name exists but has no address.
    NoAddress {
        /// The name.
        host: String,
    },
    /// Too many look-ups wait for a resolver that does not answer.
    LookupsStuck,
    /// No address took the connection; the last one's reason.
    Connect {
        /// Where to.
        host: String,
        /// Where to.
        port: u16,
        /// The reason.
        source: io::Error,
    },
    /// No address took the connection until the deadline.
    ConnectTimeout {
        /// Where to.
        host: String,
        /// Where to.
        port: u16,
    },
    /// Somebody asked for the stop.
    Cancelled(Why),
    /// The proxy's URL is not `http://[user:password@]host:port`.
    ProxyUrl,
    /// The proxy answered with a status other than 2xx.
    ProxyRefused {
        /// The proxy, without its user and password.
        proxy: String,
        /// HTTP status.
        status: u16,
    },
    /// The proxy ended the connection, or answered something that is not HTTP.
    ProxyAnswer {
        /// The proxy, without its user and password.
        proxy: String,
        /// What was wrong.
        reason: &'static str,
    },
    /// The connection to the proxy broke.
    ProxyBroken {
        /// The proxy, without its user and password.
        proxy: String,
        /// The reason.
        source: io::Error,
    },
    /// The proxy said nothing until the deadline.
    ProxyTimeout {
        /// The proxy, without its user and password.
        proxy: String,
    },
    /// The extra trust root cannot be used.
    CaFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The system refused a thread, a socket or a wait.
    System(io::Error),
}

impl NetError {
    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            // A resolver cannot be trusted to tell "no such name" from "no network yet".
            Self::Lookup { .. }
            | Self::LookupTimeout { .. }
            | Self::NoAddress { .. }
            | Self::LookupsStuck
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::ProxyAnswer { .. }
            | Self::ProxyBroken { .. }
            | Self::ProxyTimeout { .. }
            | Self::System(_) => true,
            Self::ProxyRefused { status, .. } => *status == 429 || *status >= 500,
            Self::Cancelled(_) | Self::ProxyUrl | Self::CaFile { .. } => false,
        }
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup { host, source } => {
                write!(f, "failed to look up {host}: {source}; check the name and this host's DNS")
            }
            Self::LookupTimeout { host } => {
                write!(f, "failed to look up {host} in time; check this host's DNS")
            }
            Self::NoAddress { host } => write!(f, "failed to look up {host}: it has no address"),
            Self::LookupsStuck => f.write_str(
                "failed to look up a name: earlier look-ups still wait; check this host's DNS",
            ),
            Self::Connect { host, port, source } => {
                write!(f, "failed to connect to {host} port {port}: {source}")
            }
            Self::ConnectTimeout { host, port } => {
                write!(f, "failed to connect to {host} port {port} in time")
            }
            Self::Cancelled(_) => f.write_str("failed to connect: asked to stop"),
            Self::ProxyUrl => f.write_str(
                "failed to read the proxy's URL; HTTPS_PROXY must be http://[user:password@]host:port",
            ),
            Self::ProxyRefused { proxy, status: 407 } => write!(
                f,
                "failed to get through the proxy {proxy}: it wants another user and password (407); \
                 check HTTPS_PROXY"
            ),
            Self::ProxyRefused { proxy, status } => {
                write!(f, "failed to get through the proxy {proxy}: it answered {status}")
            }
            Self::ProxyAnswer { proxy, reason } => {
                write!(f, "failed to get through the proxy {proxy}: {reason}")
            }
            Self::ProxyBroken { proxy, source } => {
                write!(f, "failed to get through the proxy {proxy}: {source}")
            }
            Self::ProxyTimeout { proxy } => {
                write!(f, "failed to get through the proxy {proxy} in time")
            }
            Self::CaFile { path, reason } => write!(
                f,
                "failed to use the extra trust root {}: {reason}; it must be a PEM file with certificates",
                path.display()
            ),
            Self::System(source) => write!(f, "failed to open a connection: {source}"),
        }
    }
}

impl std::error::Error for NetError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lookup { source, .. }
            | Self::Connect { source, .. }
            | Self::ProxyBroken { source, .. }
            | Self::System(source) => Some(source),
            Self::LookupTimeout { .. }
            | Self::NoAddress { .. }
            | Self::LookupsStuck
            | Self::ConnectTimeout { .. }
            | Self::Cancelled(_)
            | Self::ProxyUrl
            | Self::ProxyRefused { .. }
            | Self::ProxyAnswer { .. }
            | Self::ProxyTimeout { .. }
            | Self::CaFile { .. } => None,
        }
    }
}
