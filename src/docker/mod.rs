//! The Docker Engine API on its unix socket: a small synchronous client, without the `docker` command.
//!
//! It speaks the API from 1.41 on (Docker 20.10, podman's compatible socket), each request on a connection of
//! its own. Every wait has a deadline and obeys the cancel; head, body, chunks and frames are bounded, for what
//! listens on the socket may be anything. It knows nothing of databases and decides nothing: who may be named
//! is the caller's to judge.
//!
//! ```text
//! GET  /version                     → which API to speak
//! GET  /containers/REF/json         → id, name, state; addresses and ports
//! POST /containers/ID/exec          → exec id
//! POST /exec/ID/start  (Upgrade)    → the raw connection: frames out, stdin in
//! GET  /exec/ID/json                → running, exit code
//! GET  /containers/json             → what runs, one after the other
//! GET  /events                      → that containers came or went
//! GET  /info                        → whether it runs without root
//! ```

mod attach;
mod body;
mod error;
mod events;
mod frames;
mod http;
mod list;
#[cfg(test)]
mod list_tests;
mod objects;
mod reach;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

pub use attach::{Attached, Output};
pub use error::DockerError;
pub use events::{Events, News};
pub use list::{Description, Listed, Network, Port};
pub use reach::{Own, Reach};

use self::http::{Answer, Line, Request};
use crate::clock::Deadline;
use crate::thread::Cancel;

/// The oldest API that is spoken, and the one that is asked for wherever the daemon still has it.
const API: ApiVersion = ApiVersion { major: 1, minor: 41 };
/// Longest answer in JSON; an inspected container is some 10 KiB.
const MAX_JSON_BYTES: usize = 4 << 20;

/// How long a call may take, and who may end it earlier.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// The end of its time.
    pub deadline: Deadline,
    /// Asks for the stop.
    pub cancel: Option<&'a Cancel>,
}

/// A daemon that answered.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
    api: ApiVersion,
    version: String,
}

/// A container as the daemon knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// All 64 digits.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// What it does.
    pub state: ContainerState,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// It runs.
    Running,
    /// It stands still, in memory.
    Paused,
    /// It ended and is about to be started again.
    Restarting,
    /// Anything else, in the daemon's word (`exited`, `created`, `dead`).
    Stopped(String),
}

/// How a command inside a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecState {
    /// Whether it has not ended.
    pub running: bool,
    /// Its exit code, once there is one.
    pub exit_code: Option<i64>,
}

