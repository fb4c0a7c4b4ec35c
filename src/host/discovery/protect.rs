//! Which of the databases that were found a backup is configured for. Pure: the one judge of `discover`, `status` and
//! the metrics, so that they agree.
//!
//! | a target that names | protects |
//! |---|---|
//! | a container | the container with this name or id |
//! | a host and a port | what listens there: `localhost` and this machine's own names and addresses mean its services, the containers that publish the port, and those in the host's network; a container's name, alias, id or address means the container |
//! | a socket, or its directory | the service with this socket |
//! | a path | the SQLite file |
//!
//! The engine has to fit, and a target without a job protects nothing. Which of a server's databases a job dumps is
//! not looked at, and no name is looked up: another name of this host that only DNS knows is not recognised.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::listeners::{PG_SOCKET, alike};
use super::ports::default_port;
use super::report::{Database, Here, InContainer, Place, Service};
use crate::model::{AgentConfig, Connection, Engine, Target, Way};

/// Hosts of one target that are looked at.
const MAX_HOSTS: usize = 50;
/// Of an id that is taken for one.
const MIN_ID_DIGITS: usize = 4;

/// A job and what it reaches. Without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// The job.
    pub job_id: String,
    /// The target's engine.
    pub engine: Engine,
    reach: Reach,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reach {
    Container(String),
    Tcp(Vec<(String, u16)>),
    /// A socket or its directory; empty = the engine's own place.
    Socket(String, u16),
    File(PathBuf),
    Nowhere,
}

/// The jobs of a configuration.
pub fn backups(config: &AgentConfig) -> Vec<Backup> {
    let backup = |job: &crate::model::Job| {
        let target = config.targets.iter().find(|target| target.id == job.target_id)?;
        let reach = reach(target);
        Some(Backup { job_id: job.id.clone(), engine: target.engine, reach })
    };
    config.jobs.iter().filter_map(backup).collect()
}

fn reach(target: &Target) -> Reach {
    let c = &target.connection;
    if target.engine == Engine::Sqlite {
        return Reach::File(PathBuf::from(&c.database));
    }
    let port = u16::try_from(c.port).ok().filter(|port| *port != 0);
    let port = port.unwrap_or_else(|| default_port(target.engine));
    match c.way {
        Way::DockerExec => {
            let name = c.container.strip_prefix('/').unwrap_or(&c.container);
            Reach::Container(name.to_owned())
        }
        Way::UnixSocket => Reach::Socket(c.host.clone(), port),
        Way::Tcp if c.host.starts_with('/') => Reach::Socket(c.host.clone(), port),
        Way::Tcp => hosts(c, port),
        Way::Unknown(_) => Reach::Nowhere,
    }
}

/// One host, or those of a MongoDB URI.
fn hosts(c: &Connection, port: u16) -> Reach {
    let uri = c.host.split_once("://").map(|(_, rest)| {
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        authority.rsplit('@').next().unwrap_or_default()
    });
    let Some(places) = uri else {
        let host = if c.host.is_empty() { "localhost" } else { &c.host };
        return Reach::Tcp(vec![(bare(host).to_lowercase(), port)]);
    };
    if places.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2f")) {
        return Reach::Socket(places.replace("%2F", "/").replace("%2f", "/"), port);
    }
    let place = |place: &str| match place.rsplit_once(':') {
        Some((host, own)) if !own.contains(']') => {
            Some((bare(host).to_lowercase(), own.parse().ok()?))
        }
        _ => Some((bare(place).to_lowercase(), port)),
    };
    Reach::Tcp(places.split(',').take(MAX_HOSTS).filter_map(place).collect())
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The jobs that back a database up. `real` follows links in a path.
pub fn of<'a>(
    database: &Database,
    backups: &'a [Backup],
    here: &Here,
    real: &dyn Fn(&Path) -> PathBuf,
) -> Vec<&'a str> {
    let reaches = |backup: &&Backup| {
        alike(backup.engine, database.engine)
            && match (&backup.reach, &database.place) {
                (Reach::File(path), Place::File(found)) => path == found || real(path) == *found,
                (Reach::Container(name), Place::Container(found)) => is_called(found, name),
                (Reach::Tcp(hosts), Place::Container(found)) => {
                    hosts.iter().any(|(host, port)| at(found, database.engine, host, *port, here))
                }
                (Reach::Tcp(hosts), Place::Service(found)) => {
                    hosts.iter().any(|(host, port)| listens(found, host, *port, here))
                }
                (Reach::Socket(path, port), Place::Service(found)) => {
                    has_socket(found, database.engine, path, *port)
                }
                _ => false,
            }
    };
    backups.iter().filter(reaches).map(|backup| backup.job_id.as_str()).collect()
}

