//! The way back of a PostgreSQL dump, against a real server that the test starts on a socket of its own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail as the tests do"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backupy::config::{HostPolicy, PipelineLimits};
use backupy::drivers::{Context, for_target, load};
use backupy::model::{Connection, Engine, Target, Trust, Way};
use backupy::secret::Secret;
use backupy::thread::{Cancel, Why};

const PASSWORD: &str = "p'a\\ss:w\"ord";
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    dir: tempfile::TempDir,
    bin: PathBuf,
    child: std::process::Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate shutdown; the directory goes next.
        let _ = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// As the user postgres, because the server refuses root.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/").stdin(Stdio::null());
    command
}

impl Server {
    fn start() -> Self {
        let bin = fs::read_dir("/usr/lib/postgresql")
            .expect("install postgresql for this test")
            .map(|entry| entry.unwrap().path().join("bin"))
            .find(|bin| bin.join("initdb").exists())
            .expect("install postgresql for this test");
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let pwfile = dir.path().join("pw");
        fs::write(&pwfile, PASSWORD).unwrap();
        fs::set_permissions(&pwfile, fs::Permissions::from_mode(0o644)).unwrap();
        let data = dir.path().join("data");
        let made = as_postgres(&bin.join("initdb"))
            .args(["--auth=scram-sha-256", "--no-sync", "-U", "postgres", "-D"])
            .arg(&data)
            .arg(format!("--pwfile={}", pwfile.display()))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let child = Command::new("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .arg(bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { dir, bin, child };
        let until = Instant::now() + PATIENCE;
        while server.try_sql("postgres", "SELECT 1").is_err() {
            assert!(Instant::now() < until, "the server did not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = Command::new(self.bin.join("psql"))
            .env("PGPASSWORD", PASSWORD)
            .args([
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                database,
                "-c",
                sql,
                "-h",
            ])
            .arg(self.dir.path())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap()
    }

    fn target(&self, database: &str, password: &str) -> Target {
        let connection = Connection {
            host: self.dir.path().to_str().unwrap().to_owned(),
            database: database.to_owned(),
            username: "postgres".to_owned(),
            password_ref: Secret::new(password),
            way: Way::UnixSocket,
            ..Connection::default()
        };
        Target { id: "t".into(), engine: Engine::PostgreSql, display_name: "t".into(), connection }
    }
}

fn with_context<T>(work_dir: &Path, cancel: &Cancel, work: impl FnOnce(&Context<'_>) -> T) -> T {
    let policy = HostPolicy {
        trust: Trust::Local,
        secrets_dir: None,
        allow_paths: None,
        allow_containers: None,
        allow_checks: None,
        pg_bin_dir: None,
    };
    let limits =
        PipelineLimits { min_free_bytes: 1, min_free_percent: 0, ..PipelineLimits::default() };
    work(&Context { cancel, policy: &policy, limits: &limits, work_dir, progress: &|_| {} })
}

#[test]
fn a_postgresql_dump_is_inspected_and_loaded_whole_or_not_at_all() {
    let server = Server::start();
    for database in ["shop", "copy", "busy"] {
        server.sql("postgres", &format!("CREATE DATABASE {database}"));
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
        let mut driver = for_target(&server.target("shop", PASSWORD), cx.policy).unwrap();
        driver.prepare(cx).unwrap();
        driver.dump(cx, &mut fs::File::create(&dump).unwrap()).unwrap();

        let inspected = load::inspect(Engine::PostgreSql, &dump, cx).unwrap();
        let names: Vec<_> = inspected.tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["public.customers", "s.orders"]);

        load::load(&server.target("copy", PASSWORD), &dump, false, cx).unwrap();
        let facts = "SELECT count(*), md5(string_agg(t, '' ORDER BY id)) FROM s.orders";
        assert_eq!(server.sql("copy", facts), server.sql("shop", facts));

        // What is there is not touched unless asked for, and a failure leaves it as it was.
        server.sql("busy", "CREATE TABLE customers (id int); INSERT INTO customers VALUES (7)");
        let error = load::load(&server.target("busy", PASSWORD), &dump, false, cx).unwrap_err();
        assert!(error.to_string().contains("already exists"), "{error}");
        assert_eq!(server.sql("busy", "SELECT id FROM customers"), "7");
        assert!(server.try_sql("busy", "SELECT 1 FROM s.orders").is_err(), "nothing came of it");
        load::load(&server.target("busy", PASSWORD), &dump, true, cx).unwrap();
        assert_eq!(server.sql("busy", facts), server.sql("shop", facts));
        assert_eq!(server.sql("busy", "SELECT count(*) FROM customers"), "0");

        let error = load::load(&server.target("copy", "hunter2"), &dump, true, cx).unwrap_err();
        assert!(error.to_string().contains("refused the password"), "{error}");
        assert!(!error.to_string().contains("hunter2"));
        let error = load::load(&server.target("none", PASSWORD), &dump, true, cx).unwrap_err();
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
