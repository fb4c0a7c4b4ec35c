//! How libpq is told where to connect: a connection string in which every value is quoted.
//!
//! `--dbname` takes a whole connection string, so a database called `host=evil` must not stand there bare.
//! In `dbname='host=evil'` it is a name: libpq takes the outer string apart once and no value of it again.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::drivers::DriverError;
use crate::model::{Connection, Way};

const DEFAULT_PORT: u16 = 5432;
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const SOCKET_PREFIX: &str = ".s.PGSQL.";
const CONNECT_TIMEOUT_SEC: u32 = 15;

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Name or address, and port.
    Tcp { host: String, port: u16 },
    /// The socket's directory and the number in its name.
    Socket { dir: PathBuf, port: u16 },
    /// Where the tools of the server's own container look by themselves: its socket.
    Default { port: Option<u16> },
}

/// What of a server is dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// One database.
    Database,
    /// All of them, with roles and tablespaces; `database` is only the one to log in to.
    All,
    /// Roles and tablespaces only; so here.
    Globals,
}

/// A target's connection, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conninfo {
    pub(super) place: Place,
    pub(super) database: String,
    /// Which part of the server is meant.
    pub(super) scope: Scope,
    user: String,
    ssl_mode: String,
    pub(super) ca_file: Option<PathBuf>,
}

fn wrong<T>(field: &'static str, problem: &str) -> Result<T, DriverError> {
    Err(DriverError::Setting { field, problem: problem.to_owned() })
}

impl Conninfo {
    /// Checks a target's connection.
    pub(super) fn new(c: &Connection) -> Result<Self, DriverError> {
        if !c.tls_mode.is_empty() && !SSL_MODES.contains(&c.tls_mode.as_str()) {
            return wrong(
                "TLS mode",
                "must be disable, allow, prefer, require, verify-ca or verify-full",
            );
        }
        let ca_file = (!c.tls_ca_file.is_empty()).then(|| PathBuf::from(&c.tls_ca_file));
        if ca_file.is_some() && c.way == Way::DockerExec {
            return wrong("TLS CA file", "cannot be used inside a container");
        }
        if ca_file.as_deref().is_some_and(Path::is_relative) {
            return wrong("TLS CA file", "must be an absolute path");
        }
        // Whoever gives a CA wants it to be used; libpq's own default would not.
        let ssl_mode = match (&ca_file, c.tls_mode.as_str()) {
            (Some(_), "") => "verify-full".to_owned(),
            (_, mode) => mode.to_owned(),
        };
        let user = if c.username.is_empty() { "postgres" } else { &c.username };
        let scope = match (c.globals_only, c.database.is_empty()) {
            (true, _) => Scope::Globals,
            (false, true) => Scope::All,
            (false, false) => Scope::Database,
        };
        let database = if c.database.is_empty() { "postgres" } else { &c.database };
        let (database, user) = (database.to_owned(), user.to_owned());
        Ok(Self { place: place(c)?, database, scope, user, ssl_mode, ca_file })
    }

    /// Whether the server has to show a certificate of a known CA before it is told anything.
    pub(super) fn verifies_server(&self) -> bool {
        self.ssl_mode.starts_with("verify-")
    }

    /// The database to log in to, for a tool that takes its name apart from the rest. It reads that as a connection
    /// string too.
    pub(super) fn login_database(&self) -> String {
        format!("dbname={}", quote(&self.database))
    }

