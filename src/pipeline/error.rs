//! Why an attempt did not end with an artifact in the store.

use std::fmt;
use std::io;

use super::{SpoolError, UploadError};
use crate::artifact::SealError;
use crate::drivers::DriverError;
use crate::model::Compression;
use crate::thread::Why;

/// Why an attempt failed. No variant holds a secret or a URL's query string.
#[derive(Debug)]
pub enum PipelineError {
    /// Somebody asked for the stop, or the run's timeout passed.
    Cancelled(Why),
    /// The database could not be dumped.
    Driver(DriverError),
    /// The driver and the pipeline disagree about the size of the dump.
    DumpSize {
        /// What the driver says it wrote.
        written: u64,
        /// What arrived.
        arrived: u64,
    },
    /// The compressor failed.
    Compress {
        /// Which.
        compression: Compression,
        /// Its error.
        source: io::Error,
    },
    /// A frame could not be sealed.
    Seal(SealError),
    /// The artifact could not be kept until the upload.
    Spool(SpoolError),
    /// The artifact did not reach the store.
    Upload(UploadError),
    /// A defect: a stage panicked.
    Panicked {
        /// Which.
        stage: &'static str,
    },
    /// A defect: a stage ended early and none says why.
    Broken,
    /// The system refused a thread or a file descriptor.
    System(io::Error),
}

impl PipelineError {
    /// Whether the same thing may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            // The work is resumed at the next start.
            Self::Cancelled(why) => *why == Why::Shutdown,
            Self::Driver(error) => error.retry(),
            Self::Seal(error) => error.retry(),
            Self::Spool(error) => error.retry(),
            Self::Upload(error) => error.retry(),
            Self::DumpSize { .. } | Self::Panicked { .. } | Self::Broken => false,
            Self::Compress { .. } | Self::System(_) => true,
        }
    }

    /// Why it was cancelled, if that is what happened.
    pub fn cancelled(&self) -> Option<Why> {
        match self {
            Self::Cancelled(why) => Some(*why),
            Self::Driver(_)
            | Self::DumpSize { .. }
            | Self::Compress { .. }
            | Self::Seal(_)
            | Self::Spool(_)
            | Self::Upload(_)
            | Self::Panicked { .. }
            | Self::Broken
            | Self::System(_) => None,
        }
    }

    /// Whether it was cancelled rather than failed.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled().is_some()
    }
}

impl fmt::Display for PipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled(why) => f.write_str(match why {
                Why::Requested => "cancelled",
                Why::Timeout => "the run's timeout passed",
                Why::Shutdown => "the agent is stopping",
                Why::Sibling => "another stage failed",
            }),
            Self::Driver(error) => error.fmt(f),
            Self::DumpSize { written, arrived } => write!(
                f,
                "failed to verify the dump: the driver wrote {written} bytes, but {arrived} arrived; \
                 this is a defect, please report it"
            ),
            Self::Compress { compression, source } => {
                write!(f, "failed to compress the dump with {}: {source}", compression.as_str())
            }
            Self::Seal(error) => error.fmt(f),
            Self::Spool(error) => error.fmt(f),
            Self::Upload(error) => error.fmt(f),
            Self::Panicked { stage } => write!(
                f,
                "the {stage} stage of the backup crashed; this is a defect, please report it with the log"
            ),
            Self::Broken => f.write_str(
                "a stage of the backup ended early; this is a defect, please report it with the log",
            ),
            Self::System(source) => write!(f, "failed to start the backup: {source}"),
        }
    }
}

impl std::error::Error for PipelineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Driver(error) => Some(error),
            Self::Seal(error) => Some(error),
            Self::Spool(error) => Some(error),
            Self::Upload(error) => Some(error),
            Self::Compress { source, .. } | Self::System(source) => Some(source),
            Self::Cancelled(_) | Self::DumpSize { .. } | Self::Panicked { .. } | Self::Broken => {
                None
            }
        }
    }
}

impl From<SpoolError> for PipelineError {
    fn from(error: SpoolError) -> Self {
        Self::Spool(error)
    }
}

impl From<UploadError> for PipelineError {
    fn from(error: UploadError) -> Self {
        Self::Upload(error)
    }
}
