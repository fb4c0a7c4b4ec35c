//! Database URLs → [`Engine`] and [`Connection`].
//!
//! `engine://user:password@host:port/database?option=value`, parts percent-encoded as usual.
//!
//! | option | meaning |
//! |---|---|
//! | `sslmode` | `disable`, `allow`, `prefer`, `require`, `verify-ca`, `verify-full` |
//! | `sslrootcert` | absolute path of the CA's PEM file |
//! | `host` | a socket instead of a host in the URL: libpq's directory, or the path of another engine's socket |
//! | `socket` | the same under MySQL's name |
//!
//! A PostgreSQL, MySQL or MariaDB URL that ends with the slash means all databases of the server, its users included.
//!
//! `mongodb://` and `mongodb+srv://` keep their own options (`authSource`, `replicaSet`, `tls` …) and may name several
//! hosts; the driver reads them. User and password are taken out of them. `rediss://` is Redis over TLS.
//!
//! `sqlite:///srv/app.db` names a file by its absolute path. Messages never repeat the URL: it may carry a password.

use std::fmt;

use crate::model::{Connection, Engine, Way};
use crate::secret::Secret;

/// Longest URL that is read.
const TEXT_MAX: usize = 4096;

const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What is wrong with a database URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlError {
    /// No `engine://`, or one that is not known.
    Scheme,
    /// A SQLite path that does not begin at `/`.
    SqlitePath,
    /// A part that a SQLite URL cannot have.
    SqliteExtra(&'static str),
    /// Neither a host nor a socket.
    NoHost,
    /// Both of them.
    HostTwice,
    /// Several hosts, or a host with letters that no host has.
    Host,
    /// Not a number from 1 to 65535.
    Port,
    /// An engine that needs a database name was given none.
    NoDatabase,
    /// A bad percent escape, or an escaped control character.
    Escape,
    /// An option that is not known.
    Option(String),
    /// An option with a value that it cannot have.
    OptionValue(&'static str, &'static str),
    /// A mongodb+srv URL with more than one name.
    Srv,
    /// Longer than any real URL.
    TooLong,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme => f.write_str(
                "a database is a URL such as \"postgres://user@localhost:5432/shop\" or \"sqlite:///srv/app.db\" (also mysql, mariadb, mongodb, redis)",
            ),
            Self::SqlitePath => f.write_str(
                "a SQLite file is named by its absolute path, with three slashes: \"sqlite:///srv/app.db\"",
            ),
            Self::SqliteExtra(part) => write!(f, "a SQLite URL has no {part}"),
            Self::NoHost => f.write_str(
                "the URL names no host; a socket is \"postgres:///shop?host=/run/postgresql\"",
            ),
            Self::HostTwice => f.write_str("the URL names a host and a socket; leave one of them out"),
            Self::Host => f.write_str("the URL's host is not one host name or address"),
            Self::Port => f.write_str("the URL's port is not a number from 1 to 65535"),
            Self::NoDatabase => f.write_str(
                "the URL names no database: add \"/name\" after the host, or \"/\" alone for all databases of the server",
            ),
            Self::Escape => f.write_str("the URL has a bad percent escape"),
            Self::Option(name) => write!(
                f,
                "the URL has an unknown option {name:?}; known are sslmode, sslrootcert, host and socket"
            ),
            Self::OptionValue(name, form) => write!(f, "the URL's option {name} must be {form}"),
            Self::Srv => f.write_str("a mongodb+srv URL names one host and no port"),
            Self::TooLong => write!(f, "the URL is longer than {TEXT_MAX} characters"),
        }
    }
}

impl std::error::Error for UrlError {}

/// Reads a database URL. The password, if it has one, ends up as a literal in `password_ref`.
///
/// # Errors
/// See [`UrlError`].
pub fn parse(text: &str) -> Result<(Engine, Connection), UrlError> {
    let (engine, connection) = read(text, None)?;
    if engine != Engine::Sqlite && connection.host.is_empty() {
        return Err(UrlError::NoHost);
    }
    Ok((engine, connection))
}

