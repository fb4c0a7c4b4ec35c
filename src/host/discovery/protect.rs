//! Which of the databases that were found a backup is configured for. Pure: the one judge of `discover`, `status` and
//! the metrics, so that they agree.
//!
//! | a target that names | protects |
//! |---|---|
//! | a container | the container with this name or id |
//! | a host and a port | what listens there: `localhost` and this machine's own names and addresses mean its services, the containers that publish the port, and those in the host's network, as far as the address fits; a container's name, alias or id means the container if it is the only such one, its address the container |
//! | a socket, or its directory | the service with this socket; without a path, the one at an engine's usual place |
//! | a path | the SQLite file |
//!
//! The engine has to fit. A target without a job protects nothing, nor does one that dumps a server's globals alone.
//! Which of a server's databases a job dumps is not looked at, and no name is looked up: another name of this host
//! that only DNS knows is not recognised, and where its own host name leads is not known, so it means all of its
//! addresses.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::listeners::{PG_SOCKET, alike};
use super::ports::default_port;
use super::report::{Database, Here, InContainer, Place, Report, Service};
use crate::docker::Port;
use crate::model::{AgentConfig, Connection, Engine, Target, Way};

/// Hosts of one target that are looked at.
const MAX_HOSTS: usize = 50;
/// Of an id that is taken for one.
const MIN_ID_DIGITS: usize = 4;
/// Of an id that is a name in the container's networks.
const SHORT_ID: usize = 12;

/// A job and what it reaches. Without secrets.
#[derive(Debug, Clone)]
pub struct Backup {
    /// The job.
    pub job_id: String,
    /// The target's engine.
    pub engine: Engine,
    reach: Reach,
}

#[derive(Debug, Clone)]
enum Reach {
    Container(String),
    Tcp(Vec<(String, u16)>),
    /// A socket or its directory; empty = the engine's own place.
    Socket(String, u16),
    /// As it is named, and by its real path once somebody has followed the links.
    File {
        named: PathBuf,
        real: Arc<Mutex<Option<PathBuf>>>,
    },
    Nowhere,
}

