//! How the tools are told where the server is and how to log in: everything in an option file.
//!
//! Their TLS options differ, and MariaDB's tools cannot be told to insist on TLS without also checking the
//! server's name: `verify-ca` is `verify-full` there, and for `require` the server is asked after the login
//! (see `ask`).
//!
//! From a control plane elsewhere the tool gets addresses that were looked up and judged here. Whoever names
//! the host could otherwise read the host's own secrets with a server of their own, by asking for the
//! password in the clear. MariaDB's tools are kept from that by a plugin directory with nothing in it; MySQL's
//! have no such switch, so with them a host on a public address is refused. Neither is needed where the server
//! has to prove itself by a certificate of a CA that this host has in a file (anybody has one of a public CA, for a
//! name of their own), or where the password is the control plane's own.
//!
//! Inside a container an empty host means the socket, which is looked for at its usual places there (the option file
//! stands for those of the image, which would name it). From a control plane elsewhere a host in there is `localhost`
//! or an address: other names nobody here could judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::super::site::{SecretFile, Site};
use super::super::{Context, DriverError, address, cafile, secrets};
use super::kit::Family;
use super::optionfile::Options;
use crate::config::HostPolicy;
use crate::model::{Connection, Trust, Way};
use crate::secret::Secret;

const DEFAULT_PORT: u16 = 3306;
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
/// Where distributions put the socket.
const SOCKETS: [&str; 4] = [
    "/run/mysqld/mysqld.sock",
    "/var/run/mysqld/mysqld.sock",
    "/var/lib/mysql/mysql.sock",
    "/tmp/mysql.sock",
];
/// … and images that differ from them.
const SOCKETS_OF_IMAGES: [&str; 2] =
    ["/opt/bitnami/mariadb/tmp/mysql.sock", "/opt/bitnami/mysql/tmp/mysql.sock"];
const SOCKET_NAMES: [&str; 2] = ["mysqld.sock", "mysql.sock"];

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Name or address, and port.
    Tcp { host: String, port: u16 },
    /// The socket or its directory; `None` = where it usually is.
    Socket { path: Option<PathBuf> },
}

/// One way to it that a tool can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    Name(String, u16),
    Address(IpAddr, u16),
    Socket(PathBuf),
    /// The socket that the tool knows.
    OwnSocket,
}

/// What a target says, checked.
#[derive(Debug, Clone)]
pub(super) struct Login {
    /// Where the tools run.
    pub(super) site: Site,
    pub(super) place: Place,
    /// Empty = all of them.
    pub(super) database: String,
    user: String,
    tls_mode: String,
    ca_file: Option<PathBuf>,
    password_ref: Secret,
}

/// What one run of a tool needs; the file lives as long as this.
pub(super) struct Credentials {
    pub(super) file: SecretFile,
    pub(super) password: Secret,
}

fn wrong<T>(field: &'static str, problem: &str) -> Result<T, DriverError> {
    Err(DriverError::Setting { field, problem: problem.to_owned() })
}

impl Login {
    /// Checks a target's connection.
    pub(super) fn new(c: &Connection) -> Result<Self, DriverError> {
        if !c.tls_mode.is_empty() && !SSL_MODES.contains(&c.tls_mode.as_str()) {
            return wrong(
                "TLS mode",
                "must be disable, allow, prefer, require, verify-ca or verify-full",
            );
        }
        let ca_file = (!c.tls_ca_file.is_empty()).then(|| PathBuf::from(&c.tls_ca_file));
        if ca_file.as_deref().is_some_and(Path::is_relative) {
            return wrong("TLS CA file", "must be an absolute path");
        }
        // Whoever gives a CA wants it to be used.
        let tls_mode = match (&ca_file, c.tls_mode.as_str()) {
            (Some(_), "") => "verify-full".to_owned(),
            (_, mode) => mode.to_owned(),
        };
        let user = if c.username.is_empty() { "root" } else { &c.username };
        Ok(Self {
            site: Site::of(c)?,
            place: place(c)?,
            database: c.database.clone(),
            user: user.to_owned(),
            tls_mode,
            ca_file,
            password_ref: c.password_ref.clone(),
        })
    }

    /// The same login, into no database.
    pub(super) fn without_database(&self) -> Self {
        Self { database: String::new(), ..self.clone() }
    }

    fn verifies_server(&self) -> bool {
        self.tls_mode.starts_with("verify-") && matches!(self.place, Place::Tcp { .. })
    }

