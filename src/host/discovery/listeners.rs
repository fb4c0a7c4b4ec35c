//! What listens on this host, from `/proc/net`, and which of it is a database. Pure: texts in, services out.
//!
//! | known | decides |
//! |---|---|
//! | the process's name | it alone: a proxy on port 5432 is no database |
//! | only the socket's user (as without root) | an engine's own user |
//! | neither | the usual port, or the usual name of a socket |

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::ports;
use super::report::{MAX_SERVICES, Service};
use crate::model::Engine;

/// Listening sockets that are looked at, of each kind.
const MAX_LISTENERS: usize = 4_096;
/// Addresses and sockets of one service.
const MAX_PLACES: usize = 16;
/// What PostgreSQL calls its sockets, before the port.
pub(super) const PG_SOCKET: &str = ".s.PGSQL.";

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub at: At,
    /// The kernel's number for it.
    pub inode: u64,
    /// Its user; not known of unix sockets.
    pub uid: Option<u32>,
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// On an address.
    Tcp(SocketAddr),
    /// On a path.
    Unix(PathBuf),
}

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// Its name, as the kernel has it (15 bytes at most).
    pub comm: String,
    /// The container that it is in.
    pub container: Option<String>,
}

/// The listening sockets of `/proc/net/tcp` or `tcp6`. Lines that make no sense are left out.
pub fn tcp(text: &str) -> Vec<Listener> {
    text.lines().skip(1).filter_map(tcp_line).take(MAX_LISTENERS).collect()
}

fn tcp_line(line: &str) -> Option<Listener> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let uid = fields.nth(3)?;
    let inode = fields.nth(1)?;
    if state != "0A" {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let at = At::Tcp(SocketAddr::new(address_of(address)?, port));
    Some(Listener { at, inode: inode.parse().ok()?, uid: uid.parse().ok() })
}

