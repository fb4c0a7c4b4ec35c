//! MySQL, MariaDB and their tools when they fail: each failure has its own words, none of them a secret, and the
//! right answer to whether it can pass. Oracle's tools are played by scripts that say what the real ones say.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use backupy::drivers::{DriverError, ExecError, MySqlFault};
use backupy::model::{Connection, Engine, Way};
use backupy::secret::Secret;
use backupy::thread::Why;

use crate::mysql::{maria, tcp};
use crate::rig::{Failing, LONG, Rig, target};
use crate::support_mariadb::{MariaDb, PASSWORD};

fn fault(rig: &Rig, connection: Connection) -> (MySqlFault, String) {
    let error = rig.run(&maria(connection)).unwrap_err();
    let text = error.to_string();
    for secret in [PASSWORD, "hunter2"] {
        assert!(!text.contains(secret) && !format!("{error:?}").contains(secret), "{text}");
    }
    match error {
        DriverError::MySql(fault) => (fault, text),
        other => panic!("{other:?}"),
    }
}

fn as_user(server: &MariaDb, name: &str, database: &str) -> Connection {
    Connection {
        username: name.into(),
        password_ref: Secret::new("hunter2"),
        ..tcp(server, database)
    }
}

#[test]
fn mysql_what_the_server_says_no_to() {
    let server = MariaDb::start();
    server.create_database("app");
    server.sql(
        "app",
        "CREATE TABLE t(a INT) ENGINE=MyISAM; CREATE TABLE u(a INT); CREATE VIEW v AS SELECT * FROM t;
         CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.a = 1; CREATE PROCEDURE p() SELECT 1;
         CREATE USER weak IDENTIFIED BY 'hunter2'; GRANT SELECT ON app.* TO weak;
         CREATE USER partial IDENTIFIED BY 'hunter2'; GRANT SELECT, SHOW VIEW, EVENT ON app.* TO partial;
         CREATE USER plenty IDENTIFIED BY 'hunter2'; GRANT SELECT, SHOW VIEW, EVENT, TRIGGER ON *.* TO plenty",
    );
    let rig = Rig::new();
    let (found, text) = fault(&rig, as_user(&server, "admin", "app"));
    assert!(matches!(found, MySqlFault::Password(_)) && !found.retry(), "{text}");
    let none = Connection { password_ref: Secret::default(), ..tcp(&server, "app") };
    assert!(matches!(fault(&rig, none).0, MySqlFault::Password(_)));
    let (found, text) = fault(&rig, tcp(&server, "missing"));
    assert!(matches!(found, MySqlFault::NoDatabase(_)) && !found.retry(), "{text}");
    assert!(text.contains("'missing'"), "{text}");
    let (found, text) = fault(&rig, as_user(&server, "weak", "app"));
    assert!(matches!(found, MySqlFault::Permission(_)) && !found.retry(), "{text}");
    assert!(text.contains("GRANT it SELECT, SHOW VIEW, TRIGGER and EVENT"), "{text}");

    // The tool says nothing about what the user cannot see; the warning does.
    let (dump, prepared, _) = rig.run(&maria(as_user(&server, "partial", "app"))).unwrap();
    assert!(!String::from_utf8(dump).unwrap().contains("TRIGGER"));
    let [tables, unseen] = &prepared.warnings[..] else { panic!("{prepared:?}") };
    assert!(tables.contains("app.t (MyISAM)") && !tables.contains("app.u"), "{tables}");
    assert!(unseen.contains("triggers (TRIGGER), stored routines"), "{unseen}");
    let (dump, prepared, _) = rig.run(&maria(as_user(&server, "plenty", "app"))).unwrap();
    let dump = String::from_utf8(dump).unwrap();
    assert!(dump.contains("TRIGGER") && dump.contains("PROCEDURE `p`"));
    assert_eq!(prepared.warnings.len(), 1, "{prepared:?}");
}

