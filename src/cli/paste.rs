//! A database that was found → a `[[backup]]` for the file of `up` that can be used as it is. Pure. What only the
//! user knows, such as the password, stands there as a comment.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::show::printable;

/// Names of backups that are taken.
#[derive(Debug)]
pub struct Names(HashSet<String>);

/// Longest name that a backup may have.
const NAME_MAX: usize = 64;

impl Names {
    /// Those that exist.
    pub fn new<'a>(taken: impl Iterator<Item = &'a str>) -> Self {
        Self(taken.map(str::to_lowercase).collect())
    }

    /// A free name that looks like `wish`.
    fn take(&mut self, wish: &str) -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        let plain: String = wish.chars().map(fits).take(NAME_MAX - 5).collect();
        let plain = plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let plain = plain.trim_end_matches(['-', '.']);
        let base = if plain.is_empty() { "database" } else { plain };
        let numbered = (2..10_000).map(|number| format!("{base}-{number}"));
        let mut names = std::iter::once(base.to_owned()).chain(numbered);
        let free = names.find(|name| self.0.insert(name.to_lowercase()));
        free.unwrap_or_else(|| base.to_owned())
    }
}

/// The section for a database as `discover` describes it.
pub fn section(database: &Value, names: &mut Names) -> String {
    let text = |key: &str| database[key].as_str().unwrap_or_default();
    let place = text("place");
    let made_of = if place == "container" { text("image") } else { text("process") };
    let mut out = format!("# {}", printable(text("title")));
    if !made_of.is_empty() {
        let _ = write!(out, " ({})", printable(made_of));
    }
    out.push('\n');
    let (name, url) = match place {
        "container" => in_container(database),
        "service" => service(database),
        _ => file(text("path")),
    };
    let name = names.take(&name);
    let _ = writeln!(out, "[[backup]]\nname = \"{name}\"\ndatabase = \"{url}\"");
    if place == "container" {
        let _ = writeln!(out, "container = \"{}\"", container(database));
        for (variable, what) in LOGIN {
            if set(database, variable) {
                let _ = writeln!(out, "# {what} is in the container's {variable}");
            }
        }
    }
    if place != "file" {
        let _ = writeln!(out, "# password = \"file:/etc/backupy/{name}.password\"");
    }
    out.push_str("every = \"6h\"\nkeep = { last = 28 }");
    out
}

/// Variables that say who may log in.
const LOGIN: [(&str, &str); 5] = [
    ("POSTGRES_USER", "the user"),
    ("POSTGRES_USER_FILE", "the user's file"),
    ("POSTGRESQL_USERNAME", "another user"),
    ("MONGO_INITDB_ROOT_USERNAME", "the user"),
    ("REDIS_USERNAME", "the user"),
];

fn set(database: &Value, variable: &str) -> bool {
    database["variables"].as_array().is_some_and(|names| names.iter().any(|n| n == variable))
}

/// Its name, or its id where that is no name for a file of ours.
fn container(database: &Value) -> &str {
    let name = database["name"].as_str().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(fits);
    if good { name } else { database["container_id"].as_str().unwrap_or_default() }
}

/// The server's own socket in there, and all of its databases.
fn in_container(database: &Value) -> (String, String) {
    let url = match database["engine"].as_str().unwrap_or_default() {
        "postgresql" => "postgres://postgres@/",
        "mysql" => "mysql://root@/",
        "mariadb" => "mariadb://root@/",
        "mongodb" if set(database, "MONGO_INITDB_ROOT_USERNAME") => "mongodb://root@localhost",
        "mongodb" => "mongodb://localhost",
        _ => "redis://",
    };
    (container(database).to_owned(), url.to_owned())
}

fn service(database: &Value) -> (String, String) {
    let first = |key: &str| database[key][0].as_str().unwrap_or_default();
    let engine = database["engine"].as_str().unwrap_or_default();
    let address = first("addresses").parse::<std::net::SocketAddr>().ok().map(|mut address| {
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        address
    });
    let port = address.map_or_else(String::new, |address| format!("-{}", address.port()));
    let name = format!("{engine}{port}");
    let socket = first("sockets");
    let (scheme, user, slash) = match engine {
        "postgresql" => ("postgres", "postgres@", "/"),
        "mysql" => ("mysql", "root@", "/"),
        "mariadb" => ("mariadb", "root@", "/"),
        "mongodb" => ("mongodb", "", ""),
        _ => ("redis", "", ""),
    };
    let url = match (engine, address) {
        // On a socket the server knows root, or its own user, without a password.
        ("postgresql" | "mysql" | "mariadb", _) | (_, None) if !socket.is_empty() => {
            on_socket(engine, scheme, user, socket)
        }
        (_, Some(address)) => format!("{scheme}://{user}{address}{slash}"),
        (_, None) => format!("{scheme}://{user}localhost{slash}"),
    };
    (name, url)
}

