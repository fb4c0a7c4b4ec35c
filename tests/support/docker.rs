//! A throw-away Docker daemon with images packed from this host's own files; nothing is downloaded.
//!
//! It has its own root, socket and pid file under a temporary directory, no bridge and no firewall rules, and
//! is stopped by the process that was started. It needs root; where a daemon cannot run, the tests fail, unless
//! `BACKUPY_TEST_NO_DOCKER=1` says that this is known.

#![allow(dead_code, reason = "each test crate uses what it needs of it")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
/// The superuser's password in every container; it is asked for on the socket and on TCP.
pub const PASSWORD: &str = r"s3cret: it's \ a:b";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether the tests with a daemon shall be left out.
pub fn left_out() -> bool {
    let left_out = std::env::var_os("BACKUPY_TEST_NO_DOCKER").is_some_and(|value| value == "1");
    if left_out {
        eprintln!("left out: BACKUPY_TEST_NO_DOCKER=1");
    }
    left_out
}

pub struct Dockerd {
    dir: TempDir,
    child: Option<Child>,
}

impl Dockerd {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("backupy-dk-").tempdir().unwrap();
        let mut daemon = Self { dir, child: None };
        let root = daemon.dir.path();
        let log = fs::File::create(root.join("log")).unwrap();
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(root.join("d")).arg("--exec-root").arg(root.join("e"));
        command.arg("--pidfile").arg(root.join("pid"));
        command.arg("-H").arg(format!("unix://{}", daemon.socket().display()));
        command.args(["--storage-driver=vfs", "--iptables=false", "--ip6tables=false"]);
        command.args(["--bridge=none", "--shutdown-timeout=2"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().expect(
            "dockerd starts (apt-get install docker.io iptables; as root); \
             BACKUPY_TEST_NO_DOCKER=1 leaves these tests out",
        );
        daemon.child = Some(child);
        daemon.wait_until_ready();
        daemon
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.try_docker(&["version"]).status.success() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap().is_some();
            if ended || Instant::now() > deadline {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                panic!("dockerd does not start (it needs root): {log}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Where the test may put files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// The `docker` command, which shares no code with the client under test.
    pub fn try_docker(&self, args: &[&str]) -> Output {
        Command::new("docker")
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("the docker command (apt-get install docker.io)")
    }

    pub fn docker(&self, args: &[&str]) -> String {
        let output = self.try_docker(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "docker {args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The answer to a GET, asked by hand.
    pub fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{path}: {answer}");
        answer
    }

    /// Makes an image from a root directory.
    pub fn import(&self, root: &Path, name: &str) {
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(root)
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Command::new("docker")
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .args(["import", "--change", &format!("ENV PATH={PATH}"), "-", name])
            .stdin(tar.stdout.take().unwrap())
            .output()
            .unwrap();
        assert!(tar.wait().unwrap().success());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// An image of nothing but a static program, `/busybox`.
    pub fn import_static(&self, name: &str, with_shell: bool) {
        let root = self.dir.path().join(format!("root-{name}"));
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("tmp")).unwrap();
        let program = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let program = program.iter().find(|path| path.exists()).expect("busybox-static");
        fs::copy(program, root.join("busybox")).unwrap();
        if with_shell {
            for applet in ["sh", "rm", "sleep", "env", "nice"] {
                symlink("/busybox", root.join("bin").join(applet)).unwrap();
            }
        }
        self.import(&root, name);
    }

    /// An image `pg` with PostgreSQL's programs and a small userland.
    pub fn import_postgres(&self, bin_dir: &Path) {
        let root = self.dir.path().join("root-pg");
        let version = bin_dir.parent().unwrap();
        let number = version.file_name().unwrap();
        for dir in ["tmp", "run/postgresql", "var/run/postgresql", "usr/bin", "bin", "etc"] {
            fs::create_dir_all(root.join(dir)).unwrap();
            fs::set_permissions(root.join(dir), fs::Permissions::from_mode(0o1777)).unwrap();
        }
        for tool in ["postgres", "initdb", "pg_dump", "psql"] {
            put(&root, &bin_dir.join(tool));
        }
        for tool in ["/bin/sh", "/bin/rm", "/bin/sleep", "/usr/bin/env", "/usr/bin/nice"] {
            put(&root, Path::new(tool));
        }
        for library in fs::read_dir(version.join("lib")).unwrap().flatten() {
            let name = library.file_name().to_string_lossy().into_owned();
            // What initdb needs; the compiler alone is 100 MB.
            if ["dict_snowball.so", "plpgsql.so"].contains(&name.as_str())
                || name.contains("utf8_and")
            {
                put(&root, &library.path());
            }
        }
        let share = Path::new("usr/share/postgresql").join(number);
        copy_tree(&Path::new("/").join(&share), &root.join(&share));
        copy_tree(Path::new("/usr/share/zoneinfo/Etc"), &root.join("usr/share/zoneinfo/Etc"));
        for tool in ["pg_dump", "psql"] {
            symlink(bin_dir.join(tool), root.join("usr/bin").join(tool)).unwrap();
        }
        let accounts = "root:x:0:0::/:/bin/sh\npostgres:x:999:999::/tmp:/bin/sh\n";
        fs::write(root.join("etc/passwd"), accounts).unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\npostgres:x:999:\n").unwrap();
        self.import(&root, "pg");
    }

    /// A container of the image `pg` with a server that answers.
    pub fn run_postgres(&self, name: &str, bin_dir: &Path) {
        let bin = bin_dir.display();
        let quoted = PASSWORD.replace('\'', r"'\''");
        let script = format!(
            "set -e; umask 077; echo '{quoted}' >/tmp/pw; \
             {bin}/initdb -D /tmp/data -U postgres --auth=scram-sha-256 --pwfile=/tmp/pw --no-sync \
                --encoding=UTF8 --locale=C >/dev/null; rm /tmp/pw; \
             exec {bin}/postgres -D /tmp/data -c fsync=off -c shared_buffers=16MB -k /var/run/postgresql"
        );
        // Through a file, so that the password stands in no argument.
        let file = self.dir.path().join(format!("start-{name}.sh"));
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let mount = format!("{}:/start.sh:ro", file.display());
        let args = ["run", "-d", "--name", name, "--network=none", "--user=postgres", "-v", &mount];
        self.docker(&[&args[..], &["pg", "sh", "/start.sh"]].concat());
        let deadline = Instant::now() + PATIENCE;
        while self.try_sql(name, "SELECT 1").is_err() {
            let logs = self.try_docker(&["logs", name]);
            let logs = String::from_utf8_lossy(&logs.stderr);
            assert!(Instant::now() < deadline, "PostgreSQL in {name}: {logs}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn try_sql(&self, name: &str, sql: &str) -> Result<String, String> {
        // The environment of these commands is the test's own business.
        let password = format!("PGPASSWORD={PASSWORD}");
        let args = ["exec", "-e", &password, name, "psql", "-U", "postgres", "-qAt"];
        let output = self.try_docker(&[&args[..], &["-v", "ON_ERROR_STOP=1", "-c", sql]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Runs SQL as the superuser in the database `postgres`.
    pub fn sql(&self, name: &str, sql: &str) -> String {
        self.try_sql(name, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The command lines in a container, as the host sees them.
    pub fn processes(&self, name: &str) -> Vec<Vec<String>> {
        self.pids(name).iter().map(|pid| cmdline(*pid)).collect()
    }

    /// The processes in a container, by their numbers on the host.
    pub fn pids(&self, name: &str) -> Vec<u32> {
        let listed = self.try_docker(&["top", name, "-eo", "pid"]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        listed.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// Whether a program with this name runs in the container.
    pub fn runs(&self, name: &str, program: &str) -> bool {
        self.processes(name)
            .iter()
            .any(|words| words.first().is_some_and(|word| word.ends_with(program)))
    }

    /// Waits until a program runs in the container, or does not.
    pub fn wait_until(&self, name: &str, program: &str, runs: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.runs(name, program) != runs {
            let processes = self.processes(name);
            assert!(Instant::now() < deadline, "{program} in {name}: {processes:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let names = self.try_docker(&["ps", "-aq"]).stdout;
        let names = String::from_utf8_lossy(&names).into_owned();
        let names: Vec<&str> = names.split_whitespace().collect();
        if !names.is_empty() {
            self.try_docker(&[&["rm", "-f"], &names[..]].concat());
        }
        // Their bridges would outlive the daemon.
        self.try_docker(&["network", "prune", "-f"]);
        let Some(mut child) = self.child.take() else { return };
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(30);
        while child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Docker leaves this mount behind, and with it the directory could not be removed.
        let _ = Command::new("umount")
            .arg(self.dir.path().join("e/netns/default"))
            .stderr(Stdio::null())
            .status();
    }
}

fn cmdline(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.filter(|word| !word.is_empty()).collect()
}

/// Copies a program and the libraries it is linked to under `root`.
pub fn put(root: &Path, program: &Path) {
    let linked = Command::new("ldd").arg(program).output().expect("ldd");
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in std::iter::once(program).chain(libraries) {
        let to = root.join(file.strip_prefix("/").unwrap());
        if !to.exists() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(file, &to).unwrap();
        }
    }
}

pub fn copy_tree(from: &Path, to: &Path) {
    let Ok(entries) = fs::read_dir(from) else { return };
    fs::create_dir_all(to).unwrap();
    for entry in entries.flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &to);
        } else if path.exists() {
            fs::copy(&path, &to).unwrap();
        }
    }
}