    /// Whether somebody has to see that the connection is encrypted, since the tool does not insist.
    pub(super) fn must_see_tls(&self, family: Family) -> bool {
        self.tls_mode == "require"
            && family == Family::MariaDb
            && matches!(self.place, Place::Tcp { .. })
    }

    /// The ways to the server, to be tried in this order.
    pub(super) fn servers(&self, cx: &Context<'_>) -> Result<Vec<Server>, DriverError> {
        let (host, port) = match &self.place {
            Place::Socket { path } => return Ok(vec![self.socket(path.as_deref(), cx)?]),
            Place::Tcp { host, port } => (host, *port),
        };
        if cx.policy.trust == Trust::Local {
            return Ok(vec![Server::Name(host.clone(), port)]);
        }
        let addresses = match &self.site {
            Site::Host => address::allowed(host, port, cx.cancel)?,
            Site::Container(_) => match address::allowed_inside(host)? {
                // `localhost`, which is these everywhere.
                none if none.is_empty() => {
                    vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
                }
                addresses => addresses,
            },
        };
        if self.verifies_server() {
            return Ok(vec![Server::Name(host.clone(), port)]);
        }
        Ok(addresses.into_iter().map(|address| Server::Address(address, port)).collect())
    }

    fn socket(&self, path: Option<&Path>, cx: &Context<'_>) -> Result<Server, DriverError> {
        let inside = match &self.site {
            Site::Host => return Ok(Server::Socket(socket(path))),
            Site::Container(inside) => inside,
        };
        let places: Vec<PathBuf> = match path {
            Some(path) => {
                let within = SOCKET_NAMES.iter().map(|name| path.join(name));
                std::iter::once(path.to_owned()).chain(within).collect()
            }
            None => SOCKETS.iter().chain(&SOCKETS_OF_IMAGES).map(PathBuf::from).collect(),
        };
        let names: Vec<&str> = places.iter().filter_map(|place| place.to_str()).collect();
        let found = inside.find(&names, cx)?.into_iter().next();
        Ok(match (found, path) {
            (Some(found), _) => Server::Socket(found),
            // What is not there is left for the tool to say.
            (None, Some(path)) => Server::Socket(path.to_owned()),
            (None, None) => Server::OwnSocket,
        })
    }

    /// The option file for one of them.
    pub(super) fn credentials(
        &self,
        family: Family,
        server: &Server,
        cx: &Context<'_>,
    ) -> Result<Credentials, DriverError> {
        let password = secrets::resolve(&self.password_ref, cx.policy)?;
        let mut options = self.options(family, server, &password, cx.policy)?;
        if self.may_be_a_trap(family, server, cx.policy)? {
            let none = cx.work_dir.join("no-plugins");
            options.set("work directory", "plugin-dir", &none.display().to_string())?;
        }
        Ok(Credentials {
            file: self.site.secret_file("options", &options.content(), cx)?,
            password,
        })
    }

    fn options(
        &self,
        family: Family,
        server: &Server,
        password: &Secret,
        policy: &HostPolicy,
    ) -> Result<Options, DriverError> {
        let mut options = Options::new();
        options.set("user name", "user", &self.user)?;
        options.set("password", "password", password.expose())?;
        match server {
            // `localhost` alone would mean the socket.
            Server::Name(host, port) => {
                options.set("host", "host", host)?;
                options.add(&format!("port={port}\nprotocol=tcp"));
            }
            Server::Address(address, port) => {
                options.add(&format!("host=\"{address}\"\nport={port}\nprotocol=tcp"));
            }
            Server::Socket(path) => {
                options.set("host", "socket", &path.display().to_string())?;
                options.add("protocol=socket");
                return Ok(options);
            }
            Server::OwnSocket => {
                options.add("protocol=socket");
                return Ok(options);
            }
        }
        if let Some(line) = tls_option(family, &self.tls_mode) {
            options.add(line);
        }
        if let Some(ca) = &self.ca_file {
            let ca = cafile::admit(ca, policy)?;
            options.set("TLS CA file", "ssl-ca", &ca.display().to_string())?;
        }
        Ok(options)
    }

