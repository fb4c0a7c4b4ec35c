//! How a container's ports can be reached from outside of it, as the daemon tells; who may be dialled, and from where
//! that works, is for others to judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Deserialize;
use serde_json::Map;

use super::http::Request;
use super::{Bounds, Container, Docker, DockerError, check_word, expect};

/// A container may share another one's network, and that one a third one's.
const MAX_SHARED: usize = 4;
/// Networks and ports that are looked at.
const MAX_ENTRIES: usize = 64;

/// A container's place on the network. Of `--network=none` nothing is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// It has no network of its own but the host's.
    pub host: bool,
    /// Its addresses.
    pub own: Vec<Own>,
    /// Ports (TCP) of it that the daemon's host passes on, and where; everywhere is a loopback address.
    pub published: Vec<(u16, SocketAddr)>,
}

/// An address of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix in bits.
    pub bits: u8,
    /// The network's way out, which of a bridge is the daemon's host; a network may have none.
    pub gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(default)]
    host_config: HostConfig,
    #[serde(default)]
    network_settings: NetworkSettings,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default)]
    network_mode: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(default)]
    networks: Option<Map<String, serde_json::Value>>,
    #[serde(default)]
    ports: Option<Map<String, serde_json::Value>>,
}

impl Docker {
    /// Where a container is on the network.
    ///
    /// # Errors
    /// As [`Docker::inspect`].
    pub fn reach(&self, container: &Container, bounds: Bounds<'_>) -> Result<Reach, DockerError> {
        let doing = "asking for the container's addresses";
        let mut reference = container.id.clone();
        for _ in 0..MAX_SHARED {
            let request = Request::get(&format!("/containers/{reference}/json"));
            let answer = self.call(&request, bounds, doing)?;
            if answer.status == 404 {
                return Err(DockerError::NoContainer { container: container.name.clone() });
            }
            let found: Inspected = expect(answer, 200, doing)?;
            match found.host_config.network_mode.strip_prefix("container:") {
                Some(other) => {
                    check_word(other, doing)?;
                    other.clone_into(&mut reference);
                }
                None => return Ok(read(&found)),
            }
        }
        Err(DockerError::Answer { doing, problem: "it shares a network that leads nowhere" })
    }
}

impl Docker {
    /// Whether the daemon runs without root, and so with networks that nobody outside of it is on.
    ///
    /// # Errors
    /// When the daemon fails.
    pub fn is_rootless(&self, bounds: Bounds<'_>) -> Result<bool, DockerError> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default, rename = "SecurityOptions")]
            options: Option<Vec<String>>,
        }
        let doing = "asking whether it runs without root";
        let answer = self.call(&Request::get("/info"), bounds, doing)?;
        let found: Info = expect(answer, 200, doing)?;
        let mut words = found.options.iter().flatten().flat_map(|option| option.split(','));
        Ok(words.any(|word| word == "name=rootless"))
    }
}

