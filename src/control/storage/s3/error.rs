//! What can be wrong with a bucket, in words that say what to change. No key, signature or query is in any of them.

use std::fmt;

use crate::pipeline::upload::Fault;

/// What was being done, and so which permission it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Looking at the marker, or at any other small object.
    Read,
    /// Fetching an artifact.
    Fetch,
    /// Asking for an object's size.
    Measure,
    /// Writing an object.
    Write,
    /// Removing an object.
    Remove,
    /// Listing the objects.
    List,
    /// Creating an upload in parts.
    Begin,
    /// Listing the uploads that are not complete.
    Uploads,
    /// Giving one of them up.
    Abort,
}

impl Doing {
    /// The permission in the words of S3's policies.
    fn permission(self) -> &'static str {
        match self {
            Self::Read | Self::Fetch | Self::Measure => "s3:GetObject (and s3:ListBucket)",
            Self::Write | Self::Begin => "s3:PutObject",
            Self::Remove => "s3:DeleteObject",
            Self::List => "s3:ListBucket",
            Self::Uploads => "s3:ListBucketMultipartUploads",
            Self::Abort => "s3:AbortMultipartUpload",
        }
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read from",
            Self::Fetch => "fetch from",
            Self::Measure => "look at an object in",
            Self::Write => "write to",
            Self::Remove => "remove from",
            Self::List => "list",
            Self::Begin => "begin an upload to",
            Self::Uploads => "list the unfinished uploads of",
            Self::Abort => "give up an upload to",
        })
    }
}

/// A failure at a bucket.
#[derive(Debug)]
pub struct S3Error {
    /// `s3://BUCKET/PREFIX at https://HOST`.
    pub place: String,
    /// What was being done.
    pub doing: Doing,
    /// What was wrong.
    pub fault: S3Fault,
}

/// See the variants.
#[derive(Debug)]
pub enum S3Fault {
    /// A setting cannot be used; the text says which.
    Setting(String),
    /// No connection, no TLS, no answer.
    Unreachable(Fault),
    /// It answers "not now", however often it is asked.
    Busy {
        /// HTTP status.
        status: u16,
        /// S3's code; may be empty.
        code: String,
    },
    /// Nobody has this access key.
    UnknownKey,
    /// The signature is wrong.
    WrongSecret,
    /// The session token of temporary keys is wrong or has expired.
    Token,
    /// No such bucket.
    NoBucket,
    /// It is the right key, but it may not do this.
    Denied,
    /// The clocks differ by too much for signatures.
    Skew {
        /// This host's time, Unix milliseconds.
        here_ms: u64,
        /// The store's; 0 if it does not say.
        there_ms: u64,
    },
    /// The bucket is in another region.
    Region {
        /// The one that the store names; may be empty.
        right: String,
    },
    /// The store sends us elsewhere.
    Elsewhere {
        /// The other host; may be empty.
        host: String,
    },
    /// It says no for a reason of its own.
    Refused {
        /// HTTP status.
        status: u16,
        /// S3's code; may be empty.
        code: String,
    },
    /// The answer cannot be one of S3's.
    Nonsense(&'static str),
    /// What was written is not what is read.
    NotKept,
    /// The object became another one while it was fetched.
    Changed,
    /// The download ended early, and could not be taken up again.
    Short {
        /// Bytes that came.
        got: u64,
        /// Bytes that the store had announced.
        announced: u64,
    },
    /// There is no marker, although there should be.
    NoMarker,
    /// The marker names another storage.
    Another,
    /// The marker is damaged or of another version.
    Marker,
}

impl S3Fault {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Unreachable(fault) => fault.retry(),
            // Clocks are set right by themselves, and markers come back with what was restored.
            Self::Busy { .. } | Self::Skew { .. } | Self::Short { .. } | Self::NoMarker => true,
            Self::Setting(_)
            | Self::UnknownKey
            | Self::WrongSecret
            | Self::Token
            | Self::NoBucket
            | Self::Denied
            | Self::Region { .. }
            | Self::Elsewhere { .. }
            | Self::Refused { .. }
            | Self::Nonsense(_)
            | Self::NotKept
            | Self::Changed
            | Self::Another
            | Self::Marker => false,
        }
    }

    /// Whether the store just cannot be reached at the moment.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unreachable(fault) => fault.retry(),
            Self::Busy { .. } | Self::Skew { .. } => true,
            _ => false,
        }
    }
}

