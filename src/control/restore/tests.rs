//! By claim: what comes back is what was backed up, what is wrong is refused and leaves nothing behind.

use std::fs;

use super::*;
use crate::artifact::{DataKey, END_MARKER, FRAME_BYTES, HEAD_BYTES, Sealer};
use crate::config::HostPolicy;
use crate::control::manifest::tests::master;
use crate::control::manifest::{Object, Parts, Trigger};
use crate::control::storage::Directory;
use crate::control::storage::sign::Method;
use crate::control::verify::verify;
use crate::model::{Compression, Connection, Engine, Trust};

const NOW: u64 = 1_795_430_400_000;

struct World {
    dir: tempfile::TempDir,
    storage: Directory,
    master: MasterKey,
    cancel: Cancel,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let storage = Directory::open_or_init(&dir.path().join("storage")).unwrap();
    storage.serve_at("127.0.0.1:9".parse().unwrap());
    World { dir, storage, master: master(), cancel: Cancel::new().unwrap() }
}

fn sealed(key: &DataKey, stream: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(key).unwrap();
    let mut artifact = Vec::new();
    for chunk in stream.chunks(FRAME_BYTES) {
        let mut frame = vec![0; HEAD_BYTES];
        frame.extend_from_slice(chunk);
        sealer.seal(&mut frame).unwrap();
        artifact.extend(frame);
    }
    artifact.extend(END_MARKER);
    artifact
}

impl World {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A backup as the pipeline and `commit` would leave it.
    fn store(&self, run_id: &str, at_ms: u64, engine: Engine, dump: &[u8]) -> Manifest {
        let data_key = DataKey::generate().unwrap();
        let artifact = sealed(&data_key, &zstd::encode_all(dump, 1).unwrap());
        let key = ObjectKey::new("shop", run_id, 1, at_ms).unwrap();
        let url = self.storage.presign_put(&key, 1 << 30, u64::MAX).unwrap();
        let target = url.url.expose().split_once(":9").unwrap().1.to_owned();
        let permit = self.storage.permit(Method::Put, &target, 0).unwrap();
        let mut put = self.storage.begin_put(&permit, artifact.len() as u64).unwrap();
        put.write_all(&artifact).unwrap();
        let stored = put.commit().unwrap();
        let manifest = Manifest::new(Parts {
            run_id: run_id.into(),
            backup: "shop".into(),
            engine,
            engine_version: String::new(),
            trigger: Trigger::Manual,
            started_ms: at_ms,
            finished_ms: at_ms,
            object: Object { key, size_bytes: stored.size_bytes, sha256: stored.sha256 },
            compression: Compression::Zstd,
            key: self.master.wrap(run_id, &data_key).unwrap(),
        });
        self.write(&manifest);
        manifest
    }

    fn write(&self, manifest: &Manifest) {
        let bytes = manifest.to_bytes(&self.master).unwrap();
        self.storage.write_manifest(&manifest.object.key, &bytes).unwrap();
    }

    fn to_file(
        &self,
        manifest: &Manifest,
        name: &str,
        existing: Existing,
    ) -> Result<Decrypted, RestoreError> {
        let watch = Watch { cancel: &self.cancel, progress: &|_, _| {} };
        to_file(&self.storage, manifest, &self.master, &self.path(name), existing, &watch)
    }

