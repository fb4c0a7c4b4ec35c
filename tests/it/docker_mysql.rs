//! MariaDB in containers of a real Docker daemon, dumped by the tools of its own image.

use std::fs;
use std::time::{Duration, Instant};

use backupy::drivers::{ContainerFault, DriverError, ExecError, MySqlFault};
use backupy::model::{Connection, Engine, Trust, Way};
use backupy::secret::Secret;
use backupy::thread::Why;

use crate::docker::{Slow, Then, died, failure, nothing_is_seen, rig};
use crate::mysql::{FILL, digest, digest_by, maria, restore, tcp};
use crate::rig::{LONG, Rig, target};
use crate::support_docker::{Dockerd, left_out};
use crate::support_docker_images::{import_mariadb, maria_sql, run_mariadb};
use crate::support_mariadb::{MariaDb, PASSWORD, USER};

fn inside(container: &str) -> Connection {
    Connection {
        database: "app".into(),
        username: USER.into(),
        password_ref: Secret::new(PASSWORD),
        container: container.into(),
        way: Way::DockerExec,
        ..Connection::default()
    }
}

/// A daemon with MariaDB in the container `db`, which has a database `app`.
fn with_database() -> Dockerd {
    let docker = Dockerd::start();
    import_mariadb(&docker);
    run_mariadb(&docker, "db", true);
    maria_sql(&docker, "db", "", "CREATE DATABASE app");
    docker
}

fn fault(rig: &Rig, container: &str) -> (ContainerFault, String) {
    match failure(rig, &maria(inside(container))) {
        (DriverError::Exec(ExecError::Container(fault)), text) => (fault, text),
        (other, _) => panic!("{other:?}"),
    }
}

