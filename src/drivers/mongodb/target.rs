//! Where a target's MongoDB is: a host and a port, or a URI that was given as the host. Pure.
//!
//! A host and a port become options of the tool. Of a URI everything is in the configuration file, so that the
//! target's own user, password and database have to be put into it: the tool takes no `--username` or `--db` beside it.
//! - **authSource** of a host: `admin`. Of a URI: its own option, else its database as the URI standard has it, else
//!   `admin`. A login by another mechanism than a password's keeps its own rules.
//! - **From a control plane elsewhere** a URI has only the options of [`REMOTE_OPTIONS`]: others name files of this
//!   host, send the password in the clear or use the host's own identity. `mongodb+srv://` is allowed, although nobody
//!   can know beforehand which hosts the name server will give the tool: it may not switch TLS off, so that what answers
//!   there has to prove the name by a certificate before it is told anything.

use std::net::IpAddr;

use super::super::DriverError;
use super::uri::Uri;
use crate::model::{Connection, Trust, Way};
use crate::secret::Secret;

pub(super) const DEFAULT_PORT: u16 = 27017;

/// Longest name of a database.
const MAX_DATABASE_BYTES: usize = 63;

/// URI options that say nothing about this host.
const REMOTE_OPTIONS: [&str; 17] = [
    "appname",
    "authsource",
    "connecttimeoutms",
    "directconnection",
    "heartbeatfrequencyms",
    "localthresholdms",
    "maxstalenessseconds",
    "readpreference",
    "readpreferencetags",
    "replicaset",
    "retryreads",
    "retrywrites",
    "serverselectiontimeoutms",
    "sockettimeoutms",
    "ssl",
    "tls",
    "w",
];

/// How the server proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tls {
    Off,
    /// Encrypted, whoever it is.
    Any,
    /// A certificate of a known CA.
    Chain,
    /// … for this host.
    Full,
}

/// The two ways in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Host { host: String, port: u16, tls: Tls, ca_file: String },
    Uri(Uri),
}

/// A target's connection, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Where {
    pub(super) place: Place,
    user: String,
    /// What is dumped; empty = everything.
    pub(super) database: String,
}

fn wrong<T>(field: &'static str, problem: &str) -> Result<T, DriverError> {
    Err(DriverError::Setting { field, problem: problem.to_owned() })
}

impl Where {
    /// Checks a target's connection for a given author.
    pub(super) fn new(c: &Connection, trust: Trust) -> Result<Self, DriverError> {
        if c.way == Way::UnixSocket {
            return Err(DriverError::Unsupported { what: "a unix socket for MongoDB".to_owned() });
        }
        check_database(&c.database)?;
        if Uri::is_one(&c.host) {
            return Self::from_uri(c, trust);
        }
        let host = if c.host.is_empty() { "localhost" } else { &c.host };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.parse::<IpAddr>().is_err() && !host.chars().all(plain) {
            return wrong("host", "is neither a host name, an address nor a mongodb:// URI");
        }
        let port = match u16::try_from(c.port) {
            Ok(0) => DEFAULT_PORT,
            Ok(port) => port,
            Err(_) => return wrong("port", "is not between 1 and 65535"),
        };
        let place = Place::Host {
            host: host.to_owned(),
            port,
            tls: tls(c)?,
            ca_file: c.tls_ca_file.clone(),
        };
        Ok(Self { place, user: c.username.clone(), database: c.database.clone() })
    }

    fn from_uri(c: &Connection, trust: Trust) -> Result<Self, DriverError> {
        let uri = Uri::parse(&c.host).or_else(|problem| wrong("host", problem))?;
        check_database(&uri.database)?;
        if c.port != 0 {
            return wrong("port", "stands beside a URI, which has its own");
        }
        if !c.tls_mode.is_empty() || !c.tls_ca_file.is_empty() {
            return wrong("TLS mode", "stands beside a URI, which has options of its own for it");
        }
        if !c.username.is_empty() && !uri.user.is_empty() && c.username != uri.user {
            return wrong("username", "differs from the one in the URI");
        }
        if !c.password_ref.is_empty() && !uri.password.is_empty() {
            return wrong("password", "is given twice: here and in the URI");
        }
        if trust == Trust::Remote {
            check_remote(&uri)?;
            if uri.srv && c.way == Way::DockerExec {
                let what = "a mongodb+srv:// URI inside a container".to_owned();
                return Err(DriverError::NotAllowed { what });
            }
        }
        let user = if c.username.is_empty() { &uri.user } else { &c.username };
        let database = if c.database.is_empty() { &uri.database } else { &c.database };
        let (user, database) = (user.clone(), database.clone());
        Ok(Self { place: Place::Uri(uri), user, database })
    }

