//! Requests to the running process over its status socket, in terms of what they answer.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::exit::Exit;
use crate::observe::socket;

/// Why a request has no good answer.
#[derive(Debug)]
pub enum ClientError {
    /// No process runs on this state directory.
    NotRunning(PathBuf),
    /// The process refused, in its own words.
    Refused(String),
    /// The process ended before it had answered.
    Cut(PathBuf),
    /// The socket cannot be used.
    Socket(PathBuf, io::Error),
}

impl ClientError {
    /// The exit code of a command that ends with this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotRunning(_) => Exit::NotRunning,
            Self::Refused(_) | Self::Cut(_) => Exit::Failed,
            Self::Socket(..) => Exit::State,
        }
    }

    /// Whether the same request may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        matches!(self, Self::Cut(_))
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning(dir) => write!(
                f,
                "nobody runs on {}; start `backupy up`, or name its state directory with --state-dir",
                dir.display()
            ),
            Self::Refused(why) => f.write_str(why),
            Self::Cut(dir) => write!(
                f,
                "the process on {} ended before it had answered; look at its log and try again",
                dir.display()
            ),
            Self::Socket(dir, error) if error.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "failed to reach the process on {}: {error}; be root or the user it runs as",
                dir.display()
            ),
            Self::Socket(dir, error) => {
                write!(f, "failed to reach the process on {}: {error}", dir.display())
            }
        }
    }
}

impl std::error::Error for ClientError {}

/// The process on one state directory.
#[derive(Debug, Clone)]
pub struct Client {
    state_dir: PathBuf,
}

impl Client {
    /// How long the process may be silent within an answer. It sends a sign at least every few seconds.
    const SILENCE: Duration = Duration::from_secs(60);

    /// The process on this directory, whether or not it runs.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    /// Sends a request, hands every line before the last to `each`, and returns what `done` holds.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask(&self, request: &Value, each: &mut dyn FnMut(&Value)) -> Result<Value, ClientError> {
        let mut outcome = None;
        let reached =
            socket::ask(&self.state_dir, request, Some(Self::SILENCE), &mut |mut line| {
                if let Some(why) = line.get("error").and_then(Value::as_str) {
                    outcome = Some(Err(ClientError::Refused(why.to_owned())));
                } else if let Some(done) = line.get_mut("done") {
                    outcome = Some(Ok(done.take()));
                } else {
                    each(&line);
                }
            });
        match (reached, outcome) {
            (Ok(false), _) => Err(ClientError::NotRunning(self.state_dir.clone())),
            (_, Some(outcome)) => outcome,
            (Ok(true), None) => Err(ClientError::Cut(self.state_dir.clone())),
            (Err(error), None) => Err(ClientError::Socket(self.state_dir.clone(), error)),
        }
    }

    /// As [`Self::ask`] for a request without parameters and an answer in one line.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn simple(&self, command: &str) -> Result<Value, ClientError> {
        self.ask(&json!({ "cmd": command }), &mut |_| ())
    }
}