impl fmt::Display for S3Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, doing) = (&self.place, self.doing);
        match &self.fault {
            S3Fault::Setting(why) => return write!(f, "failed to use {place}: {why}"),
            S3Fault::NoMarker => {
                return write!(
                    f,
                    "{place} has no marker (.backupy-storage): are bucket and prefix the right ones? nothing \
                     is written there"
                );
            }
            S3Fault::Another => {
                return write!(
                    f,
                    "{place} is another storage than the one in the catalogue; name the right bucket and \
                     prefix, or start with an empty state directory"
                );
            }
            S3Fault::Marker => {
                return write!(f, "the marker of {place} is damaged or of a newer version");
            }
            _ => write!(f, "failed to {doing} {place}: ")?,
        }
        match &self.fault {
            S3Fault::Unreachable(fault) => fault.fmt(f),
            S3Fault::Busy { status, code } => {
                write!(f, "the store answers {}", Answered(*status, code))
            }
            S3Fault::UnknownKey => f.write_str("the store does not know this `access_key`"),
            S3Fault::WrongSecret => f.write_str(
                "the store refuses the signature: `secret_key` does not belong to `access_key` (or a proxy \
                 changes the requests)",
            ),
            S3Fault::Token => f.write_str("the session token is wrong or has expired"),
            S3Fault::NoBucket => f.write_str("there is no such bucket; make it, or correct `bucket`"),
            S3Fault::Denied => write!(
                f,
                "access denied; the key needs the permission {} there",
                doing.permission()
            ),
            S3Fault::Skew { here_ms, there_ms } => {
                write!(f, "the clocks differ too much: this host says {}, ", Time(*here_ms))?;
                match there_ms {
                    0 => f.write_str("and the store says otherwise")?,
                    there_ms => write!(f, "the store says {}", Time(*there_ms))?,
                }
                f.write_str("; set this host's clock (NTP)")
            }
            S3Fault::Region { right } if right.is_empty() => {
                f.write_str("the bucket is in another region; correct `region`")
            }
            S3Fault::Region { right } => {
                write!(f, "the bucket is in the region {right}; set region = \"{right}\"")
            }
            S3Fault::Elsewhere { host } if host.is_empty() => f.write_str(
                "the store sends us elsewhere without saying where; correct `endpoint` and `region`",
            ),
            S3Fault::Elsewhere { host } => {
                write!(f, "the store sends us to {host}; correct `endpoint` and `region`")
            }
            S3Fault::Refused { status, code } => {
                write!(f, "the store refuses it: {}", Answered(*status, code))
            }
            S3Fault::Nonsense(why) => write!(
                f,
                "the answer is not one of S3's: {why}; is `endpoint` that of an S3 service?"
            ),
            S3Fault::NotKept => {
                f.write_str("the store gives back something else than what was written")
            }
            S3Fault::Changed => f.write_str("the object was replaced while it was read"),
            S3Fault::Short { got, announced } => {
                write!(f, "the object ended after {got} of {announced} bytes")
            }
            S3Fault::Setting(_) | S3Fault::NoMarker | S3Fault::Another | S3Fault::Marker => Ok(()),
        }
    }
}

impl std::error::Error for S3Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            S3Fault::Unreachable(Fault::Net(error)) => Some(error),
            S3Fault::Unreachable(Fault::Io { source, .. }) => Some(source),
            _ => None,
        }
    }
}

/// A status with its code.
struct Answered<'a>(u16, &'a str);

impl fmt::Display for Answered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        if self.1.is_empty() { Ok(()) } else { write!(f, " {}", self.1) }
    }
}

/// A moment, UTC, to the second.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0 / 1000).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_second(seconds) {
            Ok(at) => write!(f, "{}", at.strftime("%Y-%m-%d %H:%M:%S UTC")),
            Err(_) => f.write_str("no time at all"),
        }
    }
}
