//! A report as JSON, for the status socket and the command line. Holds no value of any variable, and touches no file:
//! a metrics scrape must not wait for a file system.

use serde_json::{Map, Value, json};

use super::protect::{self, Backup};
use super::report::{Database, DockerState, InContainer, Place, Report, Service, word};

/// Databases that a status lists; the rest is a number.
const MAX_SHOWN: usize = 100;

/// The whole report, each database with the jobs that back it up; `null` where the jobs are not known.
pub fn whole(report: &Report, backups: Option<&[Backup]>) -> Value {
    let databases: Vec<Value> = report
        .databases
        .iter()
        .map(|database| {
            let mut value = database_value(database);
            let jobs = backups.map(|known| protect::of(database, known, report));
            value.insert("protected".into(), jobs.as_ref().map(|jobs| !jobs.is_empty()).into());
            value.insert("backups".into(), json!(jobs));
            Value::Object(value)
        })
        .collect();
    json!({
        "looked_ms": report.looked_ms,
        "docker": docker_value(&report.docker),
        "notes": report.notes,
        "unprotected_count": backups.map(|known| unprotected(report, known).count()),
        "databases": databases,
    })
}

/// For a status: numbers, and the names of what is not protected.
pub fn summary(report: &Report, backups: &[Backup]) -> Value {
    let open: Vec<&Database> = unprotected(report, backups).collect();
    let names = open.iter().take(MAX_SHOWN).map(|database| title(database));
    json!({
        "looked_ms": report.looked_ms,
        "docker": docker_value(&report.docker),
        "count": report.databases.len(),
        "unprotected_count": open.len(),
        "unprotected": names.collect::<Vec<_>>(),
    })
}

/// The databases that no job backs up.
pub fn unprotected<'a>(
    report: &'a Report,
    backups: &'a [Backup],
) -> impl Iterator<Item = &'a Database> {
    let open = |d: &&Database| protect::of(d, backups, report).is_empty();
    report.databases.iter().filter(open)
}

/// A database in a few words: `PostgreSQL in the container shop-db`.
pub fn title(database: &Database) -> String {
    let engine = database.engine;
    match &database.place {
        Place::Container(container) => {
            let InContainer { listed, .. } = &**container;
            let name = if listed.name.is_empty() { &listed.id } else { &listed.name };
            format!("{engine} in the container {name}")
        }
        Place::Service(service) => format!("{engine} on this host ({})", places(service)),
        Place::File(path) => format!("{engine} file {}", path.display()),
    }
}

fn places(service: &Service) -> String {
    let addresses = service.addresses.iter().map(ToString::to_string);
    let sockets = service.sockets.iter().map(|path| path.display().to_string());
    addresses.chain(sockets).collect::<Vec<_>>().join(", ")
}

fn docker_value(docker: &DockerState) -> Value {
    match docker {
        DockerState::Answers { version } => json!({ "version": version }),
        DockerState::Away { why, absent } => json!({ "error": why, "absent": absent }),
    }
}

fn database_value(database: &Database) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("engine".into(), word(database.engine).into());
    value.insert("title".into(), title(database).into());
    let (place, rest) = match &database.place {
        Place::Container(container) => ("container", container_value(container, database)),
        Place::Service(service) => {
            let addresses: Vec<String> =
                service.addresses.iter().map(ToString::to_string).collect();
            let sockets: Vec<String> =
                service.sockets.iter().map(|path| path.display().to_string()).collect();
            let process = &service.process;
            ("service", json!({"process": process, "addresses": addresses, "sockets": sockets}))
        }
        Place::File(path) => ("file", json!({ "path": path.display().to_string() })),
    };
    value.insert("place".into(), place.into());
    if let Value::Object(rest) = rest {
        value.extend(rest);
    }
    value
}

fn container_value(container: &InContainer, database: &Database) -> Value {
    let ports: Vec<Value> = container
        .ports(database.engine)
        .iter()
        .map(|port| {
            json!({
                "container_port": port.container_port,
                "host_port": port.host_port,
                "protocol": port.protocol,
            })
        })
        .collect();
    let networks: Vec<&str> =
        container.listed.networks.iter().map(|network| network.name.as_str()).collect();
    json!({
        "container_id": container.listed.id,
        "name": container.listed.name,
        "image": container.listed.image,
        "networks": networks,
        "variables": container.hints,
        "ports": ports,
    })
}
