//! Which addresses a control plane may send us to.
//!
//! Databases live on loopback and in private networks, so those are fine. What is refused from a control
//! plane elsewhere is what no database has: link-local addresses and the metadata services of clouds, which
//! hand credentials to whoever asks from this host. A name is looked up here, **every** address it has is
//! judged, and the tool is then given exactly these addresses, so that the name cannot mean something else a
//! moment later. The operator's own file may name anything; there the tool looks names up itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::DriverError;
use crate::clock::Deadline;
use crate::net;
use crate::thread::Cancel;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);

/// The metadata services outside the link-local ranges: Azure's, Alibaba's and Oracle's, and Amazon's on IPv6.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// `64:ff9b::/96`: IPv4 by way of a translator.
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// Whether `address` is link-local or a cloud's metadata service, also in IPv6 clothes.
pub fn forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local() || v6 == METADATA_V6 || translated(v6).is_some_and(forbidden)
        }
    }
}

fn translated(address: Ipv6Addr) -> Option<IpAddr> {
    let [head @ .., a, b] = address.segments();
    let [a, b] = [a.to_be_bytes(), b.to_be_bytes()];
    (head == NAT64).then(|| Ipv4Addr::new(a[0], a[1], b[0], b[1]).into())
}

/// The addresses of `host`, none of them forbidden.
///
/// # Errors
/// When the look-up fails, or any address is forbidden.
pub(super) fn allowed(host: &str, port: u16, cancel: &Cancel) -> Result<Vec<IpAddr>, DriverError> {
    let found = net::resolve(host, port, Deadline::after(LOOKUP_TIMEOUT), cancel)?;
    judge(&found)?;
    Ok(found.iter().map(SocketAddr::ip).collect())
}

/// The address that a control plane's host means inside a container: there only names that mean the same
/// everywhere can be judged, so it must be `localhost` or an address.
///
/// # Errors
/// When it is another name, or a forbidden address.
pub(super) fn allowed_inside(host: &str) -> Result<Vec<IpAddr>, DriverError> {
    if host == "localhost" {
        return Ok(Vec::new());
    }
    let Ok(address) = host.parse::<IpAddr>() else {
        let what = "a host inside a container other than localhost or an address (leave the host \
                    empty for the container's own socket)";
        return Err(DriverError::NotAllowed { what: what.to_owned() });
    };
    judge(&[SocketAddr::new(address, 0)])?;
    Ok(vec![address])
}

fn judge(found: &[SocketAddr]) -> Result<(), DriverError> {
    if found.iter().any(|address| forbidden(address.ip())) {
        let what = "a link-local or metadata address as a database host".to_owned();
        return Err(DriverError::NotAllowed { what });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused() {
        for text in [
            "169.254.169.254",
            "169.254.0.1",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
        ] {
            assert!(forbidden(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn where_databases_live() {
        for text in ["127.0.0.1", "::1", "10.0.0.5", "192.168.1.1", "fd00::1", "8.8.8.8", "fec0::1"]
        {
            assert!(!forbidden(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn odd_spellings_are_judged_by_what_they_mean() {
        let cancel = Cancel::new().unwrap();
        for host in ["169.254.169.254", "2852039166", "0xa9fea9fe", "[fe80::1]", "169.254.43518"] {
            let error = allowed(host, 5432, &cancel).unwrap_err();
            assert!(matches!(error, DriverError::NotAllowed { .. }), "{host}: {error}");
        }
        assert_eq!(allowed("127.0.0.1", 1, &cancel).unwrap(), [IpAddr::from([127, 0, 0, 1])]);
    }

    #[test]
    fn inside_a_container_only_what_means_the_same_there() {
        assert_eq!(allowed_inside("localhost").unwrap(), Vec::<IpAddr>::new());
        assert_eq!(allowed_inside("127.0.0.1").unwrap(), [IpAddr::from([127, 0, 0, 1])]);
        for host in ["169.254.169.254", "::ffff:169.254.169.254", "db", "2852039166", "fe80::1%lo"]
        {
            allowed_inside(host).unwrap_err();
        }
    }

    #[test]
    fn one_bad_address_spoils_the_name() {
        let good = "127.0.0.1:5432".parse().unwrap();
        let bad = "169.254.169.254:5432".parse().unwrap();
        assert!(judge(&[good, bad]).is_err());
        judge(&[good]).unwrap();
    }
}
