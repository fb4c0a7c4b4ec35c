//! SQLite databases that never hold still. The writers are other processes, as in life: locks between
//! processes are not those between threads.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use crate::rig::{LONG, Rig, sqlite_target};

const ACCOUNTS: i64 = 40_000;
const EACH: i64 = 100;
const DATABASE: &str = "BACKUPY_IT_WRITER";

fn make(path: &Path, mode: &str) {
    let db = Connection::open(path).unwrap();
    db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
    db.execute_batch(&format!(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note TEXT);
         CREATE TABLE log(id INTEGER PRIMARY KEY, text TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
         INSERT INTO account SELECT i, {EACH}, hex(randomblob(300)) FROM n;"
    ))
    .unwrap();
    db.close().unwrap();
}

/// Moves money between accounts far apart in the file, and makes the file grow, until it is killed.
fn write_for_ever(path: &Path) -> ! {
    let mut db = Connection::open(path).unwrap();
    db.busy_timeout(LONG).unwrap();
    db.execute_batch("PRAGMA synchronous = OFF").unwrap();
    let mut i = 0i64;
    loop {
        i += 1;
        let (from, to) = (1 + i * 7_919 % ACCOUNTS, 1 + i * 104_729 % ACCOUNTS);
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        tx.execute("UPDATE account SET balance = balance - 1 WHERE id = ?1", [from]).unwrap();
        tx.execute("UPDATE account SET balance = balance + 1 WHERE id = ?1", [to]).unwrap();
        tx.execute("INSERT INTO log(text) VALUES (hex(randomblob(200)))", []).unwrap();
        tx.commit().unwrap();
    }
}

/// Not a test: the body of the writer process, which is this program again.
#[test]
#[ignore = "started by the tests of this file"]
fn writer_process() {
    if let Some(path) = std::env::var_os(DATABASE) {
        write_for_ever(Path::new(&path));
    }
}

/// A writer process that is killed and reaped when dropped.
struct Writer(Child);

impl Writer {
    fn start(path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite_writers::writer_process", "--ignored", "--nocapture"])
            .env(DATABASE, path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn logged(db: &Connection) -> i64 {
    loop {
        match db.query_row("SELECT count(*) FROM log", [], |row| row.get(0)) {
            Ok(count) => return count,
            Err(error) => assert!(error.to_string().contains("locked"), "{error}"),
        }
    }
}

/// Waits until the writers have written more than before.
fn wait_for_writes(path: &Path) -> i64 {
    let db = Connection::open(path).unwrap();
    db.busy_timeout(LONG).unwrap();
    let before = logged(&db);
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let now = logged(&db);
        if now > before + 10 {
            return now;
        }
        assert!(std::time::Instant::now() < deadline, "the writers do not write");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One moment of the database: no money is lost, whatever was under way. Returns the length of the log.
fn verify(dump: &[u8], rig: &Rig) -> i64 {
    let path = rig.path("restored.db");
    std::fs::write(&path, dump).unwrap();
    let db = Connection::open(&path).unwrap();
    let check: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(check, "ok");
    let (sum, count): (i64, i64) = db
        .query_row("SELECT sum(balance), count(*) FROM account", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .unwrap();
    assert_eq!((sum, count), (ACCOUNTS * EACH, ACCOUNTS));
    let (rows, last): (i64, i64) = db
        .query_row("SELECT count(*), max(id) FROM log", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .unwrap();
    assert_eq!(rows, last, "no transaction is missing in between");
    rows
}

fn backs_up_under_writers(mode: &str, writers: usize) -> Vec<String> {
    let rig = Rig::new();
    let path = rig.path("bank.db");
    make(&path, mode);
    let mut processes: Vec<_> = (0..writers).map(|_| Writer::start(&path)).collect();
    let mut warnings = Vec::new();
    for _ in 0..3 {
        let before = wait_for_writes(&path);
        let (dump, _, dumped) = rig.run(&sqlite_target(&path)).unwrap();
        assert!(verify(&dump, &rig) >= before, "nothing that was committed is missing");
        warnings.extend(dumped.warnings);
        wait_for_writes(&path);
    }
    assert!(processes.iter_mut().all(Writer::is_running), "no writer was harmed");
    warnings
}

#[test]
fn wal_under_writers() {
    assert_eq!(backs_up_under_writers("WAL", 2), Vec::<String>::new(), "writers go on");
}

#[test]
fn rollback_mode_under_writers_that_never_stop() {
    let warnings = backs_up_under_writers("DELETE", 2);
    assert!(warnings.iter().any(|w| w.contains("had to wait")), "{warnings:?}");
}

/// A database that is opened, written to and closed all the time: in WAL mode its companions come and go, so
/// that the way of copying has to be chosen anew again and again.
#[test]
fn wal_that_is_opened_and_closed_all_the_time() {
    let rig = Rig::new();
    let path = rig.path("bank.db");
    make(&path, "WAL");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) {
                i += 1;
                let db = Connection::open(&path).unwrap();
                db.busy_timeout(LONG).unwrap();
                db.execute_batch(&format!(
                    "BEGIN IMMEDIATE;
                     UPDATE account SET balance = balance - 1 WHERE id = 1 + {i} % {ACCOUNTS};
                     UPDATE account SET balance = balance + 1 WHERE id = 1 + {i} * 31 % {ACCOUNTS};
                     INSERT INTO log(text) VALUES ('x');
                     COMMIT"
                ))
                .unwrap();
                db.close().unwrap();
                std::thread::sleep(Duration::from_millis(i % 90));
            }
        });
        let _stop = StopOnDrop(&stop);
        wait_for_writes(&path);
        for _ in 0..5 {
            let (dump, _, _) = rig.run(&sqlite_target(&path)).unwrap();
            verify(&dump, &rig);
        }
    });
}

/// Stops the other thread also when this one panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn two_runs_on_one_file_take_turns() {
    let rig = Rig::new();
    let path = rig.path("bank.db");
    make(&path, "DELETE");
    let other = rig.path("alias.db");
    std::os::unix::fs::symlink(&path, &other).unwrap();
    let _writer = Writer::start(&path);
    wait_for_writes(&path);
    std::thread::scope(|scope| {
        for name in [&path, &other] {
            scope.spawn(|| {
                for _ in 0..3 {
                    let own = Rig::new();
                    let (dump, _, _) = own.run(&sqlite_target(name)).unwrap();
                    verify(&dump, &own);
                }
            });
        }
    });
}
