//! A server in a container whose protocol we speak ourselves: where it is dialled. Nothing runs inside for it.
//!
//! Its own address is taken only if this host is on that network itself: somewhere else (in a daemon without root, on
//! another machine) the same private address may be a stranger's, who would be told the password. Then come the ports
//! that the host passes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::super::exec::ExecError;
use super::super::{Context, DriverError};
use super::{ContainerFault, Inside, ask, failed, halted};
use crate::docker::{Docker, Reach};

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
        let found = places(&reach, port, &is_neighbour);
        if found.is_empty() {
            let fault = ContainerFault::NoAddress { container: container.name, port };
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

fn places(reach: &Reach, port: u16, neighbour: &dyn Fn(IpAddr, u8) -> bool) -> Vec<SocketAddr> {
    if reach.host {
        let own: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return own.map(|ip| SocketAddr::new(ip, port)).to_vec();
    }
    let near = reach.own.iter().filter(|(ip, bits)| neighbour(*ip, *bits));
    let published = reach.published.iter().filter(|(inside, _)| *inside == port);
    near.map(|(ip, _)| SocketAddr::new(*ip, port)).chain(published.map(|(_, at)| *at)).collect()
}

/// Whether this host has an address of its own in that network, by which it would go there. Nothing is sent.
fn is_neighbour(ip: IpAddr, bits: u8) -> bool {
    let any: IpAddr =
        if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    own.is_ok_and(|own| same_network(own.ip(), ip, bits))
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

    fn shown(reach: &Reach, neighbour: &dyn Fn(IpAddr, u8) -> bool) -> Vec<String> {
        places(reach, 6379, neighbour).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn neighbours_first_then_what_is_published() {
        let reach = Reach {
            host: false,
            own: vec![("10.0.0.2".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)],
            published: vec![
                (80, "127.0.0.1:8080".parse().unwrap()),
                (6379, "127.0.0.1:7000".parse().unwrap()),
            ],
        };
        let all = ["10.0.0.2:6379", "[fd00::2]:6379", "127.0.0.1:7000"];
        assert_eq!(shown(&reach, &|_, _| true), all);
        assert_eq!(shown(&reach, &|ip, _| ip.is_ipv6()), all[1..]);
        assert_eq!(shown(&reach, &|_, _| false), ["127.0.0.1:7000"]);
        let host = Reach { host: true, ..Reach::default() };
        assert_eq!(shown(&host, &|_, _| false), ["127.0.0.1:6379", "[::1]:6379"]);
        assert!(shown(&Reach::default(), &|_, _| true).is_empty());
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
        assert!(is_neighbour("127.0.0.7".parse().unwrap(), 8));
    }
}
