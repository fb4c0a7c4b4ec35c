//! SQLite under an agent that is another user than the application: it may read, and must not get in the way.
//!
//! Root may do anything, so these run a copy of this program as `nobody`; without root there is no second user
//! and nothing to test.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rusqlite::Connection;

use crate::rig::{LONG, Rig, sqlite_target};

const NOBODY: u32 = 65_534;
const DATABASE: &str = "BACKUPY_IT_DATABASE";
const DUMP: &str = "BACKUPY_IT_DUMP";
const TIMES: &str = "BACKUPY_IT_TIMES";

/// Not a test: backs one file up as whoever runs it, and writes the dump or `error: …` to a file.
#[test]
#[ignore = "started by the tests of this file"]
fn agent_process() {
    let (Some(path), Some(dump)) = (std::env::var_os(DATABASE), std::env::var_os(DUMP)) else {
        return;
    };
    let times = std::env::var(TIMES).map_or(1, |times| times.parse().unwrap());
    let rig = Rig::new();
    for _ in 0..times {
        let (content, failed) = match rig.run(&sqlite_target(Path::new(&path))) {
            Ok((dump, _, _)) => (dump, false),
            Err(error) => (format!("error: {error}").into_bytes(), true),
        };
        fs::write(&dump, content).unwrap();
        if failed {
            return;
        }
    }
}

/// Not a test: an application that opens the file, writes and closes it, over and over, until its stdin ends.
#[test]
#[ignore = "started by the tests of this file"]
fn application_process() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    rustix::io::ioctl_fionbio(std::io::stdin(), true).unwrap();
    let mut nothing = [0];
    while std::io::Read::read(&mut std::io::stdin(), &mut nothing).is_err() {
        let db = Connection::open(&path).unwrap();
        db.busy_timeout(LONG).unwrap();
        db.execute("INSERT INTO t VALUES (0)", []).unwrap();
        db.close().unwrap();
    }
}

/// A directory for everybody with a copy of this program in it.
struct Stage(tempfile::TempDir);

impl Stage {
    /// `None` without root.
    fn set() -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        fs::create_dir(dir.path().join("agent")).unwrap();
        chown(dir.path().join("agent"), Some(NOBODY), Some(NOBODY)).unwrap();
        fs::copy(std::env::current_exe().unwrap(), dir.path().join("program")).unwrap();
        Some(Self(dir))
    }

    fn database(&self) -> PathBuf {
        self.0.path().join("data/app.db")
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path().join("data")).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn back_up(&self) -> Vec<u8> {
        self.back_up_times(1)
    }

    /// The last of so many dumps, or the first error.
    fn back_up_times(&self, times: u32) -> Vec<u8> {
        let dump = self.0.path().join("agent/dump");
        let status = Command::new(self.0.path().join("program"))
            .args(["--exact", "sqlite_users::agent_process", "--ignored", "--nocapture"])
            .env(DATABASE, self.database())
            .env(DUMP, &dump)
            .env(TIMES, times.to_string())
            .env("TMPDIR", self.0.path().join("agent"))
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .status()
            .unwrap();
        assert!(status.success());
        fs::read(dump).unwrap()
    }

    fn rows(&self, dump: &[u8]) -> i64 {
        assert!(dump.starts_with(b"SQLite"), "{}", String::from_utf8_lossy(dump));
        let path = self.0.path().join("restored.db");
        fs::write(&path, dump).unwrap();
        let db = Connection::open(path).unwrap();
        db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }
}

fn make(path: &Path, mode: &str) -> Connection {
    let db = Connection::open(path).unwrap();
    db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2), (3)").unwrap();
    db
}

#[test]
fn a_database_at_rest() {
    for mode in ["WAL", "DELETE"] {
        let Some(stage) = Stage::set() else { return };
        make(&stage.database(), mode).close().unwrap();
        assert_eq!(stage.rows(&stage.back_up()), 3, "{mode}");
        assert_eq!(stage.files(), ["app.db"], "{mode}");
    }
}

#[test]
fn a_database_in_use() {
    for mode in ["WAL", "DELETE"] {
        let Some(stage) = Stage::set() else { return };
        let app = make(&stage.database(), mode);
        app.execute("INSERT INTO t VALUES (4)", []).unwrap();
        let before = stage.files();
        assert_eq!(stage.rows(&stage.back_up()), 4, "{mode}");
        assert_eq!(stage.files(), before, "{mode}");
        app.execute("INSERT INTO t VALUES (5)", []).unwrap();
        assert_eq!(stage.rows(&stage.back_up()), 5, "{mode}");
        app.close().unwrap();
        assert_eq!(stage.files(), ["app.db"], "{mode}: the application can tidy up");
    }
}

/// Every close of the application removes `-wal` and `-shm`. If the agent made new ones, they would be the agent's,
/// and the application could not write any more.
#[test]
fn a_database_that_is_opened_and_closed_all_the_time() {
    const APPLICATION: u32 = 1_000;
    let Some(stage) = Stage::set() else { return };
    make(&stage.database(), "WAL").close().unwrap();
    let data = stage.0.path().join("data");
    chown(&data, Some(APPLICATION), Some(NOBODY)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o770)).unwrap();
    chown(stage.database(), Some(APPLICATION), Some(NOBODY)).unwrap();
    fs::set_permissions(stage.database(), fs::Permissions::from_mode(0o640)).unwrap();
    let mut application = Command::new(stage.0.path().join("program"))
        .args(["--exact", "sqlite_users::application_process", "--ignored"])
        .env(DATABASE, stage.database())
        .uid(APPLICATION)
        .gid(NOBODY)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let dump = stage.back_up_times(40);
    drop(application.stdin.take());
    assert!(application.wait().unwrap().success(), "the application was never locked out");
    assert!(stage.rows(&dump) > 3);
    for name in stage.files() {
        let owner = fs::metadata(data.join(&name)).unwrap().uid();
        assert_eq!(owner, APPLICATION, "{name}");
    }
}

#[test]
fn a_database_that_may_not_be_read() {
    let Some(stage) = Stage::set() else { return };
    make(&stage.database(), "WAL").close().unwrap();
    fs::set_permissions(stage.database(), fs::Permissions::from_mode(0o600)).unwrap();
    let answer = String::from_utf8(stage.back_up()).unwrap();
    assert!(answer.contains("cannot be read by the agent: Permission denied"), "{answer}");
}

/// The files as a crash leaves them, `-shm` included, which this user may read but not write.
#[test]
fn a_database_whose_application_crashed() {
    let Some(stage) = Stage::set() else { return };
    let live = stage.0.path().join("live.db");
    let app = make(&live, "WAL");
    app.execute("INSERT INTO t VALUES (4)", []).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let name = |base: &str| stage.0.path().join(format!("{base}{suffix}"));
        fs::copy(name("live.db"), name("data/app.db")).unwrap();
    }
    assert_eq!(stage.rows(&stage.back_up()), 4);
    assert_eq!(stage.files(), ["app.db", "app.db-shm", "app.db-wal"]);
}
