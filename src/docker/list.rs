//! Which containers run, and what one of them is made of. Reads only.
//!
//! A list is decoded container by container as it comes, so its length costs time but no memory; whoever asks says
//! when it is enough. Of a container's environment nothing but names is ever handed on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroize;

use super::http::{Line, Request};
use super::objects::Objects;
use super::{Bounds, Docker, DockerError, check_word, expect};

/// Longest list that is read: 10,000 containers with their labels are some 20 MiB.
const MAX_LIST_BYTES: usize = 64 << 20;
/// Longest description of one container.
const MAX_DESCRIPTION_BYTES: usize = 512 << 10;
/// Of a container's ports and networks.
const MAX_PORTS: usize = 64;
const MAX_NETWORKS: usize = 16;
const MAX_ALIASES: usize = 16;
/// Addresses of this host at which one port is published.
const MAX_PUBLISHED: usize = 16;
/// Of names of any kind, in characters.
const MAX_NAME: usize = 255;

/// A container that runs, as the daemon lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// All 64 digits.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// The image's name, or its hash where that name means another image by now.
    pub image: String,
    /// `host`, `none`, `container:ID`, or a network's name; empty if the daemon does not say.
    pub network_mode: String,
    /// Its networks.
    pub networks: Vec<Network>,
    /// Its ports, published or only exposed.
    pub ports: Vec<Port>,
}

/// A network that a container is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The container's addresses there.
    pub addresses: Vec<IpAddr>,
}

/// A port of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    /// Inside.
    pub container_port: u16,
    /// Outside; 0 = not published.
    pub host_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The host's addresses at which it is published; an unspecified one means all.
    pub host_addresses: Vec<IpAddr>,
}

/// What a container is made of; it stays the same as long as the container exists, but for the aliases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The image's name when the container was made.
    pub image: String,
    /// Names of variables, those that were asked for.
    pub variables: Vec<String>,
    /// TCP ports that the image or the container exposes.
    pub exposed: Vec<u16>,
    /// Other names that it has in its networks.
    pub aliases: Vec<String>,
}

impl Docker {
    /// Hands every running container to `each`, until that says no. False if the list was longer than what was
    /// looked at.
    ///
    /// # Errors
    /// When the daemon fails, or what it sends is no list.
    pub fn list(
        &self,
        bounds: Bounds<'_>,
        each: &mut dyn FnMut(Listed) -> bool,
    ) -> Result<bool, DockerError> {
        let doing = "listing containers";
        let request = self.versioned(Request::get("/containers/json"));
        let mut body = Line::open(&self.socket, bounds, doing)?.stream(&request)?;
        let (mut objects, mut left) = (Objects::default(), MAX_LIST_BYTES);
        loop {
            let fed = body.piece(|bytes| {
                left = left.saturating_sub(bytes.len());
                objects.feed(bytes, &mut |object| listed(object).is_none_or(&mut *each))
            })?;
            match fed {
                Some(Ok(true)) if bounds.deadline.passed() => {
                    return Err(DockerError::Timeout { doing });
                }
                Some(Ok(true)) if left > 0 => {}
                Some(Ok(_)) => return Ok(false),
                None if objects.between() => return Ok(objects.passed_over == 0),
                Some(Err(_)) | None => return Err(body.odd("it is not a list of containers")),
            }
        }
    }