    fn with_context<T>(&self, work: impl FnOnce(&Context<'_>) -> T) -> T {
        let limits =
            PipelineLimits { min_free_bytes: 1, min_free_percent: 0, ..PipelineLimits::default() };
        self.with_limits(&limits, work)
    }

    fn with_limits<T>(&self, limits: &PipelineLimits, work: impl FnOnce(&Context<'_>) -> T) -> T {
        let policy = HostPolicy {
            trust: Trust::Local,
            secrets_dir: None,
            allow_paths: None,
            allow_containers: None,
            allow_checks: None,
            allow_hooks: false,
            pg_bin_dir: None,
            mongo_bin_dir: None,
        };
        let work_dir = self.path("work");
        work(&Context {
            cancel: &self.cancel,
            policy: &policy,
            limits,
            work_dir: &work_dir,
            progress: &|_| {},
        })
    }

    fn verify(
        &self,
        manifest: &Manifest,
    ) -> Result<crate::control::verify::Verified, RestoreError> {
        self.with_context(|cx| verify(&self.storage, manifest, &self.master, cx, &|_, _| {}))
    }

    /// No half-written file and no scratch file.
    fn assert_clean(&self) {
        let left = |dir: &Path| {
            let names = fs::read_dir(dir)
                .into_iter()
                .flatten()
                .map(|e| e.unwrap().file_name().into_string().unwrap());
            names
                .filter(|name| name.contains("part") || name.contains("driver-"))
                .collect::<Vec<_>>()
        };
        assert_eq!(left(self.dir.path()), [""; 0]);
        assert_eq!(left(&self.path("work")), [""; 0]);
    }
}

fn sqlite_file(path: &Path, rows: usize) -> Vec<u8> {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(
        "CREATE TABLE \"o\"\"r\" (id INTEGER PRIMARY KEY, t TEXT); CREATE TABLE empty (x);",
    )
    .unwrap();
    for n in 0..rows {
        db.execute("INSERT INTO \"o\"\"r\" (t) VALUES (?1)", [format!("row {n}")]).unwrap();
    }
    db.close().unwrap();
    fs::read(path).unwrap()
}

fn rows(path: &Path) -> i64 {
    let db = rusqlite::Connection::open(path).unwrap();
    db.query_row("SELECT count(*) FROM \"o\"\"r\"", [], |row| row.get(0)).unwrap()
}

fn sqlite_target(path: &Path) -> Target {
    let database = path.to_str().unwrap().to_owned();
    let connection = Connection { database, ..Connection::default() };
    Target { id: "x".into(), engine: Engine::Sqlite, display_name: "x".into(), connection }
}

#[test]
fn a_dump_comes_back_byte_for_byte() {
    let world = world();
    let dump: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let manifest = world.store("r1", NOW, Engine::PostgreSql, &dump);
    let seen = Cell::new((0, 0));
    let watch = Watch { cancel: &world.cancel, progress: &|done, all| seen.set((done, all)) };
    let out = world.path("out");
    let done =
        to_file(&world.storage, &manifest, &world.master, &out, Existing::Keep, &watch).unwrap();
    assert_eq!(fs::read(&out).unwrap(), dump);
    assert_eq!(
        (done.bytes_out, seen.get()),
        (3_000_000, (manifest.object.size_bytes, manifest.object.size_bytes))
    );
    assert!(matches!(
        world.to_file(&manifest, "out", Existing::Keep),
        Err(RestoreError::Exists { .. })
    ));
    world.to_file(&manifest, "out", Existing::Replace).unwrap();
    world.assert_clean();
}

#[test]
fn a_bad_artifact_leaves_no_file() {
    let world = world();
    let good = world.store("r1", NOW, Engine::Sqlite, b"dump dump dump");
    let path = world.path("storage").join(good.object.key.as_str());
    let bytes = fs::read(&path).unwrap();
    let refused = |name: &str| {
        let error = world.to_file(&good, "out", Existing::Keep).unwrap_err();
        assert!(error.is_about_the_backup(), "{name}: {error}");
        assert!(!world.path("out").exists());
        world.assert_clean();
    };
    for cut in [0, 10, bytes.len() - 4, bytes.len() - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        refused("cut");
    }
    for index in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[index] ^= 0x40;
        fs::write(&path, bad).unwrap();
        refused("flipped");
    }
    fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
    refused("longer");
    let data_key = world.master.unwrap("r1", &good.key).unwrap();
    let other = sealed(&data_key, &zstd::encode_all(&b"DUMP dump dump"[..], 1).unwrap());
    assert_eq!(other.len(), bytes.len());
    fs::write(&path, other).unwrap();
    refused("sealed under the same key, but not what was uploaded");
    fs::remove_file(&path).unwrap();
    refused("gone");
    let mut other = world.store("r2", NOW, Engine::Sqlite, b"x");
    other.key = world.master.wrap("r2", &DataKey::generate().unwrap()).unwrap();
    assert!(
        world.to_file(&other, "out", Existing::Keep).unwrap_err().is_about_the_backup(),
        "another key"
    );
    other.key = world.master.wrap("r3", &DataKey::generate().unwrap()).unwrap();
    assert!(
        matches!(world.to_file(&other, "out", Existing::Keep), Err(RestoreError::Key(_))),
        "another run's"
    );
}

#[test]
fn a_backup_is_found_by_run_or_by_name() {
    let world = world();
    for (run, at) in [("r1", NOW), ("r2", NOW + 1000), ("r3", NOW + 2000)] {
        world.store(run, at, Engine::Sqlite, run.as_bytes());
    }
    let find = |wanted: &str| select(&world.storage, &world.master, wanted);
    assert_eq!(find("r1").unwrap().manifest.run_id, "r1");
    let newest = find("shop").unwrap();
    assert_eq!((newest.manifest.run_id.as_str(), newest.skipped.len()), ("r3", 0));
    for wanted in ["", "sho", "r", "r9", "../shop"] {
        assert!(matches!(find(wanted), Err(RestoreError::NotFound { .. })), "{wanted}");
    }
    let key = find("r3").unwrap().manifest.object.key;
    let forged = String::from_utf8(world.storage.read_manifest(&key).unwrap())
        .unwrap()
        .replace("manual", "MANUAL");
    world.storage.write_manifest(&key, forged.as_bytes()).unwrap();
    let selected = find("shop").unwrap();
    assert_eq!(selected.manifest.run_id, "r2");
    assert!(selected.skipped.len() == 1 && selected.skipped[0].contains("r3"), "said loudly");
    let error = find("r3").unwrap_err();
    assert!(
        matches!(&error, RestoreError::NotFound { problems, .. } if problems.len() == 1),
        "{error}"
    );
    world.storage.delete_artifact(&find("r2").unwrap().manifest.object.key).unwrap();
    assert_eq!(find("shop").unwrap().manifest.run_id, "r1");
}

#[test]
fn a_cancel_ends_it() {
    let world = world();
    let manifest = world.store("r1", NOW, Engine::Sqlite, b"dump");
    world.cancel.cancel(Why::Requested);
    let error = world.to_file(&manifest, "out", Existing::Keep).unwrap_err();
    assert!(matches!(error, RestoreError::Cancelled(Why::Requested)));
    assert!(!error.is_about_the_backup());
    assert!(!world.path("out").exists());
    world.assert_clean();
}

#[test]
fn verify_reads_a_sqlite_dump_as_sqlite_does() {
    let world = world();
    let dump = sqlite_file(&world.path("a.db"), 500);
    let manifest = world.store("r1", NOW, Engine::Sqlite, &dump);
    let verified = world.verify(&manifest).unwrap();
    let tables: Vec<_> = verified.tables.iter().map(|t| (t.name.as_str(), t.rows)).collect();
    assert_eq!(tables, [("empty", Some(0)), ("o\"r", Some(500))]);
    assert_eq!((verified.dump_bytes, verified.warnings.len()), (dump.len() as u64, 0));
    world.assert_clean();

    let mut bad = dump.clone();
    for byte in &mut bad[12_288..12_400] {
        *byte ^= 0xff;
    }
    let manifest = world.store("r2", NOW, Engine::Sqlite, &bad);
    assert!(
        world.verify(&manifest).unwrap_err().is_about_the_backup(),
        "sealed well, but damaged before"
    );
    let manifest = world.store(
        "r3",
        NOW,
        Engine::Sqlite,
        b"not a database at all, but long enough for a header ..........",
    );
    assert!(world.verify(&manifest).unwrap_err().is_about_the_backup());
    world.assert_clean();
}

#[test]
fn an_index_that_does_not_fit_its_table_is_noticed() {
    let world = world();
    let path = world.path("a.db");
    sqlite_file(&path, 10);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE TABLE b (x); CREATE INDEX bx ON b (x); INSERT INTO b VALUES (1), (2);
         PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'bx'; PRAGMA writable_schema = RESET;
         INSERT INTO b VALUES (3);",
    )
    .unwrap();
    db.close().unwrap();
    let manifest = world.store("r1", NOW, Engine::Sqlite, &fs::read(&path).unwrap());
    assert!(world.verify(&manifest).is_err(), "a page that belongs to nothing");
}

