//! MySQL and MariaDB for real: a MariaDB server dumped over TCP, TLS and the socket, loaded elsewhere, compared.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};

use backupy::drivers::{DriverError, MySqlFault, load};
use backupy::model::{Connection, Engine, Target, Way};
use backupy::secret::Secret;
use backupy::thread::Why;

use crate::rig::{Rig, target};
use crate::support_mariadb::{MariaDb, PASSWORD, USER};

pub fn tcp(server: &MariaDb, database: &str) -> Connection {
    Connection {
        host: "127.0.0.1".into(),
        port: u32::from(server.port),
        database: database.into(),
        username: USER.into(),
        password_ref: Secret::new(PASSWORD),
        ..Connection::default()
    }
}

pub fn maria(connection: Connection) -> Target {
    target(Engine::MariaDb, connection)
}

/// Everything that may get lost on the way: blobs, four-byte letters, routines, triggers, events, views, and text that
/// looks like the dump's own marks.
pub const FILL: &str = "CREATE TABLE t(id INT PRIMARY KEY, body TEXT, raw BLOB, n DECIMAL(20,5), at TIMESTAMP(3) NULL) CHARSET=utf8mb4;
    INSERT INTO t SELECT seq, CONCAT('größe 😀 ', seq, '\\n-- Dump completed on 2026-01-01 00:00:00\\n'), UNHEX(SHA2(seq, 512)), seq / 7, FROM_UNIXTIME(seq * 1000) FROM seq_1_to_20000;
    INSERT INTO t VALUES (0, NULL, UNHEX('000D0A1A275C22FF'), NULL, NULL);
    CREATE TABLE log(id INT AUTO_INCREMENT PRIMARY KEY, what VARCHAR(40)) CHARSET=utf8mb4;
    CREATE VIEW v AS SELECT COUNT(*) AS n FROM t;
    CREATE TRIGGER tr AFTER INSERT ON log FOR EACH ROW SET @last = NEW.id;
    CREATE PROCEDURE p(IN a INT) SELECT a + 1;
    CREATE FUNCTION f(a INT) RETURNS INT DETERMINISTIC RETURN a * 2;
    CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO INSERT INTO log(what) VALUES ('😀');
    ANALYZE TABLE t";

/// Every row and every definition, whatever the database is called.
pub fn digest(server: &MariaDb, database: &str) -> String {
    digest_by(&|sql| server.sql(database, sql), database)
}

/// As [`digest`], of whatever answers SQL.
pub fn digest_by(ask: &dyn Fn(&str) -> String, database: &str) -> String {
    let rows = "CHECKSUM TABLE t, log; SELECT n FROM v;
        SELECT MD5(GROUP_CONCAT(CONCAT_WS('|', id, body, HEX(raw), n, at) ORDER BY id)) FROM t WHERE id < 500;
        SELECT trigger_name, action_statement FROM information_schema.triggers WHERE trigger_schema = DATABASE();
        SELECT routine_name, routine_definition FROM information_schema.routines WHERE routine_schema = DATABASE() ORDER BY 1;
        SHOW CREATE EVENT e; SELECT LENGTH(body_utf8) FROM mysql.event WHERE db = DATABASE()";
    let text = ask(&format!("SET group_concat_max_len = 1 << 24; {rows}"));
    text.replace(&format!("{database}."), "")
}

pub fn restore(rig: &Rig, into: &Target, dump: &Path, replace: bool) -> Result<(), DriverError> {
    let result = rig.with_context(|cx| load::load(into, dump, replace, cx));
    assert_eq!(rig.leftovers(), Vec::<std::path::PathBuf>::new());
    result
}