impl Backup {
    /// Follows the links in the path of a SQLite file. That takes as long as the file system likes, so it is for the
    /// looks, never for who only judges; until then the file is known by the path that was named.
    pub fn follow_links(&self) {
        if let Reach::File { named, real } = &self.reach {
            let found = std::fs::canonicalize(named).ok();
            *lock(real) = found;
        }
    }
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
        return Reach::File { named: PathBuf::from(&c.database), real: Arc::default() };
    }
    // Roles and tablespaces are no data.
    if c.globals_only {
        return Reach::Nowhere;
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

/// The jobs that back a database of a report up.
pub fn of<'a>(database: &Database, backups: &'a [Backup], report: &Report) -> Vec<&'a str> {
    let here = &report.here;
    let reaches = |backup: &&Backup| {
        alike(backup.engine, database.engine)
            && match (&backup.reach, &database.place) {
                (Reach::File { named, real }, Place::File(found)) => {
                    named == found
                        || behind_link(named, found, &report.links)
                        || lock(real).as_ref() == Some(found)
                }
                (Reach::Container(name), Place::Container(found)) => is_called(found, name),
                (Reach::Tcp(hosts), Place::Container(found)) => {
                    let engine = database.engine;
                    hosts.iter().any(|(host, port)| {
                        at(found, engine, host, *port, here)
                            || (has_name(found, engine, host, *port)
                                && is_alone(report, engine, host, *port))
                    })
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

fn lock(real: &Mutex<Option<PathBuf>>) -> MutexGuard<'_, Option<PathBuf>> {
    real.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a named path is the one that was found, by the links that are known.
fn behind_link(named: &Path, found: &Path, links: &[(PathBuf, PathBuf)]) -> bool {
    links.iter().any(|(link, real)| match (named.strip_prefix(link), found.strip_prefix(real)) {
        (Ok(named), Ok(found)) => named == found,
        _ => false,
    })
}

/// By its name, or by the beginning of its id.
fn is_called(found: &InContainer, name: &str) -> bool {
    let digits = name.bytes().all(|b| b.is_ascii_hexdigit());
    found.listed.name == name
        || (digits && name.len() >= MIN_ID_DIGITS && found.listed.id.starts_with(name))
}

/// Whether a host and a port lead into a container, by an address.
fn at(found: &InContainer, engine: Engine, host: &str, port: u16, here: &Here) -> bool {
    let ports = found.ports(engine);
    let mut tcp = ports.iter().filter(|port| port.protocol == "tcp");
    let published = |own: &Port| {
        own.host_port == port && own.host_addresses.iter().any(|own| leads(host, *own))
    };
    if is_here(host, here) && tcp.clone().any(published) {
        return true;
    }
    let addressed = host.parse::<IpAddr>().is_ok_and(|address| {
        found.listed.networks.iter().any(|network| network.addresses.contains(&address))
    });
    addressed && tcp.any(|own| own.container_port == port)
}

/// Whether a container with this port has a name that some network may look up.
fn has_name(found: &InContainer, engine: Engine, host: &str, port: u16) -> bool {
    let id = found.listed.id.as_str();
    let named = found.listed.name.eq_ignore_ascii_case(host)
        || found.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(host))
        || (!host.is_empty() && (host == id || Some(host) == id.get(..SHORT_ID)));
    let mut ports = found.ports(engine).into_iter();
    named && ports.any(|own| own.protocol == "tcp" && own.container_port == port)
}

/// Whether one container alone has that name: in which network it is looked up is not known.
fn is_alone(report: &Report, engine: Engine, host: &str, port: u16) -> bool {
    let named = |database: &&Database| match &database.place {
        Place::Container(found) => {
            alike(engine, database.engine) && has_name(found, database.engine, host, port)
        }
        Place::Service(_) | Place::File(_) => false,
    };
    report.databases.iter().filter(named).count() == 1
}

/// Whether a service listens at a host and a port.
fn listens(found: &Service, host: &str, port: u16, here: &Here) -> bool {
    is_here(host, here)
        && found.addresses.iter().any(|own| own.port() == port && leads(host, own.ip()))
}

/// Whether a host that is this machine leads to one of its addresses.
fn leads(host: &str, own: IpAddr) -> bool {
    let own = own.to_canonical();
    own.is_unspecified()
        || match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            // To another loopback address than the one that it listens on nothing leads.
            Ok(address) => own == address || (address.is_unspecified() && own.is_loopback()),
            Err(_) if is_localhost(host) => own.is_loopback(),
            Err(_) => true,
        }
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// Whether a host is this machine.
fn is_here(host: &str, here: &Here) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || address.is_unspecified() || here.addresses.contains(&address)
        }
        Err(_) => {
            is_localhost(host)
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
            let there = |dir: &Path| {
                if path.as_os_str().is_empty() { is_usual(dir) } else { dir == path.as_path() }
            };
            right && own.parent().is_some_and(there)
        };
        own == path || in_directory()
    })
}

/// Where the engines have their sockets unless they are told otherwise.
fn is_usual(dir: &Path) -> bool {
    const USUAL: [&str; 6] =
        ["/run/postgresql", "/run/mysqld", "/var/lib/mysql", "/run/redis", "/run/valkey", "/tmp"];
    USUAL.iter().any(|usual| dir == Path::new(usual))
}

