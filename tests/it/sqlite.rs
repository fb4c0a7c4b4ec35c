//! SQLite databases at rest: every mode and permission, restored and compared; the source stays as it was.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use backupy::model::Step;
use rusqlite::Connection;

use crate::rig::{Rig, sqlite_target};

const ROWS: i64 = 5_000;

/// A database with something in it; every connection is closed.
fn make(path: &Path, mode: &str) {
    let db = Connection::open(path).unwrap();
    db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
    fill(&db, ROWS);
    db.close().unwrap();
}

fn fill(db: &Connection, rows: i64) {
    db.execute_batch(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT);
         CREATE INDEX i ON t(text);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO t(text) SELECT printf('row %d %s', i, hex(randomblob(20))) FROM n;"
    ))
    .unwrap();
}

/// Opens a dump as a restore would, checks all of it, and tells the number of rows.
fn restore(dump: &[u8], dir: &Path) -> i64 {
    let path = dir.join("restored.db");
    fs::write(&path, dump).unwrap();
    let db = Connection::open(&path).unwrap();
    let check: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(check, "ok");
    let rows = db.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    db.close().unwrap();
    fs::remove_file(&path).unwrap();
    rows
}

/// Every file of a directory with its content and times.
fn state(dir: &Path) -> Vec<(String, Vec<u8>, std::time::SystemTime)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let modified = entry.metadata().unwrap().modified().unwrap();
            (name, fs::read(entry.path()).unwrap(), modified)
        })
        .collect();
    files.sort();
    files
}

fn data_dir(rig: &Rig) -> std::path::PathBuf {
    let dir = rig.path("data");
    fs::create_dir(&dir).unwrap();
    dir
}

#[test]
fn both_modes_at_rest() {
    for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let rig = Rig::new();
        let dir = data_dir(&rig);
        let path = dir.join("app.db");
        make(&path, mode);
        let before = state(&dir);
        let (dump, prepared, dumped) = rig.run(&sqlite_target(&path)).unwrap();
        assert_eq!(state(&dir), before, "{mode}: the source and its surroundings are untouched");
        assert_eq!(restore(&dump, rig.dir.path()), ROWS, "{mode}");
        assert!(prepared.engine_version.starts_with("SQLite 3."), "{}", prepared.engine_version);
        assert_eq!(prepared.size_hint_bytes, Some(before[0].1.len() as u64));
        assert_eq!(dumped.warnings, Vec::<String>::new());
        assert_eq!(dump[18] == 2, mode == "WAL", "the mode is part of the database");
    }
}

#[test]
fn progress_rises_to_the_end() {
    let rig = Rig::new();
    make(&rig.path("app.db"), "DELETE");
    let (dump, _, _) = rig.run(&sqlite_target(&rig.path("app.db"))).unwrap();
    let seen = rig.progress.lock().unwrap();
    assert!(seen.iter().all(|p| p.step == Step::Dumping));
    assert!(seen.is_sorted_by_key(|p| (p.percent, p.bytes)), "{seen:?}");
    let last = seen.last().unwrap();
    assert_eq!((last.percent, last.bytes), (Some(100), dump.len() as u64));
}

#[test]
fn what_an_open_connection_has_only_in_the_wal_is_there() {
    let rig = Rig::new();
    let dir = data_dir(&rig);
    let path = dir.join("app.db");
    make(&path, "WAL");
    let app = Connection::open(&path).unwrap();
    app.execute("INSERT INTO t(text) VALUES ('only in the WAL')", []).unwrap();
    assert!(fs::metadata(dir.join("app.db-wal")).unwrap().len() > 0);
    let main = fs::read(&path).unwrap();
    let (dump, _, _) = rig.run(&sqlite_target(&path)).unwrap();
    assert_eq!(restore(&dump, rig.dir.path()), ROWS + 1);
    assert_eq!(fs::read(&path).unwrap(), main, "no checkpoint was made");
    app.execute("INSERT INTO t(text) VALUES ('still writable')", []).unwrap();
}

/// The files as a crash leaves them: copied while a connection has them open.
fn crashed(rig: &Rig, mode: &str, shm: bool) -> std::path::PathBuf {
    let live = rig.path("live.db");
    make(&live, mode);
    let app = Connection::open(&live).unwrap();
    app.execute_batch("PRAGMA cache_size = 10; PRAGMA wal_autocheckpoint = 0").unwrap();
    if mode == "WAL" {
        app.execute("INSERT INTO t(text) VALUES ('committed before the crash')", []).unwrap();
    }
    // More than the cache holds, so that the file itself is half changed.
    app.execute_batch("BEGIN; UPDATE t SET text = 'never committed'").unwrap();
    let dir = data_dir(rig);
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let from = rig.path(&format!("live.db{suffix}"));
        if from.exists() && (shm || suffix != "-shm") {
            fs::copy(&from, dir.join(format!("app.db{suffix}"))).unwrap();
        }
    }
    dir.join("app.db")
}