#[test]
fn mysql_tcp_and_socket_loaded_and_compared() {
    let server = MariaDb::start();
    server.create_database("app");
    server.sql("app", FILL);
    let expected = digest(&server, "app");
    assert!(
        expected.contains('😀') && expected.contains("tr\t") && expected.contains("p\t"),
        "{expected}"
    );
    let socket = server.socket();
    let ways = [
        tcp(&server, "app"),
        Connection { host: "localhost".into(), ..tcp(&server, "app") },
        Connection {
            host: socket.display().to_string(),
            port: 0,
            way: Way::UnixSocket,
            ..tcp(&server, "app")
        },
        Connection {
            host: socket.parent().unwrap().display().to_string(),
            way: Way::UnixSocket,
            ..tcp(&server, "app")
        },
    ];
    for (number, connection) in ways.into_iter().enumerate() {
        for rig in [Rig::new(), Rig::remote()] {
            let mut dump = Vec::new();
            let (prepared, dumped, version) =
                rig.run_into(&maria(connection.clone()), &mut dump).unwrap();
            assert_eq!(dumped.bytes, dump.len() as u64);
            assert_eq!((&prepared.warnings, &dumped.warnings), (&Vec::new(), &Vec::new()));
            assert!(prepared.engine_version.starts_with("MariaDB 1"), "{prepared:?}");
            assert_eq!(version, Some(prepared.engine_version));
            assert!(prepared.size_hint_bytes.unwrap() > 1 << 20);
            assert!(rig.progress.lock().unwrap().iter().any(|p| p.percent.is_some()));
            let file = rig.path("dump");
            fs::write(&file, &dump).unwrap();
            let inspected =
                rig.with_context(|cx| load::inspect(Engine::MariaDb, &file, cx)).unwrap();
            let names: Vec<_> = inspected.tables.iter().map(|t| t.name.as_str()).collect();
            assert_eq!(names, ["log", "t"]);
            let copy = format!("copy_{number}_{:?}", rig.policy.trust).to_lowercase();
            let into = Connection { database: copy.clone(), ..connection.clone() };
            restore(&rig, &maria(into), &file, false).unwrap();
            assert_eq!(digest(&server, &copy), expected);
        }
    }
}

#[test]
fn mysql_names_that_look_like_something_else_are_names() {
    let server = MariaDb::start();
    for name in ["it's \\ \"odd\"", "a`b", "größe 1", "x; DROP DATABASE y", "%s%n", "a.b#c"] {
        server.create_database(name);
        server.sql(name, "CREATE TABLE only_here(a INT)");
        let rig = Rig::new();
        let (dump, _, _) = rig.run(&maria(tcp(&server, name))).unwrap();
        let found = dump.windows(9).any(|window| window == b"only_here");
        assert!(found, "{name}: the dump is that database's");
        let file = rig.path("dump");
        fs::write(&file, &dump).unwrap();
        let copy = format!("{name} 2");
        restore(&rig, &maria(tcp(&server, &copy)), &file, false).unwrap();
        assert_eq!(server.sql(&copy, "SHOW TABLES"), "only_here");
    }
    server.sql("it's \\ \"odd\"", "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO SET @a = 1");
    let error = Rig::new().run(&maria(tcp(&server, "it's \\ \"odd\""))).unwrap_err();
    assert!(
        error.to_string().contains("and events in it"),
        "MariaDB's own limit is named: {error}"
    );
    let marker = Rig::new();
    let file = marker.path("x").display().to_string();
    for bad in [format!("--result-file={file}"), "-A".into(), "a\nb".into()] {
        let error = Rig::new().run(&maria(tcp(&server, &bad))).unwrap_err();
        assert!(matches!(error, DriverError::Setting { field: "database", .. }), "{error}");
        assert!(!Path::new(&file).exists());
    }
}