fn read(found: &Inspected) -> Reach {
    let text = |value: &serde_json::Value, key: &str| {
        value.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
    };
    let mut reach = Reach { host: found.host_config.network_mode == "host", ..Reach::default() };
    let networks = found.network_settings.networks.iter().flatten().take(MAX_ENTRIES);
    for (_, network) in networks {
        for (address, prefix, gateway) in [
            ("IPAddress", "IPPrefixLen", "Gateway"),
            ("GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPv6Gateway"),
        ] {
            let bits = network.get(prefix).and_then(serde_json::Value::as_u64);
            if let (Ok(ip), Some(bits)) =
                (text(network, address).parse(), bits.and_then(|bits| u8::try_from(bits).ok()))
            {
                let gateway = text(network, gateway).parse().ok();
                reach.own.push(Own { ip, bits, gateway });
            }
        }
    }
    for (name, places) in found.network_settings.ports.iter().flatten().take(MAX_ENTRIES) {
        let Some(port) = name.strip_suffix("/tcp").and_then(|port| port.parse().ok()) else {
            continue;
        };
        for place in places.as_array().into_iter().flatten().take(MAX_ENTRIES) {
            let ip = match text(place, "HostIp").as_str() {
                // Everywhere: then here, too.
                "" | "0.0.0.0" => Some(Ipv4Addr::LOCALHOST.into()),
                "::" => Some(Ipv6Addr::LOCALHOST.into()),
                other => other.parse().ok(),
            };
            if let (Some(ip), Ok(at)) = (ip, text(place, "HostPort").parse()) {
                reach.published.push((port, SocketAddr::new(ip, at)));
            }
        }
    }
    reach
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Daemon, answer, ok, patient};
    use super::*;
    use crate::docker::ContainerState;

    fn ask(answers: &[&str]) -> Result<Reach, DockerError> {
        let answers: Vec<_> = answers.iter().map(|body| ok(body)).collect();
        let answers: Vec<&[u8]> = answers.iter().map(Vec::as_slice).collect();
        said(&answers).1
    }

    fn said(answers: &[&[u8]]) -> (Vec<String>, Result<Reach, DockerError>) {
        let daemon = Daemon::saying(answers);
        let docker = Docker::connect(&daemon.socket(), patient()).unwrap();
        let container =
            Container { id: "abc".into(), name: "db".into(), state: ContainerState::Running };
        let reach = docker.reach(&container, patient());
        (daemon.requests(), reach)
    }

    const BRIDGE: &str = r#"{"HostConfig":{"NetworkMode":"shop"},"NetworkSettings":{
        "Networks":{
            "shop":{"IPAddress":"172.18.0.2","IPPrefixLen":16,"Gateway":"172.18.0.1","IPv6Gateway":"","GlobalIPv6Address":"fd00::2","GlobalIPv6PrefixLen":64},
            "gone":{"IPAddress":"","IPPrefixLen":0},
            "odd":{"IPAddress":"10.0.0.1","IPPrefixLen":700}},
        "Ports":{
            "6379/tcp":[{"HostIp":"0.0.0.0","HostPort":"7001"},{"HostIp":"::","HostPort":"7002"},{"HostIp":"192.0.2.7","HostPort":"7003"}],
            "53/udp":[{"HostIp":"","HostPort":"53"}],
            "8080/tcp":null,
            "x/tcp":[{"HostIp":"","HostPort":"1"}]}}}"#;

    #[test]
    fn addresses_and_ports() {
        let reach = ask(&[BRIDGE]).unwrap();
        assert!(!reach.host);
        let gateway = "172.18.0.1".parse().ok();
        let v4 = Own { ip: "172.18.0.2".parse().unwrap(), bits: 16, gateway };
        let v6 = Own { ip: "fd00::2".parse().unwrap(), bits: 64, gateway: None };
        assert_eq!(reach.own, [v4, v6]);
        let published = ["127.0.0.1:7001", "[::1]:7002", "192.0.2.7:7003"];
        assert_eq!(reach.published, published.map(|at| (6379, at.parse().unwrap())));
    }

    #[test]
    fn the_hosts_network_or_none() {
        let host = r#"{"HostConfig":{"NetworkMode":"host"},"NetworkSettings":{"Networks":{"host":{"IPAddress":"","IPPrefixLen":0}},"Ports":{}}}"#;
        assert_eq!(ask(&[host]).unwrap(), Reach { host: true, ..Reach::default() });
        for none in [
            r#"{"HostConfig":{"NetworkMode":"none"},"NetworkSettings":{"Networks":{"none":{"IPAddress":""}}}}"#,
            r#"{"NetworkSettings":{"Networks":null,"Ports":null}}"#,
            "{}",
        ] {
            assert_eq!(ask(&[none]).unwrap(), Reach::default());
        }
    }

    #[test]
    fn another_containers_network() {
        let shares = |mode: &str| format!(r#"{{"HostConfig":{{"NetworkMode":"{mode}"}}}}"#);
        let (first, bridge) = (ok(&shares("container:def")), ok(BRIDGE));
        let (requests, reach) = said(&[&first, &bridge]);
        assert_eq!(reach.unwrap().own.len(), 2);
        assert!(requests[1].contains("/containers/abc/json"), "{requests:?}");
        assert!(requests[2].contains("/containers/def/json"), "{requests:?}");
        let round = shares("container:abc");
        let error = ask(&[&round, &round, &round, &round]).unwrap_err();
        assert!(error.to_string().contains("leads nowhere"), "{error}");
        let error = ask(&[&shares("container:../x")]).unwrap_err();
        assert!(matches!(error, DockerError::Answer { .. }), "{error}");
        let gone = answer(404, "{}");
        let (_, reach) = said(&[&gone]);
        assert!(matches!(reach.unwrap_err(), DockerError::NoContainer { .. }));
    }

    #[test]
    fn without_root() {
        let said = [
            r#"{"SecurityOptions":["name=seccomp,profile=builtin","name=rootless"]}"#,
            r#"{"SecurityOptions":["name=seccomp,profile=builtin"]}"#,
            r#"{"SecurityOptions":null}"#,
        ];
        let answers = said.map(ok);
        let daemon = Daemon::saying(&[&answers[0], &answers[1], &answers[2], &answer(500, "{}")]);
        let docker = Docker::connect(&daemon.socket(), patient()).unwrap();
        let found: Vec<_> = (0..3).map(|_| docker.is_rootless(patient()).unwrap()).collect();
        assert_eq!(found, [true, false, false]);
        docker.is_rootless(patient()).unwrap_err();
    }
}
