//! PostgreSQL and its tools when they fail: each failure has its own words, none of them a secret, and the
//! right answer to whether it can pass.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use backupy::drivers::{DriverError, ExecError, PostgresFault};
use backupy::model::Connection;
use backupy::secret::Secret;
use backupy::thread::Why;

use crate::postgres::{FILL, pg, tcp};
use crate::rig::{Failing, LONG, Rig};
use crate::support_postgres::{PASSWORD, Postgres, bin_dir};

fn fault(rig: &Rig, connection: Connection) -> (PostgresFault, String) {
    let error = rig.run(&pg(connection)).unwrap_err();
    let text = error.to_string();
    for secret in [PASSWORD, "hunter2"] {
        assert!(!text.contains(secret) && !format!("{error:?}").contains(secret), "{text}");
    }
    match error {
        DriverError::Postgres(fault) => (fault, text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_server_says_no_to() {
    let server = Postgres::start();
    server.sql("postgres", "CREATE ROLE weak LOGIN PASSWORD 'weak'; CREATE TABLE secret(a int)");
    let rig = Rig::new();
    let wrong = Connection { password_ref: Secret::new("hunter2"), ..tcp(&server, "postgres") };
    let (found, text) = fault(&rig, wrong);
    assert!(matches!(found, PostgresFault::Password(_)) && !found.retry(), "{text}");
    let none = Connection { password_ref: Secret::default(), ..tcp(&server, "postgres") };
    assert!(matches!(fault(&rig, none).0, PostgresFault::Password(_)));
    let (found, text) = fault(&rig, tcp(&server, "missing"));
    assert!(matches!(found, PostgresFault::NoDatabase(_)) && !found.retry(), "{text}");
    assert!(text.contains("\"missing\" does not exist"), "{text}");
    let weak = Connection {
        username: "weak".into(),
        password_ref: Secret::new("weak"),
        ..tcp(&server, "postgres")
    };
    let (found, text) = fault(&rig, weak);
    assert!(matches!(found, PostgresFault::Permission(_)) && !found.retry(), "{text}");
}

#[test]
fn nobody_there() {
    let mut server = Postgres::start();
    let connection = tcp(&server, "postgres");
    let socket = server.socket_dir().to_str().unwrap().to_owned();
    server.stop(false);
    let rig = Rig::new();
    let (found, text) = fault(&rig, connection.clone());
    assert!(matches!(found, PostgresFault::Unreachable(_)) && found.retry(), "{text}");
    let by_socket = Connection { host: socket, way: backupy::model::Way::UnixSocket, ..connection };
    let (found, text) = fault(&rig, by_socket);
    assert!(matches!(found, PostgresFault::Unreachable(_)) && found.retry(), "{text}");
}

/// Stops the server once the dump flows.
struct Stopper<'a>(Mutex<Option<&'a mut Postgres>>, usize);

impl Write for Stopper<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1 += bytes.len();
        if self.1 > 100_000
            && let Some(server) = self.0.lock().unwrap().take()
        {
            server.stop(true);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_server_that_stops_in_the_middle() {
    let mut server = Postgres::start();
    server.sql("postgres", FILL);
    // More than all buffers between the server and us hold.
    server.sql(
        "postgres",
        "CREATE TABLE big AS SELECT repeat(md5(i::text), 100) FROM generate_series(1, 20000) i",
    );
    let target = pg(tcp(&server, "postgres"));
    let rig = Rig::new();
    let mut stopper = Stopper(Mutex::new(Some(&mut server)), 0);
    let error = rig.run_into(&target, &mut stopper).unwrap_err();
    let lost = matches!(error, DriverError::Postgres(PostgresFault::Lost(_)));
    assert!(lost && error.retry(), "{error}");
}

#[test]
fn a_lock_that_stays_ends_the_dump_in_the_tools_words() {
    let server = Postgres::start();
    server.sql("postgres", "CREATE TABLE held(a int)");
    let mut rig = Rig::new();
    rig.limits.stuck_timeout = Duration::from_secs(3);
    let mut holder = Command::new(bin_dir().join("psql"))
        .args(["-h", "127.0.0.1", "-p", &server.port.to_string(), "-U", "postgres", "-qAt"])
        .args(["-c", "BEGIN; LOCK TABLE held; SELECT 'held'; SELECT pg_sleep(600)"])
        .env("PGPASSWORD", PASSWORD)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + LONG;
    let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'held'::regclass";
    while server.sql("postgres", held) != "1" {
        assert!(Instant::now() < deadline);
    }
    let result = rig.run(&pg(tcp(&server, "postgres")));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let error = result.unwrap_err();
    let conflict = matches!(error, DriverError::Postgres(PostgresFault::Conflict(_)));
    assert!(conflict && error.retry(), "{error}");
}

/// A directory with a `pg_dump` (and, if given, a `psql`) of our own making.
fn stand_in(rig: &mut Rig, pg_dump: &str, psql: Option<&str>) {
    let bin = rig.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let write = |name: &str, body: &str| {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let version = "[ \"$1\" = --version ] && { echo 'pg_dump (PostgreSQL) 15.1'; exit 0; }";
    write("pg_dump", &format!("{version}\n{pg_dump}"));
    if let Some(body) = psql {
        write("psql", body);
    }
    rig.policy.pg_bin_dir = Some(bin);
}

fn anywhere() -> Connection {
    Connection {
        host: "127.0.0.1".into(),
        port: 1,
        database: "app".into(),
        password_ref: Secret::new("hunter2"),
        ..Connection::default()
    }
}

#[test]
fn no_tool() {
    let mut rig = Rig::new();
    rig.policy.pg_bin_dir = Some(rig.path("nothing-here"));
    let (found, text) = fault(&rig, anywhere());
    assert!(matches!(found, PostgresFault::NoTool { .. }) && !found.retry());
    assert!(text.contains("BACKUPY_PG_BIN_DIR"), "{text}");
    assert!(!backupy::drivers::capabilities(&rig.policy).contains(&"pg_dump"));
    assert!(backupy::drivers::capabilities(&Rig::new().policy).contains(&"pg_dump"));
}

#[test]
fn a_server_newer_than_every_tool() {
    let mut rig = Rig::new();
    stand_in(&mut rig, "echo must not run >&2; exit 9", Some("echo '17.2 (Debian 17.2-1)|12345'"));
    let (found, text) = fault(&rig, anywhere());
    assert!(matches!(found, PostgresFault::ServerNewer { .. }) && !found.retry(), "{text}");
    assert!(text.contains("17.2") && text.contains("15.1"), "{text}");
    let mut rig = Rig::new();
    let words = "echo 'pg_dump: error: aborting because of server version mismatch' >&2
        echo 'pg_dump: detail: server version: 17.2; pg_dump version: 15.1' >&2; exit 1";
    stand_in(&mut rig, words, None);
    let (found, text) = fault(&rig, anywhere());
    assert!(matches!(found, PostgresFault::ServerNewer { .. }), "{text}");
}

#[test]
fn a_tool_that_hangs_is_ended() {
    for body in ["exec sleep 600", "trap '' TERM INT; printf PGDMP; while :; do sleep 1; done"] {
        let mut rig = Rig::new();
        rig.limits.stuck_timeout = Duration::from_millis(500);
        stand_in(&mut rig, body, None);
        let error = rig.run(&pg(anywhere())).unwrap_err();
        assert!(matches!(error, DriverError::Exec(ExecError::Stuck { .. })), "{error}");
        assert!(error.retry());
    }
}

#[test]
fn a_cancel_ends_a_hanging_tool_that_ignores_term() {
    let mut rig = Rig::new();
    let started = rig.path("started");
    let body = format!("trap '' TERM; touch {}; while :; do sleep 1; done", started.display());
    stand_in(&mut rig, &body, None);
    let cancel = rig.cancel.clone();
    let canceller = std::thread::spawn(move || {
        let deadline = Instant::now() + LONG;
        while !started.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        cancel.cancel(Why::Requested);
    });
    let began = Instant::now();
    let error = rig.run(&pg(anywhere())).unwrap_err();
    assert_eq!(error.cancelled(), Some(Why::Requested), "{error}");
    assert!(began.elapsed() < LONG / 2);
    canceller.join().unwrap();
}

#[test]
fn a_tool_that_is_killed_or_lies() {
    let run = |body: &str| {
        let mut rig = Rig::new();
        stand_in(&mut rig, body, None);
        rig.run(&pg(anywhere())).unwrap_err()
    };
    let killed = run("printf 'PGDMP...'; kill -KILL $$");
    assert!(matches!(killed, DriverError::Exec(ExecError::Signal { signal: 9, .. })), "{killed}");
    assert!(killed.retry());
    for lie in ["exit 0", "printf PGD", "echo 'welcome to pg_dump'", "echo hi; exit 1"] {
        let error = run(lie);
        assert!(matches!(error, DriverError::Mark { .. }) && !error.retry(), "{lie}: {error}");
    }
    let late = run("printf 'PGDMP and more'; echo 'pg_dump: error: out of luck' >&2; exit 1");
    assert!(late.to_string().contains("out of luck") && !late.retry(), "{late}");
    let mute = run("printf 'PGDMP'; exit 3");
    assert!(mute.to_string().contains("exit code 3"), "{mute}");
}

#[test]
fn a_sink_that_fails_ends_the_tool() {
    let mut rig = Rig::new();
    stand_in(&mut rig, "printf PGDMP; exec yes", None);
    let error = rig.run_into(&pg(anywhere()), &mut Failing(1 << 20)).unwrap_err();
    assert!(matches!(error, DriverError::Sink(_)), "{error}");
}

#[test]
fn what_a_tool_gets_to_see() {
    let mut rig = Rig::new();
    let seen = rig.path("seen");
    let body = format!(
        "{{ env; for a; do echo \"arg $a\"; done; file=${{5##*passfile=\\'}}; file=${{file%%\\'*}}; stat -c 'mode %a' \"$file\"; cat \"$file\"; }} > {}; printf PGDMP",
        seen.display()
    );
    stand_in(&mut rig, &body, None);
    rig.run(&pg(anywhere())).unwrap();
    let text = fs::read_to_string(&seen).unwrap();
    let (public, passfile): (Vec<_>, Vec<_>) = text.lines().partition(|l| !l.starts_with("*:"));
    assert_eq!(passfile, ["*:*:*:*:hunter2"], "{text}");
    assert!(public.contains(&"mode 600"), "{text}");
    assert!(!public.iter().any(|line| line.contains("hunter2")), "{text}");
    for line in public.iter().filter(|l| !l.starts_with("arg ") && l.contains('=')) {
        let name = line.split('=').next().unwrap();
        assert!(
            ["PATH", "LANG", "LC_ALL", "TZ", "PWD", "_", "OLDPWD", "SHLVL"].contains(&name),
            "{line}"
        );
    }
    assert!(public.contains(&"arg --no-password") && public.contains(&"arg -Z0"), "{text}");
}

#[test]
fn what_a_crash_left_is_swept() {
    let rig = Rig::new();
    fs::create_dir_all(rig.work_dir()).unwrap();
    fs::write(rig.work_dir().join("driver-passfile-1-0"), "*:*:*:*:hunter2").unwrap();
    backupy::drivers::sweep(&rig.work_dir());
    assert_eq!(rig.leftovers(), Vec::<&Path>::new());
}
