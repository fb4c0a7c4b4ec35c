//! What can go wrong with an update, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::slots::MAX_PROGRAM_BYTES;
use crate::pipeline::upload::Fault;

/// Why a version was not taken.
#[derive(Debug)]
pub enum UpdateError {
    /// The download.
    Download(String, Fault),
    /// The server of the download answered something else.
    Answer(String, u16),
    /// The download took too long.
    TooLate(String),
    /// More bytes than any version of this program has.
    TooBig,
    /// Not the bytes that were announced.
    Hash {
        /// What was announced.
        expected: String,
        /// What came.
        found: String,
    },
    /// Not signed by the owner of the key.
    Signature,
    /// Not a program for this machine.
    Program(&'static str),
    /// It does not say its version.
    Mute(&'static str, Option<io::Error>),
    /// It calls itself something else.
    Version {
        /// What was announced.
        announced: String,
        /// What it says.
        found: String,
    },
    /// No room on the disk.
    NoRoom {
        /// Where.
        dir: PathBuf,
        /// What is free.
        free: u64,
        /// What should be.
        needed: u64,
    },
    /// A file of ours cannot be used.
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process is stopping.
    Stopped,
}

impl UpdateError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether the same order may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Download(_, fault) => fault.retry(),
            Self::TooLate(_) | Self::NoRoom { .. } | Self::Stopped | Self::Io { .. } => true,
            Self::Answer(_, status) => *status >= 500,
            Self::TooBig
            | Self::Hash { .. }
            | Self::Signature
            | Self::Program(_)
            | Self::Mute(..)
            | Self::Version { .. } => false,
        }
    }
}

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Download(shown, fault) => write!(f, "failed to download {shown}: {fault}"),
            Self::Answer(shown, status) => {
                write!(f, "failed to download {shown}: the server answered {status}")
            }
            Self::TooLate(shown) => write!(f, "failed to download {shown}: it took too long"),
            Self::TooBig => {
                write!(f, "the binary is larger than {} MiB", MAX_PROGRAM_BYTES >> 20)
            }
            Self::Hash { expected, found } => {
                write!(f, "the binary has the SHA-256 {found}, not {expected}")
            }
            Self::Signature => f.write_str(
                "the signature of the binary does not match it and the update key of this host",
            ),
            Self::Program(what) => write!(f, "the binary cannot run here: {what}"),
            Self::Mute(what, Some(error)) => {
                write!(f, "the binary does not say its version: {what}: {error}")
            }
            Self::Mute(what, None) => write!(f, "the binary does not say its version: {what}"),
            Self::Version { announced, found } => write!(
                f,
                "the binary calls itself {found:?} and not {announced:?}, as it was announced"
            ),
            Self::NoRoom { dir, free, needed } => write!(
                f,
                "failed to write to {}: {} MiB are free and {} MiB are needed; free some space and \
                 try again",
                dir.display(),
                free >> 20,
                needed >> 20
            ),
            Self::Io { action, path, source } => {
                write!(f, "failed to {action} {}: {source}", path.display())
            }
            Self::Stopped => f.write_str("the process is stopping"),
        }
    }
}

impl std::error::Error for UpdateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::Mute(_, Some(source)) => Some(source),
            Self::Download(..)
            | Self::Answer(..)
            | Self::TooLate(_)
            | Self::TooBig
            | Self::Hash { .. }
            | Self::Signature
            | Self::Program(_)
            | Self::Mute(_, None)
            | Self::Version { .. }
            | Self::NoRoom { .. }
            | Self::Stopped => None,
        }
    }
}