    /// The user; empty where nobody logs in.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// The password that came with the URI; empty if there was none.
    pub(super) fn own_password(&self) -> Secret {
        match &self.place {
            Place::Uri(uri) => uri.password.clone(),
            Place::Host { .. } => Secret::default(),
        }
    }

    /// Whether a user without a password is a mistake: the tool would ask for it.
    pub(super) fn needs_password(&self) -> bool {
        let mechanism = match &self.place {
            Place::Uri(uri) => uri.option("authMechanism").unwrap_or_default(),
            Place::Host { .. } => "",
        };
        !self.user.is_empty() && (mechanism.is_empty() || mechanism.starts_with("SCRAM-"))
    }

    /// Every host that the tool is told, with its port; none where a name server tells them.
    pub(super) fn hosts(&self) -> Vec<(&str, u16)> {
        match &self.place {
            Place::Host { host, port, .. } => vec![(host, *port)],
            Place::Uri(uri) if uri.srv => Vec::new(),
            Place::Uri(uri) => uri
                .hosts
                .iter()
                .map(|(host, port)| (host.as_str(), port.unwrap_or(DEFAULT_PORT)))
                .collect(),
        }
    }

    /// The URI for the configuration file, complete; `database` is what the tool shall take, not who knows the user.
    pub(super) fn uri(&self, uri: &Uri, password: &Secret, database: &str) -> Secret {
        let mut options = uri.options.clone();
        let own = ["authSource", "authMechanism"].iter().any(|name| uri.option(name).is_some());
        if !self.user.is_empty() && !own {
            let source = if uri.database.is_empty() { "admin" } else { &uri.database };
            let mut encoded = String::new();
            super::uri::encode(&mut encoded, source);
            options.push(("authSource".to_owned(), encoded));
        }
        Uri {
            user: self.user.clone(),
            password: password.clone(),
            database: database.to_owned(),
            options,
            ..uri.clone()
        }
        .render()
    }
}

/// A single address as a URI: only there an IPv6 address with a port is not ambiguous.
pub(super) fn address_uri(address: IpAddr, port: u16) -> Uri {
    Uri {
        srv: false,
        user: String::new(),
        password: Secret::default(),
        hosts: vec![(address.to_string(), Some(port))],
        database: String::new(),
        options: vec![("directConnection".to_owned(), "true".to_owned())],
    }
}

/// Whether a text can be the name of a database; empty is all of them.
pub(super) fn check_database(name: &str) -> Result<(), DriverError> {
    if name.len() > MAX_DATABASE_BYTES || name.contains(|c| "/\\. \"$*<>:|?".contains(c)) {
        return wrong("database", "is not a name that a MongoDB database can have");
    }
    Ok(())
}

fn check_remote(uri: &Uri) -> Result<(), DriverError> {
    let not_allowed = |what: &str| Err(DriverError::NotAllowed { what: what.to_owned() });
    for (name, value) in &uri.options {
        let name = name.to_ascii_lowercase();
        if name == "authmechanism" && ["SCRAM-SHA-1", "SCRAM-SHA-256"].contains(&value.as_str()) {
            continue;
        }
        if !REMOTE_OPTIONS.contains(&name.as_str()) {
            return not_allowed("an option of a MongoDB URI beyond the usual ones");
        }
        if uri.srv && ["tls", "ssl"].contains(&name.as_str()) && value != "true" {
            return not_allowed("a mongodb+srv:// URI without TLS");
        }
    }
    Ok(())
}

