//! A throw-away MariaDB server: its own data directory, a free port, a unix socket in the same place.
//!
//! As root it runs as the user `mysql`. The guard stops the server by the process it started, whatever becomes
//! of the test.

#![allow(dead_code, reason = "each test crate uses what it needs of it")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// The account of the tests, with all rights, over TCP and the socket.
pub const USER: &str = "admin";
pub const PASSWORD: &str = "s3cret: \"it's\" \\ # ; n\\n end ";

pub struct MariaDb {
    pub port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl MariaDb {
    /// A server that asks for [`PASSWORD`].
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`MariaDb::start`], with options such as `--event-scheduler=ON`.
    pub fn start_with(options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("backupy-mdb-").tempdir().unwrap();
        give(dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut server = Self { port: 0, dir, child: None };
        server.init();
        server.launch(options);
        server
    }

    fn init(&self) {
        install(&self.data(), self.dir.path());
        self.file("init.sql", init_sql().as_bytes());
    }

    fn launch(&mut self, options: &[&str]) {
        for _ in 0..3 {
            self.spawn(options);
            if self.wait_until_ready() {
                return;
            }
        }
        panic!("MariaDB does not start: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn spawn(&mut self, options: &[&str]) {
        self.port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = as_mysql("mariadbd");
        command.arg("--no-defaults");
        command.arg(format!("--datadir={}", self.data().display()));
        command.arg(format!("--tmpdir={}", self.dir.path().display()));
        command.arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--pid-file={}", self.dir.path().join("pid").display()));
        command.arg(format!("--init-file={}", self.dir.path().join("init.sql").display()));
        command.arg(format!("--port={}", self.port));
        command.args(["--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0"]);
        command.args(["--innodb-buffer-pool-size=16M", "--skip-name-resolve"]);
        command.args(options).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.child = Some(command.spawn().unwrap());
    }

    /// Whether it answers; not if it ended, because somebody took the port.
    fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
            if self.socket().exists() && self.client("", "SELECT 1").status.success() {
                return true;
            }
            assert!(Instant::now() < deadline, "MariaDB does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// The unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("mysqld.sock")
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

    fn client(&self, database: &str, sql: &str) -> Output {
        self.command("mariadb")
            .args(["--batch", "--skip-column-names", "--execute", sql, "--", database])
            .output()
            .unwrap()
    }

    /// A client tool that is logged in as the superuser.
    pub fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .args(["--no-defaults", "--default-character-set=utf8mb4"])
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!("--user={USER}"))
            .env("MYSQL_PWD", PASSWORD)
            .stdin(Stdio::null());
        command
    }

    /// Runs SQL as the superuser; what it answers.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`MariaDb::sql`], where the server may refuse.
    pub fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = self.client(database, sql);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Creates a database of any name.
    pub fn create_database(&self, name: &str) {
        self.sql("", &format!("CREATE DATABASE `{}`", name.replace('`', "``")));
    }

    /// Stops the server; `immediately` as a crash does.
    pub fn stop(&mut self, immediately: bool) {
        let Some(mut child) = self.child.take() else { return };
        let signal = if immediately { Signal::KILL } else { Signal::TERM };
        let _ = kill_process(Pid::from_child(&child), signal);
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.stop(true);
    }
}

/// Makes a data directory; `tmp` is for what it needs meanwhile.
pub fn install(data: &Path, tmp: &Path) {
    let output = as_mysql("mariadb-install-db")
        .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display()))
        // The name of its temporary tables is not unique enough for a shared one.
        .arg(format!("--tmpdir={}", tmp.display()))
        .output()
        .expect("MariaDB is installed (apt-get install mariadb-server)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What makes the account of the tests; one statement a line, as the server reads it.
pub fn init_sql() -> String {
    let literal = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    format!(
        "CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{literal}';\nGRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"
    )
}

fn as_mysql(program: &str) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = account() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env_clear().stdin(Stdio::null());
    command.env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin");
    command
}

/// Gives a file to the server's user.
pub fn give(path: &Path) {
    if let Some((uid, gid)) = account() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// The account `mysql`, needed only by root.
pub fn account() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts.lines().find(|line| line.starts_with("mysql:")).expect("user mysql");
    let fields: Vec<_> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}
