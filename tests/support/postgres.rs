//! A throw-away PostgreSQL server: its own data directory, a free port, a unix socket in the same place.
//!
//! PostgreSQL refuses to run as root, so as root it runs as the user `postgres`. The guard stops the server
//! by the process it started, whatever becomes of the test.

#![allow(dead_code, reason = "each test crate uses what it needs of it")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// The superuser of every server.
pub const USER: &str = "postgres";
pub const PASSWORD: &str = r"s3cret: it's \ a:b";

/// The newest installed server's directory of programs.
pub fn bin_dir() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed (apt-get install postgresql)")
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().expect("a PostgreSQL server under /usr/lib/postgresql").1
}

pub struct Postgres {
    pub port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl Postgres {
    /// A server that asks for [`PASSWORD`] on TCP and on the socket.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Postgres::start`], with settings such as `ssl=on`.
    pub fn start_with(settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("backupy-pg-").tempdir().unwrap();
        give(dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut server = Self { port: 0, dir, child: None };
        server.init();
        server.launch(settings);
        server
    }

    fn init(&self) {
        let password = self.file("initial-password", PASSWORD.as_bytes());
        let output = as_postgres(&bin_dir().join("initdb"))
            .arg("--pgdata")
            .arg(self.data())
            .args(["--username", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"])
            .arg("--locale=C.UTF-8")
            .arg("--pwfile")
            .arg(&password)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts the server on a free port; another one if somebody takes it first.
    fn launch(&mut self, settings: &[&str]) {
        for _ in 0..5 {
            self.port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            let log = fs::File::create(self.dir.path().join("log")).unwrap();
            let mut command = as_postgres(&bin_dir().join("postgres"));
            command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
            command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
            for setting in ["fsync=off", "shared_buffers=16MB", "max_connections=20"] {
                command.args(["-c", setting]);
            }
            for setting in settings {
                command.args(["-c", setting]);
            }
            command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
            self.child = Some(command.spawn().unwrap());
            if self.wait_until_ready() {
                return;
            }
        }
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        panic!("PostgreSQL does not start: {log}");
    }

    fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            let up = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            if up && self.psql("postgres", "SELECT 1").status.success() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// The directory of the unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Writes a file that the server can read, 0600.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        give(&path);
        path
    }

    fn psql(&self, database: &str, sql: &str) -> std::process::Output {
        Command::new(bin_dir().join("psql"))
            .args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"])
            .args(["-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", USER])
            .args(["-p", &self.port.to_string(), "-d", &conninfo(database), "-c", sql])
            .env("PGPASSWORD", PASSWORD)
            .env_remove("PGSERVICE")
            .output()
            .unwrap()
    }

    /// Runs SQL as the superuser; what it answers.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`Postgres::sql`], where the server may refuse.
    pub fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = self.psql(database, sql);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Creates a database of any name.
    pub fn create_database(&self, name: &str) {
        self.sql("postgres", &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")));
    }

    /// Loads a dump in custom format into an existing database.
    pub fn restore(&self, database: &str, dump: &Path) {
        let output = Command::new(bin_dir().join("pg_restore"))
            .args(["--exit-on-error", "--no-password"])
            .arg(format!(
                "--dbname=host=127.0.0.1 port={} user={USER} {}",
                self.port,
                conninfo(database)
            ))
            .arg(dump)
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Loads a `pg_dumpall` text; that the superuser is there already is no failure.
    pub fn load_cluster(&self, dump: &[u8]) {
        let file = self.file("cluster.sql", dump);
        let output = Command::new(bin_dir().join("psql"))
            .args(["--no-psqlrc", "--quiet", "-h", "127.0.0.1", "-U", USER, "-d", "postgres"])
            .args(["-p", &self.port.to_string(), "-f"])
            .arg(file)
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = said.lines().filter(|line| line.contains("ERROR")).collect();
        assert!(output.status.success() && errors.len() <= 1, "{said}");
    }

    /// Stops the server; `immediately` as a crash does.
    pub fn stop(&mut self, immediately: bool) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_child(&child);
        // INT is PostgreSQL's fast shutdown, QUIT the immediate one.
        let _ = kill_process(pid, if immediately { Signal::QUIT } else { Signal::INT });
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop(true);
    }
}

fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = account() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Gives a file to the server's user.
fn give(path: &Path) {
    if let Some((uid, gid)) = account() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// The account `postgres`, needed only by root.
fn account() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts.lines().find(|line| line.starts_with("postgres:")).expect("user postgres");
    let fields: Vec<_> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}
