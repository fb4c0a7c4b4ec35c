//! Databases in containers of a real Docker daemon, dumped by the tools of their own image.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use backupy::drivers::{ContainerFault, DriverError, ExecError, PostgresFault};
use backupy::model::{Connection, Target, Way};
use backupy::secret::Secret;
use backupy::thread::Why;

use crate::postgres::{DIGEST, FILL, pg};
use crate::rig::{LONG, Rig};
use crate::support_docker::{Dockerd, PASSWORD, left_out};
use crate::support_postgres::{Postgres, bin_dir};

fn inside(container: &str) -> Connection {
    Connection {
        database: "postgres".into(),
        password_ref: Secret::new(PASSWORD),
        container: container.into(),
        way: Way::DockerExec,
        ..Connection::default()
    }
}

pub fn rig(docker: &Dockerd) -> Rig {
    let mut rig = Rig::new();
    rig.policy.docker_socket = docker.socket();
    rig
}

/// A daemon with PostgreSQL in the container `db`.
fn with_database() -> Dockerd {
    let docker = Dockerd::start();
    docker.import_postgres(&bin_dir());
    docker.run_postgres("db", &bin_dir());
    docker
}

pub fn failure(rig: &Rig, target: &Target) -> (DriverError, String) {
    let error = rig.run(target).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains(PASSWORD) && !text.contains("s3cret"), "{text}");
    (error, text)
}

fn fault(rig: &Rig, container: &str) -> (ContainerFault, String) {
    match failure(rig, &pg(inside(container))) {
        (DriverError::Exec(ExecError::Container(fault)), text) => (fault, text),
        (other, _) => panic!("{other:?}"),
    }
}

/// How a dump ends whose container was killed. A daemon that is slow to notice leaves it at the cut stream.
pub fn died(docker: &Dockerd, container: &str, error: &DriverError) {
    let text = error.to_string();
    let known = ["does not run (exited)", "is not whole", "the connection to Redis broke"];
    let known =
        known.iter().any(|words| text.contains(words)) || text.contains("closed the connection");
    assert!(known && error.retry(), "{text}");
    docker.docker(&["wait", container]);
}