    /// The string for `--dbname`. With `addresses` libpq connects to these and uses the name for TLS only.
    pub(super) fn render(&self, addresses: &[IpAddr], passfile: Option<&Path>) -> String {
        let mut pairs = vec![("dbname", self.database.clone()), ("user", self.user.clone())];
        match &self.place {
            Place::Tcp { host, port } => {
                // One host for each address; a single port serves all.
                pairs.push(("host", list(addresses.len().max(1), |_| host.clone())));
                if !addresses.is_empty() {
                    pairs.push(("hostaddr", list(addresses.len(), |i| addresses[i].to_string())));
                }
                pairs.push(("port", port.to_string()));
                if !self.ssl_mode.is_empty() {
                    pairs.push(("sslmode", self.ssl_mode.clone()));
                }
                if let Some(ca) = &self.ca_file {
                    pairs.push(("sslrootcert", ca.display().to_string()));
                }
            }
            Place::Socket { dir, port } => {
                pairs.push(("host", dir.display().to_string()));
                pairs.push(("port", port.to_string()));
            }
            Place::Default { port } => pairs.extend(port.map(|port| ("port", port.to_string()))),
        }
        if let Some(passfile) = passfile {
            pairs.push(("passfile", passfile.display().to_string()));
        }
        pairs.push(("connect_timeout", CONNECT_TIMEOUT_SEC.to_string()));
        pairs.push(("application_name", "backupy".to_owned()));
        let quoted: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={}", quote(v))).collect();
        quoted.join(" ")
    }
}

fn list(length: usize, item: impl Fn(usize) -> String) -> String {
    (0..length).map(item).collect::<Vec<_>>().join(",")
}

/// Quotes a value as libpq reads it: in single quotes, with `\'` and `\\`.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn place(c: &Connection) -> Result<Place, DriverError> {
    let port = match u16::try_from(c.port) {
        Ok(0) => DEFAULT_PORT,
        Ok(port) => port,
        Err(_) => return wrong("port", "is not between 1 and 65535"),
    };
    match c.way {
        Way::UnixSocket => socket(&c.host, c.port, port),
        Way::DockerExec if c.host.is_empty() => {
            Ok(Place::Default { port: (c.port != 0).then_some(port) })
        }
        Way::DockerExec if c.host.starts_with('/') => socket(&c.host, c.port, port),
        Way::DockerExec | Way::Tcp | Way::Unknown(_) => tcp(&c.host, port),
    }
}

fn tcp(host: &str, port: u16) -> Result<Place, DriverError> {
    let host = if host.is_empty() { "localhost" } else { host };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if bare.starts_with('/') {
        return wrong("host", "is a path; for a unix socket choose that way in");
    }
    // libpq would read a list, an abstract socket or more of a connection string into these.
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if !bare.chars().all(plain) {
        return wrong("host", "is neither a host name nor an address");
    }
    Ok(Place::Tcp { host: bare.to_owned(), port })
}