#[test]
fn mysql_nobody_there() {
    let mut server = MariaDb::start();
    let connection = tcp(&server, "mysql");
    let socket = server.socket().display().to_string();
    server.stop(false);
    for rig in [Rig::new(), Rig::remote()] {
        let (found, text) = fault(&rig, connection.clone());
        assert!(matches!(found, MySqlFault::Unreachable(_)) && found.retry(), "{text}");
        let way = Way::UnixSocket;
        let (found, text) =
            fault(&rig, Connection { host: socket.clone(), way, ..connection.clone() });
        assert!(matches!(found, MySqlFault::Unreachable(_)) && found.retry(), "{text}");
    }
}

/// Kills the server once the dump flows.
struct Killer<'a>(Mutex<Option<&'a mut MariaDb>>, usize);

impl Write for Killer<'_> {
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
fn mysql_a_server_that_is_killed_in_the_middle() {
    let mut server = MariaDb::start();
    server.create_database("app");
    // More than all buffers between the server and us hold.
    server.sql(
        "app",
        "CREATE TABLE big AS SELECT seq, REPEAT(MD5(seq), 200) AS body FROM seq_1_to_10000",
    );
    let target = maria(tcp(&server, "app"));
    let rig = Rig::new();
    let mut killer = Killer(Mutex::new(Some(&mut server)), 0);
    let error = rig.run_into(&target, &mut killer).unwrap_err();
    assert!(matches!(error, DriverError::MySql(MySqlFault::Lost(_))) && error.retry(), "{error}");
}

