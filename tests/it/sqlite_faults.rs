//! What is not a database, may not be backed up, or gets in the way.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use backupy::drivers::{DriverError, SqliteFault};
use backupy::model::{Connection as Settings, Engine, Way};
use backupy::thread::Why;
use rusqlite::Connection;

use crate::rig::{Failing, LONG, Rig, sqlite_target, target};

fn make(path: &Path, kib: u32) {
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "CREATE TABLE t(a BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {kib})
         INSERT INTO t SELECT randomblob(1000) FROM n;"
    ))
    .unwrap();
    db.close().unwrap();
}

fn fault(rig: &Rig, path: &Path) -> (SqliteFault, String) {
    let error = rig.run(&sqlite_target(path)).unwrap_err();
    let text = error.to_string();
    match error {
        DriverError::Sqlite { fault, .. } => {
            assert!(!fault.retry() || matches!(fault, SqliteFault::Busy { .. }), "{text}");
            (fault, text)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_database_says_so() {
    let rig = Rig::new();
    let at = |name: &str, content: &[u8]| {
        fs::write(rig.path(name), content).unwrap();
        fault(&rig, &rig.path(name))
    };
    assert!(matches!(at("empty.db", b"").0, SqliteFault::Empty));
    let (encrypted, text) = at("encrypted.db", &[0xa7; 8192]);
    assert!(matches!(encrypted, SqliteFault::NotADatabase));
    assert!(text.contains("encrypted"), "{text}");
    assert!(matches!(at("text.db", b"name,amount\n").0, SqliteFault::NotADatabase));
    let (missing, text) = fault(&rig, &rig.path("missing.db"));
    assert!(matches!(missing, SqliteFault::Missing));
    assert!(text.contains("missing.db does not exist"), "{text}");
    assert!(!rig.path("missing.db").exists(), "nothing is created");
    symlink(rig.path("missing.db"), rig.path("dangling.db")).unwrap();
    assert!(matches!(fault(&rig, &rig.path("dangling.db")).0, SqliteFault::Missing));
    let below = rig.path("text.db").join("app.db");
    assert!(matches!(fault(&rig, &below).0, SqliteFault::Missing));
    assert!(matches!(fault(&rig, rig.dir.path()).0, SqliteFault::NotAFile));
    assert!(matches!(fault(&rig, Path::new("/dev/zero")).0, SqliteFault::NotAFile));
}

#[test]
fn a_fifo_is_not_waited_for() {
    let rig = Rig::new();
    let fifo = rig.path("fifo.db");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    assert!(matches!(fault(&rig, &fifo).0, SqliteFault::NotAFile));
}

#[test]
fn damage_is_found() {
    let rig = Rig::new();
    let path = rig.path("app.db");
    make(&path, 400);
    let whole = fs::read(&path).unwrap();
    // The pages of the table's leaves lie behind its root.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 64], 4096 * 20).unwrap();
    let (found, text) = fault(&rig, &path);
    assert!(matches!(found, SqliteFault::Corrupt(_)), "{text}");
    // Cut off in the middle, as by an interrupted copy.
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let (found, text) = fault(&rig, &path);
    assert!(matches!(found, SqliteFault::Corrupt(_)), "{text}");
    // A header followed by noise.
    let mut noise = whole[..100].to_vec();
    noise.resize(whole.len(), 0x5a);
    fs::write(&path, noise).unwrap();
    let (found, text) = fault(&rig, &path);
    assert!(matches!(found, SqliteFault::Corrupt(_)), "{text}");
    assert!(text.contains("earlier backup"), "{text}");
}

#[test]
fn a_lock_that_stays_is_busy_and_may_pass() {
    for sql in [
        "BEGIN EXCLUSIVE",
        "PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; DELETE FROM t; COMMIT",
    ] {
        let mut rig = Rig::new();
        rig.limits.stuck_timeout = Duration::from_millis(300);
        let path = rig.path("app.db");
        make(&path, 10);
        let other = Connection::open(&path).unwrap();
        other.execute_batch(sql).unwrap();
        let error = rig.run(&sqlite_target(&path)).unwrap_err();
        assert!(error.retry(), "{error}");
        assert!(error.to_string().contains("locked by another process"), "{error}");
        drop(other);
        rig.run(&sqlite_target(&path)).unwrap();
    }
}

#[test]
fn a_cancel_ends_the_wait_for_a_lock() {
    let rig = Rig::new();
    let path = rig.path("app.db");
    make(&path, 10);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let cancel = rig.cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        cancel.cancel(Why::Requested);
    });
    let started = Instant::now();
    let error = rig.run(&sqlite_target(&path)).unwrap_err();
    assert_eq!(error.cancelled(), Some(Why::Requested), "{error}");
    assert!(started.elapsed() < LONG / 2);
    canceller.join().unwrap();
}

/// Cancels once so many bytes have come by.
struct Canceller<'a>(&'a Rig, usize);

