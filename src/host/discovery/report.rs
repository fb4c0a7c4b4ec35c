//! What one look found, and the bounds of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::ports::default_port;
use crate::docker::{Listed, Port};
use crate::model::Engine;

/// Databases in containers that one report holds; of a thousand more the first are as good as any.
pub const MAX_CONTAINERS: usize = 1_000;
/// Services of the host.
pub const MAX_SERVICES: usize = 100;
/// SQLite files.
pub const MAX_FILES: usize = 200;

/// A database that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its engine.
    pub engine: Engine,
    /// Where it is.
    pub place: Place,
}

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a container.
    Container(Arc<InContainer>),
    /// A service of this host.
    Service(Service),
    /// A SQLite file, by its real path.
    File(PathBuf),
}

/// A container with a database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InContainer {
    /// As the daemon lists it, the image by its name.
    pub listed: Listed,
    /// Names of connection variables that are set.
    pub hints: Vec<String>,
    /// TCP ports that it exposes.
    pub exposed: Vec<u16>,
    /// Other names that it has in its networks.
    pub aliases: Vec<String>,
}

/// A service of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its process; empty where that may not be known.
    pub process: String,
    /// Addresses it listens on.
    pub addresses: Vec<SocketAddr>,
    /// Sockets it listens on.
    pub sockets: Vec<PathBuf>,
}

/// How the daemon stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerState {
    /// It answers.
    Answers {
        /// Its version.
        version: String,
    },
    /// It does not; what it had before is still listed for a while.
    Away {
        /// Why, one line.
        why: String,
        /// Whether there is nothing at its socket at all.
        absent: bool,
    },
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When, Unix milliseconds.
    pub looked_ms: u64,
    /// The databases: containers by name, then services, then files.
    pub databases: Vec<Database>,
    /// How the daemon stands.
    pub docker: DockerState,
    /// What was not looked at, as a note for people.
    pub notes: Vec<String>,
    /// What this machine calls itself.
    pub here: Here,
    /// Directories of files that are named by a link, and where it leads.
    pub links: Vec<(PathBuf, PathBuf)>,
}

/// The names under which a machine is its own neighbour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Here {
    /// Its host name.
    pub hostname: String,
    /// Addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
}

impl InContainer {
    /// Whether it uses the host's own network.
    pub fn is_on_host(&self) -> bool {
        self.listed.network_mode == "host"
    }

    /// Its TCP ports. In the host's network, and where the daemon lists none, those that it exposes, or the engine's.
    pub fn ports(&self, engine: Engine) -> Vec<Port> {
        if !self.listed.ports.is_empty() {
            return self.listed.ports.clone();
        }
        let exposed = match self.exposed.as_slice() {
            [] => &[default_port(engine)][..],
            exposed => exposed,
        };
        let port = |port: &u16| Port {
            container_port: *port,
            host_port: if self.is_on_host() { *port } else { 0 },
            protocol: "tcp".to_owned(),
            host_addresses: vec![Ipv4Addr::UNSPECIFIED.into()],
        };
        exposed.iter().filter(|port| **port != 0).map(port).collect()
    }
}

/// The wire's word for an engine.
pub fn word(engine: Engine) -> &'static str {
    match engine {
        Engine::PostgreSql => "postgresql",
        Engine::MySql => "mysql",
        Engine::MariaDb => "mariadb",
        Engine::MongoDb => "mongodb",
        Engine::Redis => "redis",
        Engine::Sqlite => "sqlite",
        Engine::Unknown(_) => "",
    }
}