/// The directory, or the path of the socket itself, whose name then holds the port.
fn socket(host: &str, given: u32, port: u16) -> Result<Place, DriverError> {
    let path = Path::new(if host.is_empty() { "/var/run/postgresql" } else { host });
    if !path.is_absolute() {
        return wrong("host", "must be the absolute path of the socket's directory");
    }
    // A comma would make it a list of directories.
    if host.contains(',') {
        return wrong("host", "must not contain a comma");
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (Some(number), Some(dir)) = (name.strip_prefix(SOCKET_PREFIX), path.parent()) else {
        return Ok(Place::Socket { dir: path.to_owned(), port });
    };
    match number.parse() {
        Ok(own) if given == 0 || own == port => {
            Ok(Place::Socket { dir: dir.to_owned(), port: own })
        }
        Ok(_) => wrong("port", "differs from the one in the socket's name"),
        Err(_) => wrong("host", "is not the path of a PostgreSQL socket"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_target(host: &str, database: &str) -> Connection {
        Connection { host: host.into(), database: database.into(), ..Connection::default() }
    }

    fn rendered(c: &Connection) -> String {
        Conninfo::new(c).unwrap().render(&[], None)
    }

    #[test]
    fn every_value_is_quoted() {
        let mut c = tcp_target("db.internal", r"host=evil it's \odd");
        c.username = "o'brien\\".into();
        assert_eq!(
            rendered(&c),
            r"dbname='host=evil it\'s \\odd' user='o\'brien\\' host='db.internal' port='5432' connect_timeout='15' application_name='backupy'"
        );
    }

    #[test]
    fn pinned_addresses_keep_the_name() {
        let info = Conninfo::new(&tcp_target("db", "app")).unwrap();
        let found = [IpAddr::from([10, 0, 0, 1]), "fd00::1".parse().unwrap()];
        let text = info.render(&found, Some(Path::new("/state/scratch/driver-passfile-1-0")));
        assert!(text.contains("host='db,db' hostaddr='10.0.0.1,fd00::1' port='5432'"), "{text}");
        assert!(text.contains("passfile='/state/scratch/driver-passfile-1-0'"), "{text}");
    }

    #[test]
    fn hosts_that_are_more_than_a_host() {
        for bad in ["a,b", "/run/postgresql", "@abstract", "a b", "a'b", "a=b", "a\\b", "x/../y"] {
            assert!(Conninfo::new(&tcp_target(bad, "app")).is_err(), "{bad}");
        }
        for good in ["", "db", "10.0.0.1", "::1", "[::1]", "fe80::1%eth0", "db_1.example"] {
            Conninfo::new(&tcp_target(good, "app")).unwrap();
        }
    }

    #[test]
    fn sockets() {
        let at = |host: &str, port: u32| {
            let way = Way::UnixSocket;
            place(&Connection { host: host.into(), port, way, ..Connection::default() })
        };
        let place = |dir: &str, port| Place::Socket { dir: dir.into(), port };
        assert_eq!(at("/run/pg", 0).unwrap(), place("/run/pg", 5432));
        assert_eq!(at("/run/pg/.s.PGSQL.5433", 0).unwrap(), place("/run/pg", 5433));
        assert_eq!(at("", 0).unwrap(), place("/var/run/postgresql", 5432));
        for (host, port) in
            [("run/pg", 0), ("@x", 0), ("/a,/b", 0), ("/a/.s.PGSQL.1", 2), ("/a/.s.PGSQL.x", 0)]
        {
            assert!(at(host, port).is_err(), "{host}");
        }
    }

    #[test]
    fn inside_a_container() {
        let at = |host: &str, port: u32| {
            let way = Way::DockerExec;
            place(&Connection { host: host.into(), port, way, ..Connection::default() })
        };
        assert_eq!(at("", 0).unwrap(), Place::Default { port: None });
        assert_eq!(at("", 5433).unwrap(), Place::Default { port: Some(5433) });
        let tcp = Place::Tcp { host: "localhost".into(), port: 5432 };
        assert_eq!(at("localhost", 0).unwrap(), tcp);
        let socket = Place::Socket { dir: "/tmp".into(), port: 5432 };
        assert_eq!(at("/tmp", 0).unwrap(), socket);
        let mut c = Connection { way: Way::DockerExec, ..tcp_target("", "app") };
        let expected = "dbname='app' user='postgres' passfile='/proc/self/fd/3' connect_timeout='15' application_name='backupy'";
        let passfile = Some(Path::new("/proc/self/fd/3"));
        assert_eq!(Conninfo::new(&c).unwrap().render(&[], passfile), expected);
        c.tls_ca_file = "/etc/ca.pem".into();
        assert!(Conninfo::new(&c).is_err());
    }

    #[test]
    fn tls_settings() {
        let mut c = tcp_target("db", "app");
        c.tls_mode = "sometimes".into();
        assert!(Conninfo::new(&c).is_err());
        c.tls_mode = String::new();
        c.tls_ca_file = "/etc/ca.pem".into();
        assert!(rendered(&c).contains("sslmode='verify-full' sslrootcert='/etc/ca.pem'"));
        assert!(Conninfo::new(&c).unwrap().verifies_server());
        c.tls_mode = "require".into();
        assert!(rendered(&c).contains("sslmode='require'"));
        c.tls_ca_file = "ca.pem".into();
        assert!(Conninfo::new(&c).is_err());
        c.tls_ca_file = String::new();
        c.port = 65_536;
        assert!(Conninfo::new(&c).is_err());
    }
}