#[test]
fn mysql_passwords_by_reference_and_with_every_character() {
    let server = MariaDb::start();
    let rig = Rig::new();
    for password in [
        "plain",
        r#"a:b\c'd e#f*"#,
        "\"quoted\" ü",
        " leading and trailing ",
        "; x",
        "a\nuser=evil\nb",
        "#",
        "\\",
        "'",
        "\t",
    ] {
        let literal = password.replace('\\', "\\\\").replace('\'', "\\'");
        server.sql(
            "",
            &format!(
                "CREATE OR REPLACE USER other IDENTIFIED BY '{literal}'; GRANT ALL ON *.* TO other"
            ),
        );
        let mut connection = tcp(&server, "mysql");
        connection.username = "other".into();
        connection.password_ref = Secret::new(password);
        rig.run(&maria(connection.clone())).unwrap_or_else(|error| panic!("{password:?}: {error}"));
        if !password.contains('\n') {
            let file = rig.path("password");
            fs::write(&file, format!("{password}\n")).unwrap();
            connection.password_ref = Secret::new(format!("file:{}", file.display()));
            rig.run(&maria(connection)).unwrap();
        }
    }
    let long =
        Connection { password_ref: Secret::new("hunter2".repeat(1000)), ..tcp(&server, "mysql") };
    let error = rig.run(&maria(long)).unwrap_err();
    assert!(!error.to_string().contains("hunter2") && !error.retry(), "{error}");
}

/// A client that writes for as long as it is there.
struct Writer(Child);