/// By its name, or by the beginning of its id.
fn is_called(found: &InContainer, name: &str) -> bool {
    let digits = name.bytes().all(|b| b.is_ascii_hexdigit());
    found.listed.name == name
        || (digits && name.len() >= MIN_ID_DIGITS && found.listed.id.starts_with(name))
}

/// Whether a host and a port lead into a container.
fn at(found: &InContainer, engine: Engine, host: &str, port: u16, here: &Here) -> bool {
    let ports = found.ports(engine);
    let tcp = || ports.iter().filter(|port| port.protocol == "tcp");
    if is_here(host, here) && tcp().any(|own| own.host_port == port) {
        return true;
    }
    let named = is_called(found, host)
        || found.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(host))
        || found.listed.name.eq_ignore_ascii_case(host);
    let addressed = host.parse::<IpAddr>().is_ok_and(|address| {
        found.listed.networks.iter().any(|network| network.addresses.contains(&address))
    });
    (named || addressed) && tcp().any(|own| own.container_port == port)
}

/// Whether a service listens at a host and a port.
fn listens(found: &Service, host: &str, port: u16, here: &Here) -> bool {
    is_here(host, here)
        && found.addresses.iter().any(|own| {
            let reachable = match host.parse::<IpAddr>() {
                // To another loopback address than the one that it listens on nothing leads.
                Ok(address) => own.ip().is_unspecified() || own.ip() == address.to_canonical(),
                Err(_) => true,
            };
            own.port() == port && reachable
        })
}

/// Whether a host is this machine.
fn is_here(host: &str, here: &Here) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || address.is_unspecified() || here.addresses.contains(&address)
        }
        Err(_) => {
            host == "localhost"
                || host.ends_with(".localhost")
                || (!here.hostname.is_empty() && host.eq_ignore_ascii_case(&here.hostname))
        }
    }
}

fn has_socket(found: &Service, engine: Engine, path: &str, port: u16) -> bool {
    let path = short(Path::new(path));
    found.sockets.iter().any(|own| {
        let own = short(own);
        let in_directory = || {
            let name = own.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let right = match name.strip_prefix(PG_SOCKET) {
                Some(digits) => digits.parse() == Ok(port),
                None => engine != Engine::PostgreSql,
            };
            right && (path.as_os_str().is_empty() || own.parent() == Some(path.as_path()))
        };
        own == path || in_directory()
    })
}