impl Write for Canceller<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1 = self.1.saturating_sub(bytes.len());
        if self.1 == 0 {
            self.0.cancel.cancel(Why::Timeout);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_cancel_while_streaming_and_a_sink_that_fails() {
    let rig = Rig::new();
    let path = rig.path("app.db");
    make(&path, 4_000);
    let error = rig.run_into(&sqlite_target(&path), &mut Failing(1 << 20)).unwrap_err();
    assert!(matches!(error, DriverError::Sink(_)), "{error}");
    let error = rig.run_into(&sqlite_target(&path), &mut Canceller(&rig, 1 << 20)).unwrap_err();
    assert_eq!(error.cancelled(), Some(Why::Timeout), "{error}");
    let error = rig.run(&sqlite_target(&path)).unwrap_err();
    assert_eq!(error.cancelled(), Some(Why::Timeout), "{error}");
}

#[test]
fn too_little_space_is_seen_before_the_copy() {
    let mut rig = Rig::new();
    make(&rig.path("app.db"), 10);
    rig.limits.min_free_bytes = u64::MAX / 2;
    let error = rig.run(&sqlite_target(&rig.path("app.db"))).unwrap_err();
    assert!(matches!(error, DriverError::Space { .. }) && !error.retry(), "{error}");
}

#[test]
fn a_control_plane_stays_within_the_list_and_out_of_the_state_directory() {
    let mut rig = Rig::remote();
    fs::create_dir_all(rig.work_dir()).unwrap();
    fs::create_dir(rig.path("allowed")).unwrap();
    let state = rig.path("state/store.db");
    for path in [rig.path("allowed/app.db"), rig.path("secret.db"), state.clone()] {
        make(&path, 10);
    }
    symlink(rig.path("secret.db"), rig.path("allowed/link.db")).unwrap();
    rig.run(&sqlite_target(&rig.path("secret.db"))).unwrap();
    rig.policy.allow_paths = Some(vec![rig.path("allowed"), rig.path("state")]);
    rig.run(&sqlite_target(&rig.path("allowed/app.db"))).unwrap();
    let mut refusals = Vec::new();
    for path in ["secret.db", "allowed/link.db", "no-such.db"] {
        let error = rig.run(&sqlite_target(&rig.path(path))).unwrap_err();
        assert!(
            matches!(error, DriverError::NotAllowed { .. }) && !error.retry(),
            "{path}: {error}"
        );
        refusals.push(error.to_string());
    }
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "nobody learns what exists: {refusals:?}");
    let error = rig.run(&sqlite_target(&state)).unwrap_err();
    assert!(error.to_string().contains("state directory"), "{error}");
    let climbs = rig.path("allowed/../secret.db");
    assert!(matches!(rig.run(&sqlite_target(&climbs)), Err(DriverError::Setting { .. })));
}

#[test]
fn engines_and_ways_of_later_versions() {
    let rig = Rig::new();
    let settings = |way| Settings { database: "/srv/app.db".into(), way, ..Settings::default() };
    for engine in [Engine::MySql, Engine::MariaDb, Engine::Unknown(77)] {
        let error = rig.run(&target(engine, settings(Way::Tcp))).unwrap_err();
        assert!(error.to_string().ends_with("not supported by this version yet"), "{error}");
        assert!(!error.retry());
    }
    for way in [Way::DockerExec, Way::Unknown(9)] {
        let error = rig.run(&target(Engine::Sqlite, settings(way))).unwrap_err();
        assert!(matches!(error, DriverError::Unsupported { .. }), "{error}");
    }
}