    /// What a container is made of, with those of its variables' names that `keep` wants.
    ///
    /// # Errors
    /// [`DockerError::NoContainer`] if there is none (any more), or the daemon fails.
    pub fn describe(
        &self,
        id: &str,
        keep: &dyn Fn(&str) -> bool,
        bounds: Bounds<'_>,
    ) -> Result<Description, DockerError> {
        let doing = "looking into a container";
        check_word(id, doing)?;
        let request = self.versioned(Request::get(&format!("/containers/{id}/json")));
        let mut answer =
            Line::open(&self.socket, bounds, doing)?.exchange(&request, MAX_DESCRIPTION_BYTES)?;
        if answer.status != 200 {
            return match answer.status {
                404 => Err(DockerError::NoContainer { container: id.to_owned() }),
                _ => expect::<IgnoredAny>(answer, 200, doing).map(|_| Description::default()),
            };
        }
        let description = serde_json::from_slice(&answer.body).map(|found| described(found, keep));
        // It held the values, too.
        answer.body.zeroize();
        description.map_err(|_| DockerError::Answer {
            doing,
            problem: "it is not the JSON that was expected",
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawListed {
    id: String,
    names: Option<Vec<String>>,
    image: Option<String>,
    host_config: Option<RawHostConfig>,
    network_settings: Option<RawNetworks>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawHostConfig {
    network_mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawNetworks {
    networks: Option<BTreeMap<String, Option<RawNetwork>>>,
}

#[derive(Deserialize)]
struct RawNetwork {
    #[serde(rename = "IPAddress")]
    v4: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    v6: Option<String>,
    #[serde(rename = "Aliases")]
    aliases: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawPort {
    #[serde(rename = "IP")]
    ip: Option<String>,
    private_port: Option<u16>,
    public_port: Option<u16>,
    r#type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawDescription<'a> {
    #[serde(borrow)]
    config: Option<RawConfig<'a>>,
    network_settings: Option<RawNetworks>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig<'a> {
    image: Option<String>,
    #[serde(borrow)]
    env: Option<Vec<Variable<'a>>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
}

/// `NAME=value`; without escapes in it the value is not even copied.
#[derive(Deserialize)]
struct Variable<'a>(#[serde(borrow)] Cow<'a, str>);

/// One that makes no sense is left out: the others are not to suffer for it.
fn listed(object: &[u8]) -> Option<Listed> {
    let raw: RawListed = serde_json::from_slice(object).ok()?;
    check_word(&raw.id, "").ok()?;
    // A linked container has `/other/alias` among its names.
    let names = raw.names.unwrap_or_default();
    let mut names = names.iter().map(|name| name.strip_prefix('/').unwrap_or(name));
    let name = names.clone().find(|name| !name.contains('/')).or_else(|| names.next());
    let networks = raw.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mut ports: Vec<Port> = Vec::new();
    for raw in raw.ports.unwrap_or_default() {
        add_port(&mut ports, &raw);
    }
    let mode = raw.host_config.and_then(|config| config.network_mode).unwrap_or_default();
    Some(Listed {
        id: raw.id,
        name: plain(name.unwrap_or_default(), MAX_NAME),
        image: plain(&raw.image.unwrap_or_default(), MAX_NAME),
        network_mode: plain(&mode, MAX_NAME),
        networks: networks.into_iter().take(MAX_NETWORKS).map(network).collect(),
        ports,
    })
}

/// What is published at several addresses, such as for IPv4 and IPv6, is one port.
fn add_port(ports: &mut Vec<Port>, raw: &RawPort) {
    let host_port = raw.public_port.unwrap_or(0);
    let address: Option<IpAddr> = match raw.ip.as_deref().unwrap_or_default() {
        _ if host_port == 0 => None,
        "" => Some(Ipv4Addr::UNSPECIFIED.into()),
        text => text.parse().ok(),
    };
    let port = Port {
        container_port: raw.private_port.unwrap_or(0),
        host_port,
        protocol: plain(raw.r#type.as_deref().unwrap_or("tcp"), 8),
        host_addresses: address.into_iter().collect(),
    };
    let same = |known: &&mut Port| {
        (known.container_port, known.host_port) == (port.container_port, port.host_port)
            && known.protocol == port.protocol
    };
    if let Some(known) = ports.iter_mut().find(same) {
        if known.host_addresses.len() < MAX_PUBLISHED {
            known.host_addresses.extend(port.host_addresses);
        }
    } else if ports.len() < MAX_PORTS {
        ports.push(port);
    }
}

fn network((name, raw): (String, Option<RawNetwork>)) -> Network {
    let texts = raw.map(|raw| [raw.v4, raw.v6]).unwrap_or_default();
    let addresses = texts.into_iter().flatten().filter_map(|text| text.parse().ok()).collect();
    Network { name: plain(&name, MAX_NAME), addresses }
}

fn described(raw: RawDescription<'_>, keep: &dyn Fn(&str) -> bool) -> Description {
    let networks = raw.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let aliases = networks.into_values().flatten().filter_map(|network| network.aliases).flatten();
    let aliases = aliases.take(MAX_ALIASES).map(|alias| plain(&alias, MAX_NAME)).collect();
    let Some(config) = raw.config else {
        return Description { aliases, ..Description::default() };
    };
    let mut variables: Vec<String> = Vec::new();
    for Variable(text) in config.env.unwrap_or_default() {
        let name = text.split('=').next().unwrap_or_default();
        if keep(name) && !variables.iter().any(|other| other == name) {
            variables.push(name.to_owned());
        }
    }
    let exposed = config.exposed_ports.unwrap_or_default();
    let exposed = exposed.keys().filter_map(|key| match key.split_once('/') {
        Some((port, "tcp")) => port.parse().ok(),
        None => key.parse().ok(),
        Some(_) => None,
    });
    Description {
        image: plain(&config.image.unwrap_or_default(), MAX_NAME),
        variables,
        exposed: exposed.take(MAX_PORTS).collect(),
        aliases,
    }
}

/// A name as it may be shown and sent on.
fn plain(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}
