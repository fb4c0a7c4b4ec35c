//! A server in a container whose protocol we speak ourselves: where it is dialled. Nothing runs inside for it.
//!
//! Ports that the daemon's host passes on come first. Somewhere else (in a daemon without root, on another machine) the
//! container's own address may be a stranger's, who would be told the password, so it is taken only if
//!
//! - the daemon does not say that it runs without root, and
//! - the address by which this host would go there lies in the container's network and is that network's gateway, if
//!   it has one. (An agent in a container is never the gateway, so there the network alone is compared.)
//!
//! That does not recognise a daemon with root on another machine whose socket was forwarded to here: its networks look
//! like ours, and its published ports are taken for this host's.
//!
//! In a container, 127.0.0.1 is the agent's own and no way to anything of the host. One that sees an
//! interface which begins here uses the network of the host, or of the daemon that it holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use super::super::exec::ExecError;
use super::super::{Context, DriverError};
use super::{ContainerFault, Inside, ask, failed, halted};
use crate::docker::{Docker, Own, Reach};

/// Interfaces of this host that are looked at.
const MAX_INTERFACES: usize = 4_096;

impl Inside {
    /// Where `port` of the container is reached from here, the likeliest first; never empty.
    ///
    /// # Errors
    /// When it may not be named, does not run, or nothing leads there.
    pub(in crate::drivers) fn addresses(
        &self,
        port: u16,
        cx: &Context<'_>,
    ) -> Result<Vec<SocketAddr>, DriverError> {
        let (docker, container) = self.admit(cx)?;
        let reach = docker.reach(&container, ask(cx)).map_err(failed)?;
        let shut_in = is_shut_in(Path::new("/"));
        let mut found = published(&reach, port, shut_in);
        let mut near = reach.own.iter().filter(|own| is_neighbour(own, shut_in)).peekable();
        if near.peek().is_some() {
            match docker.is_rootless(ask(cx)) {
                Ok(false) => found.extend(near.map(|own| SocketAddr::new(own.ip, port))),
                Ok(true) => {}
                // Something between us and the daemon may keep that from us.
                Err(_) if !found.is_empty() => {}
                Err(error) => return Err(failed(error).into()),
            }
        }
        if found.is_empty() {
            let fault = ContainerFault::NoAddress { container: container.name, port, shut_in };
            return Err(ExecError::from(fault).into());
        }
        Ok(found)
    }

    /// `error`, or what the container did that is behind it.
    pub(in crate::drivers) fn explain(&self, error: DriverError, cx: &Context<'_>) -> DriverError {
        let docker = Docker::connect(&cx.policy.docker_socket, ask(cx));
        let halted = docker.ok().and_then(|docker| halted(&docker, &self.reference, cx));
        halted.map_or(error, |fault| ExecError::from(fault).into())
    }
}

/// Where the host passes it on, or has it itself.
fn published(reach: &Reach, port: u16, shut_in: bool) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = if reach.host {
        let own: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        own.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    } else {
        let published = reach.published.iter().filter(|(inside, _)| *inside == port);
        published.map(|(_, at)| *at).collect()
    };
    found.retain(|at| !(shut_in && at.ip().to_canonical().is_loopback()));
    found
}

/// Whether this agent is in a container whose network is its own.
fn is_shut_in(root: &Path) -> bool {
    let marked = ["/.dockerenv", "/run/.containerenv"].iter();
    let mut marked = marked.map(|mark| root.join(mark.trim_start_matches('/')));
    marked.any(|mark| mark.exists()) && !has_own_interface(&root.join("sys/class/net"))
}

/// Whether any interface but loopback begins here. A container's are ends of a link that begins elsewhere: `iflink` is another
/// interface's `ifindex` then.
fn has_own_interface(interfaces: &Path) -> bool {
    let number = |path: &Path| std::fs::read_to_string(path).ok();
    let interfaces = std::fs::read_dir(interfaces).into_iter().flatten().flatten();
    interfaces.take(MAX_INTERFACES).filter(|interface| interface.file_name() != "lo").any(|it| {
        number(&it.path().join("ifindex"))
            .is_some_and(|own| number(&it.path().join("iflink")) == Some(own))
    })
}