/// `/var/run` is `/run`.
fn short(path: &Path) -> PathBuf {
    path.strip_prefix("/var/run")
        .map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::docker::{Listed, Network, Port};
    use crate::model::Job;

    fn target(engine: Engine, connection: Connection) -> AgentConfig {
        let target = Target { id: "t".into(), engine, display_name: String::new(), connection };
        let job = Job { id: "job".into(), target_id: "t".into(), ..Job::default() };
        AgentConfig { targets: vec![target], jobs: vec![job], ..AgentConfig::default() }
    }

    fn here() -> Here {
        Here { hostname: "vps".into(), addresses: vec!["10.1.2.3".parse().unwrap()] }
    }

    fn protects(engine: Engine, connection: Connection, database: &Database) -> bool {
        let backups = backups(&target(engine, connection));
        !of(database, &backups, &here(), &|path| path.to_owned()).is_empty()
    }

    fn tcp(host: &str, port: u32) -> Connection {
        Connection { host: host.into(), port, ..Connection::default() }
    }

    fn exec(container: &str) -> Connection {
        Connection { container: container.into(), way: Way::DockerExec, ..Connection::default() }
    }

    fn socket(path: &str, port: u32) -> Connection {
        Connection { way: Way::UnixSocket, ..tcp(path, port) }
    }

    fn container() -> Database {
        let listed = Listed {
            id: "0123456789ab".repeat(5) + "cdef",
            name: "shop-db".into(),
            image: "postgres:16".into(),
            network_mode: "shop".into(),
            networks: vec![Network {
                name: "shop".into(),
                addresses: vec!["172.18.0.2".parse().unwrap()],
            }],
            ports: vec![Port { container_port: 5432, host_port: 5433, protocol: "tcp".into() }],
        };
        let aliases = vec!["db".into()];
        let place = Arc::new(InContainer { listed, aliases, ..InContainer::default() });
        Database { engine: Engine::PostgreSql, place: Place::Container(place) }
    }

    fn service(engine: Engine, addresses: &[&str], sockets: &[&str]) -> Database {
        let place = Place::Service(Service {
            process: String::new(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            sockets: sockets.iter().map(PathBuf::from).collect(),
        });
        Database { engine, place }
    }

    #[test]
    fn containers() {
        let db = container();
        let id = match &db.place {
            Place::Container(found) => found.listed.id.clone(),
            _ => unreachable!(),
        };
        for yes in [
            exec("shop-db"),
            exec("/shop-db"),
            exec(&id),
            exec(&id[..12]),
            tcp("", 5433),
            tcp("localhost", 5433),
            tcp("127.0.0.1", 5433),
            tcp("::1", 5433),
            tcp("10.1.2.3", 5433),
            tcp("VPS", 5433),
            tcp("shop-db", 0),
            tcp("db", 5432),
            tcp("172.18.0.2", 5432),
        ] {
            assert!(protects(Engine::PostgreSql, yes.clone(), &db), "{yes:?}");
        }
        for no in [
            exec("shop"),
            exec("012"),
            exec(""),
            tcp("localhost", 5432),
            tcp("localhost", 0),
            tcp("db", 5433),
            tcp("db.example.org", 5433),
            tcp("172.18.0.3", 5432),
            tcp("192.0.2.1", 5433),
            socket("/run/postgresql", 5433),
        ] {
            assert!(!protects(Engine::PostgreSql, no.clone(), &db), "{no:?}");
        }
        assert!(!protects(Engine::MySql, exec("shop-db"), &db));
        let mut config = target(Engine::PostgreSql, exec("shop-db"));
        config.jobs.clear();
        assert!(backups(&config).is_empty(), "a target without a job");
    }

    #[test]
    fn a_container_in_the_hosts_network() {
        let listed = Listed { network_mode: "host".into(), ..Listed::default() };
        let place = Arc::new(InContainer { listed, ..InContainer::default() });
        let db = Database { engine: Engine::Redis, place: Place::Container(place) };
        assert!(protects(Engine::Redis, tcp("localhost", 0), &db));
        assert!(!protects(Engine::Redis, tcp("localhost", 6380), &db));
    }

    #[test]
    fn services_by_address() {
        let db = service(Engine::MariaDb, &["127.0.0.1:3306"], &[]);
        assert!(protects(Engine::MySql, tcp("localhost", 0), &db));
        assert!(protects(Engine::MariaDb, tcp("127.0.0.1", 3306), &db));
        assert!(!protects(Engine::MariaDb, tcp("127.0.0.1", 3307), &db));
        assert!(!protects(Engine::MariaDb, tcp("10.1.2.3", 3306), &db));
        assert!(!protects(Engine::Redis, tcp("127.0.0.1", 3306), &db));
        let open = service(Engine::MongoDb, &["0.0.0.0:27017"], &[]);
        for host in ["10.1.2.3", "mongodb://10.1.2.3", "mongodb://a:1,u@localhost:27017/x?y=@z"] {
            assert!(protects(Engine::MongoDb, tcp(host, 0), &open), "{host}");
        }
        for host in ["mongodb://a,b", "mongodb+srv://x.example.org", "mongodb://localhost:1"] {
            assert!(!protects(Engine::MongoDb, tcp(host, 0), &open), "{host}");
        }
        let v6 = service(Engine::MongoDb, &["[::1]:27017"], &[]);
        assert!(protects(Engine::MongoDb, tcp("mongodb://[::1]:27017", 0), &v6));
        assert!(protects(Engine::MongoDb, tcp("mongodb://[::1]", 0), &v6));
    }

    #[test]
    fn services_by_socket() {
        let pg = service(Engine::PostgreSql, &[], &["/var/run/postgresql/.s.PGSQL.5433"]);
        assert!(protects(Engine::PostgreSql, socket("/run/postgresql", 5433), &pg));
        assert!(protects(Engine::PostgreSql, socket("", 5433), &pg));
        assert!(!protects(Engine::PostgreSql, socket("/run/postgresql", 0), &pg));
        assert!(!protects(Engine::PostgreSql, socket("/tmp", 5433), &pg));
        let maria = service(Engine::MariaDb, &[], &["/run/mysqld/mysqld.sock"]);
        assert!(protects(Engine::MySql, socket("/run/mysqld/mysqld.sock", 0), &maria));
        assert!(!protects(Engine::MySql, socket("/run/mysqld/other.sock", 0), &maria));
        let mongo = service(Engine::MongoDb, &[], &["/tmp/mongodb-27017.sock"]);
        let uri = "mongodb://%2Ftmp%2Fmongodb-27017.sock/app";
        assert!(protects(Engine::MongoDb, tcp(uri, 0), &mongo));
    }

    #[test]
    fn files_by_their_real_path() {
        let db = Database { engine: Engine::Sqlite, place: Place::File("/srv/app.db".into()) };
        let named = |path: &str| {
            let c = Connection { database: path.into(), ..Connection::default() };
            let real =
                |path: &Path| PathBuf::from(path.to_str().unwrap().replace("/link/", "/srv/"));
            !of(&db, &backups(&target(Engine::Sqlite, c)), &here(), &real).is_empty()
        };
        assert!(named("/srv/app.db") && named("/link/app.db"));
        assert!(!named("/srv/other.db") && !named(""));
    }
}
