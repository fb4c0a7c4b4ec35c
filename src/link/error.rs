//! Why a link did not come about, or ended.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};
use tungstenite::error::{CapacityError, ProtocolError};

use super::tls::WRONG_PIN;
use crate::net::NetError;

/// Why a link did not come about, or ended.
#[derive(Debug)]
pub enum LinkError {
    /// No TCP connection, or no trust roots.
    Net(NetError),
    /// TLS did not come about, or broke.
    Tls(rustls::Error),
    /// The certificate is valid, but its key is none of the pinned ones.
    WrongPin,
    /// The host cannot stand in a certificate.
    HostName,
    /// The agent key has characters that cannot stand in a header.
    Key,
    /// The server does not accept the agent key: 401 or 403.
    Refused(u16),
    /// The server answered the upgrade with another HTTP status.
    Upgrade(u16),
    /// The server's first message was not a RegisterAck.
    NotRegistered,
    /// A step of the handshake took longer than it may.
    HandshakeTimeout(&'static str),
    /// The loopback transport was given an address that is none.
    NotLoopback,
    /// The server closed the link, with a code and a reason.
    Closed {
        /// Close code, 1005 if it gave none.
        code: u16,
        /// Its words, cleaned and cut.
        reason: String,
    },
    /// The connection ended without a word.
    Dropped,
    /// The connection broke.
    Broken(io::Error),
    /// A message was larger than the limit.
    TooLarge,
    /// The server broke the WebSocket protocol.
    Protocol(String),
    /// No frame came for so long.
    Idle(Duration),
    /// A write, the wait for its turn included, took longer than it may.
    WriteTimeout(Duration),
    /// Messages could not be handed on for so long.
    Stuck(Duration),
    /// Whoever takes the messages is gone.
    NobodyListens,
    /// The system refused a thread or a wait.
    System(io::Error),
    /// Asked to stop.
    Stopped,
}

impl LinkError {
    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Net(error) => error.retry(),
            Self::Upgrade(status) => *status == 429 || *status >= 500,
            Self::Tls(_)
            | Self::WrongPin
            | Self::HostName
            | Self::Key
            | Self::Refused(_)
            | Self::NotLoopback
            | Self::NobodyListens
            | Self::Stopped => false,
            Self::NotRegistered
            | Self::HandshakeTimeout(_)
            | Self::Closed { .. }
            | Self::Dropped
            | Self::Broken(_)
            | Self::TooLarge
            | Self::Protocol(_)
            | Self::Idle(_)
            | Self::WriteTimeout(_)
            | Self::Stuck(_)
            | Self::System(_) => true,
        }
    }

    /// From an error of the stream, which may carry one of TLS.
    pub(super) fn from_io(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Dropped;
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(reason)) if *reason == WRONG_PIN => {
                Self::WrongPin
            }
            Some(tls) => Self::Tls(tls.clone()),
            None => Self::Broken(error),
        }
    }

    /// From an error of the WebSocket.
    pub(super) fn from_websocket(error: tungstenite::Error) -> Self {
        use tungstenite::Error;
        match error {
            Error::Io(error) => Self::from_io(error),
            Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Protocol(
                ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete,
            ) => Self::Dropped,
            Error::Capacity(CapacityError::MessageTooLong { .. }) => Self::TooLarge,
            Error::Http(response) => match response.status().as_u16() {
                status @ (401 | 403) => Self::Refused(status),
                status => Self::Upgrade(status),
            },
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl From<NetError> for LinkError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Cancelled(_) => Self::Stopped,
            other => Self::Net(other),
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(error) => error.fmt(f),
            Self::Tls(error) => fmt_tls(error, f),
            Self::WrongPin => f.write_str(
                "failed to trust the server: its certificate is valid, but its key is none of those \
                 in BACKUPY_SERVER_PIN",
            ),
            Self::HostName => {
                f.write_str("failed to set up TLS: the host of the server URL is not a valid name")
            }
            Self::Key => f.write_str(
                "failed to use the agent key: it has characters that cannot be sent; check \
                 BACKUPY_AGENT_KEY",
            ),
            Self::Refused(status) => write!(
                f,
                "failed to log in: the server does not accept the agent key ({status}); check \
                 BACKUPY_AGENT_KEY"
            ),
            Self::Upgrade(status) => write!(
                f,
                "failed to open the WebSocket: the server answered {status}; check the server URL \
                 and its path"
            ),
            Self::NotRegistered => {
                f.write_str("failed to register: the server's first message was no RegisterAck")
            }
            Self::HandshakeTimeout(step) => write!(f, "failed to {step} in time"),
            Self::NotLoopback => f.write_str("failed to connect: not a loopback address"),
            Self::Closed { code, reason } if reason.is_empty() => {
                write!(f, "the server closed the link (code {code})")
            }
            Self::Closed { code, reason } => {
                write!(f, "the server closed the link (code {code}: {reason})")
            }
            Self::Dropped => f.write_str("the server dropped the connection"),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::TooLarge => f.write_str("the server sent a message of more than 4 MiB"),
            Self::Protocol(reason) => write!(f, "the server broke the protocol: {reason}"),
            Self::Idle(limit) => write!(f, "nothing came from the server for {limit:?}"),
            Self::WriteTimeout(limit) => write!(f, "the server did not take a message for {limit:?}"),
            Self::Stuck(limit) => {
                write!(f, "the agent did not take the server's messages for {limit:?}")
            }
            Self::NobodyListens => f.write_str("nobody takes the server's messages any more"),
            Self::System(error) => write!(f, "failed to run the link: {error}"),
            Self::Stopped => f.write_str("the agent is stopping"),
        }
    }
}

fn fmt_tls(error: &rustls::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use rustls::Error;
    write!(f, "failed to set up TLS with the server: {error}")?;
    match error {
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => f.write_str("; for a private authority set BACKUPY_CA_FILE"),
        Error::InvalidCertificate(
            CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. },
        ) => write!(
            f,
            "; the clock of this host says {}: if that is wrong, set it (NTP), and the agent connects by itself",
            jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC")
        ),
        Error::AlertReceived(
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
        )
        | Error::PeerIncompatible(_) => f.write_str("; the server must speak TLS 1.3"),
        _ => Ok(()),
    }
}

impl std::error::Error for LinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Net(error) => Some(error),
            Self::Tls(error) => Some(error),
            Self::Broken(error) | Self::System(error) => Some(error),
            _ => None,
        }
    }
}

/// A server's words, fit for a log line.
pub(super) fn clean(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    text.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect()
}