    /// Whether the server could be a stranger's, put there for a secret of this host.
    fn may_be_a_trap(
        &self,
        family: Family,
        server: &Server,
        policy: &HostPolicy,
    ) -> Result<bool, DriverError> {
        let reference = self.password_ref.expose();
        let ours = reference.starts_with("env:") || reference.starts_with("file:");
        let proven = self.verifies_server() && self.ca_file.is_some();
        if policy.trust == Trust::Local || !ours || proven {
            return Ok(false);
        }
        let near = match server {
            Server::Socket(_) | Server::OwnSocket => return Ok(false),
            Server::Address(address, _) if address.to_canonical().is_loopback() => {
                return Ok(false);
            }
            Server::Address(address, _) => is_private(address.to_canonical()),
            Server::Name(..) => false,
        };
        match family {
            Family::MariaDb => Ok(true),
            Family::MySql if near => Ok(false),
            Family::MySql => Err(DriverError::NotAllowed {
                what: "a database host on a public address together with a password of this host, which MySQL's own tools \
                       might send to it in the clear (install MariaDB's client tools)"
                    .to_owned(),
            }),
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

fn tls_option(family: Family, mode: &str) -> Option<&'static str> {
    match (family, mode) {
        (Family::MySql, "disable") => Some("ssl-mode=DISABLED"),
        (Family::MySql, "allow" | "prefer") => Some("ssl-mode=PREFERRED"),
        (Family::MySql, "require") => Some("ssl-mode=REQUIRED"),
        (Family::MySql, "verify-ca") => Some("ssl-mode=VERIFY_CA"),
        (Family::MySql, "verify-full") => Some("ssl-mode=VERIFY_IDENTITY"),
        (Family::MariaDb, "disable") => Some("ssl=0"),
        (Family::MariaDb, "allow" | "prefer" | "require") => {
            Some("ssl=1\nssl-verify-server-cert=0")
        }
        (Family::MariaDb, "verify-ca" | "verify-full") => Some("ssl=1\nssl-verify-server-cert=1"),
        _ => None,
    }
}

fn place(c: &Connection) -> Result<Place, DriverError> {
    let port = match u16::try_from(c.port) {
        Ok(0) => DEFAULT_PORT,
        Ok(port) => port,
        Err(_) => return wrong("port", "is not between 1 and 65535"),
    };
    if c.way == Way::UnixSocket {
        let path = (!c.host.is_empty()).then(|| PathBuf::from(&c.host));
        if path.as_deref().is_some_and(Path::is_relative) {
            return wrong("host", "must be the absolute path of the socket");
        }
        return Ok(Place::Socket { path });
    }
    if c.way == Way::DockerExec && (c.host.is_empty() || c.host.starts_with('/')) {
        let path = (!c.host.is_empty()).then(|| PathBuf::from(&c.host));
        return Ok(Place::Socket { path });
    }
    let host = if c.host.is_empty() { "localhost" } else { &c.host };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if bare.starts_with('/') {
        return wrong("host", "is a path; for a unix socket choose that way in");
    }
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if !bare.chars().all(plain) {
        return wrong("host", "is neither a host name nor an address");
    }
    Ok(Place::Tcp { host: bare.to_owned(), port })
}

/// The socket itself; what is not there is left for the tool to say.
fn socket(path: Option<&Path>) -> PathBuf {
    let Some(path) = path else {
        let there = SOCKETS.iter().map(PathBuf::from).find(|path| path.exists());
        return there.unwrap_or_else(|| PathBuf::from(SOCKETS[0]));
    };
    if !path.is_dir() {
        return path.to_owned();
    }
    let there = SOCKET_NAMES.iter().map(|name| path.join(name)).find(|path| path.exists());
    there.unwrap_or_else(|| path.join(SOCKET_NAMES[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(trust: Trust) -> HostPolicy {
        HostPolicy::new(trust)
    }

    fn tcp(host: &str) -> Connection {
        Connection { host: host.into(), username: "u \"1\"".into(), ..Connection::default() }
    }

    fn lines(c: &Connection, family: Family, server: &Server) -> String {
        let login = Login::new(c).unwrap();
        let password = Secret::new("p");
        let options = login.options(family, server, &password, &policy(Trust::Local)).unwrap();
        options.text().to_owned()
    }

    #[test]
    fn the_option_file() {
        let c = Connection { tls_mode: "require".into(), ..tcp("db") };
        let name = Server::Name("db".into(), 3306);
        let text = lines(&c, Family::MySql, &name);
        assert_eq!(
            text,
            "[client]\nuser=\"u \\\"1\\\"\"\npassword=\"p\"\nhost=\"db\"\nport=3306\nprotocol=tcp\nssl-mode=REQUIRED\n"
        );
        let text = lines(&c, Family::MariaDb, &Server::Address([10, 0, 0, 1].into(), 1));
        assert!(text.ends_with(
            "host=\"10.0.0.1\"\nport=1\nprotocol=tcp\nssl=1\nssl-verify-server-cert=0\n"
        ));
        let text = lines(&c, Family::MariaDb, &Server::Socket("/run/my sql.sock".into()));
        assert!(text.ends_with("socket=\"/run/my sql.sock\"\nprotocol=socket\n"), "{text}");
    }

    #[test]
    fn hosts_that_are_more_than_a_host() {
        for bad in ["a,b", "/run/x.sock", "a b", "a'b", "a=b", "a\\b", "x/../y", "a#b"] {
            assert!(Login::new(&tcp(bad)).is_err(), "{bad}");
        }
        for good in ["", "db", "10.0.0.1", "::1", "[::1]", "db_1.example"] {
            Login::new(&tcp(good)).unwrap();
        }
        assert!(Login::new(&Connection { port: 65_536, ..tcp("db") }).is_err());
        let relative = Connection { way: Way::UnixSocket, ..tcp("run/mysqld") };
        assert!(Login::new(&relative).is_err());
        let inside =
            |host| Connection { way: Way::DockerExec, container: "db".into(), ..tcp(host) };
        let place = |c: &Connection| Login::new(c).unwrap().place;
        assert_eq!(place(&inside("")), Place::Socket { path: None });
        assert_eq!(place(&inside("/x")), Place::Socket { path: Some("/x".into()) });
        let localhost = Place::Tcp { host: "localhost".into(), port: 3306 };
        assert_eq!(place(&inside("localhost")), localhost);
        let ca = Connection { tls_ca_file: "/etc/ca.pem".into(), ..inside("localhost") };
        assert!(Login::new(&ca).unwrap_err().to_string().contains("inside a container"));
    }

    #[test]
    fn tls_settings() {
        let with = |mode: &str, ca: &str| {
            Login::new(&Connection { tls_mode: mode.into(), tls_ca_file: ca.into(), ..tcp("db") })
        };
        assert!(with("sometimes", "").is_err() && with("", "ca.pem").is_err());
        assert!(with("", "/etc/ca.pem").unwrap().verifies_server());
        assert!(!with("require", "").unwrap().verifies_server());
        assert!(with("require", "").unwrap().must_see_tls(Family::MariaDb));
        assert!(!with("require", "").unwrap().must_see_tls(Family::MySql));
        for family in [Family::MySql, Family::MariaDb] {
            assert_eq!(tls_option(family, ""), None);
            assert!(SSL_MODES.iter().all(|mode| tls_option(family, mode).is_some()));
        }
    }

    #[test]
    fn secrets_of_this_host_are_not_shown_to_strangers() {
        let trap = |reference: &str, family, address: [u8; 4], trust| {
            let c = Connection { password_ref: Secret::new(reference), ..tcp("db") };
            let server = Server::Address(address.into(), 3306);
            Login::new(&c).unwrap().may_be_a_trap(family, &server, &policy(trust))
        };
        let ours = "env:BACKUPY_SECRET_DB";
        let (far, near, own) = ([8, 8, 8, 8], [10, 0, 0, 1], [127, 0, 0, 1]);
        for address in [far, near] {
            assert!(trap(ours, Family::MariaDb, address, Trust::Remote).unwrap());
        }
        let error = trap(ours, Family::MySql, far, Trust::Remote).unwrap_err();
        assert!(matches!(error, DriverError::NotAllowed { .. }) && !error.retry(), "{error}");
        for none in [
            trap(ours, Family::MySql, near, Trust::Remote),
            trap(ours, Family::MySql, own, Trust::Remote),
            trap(ours, Family::MariaDb, own, Trust::Remote),
            trap(ours, Family::MySql, far, Trust::Local),
            trap("literal", Family::MySql, far, Trust::Remote),
            trap("literal", Family::MariaDb, far, Trust::Remote),
        ] {
            assert!(!none.unwrap());
        }
    }

    #[test]
    fn sockets() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(socket(Some(dir.path())), at("mysqld.sock"));
        std::fs::write(at("mysql.sock"), "").unwrap();
        assert_eq!(socket(Some(dir.path())), at("mysql.sock"));
        assert_eq!(socket(Some(&at("other.sock"))), at("other.sock"));
        assert!(socket(None).is_absolute());
    }
}