/// Takes everything, but pauses at its first bytes for longer than Docker gives a command that has ended.
pub struct Slow {
    pub taken: Vec<u8>,
    pub pause: Duration,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(std::mem::take(&mut self.pause));
        self.taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn dumped_in_every_way_and_restored() {
    if left_out() {
        return;
    }
    let docker = with_database();
    docker.sql("db", FILL);
    let expected = docker.sql("db", DIGEST);
    let id = docker.docker(&["inspect", "-f", "{{.Id}}", "db"]);
    docker.docker(&["rename", "db", "shop-db"]);
    let server = Postgres::start();
    let ways = [
        inside("shop-db"),
        inside("/shop-db"),
        inside(&id),
        inside(&id[..12]),
        Connection { port: 5432, username: "postgres".into(), ..inside("shop-db") },
        Connection { host: "localhost".into(), ..inside("shop-db") },
        Connection { host: "127.0.0.1".into(), port: 5432, ..inside("shop-db") },
        Connection { host: "/var/run/postgresql".into(), ..inside("shop-db") },
    ];
    for (number, connection) in ways.into_iter().enumerate() {
        let mut rig = rig(&docker);
        if number % 2 == 0 {
            rig.policy.trust = backupy::model::Trust::Remote;
            rig.policy.allow_containers = Some(vec!["other".into(), "shop-db".into()]);
        }
        let mut slow = Slow { taken: Vec::new(), pause: Duration::ZERO };
        if number == 0 {
            slow.pause = Duration::from_secs(5);
        }
        let (prepared, dumped, version) = rig.run_into(&pg(connection), &mut slow).unwrap();
        assert_eq!(dumped.bytes, slow.taken.len() as u64);
        assert_eq!(dumped.warnings, Vec::<String>::new());
        assert!(prepared.engine_version.starts_with("PostgreSQL 1"), "{prepared:?}");
        assert_eq!(version, Some(prepared.engine_version));
        let file = rig.path("dump");
        fs::write(&file, &slow.taken).unwrap();
        let copy = format!("copy_{number}");
        server.create_database(&copy);
        server.restore(&copy, &file);
        assert_eq!(server.sql(&copy, DIGEST), expected, "way {number}");
    }
    assert_eq!(docker.sql("shop-db", "SELECT 1"), "1");
    what_the_server_says_no_to(&docker);
    what_the_host_does_not_allow(&docker);
}

fn what_the_server_says_no_to(docker: &Dockerd) {
    let rig = rig(docker);
    let connection =
        Connection { password_ref: Secret::new("s3cret hunter2"), ..inside("shop-db") };
    let (error, text) = failure(&rig, &pg(connection));
    assert!(matches!(error, DriverError::Postgres(PostgresFault::Password(_))), "{text}");
    for odd in ["missing; touch /tmp/x", "$(touch /tmp/x)", "a' 'b", "`touch /tmp/x`"] {
        let connection = Connection { database: odd.into(), ..inside("shop-db") };
        let (error, text) = failure(&rig, &pg(connection));
        assert!(matches!(error, DriverError::Postgres(PostgresFault::NoDatabase(_))), "{text}");
        assert!(text.contains("does not exist"), "{text}");
    }
    let file = docker.try_docker(&["exec", "shop-db", "sh", "-c", "[ -e /tmp/x ]"]);
    assert!(!file.status.success(), "no word became a command");
}

fn what_the_host_does_not_allow(docker: &Dockerd) {
    let mut rig = rig(docker);
    rig.policy.trust = backupy::model::Trust::Remote;
    rig.policy.allow_containers = Some(vec!["other".into()]);
    let (error, text) = failure(&rig, &pg(inside("shop-db")));
    assert!(matches!(error, DriverError::NotAllowed { .. }) && !error.retry(), "{text}");
    assert!(text.contains("BACKUPY_ALLOW_CONTAINERS"), "{text}");
    rig.policy.allow_containers = None;
    for host in ["169.254.169.254", "metadata.internal"] {
        let connection = Connection { host: host.into(), ..inside("shop-db") };
        let (error, text) = failure(&rig, &pg(connection));
        assert!(matches!(error, DriverError::NotAllowed { .. }), "{text}");
    }
}

/// Holds a lock that `pg_dump` waits for, until the container's end.
const HOLD: &str = "BEGIN; LOCK TABLE held; SELECT pg_sleep(3600)";

#[test]
fn nothing_is_seen_while_it_runs_and_a_cancel_leaves_nothing() {
    if left_out() {
        return;
    }
    let docker = with_database();
    docker.sql("db", "CREATE TABLE held(a int)");
    let password = format!("PGPASSWORD={PASSWORD}");
    let hold = ["exec", "-d", "-e", &password, "db", "psql", "-U", "postgres", "-c", HOLD];
    docker.docker(&hold);
    let locks = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = to_regclass('held')";
    let deadline = Instant::now() + LONG;
    while docker.sql("db", locks) != "1" {
        assert!(Instant::now() < deadline, "the lock is taken");
    }
    let rig = rig(&docker);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| rig.run(&pg(inside("db"))));
        docker.wait_until("db", "/pg_dump", true);
        // While it waits for the lock.
        nothing_is_seen(&docker, "/usr/bin/pg_dump", "passfile='/proc/self/fd/3'", "pg_sleep");
        rig.cancel.cancel(Why::Requested);
        let error = run.join().unwrap().unwrap_err();
        assert!(matches!(error, DriverError::Cancelled(Why::Requested)), "{error}");
    });
    docker.wait_until("db", "/pg_dump", false);
    docker.wait_until("db", "sh", false);
    // PostgreSQL is the container's first process: an orphan of ours that died would look like its own.
    let logs = docker.try_docker(&["logs", "db"]);
    let logs = String::from_utf8_lossy(&logs.stderr);
    assert!(!logs.contains("terminated by signal"), "{logs}");
    assert_eq!(docker.sql("db", locks), "1", "other sessions go on");
}