/// Whether this host is in that network, as far as can be seen from here. Nothing is sent.
fn is_neighbour(own: &Own, shut_in: bool) -> bool {
    let any: IpAddr =
        if own.ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let here = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((own.ip, 9))?;
        socket.local_addr()
    });
    here.is_ok_and(|here| is_way(here.ip(), own, shut_in))
}

/// Whether `here`, by which this host would go there, is that network's.
fn is_way(here: IpAddr, own: &Own, shut_in: bool) -> bool {
    let gateway = own.gateway.filter(|_| !shut_in);
    same_network(here, own.ip, own.bits) && gateway.is_none_or(|gateway| gateway == here)
}

fn same_network(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    let bits = u32::from(bits);
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (1..=32).contains(&bits) && (a.to_bits() ^ b.to_bits()) >> (32 - bits) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (1..=128).contains(&bits) && (a.to_bits() ^ b.to_bits()) >> (128 - bits) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(reach: &Reach, shut_in: bool) -> Vec<String> {
        published(reach, 6379, shut_in).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_published() {
        let published = ["127.0.0.1:7000", "[::1]:7000", "192.0.2.7:7000"];
        let mut published = published.map(|at| (6379, at.parse().unwrap())).to_vec();
        published.insert(0, (80, "127.0.0.1:8080".parse().unwrap()));
        let reach = Reach { published, ..Reach::default() };
        assert_eq!(shown(&reach, false), ["127.0.0.1:7000", "[::1]:7000", "192.0.2.7:7000"]);
        let host = Reach { host: true, ..Reach::default() };
        assert_eq!(shown(&host, false), ["127.0.0.1:6379", "[::1]:6379"]);
        // In a container of our own all that is us.
        assert_eq!(shown(&reach, true), ["192.0.2.7:7000"]);
        assert!(shown(&host, true).is_empty());
    }

    #[test]
    fn the_way_into_a_network_is_its_gateway() {
        let own = |gateway: &str| Own {
            ip: "172.17.0.2".parse().unwrap(),
            bits: 16,
            gateway: gateway.parse().ok(),
        };
        let is =
            |here: &str, gateway, shut_in| is_way(here.parse().unwrap(), &own(gateway), shut_in);
        assert!(is("172.17.0.1", "172.17.0.1", false));
        assert!(is("172.17.0.1", "", false));
        assert!(!is("172.17.0.9", "172.17.0.1", false));
        assert!(is("172.17.0.9", "172.17.0.1", true));
        assert!(!is("172.18.0.1", "", false) && !is("172.18.0.1", "172.18.0.1", true));
    }

    #[test]
    fn in_a_container_with_a_network_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("sys/class/net");
        let interface = |name: &str, index: &str, link: &str| {
            std::fs::create_dir_all(net.join(name)).unwrap();
            std::fs::write(net.join(name).join("ifindex"), index).unwrap();
            std::fs::write(net.join(name).join("iflink"), link).unwrap();
        };
        interface("lo", "1\n", "1\n");
        interface("eth0", "2\n", "17\n");
        assert!(!is_shut_in(root.path()));
        std::fs::create_dir(root.path().join("run")).unwrap();
        std::fs::write(root.path().join("run/.containerenv"), "").unwrap();
        assert!(is_shut_in(root.path()));
        interface("docker0", "3\n", "3\n");
        assert!(!is_shut_in(root.path()));
    }

    #[test]
    fn networks() {
        let same =
            |a: &str, b: &str, bits| same_network(a.parse().unwrap(), b.parse().unwrap(), bits);
        assert!(same("172.17.0.1", "172.17.255.2", 16));
        assert!(!same("172.17.0.1", "172.18.0.2", 16));
        assert!(same("10.0.0.1", "10.0.0.1", 32) && !same("10.0.0.1", "10.0.0.2", 32));
        assert!(same("fd00::1", "fd00::2", 64) && !same("fd00::1", "fd00:1::2", 64));
        // Everybody would be a neighbour.
        assert!(!same("10.0.0.1", "10.0.0.1", 0) && !same("::1", "::1", 0));
        assert!(!same("10.0.0.1", "::1", 8) && !same("10.0.0.1", "10.0.0.1", 33));
        let own = Own { ip: "127.0.0.7".parse().unwrap(), bits: 8, gateway: None };
        assert!(is_neighbour(&own, false));
    }
}
