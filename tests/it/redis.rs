//! Redis for real: dumped over TCP and the socket, from disk and without, started again on the dump, compared.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use backupy::drivers::load::{inspect, load};
use backupy::drivers::{Context, DriverError, RdbFault, RedisFault};
use backupy::model::{Connection, Engine, Target, Way};
use backupy::secret::Secret;

use crate::rig::{Rig, target};
use crate::support_redis::{PASSWORD, Redis};

pub fn tcp(server: &Redis) -> Connection {
    at(server.port)
}

pub fn at(port: u16) -> Connection {
    Connection { host: "127.0.0.1".into(), port: port.into(), ..Connection::default() }
}

pub fn redis(connection: Connection) -> Target {
    target(Engine::Redis, connection)
}

/// Starts a server on the dump and compares all databases; the second server.
fn same(server: &Redis, dump: &[u8]) -> Redis {
    let copy = Redis::start_on(Some(dump), &[]);
    assert_eq!(copy.digest(), server.digest());
    let functions = ["FUNCTION", "DUMP"];
    assert_eq!(copy.ask(&functions), server.ask(&functions));
    copy
}

#[test]
fn every_way_restored_and_compared() {
    for diskless in ["yes", "no"] {
        let server = Redis::start(&["--repl-diskless-sync", diskless]);
        server.fill();
        let socket = |host: &std::path::Path| Connection {
            host: host.to_str().unwrap().into(),
            way: Way::UnixSocket,
            ..Connection::default()
        };
        let ways = [
            tcp(&server),
            Connection { host: "localhost".into(), database: "0".into(), ..tcp(&server) },
            socket(&server.socket()),
            socket(server.dir()),
        ];
        for (connection, rig) in
            ways.iter().zip([Rig::new(), Rig::remote(), Rig::new(), Rig::remote()])
        {
            let mut dump = Vec::new();
            let (prepared, dumped, version) =
                rig.run_into(&redis(connection.clone()), &mut dump).unwrap();
            assert!(dump.starts_with(b"REDIS00"));
            assert_eq!(dumped.bytes, dump.len() as u64);
            assert_eq!((prepared.warnings, dumped.warnings), (vec![], vec![]));
            assert!(prepared.engine_version.starts_with("Redis "), "{}", prepared.engine_version);
            assert_eq!(version, Some(prepared.engine_version));
            assert!(prepared.size_hint_bytes.unwrap() > 500_000);
            assert!(rig.progress.lock().unwrap().iter().any(|p| p.percent.is_some()));
        }
        let (dump, _, _) = Rig::new().run(&redis(tcp(&server))).unwrap();
        let copy = same(&server, &dump);
        assert_eq!(copy.ask(&["TTL", "soon"]).len(), server.ask(&["TTL", "soon"]).len());
        counted(&server, &dump);
    }
}

/// What `verify` says of a dump: as many keys as the server has.
fn counted(server: &Redis, dump: &[u8]) {
    let rig = Rig::new();
    let file = rig.path("dump.rdb");
    std::fs::write(&file, dump).unwrap();
    with(&rig, |cx| {
        let found = inspect(Engine::Redis, &file, cx).unwrap();
        assert_eq!(found.warnings, Vec::<String>::new());
        let found: Vec<_> =
            found.tables.iter().map(|t| (t.name.as_str(), t.rows.unwrap())).collect();
        let keys: u64 = server.ask(&["DBSIZE"]).parse().unwrap();
        assert_eq!(found, [("db0", keys), ("db9", 1), ("function libraries", 1)]);
        let error = load(&redis(Connection::default()), &file, true, cx).unwrap_err();
        assert!(error.to_string().contains("dbfilename") && !error.retry(), "{error}");
        for (at, damage) in
            [(dump.len() / 2, RdbFault::Checksum), (dump.len() - 9, RdbFault::NoEnd)]
        {
            let mut damaged = dump.to_vec();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).unwrap();
            let error = inspect(Engine::Redis, &file, cx).unwrap_err();
            let DriverError::Redis(RedisFault::Rdb(fault)) = error else { panic!("{error}") };
            assert_eq!(fault, damage);
        }
    });
}