/// As [`parse`]; a URL without a host means the socket that the container's own tools use (for MongoDB `localhost`).
///
/// # Errors
/// See [`UrlError`].
pub fn parse_in_container(text: &str) -> Result<(Engine, Connection), UrlError> {
    read(text, Some("localhost"))
}

/// `own` is the host of a MongoDB URI that names none.
fn read(text: &str, own: Option<&str>) -> Result<(Engine, Connection), UrlError> {
    if text.len() > TEXT_MAX {
        return Err(UrlError::TooLong);
    }
    let (scheme, rest) = text.split_once(':').ok_or(UrlError::Scheme)?;
    let engine = match scheme.to_ascii_lowercase().as_str() {
        "postgres" | "postgresql" => Engine::PostgreSql,
        "mysql" => Engine::MySql,
        "mariadb" => Engine::MariaDb,
        "mongodb" | "mongodb+srv" => Engine::MongoDb,
        "redis" | "valkey" | "rediss" | "valkeys" => Engine::Redis,
        "sqlite" | "sqlite3" => Engine::Sqlite,
        _ => return Err(UrlError::Scheme),
    };
    if engine == Engine::Sqlite {
        return Ok((engine, sqlite(rest)?));
    }
    if engine == Engine::MongoDb {
        let rest = rest.strip_prefix("//").ok_or(UrlError::Scheme)?;
        return Ok((engine, mongodb(scheme, rest, own)?));
    }
    let mut connection = server(engine, rest.strip_prefix("//").ok_or(UrlError::Scheme)?)?;
    if matches!(scheme.to_ascii_lowercase().as_str(), "rediss" | "valkeys")
        && connection.tls_mode.is_empty()
    {
        connection.tls_mode = "verify-full".to_owned();
    }
    Ok((engine, connection))
}

fn sqlite(rest: &str) -> Result<Connection, UrlError> {
    // `sqlite:/srv/app.db` and `sqlite:///srv/app.db` say the same; `sqlite://srv/app.db` would be a host.
    let path = match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err(UrlError::SqlitePath),
        None if rest.starts_with('/') => rest,
        None => return Err(UrlError::SqlitePath),
    };
    if path.contains('?') {
        return Err(UrlError::SqliteExtra("options; write a question mark in the path as %3F"));
    }
    let database = decode(path)?;
    if database.ends_with('/') {
        return Err(UrlError::SqlitePath);
    }
    Ok(Connection { database, ..Connection::default() })
}

/// The URI goes on as the host, but for what must not be written anywhere.
fn mongodb(scheme: &str, rest: &str, own: Option<&str>) -> Result<Connection, UrlError> {
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (login, places) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (username, password) = login.split_once(':').unwrap_or((login, ""));
    let places = match (places, own) {
        ("", Some(own)) => own,
        ("", None) => return Err(UrlError::NoHost),
        (places, _) => places,
    };
    let srv = scheme.eq_ignore_ascii_case("mongodb+srv");
    for place in places.split(',') {
        let (host, port) = host_and_port(place)?;
        if host.is_empty() {
            return Err(UrlError::Host);
        }
        if srv && (port != 0 || places.contains(',')) {
            return Err(UrlError::Srv);
        }
    }
    decode(path)?;
    Ok(Connection {
        host: format!("{}://{places}{path}", scheme.to_ascii_lowercase()),
        username: decode(username)?,
        password_ref: Secret::new(decode(password)?),
        ..Connection::default()
    })
}

fn server(engine: Engine, rest: &str) -> Result<Connection, UrlError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let slash = rest.contains('/');
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (username, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = host_and_port(place)?;
    let mut connection = Connection {
        host,
        port,
        database: decode(path)?,
        username: decode(username)?,
        password_ref: Secret::new(decode(password)?),
        ..Connection::default()
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        option(&mut connection, pair)?;
    }
    let has_databases = matches!(engine, Engine::PostgreSql | Engine::MySql | Engine::MariaDb);
    if has_databases && !slash {
        return Err(UrlError::NoDatabase);
    }
    Ok(connection)
}