/// Looks at every process of the container `db` while `program` runs there, and at what Docker tells of it. `argument`
/// names the secret's file; the command with `own` in it is the test's and has the secret in its environment.
pub fn nothing_is_seen(docker: &Dockerd, program: &str, argument: &str, own: &str) {
    let dump = docker.pids("db");
    assert!(dump.len() > 3);
    let mut dumps = 0;
    for pid in dump {
        let read = |name: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (command, environment) = (read("cmdline"), read("environ"));
        assert!(!command.contains("s3cret"), "{command}");
        if !command.contains(own) {
            assert!(!environment.contains("s3cret"), "{command}: {environment}");
        }
        if command.starts_with(program) {
            dumps += 1;
            assert!(command.contains(argument), "{command}");
            let names: Vec<_> =
                environment.split('\0').filter_map(|v| v.split('=').next()).collect();
            assert_eq!(names, ["PATH", "LANG", "LC_ALL", ""], "the environment is empty");
            let stat = read("stat");
            let nice = stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap();
            assert_eq!(nice, "10", "it is kind to the host");
        }
        for dir in ["dev/shm", "tmp", "run"] {
            let entries =
                fs::read_dir(Path::new("/proc").join(pid.to_string()).join("root").join(dir));
            for entry in entries.into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                assert!(!name.starts_with(".backupy"), "{name}");
            }
        }
    }
    assert_eq!(dumps, 1);
    let container = docker.get("/v1.41/containers/db/json");
    let execs: serde_json::Value =
        serde_json::from_str(&container[container.find('{').unwrap()..]).unwrap();
    let execs = execs["ExecIDs"].as_array().unwrap().clone();
    let mut seen = 0;
    for exec in execs {
        let told = docker.get(&format!("/v1.41/exec/{}/json", exec.as_str().unwrap()));
        if told.contains(argument) {
            seen += 1;
            assert!(!told.contains("s3cret"), "{told}");
        }
    }
    assert_eq!(seen, 1, "the exec was looked at");
}

/// Does something to the container once the dump flows.
pub struct Then<'a> {
    pub taken: usize,
    pub act: Option<&'a dyn Fn()>,
}

impl<'a> Then<'a> {
    pub fn new(act: &'a dyn Fn()) -> Self {
        Self { taken: 0, act: Some(act) }
    }
}

impl Write for Then<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.taken += bytes.len();
        if self.taken > 100_000
            && let Some(act) = self.act.take()
        {
            act();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn containers_that_cannot_or_do_not_stay() {
    if left_out() {
        return;
    }
    let docker = with_database();
    let mut rig = rig(&docker);
    // More than all buffers between the server and us hold.
    docker.sql(
        "db",
        "CREATE TABLE big AS SELECT repeat(md5(i::text), 100) FROM generate_series(1, 20000) i",
    );
    docker.import_static("bare", false);
    docker.import_static("shell", true);
    for image in ["bare", "shell"] {
        let args = ["run", "-d", "--name", image, "--network=none", image];
        docker.docker(&[&args[..], &["/busybox", "sleep", "3600"]].concat());
    }
    let (found, text) = fault(&rig, "bare");
    assert!(matches!(found, ContainerFault::NoShell { .. }) && !found.retry(), "{text}");
    let (error, text) = failure(&rig, &pg(inside("shell")));
    assert!(matches!(error, DriverError::Postgres(PostgresFault::NoTool { .. })), "{text}");
    assert!(text.contains("the container shell"), "{text}");
    let (_, text) = fault(&rig, "nowhere");
    assert!(text.contains("there is no container nowhere"), "{text}");

    docker.docker(&["pause", "db"]);
    let (found, text) = fault(&rig, "db");
    assert!(text.contains("is paused") && found.retry(), "{text}");
    docker.docker(&["unpause", "db"]);

    rig.limits.stuck_timeout = Duration::from_secs(5);
    let pause = || drop(docker.docker(&["pause", "db"]));
    let mut then = Then::new(&pause);
    let error = rig.run_into(&pg(inside("db")), &mut then).unwrap_err();
    assert!(error.to_string().contains("is paused") && error.retry(), "{error}");
    docker.docker(&["unpause", "db"]);
    docker.wait_until("db", "/pg_dump", false);
    rig.limits.stuck_timeout = LONG;

    let kill = || drop(docker.docker(&["kill", "db"]));
    let mut then = Then::new(&kill);
    let error = rig.run_into(&pg(inside("db")), &mut then).unwrap_err();
    died(&docker, "db", &error);
    let (found, text) = fault(&rig, "db");
    assert!(text.contains("does not run (exited)") && found.retry(), "{text}");

    let socket = docker.socket();
    drop(docker);
    rig.policy.docker_socket = socket;
    let (found, text) = fault(&rig, "db");
    assert!(text.contains("BACKUPY_DOCKER_SOCKET") && found.retry(), "{text}");
}
