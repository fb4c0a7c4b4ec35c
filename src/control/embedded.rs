//! The embedded control plane as `up` starts and stops it: books, plane, server and scheduler.
//!
//! It listens on the loopback interface only, for one agent with a key that is made at the first start.
//! Port, key and the key that signs its URLs outlive a restart, so that a backup that was interrupted
//! between dump and upload can go on with the URL it has.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::connect::Agents;
use super::down::DownNote;
use super::durable::{self, Existing, random_hex};
use super::file::Settings;
use super::http::{Limits, Server};
use super::notify::{Failure, Means, Notifier, command};
use super::plane::{Books, BooksError, LOCAL_AGENT, Plane};
use super::scheduler::Scheduler;
use super::server;
use super::session::Timing;
use super::storage::Reach;
use super::watch::Patience;
use crate::clock::unix_ms;
use crate::exit::Exit;
use crate::secret::Secret;
use crate::store::{Migrations, Store};
use crate::thread::Cancel;

/// Name of the file with the agent's key in the state directory.
const AGENT_KEY: &str = "agent.key";
/// Name of the file with the last port.
const PORT: &str = "port";
/// What may go on telling people at a stop.
const NOTIFY_GRACE: Duration = Duration::from_secs(5);

/// Why the control plane cannot start.
#[derive(Debug)]
pub enum EmbeddedError {
    /// The state directory, or a file in it.
    State(PathBuf, io::Error),
    /// The agent's key is not one.
    Key(PathBuf),
    /// Storage, catalogue or master key.
    Books(BooksError),
    /// The system refused a thread, a socket or a descriptor.
    Io(&'static str, io::Error),
}

impl EmbeddedError {
    /// The exit code of a process that ends with this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::State(..) | Self::Key(_) => Exit::State,
            Self::Books(error) => error.exit(),
            Self::Io(..) => Exit::Internal,
        }
    }

    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::State(..) | Self::Key(_) => false,
            Self::Books(error) => error.retry(),
            Self::Io(..) => true,
        }
    }

    /// Whether the storage just cannot be reached at the moment.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Books(BooksError::Storage(error)) if error.is_away())
    }

    /// Tells people of a control plane that does not start, and waits until they were told, for a while, or until `stop`
    /// is cancelled; of the same error once an hour.
    pub fn tell(&self, settings: &Settings, reach: &Reach, stop: &Cancel) {
        let (note, error) = (DownNote::of(&settings.state_dir), self.to_string());
        if note.hushes(&error, unix_ms()) {
            return log::warn!("this was told within the last hour, so that nobody is told again");
        }
        let channels = settings.channels();
        if channels.is_empty() {
            return;
        }
        match Notifier::start(channels, means(reach), None) {
            Ok(notifier) => {
                notifier.tell(Failure {
                    name: "backupy".into(),
                    run_id: String::new(),
                    status: "down".into(),
                    error: error.clone(),
                });
                notifier.stop(command::TIMEOUT, Some(stop));
                note.leave(&error, notifier.has_told(), unix_ms());
            }
            Err(error) => log::error!("failed to tell anybody: {error}"),
        }
    }
}

impl fmt::Display for EmbeddedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(path, error) => write!(
                f,
                "failed to use {}: {error}; the state directory must belong to this user",
                path.display()
            ),
            Self::Key(path) => write!(
                f,
                "{} is not an agent's key; it opens the state beside it, so bring it back from a copy of \
                 this directory, or start with an empty state directory and `backupy runs --rebuild`",
                path.display()
            ),
            Self::Books(error) => error.fmt(f),
            Self::Io(what, error) => write!(f, "failed to {what}: {error}"),
        }
    }
}

impl std::error::Error for EmbeddedError {}

/// The running control plane; dropping it stops it.
#[derive(Debug)]
pub struct Embedded {
    plane: Plane,
    server: Server,
    scheduler: Scheduler,
    agent_key: Secret,
}

impl Embedded {
    /// Opens the books and starts everything.
    ///
    /// # Errors
    /// See [`EmbeddedError`]; nothing keeps running then.
    pub fn start(
        settings: Settings,
        reach: &Reach,
        migrations: Migrations,
    ) -> Result<Self, EmbeddedError> {
        let state_dir = settings.state_dir.clone();
        private_dir(&state_dir)?;
        let agent_key = agent_key(&state_dir)?;
        let books =
            Books::open(&settings, &agent_key, reach, migrations).map_err(EmbeddedError::Books)?;
        let kept = Some(books.catalogue().clone());
        let notifier = Notifier::start(settings.channels(), means(reach), kept)
            .map_err(|error| EmbeddedError::Io("start the notify thread", error))?;
        let plane = Plane::new(settings, books, notifier, Patience::default(), unix_ms())
            .map_err(EmbeddedError::Books)?;
        let agents = Agents::new([(LOCAL_AGENT.to_owned(), agent_key.clone())])
            .map_err(|error| EmbeddedError::Io("prepare the agents' keys", error))?;
        let server = server::start(
            plane.clone(),
            agents,
            Timing::default(),
            Limits::default(),
            last_port(&state_dir),
        )
        .map_err(|error| EmbeddedError::Io("start the HTTP server", error))?;
        keep_port(&state_dir, server.addr().port())?;
        if let Some(directory) = plane.books().storage().directory() {
            directory.serve_at(server.addr());
        }
        let scheduler = Scheduler::start(plane.clone())
            .map_err(|error| EmbeddedError::Io("start the scheduler", error))?;
        let note = DownNote::of(&state_dir);
        if note.was_heard() {
            plane.works_again();
        }
        note.remove();
        Ok(Self { plane, server, scheduler, agent_key })
    }