fn option(connection: &mut Connection, pair: &str) -> Result<(), UrlError> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let value = decode(value)?;
    match name {
        "sslmode" | "ssl-mode" => {
            if !SSL_MODES.contains(&value.as_str()) {
                let form = "disable, allow, prefer, require, verify-ca or verify-full";
                return Err(UrlError::OptionValue("sslmode", form));
            }
            connection.tls_mode = value;
        }
        "sslrootcert" | "ssl-ca" => {
            if !value.starts_with('/') {
                return Err(UrlError::OptionValue("sslrootcert", "an absolute path"));
            }
            connection.tls_ca_file = value;
        }
        "host" | "socket" => {
            if !connection.host.is_empty() {
                return Err(UrlError::HostTwice);
            }
            if !value.starts_with('/') {
                return Err(UrlError::OptionValue("host", "the absolute path of a socket"));
            }
            connection.host = value;
            connection.way = Way::UnixSocket;
        }
        _ => return Err(UrlError::Option(name.chars().take(40).collect())),
    }
    Ok(())
}

pub(super) fn host_and_port(place: &str) -> Result<(String, u32), UrlError> {
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(UrlError::Host)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host)?;
        let port = if port.is_empty() {
            None
        } else {
            Some(port.strip_prefix(':').ok_or(UrlError::Host)?)
        };
        (address.to_owned(), port)
    } else {
        match place.split_once(':') {
            Some((host, port)) => (decode(host)?, Some(port)),
            None => (decode(place)?, None),
        }
    };
    let known = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if !host.chars().all(known) || host.starts_with('-') {
        return Err(UrlError::Host);
    }
    let port = match port {
        None => 0,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse::<u16>().ok().filter(|port| *port != 0).ok_or(UrlError::Port)?
        }
        Some(_) => return Err(UrlError::Port),
    };
    Ok((host, u32::from(port)))
}

