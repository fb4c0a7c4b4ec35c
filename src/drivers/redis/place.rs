//! A target's settings → where the server is and who logs in, checked before anything is connected.
//!
//! | setting | meaning |
//! |---|---|
//! | host | name or address (empty: `localhost`); for a unix socket its path, or a directory with one of [`SOCKETS`] in it (empty: `/run/redis`); for a container nothing, or the name in its certificate where TLS is asked for |
//! | port | 0 = 6379; without meaning for a socket |
//! | username | an ACL user (Redis 6 and later); empty = the user `default` |
//! | database | empty or a number: an RDB holds all of them, whatever is asked for |
//! | TLS mode | empty (TLS only if there is a CA file) or `disable`; `require`, `verify-ca` and `verify-full` all check name and chain, for Redis has no half way |
//! | TLS CA file | trusted beside the system's roots |

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::clock::Deadline;
use crate::drivers::container::Inside;
use crate::drivers::{Context, DriverError, address};
use crate::model::{Connection, Trust, Way};
use crate::net;
use crate::secret::Secret;

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_DIR: &str = "/run/redis";
/// The sockets' usual names in their directory, Debian's first.
const SOCKETS: [&str; 4] = ["redis-server.sock", "redis.sock", "valkey-server.sock", "valkey.sock"];

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A host name or address.
    Tcp { host: String, port: u16 },
    /// A socket, or the directory that it is in.
    Socket(PathBuf),
    /// A container; `name` is what a certificate of it has to be for.
    Container { inside: Inside, name: String, port: u16 },
}

/// A target whose every string was looked at.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) place: Place,
    /// Empty = the user `default`, by the one password that all versions know.
    pub(super) user: String,
    pub(super) password_ref: Secret,
    /// A database number other than the first, which the dump is not limited to.
    pub(super) only: Option<u32>,
    pub(super) tls: Option<Tls>,
}

/// TLS is wanted, and so a certificate that can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tls {
    /// Trusted, too.
    pub(super) ca_file: Option<PathBuf>,
}

fn wrong<T>(field: &'static str, problem: &str) -> Result<T, DriverError> {
    Err(DriverError::Setting { field, problem: problem.to_owned() })
}

impl Settings {
    /// Checks a target.
    ///
    /// # Errors
    /// Permanent ones, without the values.
    pub(super) fn new(c: &Connection) -> Result<Self, DriverError> {
        let user = if c.username == "default" { String::new() } else { c.username.clone() };
        Ok(Self {
            place: place(c)?,
            user,
            password_ref: c.password_ref.clone(),
            only: database(&c.database)?,
            tls: tls(c)?,
        })
    }

    /// Whether the password is one that a control plane cannot know, only name.
    fn refers(&self) -> bool {
        ["env:", "file:"].iter().any(|kind| self.password_ref.expose().starts_with(kind))
    }

    /// The addresses to try; those that a control plane may name.
    ///
    /// Redis is told a password in the clear. Whoever names both a host and a reference could read this host's
    /// secrets with a server of their own (and a certificate for it), so from a control plane elsewhere a referenced
    /// password goes to loopback and private addresses only, or to a server whose CA the host has in a file.
    ///
    /// # Errors
    /// When the look-up fails, or an address is not allowed.
    pub(super) fn addresses(
        &self,
        host: &str,
        port: u16,
        deadline: Deadline,
        cx: &Context<'_>,
    ) -> Result<Vec<SocketAddr>, DriverError> {
        match cx.policy.trust {
            Trust::Local => Ok(net::resolve(host, port, deadline, cx.cancel)?),
            Trust::Remote => {
                let found = address::allowed(host, port, cx.cancel)?;
                // Anybody has a certificate for a name of their own; only a CA of this host's choice is proof.
                let proven = self.tls.as_ref().is_some_and(|tls| tls.ca_file.is_some());
                if !proven && self.refers() && !found.iter().copied().all(near) {
                    let what = "a public address together with a password reference, for Redis would be told \
                                that password in the clear (a TLS CA file of this host's own proves the server)"
                        .to_owned();
                    return Err(DriverError::NotAllowed { what });
                }
                Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
            }
        }
    }
}