fn server_fault(rig: &Rig, connection: Connection) -> (MySqlFault, String) {
    match failure(rig, &maria(connection)) {
        (DriverError::MySql(fault), text) => (fault, text),
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn mysql_dumped_in_every_way_and_restored() {
    if left_out() {
        return;
    }
    let docker = with_database();
    maria_sql(&docker, "db", "app", FILL);
    let expected = digest_by(&|sql| maria_sql(&docker, "db", "app", sql), "app");
    assert!(expected.contains('😀') && expected.contains("tr\t"), "{expected}");
    let id = docker.docker(&["inspect", "-f", "{{.Id}}", "db"]);
    docker.docker(&["rename", "db", "shop-db"]);
    let server = MariaDb::start();
    let ways = [
        inside("shop-db"),
        inside(&id[..12]),
        Connection { host: "localhost".into(), ..inside("shop-db") },
        Connection { host: "127.0.0.1".into(), port: 3306, ..inside("/shop-db") },
        Connection { host: "/run/mysqld".into(), ..inside("shop-db") },
        Connection { host: "/run/mysqld/mysqld.sock".into(), ..inside("shop-db") },
    ];
    for (number, connection) in ways.into_iter().enumerate() {
        let mut rig = rig(&docker);
        if number % 2 == 0 {
            rig.policy.trust = Trust::Remote;
            rig.policy.allow_containers = Some(vec!["other".into(), "shop-db".into()]);
        }
        // A tool of the host would be another version's.
        rig.policy.mysql_bin_dir = Some(rig.path("nothing"));
        let pause = if number == 0 { Duration::from_secs(5) } else { Duration::ZERO };
        let mut slow = Slow { taken: Vec::new(), pause };
        let (prepared, dumped, version) = rig.run_into(&maria(connection), &mut slow).unwrap();
        assert_eq!(dumped.bytes, slow.taken.len() as u64);
        assert_eq!((&prepared.warnings, &dumped.warnings), (&Vec::new(), &Vec::new()));
        assert!(prepared.engine_version.starts_with("MariaDB 1"), "{prepared:?}");
        assert_eq!(version, Some(prepared.engine_version));
        assert!(prepared.size_hint_bytes.unwrap() > 1 << 20);
        let file = rig.path("dump");
        fs::write(&file, &slow.taken).unwrap();
        let copy = format!("copy_{number}");
        let here = Rig::new();
        restore(&here, &maria(tcp(&server, &copy)), &file, false).unwrap();
        assert_eq!(digest(&server, &copy), expected, "way {number}");
        let into = restore(&here, &maria(inside("shop-db")), &file, false).unwrap_err();
        assert!(into.to_string().contains("loading into a container"), "{into}");
    }
    all_databases(&docker);
    what_the_server_says_no_to(&docker);
    what_the_host_does_not_allow(&docker);
}

fn all_databases(docker: &Dockerd) {
    let connection = Connection { database: String::new(), ..inside("shop-db") };
    let (dump, prepared, dumped) = rig(docker).run(&maria(connection)).unwrap();
    let dump = String::from_utf8_lossy(&dump);
    assert!(dump.contains("-- Current Database: `mysql`"), "users, too");
    assert!(dump.contains("-- Current Database: `app`"));
    assert_eq!((prepared.warnings, dumped.warnings), (Vec::new(), Vec::new()));
}

fn what_the_server_says_no_to(docker: &Dockerd) {
    let rig = rig(docker);
    let wrong = Connection { password_ref: Secret::new("s3cret hunter2"), ..inside("shop-db") };
    let (found, text) = server_fault(&rig, wrong);
    assert!(matches!(found, MySqlFault::Password(_)) && !found.retry(), "{text}");
    for odd in ["missing; touch /tmp/x", "$(touch /tmp/x)", "a' 'b", "`touch /tmp/x`"] {
        let (found, text) =
            server_fault(&rig, Connection { database: odd.into(), ..inside("shop-db") });
        assert!(matches!(found, MySqlFault::NoDatabase(_)), "{text}");
    }
    let file = docker.try_docker(&["exec", "shop-db", "sh", "-c", "[ -e /tmp/x ]"]);
    assert!(!file.status.success(), "no word became a command");
    let (found, text) =
        server_fault(&rig, Connection { host: "/nowhere".into(), ..inside("shop-db") });
    assert!(matches!(found, MySqlFault::Unreachable(_)) && found.retry(), "{text}");
    // What the user cannot see is told, as on the host.
    maria_sql(
        docker,
        "shop-db",
        "app",
        "CREATE USER partial IDENTIFIED BY 's3cret partial'; GRANT SELECT, SHOW VIEW, EVENT ON app.* TO partial",
    );
    let partial = Connection {
        username: "partial".into(),
        password_ref: Secret::new("s3cret partial"),
        ..inside("shop-db")
    };
    let (_, prepared, _) = rig.run(&maria(partial)).unwrap();
    assert!(prepared.warnings[0].contains("triggers (TRIGGER)"), "{prepared:?}");
}

fn what_the_host_does_not_allow(docker: &Dockerd) {
    let mut rig = rig(docker);
    rig.policy.trust = Trust::Remote;
    rig.policy.allow_containers = Some(vec!["other".into()]);
    let (error, text) = failure(&rig, &maria(inside("shop-db")));
    assert!(matches!(error, DriverError::NotAllowed { .. }) && !error.retry(), "{text}");
    assert!(text.contains("BACKUPY_ALLOW_CONTAINERS"), "{text}");
    rig.policy.allow_containers = None;
    for host in ["169.254.169.254", "metadata.internal"] {
        let connection = Connection { host: host.into(), ..inside("shop-db") };
        let (error, text) = failure(&rig, &maria(connection));
        assert!(matches!(error, DriverError::NotAllowed { .. }), "{text}");
    }
    let ca = Connection { tls_ca_file: "/etc/ssl/ca.pem".into(), ..inside("shop-db") };
    let (error, text) = failure(&rig, &target(Engine::MySql, ca));
    assert!(matches!(error, DriverError::Setting { field: "TLS CA file", .. }), "{text}");
}

/// Holds a lock that `mariadb-dump` waits for, until the container's end.
const HOLD: &str = "LOCK TABLES held WRITE; SELECT SLEEP(3600)";

#[test]
fn mysql_nothing_is_seen_while_it_runs_and_a_cancel_leaves_nothing() {
    if left_out() {
        return;
    }
    let docker = with_database();
    maria_sql(&docker, "db", "app", "CREATE TABLE held(a INT)");
    let password = format!("MYSQL_PWD={PASSWORD}");
    let user = format!("--user={USER}");
    let hold = ["exec", "-d", "-e", &password, "db", "mariadb", "--no-defaults", &user];
    docker.docker(&[&hold[..], &["--socket=/run/mysqld/mysqld.sock", "-e", HOLD, "app"]].concat());
    let held =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'";
    let deadline = Instant::now() + LONG;
    while maria_sql(&docker, "db", "", held) != "1" {
        assert!(Instant::now() < deadline, "the lock is taken");
    }
    let rig = rig(&docker);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| rig.run(&maria(inside("db"))));
        docker.wait_until("db", "/mariadb-dump", true);
        // While it waits for the lock.
        let argument = "--defaults-file=/proc/self/fd/3";
        nothing_is_seen(&docker, "/usr/bin/mariadb-dump", argument, "SLEEP");
        rig.cancel.cancel(Why::Requested);
        let error = run.join().unwrap().unwrap_err();
        assert!(matches!(error, DriverError::Cancelled(Why::Requested)), "{error}");
    });
    docker.wait_until("db", "/mariadb-dump", false);
    docker.wait_until("db", "sh", false);
    assert_eq!(maria_sql(&docker, "db", "", held), "1", "other sessions go on");
}

