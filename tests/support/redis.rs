//! A throw-away Redis server: its own directory, a free port and a unix socket there.
//!
//! As root it runs as the user `redis`. The guard stops the server by the process it started, whatever becomes
//! of the test.

#![allow(dead_code, reason = "each test crate uses what it needs of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// What `requirepass` is in tests that set it.
pub const PASSWORD: &str = r"s3cret: it's \ a:b";

pub struct Redis {
    pub port: u16,
    dir: TempDir,
    child: Option<Child>,
    /// For the helpers here.
    password: Option<String>,
}

impl Redis {
    /// An empty server with settings such as `--requirepass x`, each word its own.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_on(None, settings)
    }

    /// A server that reads an RDB when it starts.
    pub fn start_on(rdb: Option<&[u8]>, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("backupy-redis-").tempdir().unwrap();
        give(dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let password = settings
            .iter()
            .position(|word| *word == "--requirepass")
            .map(|at| settings[at + 1].to_owned());
        let mut server = Self { port: 0, dir, child: None, password };
        if let Some(rdb) = rdb {
            let path = server.dir.path().join("dump.rdb");
            fs::write(&path, rdb).unwrap();
            give(&path);
        }
        server.launch(settings);
        server
    }

    /// Starts the server on a free port; another one if somebody takes it first.
    fn launch(&mut self, settings: &[&str]) {
        for _ in 0..5 {
            self.port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            let log = fs::File::create(self.dir.path().join("log")).unwrap();
            let mut command = Command::new("redis-server");
            if let Some((uid, gid)) = account() {
                command.uid(uid).gid(gid);
            }
            command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
            command.arg("--dir").arg(self.dir.path());
            command.arg("--unixsocket").arg(self.socket()).args(["--unixsocketperm", "777"]);
            command.args(["--save", "", "--daemonize", "no", "--enable-debug-command", "yes"]);
            command.args(["--repl-diskless-sync-delay", "0"]).args(settings);
            command.current_dir("/").env_clear().stdin(Stdio::null());
            command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
            let child = command.spawn().expect("redis-server (apt-get install redis-server)");
            self.child = Some(child);
            if self.wait_until_ready() {
                return;
            }
        }
        panic!("Redis does not start: {}", self.log());
    }

    fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            if self.try_ask(&["PING"]).is_some_and(|answer| answer == "PONG") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    pub fn client(&self) -> Client {
        self.try_client().expect("a connection")
    }

    fn try_client(&self) -> Option<Client> {
        Client::connect(([127, 0, 0, 1], self.port).into(), self.password.as_deref())
    }

    /// Says one command; its answer, an error with its `-`.
    pub fn ask(&self, words: &[&str]) -> String {
        self.client().ask(words)
    }

    fn try_ask(&self, words: &[&str]) -> Option<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.try_client()?.try_ask(&words)
    }

    /// Keys of every type and encoding, in two databases, some that expire, and a library of functions.
    pub fn fill(&self) {
        self.client().fill();
    }

    /// The same for equal content of all databases.
    pub fn digest(&self) -> String {
        self.ask(&["DEBUG", "DIGEST"])
    }

    /// Ends the server at once, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A connection of the tests' own.
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects, and logs in where there is a password.
    pub fn connect(address: SocketAddr, password: Option<&str>) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self(BufReader::new(stream));
        if let Some(password) = password {
            client.try_ask(&[b"AUTH", password.as_bytes()])?;
        }
        Some(client)
    }

    /// See [`Redis::fill`].
    pub fn fill(&mut self) {
        let client = self;
        client.ask(&["DEBUG", "POPULATE", "5000", "key", "100"]);
        for number in 0..300 {
            let n = number.to_string();
            client.ask(&["RPUSH", "list", &n]);
            client.ask(&["HSET", "hash", &n, &"x".repeat(100)]);
            client.ask(&["SADD", "numbers", &n]);
            client.ask(&["SADD", "words", &format!("word {n}")]);
            client.ask(&["ZADD", "sorted", "1.5", &n]);
            client.ask(&["XADD", "stream", "*", "field", &n]);
        }
        for (command, key) in [("RPUSH", "l"), ("SADD", "s"), ("SADD", "n"), ("PFADD", "hll")] {
            client.ask(&[command, key, "1", "2", "three"]);
        }
        client.ask(&["HSET", "h", "a", "b"]);
        client.ask(&["ZADD", "z", "inf", "a", "-inf", "b"]);
        client.ask(&["RPUSH", "long", "short", &"x".repeat(100_000)]);
        client.ask(&["XGROUP", "CREATE", "stream", "group", "0"]);
        client.ask(&["XREADGROUP", "GROUP", "group", "me", "COUNT", "7", "STREAMS", "stream", ">"]);
        client.ask(&["SET", "soon", "gone", "EX", "100000"]);
        client.ask(&["SET", "number", "12345"]);
        client.ask(&["SET", "big", "1234567890"]);
        let code = "#!lua name=lib\nredis.register_function('twice', function(k, a) return 2 end)";
        client.ask(&["FUNCTION", "LOAD", code]);
        client.ask(&["SELECT", "9"]);
        client.ask(&["SET", "elsewhere", "nine"]);
    }

    pub fn ask(&mut self, words: &[&str]) -> String {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.try_ask(&words).expect("an answer")
    }

    pub fn try_ask(&mut self, words: &[&[u8]]) -> Option<String> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).ok()?;
        self.answer()
    }

    fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        let line = line.trim_end();
        let rest = line.get(1..)?;
        match &line[..1] {
            "$" => {
                let Ok(length) = rest.parse::<usize>() else { return Some(String::new()) };
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes).ok()?;
                bytes.truncate(length);
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            "*" => {
                let parts: Option<Vec<_>> =
                    (0..rest.parse().unwrap_or(0)).map(|_| self.answer()).collect();
                Some(parts?.join("\n"))
            }
            "-" => Some(line.to_owned()),
            _ => Some(rest.to_owned()),
        }
    }
}

/// Gives a file to the server's user.
fn give(path: &Path) {
    if let Some((uid, gid)) = account() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// The account `redis`, needed only by root.
fn account() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts.lines().find(|line| line.starts_with("redis:")).expect("user redis");
    let fields: Vec<_> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}