fn with(rig: &Rig, look: impl FnOnce(&Context<'_>)) {
    let work_dir = rig.work_dir();
    let context = Context {
        cancel: &rig.cancel,
        policy: &rig.policy,
        limits: &rig.limits,
        work_dir: &work_dir,
        progress: &|_| {},
    };
    look(&context);
}

#[test]
fn empty() {
    let server = Redis::start(&[]);
    let (dump, _, _) = Rig::new().run(&redis(tcp(&server))).unwrap();
    same(&server, &dump);
}

#[test]
fn passwords_and_users() {
    let server = Redis::start(&["--requirepass", PASSWORD]);
    server.fill();
    let rules =
        ["ACL", "SETUSER", "backup", "on", ">word", "+psync", "+replconf", "+sync", "+ping"];
    assert_eq!(server.ask(&rules), "OK");
    assert_eq!(server.ask(&["ACL", "SETUSER", "weak", "on", ">word", "+ping", "+info"]), "OK");
    let mut rig = Rig::remote();
    std::fs::create_dir(rig.path("secrets")).unwrap();
    let file = rig.path("secrets/redis");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    rig.policy.secrets_dir = Some(rig.path("secrets"));
    let login = |user: &str, password: &str| Connection {
        username: user.into(),
        password_ref: Secret::new(password),
        ..tcp(&server)
    };
    let by_file = format!("file:{}", file.display());
    for (user, password) in [("", PASSWORD), ("default", PASSWORD), ("", &by_file)] {
        let (_, prepared, _) = rig.run(&redis(login(user, password))).unwrap();
        assert!(prepared.engine_version.starts_with("Redis "));
    }
    let mut dump = Vec::new();
    let (prepared, _, version) = rig.run_into(&redis(login("backup", "word")), &mut dump).unwrap();
    assert_eq!((prepared.engine_version.as_str(), prepared.size_hint_bytes), ("", None));
    assert!(version.unwrap().starts_with("Redis "), "the dump itself says it");
    same_with_password(&server, &dump);
    for (user, password) in [("", "hunter2hunter2"), ("", ""), ("nobody", "hunter2hunter2")] {
        let error = rig.run(&redis(login(user, password))).unwrap_err();
        let expected = matches!(error, DriverError::Redis(RedisFault::Password(_)));
        assert!(expected && !error.retry(), "{user}: {error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let error = rig.run(&redis(login("weak", "word"))).unwrap_err();
    assert!(matches!(error, DriverError::Redis(RedisFault::Permission(_))), "{error}");
    assert!(
        error.to_string().contains("+psync +replconf +sync +ping") && !error.retry(),
        "{error}"
    );
}

fn same_with_password(server: &Redis, dump: &[u8]) {
    let copy = Redis::start_on(Some(dump), &["--requirepass", PASSWORD]);
    assert_eq!(copy.digest(), server.digest());
}

#[test]
fn what_is_worth_a_warning() {
    let server = Redis::start(&["--rdbchecksum", "no"]);
    server.fill();
    let connection =
        Connection { password_ref: Secret::new("hunter2"), database: "3".into(), ..tcp(&server) };
    let (dump, prepared, dumped) = Rig::new().run(&redis(connection)).unwrap();
    let [password, database] = &prepared.warnings[..] else { panic!("{prepared:?}") };
    assert!(password.contains("asks for none") && database.contains("all databases"));
    let [checksum] = &dumped.warnings[..] else { panic!("{dumped:?}") };
    assert!(checksum.contains("rdbchecksum"), "{checksum}");
    same(&server, &dump);
}

#[test]
fn psync_renamed() {
    let server = Redis::start(&["--rename-command", "PSYNC", ""]);
    server.fill();
    let (dump, _, _) = Rig::new().run(&redis(tcp(&server))).unwrap();
    same(&server, &dump);
    let server = Redis::start(&["--rename-command", "PSYNC", "", "--rename-command", "SYNC", ""]);
    let error = Rig::new().run(&redis(tcp(&server))).unwrap_err();
    assert!(
        matches!(error, DriverError::Redis(RedisFault::NoSync(_))) && !error.retry(),
        "{error}"
    );
}

#[test]
fn a_replica_without_its_master_and_a_full_server() {
    let server = Redis::start(&["--replicaof", "127.0.0.1 1"]);
    let error = Rig::new().run(&redis(tcp(&server))).unwrap_err();
    assert!(
        matches!(error, DriverError::Redis(RedisFault::NoMaster(_))) && error.retry(),
        "{error}"
    );
    let server = Redis::start(&["--maxclients", "1"]);
    let _only = {
        let mut client = server.client();
        client.ask(&["PING"]);
        client
    };
    let error = Rig::new().run(&redis(tcp(&server))).unwrap_err();
    let full = matches!(error, DriverError::Redis(RedisFault::Busy(_)));
    assert!(full && error.retry(), "{error}");
}

/// A value as large as some have, and writers that do not stop: the dump is one moment.
#[test]
fn a_large_value_while_others_write() {
    let server = Redis::start(&[]);
    server.client().try_ask(&[b"SET", b"large", &noise(64 << 20)]).unwrap();
    server.ask(&["MSET", "left", "0", "right", "0"]);
    let mut rig = Rig::new();
    rig.limits.memory_bytes = 1 << 20;
    let stop = AtomicBool::new(false);
    let dump = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = server.client();
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let n = number.to_string();
                client.ask(&["MSET", "left", &n, "right", &n]);
            }
        });
        let dumped = rig.run(&redis(tcp(&server)));
        stop.store(true, Ordering::Relaxed);
        dumped.unwrap().0
    });
    assert!(dump.len() > 64 << 20);
    let copy = Redis::start_on(Some(&dump), &[]);
    assert_eq!(copy.ask(&["GET", "left"]), copy.ask(&["GET", "right"]));
    let digest = ["DEBUG", "DIGEST-VALUE", "large"];
    assert_eq!(copy.ask(&digest), server.ask(&digest));
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The master makes the RDB slowly and dies, or drops us, in the middle of it: nothing may be passed on.
#[test]
fn cut_midway() {
    for kill_server in [true, false] {
        let mut server = Redis::start(&["--rdb-key-save-delay", "2000"]);
        server.ask(&["DEBUG", "POPULATE", "20000", "key", "1000"]);
        let rig = Rig::new();
        let connection = tcp(&server);
        let mut out = Refusing;
        let error = std::thread::scope(|scope| {
            let run = scope.spawn(|| rig.run_into(&redis(connection), &mut out));
            while rig.progress.lock().unwrap().last().is_none_or(|p| p.bytes < 100_000) {
                assert!(!run.is_finished(), "{:?}", run.join());
                std::thread::yield_now();
            }
            if kill_server {
                server.kill();
            } else {
                let killed = server.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
                assert_eq!(killed, "1");
            }
            run.join().unwrap().unwrap_err()
        });
        let DriverError::Redis(RedisFault::Lost { received, .. }) = error else {
            panic!("{error}")
        };
        assert!(received >= 100_000 && error.retry(), "{error}");
    }
}