fn tls(c: &Connection) -> Result<Tls, DriverError> {
    if !c.tls_ca_file.is_empty() && !c.tls_ca_file.starts_with('/') {
        return wrong("TLS CA file", "must be an absolute path");
    }
    match c.tls_mode.as_str() {
        // Whoever gives a CA wants it to be used.
        "" if !c.tls_ca_file.is_empty() => Ok(Tls::Full),
        "" | "disable" => Ok(Tls::Off),
        "require" => Ok(Tls::Any),
        "verify-ca" => Ok(Tls::Chain),
        "verify-full" => Ok(Tls::Full),
        _ => wrong("TLS mode", "must be disable, require, verify-ca or verify-full for MongoDB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(host: &str) -> Connection {
        Connection { host: host.into(), ..Connection::default() }
    }

    fn local(c: &Connection) -> Result<Where, DriverError> {
        Where::new(c, Trust::Local)
    }

    fn rendered(c: &Connection, password: &str) -> String {
        let target = local(c).unwrap();
        let Place::Uri(uri) = &target.place else { panic!("a URI") };
        target.uri(uri, &Secret::new(password), &target.database).expose().to_owned()
    }

    #[test]
    fn hosts_that_are_more_than_a_host() {
        for bad in
            ["a,b", "a b", "rs0/a", "/tmp/mongodb-27017.sock", "a:1", "a@b", "http://a/", "h?x"]
        {
            assert!(local(&connection(bad)).is_err(), "{bad}");
        }
        for good in ["", "db", "10.0.0.1", "::1", "[::1]", "db_1.example"] {
            assert_eq!(local(&connection(good)).unwrap().hosts()[0].1, 27017, "{good}");
        }
        assert!(local(&Connection { port: 65_536, ..connection("db") }).is_err());
    }

    #[test]
    fn names_of_databases() {
        for bad in ["a.b", "a/b", "a b", "$x", "a*", &"x".repeat(64), "a?b"] {
            let c = Connection { database: bad.into(), ..connection("db") };
            assert!(local(&c).is_err(), "{bad}");
            assert!(
                local(&connection(&format!(
                    "mongodb://h/{}",
                    bad.replace('?', "%3F").replace('/', "%2F")
                )))
                .is_err(),
                "{bad}"
            );
        }
        check_database("größe-1").unwrap();
    }

    #[test]
    fn where_the_user_is_known() {
        let source = |text: &str, database: &str| {
            let c = Connection { database: database.into(), ..connection(text) };
            rendered(&c, "p")
        };
        assert_eq!(source("mongodb://u@h", ""), "mongodb://u:p@h/?authSource=admin");
        assert_eq!(source("mongodb://u@h", "app"), "mongodb://u:p@h/app?authSource=admin");
        assert_eq!(source("mongodb://u@h/own", ""), "mongodb://u:p@h/own?authSource=own");
        assert_eq!(source("mongodb://u@h/own", "app"), "mongodb://u:p@h/app?authSource=own");
        assert_eq!(
            source("mongodb://u@h/own?authSource=x", "app"),
            "mongodb://u:p@h/app?authSource=x"
        );
        assert_eq!(source("mongodb://h/own", ""), "mongodb://h/own");
        let aws = "mongodb://u@h/?authMechanism=MONGODB-AWS";
        assert_eq!(source(aws, ""), "mongodb://u:p@h/?authMechanism=MONGODB-AWS");
    }

    #[test]
    fn the_targets_own_login_goes_into_the_uri() {
        let c =
            Connection { username: "o'b:@/".into(), ..connection("mongodb+srv://c.example.net/") };
        assert_eq!(
            rendered(&c, "p/s:@%"),
            "mongodb+srv://o%27b%3A%40%2F:p%2Fs%3A%40%25@c.example.net/?authSource=admin"
        );
        let twice = Connection { password_ref: Secret::new("x"), ..connection("mongodb://u:p@h/") };
        assert!(local(&twice).is_err());
        let other = Connection { username: "v".into(), ..connection("mongodb://u:p@h/") };
        assert!(local(&other).is_err());
        assert!(local(&Connection { port: 1, ..connection("mongodb://h/") }).is_err());
        assert!(
            local(&Connection { tls_mode: "require".into(), ..connection("mongodb://h/") })
                .is_err()
        );
    }

    #[test]
    fn from_elsewhere_a_uri_says_nothing_about_this_host() {
        for bad in [
            "mongodb://h/?tlsCAFile=/etc/shadow",
            "mongodb://h/?tlsCertificateKeyFile=/etc/key",
            "mongodb://h/?authMechanism=PLAIN",
            "mongodb://h/?authMechanism=MONGODB-AWS",
            "mongodb://h/?authMechanism=GSSAPI",
            "mongodb://h/?tlsInsecure=true",
            "mongodb://h/?proxyHost=x",
            "mongodb+srv://h/?tls=false",
            "mongodb+srv://h/?ssl=false",
        ] {
            let error = Where::new(&connection(bad), Trust::Remote).unwrap_err();
            assert!(matches!(error, DriverError::NotAllowed { .. }), "{bad}: {error}");
            local(&connection(bad)).unwrap();
        }
        let good = "mongodb://u@a,b:1/?replicaSet=rs&authMechanism=SCRAM-SHA-256&tls=true";
        let target = Where::new(&connection(good), Trust::Remote).unwrap();
        assert_eq!(target.hosts(), [("a", 27017), ("b", 1)]);
        let srv = Where::new(&connection("mongodb+srv://h/?tls=true"), Trust::Remote).unwrap();
        assert!(srv.hosts().is_empty());
    }

    #[test]
    fn tls_settings() {
        let with = |mode: &str, ca: &str| {
            tls(&Connection { tls_mode: mode.into(), tls_ca_file: ca.into(), ..connection("h") })
        };
        assert_eq!(with("", "").unwrap(), Tls::Off);
        assert_eq!(with("", "/ca.pem").unwrap(), Tls::Full);
        assert_eq!(with("require", "").unwrap(), Tls::Any);
        assert_eq!(with("verify-ca", "/ca.pem").unwrap(), Tls::Chain);
        assert!(with("prefer", "").is_err() && with("", "ca.pem").is_err());
    }
}