impl Docker {
    /// Asks the daemon who it is.
    ///
    /// # Errors
    /// When nobody answers there, or it is not Docker, or too old a one.
    pub fn connect(socket: &Path, bounds: Bounds<'_>) -> Result<Self, DockerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Versions {
            #[serde(default)]
            version: String,
            api_version: String,
            #[serde(default, rename = "MinAPIVersion")]
            min_api_version: String,
        }
        let doing = "asking for its version";
        let mut line = Line::open(socket, bounds, doing)?;
        let answer = line.exchange(&Request::get("/version"), MAX_JSON_BYTES)?;
        let found: Versions = expect(answer, 200, doing)?;
        let newest = ApiVersion::parse(&found.api_version)
            .ok_or(DockerError::Answer { doing, problem: "it names no API version" })?;
        let oldest = ApiVersion::parse(&found.min_api_version).unwrap_or(API);
        if newest < API {
            return Err(DockerError::TooOld { api: newest.to_string() });
        }
        let version: String = found.version.chars().filter(|c| !c.is_control()).take(64).collect();
        // The oldest that it still speaks: what we were written for means the same there.
        Ok(Self { socket: socket.to_owned(), api: oldest.max(API), version })
    }

    /// The daemon's version, such as `28.2.2`; may be empty.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Looks a container up by name or id.
    ///
    /// # Errors
    /// [`DockerError::NoContainer`] if there is none, or the daemon fails.
    pub fn inspect(&self, reference: &str, bounds: Bounds<'_>) -> Result<Container, DockerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Inspected {
            id: String,
            name: String,
            state: State,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct State {
            #[serde(default)]
            status: String,
            running: bool,
            #[serde(default)]
            paused: bool,
            #[serde(default)]
            restarting: bool,
        }
        let doing = "looking the container up";
        check_word(reference, doing)?;
        let request = Request::get(&format!("/containers/{reference}/json"));
        let answer = self.call(&request, bounds, doing)?;
        if answer.status == 404 {
            return Err(DockerError::NoContainer { container: reference.to_owned() });
        }
        let found: Inspected = expect(answer, 200, doing)?;
        check_word(&found.id, doing)?;
        let state = match found.state {
            State { restarting: true, .. } => ContainerState::Restarting,
            State { paused: true, .. } => ContainerState::Paused,
            State { running: true, .. } => ContainerState::Running,
            State { status, .. } => {
                let word = status.chars().filter(char::is_ascii_alphanumeric).take(32);
                ContainerState::Stopped(word.collect())
            }
        };
        let name = found.name.strip_prefix('/').unwrap_or(&found.name).to_owned();
        Ok(Container { id: found.id, name, state })
    }

    /// Prepares a command inside a running container, with stdin, stdout and stderr attached; its exec id.
    ///
    /// # Errors
    /// When the container is gone or does not run, or the daemon fails.
    pub fn exec_create(
        &self,
        container: &Container,
        command: &[&str],
        bounds: Bounds<'_>,
    ) -> Result<String, DockerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let doing = "preparing a command in the container";
        let body = json!({
            "AttachStdin": true,
            "AttachStdout": true,
            "AttachStderr": true,
            "Tty": false,
            "Cmd": command,
        });
        let path = format!("/containers/{}/exec", container.id);
        let answer = self.call(&Request::post(&path, &body), bounds, doing)?;
        match answer.status {
            404 => Err(DockerError::NoContainer { container: container.name.clone() }),
            409 => Err(DockerError::NotRunning {
                container: container.name.clone(),
                said: answer.message(),
            }),
            _ => {
                let created: Created = expect(answer, 201, doing)?;
                check_word(&created.id, doing)?;
                Ok(created.id)
            }
        }
    }

    /// Starts a prepared command and takes the connection over.
    ///
    /// # Errors
    /// When the daemon refuses, or fails. That the command could not be started may also show in the stream.
    pub fn exec_start(&self, exec: &str, bounds: Bounds<'_>) -> Result<Attached, DockerError> {
        let doing = "starting a command in the container";
        let body = json!({ "Detach": false, "Tty": false });
        let request = self.versioned(Request::post(&format!("/exec/{exec}/start"), &body));
        Line::open(&self.socket, bounds, doing)?.upgrade(&request)
    }

    /// How a command stands.
    ///
    /// # Errors
    /// [`DockerError::NoExec`] if the daemon does not know it (any more), or the daemon fails.
    pub fn exec_inspect(&self, exec: &str, bounds: Bounds<'_>) -> Result<ExecState, DockerError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Inspected {
            running: bool,
            #[serde(default)]
            exit_code: Option<i64>,
        }
        let doing = "asking how the command ended";
        let answer = self.call(&Request::get(&format!("/exec/{exec}/json")), bounds, doing)?;
        if matches!(answer.status, 404 | 409) {
            return Err(DockerError::NoExec);
        }
        let found: Inspected = expect(answer, 200, doing)?;
        // While it runs, some daemons say 0.
        let exit_code = found.exit_code.filter(|_| !found.running);
        Ok(ExecState { running: found.running, exit_code })
    }

    fn call(
        &self,
        request: &Request,
        bounds: Bounds<'_>,
        doing: &'static str,
    ) -> Result<Answer, DockerError> {
        let request = self.versioned(request.clone());
        Line::open(&self.socket, bounds, doing)?.exchange(&request, MAX_JSON_BYTES)
    }

    fn versioned(&self, mut request: Request) -> Request {
        request.path = format!("/v{}{}", self.api, request.path);
        request
    }
}

/// What becomes part of a path: the names and ids of containers and execs are nothing but these.
fn check_word(word: &str, doing: &'static str) -> Result<(), DockerError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let starts_well = word.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && word.len() <= 255 && word.chars().all(plain) {
        Ok(())
    } else {
        Err(DockerError::Answer { doing, problem: "a name or id is none" })
    }
}

/// The JSON of an answer with the right status.
fn expect<T: DeserializeOwned>(
    answer: Answer,
    status: u16,
    doing: &'static str,
) -> Result<T, DockerError> {
    if answer.status != status {
        return Err(DockerError::Refused {
            doing,
            status: answer.status,
            message: answer.message(),
        });
    }
    serde_json::from_slice(&answer.body)
        .map_err(|_| DockerError::Answer { doing, problem: "it is not the JSON that was expected" })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