/// A sink that must see nothing.
struct Refusing;

impl Write for Refusing {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        panic!("half a dump was passed on")
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn tls_by_mode_and_ca() {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let rig = Rig::new();
    let file = |name: &str, text: String| {
        let path = rig.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    std::fs::set_permissions(rig.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let (cert, stranger) = (file("cert.pem", own.cert.pem()), file("other.pem", other.cert.pem()));
    let key = file("key.pem", own.signing_key.serialize_pem());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Redis::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        PASSWORD,
    ]);
    server.fill();
    let with = |port: u16, mode: &str, ca: &str| Connection {
        host: "localhost".into(),
        tls_mode: mode.into(),
        tls_ca_file: ca.into(),
        password_ref: Secret::new(PASSWORD),
        ..at(port)
    };
    for mode in ["", "require", "verify-full"] {
        let (dump, _, _) = rig.run(&redis(with(port, mode, &cert))).unwrap();
        same_with_password(&server, &dump);
    }
    for connection in [
        with(port, "require", ""),
        with(port, "verify-full", &stranger),
        Connection { host: "127.0.0.1".into(), ..with(port, "verify-ca", &cert) },
    ] {
        let error = rig.run(&redis(connection)).unwrap_err();
        assert!(
            matches!(error, DriverError::Redis(RedisFault::Tls(_))) && !error.retry(),
            "{error}"
        );
    }
    let error = rig.run(&redis(with(port, "", ""))).unwrap_err();
    assert!(matches!(error, DriverError::Redis(RedisFault::Lost { .. })), "{error}");
    let error = Rig::remote().run(&redis(with(port, "require", &cert))).unwrap_err();
    assert!(matches!(error, DriverError::NotAllowed { .. }), "{error}");
}
