//! Discovery between the host and the rest: reports to the control plane, the status socket's answers, and one number
//! for the metrics, all by the same judge.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::config::HostPolicy;
use crate::dispatch::Shared;
use crate::host::discovery::protect::Backup;
use crate::host::discovery::report::{Database, InContainer, Place, Service, word};
use crate::host::discovery::{Finder, Report, Settings, view};
use crate::link::Slots;
use crate::thread::Cancel;
use crate::wire;

/// Longest name of a service or a file on the wire, in characters.
const MAX_NAME: usize = 1_024;

/// What was found, beside what is backed up. Clones share it.
#[derive(Debug, Clone)]
pub struct Found {
    finder: Finder,
    shared: Shared,
    stop: Cancel,
}

impl Found {
    /// Of this agent; `stop` ends a look that somebody waits for.
    pub fn new(finder: Finder, shared: Shared, stop: Cancel) -> Self {
        Self { finder, shared, stop }
    }

    /// How many databases no job backs up; `None` while that is not known.
    pub fn unprotected(&self) -> Option<usize> {
        let report = self.finder.latest()?;
        Some(view::unprotected(&report, &self.shared.backups()).count())
    }

    /// For `status`.
    pub(super) fn status(&self) -> Value {
        self.finder
            .latest()
            .map_or(Value::Null, |report| view::summary(&report, &self.shared.backups()))
    }

    /// For `discover`: looks now.
    pub(super) fn look(&self) -> Value {
        let report = self.finder.look_now(&self.stop);
        let backups = self.shared.backups();
        backups.iter().for_each(Backup::follow_links);
        let mut found = view::whole(&report, Some(&backups));
        let names: Vec<&str> = backups.iter().map(|backup| backup.job_id.as_str()).collect();
        found["jobs"] = json!(names);
        json!({ "done": found })
    }
}

/// Where this host lets us look.
pub fn settings(policy: &HostPolicy, state_dir: &Path) -> Settings {
    Settings {
        enabled: policy.discover,
        docker_socket: policy.docker_socket.clone(),
        paths: policy.discover_paths.clone(),
        state_dir: state_dir.to_owned(),
    }
}

/// Sends every report, in place of the one before. On the thread that looks links are followed, too, so that nobody
/// else waits for a file system.
pub(super) fn reporter(slots: Slots, shared: Shared) -> Box<dyn Fn(&Report) + Send> {
    Box::new(move |report| {
        slots.put_discovery(report.databases.iter().map(message).collect());
        shared.backups().iter().for_each(Backup::follow_links);
    })
}

fn message(database: &Database) -> wire::Container {
    let detected_db_type = word(database.engine).to_owned();
    match &database.place {
        Place::Container(container) => {
            let InContainer { listed, hints, .. } = &**container;
            let ports =
                container.ports(database.engine).into_iter().map(|port| wire::PortBinding {
                    container_port: port.container_port.into(),
                    host_port: port.host_port.into(),
                    protocol: port.protocol,
                });
            wire::Container {
                container_id: listed.id.clone(),
                name: listed.name.clone(),
                image: listed.image.clone(),
                detected_db_type,
                networks: listed.networks.iter().map(|network| network.name.clone()).collect(),
                env_hints: hints.clone(),
                ports: ports.collect(),
            }
        }
        Place::Service(service) => wire::Container {
            name: short(&service_name(service)),
            detected_db_type,
            ports: service_ports(service),
            ..wire::Container::default()
        },
        Place::File(path) => wire::Container {
            name: short(&path.display().to_string()),
            detected_db_type,
            ..wire::Container::default()
        },
    }
}

/// Its process, or else where it listens.
fn service_name(service: &Service) -> String {
    let address = service.addresses.first().map(ToString::to_string);
    let socket = || service.sockets.first().map(|path| path.display().to_string());
    match service.process.as_str() {
        "" => address.or_else(socket).unwrap_or_default(),
        process => process.to_owned(),
    }
}

fn service_ports(service: &Service) -> Vec<wire::PortBinding> {
    let mut ports: Vec<u16> = service.addresses.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let binding = |port: &u16| wire::PortBinding {
        container_port: (*port).into(),
        host_port: (*port).into(),
        protocol: "tcp".to_owned(),
    };
    ports.iter().map(binding).collect()
}

fn short(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::docker::{Listed, Network, Port};
    use crate::host::discovery::report::{MAX_CONTAINERS, MAX_FILES, MAX_SERVICES};
    use crate::model::Engine;
    use crate::wire::{AgentMessage, Header, encode_agent};

    #[test]
    fn services_and_files_have_no_container() {
        let service = Service {
            process: "mariadbd".into(),
            addresses: vec!["127.0.0.1:3306".parse().unwrap(), "[::1]:3306".parse().unwrap()],
            sockets: vec!["/run/mysqld/mysqld.sock".into()],
        };
        let sent = message(&Database { engine: Engine::MariaDb, place: Place::Service(service) });
        assert_eq!((sent.container_id.as_str(), sent.name.as_str()), ("", "mariadbd"));
        assert_eq!((sent.detected_db_type.as_str(), sent.ports.len()), ("mariadb", 1));
        let file = Database { engine: Engine::Sqlite, place: Place::File("/srv/app.db".into()) };
        let sent = message(&file);
        assert_eq!((sent.name.as_str(), sent.detected_db_type.as_str()), ("/srv/app.db", "sqlite"));
    }

    /// The writer would not send it otherwise.
    #[test]
    fn the_largest_report_fits_into_a_message() {
        let name = "n".repeat(255);
        let network = || Network { name: "n".repeat(64), addresses: Vec::new() };
        let listed = Listed {
            id: "0".repeat(64),
            name: name.clone(),
            image: name,
            networks: (0..16).map(|_| network()).collect(),
            ports: (0..64)
                .map(|port| Port {
                    container_port: 60_000 + port,
                    host_port: 60_000,
                    protocol: "tcp".into(),
                    ..Port::default()
                })
                .collect(),
            ..Listed::default()
        };
        let hints = (0..20).map(|n| format!("POSTGRES_INITDB_ROOT_PASSWORD_{n}")).collect();
        let place = Arc::new(InContainer { listed, hints, ..InContainer::default() });
        let database = Database { engine: Engine::PostgreSql, place: Place::Container(place) };
        let path = Place::File(format!("/{}", "p".repeat(4_000)).into());
        let file = Database { engine: Engine::Sqlite, place: path };
        let all = std::iter::repeat_n(&database, MAX_CONTAINERS)
            .chain(std::iter::repeat_n(&file, MAX_FILES + MAX_SERVICES));
        let bytes =
            encode_agent(Header::default(), AgentMessage::Discovery(all.map(message).collect()));
        assert!(bytes.len() < wire::MAX_MESSAGE_BYTES, "{}", bytes.len());
    }
}
