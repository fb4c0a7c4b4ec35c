//! Which containers hold a database: lists them, and looks into those where the list does not tell all.
//!
//! A container's description never changes but for its aliases (`docker network connect --alias`), so it is looked into
//! once, and again with each look at everything; what is known of those that have gone is forgotten. Whatever the daemon does, a look ends with its deadline, and what cannot be looked into is judged by the
//! list.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::hints::is_hint;
use super::images::{self, Verdict};
use super::ports;
use super::report::{Database, InContainer, MAX_CONTAINERS, Place};
use crate::clock::Deadline;
use crate::docker::{Bounds, Description, Docker, DockerError, Listed};
use crate::model::Engine;
use crate::thread::Cancel;

/// Containers of any kind that are looked at; the daemon lists the newest first.
const MAX_LISTED: usize = 10_000;
/// For the list.
const LIST: Duration = Duration::from_secs(5);
/// For one container.
const DESCRIBE: Duration = Duration::from_secs(2);
/// Containers in a row that cannot be looked into before the rest is judged by the list alone.
const MAX_SILENT: u32 = 2;

/// The containers of one daemon, over all looks.
#[derive(Debug, Default)]
pub(super) struct Containers {
    descriptions: BTreeMap<String, Arc<Description>>,
    /// What the last look found.
    pub(super) databases: Vec<Database>,
    /// Whether that is not everything.
    pub(super) cut_short: bool,
}

impl Containers {
    /// Looks again; after an error everything is as before. `anew` asks again even what is known.
    pub(super) fn look(
        &mut self,
        docker: &Docker,
        anew: bool,
        deadline: Deadline,
        cancel: &Cancel,
    ) -> Result<(), DockerError> {
        let within =
            |time| Bounds { deadline: Deadline::after(time).min(deadline), cancel: Some(cancel) };
        let (mut listed, mut seen) = (Vec::new(), 0);
        let whole = docker.list(within(LIST), &mut |container| {
            seen += 1;
            if may_be_database(&container) {
                listed.push(container);
            }
            seen < MAX_LISTED && listed.len() < MAX_CONTAINERS
        })?;
        let (mut silent, mut found) = (0, Vec::new());
        let mut descriptions = BTreeMap::new();
        for container in listed {
            let known = self.descriptions.get(&container.id).cloned();
            let description = match known {
                known if silent >= MAX_SILENT || deadline.passed() => known,
                Some(known) if !anew => Some(known),
                known => match docker.describe(&container.id, &is_hint, within(DESCRIBE)) {
                    Ok(description) => Some(Arc::new(description)),
                    // It has just gone.
                    Err(DockerError::NoContainer { .. }) => continue,
                    Err(DockerError::Cancelled(why)) => return Err(DockerError::Cancelled(why)),
                    Err(_) => {
                        silent += 1;
                        known
                    }
                },
            };
            if let Some(description) = &description {
                descriptions.insert(container.id.clone(), description.clone());
            }
            found.extend(judge(container, description.as_deref()));
        }
        found.sort_by(|a, b| name(a).cmp(name(b)));
        self.descriptions = descriptions;
        self.databases = found;
        self.cut_short = !whole;
        Ok(())
    }

    /// The daemon is gone for good, or for long.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

fn name(database: &Database) -> &str {
    match &database.place {
        Place::Container(container) => &container.listed.name,
        Place::Service(_) | Place::File(_) => "",
    }
}

/// Whether it is worth a look into it.
fn may_be_database(listed: &Listed) -> bool {
    match images::judge(&listed.image) {
        Verdict::Engine(_) => true,
        Verdict::Other => false,
        Verdict::Unknown => {
            // The list has exposed ports only of networks that Docker makes for a container alone.
            listed.ports.is_empty()
                || images::is_hash(&listed.image)
                || ports::engine(tcp_ports(listed)).is_some()
        }
    }
}

fn tcp_ports(listed: &Listed) -> impl Iterator<Item = u16> + Clone {
    listed.ports.iter().filter(|port| port.protocol == "tcp").map(|port| port.container_port)
}

/// The database in a container, if there is one.
fn judge(mut listed: Listed, description: Option<&Description>) -> Option<Database> {
    let description = description.cloned().unwrap_or_default();
    if images::is_hash(&listed.image) && !description.image.is_empty() {
        listed.image.clone_from(&description.image);
    }
    let engine: Engine = match images::judge(&listed.image) {
        Verdict::Engine(engine) => engine,
        Verdict::Other => return None,
        Verdict::Unknown => {
            let exposed = description.exposed.iter().copied();
            ports::engine(tcp_ports(&listed).chain(exposed))?
        }
    };
    let Description { variables: hints, exposed, aliases, .. } = description;
    let place = Place::Container(Arc::new(InContainer { listed, hints, exposed, aliases }));
    Some(Database { engine, place })
}