    /// The plane.
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Whether it works, for a watchdog; hangs if it does.
    pub fn vital(&self) -> Box<dyn Fn() -> Result<(), String> + Send> {
        let (plane, pulse) = (self.plane.clone(), self.scheduler.pulse());
        Box::new(move || match pulse.late(Instant::now()) {
            Some(late) => Err(format!("the scheduler hangs, for {} s too long", late.as_secs())),
            None => plane.answers().map_err(|error| error.to_string()),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The key of its one agent.
    pub fn agent_key(&self) -> &Secret {
        &self.agent_key
    }

    /// Stops everything, after the agent has.
    pub fn stop(&mut self) {
        if let Some(s3) = self.plane.books().storage().s3() {
            s3.stop();
        }
        self.scheduler.stop();
        self.server.stop();
        self.plane.stop(NOTIFY_GRACE);
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop();
    }
}

fn means(reach: &Reach) -> Means {
    Means { proxy: reach.proxy.clone(), policy: reach.policy.clone() }
}

/// Makes a directory with mode 0700, or takes the mode down to that.
///
/// # Errors
/// Of the file system.
pub fn private_dir(path: &Path) -> Result<(), EmbeddedError> {
    let make = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 == 0 {
            return Ok(());
        }
        // Taking away the rights of others would break a directory that they use, such as /tmp.
        if fs::read_dir(path)?.next().is_some() && !Store::is_in(path) {
            return Err(io::Error::other(
                "it is open to others and holds files that are not ours; name a directory of its own",
            ));
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    };
    make().map_err(|error| EmbeddedError::State(path.to_owned(), error))
}

/// The key of a state directory's agent, which also opens its stores; made at the first start.
///
/// # Errors
/// When it cannot be read or made, or is not a key.
pub fn agent_key(state_dir: &Path) -> Result<Secret, EmbeddedError> {
    match existing_agent_key(state_dir) {
        Err(EmbeddedError::State(path, error)) if error.kind() == io::ErrorKind::NotFound => {
            let failed = |error| EmbeddedError::State(path.clone(), error);
            let key = Secret::new(format!("{KEY_PREFIX}{}", random_hex(16).map_err(failed)?));
            durable::write(&path, key.expose().as_bytes(), 0o600, Existing::Keep)
                .map_err(failed)?;
            Ok(key)
        }
        other => other,
    }
}

/// The key of a state directory's agent, if there is one.
///
/// # Errors
/// When it cannot be read, or is not a key.
pub fn existing_agent_key(state_dir: &Path) -> Result<Secret, EmbeddedError> {
    let path = state_dir.join(AGENT_KEY);
    let text = Zeroizing::new(
        fs::read_to_string(&path).map_err(|error| EmbeddedError::State(path.clone(), error))?,
    );
    let key = Secret::new(text.trim());
    let random = key.expose().strip_prefix(KEY_PREFIX).unwrap_or_default();
    if random.len() == 32 && random.bytes().all(|b| b.is_ascii_alphanumeric()) {
        Ok(key)
    } else {
        Err(EmbeddedError::Key(path))
    }
}

const KEY_PREFIX: &str = "bkpy_live_";

/// A port that cannot be read is only a preference that is lost.
fn last_port(state_dir: &Path) -> Option<u16> {
    fs::read_to_string(state_dir.join(PORT)).ok()?.trim().parse().ok()
}

fn keep_port(state_dir: &Path, port: u16) -> Result<(), EmbeddedError> {
    let path = state_dir.join(PORT);
    if last_port(state_dir) == Some(port) {
        return Ok(());
    }
    durable::write(&path, format!("{port}\n").as_bytes(), 0o600, Existing::Replace)
        .map_err(|error| EmbeddedError::State(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(shared.join("somebody's"), b"").unwrap();
        assert!(private_dir(&shared).unwrap_err().to_string().contains("of its own"));
        assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o777);
        fs::remove_file(shared.join("somebody's")).unwrap();
        private_dir(&shared).unwrap();
        assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