/// Loopback, or an address that is not routed on the public network.
fn near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // 100.64.0.0/10: carriers' and overlay networks.
            v4.is_loopback() || v4.is_private() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

fn tls(c: &Connection) -> Result<Option<Tls>, DriverError> {
    let ca_file = (!c.tls_ca_file.is_empty()).then(|| PathBuf::from(&c.tls_ca_file));
    if ca_file.as_deref().is_some_and(Path::is_relative) {
        return wrong("TLS CA file", "must be an absolute path");
    }
    let wanted = match c.tls_mode.as_str() {
        "" => ca_file.is_some(),
        "disable" => false,
        "require" | "verify-ca" | "verify-full" => true,
        _ => {
            return wrong(
                "TLS mode",
                "must be disable, require, verify-ca or verify-full for Redis",
            );
        }
    };
    if wanted && c.way == Way::UnixSocket {
        return wrong("TLS mode", "must be empty for a unix socket");
    }
    Ok(wanted.then_some(Tls { ca_file }))
}

fn database(text: &str) -> Result<Option<u32>, DriverError> {
    match text.parse() {
        Ok(number) if text.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Some(number).filter(|n| *n != 0))
        }
        _ if text.is_empty() => Ok(None),
        _ => wrong(
            "database",
            "is not a number; a dump of Redis holds all databases, so leave it empty",
        ),
    }
}

fn place(c: &Connection) -> Result<Place, DriverError> {
    if c.way == Way::UnixSocket {
        let path = Path::new(if c.host.is_empty() { DEFAULT_DIR } else { &c.host });
        if !path.is_absolute() {
            return wrong("host", "must be the absolute path of the socket or of its directory");
        }
        return Ok(Place::Socket(path.to_owned()));
    }
    let port = match u16::try_from(c.port) {
        Ok(0) => DEFAULT_PORT,
        Ok(port) => port,
        Err(_) => return wrong("port", "is not between 1 and 65535"),
    };
    let host = if c.host.is_empty() { "localhost" } else { &c.host };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if bare.starts_with('/') {
        return wrong(
            "host",
            match c.way {
                Way::DockerExec => {
                    "is a path; a socket inside a container cannot be reached from here, so leave it empty"
                }
                _ => "is a path; for a unix socket choose that way in",
            },
        );
    }
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if !bare.chars().all(plain) {
        return wrong("host", "is neither a host name nor an address");
    }
    if c.way == Way::DockerExec {
        let itself = bare == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if !itself && tls(c)?.is_none() {
            return wrong(
                "host",
                "must be empty beside a container, whose address Docker is asked for",
            );
        }
        return Ok(Place::Container { inside: Inside::of(c)?, name: bare.to_owned(), port });
    }
    Ok(Place::Tcp { host: bare.to_owned(), port })
}

