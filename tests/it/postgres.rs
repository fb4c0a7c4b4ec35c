//! PostgreSQL for real: dumped over TCP, TLS and the socket, restored, compared.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use backupy::drivers::{DriverError, PostgresFault, load};
use backupy::model::{Connection, Engine, Target, Trust, Way};
use backupy::secret::Secret;

use crate::rig::{Rig, target};
use crate::support_postgres::{PASSWORD, Postgres, USER};

pub fn tcp(server: &Postgres, database: &str) -> Connection {
    Connection {
        host: "127.0.0.1".into(),
        port: u32::from(server.port),
        database: database.into(),
        username: USER.into(),
        password_ref: Secret::new(PASSWORD),
        ..Connection::default()
    }
}

pub fn pg(connection: Connection) -> Target {
    target(Engine::PostgreSql, connection)
}

pub const FILL: &str = "CREATE TABLE t(id int PRIMARY KEY, body text);
    INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 20000) i;
    CREATE INDEX ON t(body);
    CREATE VIEW v AS SELECT count(*) AS n FROM t;
    SELECT lo_from_bytea(0, decode(repeat('00ff', 1000), 'hex'))";
pub const DIGEST: &str = "SELECT n || ':' || (SELECT md5(string_agg(body, ',' ORDER BY id)) FROM t) \
    || ':' || (SELECT count(*) FROM pg_largeobject_metadata) FROM v";

#[test]
fn tcp_and_socket_restored_and_compared() {
    let server = Postgres::start();
    server.create_database("app");
    server.sql("app", FILL);
    let expected = server.sql("app", DIGEST);
    let socket_dir = server.socket_dir().to_str().unwrap().to_owned();
    let ways = [
        tcp(&server, "app"),
        Connection { host: "localhost".into(), ..tcp(&server, "app") },
        Connection { host: socket_dir.clone(), way: Way::UnixSocket, ..tcp(&server, "app") },
        Connection {
            host: format!("{socket_dir}/.s.PGSQL.{}", server.port),
            port: 0,
            way: Way::UnixSocket,
            ..tcp(&server, "app")
        },
    ];
    for (number, connection) in ways.into_iter().enumerate() {
        for rig in [Rig::new(), Rig::remote()] {
            let mut dump = Vec::new();
            let (prepared, dumped, version) =
                rig.run_into(&pg(connection.clone()), &mut dump).unwrap();
            assert!(dump.starts_with(b"PGDMP"));
            assert_eq!(dumped.bytes, dump.len() as u64);
            assert_eq!(dumped.warnings, Vec::<String>::new());
            assert!(prepared.engine_version.starts_with("PostgreSQL 1"), "{prepared:?}");
            assert_eq!(version, Some(prepared.engine_version));
            assert!(prepared.size_hint_bytes.unwrap() > 1 << 20);
            assert!(rig.progress.lock().unwrap().iter().any(|p| p.percent.is_some()));
            let file = rig.path("dump");
            fs::write(&file, &dump).unwrap();
            let copy = format!("copy_{number}_{:?}", rig.policy.trust).to_lowercase();
            server.create_database(&copy);
            server.restore(&copy, &file);
            assert_eq!(server.sql(&copy, DIGEST), expected);
        }
    }
}

#[test]
fn names_that_look_like_something_else_are_names() {
    let server = Postgres::start();
    for name in
        ["host=evil", "postgres://evil/x", r"it's \ a 'name'", "dbname='x' host='evil'", "größe 1"]
    {
        server.create_database(name);
        server.sql(name, "CREATE TABLE only_here(a int)");
        let rig = Rig::new();
        let (dump, _, _) = rig.run(&pg(tcp(&server, name))).unwrap();
        let found = dump.windows(9).any(|window| window == b"only_here");
        assert!(found, "{name}: the dump is that database's");
    }
    for bad in ["--file=/tmp/x", "-f", "a\nb"] {
        let error = Rig::new().run(&pg(tcp(&server, bad))).unwrap_err();
        assert!(matches!(error, DriverError::Setting { field: "database", .. }), "{error}");
    }
}

