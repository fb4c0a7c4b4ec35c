//! The way back of a PostgreSQL dump, against a real server that the test starts, over its socket.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as the tests do"
)]

use std::fs;
use std::path::Path;

use backupy::config::{HostPolicy, PipelineLimits};
use backupy::drivers::{Context, for_target, load};
use backupy::model::{Connection, Engine, Target, Trust, Way};
use backupy::secret::Secret;
use backupy::thread::{Cancel, Why};

use support_postgres::{PASSWORD, Postgres, USER};

#[path = "support/postgres.rs"]
mod support_postgres;

fn target(server: &Postgres, database: &str, password: &str) -> Target {
    let connection = Connection {
        host: server.socket_dir().to_str().unwrap().to_owned(),
        port: server.port.into(),
        database: database.to_owned(),
        username: USER.to_owned(),
        password_ref: Secret::new(password),
        way: Way::UnixSocket,
        ..Connection::default()
    };
    Target { id: "t".into(), engine: Engine::PostgreSql, display_name: "t".into(), connection }
}

fn with_context<T>(work_dir: &Path, cancel: &Cancel, work: impl FnOnce(&Context<'_>) -> T) -> T {
    let policy = HostPolicy {
        trust: Trust::Local,
        secrets_dir: None,
        allow_paths: None,
        allow_containers: None,
        allow_checks: None,
        allow_hooks: false,
        pg_bin_dir: None,
        mongo_bin_dir: None,
    };
    let limits =
        PipelineLimits { min_free_bytes: 1, min_free_percent: 0, ..PipelineLimits::default() };
    work(&Context { cancel, policy: &policy, limits: &limits, work_dir, progress: &|_| {} })
}

#[test]
fn a_postgresql_dump_is_inspected_and_loaded_whole_or_not_at_all() {
    let server = Postgres::start();
    for database in ["shop", "copy", "busy"] {
        server.create_database(database);
    }
    server.sql(
        "shop",
        "CREATE SCHEMA s; CREATE TABLE s.orders (id int PRIMARY KEY, t text);
         INSERT INTO s.orders SELECT n, repeat('x', 100) || n FROM generate_series(1, 5000) n;
         CREATE TABLE customers (id int); CREATE INDEX ON s.orders (t);",
    );
    let work = tempfile::tempdir().unwrap();
    let cancel = Cancel::new().unwrap();
    let dump = work.path().join("dump");
    with_context(work.path(), &cancel, |cx| {
        let mut driver = for_target(&target(&server, "shop", PASSWORD), cx.policy).unwrap();
        driver.prepare(cx).unwrap();
        driver.dump(cx, &mut fs::File::create(&dump).unwrap()).unwrap();

        let inspected = load::inspect(Engine::PostgreSql, &dump, cx).unwrap();
        let names: Vec<_> = inspected.tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["public.customers", "s.orders"]);

        load::load(&target(&server, "copy", PASSWORD), &dump, false, cx).unwrap();
        let facts = "SELECT count(*), md5(string_agg(t, '' ORDER BY id)) FROM s.orders";
        assert_eq!(server.sql("copy", facts), server.sql("shop", facts));

        // What is there is not touched unless asked for, and a failure leaves it as it was.
        server.sql("busy", "CREATE TABLE customers (id int); INSERT INTO customers VALUES (7)");
        let error = load::load(&target(&server, "busy", PASSWORD), &dump, false, cx).unwrap_err();
        assert!(error.to_string().contains("already exists"), "{error}");
        assert_eq!(server.sql("busy", "SELECT id FROM customers"), "7");
        assert!(server.try_sql("busy", "SELECT 1 FROM s.orders").is_err(), "nothing came of it");
        load::load(&target(&server, "busy", PASSWORD), &dump, true, cx).unwrap();
        assert_eq!(server.sql("busy", facts), server.sql("shop", facts));
        assert_eq!(server.sql("busy", "SELECT count(*) FROM customers"), "0");

        let error = load::load(&target(&server, "copy", "hunter2"), &dump, true, cx).unwrap_err();
        assert!(error.to_string().contains("refused the password"), "{error}");
        assert!(!error.to_string().contains("hunter2"));
        let error = load::load(&target(&server, "none", PASSWORD), &dump, true, cx).unwrap_err();
        assert!(error.to_string().contains("cannot be opened"), "{error}");

        damaged_dumps(&dump, cx);
        cancel.cancel(Why::Requested);
        let error = load::inspect(Engine::PostgreSql, &dump, cx).unwrap_err();
        assert_eq!(error.cancelled(), Some(Why::Requested));
    });
    let left: Vec<_> = fs::read_dir(work.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the two dumps of this test and no passfile: {left:?}");
}

fn damaged_dumps(dump: &Path, cx: &Context<'_>) {
    let bytes = fs::read(dump).unwrap();
    let bad = dump.with_extension("bad");
    for cut in [0, 3, 100, bytes.len() / 2, bytes.len() - 200_000] {
        fs::write(&bad, &bytes[..cut]).unwrap();
        let error = load::inspect(Engine::PostgreSql, &bad, cx).unwrap_err();
        assert!(error.to_string().contains("pg_restore failed"), "cut at {cut}: {error}");
    }
}