impl Writer {
    fn start(server: &MariaDb, database: &str) -> Self {
        let mut child = server
            .command("mariadb")
            .args(["--", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        std::thread::spawn(move || {
            // Two tables that only agree between transactions; the end is that nobody reads any more.
            for n in 0_u64.. {
                let sql = format!(
                    "BEGIN; UPDATE a SET n = {n}; UPDATE filler SET body = REPEAT('y', 1000) WHERE id = {} ; UPDATE b SET n = {n}; COMMIT;\n",
                    n % 3000 + 1
                );
                if input.write_all(sql.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn mysql_dumps_are_of_one_moment_while_others_write() {
    let server = MariaDb::start();
    server.create_database("app");
    server.sql(
        "app",
        "CREATE TABLE a(n BIGINT); CREATE TABLE b(n BIGINT); INSERT INTO a VALUES (0); INSERT INTO b VALUES (0);
         CREATE TABLE filler(id INT PRIMARY KEY, body TEXT);
         INSERT INTO filler SELECT seq, REPEAT('x', 1000) FROM seq_1_to_3000",
    );
    let writer = Writer::start(&server, "app");
    let rig = Rig::new();
    let mut seen = Vec::new();
    for round in 0..5 {
        let (dump, _, _) = rig.run(&maria(tcp(&server, "app"))).unwrap();
        let file = rig.path("dump");
        fs::write(&file, &dump).unwrap();
        let copy = format!("copy{round}");
        restore(&rig, &maria(tcp(&server, &copy)), &file, false).unwrap();
        let pair = server.sql(&copy, "SELECT (SELECT n FROM a), (SELECT n FROM b)");
        let (a, b) = pair.split_once('\t').unwrap();
        assert_eq!(a, b, "one moment");
        seen.push(a.to_owned());
    }
    drop(writer);
    seen.dedup();
    assert!(seen.len() > 1, "somebody wrote meanwhile: {seen:?}");
}

#[test]
fn mysql_loading_is_all_or_nothing() {
    let server = MariaDb::start();
    server.create_database("app");
    server.sql("app", FILL);
    let rig = Rig::new();
    let (dump, _, _) = rig.run(&maria(tcp(&server, "app"))).unwrap();
    let (good, bad) = (rig.path("good"), rig.path("bad"));
    fs::write(&good, &dump).unwrap();
    // A whole dump in form, but one that the server stops at after some tables.
    let text = String::from_utf8(dump.clone()).unwrap();
    let broken =
        text.replacen("-- Dumping events", "INSERT INTO nowhere VALUES (1);\n-- Dumping events", 1);
    assert_ne!(broken, text);
    fs::write(&bad, &broken).unwrap();
    let exists = |name: &str| {
        server.sql(
            "",
            &format!(
                "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = '{name}'"
            ),
        )
    };
    let into = |database: &str| maria(tcp(&server, database));

    let error = restore(&rig, &into("new"), &bad, false).unwrap_err();
    assert!(
        error.to_string().contains("nowhere") && error.to_string().contains("dropped again"),
        "{error}"
    );
    assert_eq!(exists("new"), "0");

    server.sql("", "CREATE DATABASE empty CHARACTER SET latin2 COLLATE latin2_bin");
    restore(&rig, &into("empty"), &bad, false).unwrap_err();
    let left = "SELECT @@collation_database, COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()";
    assert_eq!(server.sql("empty", left), "latin2_bin\t0");
    restore(&rig, &into("empty"), &good, false).unwrap();
    // The database's own character set stays what it was.
    let loaded = digest(&server, "empty").replace("latin2_bin", "latin1_swedish_ci");
    assert_eq!(loaded, digest(&server, "app"));

    server.create_database("busy");
    server.sql("busy", "CREATE TABLE t(mine INT); INSERT INTO t VALUES (7)");
    let error = restore(&rig, &into("busy"), &good, false).unwrap_err();
    assert!(error.to_string().contains("not empty") && !error.retry(), "{error}");
    assert_eq!(server.sql("busy", "SELECT mine FROM t"), "7");
    let error = restore(&rig, &into("busy"), &bad, true).unwrap_err();
    assert!(error.to_string().contains("is gone"), "nothing is promised that is not so: {error}");
    restore(&rig, &into("busy"), &good, true).unwrap();
    assert_eq!(digest(&server, "busy"), digest(&server, "app"));

    // What is cut off is refused before anything is touched.
    for cut in [0, 10, 2000, dump.len() / 2, dump.len() - 5] {
        fs::write(&bad, &dump[..cut]).unwrap();
        let error = restore(&rig, &into("busy"), &bad, true).unwrap_err();
        assert!(matches!(error, DriverError::BadDump { .. }), "cut at {cut}: {error}");
        let error = rig.with_context(|cx| load::inspect(Engine::MariaDb, &bad, cx)).unwrap_err();
        assert!(matches!(error, DriverError::BadDump { .. }), "cut at {cut}: {error}");
    }
    assert_eq!(digest(&server, "busy"), digest(&server, "app"));

    let wrong = Connection { password_ref: Secret::new("hunter2"), ..tcp(&server, "new") };
    let error = restore(&rig, &maria(wrong), &good, true).unwrap_err();
    assert!(matches!(error, DriverError::MySql(MySqlFault::Password(_))), "{error}");
    rig.cancel.cancel(Why::Requested);
    let error = restore(&rig, &into("new"), &good, false).unwrap_err();
    assert_eq!(error.cancelled(), Some(Why::Requested));
    assert_eq!(exists("new"), "0");
}

#[test]
fn mysql_loading_runs_no_commands_of_the_client() {
    let server = MariaDb::start();
    server.create_database("app");
    server.sql("app", "CREATE TABLE t(a INT)");
    let rig = Rig::new();
    let (dump, _, _) = rig.run(&maria(tcp(&server, "app"))).unwrap();
    let marker = rig.path("marker");
    let text = String::from_utf8(dump).unwrap();
    // Newer dumps of MariaDB's begin with a line that forbids such commands; others do not.
    let text = &text[text.find("-- MariaDB dump").unwrap()..];
    for command in ["\\! touch", "system touch"] {
        let evil = text.replacen("\n\n", &format!("\n\n{command} {}\n;\n", marker.display()), 1);
        fs::write(rig.path("evil"), evil).unwrap();
        // An error of the server's, or nothing; never a command on this host.
        let _ = restore(&rig, &maria(tcp(&server, "copy")), &rig.path("evil"), true);
        assert!(!marker.exists(), "{command}");
    }
}

#[test]
fn mysql_all_databases_in_one_dump() {
    let server = MariaDb::start();
    for name in ["one", "two"] {
        server.create_database(name);
        server.sql(name, FILL);
    }
    let rig = Rig::new();
    let (dump, prepared, _) = rig.run(&maria(tcp(&server, ""))).unwrap();
    assert!(prepared.size_hint_bytes.unwrap() > 1 << 20);
    let file = rig.path("dump");
    fs::write(&file, &dump).unwrap();
    let inspected = rig.with_context(|cx| load::inspect(Engine::MariaDb, &file, cx)).unwrap();
    let names: Vec<_> = inspected.tables.iter().map(|t| t.name.as_str()).collect();
    for name in ["mysql.global_priv", "one.log", "one.t", "two.log", "two.t"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for database in ["", "one", "new"] {
        let error = restore(&rig, &maria(tcp(&server, database)), &file, true).unwrap_err();
        assert!(error.to_string().contains("its users included"), "{error}");
    }
    // As the documents say: by hand, into a new server.
    let other = MariaDb::start();
    let loaded = other
        .command("mariadb")
        .arg("--binary-mode")
        .stdin(fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    for name in ["one", "two"] {
        assert_eq!(digest(&other, name), digest(&server, name));
    }
}

#[test]
fn mysql_tls_by_mode_and_ca() {
    let ca = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let rig = Rig::new();
    let plain = MariaDb::start();
    let cert_there = plain.file("server.crt", ca.cert.pem().as_bytes());
    let key_there = plain.file("server.key", ca.signing_key.serialize_pem().as_bytes());
    let tls = MariaDb::start_with(&[
        &format!("--ssl-cert={}", cert_there.display()),
        &format!("--ssl-key={}", key_there.display()),
        "--ssl",
    ]);
    let with = |server: &MariaDb, mode: &str, ca: &str| Connection {
        host: "localhost".into(),
        tls_mode: mode.into(),
        tls_ca_file: ca.into(),
        ..tcp(server, "mysql")
    };
    let (cert, stranger) = (rig.path("ca.crt"), rig.path("other.crt"));
    fs::write(&cert, ca.cert.pem()).unwrap();
    fs::write(&stranger, other.cert.pem()).unwrap();
    let (cert, stranger) = (cert.to_str().unwrap(), stranger.to_str().unwrap());
    for (mode, ca) in [
        ("require", ""),
        ("prefer", ""),
        ("disable", ""),
        ("verify-full", cert),
        ("verify-ca", cert),
        ("", cert),
    ] {
        rig.run(&maria(with(&tls, mode, ca))).unwrap_or_else(|error| panic!("{mode}: {error}"));
    }
    for connection in [
        with(&plain, "require", ""),
        with(&plain, "verify-full", cert),
        with(&tls, "verify-full", stranger),
        Connection { host: "127.0.0.1".into(), ..with(&tls, "verify-full", cert) },
    ] {
        let error = rig.run(&maria(connection)).unwrap_err();
        let permanent = matches!(error, DriverError::MySql(MySqlFault::Tls(_) | MySqlFault::NoTls));
        assert!(permanent && !error.retry(), "{error}");
    }
    let error = Rig::remote().run(&maria(with(&tls, "verify-full", cert))).unwrap_err();
    assert!(matches!(error, DriverError::NotAllowed { .. }), "{error}");
}

#[test]
fn mysql_a_control_plane_may_not_name_metadata_addresses() {
    for host in ["169.254.169.254", "2852039166", "::ffff:169.254.169.254", "fe80::1%lo"] {
        let connection = Connection {
            host: host.into(),
            database: "x".into(),
            password_ref: Secret::new("hunter2"),
            ..Connection::default()
        };
        let error = Rig::remote().run(&maria(connection)).unwrap_err();
        assert!(
            matches!(error, DriverError::NotAllowed { .. }) && !error.retry(),
            "{host}: {error}"
        );
    }
}