#[test]
fn all_databases_in_one_dump() {
    let server = Postgres::start();
    for name in ["one", "t'w \" o"] {
        server.create_database(name);
        server.sql(name, FILL);
    }
    server.sql("postgres", "CREATE ROLE somebody LOGIN PASSWORD 'x'");
    for rig in [Rig::new(), Rig::remote()] {
        let (dump, prepared, dumped) = rig.run(&pg(tcp(&server, ""))).unwrap();
        assert!(prepared.engine_version.starts_with("PostgreSQL 1"), "{prepared:?}");
        assert!(prepared.size_hint_bytes.unwrap() > 1 << 20);
        assert_eq!((prepared.warnings, dumped.warnings), (Vec::new(), Vec::new()));
        let file = rig.path("dump");
        fs::write(&file, &dump).unwrap();
        let inspected =
            rig.with_context(|cx| load::inspect(Engine::PostgreSql, &file, cx)).unwrap();
        let names: Vec<_> = inspected.tables.iter().map(|t| t.name.as_str()).collect();
        assert!(names.len() == 2 && names[0] == "one.public.t", "{names:?}");
        for database in ["", "one"] {
            let into = pg(tcp(&server, database));
            let error = rig.with_context(|cx| load::load(&into, &file, true, cx)).unwrap_err();
            assert!(error.to_string().contains("`psql --file"), "{error}");
        }
        fs::write(&file, &dump[..dump.len() - 10]).unwrap();
        let error =
            rig.with_context(|cx| load::inspect(Engine::PostgreSql, &file, cx)).unwrap_err();
        assert!(matches!(error, DriverError::BadDump { .. }), "{error}");
        if rig.policy.trust == Trust::Local {
            // As the documents say: by hand, into a new server.
            let other = Postgres::start();
            other.load_cluster(&dump);
            for name in ["one", "t'w \" o"] {
                assert_eq!(other.sql(name, DIGEST), server.sql(name, DIGEST));
            }
            let role = "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'somebody'";
            assert_eq!(other.sql("postgres", role), "t");
        }
    }
    server.sql("postgres", "CREATE ROLE weak LOGIN PASSWORD 'weak'");
    let weak = Connection {
        username: "weak".into(),
        password_ref: Secret::new("weak"),
        ..tcp(&server, "")
    };
    let error = Rig::new().run(&pg(weak)).unwrap_err();
    let permission = matches!(error, DriverError::Postgres(PostgresFault::Roles(_)));
    assert!(permission && !error.retry(), "{error}");
}

#[test]
fn globals_alone() {
    let server = Postgres::start();
    let odd = r"host=evil it's \ a 'name'";
    server.create_database(odd);
    server.sql(odd, FILL);
    server.sql("postgres", "CREATE ROLE readers; CREATE ROLE somebody LOGIN PASSWORD 'x'");
    server.sql("postgres", "GRANT readers TO somebody; ALTER ROLE somebody SET work_mem = '7MB'");
    // The login is to the named database: this user may not enter any other.
    server.sql("postgres", "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'keeper'");
    server.sql(odd, "ALTER DATABASE postgres ALLOW_CONNECTIONS false");
    let globals = |database: &str, user: &str| Connection {
        username: user.into(),
        password_ref: Secret::new(user),
        globals_only: true,
        ..tcp(&server, database)
    };
    for rig in [Rig::new(), Rig::remote()] {
        let (dump, prepared, dumped) = rig.run(&pg(globals(odd, "keeper"))).unwrap();
        assert!(prepared.engine_version.starts_with("PostgreSQL 1"), "{prepared:?}");
        assert_eq!(prepared.size_hint_bytes, None);
        assert_eq!((prepared.warnings, dumped.warnings), (Vec::new(), Vec::new()));
        assert!(!dump.windows(8).any(|window| window == b"\\connect"), "no database in it");
        let file = rig.path("dump");
        fs::write(&file, &dump).unwrap();
        let inspect = || rig.with_context(|cx| load::inspect(Engine::PostgreSql, &file, cx));
        let inspected = inspect().unwrap();
        assert!(inspected.tables.is_empty());
        let note = "globals only: 4 roles and 0 tablespaces, no database";
        assert_eq!(inspected.warnings, [note]);
        let into = pg(tcp(&server, odd));
        let error = rig.with_context(|cx| load::load(&into, &file, true, cx)).unwrap_err();
        assert!(error.to_string().contains("`psql --file"), "{error}");
        fs::write(&file, &dump[..dump.len() - 10]).unwrap();
        assert!(matches!(inspect(), Err(DriverError::BadDump { .. })));
        if rig.policy.trust == Trust::Local {
            let other = Postgres::start();
            other.load_cluster(&dump);
            let roles = "SELECT string_agg(r.rolname || ':' || coalesce(array_to_string(r.rolconfig, ','), '') \
                || ':' || coalesce(a.rolpassword, ''), ';' ORDER BY r.rolname) \
                FROM pg_roles r JOIN pg_authid a USING (oid) WHERE r.rolname IN ('readers', 'somebody', 'keeper')";
            let member = "SELECT pg_has_role('somebody', 'readers', 'member')";
            for query in [roles, member] {
                assert_eq!(other.sql("postgres", query), server.sql(odd, query));
            }
        }
    }
    server.sql(odd, "CREATE ROLE weak LOGIN PASSWORD 'weak'");
    let error = Rig::new().run(&pg(globals(odd, "weak"))).unwrap_err();
    let roles = matches!(error, DriverError::Postgres(PostgresFault::Roles(_)));
    assert!(roles && !error.retry(), "{error}");
    let elsewhere = target(Engine::MariaDb, globals("app", "weak"));
    let error = Rig::new().run(&elsewhere).unwrap_err();
    assert!(matches!(error, DriverError::Unsupported { .. }), "{error}");
}