/// Percent-decodes; control characters are refused in any form.
pub(super) fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or(UrlError::Escape)?;
        let digits = std::str::from_utf8(digits).map_err(|_| UrlError::Escape)?;
        if digits.starts_with('+') {
            return Err(UrlError::Escape);
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| UrlError::Escape)?);
        rest = tail;
    }
    let text = String::from_utf8(bytes).map_err(|_| UrlError::Escape)?;
    if text.chars().any(char::is_control) { Err(UrlError::Escape) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_over_tcp() {
        let url = "postgres://ba%40ck:p%3Ass@db.example:5433/shop%20two?sslmode=verify-full&sslrootcert=/etc/ca.pem";
        let (engine, c) = parse(url).unwrap();
        assert_eq!(engine, Engine::PostgreSql);
        assert_eq!((c.host.as_str(), c.port, c.way), ("db.example", 5433, Way::Tcp));
        assert_eq!((c.username.as_str(), c.password_ref.expose()), ("ba@ck", "p:ss"));
        assert_eq!((c.database.as_str(), c.tls_mode.as_str()), ("shop two", "verify-full"));
        assert_eq!(c.tls_ca_file, "/etc/ca.pem");
        let (_, c) = parse("postgresql://[::1]/x").unwrap();
        assert_eq!((c.host.as_str(), c.port), ("::1", 0));
    }

    #[test]
    fn a_server_over_its_socket() {
        let (_, c) = parse("postgres:///shop?host=/run/postgresql").unwrap();
        assert_eq!((c.host.as_str(), c.way), ("/run/postgresql", Way::UnixSocket));
        let (engine, c) = parse("mysql://root@/shop?socket=/run/mysqld/mysqld.sock").unwrap();
        assert_eq!((engine, c.way), (Engine::MySql, Way::UnixSocket));
        let (engine, c) = parse("redis://backup@?host=/run/redis/redis.sock").unwrap();
        assert_eq!((engine, c.way, c.database.as_str()), (Engine::Redis, Way::UnixSocket, ""));
    }

    #[test]
    fn all_databases_are_asked_for_by_a_slash() {
        for text in [
            "postgres://u@h/",
            "mysql://u@h:1/",
            "mariadb:///?socket=/run/s",
            "postgres:///?host=/run/pg",
        ] {
            assert_eq!(parse(text).unwrap().1.database, "", "{text}");
        }
        for text in ["postgres://u@h", "mysql://u@h:1", "mariadb://u@h?sslmode=require"] {
            assert_eq!(parse(text), Err(UrlError::NoDatabase), "{text}");
        }
    }

    #[test]
    fn files_and_other_engines() {
        let (engine, c) = parse("sqlite:///srv/my%20app.db").unwrap();
        assert_eq!((engine, c.database.as_str()), (Engine::Sqlite, "/srv/my app.db"));
        assert_eq!(parse("redis://:pw@localhost").unwrap().0, Engine::Redis);
        let (engine, c) = parse("rediss://localhost").unwrap();
        assert_eq!((engine, c.tls_mode.as_str()), (Engine::Redis, "verify-full"));
        assert_eq!(parse("mariadb://u@localhost/x").unwrap().0, Engine::MariaDb);
    }

    #[test]
    fn a_mongodb_url_stays_one_without_its_login() {
        let url = "mongodb://ba%40ck:p%3Ass@a:27018,[::1]/shop?replicaSet=rs0&authSource=admin";
        let (engine, c) = parse(url).unwrap();
        assert_eq!(engine, Engine::MongoDb);
        assert_eq!(c.host, "mongodb://a:27018,[::1]/shop?replicaSet=rs0&authSource=admin");
        assert_eq!((c.username.as_str(), c.password_ref.expose()), ("ba@ck", "p:ss"));
        assert_eq!((c.port, c.database.as_str(), c.way), (0, "", Way::Tcp));
        let (_, c) = parse("MongoDB+SRV://u@cluster0.example.net").unwrap();
        assert_eq!(c.host, "mongodb+srv://cluster0.example.net");
        for (bad, error) in [
            ("mongodb://u:hunter2@/x", UrlError::NoHost),
            ("mongodb://u:hunter2@a,/x", UrlError::Host),
            ("mongodb://u:hunter2@a:0/x", UrlError::Port),
            ("mongodb+srv://u:hunter2@a:1/x", UrlError::Srv),
            ("mongodb+srv://u:hunter2@a,b/x", UrlError::Srv),
            ("mongodb://u:hunter2@a/%0A", UrlError::Escape),
            ("mongodb:x", UrlError::Scheme),
        ] {
            assert_eq!(parse(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn every_mistake_has_its_message_and_none_shows_the_password() {
        let cases = [
            ("shop", UrlError::Scheme),
            ("oracle://x/y", UrlError::Scheme),
            ("postgres:shop", UrlError::Scheme),
            ("sqlite://app.db", UrlError::SqlitePath),
            ("sqlite:app.db", UrlError::SqlitePath),
            ("sqlite:///srv/", UrlError::SqlitePath),
            ("postgres://u:hunter2@/x", UrlError::NoHost),
            ("postgres://u:hunter2@a,b/x", UrlError::Host),
            ("postgres://u:hunter2@-h/x", UrlError::Host),
            ("postgres://u:hunter2@[::1/x", UrlError::Host),
            ("postgres://u:hunter2@h:0/x", UrlError::Port),
            ("postgres://u:hunter2@h:99999/x", UrlError::Port),
            ("postgres://u:hunter2@h:+1/x", UrlError::Port),
            ("postgres://u:hunter2@h", UrlError::NoDatabase),
            ("postgres://u:hunter2%@h/x", UrlError::Escape),
            ("postgres://u:hunter2@h/x%0Ay", UrlError::Escape),
            ("postgres://h/x?host=/run", UrlError::HostTwice),
            ("postgres://h/x?passfile=/x", UrlError::Option("passfile".into())),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text), Err(error.clone()), "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
        assert!(matches!(
            parse("postgres://h/x?sslmode=on"),
            Err(UrlError::OptionValue("sslmode", _))
        ));
        assert!(matches!(parse("postgres:///x?host=run"), Err(UrlError::OptionValue("host", _))));
    }
}