/// `/var/run` is `/run`.
fn short(path: &Path) -> PathBuf {
    path.strip_prefix("/var/run")
        .map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::report::DockerState;
    use super::*;
    use crate::docker::{Listed, Network};
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
        among(engine, connection, database, vec![database.clone()])
    }

    fn among(engine: Engine, c: Connection, database: &Database, all: Vec<Database>) -> bool {
        let backups = backups(&target(engine, c));
        backups.iter().for_each(Backup::follow_links);
        !of(database, &backups, &report(all)).is_empty()
    }

    fn report(databases: Vec<Database>) -> Report {
        let docker = DockerState::Answers { version: String::new() };
        let (notes, links) = (Vec::new(), Vec::new());
        Report { looked_ms: 0, databases, docker, notes, here: here(), links }
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
        published(&["0.0.0.0", "::"])
    }

    fn published(at: &[&str]) -> Database {
        let listed = Listed {
            id: "0123456789ab".repeat(5) + "cdef",
            name: "shop-db".into(),
            image: "postgres:16".into(),
            network_mode: "shop".into(),
            networks: vec![Network {
                name: "shop".into(),
                addresses: vec!["172.18.0.2".parse().unwrap()],
            }],
            ports: vec![Port {
                container_port: 5432,
                host_port: 5433,
                protocol: "tcp".into(),
                host_addresses: at.iter().map(|text| text.parse().unwrap()).collect(),
            }],
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
    fn a_published_port_is_one_at_an_address() {
        let pg = Engine::PostgreSql;
        let outside = published(&["10.1.2.3"]);
        assert!(protects(pg, tcp("10.1.2.3", 5433), &outside));
        for host in ["", "localhost", "127.0.0.1", "::1", "0.0.0.0"] {
            assert!(!protects(pg, tcp(host, 5433), &outside), "{host}");
        }
        let inside = published(&["127.0.0.1"]);
        assert!(protects(pg, tcp("localhost", 5433), &inside));
        assert!(protects(pg, tcp("127.0.0.1", 5433), &inside));
        assert!(!protects(pg, tcp("10.1.2.3", 5433), &inside));
        let odd = published(&[]);
        assert!(!protects(pg, tcp("localhost", 5433), &odd));
    }

    #[test]
    fn a_name_counts_if_it_is_one_containers_alone() {
        let (pg, db) = (Engine::PostgreSql, container());
        let mut other = db.clone();
        if let Place::Container(found) = &mut other.place {
            let found = Arc::make_mut(found);
            (found.listed.id, found.listed.name) = ("f".repeat(64), "blog-db".into());
        }
        let two = vec![db.clone(), other.clone()];
        assert!(!among(pg, tcp("db", 5432), &db, two.clone()));
        assert!(among(pg, tcp("shop-db", 5432), &db, two.clone()));
        assert!(!among(pg, tcp("shop-db", 5432), &other, two));
        // Nobody looks an id up by a few of its digits.
        assert!(protects(pg, tcp("0123456789ab", 5432), &db));
        assert!(!protects(pg, tcp("0123", 5432), &db));
    }

    #[test]
    fn globals_protect_no_data() {
        let globals = Connection { globals_only: true, ..exec("shop-db") };
        assert!(!protects(Engine::PostgreSql, globals, &container()));
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
        let public = service(Engine::MariaDb, &["10.1.2.3:3306"], &[]);
        assert!(protects(Engine::MariaDb, tcp("10.1.2.3", 0), &public));
        assert!(!protects(Engine::MariaDb, tcp("localhost", 0), &public));
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
        assert!(protects(Engine::MySql, socket("", 0), &maria));
        let second = service(Engine::MariaDb, &[], &["/srv/second/mysqld.sock"]);
        assert!(!protects(Engine::MySql, socket("", 0), &second));
        let second = service(Engine::PostgreSql, &[], &["/srv/second/.s.PGSQL.5432"]);
        assert!(!protects(Engine::PostgreSql, socket("", 0), &second));
        assert!(protects(Engine::PostgreSql, socket("/srv/second", 0), &second));
        let mongo = service(Engine::MongoDb, &[], &["/tmp/mongodb-27017.sock"]);
        let uri = "mongodb://%2Ftmp%2Fmongodb-27017.sock/app";
        assert!(protects(Engine::MongoDb, tcp(uri, 0), &mongo));
    }

    #[test]
    fn files_by_their_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let path = base.join("app.db");
        std::fs::write(&path, "x").unwrap();
        std::os::unix::fs::symlink(&base, base.join("link")).unwrap();
        let db = Database { engine: Engine::Sqlite, place: Place::File(path) };
        let config = |name: &str| {
            let database = base.join(name).display().to_string();
            target(Engine::Sqlite, Connection { database, ..Connection::default() })
        };
        let mut report = report(vec![db.clone()]);
        let is_known = |known: &[Backup], report: &_| !of(&db, known, report).is_empty();
        assert!(is_known(&backups(&config("app.db")), &report));
        assert!(!is_known(&backups(&config("other.db")), &report));
        // Who only judges touches no file system.
        let linked = backups(&config("link/app.db"));
        assert!(!is_known(&linked, &report));
        linked.iter().for_each(Backup::follow_links);
        assert!(is_known(&linked, &report));
        // The search knows its own links.
        report.links.push((base.join("link"), base.clone()));
        assert!(is_known(&backups(&config("link/app.db")), &report));
        assert!(!is_known(&backups(&config("link/other.db")), &report));
    }
}
