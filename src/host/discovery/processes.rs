//! Reads `/proc`: what listens, and which processes are behind it as far as this user may know. Bounded in every
//! direction; what cannot be read is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::listeners::{self, Listener, Owner, engine_by_looks, engine_of_process, services};
use super::report::{Database, Here, Place};
use crate::clock::Deadline;
use crate::thread::Cancel;

/// Read of one file.
const MAX_FILE_BYTES: u64 = 8 << 20;
const MAX_PROCESSES: usize = 32_768;
/// Descriptors of one process; listening ones are among the first that a server opens.
const MAX_DESCRIPTORS: usize = 4_096;
/// For all processes together.
const TIME: Duration = Duration::from_secs(3);

/// The databases that are services of this host; `is_listed` tells of containers that are reported as such.
pub(super) fn look(is_listed: &dyn Fn(&str) -> bool, cancel: &Cancel) -> Vec<Database> {
    let proc_dir = Path::new("/proc");
    let net = |name: &str| read(&proc_dir.join("self/net").join(name));
    let mut found = listeners::tcp(&net("tcp"));
    found.extend(listeners::tcp(&net("tcp6")));
    found.extend(listeners::unix(&net("unix")));
    if found.is_empty() {
        return Vec::new();
    }
    let users = users(&read(Path::new("/etc/passwd")));
    let user = |uid: u32| users.get(&uid).cloned();
    let owners = owners(proc_dir, &found, &user, cancel);
    let owner = |inode: u64| owners.get(&inode).cloned();
    let services = services(&found, &owner, &user, is_listed);
    let place = |(engine, service)| Database { engine, place: Place::Service(service) };
    services.into_iter().map(place).collect()
}

/// Who has these sockets open. All processes are looked through only for sockets that would otherwise be judged by
/// their looks.
fn owners(
    proc_dir: &Path,
    found: &[Listener],
    user: &dyn Fn(u32) -> Option<String>,
    cancel: &Cancel,
) -> BTreeMap<u64, Owner> {
    let deadline = Deadline::after(TIME);
    let mut pids: Vec<u32> = fs::read_dir(proc_dir)
        .into_iter()
        .flatten()
        .take(MAX_PROCESSES)
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // A server's first process is the oldest; those that it starts may share its sockets.
    pids.sort_unstable();
    let (servers, others): (Vec<_>, Vec<_>) = pids
        .into_iter()
        .map(|pid| (pid, read(&proc_dir.join(format!("{pid}/comm"))).trim_end().to_owned()))
        .partition(|(_, comm)| engine_of_process(comm).is_some());
    let mut owners = BTreeMap::new();
    let mut wanted: BTreeSet<u64> = found.iter().map(|listener| listener.inode).collect();
    for (pid, comm) in servers {
        claim(proc_dir, pid, comm, &mut wanted, &mut owners);
    }
    let doubtful = |listener: &&Listener| {
        let name = listener.uid.and_then(user);
        wanted.contains(&listener.inode) && engine_by_looks(listener, name.as_deref()).is_some()
    };
    wanted = found.iter().filter(doubtful).map(|listener| listener.inode).collect();
    for (pid, comm) in others {
        if wanted.is_empty() || deadline.passed() || cancel.is_cancelled() {
            break;
        }
        claim(proc_dir, pid, comm, &mut wanted, &mut owners);
    }
    owners
}

fn claim(
    proc_dir: &Path,
    pid: u32,
    comm: String,
    wanted: &mut BTreeSet<u64>,
    owners: &mut BTreeMap<u64, Owner>,
) {
    let dir = proc_dir.join(pid.to_string());
    let Ok(descriptors) = fs::read_dir(dir.join("fd")) else { return };
    let mut owner = None;
    for descriptor in descriptors.flatten().take(MAX_DESCRIPTORS) {
        let Some(inode) = socket_of(&descriptor.path()).filter(|inode| wanted.remove(inode)) else {
            continue;
        };
        let owner = owner.get_or_insert_with(|| {
            let container = container_of(&read(&dir.join("cgroup")));
            Owner { pid, comm: comm.clone(), container }
        });
        owners.insert(inode, owner.clone());
    }
}