/// Words of 32 bits as this machine stores them.
fn address_of(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| -> Option<[u8; 4]> {
        Some(u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?.to_ne_bytes())
    };
    match digits.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for (number, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(number * 8)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

/// The listening stream sockets of `/proc/net/unix` with a path.
pub fn unix(text: &str) -> Vec<Listener> {
    const ACCEPTS: u32 = 0x1_0000;
    let line = |line: &str| -> Option<Listener> {
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let (kind, inode) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        // The path is the rest, whatever is in it.
        let path = line.get(line.find('/')?..)?;
        let listens = flags & ACCEPTS != 0 && kind == "0001";
        listens.then(|| Listener { at: At::Unix(path.into()), inode, uid: None })
    };
    text.lines().skip(1).filter_map(line).take(MAX_LISTENERS).collect()
}

/// The engine that a process with this name is.
pub fn engine_of_process(comm: &str) -> Option<Engine> {
    match comm {
        "postgres" | "postmaster" => Some(Engine::PostgreSql),
        "mysqld" => Some(Engine::MySql),
        "mariadbd" => Some(Engine::MariaDb),
        "mongod" => Some(Engine::MongoDb),
        "redis-server" | "valkey-server" | "keydb-server" => Some(Engine::Redis),
        _ => None,
    }
}

/// The engine that a listener without a known process may be.
pub fn engine_by_looks(listener: &Listener, user: Option<&str>) -> Option<Engine> {
    match &listener.at {
        At::Unix(path) => engine_of_socket(path),
        At::Tcp(address) => {
            let usual = ports::engine(std::iter::once(address.port()));
            let own = match user {
                Some("postgres") => Some(Engine::PostgreSql),
                Some("mysql") => Some(Engine::MySql),
                Some("mongodb" | "mongod") => Some(Engine::MongoDb),
                Some("redis" | "valkey") => Some(Engine::Redis),
                Some(_) | None => None,
            };
            // Debian's PgBouncer is the user postgres, too, and MySQL's X protocol has a port of its own.
            own.filter(|_| !is_second(address.port())).or(usual)
        }
    }
}

/// Ports beside a server's own: PgBouncer, MySQL's X and admin protocols, Redis' cluster bus and sentinel.
fn is_second(port: u16) -> bool {
    matches!(port, 6432 | 33060 | 33062 | 16379 | 26379)
}

fn engine_of_socket(path: &Path) -> Option<Engine> {
    let name = path.file_name()?.to_str()?;
    if let Some(port) = name.strip_prefix(PG_SOCKET) {
        return port.parse().ok().filter(|port| !is_second(*port)).map(|_| Engine::PostgreSql);
    }
    let is_socket = name.ends_with(".sock");
    let begins = |word: &str| is_socket && name.starts_with(word);
    match name {
        "mysqld.sock" | "mysql.sock" => Some(Engine::MySql),
        "mariadb.sock" => Some(Engine::MariaDb),
        _ if begins("mongodb-") => Some(Engine::MongoDb),
        _ if (begins("redis") || begins("valkey")) && !name.contains("sentinel") => {
            Some(Engine::Redis)
        }
        _ => None,
    }
}

/// What of a listener tells services of one engine apart where their processes are not known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Process(u32),
    Port(&'static str, u16),
    Socket(PathBuf),
}

/// The services among the listeners. `owner` is asked for the process behind a socket, `user` for the name of a
/// user, and `is_listed` whether a container is among those that the daemon tells of.
pub fn services(
    listeners: &[Listener],
    owner: &dyn Fn(u64) -> Option<Owner>,
    user: &dyn Fn(u32) -> Option<String>,
    is_listed: &dyn Fn(&str) -> bool,
) -> Vec<(Engine, Service)> {
    let mut found: BTreeMap<Key, (Engine, Service)> = BTreeMap::new();
    for listener in listeners {
        let owner = owner(listener.inode);
        if owner.as_ref().and_then(|owner| owner.container.as_deref()).is_some_and(is_listed) {
            continue;
        }
        let engine = match &owner {
            Some(owner) => engine_of_process(&owner.comm).filter(|_| is_own_protocol(&listener.at)),
            None => engine_by_looks(listener, listener.uid.and_then(user).as_deref()),
        };
        let Some(engine) = engine else { continue };
        let key = key(listener, engine, owner.as_ref());
        if found.len() >= MAX_SERVICES && !found.contains_key(&key) {
            continue;
        }
        let (_, service) = found.entry(key).or_insert_with(|| (engine, Service::default()));
        if let Some(owner) = owner {
            service.process = owner.comm;
        }
        match &listener.at {
            At::Tcp(address) if service.addresses.len() < MAX_PLACES => {
                if !service.addresses.contains(address) {
                    service.addresses.push(*address);
                }
            }
            At::Unix(path) if service.sockets.len() < MAX_PLACES => {
                service.sockets.push(path.clone());
            }
            At::Tcp(_) | At::Unix(_) => {}
        }
    }
    let (keys, services): (Vec<Key>, Vec<_>) = found.into_iter().unzip();
    join(keys, services)
}

fn is_own_protocol(at: &At) -> bool {
    match at {
        At::Tcp(address) => !is_second(address.port()),
        At::Unix(path) => path.file_name().is_none_or(|name| name != "mysqlx.sock"),
    }
}

fn key(listener: &Listener, engine: Engine, owner: Option<&Owner>) -> Key {
    let word = super::report::word(engine);
    match (owner, &listener.at) {
        (Some(owner), _) => Key::Process(owner.pid),
        (None, At::Tcp(address)) => Key::Port(word, address.port()),
        (None, At::Unix(path)) => {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            match name.strip_prefix(PG_SOCKET).and_then(|port| port.parse().ok()) {
                Some(port) => Key::Port(word, port),
                None => Key::Socket(path.clone()),
            }
        }
    }
}

/// A socket without a known process belongs to the one server of its engine, if there is only one.
fn join(keys: Vec<Key>, services: Vec<(Engine, Service)>) -> Vec<(Engine, Service)> {
    let (lone, mut whole): (Vec<_>, Vec<_>) =
        keys.into_iter().zip(services).partition(|(key, _)| matches!(key, Key::Socket(_)));
    for (key, (engine, service)) in lone {
        let mut same = whole.iter_mut().filter(|(key, (other, of))| {
            matches!(key, Key::Port(..)) && alike(*other, engine) && of.sockets.is_empty()
        });
        match (same.next(), same.next()) {
            (Some((_, (_, only))), None) => only.sockets = service.sockets,
            _ => whole.push((key, (engine, service))),
        }
    }
    whole.into_iter().map(|(_, found)| found).collect()
}

/// Whether two engines may be one: MariaDB goes by MySQL's names and port.
pub(super) fn alike(one: Engine, other: Engine) -> bool {
    let family = |engine| if engine == Engine::MariaDb { Engine::MySql } else { engine };
    family(one) == family(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn line(local: &str, state: &str, uid: u32, inode: u64) -> String {
        format!(
            "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0000000000000000 100 0 0 10 0\n"
        )
    }

    fn tcp_at(port: u16, inode: u64, uid: u32) -> Listener {
        let at = At::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
        Listener { at, inode, uid: Some(uid) }
    }

    fn unix_at(path: &str, inode: u64) -> Listener {
        Listener { at: At::Unix(path.into()), inode, uid: None }
    }

    /// Nothing is known but looks; the users are those of Debian.
    fn by_looks(listeners: &[Listener]) -> Vec<(Engine, Service)> {
        let user = |uid| Some(if uid == 1 { "postgres" } else { "somebody" }.to_owned());
        services(listeners, &|_| None, &user, &|_| false)
    }

    #[test]
    fn listening_addresses() {
        let v4 = u32::from_ne_bytes([127, 0, 0, 1]);
        let last = u32::from_ne_bytes([0, 0, 0, 1]);
        let text = [
            HEAD.to_owned(),
            line(&format!("{v4:08X}:1538"), "0A", 102, 777),
            line(&format!("{v4:08X}:1539"), "01", 102, 778),
            line(&format!("{:024}{last:08X}:0CEA", 0), "0A", 0, 779),
            "garbage\n".to_owned(),
            line("XY:1538", "0A", 0, 1),
        ];
        let found = tcp(&text.concat());
        let tcp = |text: &str| At::Tcp(text.parse().unwrap());
        assert_eq!(
            found,
            [
                Listener { at: tcp("127.0.0.1:5432"), inode: 777, uid: Some(102) },
                Listener { at: tcp("[::1]:3306"), inode: 779, uid: Some(0) },
            ]
        );
    }

    #[test]
    fn listening_paths() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/a b/.s.PGSQL.5432\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 12 /run/connected\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 13 @abstract\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 14 /run/seqpacket\n\
            x\n";
        assert_eq!(unix(text), [unix_at("/run/a b/.s.PGSQL.5432", 11)]);
    }

    #[test]
    fn the_process_decides_where_it_is_known() {
        let listeners = [
            tcp_at(5432, 1, 0),
            tcp_at(6000, 2, 0),
            tcp_at(33060, 2, 0),
            unix_at("/run/mysqld/mysqld.sock", 2),
            unix_at("/run/mysqld/mysqlx.sock", 2),
            tcp_at(6379, 3, 0),
        ];
        let owner = |inode| {
            let (comm, container) = match inode {
                1 => ("docker-proxy", None),
                2 => ("mariadbd", None),
                _ => ("redis-server", Some("f00d".to_owned())),
            };
            Some(Owner { pid: inode as u32, comm: comm.into(), container })
        };
        let service = Service {
            process: "mariadbd".into(),
            addresses: vec!["127.0.0.1:6000".parse().unwrap()],
            sockets: vec!["/run/mysqld/mysqld.sock".into()],
        };
        let found = services(&listeners, &owner, &|_| None, &|id| id == "f00d");
        assert_eq!(found, [(Engine::MariaDb, service)]);
        // A container that the daemon does not tell of is a service like any other.
        let found = services(&listeners, &owner, &|_| None, &|_| false);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn looks_decide_where_it_is_not() {
        let listeners = [
            tcp_at(5433, 1, 1),
            tcp_at(6432, 2, 1),
            tcp_at(27017, 3, 2),
            tcp_at(8080, 4, 2),
            unix_at("/tmp/.s.PGSQL.5433", 5),
            unix_at("/tmp/.s.PGSQL.6432", 6),
            unix_at("/run/redis/redis-server.sock", 7),
            unix_at("/tmp/mongodb-27017.sock", 8),
        ];
        let found = by_looks(&listeners);
        let shown: Vec<_> = found
            .iter()
            .map(|(engine, service)| (*engine, service.addresses.len(), service.sockets.len()))
            .collect();
        assert_eq!(
            shown,
            [(Engine::MongoDb, 1, 1), (Engine::PostgreSql, 1, 1), (Engine::Redis, 0, 1)]
        );
    }

    #[test]
    fn two_servers_are_not_taken_for_one() {
        let two = [tcp_at(3306, 1, 2), tcp_at(3307, 2, 1), unix_at("/run/mysqld/mysqld.sock", 3)];
        assert_eq!(by_looks(&two[..1]).len(), 1);
        let user = |_| Some("mysql".to_owned());
        assert_eq!(services(&two, &|_| None, &user, &|_| false).len(), 3);
        assert_eq!(services(&two[1..], &|_| None, &user, &|_| false).len(), 1);
    }
}