#[test]
fn a_crashed_wal_database_is_recovered_in_the_copy() {
    for shm in [true, false] {
        let rig = Rig::new();
        let path = crashed(&rig, "WAL", shm);
        let before = state(path.parent().unwrap());
        let (dump, _, _) = rig.run(&sqlite_target(&path)).unwrap();
        let rows = restore_rows(&rig, &dump, "text = 'never committed'");
        assert_eq!(rows, 0);
        assert_eq!(restore(&dump, rig.dir.path()), ROWS + 1);
        let after = state(path.parent().unwrap());
        let content = |s: &[(String, Vec<u8>, std::time::SystemTime)]| {
            s.iter().filter(|f| !f.0.ends_with("-shm")).cloned().collect::<Vec<_>>()
        };
        assert_eq!(content(&after), content(&before), "-shm: {shm}");
        assert_eq!(after.len(), before.len(), "-shm: {shm}");
    }
}

#[test]
fn a_hot_journal_is_rolled_back_in_the_copy() {
    let rig = Rig::new();
    let path = crashed(&rig, "DELETE", false);
    let before = state(path.parent().unwrap());
    assert_eq!(before.len(), 2, "database and journal");
    let (dump, _, _) = rig.run(&sqlite_target(&path)).unwrap();
    assert_eq!(state(path.parent().unwrap()), before);
    assert_eq!(restore_rows(&rig, &dump, "text = 'never committed'"), 0);
    assert_eq!(restore(&dump, rig.dir.path()), ROWS);
}

fn restore_rows(rig: &Rig, dump: &[u8], condition: &str) -> i64 {
    let path = rig.path("look.db");
    fs::write(&path, dump).unwrap();
    let db = Connection::open(&path).unwrap();
    db.query_row(&format!("SELECT count(*) FROM t WHERE {condition}"), [], |r| r.get(0)).unwrap()
}

#[test]
fn read_only_files_in_a_read_only_directory() {
    for mode in ["WAL", "DELETE"] {
        let rig = Rig::new();
        let dir = data_dir(&rig);
        let path = dir.join("app.db");
        make(&path, mode);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
        let (dump, _, _) = rig.run(&sqlite_target(&path)).unwrap();
        assert_eq!(restore(&dump, rig.dir.path()), ROWS, "{mode}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{mode}");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_link_leads_to_the_database_and_its_wal() {
    let rig = Rig::new();
    let dir = data_dir(&rig);
    make(&dir.join("app.db"), "WAL");
    let app = Connection::open(dir.join("app.db")).unwrap();
    app.execute("INSERT INTO t(text) VALUES ('in the WAL')", []).unwrap();
    symlink(dir.join("app.db"), rig.path("link.db")).unwrap();
    let (dump, _, _) = rig.run(&sqlite_target(&rig.path("link.db"))).unwrap();
    assert_eq!(restore(&dump, rig.dir.path()), ROWS + 1);
    assert!(!rig.path("link.db-wal").exists());
}

#[test]
fn odd_page_sizes_and_names() {
    for size in [512, 65_536] {
        let rig = Rig::new();
        let path = rig.path("it's 100% \"odd\"?mode=rwc#x.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&format!("PRAGMA page_size = {size}")).unwrap();
        fill(&db, ROWS);
        db.close().unwrap();
        let (dump, _, _) = rig.run(&sqlite_target(&path)).unwrap();
        assert_eq!(restore(&dump, rig.dir.path()), ROWS, "{size}");
    }
}

#[test]
fn a_database_without_tables_is_backed_up_with_a_warning() {
    let rig = Rig::new();
    let path = rig.path("bare.db");
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 1").unwrap();
    let (dump, _, dumped) = rig.run(&sqlite_target(&path)).unwrap();
    assert!(dump.starts_with(b"SQLite format 3\0"));
    assert_eq!(dumped.warnings, ["the SQLite database has no tables"]);
}

#[test]
fn what_only_the_application_understands_is_copied_with_a_warning() {
    let rig = Rig::new();
    let path = rig.path("app.db");
    make(&path, "DELETE");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE TABLE special(a TEXT);
         CREATE INDEX only ON special(a);
         INSERT INTO special VALUES ('x');
         PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX only ON special(a COLLATE only_in_the_app)'
             WHERE name = 'only';
         INSERT INTO sqlite_schema VALUES ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING no_such_module(x)');",
    )
    .unwrap();
    db.close().unwrap();
    let (dump, _, dumped) = rig.run(&sqlite_target(&path)).unwrap();
    assert_eq!(dumped.warnings.len(), 1, "{:?}", dumped.warnings);
    assert!(dumped.warnings[0].starts_with("1 of 2 tables"), "{:?}", dumped.warnings);
    assert_eq!(restore_rows(&rig, &dump, "text LIKE 'row%'"), ROWS);
}

#[test]
fn data_that_break_the_schema_are_a_warning() {
    let rig = Rig::new();
    let path = rig.path("app.db");
    make(&path, "DELETE");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE TABLE n(a TEXT); INSERT INTO n VALUES (NULL);
         PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE TABLE n(a TEXT NOT NULL)' WHERE name = 'n';",
    )
    .unwrap();
    db.close().unwrap();
    let (_, _, dumped) = rig.run(&sqlite_target(&path)).unwrap();
    assert_eq!(dumped.warnings.len(), 1);
    assert!(dumped.warnings[0].contains("NULL value in n.a"), "{:?}", dumped.warnings);
}
