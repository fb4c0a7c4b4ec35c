//! What can go wrong between us and the Docker daemon.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::thread::Why;

/// A call to the daemon that failed.
#[derive(Debug)]
pub enum DockerError {
    /// There is no daemon at the socket.
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The daemon did not answer in time.
    Timeout {
        /// What was asked of it.
        doing: &'static str,
    },
    /// The connection broke.
    Broken {
        /// What was asked of it.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The answer is not one of Docker's.
    Answer {
        /// What was asked of it.
        doing: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// It answered with an error of its own.
    Refused {
        /// What was asked of it.
        doing: &'static str,
        /// HTTP status.
        status: u16,
        /// Its words, one line.
        message: String,
    },
    /// Its API is older than 1.41.
    TooOld {
        /// The newest that it speaks.
        api: String,
    },
    /// No container with this name or id.
    NoContainer {
        /// The name or id.
        container: String,
    },
    /// The container is there but takes no command now.
    NotRunning {
        /// Its name.
        container: String,
        /// The daemon's words.
        said: String,
    },
    /// The daemon does not know the command any more: it, or the container, was started anew.
    NoExec,
    /// Somebody asked for the stop.
    Cancelled(Why),
}

impl DockerError {
    /// Whether the same thing may succeed later with nobody changing anything. A daemon that is restarted
    /// takes its socket away for a while, and containers are removed and made anew when they are updated.
    pub fn retry(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Timeout { .. }
            | Self::Broken { .. }
            | Self::NoContainer { .. }
            | Self::NotRunning { .. }
            | Self::NoExec => true,
            // 409: the container was stopped or paused in between.
            Self::Refused { status, .. } => *status >= 500 || *status == 409,
            Self::Answer { .. } | Self::TooOld { .. } | Self::Cancelled(_) => false,
        }
    }
}

impl fmt::Display for DockerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { socket, source } => {
                let hint = match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "let the agent's user read and write the socket (group docker)"
                    }
                    io::ErrorKind::NotFound => {
                        "start Docker, or name its socket in BACKUPY_DOCKER_SOCKET"
                    }
                    _ => "check that Docker runs",
                };
                write!(f, "failed to reach Docker at {}: {source}; {hint}", socket.display())
            }
            Self::Timeout { doing } => write!(f, "Docker does not answer ({doing})"),
            Self::Broken { doing, source } => {
                write!(f, "the connection to Docker broke ({doing}): {source}")
            }
            Self::Answer { doing, problem } => write!(
                f,
                "Docker's answer makes no sense ({doing}): {problem}; check BACKUPY_DOCKER_SOCKET"
            ),
            Self::Refused { doing, status, message } => {
                write!(f, "Docker answered {status} ({doing}): {message}")
            }
            Self::TooOld { api } => write!(
                f,
                "this Docker speaks its API only up to {api}; version 1.41 (Docker 20.10) or later is needed"
            ),
            Self::NoContainer { container } => {
                write!(f, "there is no container {container}; correct its name or id in the target")
            }
            Self::NotRunning { container, said } => {
                write!(f, "the container {container} takes no command now: {said}")
            }
            Self::NoExec => {
                f.write_str("Docker has lost the command: it or the container was restarted")
            }
            Self::Cancelled(_) => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for DockerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Broken { source, .. } => Some(source),
            _ => None,
        }
    }
}