/// More than all buffers between the server and us hold.
fn fill_much(docker: &Dockerd, name: &str) {
    let sql = "CREATE TABLE big(id INT PRIMARY KEY, body LONGTEXT);
               INSERT INTO big SELECT seq, REPEAT(MD5(seq), 100) FROM seq_1_to_20000";
    maria_sql(docker, name, "app", sql);
}

#[test]
fn mysql_containers_that_cannot_or_do_not_stay() {
    if left_out() {
        return;
    }
    let docker = with_database();
    let mut rig = rig(&docker);
    fill_much(&docker, "db");
    docker.import_static("bare", false);
    docker.import_static("shell", true);
    for image in ["bare", "shell"] {
        let args = ["run", "-d", "--name", image, "--network=none", image];
        docker.docker(&[&args[..], &["/busybox", "sleep", "3600"]].concat());
    }
    let (found, text) = fault(&rig, "bare");
    assert!(matches!(found, ContainerFault::NoShell { .. }) && !found.retry(), "{text}");
    let (found, text) = server_fault(&rig, inside("shell"));
    assert!(matches!(found, MySqlFault::NoTool { .. }) && !found.retry(), "{text}");
    assert!(text.contains("no mysqldump in the container shell"), "{text}");
    let (found, text) = fault(&rig, "nowhere");
    assert!(text.contains("there is no container nowhere") && found.retry(), "{text}");

    docker.docker(&["pause", "db"]);
    let (found, text) = fault(&rig, "db");
    assert!(text.contains("is paused") && found.retry(), "{text}");
    docker.docker(&["unpause", "db"]);

    // A new name in the middle changes nothing.
    let rename = || drop(docker.docker(&["rename", "db", "db2"]));
    rig.run_into(&maria(inside("db")), &mut Then::new(&rename)).unwrap();
    docker.docker(&["rename", "db2", "db"]);

    rig.limits.stuck_timeout = Duration::from_secs(5);
    let pause = || drop(docker.docker(&["pause", "db"]));
    let error = rig.run_into(&maria(inside("db")), &mut Then::new(&pause)).unwrap_err();
    assert!(error.to_string().contains("is paused") && error.retry(), "{error}");
    docker.docker(&["unpause", "db"]);
    docker.wait_until("db", "/mariadb-dump", false);
    rig.limits.stuck_timeout = LONG;

    let restart = || drop(docker.docker(&["restart", "-t", "0", "db"]));
    let error = rig.run_into(&maria(inside("db")), &mut Then::new(&restart)).unwrap_err();
    let container = matches!(error, DriverError::Exec(ExecError::Container(_)));
    assert!(container && error.retry(), "{error}");

    let kill = || drop(docker.docker(&["kill", "db"]));
    // The new server may still be reading its log.
    let deadline = Instant::now() + LONG;
    let error = loop {
        let error = rig.run_into(&maria(inside("db")), &mut Then::new(&kill)).unwrap_err();
        if !matches!(error, DriverError::MySql(MySqlFault::Unreachable(_))) {
            break error;
        }
        assert!(Instant::now() < deadline, "{error}");
    };
    died(&docker, "db", &error);
    let (found, text) = fault(&rig, "db");
    assert!(text.contains("does not run (exited)") && found.retry(), "{text}");
}

#[test]
fn mysql_a_server_killed_beneath_its_container() {
    if left_out() {
        return;
    }
    let docker = Dockerd::start();
    import_mariadb(&docker);
    run_mariadb(&docker, "db", false);
    maria_sql(&docker, "db", "", "CREATE DATABASE app");
    fill_much(&docker, "db");
    let rig = rig(&docker);
    let kill = || {
        let of_server = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "mariadbd"
        };
        let server = docker.pids("db").into_iter().find(of_server).unwrap();
        let server = rustix::process::Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
        rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    };
    let error = rig.run_into(&maria(inside("db")), &mut Then::new(&kill)).unwrap_err();
    assert!(matches!(error, DriverError::MySql(MySqlFault::Lost(_))), "{error}");
    assert!(error.retry());
    let (found, text) = server_fault(&rig, inside("db"));
    assert!(matches!(found, MySqlFault::Unreachable(_)) && found.retry(), "{text}");
}
