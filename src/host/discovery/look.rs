//! One look at the host, all in all bounded by a deadline. What was found before is remembered where the new look
//! could not see it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::containers::Containers;
use super::pace::Scope;
use super::report::{Database, DockerState, InContainer, Place, Report};
use super::{files, processes};
use crate::clock::{Deadline, unix_ms};
use crate::docker::{Bounds, Docker, DockerError};
use crate::model::Engine;
use crate::redact::clean;
use crate::thread::Cancel;

/// For the daemon's first word.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// For everything that is asked of the daemon in one look.
const CONTAINERS: Duration = Duration::from_secs(12);

/// Where to look.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether anybody may look unasked (`BACKUPY_DISABLE_DISCOVERY`).
    pub enabled: bool,
    /// The Docker daemon's socket.
    pub docker_socket: PathBuf,
    /// Where SQLite files may be.
    pub paths: Vec<PathBuf>,
    /// The agent's own directory, which is left out.
    pub state_dir: PathBuf,
}

/// Looks, and remembers.
#[derive(Debug)]
pub(super) struct Looker {
    settings: Settings,
    containers: Containers,
    services: Vec<Database>,
    files: files::Found,
}

impl Looker {
    pub(super) fn new(settings: Settings) -> Self {
        let (containers, services) = (Containers::default(), Vec::new());
        Self { settings, containers, services, files: files::Found::default() }
    }

    /// Looks at everything, the daemon asked anew.
    pub(super) fn look_now(&mut self, cancel: &Cancel) -> Report {
        let bounds = Bounds { deadline: Deadline::after(CONNECT), cancel: Some(cancel) };
        let docker = Docker::connect(&self.settings.docker_socket, bounds);
        self.look(docker.as_ref(), Scope::Everything, cancel)
    }

    /// Looks as far as `scope` says; `docker` is the daemon, or why there is none.
    pub(super) fn look(
        &mut self,
        docker: Result<&Docker, &DockerError>,
        scope: Scope,
        cancel: &Cancel,
    ) -> Report {
        let docker = match docker {
            Ok(docker) => {
                let deadline = Deadline::after(CONTAINERS);
                match self.containers.look(docker, scope == Scope::Everything, deadline, cancel) {
                    Ok(()) => DockerState::Answers { version: docker.version().to_owned() },
                    Err(error) => away(&error),
                }
            }
            Err(error) => away(error),
        };
        if scope == Scope::Everything {
            // What a daemon that is away had before is believed for an hour at most.
            if matches!(docker, DockerState::Away { .. }) {
                self.containers.forget();
            }
            let listed = |id: &str| {
                containers(&self.containers.databases).any(|found| found.listed.id == id)
            };
            self.services = processes::look(&listed, cancel);
            self.files = files::look(&self.settings.paths, &self.settings.state_dir, cancel);
        }
        self.report(docker)
    }

    fn report(&self, docker: DockerState) -> Report {
        let mut databases = self.containers.databases.clone();
        let services = self.services.iter().filter(|service| !self.is_a_containers(service));
        databases.extend(services.cloned());
        let engine = Engine::Sqlite;
        let file = |path: &PathBuf| Database { engine, place: Place::File(path.clone()) };
        databases.extend(self.files.files.iter().map(file));
        let mut notes = self.files.notes.clone();
        if self.containers.cut_short {
            notes.push("there are more containers than were looked at".to_owned());
        }
        let (here, links) = (processes::here(), self.files.links.clone());
        Report { looked_ms: unix_ms(), databases, docker, notes, here, links }
    }

    /// Whether what looks like a service is where a listed container is published or, in the host's network, itself.
    /// The address counts as well as the port: rather is a database listed twice than one hidden.
    fn is_a_containers(&self, service: &Database) -> bool {
        let Place::Service(found) = &service.place else { return false };
        // A process that is known has been asked for its container.
        if !found.process.is_empty() || found.addresses.is_empty() {
            return false;
        }
        found.addresses.iter().all(|address| {
            self.containers.databases.iter().any(|database| match &database.place {
                Place::Container(container) => holds(container, database.engine, *address),
                Place::Service(_) | Place::File(_) => false,
            })
        })
    }
}

/// Whether it is for this container that somebody listens there. A port that is published everywhere is listened for
/// everywhere, so a listener at one address is somebody else's.
fn holds(container: &InContainer, engine: Engine, address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let there = |own: &IpAddr| *own == ip || (own.is_unspecified() && ip.is_unspecified());
    container.ports(engine).iter().any(|port| {
        port.protocol == "tcp"
            && port.host_port == address.port()
            && (container.is_on_host() || port.host_addresses.iter().any(there))
    })
}

fn containers(databases: &[Database]) -> impl Iterator<Item = &InContainer> {
    databases.iter().filter_map(|database| match &database.place {
        Place::Container(container) => Some(&**container),
        Place::Service(_) | Place::File(_) => None,
    })
}

fn away(error: &DockerError) -> DockerState {
    let absent = matches!(error, DockerError::Connect { source, .. }
        if source.kind() == std::io::ErrorKind::NotFound);
    DockerState::Away { why: clean(&error.to_string()), absent }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::report::Service;
    use super::*;
    use crate::docker::{Listed, Port};

    /// Whether a container published so hides a service that listens so.
    fn hides(mode: &str, published: &[&str], listening: &str) -> bool {
        let port = Port {
            container_port: 5432,
            host_port: 5432,
            protocol: "tcp".into(),
            host_addresses: published.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let ports = if mode == "host" { Vec::new() } else { vec![port] };
        let listed = Listed { network_mode: mode.into(), ports, ..Listed::default() };
        let place = Place::Container(Arc::new(InContainer { listed, ..InContainer::default() }));
        let mut looker = Looker::new(Settings {
            enabled: true,
            docker_socket: "/nonexistent".into(),
            paths: Vec::new(),
            state_dir: "/nonexistent".into(),
        });
        let engine = Engine::PostgreSql;
        looker.containers.databases.push(Database { engine, place });
        let addresses = vec![listening.parse().unwrap()];
        let place = Place::Service(Service { addresses, ..Service::default() });
        looker.is_a_containers(&Database { engine, place })
    }

    #[test]
    fn a_service_is_hidden_only_where_the_container_is_published() {
        assert!(hides("shop", &["10.0.0.5"], "10.0.0.5:5432"));
        assert!(hides("shop", &["0.0.0.0", "::"], "[::]:5432"));
        assert!(hides("shop", &["127.0.0.1"], "[::ffff:127.0.0.1]:5432"));
        assert!(hides("host", &[], "127.0.0.1:5432"));
        assert!(!hides("shop", &["10.0.0.5"], "127.0.0.1:5432"));
        assert!(!hides("shop", &["10.0.0.5"], "0.0.0.0:5432"));
        assert!(!hides("shop", &["0.0.0.0"], "127.0.0.1:5432"));
        assert!(!hides("shop", &["0.0.0.0"], "0.0.0.0:5433"));
    }
}