#[test]
fn verify_leaves_the_disk_its_room() {
    let world = world();
    let manifest = world.store("r1", NOW, Engine::Sqlite, &sqlite_file(&world.path("a.db"), 1));
    let limits = PipelineLimits { min_free_bytes: u64::MAX / 2, ..PipelineLimits::default() };
    let error = world
        .with_limits(&limits, |cx| verify(&world.storage, &manifest, &world.master, cx, &|_, _| {}))
        .unwrap_err();
    assert!(matches!(error, RestoreError::Space { .. }) && !error.is_about_the_backup());
    world.assert_clean();
}

#[test]
fn a_sqlite_database_is_loaded_whole_or_not_at_all() {
    let world = world();
    let manifest = world.store("r1", NOW, Engine::Sqlite, &sqlite_file(&world.path("a.db"), 500));
    let path = world.path("new.db");
    let load = |path: &Path, replace: bool| {
        let target = sqlite_target(path);
        world.with_context(|cx| {
            into_database(
                &world.storage,
                &manifest,
                &world.master,
                &target,
                replace,
                cx,
                &|_, _| {},
            )
        })
    };
    load(&path, false).unwrap();
    assert_eq!(rows(&path), 500);
    assert!(load(&path, false).unwrap_err().to_string().contains("exists already"));

    // One that is open elsewhere, in WAL mode, with rows of its own that are not checkpointed.
    let live = world.path("live.db");
    sqlite_file(&live, 3);
    let reader = rusqlite::Connection::open(&live).unwrap();
    reader
        .execute_batch("PRAGMA journal_mode = WAL; INSERT INTO \"o\"\"r\" (t) VALUES ('late');")
        .unwrap();
    load(&live, true).unwrap();
    assert_eq!(rows(&live), 500);
    let seen: i64 =
        reader.query_row("SELECT count(*) FROM \"o\"\"r\"", [], |row| row.get(0)).unwrap();
    assert_eq!(seen, 500, "and whoever has it open sees the new content");
    drop(reader);
    assert_eq!(rows(&live), 500, "no old journal was applied to it");

    let orphan = world.path("orphan.db");
    fs::write(world.path("orphan.db-wal"), "old").unwrap();
    assert!(load(&orphan, false).unwrap_err().to_string().contains("-wal"));
    let mut other = sqlite_target(&path);
    other.engine = Engine::PostgreSql;
    let error = world.with_context(|cx| {
        into_database(&world.storage, &manifest, &world.master, &other, true, cx, &|_, _| {})
    });
    assert!(matches!(error, Err(RestoreError::OtherEngine { .. })));
    world.assert_clean();
}