/// The socket itself, where a directory was named.
pub(super) fn socket_in(path: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.to_owned();
    }
    let found = SOCKETS.iter().map(|name| path.join(name)).find(|socket| socket.exists());
    found.unwrap_or_else(|| path.join(SOCKETS[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(host: &str) -> Connection {
        Connection { host: host.into(), ..Connection::default() }
    }

    fn at(c: &Connection) -> Place {
        Settings::new(c).unwrap().place
    }

    #[test]
    fn places() {
        let tcp = |host: &str, port| Place::Tcp { host: host.into(), port };
        assert_eq!(at(&settings("")), tcp("localhost", 6379));
        assert_eq!(at(&Connection { port: 7000, ..settings("[::1]") }), tcp("::1", 7000));
        for bad in ["a b", "/run/redis.sock", "a,b", "a/b", "a@b"] {
            assert!(Settings::new(&settings(bad)).is_err(), "{bad}");
        }
        assert!(Settings::new(&Connection { port: 65_536, ..settings("x") }).is_err());
        let socket = |host| Connection { way: Way::UnixSocket, ..settings(host) };
        assert_eq!(at(&socket("/srv/r.sock")), Place::Socket("/srv/r.sock".into()));
        assert_eq!(at(&socket("")), Place::Socket("/run/redis".into()));
        assert!(Settings::new(&socket("run/redis")).is_err());
    }

    #[test]
    fn a_container_needs_no_host() {
        let inside = |host: &str, tls_mode: &str| Connection {
            way: Way::DockerExec,
            container: "/cache".into(),
            tls_mode: tls_mode.into(),
            ..settings(host)
        };
        let place = |name: &str, port| Place::Container {
            inside: Inside::of(&inside("", "")).unwrap(),
            name: name.into(),
            port,
        };
        assert_eq!(at(&inside("", "")), place("localhost", 6379));
        assert_eq!(at(&Connection { port: 7000, ..inside("::1", "") }), place("::1", 7000));
        assert_eq!(at(&inside("cache.internal", "require")), place("cache.internal", 6379));
        for bad in ["cache", "10.0.0.1", "/run/redis.sock"] {
            let error = Settings::new(&inside(bad, "")).unwrap_err();
            assert!(error.to_string().contains("empty"), "{error}");
        }
        let odd = Connection { container: "--rm".into(), ..inside("", "") };
        assert!(Settings::new(&odd).unwrap_err().to_string().contains("container"));
    }

    #[test]
    fn the_socket_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(socket_in(dir.path()), dir.path().join("redis-server.sock"));
        std::fs::write(dir.path().join("valkey.sock"), "").unwrap();
        assert_eq!(socket_in(dir.path()), dir.path().join("valkey.sock"));
        let itself = dir.path().join("other");
        assert_eq!(socket_in(&itself), itself);
    }

    #[test]
    fn databases_are_numbers_and_do_not_limit() {
        let only = |text: &str| {
            Settings::new(&Connection { database: text.into(), ..settings("x") }).map(|s| s.only)
        };
        assert_eq!(only("").unwrap(), None);
        assert_eq!(only("0").unwrap(), None);
        assert_eq!(only("3").unwrap(), Some(3));
        for bad in ["shop", "+3", "-1", "3 ", "99999999999"] {
            assert!(only(bad).unwrap_err().to_string().contains("leave it empty"), "{bad}");
        }
    }

    #[test]
    fn tls_is_never_left_out_silently() {
        let with = |mode: &str, ca: &str, way| {
            let (tls_mode, tls_ca_file) = (mode.to_owned(), ca.to_owned());
            Settings::new(&Connection { tls_mode, tls_ca_file, way, ..settings("/x") })
                .map(|settings| settings.tls)
        };
        let tcp = |mode, ca| {
            Settings::new(&Connection { tls_mode: mode, tls_ca_file: ca, ..settings("x") })
                .map(|settings| settings.tls)
        };
        let ca_file = Some(PathBuf::from("/ca.pem"));
        for mode in ["require", "verify-ca", "verify-full"] {
            assert_eq!(tcp(mode.into(), String::new()).unwrap(), Some(Tls { ca_file: None }));
            assert!(with(mode, "", Way::UnixSocket).is_err(), "{mode}");
        }
        assert_eq!(tcp(String::new(), "/ca.pem".into()).unwrap(), Some(Tls { ca_file }));
        for plain in ["", "disable"] {
            assert_eq!(tcp(plain.into(), String::new()).unwrap(), None);
            assert_eq!(with(plain, "", Way::UnixSocket).unwrap(), None);
        }
        for bad in ["allow", "prefer", "x"] {
            assert!(tcp(bad.into(), String::new()).is_err(), "{bad}");
        }
        assert!(tcp("require".into(), "ca.pem".into()).is_err());
    }

    #[test]
    fn what_is_near() {
        for yes in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "100.64.0.1",
            "::1",
            "fd00::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(near(yes.parse().unwrap()), "{yes}");
        }
        for no in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!near(no.parse().unwrap()), "{no}");
        }
    }
}
