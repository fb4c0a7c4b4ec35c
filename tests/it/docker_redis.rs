//! Redis in containers of a real Docker daemon, whose image holds nothing but the server: dialled where Docker says it is.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use backupy::drivers::{ContainerFault, Context, DriverError, ExecError, RedisFault, for_target};
use backupy::model::{Connection, Progress, Step, Target, Trust, Way};
use backupy::secret::Secret;

use crate::docker::{died, failure, rig};
use crate::redis::redis;
use crate::rig::{LONG, Rig};
use crate::support_docker::{Dockerd, left_out};
use crate::support_docker_images::{address, import_redis, make_network, run_redis};
use crate::support_redis::{Client, PASSWORD, Redis};

const LOGIN: &str = r#"requirepass "s3cret: it's \\ a:b""#;

fn inside(container: &str) -> Connection {
    Connection {
        password_ref: Secret::new(PASSWORD),
        container: container.into(),
        way: Way::DockerExec,
        ..Connection::default()
    }
}

fn client(at: SocketAddr) -> Client {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(client) = Client::connect(at, Some(PASSWORD)) {
            return client;
        }
        assert!(Instant::now() < deadline, "Redis at {at} does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn at(docker: &Dockerd, name: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address(docker, name).parse().unwrap(), port)
}

fn fault(rig: &Rig, connection: Connection) -> (ContainerFault, String) {
    match failure(rig, &redis(connection)) {
        (DriverError::Exec(ExecError::Container(fault)), text) => (fault, text),
        (other, _) => panic!("{other:?}"),
    }
}

/// A daemon with Redis in the container `cache` on the network `shop`.
fn with_redis() -> (Dockerd, Client) {
    let docker = Dockerd::start();
    import_redis(&docker);
    make_network(&docker, "shop");
    let user = r#"user backup on ">s3cret other" +psync +replconf +sync +ping +info"#;
    run_redis(&docker, "cache", "shop", &format!("{LOGIN}\n{user}"));
    let client = client(at(&docker, "cache", 6379));
    (docker, client)
}

#[test]
fn redis_on_every_network_restored_and_compared() {
    if left_out() {
        return;
    }
    let (docker, cache) = with_redis();
    // Their streams have ids of their own, so no two are alike.
    let filled = |mut client: Client| {
        client.fill();
        client.ask(&["DEBUG", "DIGEST"])
    };
    let own = filled(cache);
    run_redis(&docker, "beside", "container:cache", &format!("{LOGIN}\nport 7000"));
    let beside = filled(client(at(&docker, "cache", 7000)));
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    run_redis(&docker, "hosts", "host", &format!("{LOGIN}\nport {}\nbind 127.0.0.1", free.port()));
    let hosts = filled(client(free));
    assert!(own != beside && own != hosts && beside != hosts);
    let other = Connection {
        username: "backup".into(),
        password_ref: Secret::new("s3cret other"),
        ..inside("cache")
    };
    let ways = [
        (inside("cache"), &own),
        (Connection { host: "localhost".into(), port: 6379, ..inside("/cache") }, &own),
        (other, &own),
        (Connection { port: 7000, ..inside("beside") }, &beside),
        (Connection { port: free.port().into(), ..inside("hosts") }, &hosts),
    ];
    for (number, (connection, expected)) in ways.into_iter().enumerate() {
        let mut rig = rig(&docker);
        if number % 2 == 0 {
            rig.policy.trust = Trust::Remote;
            rig.policy.allow_containers = Some(vec!["cache".into(), "hosts".into()]);
        }
        let mut dump = Vec::new();
        let (prepared, dumped, version) = rig.run_into(&redis(connection), &mut dump).unwrap();
        assert_eq!(dumped.bytes, dump.len() as u64);
        assert_eq!((prepared.warnings, dumped.warnings), (vec![], vec![]));
        assert!(prepared.engine_version.starts_with("Redis "), "{}", prepared.engine_version);
        assert_eq!(version, Some(prepared.engine_version));
        let copy = Redis::start_on(Some(&dump), &[]);
        assert_eq!(&copy.digest(), expected, "way {number}");
    }
    nothing_is_seen(&docker);
    what_is_refused(&docker);
}

/// Nothing was run in there, and nobody was told the password.
fn nothing_is_seen(docker: &Dockerd) {
    let pids = docker.pids("cache");
    assert!(!pids.is_empty());
    for pid in pids {
        for name in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains("s3cret"));
        }
    }
    let told = docker.get("/v1.41/containers/cache/json");
    assert!(told.contains(r#""ExecIDs":null"#) && !told.contains("s3cret"), "{told}");
}

fn what_is_refused(docker: &Dockerd) {
    let mut rig = rig(docker);
    let wrong = Connection { password_ref: Secret::new("s3cret hunter2"), ..inside("cache") };
    let (error, text) = failure(&rig, &redis(wrong));
    assert!(matches!(error, DriverError::Redis(RedisFault::Password(_))), "{text}");
    assert!(!error.retry());
    run_redis(docker, "alone", "none", LOGIN);
    let (found, text) = fault(&rig, inside("alone"));
    assert!(matches!(found, ContainerFault::NoAddress { .. }) && !found.retry(), "{text}");
    assert!(text.contains("the container alone") && text.contains("127.0.0.1:6379:6379"), "{text}");
    let (error, text) = failure(&rig, &redis(Connection { port: 6380, ..inside("cache") }));
    assert!(matches!(error, DriverError::Redis(RedisFault::Unreachable { .. })), "{text}");
    assert!(text.contains(":6380 (the container cache)") && error.retry(), "{text}");
    for host in ["10.0.0.1", "metadata.internal", "/run/redis.sock"] {
        let connection = Connection { host: host.into(), ..inside("cache") };
        let (error, text) = failure(&rig, &redis(connection));
        assert!(matches!(error, DriverError::Setting { field: "host", .. }), "{text}");
    }
    let (_, text) = fault(&rig, inside("nowhere"));
    assert!(text.contains("there is no container nowhere"), "{text}");
    rig.policy.trust = Trust::Remote;
    rig.policy.allow_containers = Some(vec!["other".into()]);
    let (error, text) = failure(&rig, &redis(inside("cache")));
    assert!(matches!(error, DriverError::NotAllowed { .. }) && !error.retry(), "{text}");
    assert!(text.contains("BACKUPY_ALLOW_CONTAINERS"), "{text}");
}

/// Dumps, and does something once the dump flows; how it ended.
fn with_act(rig: &Rig, target: &Target, act: &(dyn Fn() + Sync)) -> DriverError {
    let once = Mutex::new(Some(act));
    let progress = |progress: Progress| {
        if progress.step == Step::Dumping
            && progress.bytes > 1000
            && let Some(act) = once.lock().unwrap().take()
        {
            act();
        }
    };
    let work_dir = rig.work_dir();
    let cx = Context {
        cancel: &rig.cancel,
        policy: &rig.policy,
        limits: &rig.limits,
        work_dir: &work_dir,
        progress: &progress,
    };
    let mut driver = for_target(target, &rig.policy).unwrap();
    driver.prepare(&cx).unwrap();
    let mut out = Vec::new();
    let error = driver.dump(&cx, &mut out).unwrap_err();
    assert!(out.is_empty(), "nothing that is not whole goes further");
    let text = format!("{error} {error:?}");
    assert!(!text.contains("s3cret"), "{text}");
    error
}

#[test]
fn redis_containers_that_do_not_stay() {
    if left_out() {
        return;
    }
    let (docker, mut cache) = with_redis();
    // Slow enough to be caught in the middle: a minute, if nothing happens.
    cache.ask(&["DEBUG", "POPULATE", "60000", "key", "200"]);
    cache.ask(&["CONFIG", "SET", "rdb-key-save-delay", "1000"]);
    let mut rig = rig(&docker);
    let target = redis(inside("cache"));

    docker.docker(&["pause", "cache"]);
    let (found, text) = fault(&rig, inside("cache"));
    assert!(text.contains("is paused") && found.retry(), "{text}");
    docker.docker(&["unpause", "cache"]);

    rig.limits.stuck_timeout = Duration::from_secs(5);
    let error = with_act(&rig, &target, &|| drop(docker.docker(&["pause", "cache"])));
    assert!(error.to_string().contains("is paused") && error.retry(), "{error}");
    docker.docker(&["unpause", "cache"]);
    rig.limits.stuck_timeout = LONG;

    let error = with_act(&rig, &target, &|| drop(docker.docker(&["restart", "-t", "0", "cache"])));
    assert!(error.retry(), "{error}");
    let mut cache = client(at(&docker, "cache", 6379));
    cache.ask(&["DEBUG", "POPULATE", "60000", "key", "200"]);
    cache.ask(&["CONFIG", "SET", "rdb-key-save-delay", "1000"]);

    let error = with_act(&rig, &target, &|| drop(docker.docker(&["kill", "cache"])));
    died(&docker, "cache", &error);
    let (found, text) = fault(&rig, inside("cache"));
    assert!(text.contains("does not run (exited)") && found.retry(), "{text}");
}