#[test]
fn passwords_by_reference_and_with_every_character() {
    let server = Postgres::start();
    let rig = Rig::new();
    for password in ["plain", r"a:b\c'd e#f*", "\"quoted\" ü", " leading and trailing "] {
        let sql = format!(
            "DROP ROLE IF EXISTS other; CREATE ROLE other LOGIN SUPERUSER PASSWORD '{}'",
            password.replace('\'', "''")
        );
        server.sql("postgres", &sql);
        let file = rig.path("password");
        fs::write(&file, format!("{password}\n")).unwrap();
        for reference in [password.to_owned(), format!("file:{}", file.display())] {
            let mut connection = tcp(&server, "postgres");
            connection.username = "other".into();
            connection.password_ref = Secret::new(reference);
            rig.run(&pg(connection)).unwrap();
        }
    }
    let mut connection = tcp(&server, "postgres");
    connection.password_ref = Secret::new("hunter2\nhunter3");
    let error = rig.run(&pg(connection)).unwrap_err();
    assert!(error.to_string().contains("line break") && !error.retry(), "{error}");
}

#[test]
fn tls_by_mode_and_ca() {
    let ca = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let rig = Rig::new();
    let (cert, key) = (rig.path("server.crt"), rig.path("server.key"));
    let plain = Postgres::start();
    fs::write(&cert, ca.cert.pem()).unwrap();
    fs::write(&key, ca.signing_key.serialize_pem()).unwrap();
    let cert_there = plain.file("server.crt", ca.cert.pem().as_bytes());
    let key_there = plain.file("server.key", ca.signing_key.serialize_pem().as_bytes());
    let tls = Postgres::start_with(&[
        "ssl=on",
        &format!("ssl_cert_file={}", cert_there.display()),
        &format!("ssl_key_file={}", key_there.display()),
    ]);
    let with = |server: &Postgres, mode: &str, ca: &str| Connection {
        host: "localhost".into(),
        tls_mode: mode.into(),
        tls_ca_file: ca.into(),
        ..tcp(server, "postgres")
    };
    let cert = cert.to_str().unwrap();
    for (mode, ca) in [("require", ""), ("verify-full", cert), ("verify-ca", cert), ("", cert)] {
        rig.run(&pg(with(&tls, mode, ca))).unwrap();
    }
    let stranger = rig.path("other.crt");
    fs::write(&stranger, other.cert.pem()).unwrap();
    for connection in [
        with(&plain, "require", ""),
        with(&tls, "verify-full", stranger.to_str().unwrap()),
        Connection { host: "127.0.0.1".into(), ..with(&tls, "verify-full", cert) },
    ] {
        let error = rig.run(&pg(connection)).unwrap_err();
        let permanent = matches!(error, DriverError::Postgres(PostgresFault::Tls(_)));
        assert!(permanent && !error.retry(), "{error}");
    }
    remote_ca_files(&tls, cert, &with);
}

fn remote_ca_files(
    server: &Postgres,
    cert: &str,
    with: &dyn Fn(&Postgres, &str, &str) -> Connection,
) {
    let mut rig = Rig::remote();
    let connection = with(server, "verify-full", cert);
    let error = rig.run(&pg(connection.clone())).unwrap_err();
    assert!(matches!(error, DriverError::NotAllowed { .. }), "{error}");
    fs::create_dir(rig.path("secrets")).unwrap();
    rig.policy.secrets_dir = Some(rig.path("secrets"));
    let error = rig.run(&pg(connection)).unwrap_err();
    assert!(matches!(error, DriverError::NotAllowed { .. }), "{error}");
    let inside = rig.path("secrets/ca.pem");
    fs::copy(cert, &inside).unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o644)).unwrap();
    rig.run(&pg(with(server, "verify-full", inside.to_str().unwrap()))).unwrap();
}

#[test]
fn a_control_plane_may_not_name_metadata_addresses() {
    for host in ["169.254.169.254", "2852039166", "::ffff:169.254.169.254", "fe80::1%lo"] {
        let connection = Connection {
            host: host.into(),
            database: "x".into(),
            password_ref: Secret::new("hunter2"),
            ..Connection::default()
        };
        let error = Rig::remote().run(&pg(connection)).unwrap_err();
        assert!(
            matches!(error, DriverError::NotAllowed { .. }) && !error.retry(),
            "{host}: {error}"
        );
    }
}