/// `socket:[123]` → 123.
fn socket_of(descriptor: &Path) -> Option<u64> {
    let link: PathBuf = fs::read_link(descriptor).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The 64 digits in `0::/system.slice/docker-<id>.scope`, `…/docker/<id>` or `…/libpod-<id>.scope`.
fn container_of(cgroup: &str) -> Option<String> {
    let is_id = |part: &&str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
    cgroup.split(|c: char| !c.is_ascii_alphanumeric()).find(is_id).map(str::to_owned)
}

/// `/etc/passwd`: names by number.
fn users(passwd: &str) -> BTreeMap<u32, String> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    passwd.lines().filter_map(user).collect()
}

/// What this machine is called, and the addresses of its interfaces.
pub(super) fn here() -> Here {
    let mut addresses = local_v4(&read(Path::new("/proc/self/net/fib_trie")));
    addresses.extend(local_v6(&read(Path::new("/proc/self/net/if_inet6"))));
    Here { hostname: crate::host::metrics::hostname(), addresses }
}

/// The kernel's routes: an address, and on the next line that it is the host's own.
fn local_v4(trie: &str) -> Vec<IpAddr> {
    let (mut last, mut found) = (None, Vec::new());
    for line in trie.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<IpAddr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = last.filter(|address| !found.contains(address))
        {
            found.push(address);
        }
    }
    found
}

fn local_v6(interfaces: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let digits = line.split_ascii_whitespace().next()?;
        let bits = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
        Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
    };
    interfaces.lines().filter_map(address).collect()
}

/// The text of a file, or what could be read of it.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_FILE_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::host::discovery::listeners::At;

    #[test]
    fn containers_by_their_groups() {
        let id = "0123456789abcdef".repeat(4);
        for text in [
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("12:memory:/docker/{id}\n0::/\n"),
            format!("0::/user.slice/user-1000.slice/libpod-{id}.scope/container"),
            format!("0::/kubepods/pod{}/cri-containerd-{id}.scope", &id[..36]),
        ] {
            assert_eq!(container_of(&text), Some(id.clone()), "{text}");
        }
        assert_eq!(container_of("0::/system.slice/postgresql@15-main.service\n"), None);
    }

    #[test]
    fn own_addresses() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
            |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n";
        assert_eq!(local_v4(trie), [IpAddr::from([10, 1, 2, 3])]);
        let v6 = "fe80000000000000fc54fffffe000001 02 40 20 80 eth0\nx\n";
        assert_eq!(local_v6(v6).len(), 1);
        assert!(here().addresses.contains(&Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn names_of_users() {
        let users = users("root:x:0:0::/:/bin/sh\nbad\npostgres:x:107:115::/:/bin/sh\n");
        assert_eq!(users.get(&107).map(String::as_str), Some("postgres"));
        assert_eq!(users.len(), 2);
    }

    /// This very process listens, and is found as no database, although the socket's name says so.
    #[test]
    fn a_process_is_found_behind_its_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("redis.sock");
        let _unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = tcp.local_addr().unwrap();
        let net = |name: &str| read(&Path::new("/proc/self/net").join(name));
        let mut found = listeners::tcp(&net("tcp"));
        found.extend(listeners::unix(&net("unix")));
        let at = |at: At| found.iter().find(|listener| listener.at == at).unwrap().clone();
        let both = [
            at(At::Tcp(SocketAddr::V4(match address {
                SocketAddr::V4(v4) => v4,
                SocketAddr::V6(_) => panic!(),
            }))),
            at(At::Unix(path.clone())),
        ];
        let cancel = Cancel::new().unwrap();
        let owners = owners(Path::new("/proc"), &both, &|_| None, &cancel);
        let own = owners.get(&both[1].inode).unwrap();
        assert_eq!(own.pid, std::process::id());
        // Nobody asked for the other: it looks like no database.
        assert!(!owners.contains_key(&both[0].inode));
        let shown = look(&|_| false, &cancel);
        let mentions =
            |db: &Database| matches!(&db.place, Place::Service(s) if s.sockets.contains(&path));
        assert!(!shown.iter().any(mentions), "{shown:?}");
    }
}
