//! What can go wrong with a tool inside a container, beyond what goes wrong with any tool.

use std::fmt;

use super::super::tail::Said;
use crate::docker::{ContainerState, DockerError};

/// A container that did not do what was asked of it.
#[derive(Debug)]
pub enum ContainerFault {
    /// The daemon.
    Docker(DockerError),
    /// A control plane may not name this container.
    NotAllowed {
        /// As it was named.
        container: String,
    },
    /// It does not run, or not any more.
    State {
        /// Its name.
        container: String,
        /// What it does instead.
        state: ContainerState,
    },
    /// Nothing leads to a port of it from here.
    NoAddress {
        /// Its name.
        container: String,
        /// The port.
        port: u16,
        /// Whether the agent is in a container itself.
        shut_in: bool,
    },
    /// The command could not be started in it.
    NoShell {
        /// Its name.
        container: String,
        /// The daemon's words.
        said: Said,
    },
    /// Something that the script needs is missing in it.
    Script {
        /// Its name.
        container: String,
        /// What.
        problem: &'static str,
    },
    /// The output ended without its end mark: something is missing of it.
    Lost {
        /// The tool.
        tool: String,
        /// The container's name.
        container: String,
        /// What Docker reports as exit code.
        code: Option<i64>,
        /// What the tool said.
        said: Said,
    },
    /// The output is whole, but Docker does not confirm the exit code.
    Code {
        /// The tool.
        tool: String,
        /// What the script reported.
        own: i32,
        /// What Docker reports, if anything.
        code: Option<i64>,
    },
}

impl ContainerFault {
    /// Whether it may go better next time by itself.
    pub fn retry(&self) -> bool {
        match self {
            Self::Docker(error) => error.retry(),
            Self::State { .. } | Self::Lost { .. } | Self::Code { .. } => true,
            Self::NotAllowed { .. }
            | Self::NoAddress { .. }
            | Self::NoShell { .. }
            | Self::Script { .. } => false,
        }
    }
}

impl fmt::Display for ContainerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker(error) => error.fmt(f),
            Self::NotAllowed { container } => {
                write!(f, "the container {container}: it is not in BACKUPY_ALLOW_CONTAINERS")
            }
            Self::State { container, state } => {
                write!(f, "the container {container} ")?;
                match state {
                    ContainerState::Running => f.write_str("was restarted"),
                    ContainerState::Paused => f.write_str("is paused; unpause it"),
                    ContainerState::Restarting => f.write_str("is being restarted by Docker"),
                    ContainerState::Stopped(word) if word.is_empty() => {
                        f.write_str("does not run; start it")
                    }
                    ContainerState::Stopped(word) => write!(f, "does not run ({word}); start it"),
                }
            }
            Self::NoAddress { container, port, shut_in: false } => write!(
                f,
                "nothing leads from here to the container {container}: its port {port} is not published and this host is on none of \
                 its networks, or Docker runs without root; publish it (127.0.0.1:{port}:{port})"
            ),
            Self::NoAddress { container, port, shut_in: true } => write!(
                f,
                "nothing leads from here to the container {container}: this agent runs in a container itself, where 127.0.0.1 is its \
                 own; attach both to one network, or publish the port {port} at an address of the host"
            ),
            Self::NoShell { container, said } => write!(
                f,
                "the container {container} has no shell (sh) to run the dump tool with; reach the database by TCP instead: {}",
                said.brief()
            ),
            Self::Script { container, problem } => {
                write!(f, "failed to run a dump tool in the container {container}: {problem}")
            }
            Self::Lost { tool, container, code, said } => {
                write!(f, "the output of {tool} in the container {container} is not whole")?;
                if let Some(code) = code {
                    write!(f, " (exit code {code})")?;
                }
                match said.brief() {
                    brief if brief.is_empty() => Ok(()),
                    brief => write!(f, ": {brief}"),
                }
            }
            Self::Code { tool, own, code: Some(code) } => {
                write!(f, "{tool} ended with exit code {own}, but Docker reports {code}")
            }
            Self::Code { tool, code: None, .. } => {
                write!(f, "Docker does not report how {tool} ended")
            }
        }
    }
}

impl std::error::Error for ContainerFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Docker(error) => Some(error),
            _ => None,
        }
    }
}

impl From<DockerError> for ContainerFault {
    fn from(error: DockerError) -> Self {
        Self::Docker(error)
    }
}