fn on_socket(engine: &str, scheme: &str, user: &str, socket: &str) -> String {
    if engine == "mongodb" {
        return format!("mongodb://{}", encode(socket, false));
    }
    let (dir, file) = socket.rsplit_once('/').unwrap_or(("", socket));
    match file.strip_prefix(".s.PGSQL.") {
        Some("5432") => format!("{scheme}://{user}/?host={}", encode(dir, true)),
        Some(port) => format!("{scheme}://{user}:{port}/?host={}", encode(dir, true)),
        None => format!("{scheme}://{user}/?host={}", encode(socket, true)),
    }
}

fn file(path: &str) -> (String, String) {
    let name = path.rsplit('/').next().unwrap_or_default();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    (stem.to_owned(), format!("sqlite://{}", encode(path, true)))
}

/// Percent-encodes a path for a URL.
fn encode(path: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' if slashes => out.push('/'),
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn all() -> Vec<Value> {
        let container = |engine: &str, name: &str, variables: &[&str]| {
            json!({
                "engine": engine, "place": "container", "title": format!("X in {name}\n[x]"), "name": name,
                "container_id": "0123456789abcdef", "image": "img:1\n[y]", "variables": variables,
            })
        };
        let service = |engine: &str, addresses: &[&str], sockets: &[&str]| {
            json!({
                "engine": engine, "place": "service", "title": "X", "process": "p",
                "addresses": addresses, "sockets": sockets,
            })
        };
        vec![
            container("postgresql", "shop-db", &["POSTGRES_USER"]),
            container("mysql", "Shop-DB", &[]),
            container("mariadb", "bad\"name", &[]),
            container("mongodb", "m", &["MONGO_INITDB_ROOT_USERNAME"]),
            container("redis", "", &[]),
            service("postgresql", &["127.0.0.1:5432"], &["/run/postgresql/.s.PGSQL.5432"]),
            service("postgresql", &[], &["/tmp/a b/.s.PGSQL.5433"]),
            service("mariadb", &["0.0.0.0:3306"], &["/run/mysqld/mysqld.sock"]),
            service("mysql", &["[::1]:3307"], &[]),
            service("redis", &["127.0.0.1:6379"], &["/run/redis/redis-server.sock"]),
            service("redis", &[], &["/run/redis/redis-server.sock"]),
            service("mongodb", &["127.0.0.1:27017"], &[]),
            json!({"engine": "sqlite", "place": "file", "title": "X", "path": "/srv/a \"b\"?#%.db"}),
            json!({"engine": "sqlite", "place": "file", "title": "X", "path": "/srv/ä.db"}),
        ]
    }

    #[test]
    fn names_are_free_and_fit() {
        let mut names = Names::new(["Shop"].into_iter());
        let taken: Vec<String> = ["shop", "SHOP", "a b", "-", "", &"x".repeat(100)]
            .iter()
            .map(|w| names.take(w))
            .collect();
        assert_eq!(taken[..5], ["shop-2", "SHOP-3", "a-b", "database", "database-2"]);
        assert!(taken[5].len() <= NAME_MAX);
    }

    #[test]
    fn a_container_in_full() {
        let mut names = Names::new(std::iter::empty());
        let text = section(&all()[0], &mut names);
        let expected = "# X in shop-db [x] (img:1 [y])\n[[backup]]\nname = \"shop-db\"\n\
            database = \"postgres://postgres@/\"\ncontainer = \"shop-db\"\n\
            # the user is in the container's POSTGRES_USER\n\
            # password = \"file:/etc/backupy/shop-db.password\"\nevery = \"6h\"\nkeep = { last = 28 }";
        assert_eq!(text, expected);
    }

    /// Pasted as it is, the file means what was found.
    #[cfg(feature = "control")]
    #[test]
    fn the_file_of_up_takes_all_of_it() {
        use crate::control::file;
        use crate::model::Way;
        let mut names = Names::new(std::iter::empty());
        let mut text = "[storage]\ndirectory = \"/var/backups\"\n".to_owned();
        for database in all() {
            text.push_str(&section(&database, &mut names));
            text.push('\n');
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backupy.toml");
        std::fs::write(&path, &text).unwrap();
        let settings = file::load(&path).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
        assert_eq!(settings.backups.len(), all().len());
        let c = |number: usize| &settings.backups[number].target.connection;
        assert_eq!((c(0).way, c(0).container.as_str()), (Way::DockerExec, "shop-db"));
        assert_eq!(c(2).container, "0123456789abcdef");
        assert_eq!((c(5).way, c(5).host.as_str()), (Way::UnixSocket, "/run/postgresql"));
        assert_eq!((c(6).port, c(6).host.as_str()), (5433, "/tmp/a b"));
        assert_eq!((c(8).host.as_str(), c(8).port), ("::1", 3307));
        assert_eq!(c(12).database, "/srv/a \"b\"?#%.db");
        assert_eq!(c(13).database, "/srv/ä.db");
    }
}