/// A directory with tools of our own making; `mysqldump` gets `body`, and `client` answers every question.
fn stand_in(rig: &mut Rig, version: &str, body: &str, client: Option<&str>) {
    let bin = rig.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let write = |name: &str, body: &str| {
        let path = bin.join(name);
        let version = format!("[ \"$2\" = --version ] && {{ echo '{name}  {version}'; exit 0; }}");
        fs::write(&path, format!("#!/bin/sh\n{version}\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("mysqldump", body);
    if let Some(body) = client {
        write("mysql", body);
    }
    rig.policy.mysql_bin_dir = Some(bin);
}

const MARIA: &str = "Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)";
const ORACLE: &str = "Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)";

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
fn mysql_no_tool() {
    let mut rig = Rig::new();
    rig.policy.mysql_bin_dir = Some(rig.path("nothing-here"));
    let (found, text) = fault(&rig, anywhere());
    assert!(matches!(found, MySqlFault::NoTool { .. }) && !found.retry());
    assert!(text.contains("BACKUPY_MYSQL_BIN_DIR"), "{text}");
    assert!(!backupy::drivers::capabilities(&rig.policy).contains(&"mysqldump"));
    assert!(backupy::drivers::capabilities(&Rig::new().policy).contains(&"mysqldump"));
}

/// What Oracle's `mysqldump` 8.0.36 writes for an empty database.
const RECORDED: &str = "-- MySQL dump 10.13  Distrib 8.0.36, for Linux (x86_64)
--
-- Host: 127.0.0.1    Database: app
-- ------------------------------------------------------
-- Server version\t8.0.36

/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!50503 SET NAMES utf8mb4 */;
/*!40111 SET SQL_NOTES=@OLD_SQL_NOTES */;

-- Dump completed on 2026-11-25 16:09:56
";

#[test]
fn mysql_oracles_tools_by_a_recorded_stand_in() {
    let answers = "printf 'version\\t8.0.36\\nSsl_cipher\\tTLS_AES_256_GCM_SHA384\\nsize\\t1234\\nGRANT ALL PRIVILEGES ON *.* TO `root`@`%%`\\n'";
    for client in [Some(answers), None] {
        let mut rig = Rig::new();
        let (seen, recorded) = (rig.path("seen"), rig.path("recorded"));
        fs::write(&recorded, RECORDED).unwrap();
        let body = format!(
            "{{ env; for a; do echo \"arg $a\"; done; stat -c 'mode %a' \"${{1#*=}}\"; sed 's/^/file /' \"${{1#*=}}\"; }} > {}; cat {}",
            seen.display(),
            recorded.display()
        );
        stand_in(&mut rig, ORACLE, &body, client);
        let mut dump = Vec::new();
        let mode = Connection { tls_mode: "verify-full".into(), ..anywhere() };
        let (prepared, dumped, version) =
            rig.run_into(&target(Engine::MySql, mode), &mut dump).unwrap();
        assert_eq!(dump, RECORDED.as_bytes());
        assert_eq!(version.as_deref(), Some("MySQL 8.0.36"));
        assert_eq!(dumped.warnings, Vec::<String>::new());
        if client.is_some() {
            assert_eq!(prepared.engine_version, "MySQL 8.0.36");
            assert_eq!(prepared.size_hint_bytes, Some(1234));
        } else {
            assert_eq!(prepared.engine_version, "");
        }
        let text = fs::read_to_string(&seen).unwrap();
        let (file, public): (Vec<_>, Vec<_>) = text.lines().partition(|l| l.starts_with("file "));
        assert!(
            file.contains(&"file password=\"hunter2\"") && file.contains(&"file user=\"root\""),
            "{text}"
        );
        assert!(
            file.contains(&"file ssl-mode=VERIFY_IDENTITY") && file.contains(&"file protocol=tcp"),
            "{text}"
        );
        assert!(public.contains(&"mode 600"), "{text}");
        assert!(!public.iter().any(|line| line.contains("hunter2")), "{text}");
        for line in public.iter().filter(|l| !l.starts_with("arg ") && l.contains('=')) {
            let name = line.split('=').next().unwrap();
            let usual = ["PATH", "LANG", "LC_ALL", "TZ", "PWD", "_", "OLDPWD", "SHLVL"];
            assert!(usual.contains(&name), "{line}");
        }
        for arg in
            "--single-transaction --quick --routines --triggers --events --hex-blob --comments \
                    --no-tablespaces --set-gtid-purged=OFF -- app"
                .split_whitespace()
        {
            assert!(public.contains(&format!("arg {arg}").as_str()), "{arg}: {text}");
        }
        assert!(
            public
                .iter()
                .find(|l| l.starts_with("arg "))
                .unwrap()
                .starts_with("arg --defaults-file=")
        );
        let statistics = public.contains(&"arg --column-statistics=0");
        assert_eq!(
            statistics,
            client.is_none(),
            "only what the server is known to have is asked for"
        );
    }
}

#[test]
fn mysql_secrets_of_the_host_are_not_sent_to_strangers_in_the_clear() {
    let mut rig = Rig::remote();
    let seen = rig.path("seen");
    let body = format!("cat \"${{1#*=}}\" > {}; exit 1", seen.display());
    stand_in(&mut rig, MARIA, &body, None);
    fs::create_dir(rig.path("secrets")).unwrap();
    fs::write(rig.path("secrets/db"), "hunter2").unwrap();
    fs::set_permissions(rig.path("secrets/db"), fs::Permissions::from_mode(0o600)).unwrap();
    rig.policy.secrets_dir = Some(rig.path("secrets"));
    let reference = Secret::new(format!("file:{}/secrets/db", rig.dir.path().display()));
    let at = |host: &str| Connection {
        host: host.into(),
        password_ref: reference.clone(),
        ..anywhere()
    };
    rig.run(&maria(at("192.0.2.1"))).unwrap_err();
    let text = fs::read_to_string(&seen).unwrap();
    assert!(text.contains("plugin-dir=") && text.contains("no-plugins"), "{text}");
    rig.run(&maria(at("127.0.0.1"))).unwrap_err();
    assert!(!fs::read_to_string(&seen).unwrap().contains("plugin-dir"));
    stand_in(&mut rig, ORACLE, &body, None);
    let error = rig.run(&maria(at("192.0.2.1"))).unwrap_err();
    assert!(matches!(error, DriverError::NotAllowed { .. }), "{error}");
}

#[test]
fn mysql_a_tool_that_hangs_is_ended() {
    for body in
        ["exec sleep 600", "trap '' TERM INT; echo '-- MySQL dump 1'; while :; do sleep 1; done"]
    {
        let mut rig = Rig::new();
        rig.limits.stuck_timeout = Duration::from_millis(500);
        stand_in(&mut rig, MARIA, body, None);
        let error = rig.run(&maria(anywhere())).unwrap_err();
        assert!(matches!(error, DriverError::Exec(ExecError::Stuck { .. })), "{error}");
        assert!(error.retry());
    }
}

#[test]
fn mysql_a_cancel_ends_a_hanging_tool_that_ignores_term() {
    let mut rig = Rig::new();
    let started = rig.path("started");
    let body = format!("trap '' TERM; touch {}; while :; do sleep 1; done", started.display());
    stand_in(&mut rig, MARIA, &body, None);
    let cancel = rig.cancel.clone();
    let canceller = std::thread::spawn(move || {
        let deadline = Instant::now() + LONG;
        while !started.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        cancel.cancel(Why::Requested);
    });
    let began = Instant::now();
    let error = rig.run(&maria(anywhere())).unwrap_err();
    assert_eq!(error.cancelled(), Some(Why::Requested), "{error}");
    assert!(began.elapsed() < LONG / 2);
    canceller.join().unwrap();
}

#[test]
fn mysql_a_tool_that_is_killed_or_lies() {
    let run = |body: &str| {
        let mut rig = Rig::new();
        stand_in(&mut rig, MARIA, body, None);
        let mut out = Vec::new();
        let error = rig.run_into(&maria(anywhere()), &mut out).unwrap_err();
        (error, out)
    };
    let (killed, _) = run("echo '-- MySQL dump 1'; kill -KILL $$");
    assert!(matches!(killed, DriverError::Exec(ExecError::Signal { signal: 9, .. })), "{killed}");
    assert!(killed.retry());
    for lie in
        ["exit 0", "printf -- '-- MyS'", "echo 'welcome to -- MySQL dump 1'", "echo hi; exit 1"]
    {
        let (error, out) = run(lie);
        assert!(matches!(error, DriverError::Mark { .. }) && !error.retry(), "{lie}: {error}");
        assert_eq!(out, b"", "{lie}: nothing of it is passed on");
    }
    for cut in [
        "",
        "echo 'INSERT INTO t VALUES (\"-- Dump completed on 2026-01-01 00:00:00\");'",
        "echo '-- Dump completed on 2026-01-01 00:00:00'; echo 'INSERT 1;'",
        "printf -- '-- Dump completed on 2026-01-01'",
    ] {
        let (error, _) = run(&format!("echo '-- MySQL dump 1'; {cut}"));
        assert!(matches!(error, DriverError::BadDump { .. }) && !error.retry(), "{cut}: {error}");
    }
    let (late, _) = run("echo '-- MySQL dump 1'; echo 'mysqldump: out of luck' >&2; exit 2");
    assert!(late.to_string().contains("out of luck") && !late.retry(), "{late}");
    let (mute, _) = run("echo '-- MySQL dump 1'; exit 3");
    assert!(mute.to_string().contains("exit code 3"), "{mute}");
}

#[test]
fn mysql_a_sink_that_fails_ends_the_tool() {
    let mut rig = Rig::new();
    stand_in(&mut rig, MARIA, "echo '-- MySQL dump 1'; exec yes", None);
    let error = rig.run_into(&maria(anywhere()), &mut Failing(1 << 20)).unwrap_err();
    assert!(matches!(error, DriverError::Sink(_)), "{error}");
}
