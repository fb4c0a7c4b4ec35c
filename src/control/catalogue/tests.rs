//! By claim: what is remembered and in which order, what is removed, and the catalogue anew from the storage.
//! With [`commit`](crate::control::commit), because the two only mean something together.

use std::io::Write as _;
use std::path::Path;

use super::*;
use crate::artifact::DataKey;
use crate::control::commit::{self, Outcome, Report};
use crate::control::keep::Rule;
use crate::control::keys::MasterKey;
use crate::control::manifest::Trigger;
use crate::control::manifest::tests::master;
use crate::control::storage::sign::Method;
use crate::control::storage::{Directory, Listed, Presigned, Storage, StorageError};
use crate::model::Engine;
use crate::secret::Secret;
use crate::store::StoreKeys;

const NOW: u64 = 1_795_430_400_000;
const DAY: u64 = 86_400_000;

struct World {
    dir: tempfile::TempDir,
    catalogue: Catalogue,
    storage: Directory,
    master: MasterKey,
}

fn open_catalogue(dir: &Path) -> Catalogue {
    let keys = StoreKeys { current: Secret::new("key"), previous: None };
    Catalogue::new(Store::open(dir, &SPACES, &keys).unwrap())
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = open_catalogue(&dir.path().join("state"));
    let storage = Directory::open_or_init(&dir.path().join("storage")).unwrap();
    storage.serve_at("127.0.0.1:9".parse().unwrap());
    World { dir, catalogue, storage, master: master() }
}

impl World {
    fn begin(&self, run_id: &str, backup: &str, now_ms: u64) {
        let mut run = Run::new(run_id.into(), backup, Engine::Sqlite, Trigger::Scheduled, now_ms);
        run.key = Some(self.master.wrap(run_id, &DataKey::generate().unwrap()).unwrap());
        self.catalogue.begin(&run, None).unwrap();
    }

    /// Issues a URL and uploads to it.
    fn upload(&self, run_id: &str, attempt: u32, body: &[u8]) -> Report {
        let run = self.catalogue.get(run_id).unwrap().unwrap();
        let key = ObjectKey::new(&run.backup, run_id, attempt, run.created_ms).unwrap();
        self.catalogue.issue(run_id, &key, NOW + 1000, None).unwrap();
        let url = self.storage.presign_put(&key, 1 << 20, u64::MAX).unwrap();
        let url = url.url.expose();
        let target = &url[url.find("/objects").unwrap()..];
        let permit = self.storage.permit(Method::Put, target, NOW).unwrap();
        let mut put = self.storage.begin_put(&permit, body.len() as u64).unwrap();
        put.write_all(body).unwrap();
        let stored = put.commit().unwrap();
        assert!(self.catalogue.arrived(&key, stored).unwrap());
        Report {
            run_id: run_id.into(),
            object_key: key.to_string(),
            size_bytes: stored.size_bytes,
            sha256: crate::hex::hex(&stored.sha256),
            compression: "zstd".into(),
            engine_version: "SQLite 3".into(),
        }
    }

    fn complete(&self, report: &Report, now_ms: u64) -> Outcome {
        commit::complete(&self.catalogue, &self.storage, &self.master, report, now_ms).unwrap()
    }

    /// A whole good run.
    fn back_up(&self, run_id: &str, backup: &str, now_ms: u64) {
        self.begin(run_id, backup, now_ms);
        let report = self.upload(run_id, 1, run_id.as_bytes());
        assert!(matches!(self.complete(&report, now_ms), Outcome::Stored(_)));
    }

    fn tidy(&self, rule: Rule, now_ms: u64) -> commit::Tidied {
        let seen = LastSeen { at_ms: now_ms, ahead_ms: 0 };
        commit::tidy(&self.catalogue, &self.storage, [("shop", rule)], &seen, now_ms).unwrap()
    }

    fn objects(&self) -> Vec<String> {
        self.storage.list().unwrap().into_iter().map(|entry| entry.key.to_string()).collect()
    }
}

fn ids(runs: &[Run]) -> Vec<&str> {
    runs.iter().map(|run| run.run_id.as_str()).collect()
}

#[test]
fn runs_are_remembered_newest_first() {
    let world = world();
    assert!(world.catalogue.is_empty().unwrap());
    world.back_up("r1", "shop", NOW);
    world.back_up("r3", "shop", NOW + 2);
    world.back_up("r2", "app", NOW + 1);
    world.begin("r4", "shop", NOW + 3);
    let c = &world.catalogue;
    assert!(!c.is_empty().unwrap());
    assert_eq!(ids(&c.runs(None, 9).unwrap()), ["r4", "r3", "r2", "r1"]);
    assert_eq!(ids(&c.runs(Some("shop"), 2).unwrap()), ["r4", "r3"]);
    assert_eq!(ids(&c.runs(Some("sho"), 9).unwrap()), [""; 0]);
    assert_eq!(ids(&c.open_runs().unwrap()), ["r4"]);
    assert_eq!(c.newest_good("shop").unwrap().unwrap().run_id, "r3");
    c.verified("r3", Verified { at_ms: NOW, error: Some("bad page".into()) }).unwrap();
    assert_eq!(c.newest_good("shop").unwrap().unwrap().run_id, "r1");
}

#[test]
fn what_is_refused() {
    let world = world();
    world.begin("r1", "shop", NOW);
    let run =
        |id: &str, backup: &str| Run::new(id.into(), backup, Engine::Sqlite, Trigger::Manual, NOW);
    let begin = |id: &str, backup: &str| world.catalogue.begin(&run(id, backup), None);
    assert!(matches!(begin("r1", "shop"), Err(CatalogueError::Exists { .. })));
    for (id, backup) in [("", "a"), ("a/b", "a"), ("a", ""), ("a", "a/b")] {
        assert!(matches!(begin(id, backup), Err(CatalogueError::BadId)));
    }
    let key = ObjectKey::parse("shop/x.bky").unwrap();
    assert!(matches!(
        world.catalogue.issue("r2", &key, 0, None),
        Err(CatalogueError::Unknown { .. })
    ));
    assert!(world.catalogue.end("r1", false, "no", NOW).unwrap());
    assert!(matches!(
        world.catalogue.issue("r1", &key, 0, None),
        Err(CatalogueError::Ended { .. })
    ));
}

#[test]
fn everything_survives_a_restart() {
    let world = world();
    world.back_up("r1", "shop", NOW);
    let c = world.catalogue.clone();
    let mark = Mark { schedule: "0 3 * * *".into(), from_ms: 5 };
    c.put_mark("shop", &mark).unwrap();
    c.set_storage_id("abc").unwrap();
    c.confirm_export("key-1", 7).unwrap();
    c.look(NOW, 0).unwrap();
    let run = c.get("r1").unwrap();
    let World { dir, catalogue, .. } = world;
    drop(c);
    catalogue.store.close().unwrap();
    let c = open_catalogue(&dir.path().join("state"));
    assert_eq!(c.get("r1").unwrap(), run);
    assert_eq!(c.marks().unwrap(), [("shop".to_owned(), mark)]);
    assert_eq!(c.storage_id().unwrap().as_deref(), Some("abc"));
    assert_eq!(c.export_confirmed("key-1").unwrap(), Some(7));
    assert_eq!(c.export_confirmed("key-2").unwrap(), None, "a rotated key is another one");
    assert_eq!(c.seen().unwrap().at_ms, NOW);
}

#[test]
fn a_run_ends_once() {
    let world = world();
    world.begin("r1", "shop", NOW);
    let report = world.upload("r1", 1, b"dump");
    assert!(matches!(world.complete(&report, NOW + 1), Outcome::Stored(_)));
    assert!(matches!(world.complete(&report, NOW + 2), Outcome::Known(_)));
    assert!(!world.catalogue.end("r1", true, "late", NOW + 3).unwrap());
    let run = world.catalogue.get("r1").unwrap().unwrap();
    assert_eq!((run.state, run.finished_ms, run.attempts), (State::Completed, NOW + 1, 1));
    assert!(run.is_good() && world.catalogue.open_runs().unwrap().is_empty());
}

#[test]
fn a_result_that_is_not_true_is_not_a_backup() {
    let world = world();
    world.begin("r1", "shop", NOW);
    world.begin("r2", "shop", NOW);
    let good = world.upload("r1", 1, b"dump");
    let other = world.upload("r2", 1, b"dump");
    let cases = [
        Report { object_key: "../x".into(), ..good.clone() },
        Report { object_key: "shop/never.bky".into(), ..good.clone() },
        Report { object_key: other.object_key, ..good.clone() },
        Report { size_bytes: 5, ..good.clone() },
        Report { sha256: "00".repeat(32), ..good.clone() },
        Report { compression: "lz4".into(), ..good.clone() },
    ];
    for report in cases {
        assert!(matches!(world.complete(&report, NOW), Outcome::Untrue(_)), "{report:?}");
    }
    assert!(world.storage.list().unwrap().iter().all(|entry| !entry.manifest));
    let key = ObjectKey::parse(&good.object_key).unwrap();
    world.storage.delete_artifact(&key).unwrap();
    assert!(matches!(world.complete(&good, NOW), Outcome::Untrue(_)), "the artifact is gone");
}

#[test]
fn an_upload_whose_note_was_lost_is_read_back() {
    let world = world();
    world.begin("r1", "shop", NOW);
    let report = world.upload("r1", 1, b"dump");
    let key = ObjectKey::parse(&report.object_key).unwrap();
    world.catalogue.issue("r1", &key, NOW, None).unwrap();
    assert_eq!(world.catalogue.upload(&key).unwrap().unwrap().stored, None);
    let wrong = Report { sha256: "00".repeat(32), ..report.clone() };
    assert!(matches!(world.complete(&wrong, NOW), Outcome::Untrue(_)));
    assert!(matches!(world.complete(&report, NOW), Outcome::Stored(_)));
}

#[test]
fn a_storage_that_is_away_claims_nothing_and_it_works_later() {
    let world = world();
    world.begin("r1", "shop", NOW);
    let report = world.upload("r1", 1, b"dump");
    let (away, home) = (world.dir.path().join("away"), world.dir.path().join("storage"));
    std::fs::rename(&home, &away).unwrap();
    let result = commit::complete(&world.catalogue, &world.storage, &world.master, &report, NOW);
    assert!(result.unwrap_err().retry());
    let seen = LastSeen { at_ms: NOW, ahead_ms: 0 };
    assert!(commit::tidy(&world.catalogue, &world.storage, [], &seen, NOW).is_err());
    assert_eq!(world.catalogue.open_runs().unwrap().len(), 1);
    std::fs::rename(&away, &home).unwrap();
    assert!(matches!(world.complete(&report, NOW), Outcome::Stored(_)));
}

#[test]
fn what_other_attempts_uploaded_is_removed_once_nothing_can_arrive() {
    let world = world();
    world.begin("r1", "shop", NOW);
    world.upload("r1", 1, b"first");
    let report = world.upload("r1", 2, b"second");
    world.complete(&report, NOW);
    world.begin("r2", "shop", NOW);
    world.upload("r2", 1, b"third");
    world.catalogue.end("r2", false, "failed", NOW).unwrap();
    assert_eq!(world.tidy(Rule::default(), NOW).removed, 0, "the URLs are still good");
    assert_eq!(world.tidy(Rule::default(), NOW + 1000).removed, 2);
    assert_eq!(world.objects(), [report.object_key]);
    assert!(world.catalogue.gone(u64::MAX).unwrap().is_empty());
}

#[test]
fn keep_rules_release_and_remove() {
    let world = world();
    for day in 0..5 {
        world.back_up(&format!("r{day}"), "shop", NOW + day * DAY);
    }
    let now = NOW + 4 * DAY;
    let tidied = world.tidy(Rule { last: Some(2), days: None }, now);
    assert_eq!((tidied.released.len(), tidied.removed), (3, 3));
    assert_eq!(world.objects().len(), 2);
    let runs = world.catalogue.runs(Some("shop"), 9).unwrap();
    assert_eq!(runs.iter().filter(|run| run.artifact == ArtifactState::Deleted).count(), 3);
    assert_eq!(world.tidy(Rule { last: Some(2), days: None }, now), commit::Tidied::default());
}

#[test]
fn what_is_no_longer_there_takes_nobodys_place() {
    let world = world();
    for day in 0..3 {
        world.back_up(&format!("r{day}"), "shop", NOW + day * DAY);
    }
    let path = |id: &str, end: &str| {
        let run = world.catalogue.get(id).unwrap().unwrap();
        world.dir.path().join("storage").join(format!("{}{end}", run.object.unwrap().key))
    };
    // The newest is cut and the one before it has lost its manifest: the oldest is the last good one.
    std::fs::write(path("r2", ""), "r").unwrap();
    std::fs::remove_file(path("r1", ".json")).unwrap();
    let tidied = world.tidy(Rule { last: Some(1), days: None }, NOW + 9 * DAY);
    assert_eq!(tidied.released, ["r1", "r2"]);
    assert!(path("r0", "").exists() && path("r0", ".json").exists());
}

#[test]
fn a_removal_that_was_cut_short_goes_on() {
    let world = world();
    world.back_up("r1", "shop", NOW);
    world.back_up("r2", "shop", NOW + 1);
    world.catalogue.release("r1").unwrap();
    let key = world.catalogue.gone(NOW).unwrap().remove(0);
    world.storage.delete_manifest(&key).unwrap();
    let rebuilt = world.catalogue.rebuild(&world.storage, &world.master).unwrap();
    assert_eq!((rebuilt.good, rebuilt.lost, rebuilt.unfinished), (1, 0, 1));
    assert_eq!(world.tidy(Rule::default(), NOW).removed, 1);
    assert_eq!(world.objects().len(), 1);
    world.catalogue.release("r2").unwrap();
    let rebuilt = world.catalogue.rebuild(&world.storage, &world.master).unwrap();
    assert_eq!(rebuilt.added, 0);
    let run = world.catalogue.get("r2").unwrap().unwrap();
    assert_eq!(run.artifact, ArtifactState::Deleted, "what is to go does not come back");
}

#[test]
fn the_history_is_bounded_and_artifacts_are_not_history() {
    let world = world();
    world.back_up("good", "shop", NOW);
    for n in 0..HISTORY_MAX + 3 {
        let mut run =
            Run::new(format!("f{n}"), "shop", Engine::Sqlite, Trigger::Manual, NOW + 1 + n as u64);
        run.state = State::Failed;
        world.catalogue.begin(&run, None).unwrap();
    }
    assert_eq!(world.catalogue.prune("shop").unwrap(), 3);
    let runs = world.catalogue.runs(Some("shop"), usize::MAX).unwrap();
    assert_eq!(runs.len(), HISTORY_MAX + 1);
    assert_eq!(runs.last().unwrap().run_id, "good");
    assert!(
        world.catalogue.get("f2").unwrap().is_none()
            && world.catalogue.get("f3").unwrap().is_some()
    );
}

#[test]
fn a_lost_catalogue_is_rebuilt_from_the_storage() {
    let world = world();
    for run in ["r1", "r2", "r3"] {
        world.back_up(run, "shop", NOW);
    }
    world.begin("r4", "app", NOW);
    world.upload("r4", 1, b"unfinished");
    let fresh = open_catalogue(&world.dir.path().join("state2"));
    let rebuilt = fresh.rebuild(&world.storage, &world.master).unwrap();
    assert_eq!((rebuilt.good, rebuilt.added, rebuilt.unfinished), (3, 3, 1));
    assert!(rebuilt.problems.is_empty());
    for id in ["r1", "r2", "r3"] {
        assert_eq!(
            fresh.get(id).unwrap(),
            world.catalogue.get(id).unwrap().map(|run| Run { attempts: 0, ..run })
        );
    }
    assert_eq!(fresh.rebuild(&world.storage, &world.master).unwrap().added, 0);
}

/// A storage in which something happens while it is listed.
struct Meanwhile<'a> {
    world: &'a World,
    happens: &'a (dyn Fn() + Sync),
}

impl Storage for Meanwhile<'_> {
    fn list(&self) -> Result<Vec<Listed>, StorageError> {
        let listed = self.world.storage.list();
        (self.happens)();
        listed
    }
    fn id(&self) -> &str {
        self.world.storage.id()
    }
    fn check(&self) -> Result<(), StorageError> {
        self.world.storage.check()
    }
    fn trouble(&self) -> Option<String> {
        self.world.storage.trouble()
    }
    fn hashes_uploads(&self) -> bool {
        self.world.storage.hashes_uploads()
    }
    fn presign_put(
        &self,
        key: &ObjectKey,
        max: u64,
        at_ms: u64,
    ) -> Result<Presigned, StorageError> {
        self.world.storage.presign_put(key, max, at_ms)
    }
    fn presign_get(&self, key: &ObjectKey, at_ms: u64) -> Result<Presigned, StorageError> {
        self.world.storage.presign_get(key, at_ms)
    }
    fn open(&self, key: &ObjectKey) -> Result<Box<dyn std::io::Read + Send>, StorageError> {
        self.world.storage.open(key)
    }
    fn size(&self, key: &ObjectKey) -> Result<Option<u64>, StorageError> {
        self.world.storage.size(key)
    }
    fn write_manifest(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), StorageError> {
        self.world.storage.write_manifest(key, bytes)
    }
    fn read_manifest(&self, key: &ObjectKey) -> Result<Vec<u8>, StorageError> {
        self.world.storage.read_manifest(key)
    }
    fn delete_manifest(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.world.storage.delete_manifest(key)
    }
    fn delete_artifact(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.world.storage.delete_artifact(key)
    }
}

#[test]
fn a_backup_that_is_completed_during_a_rebuild_is_not_lost() {
    let world = world();
    world.back_up("r1", "shop", NOW);
    let happens = || world.back_up("r2", "shop", NOW + 1);
    let storage = Meanwhile { world: &world, happens: &happens };
    let rebuilt = world.catalogue.rebuild(&storage, &world.master).unwrap();
    assert_eq!((rebuilt.lost, rebuilt.problems.len()), (0, 0));
    assert!(world.catalogue.get("r2").unwrap().unwrap().is_good());
}

#[test]
fn a_rebuild_is_loud_about_everything_that_does_not_fit() {
    let world = world();
    for run in ["r1", "r2", "r3", "r4", "r5"] {
        world.back_up(run, "shop", NOW);
    }
    let path = |id: &str, end: &str| {
        let run = world.catalogue.get(id).unwrap().unwrap();
        world.dir.path().join("storage").join(format!("{}{end}", run.object.unwrap().key))
    };
    let forged = std::fs::read_to_string(path("r1", ".json")).unwrap().replace("r1", "r9");
    std::fs::write(path("r1", ".json"), forged).unwrap();
    std::fs::remove_file(path("r2", "")).unwrap();
    std::fs::write(path("r3", ""), "longer than before").unwrap();
    std::fs::copy(path("r4", ".json"), path("r5", ".json")).unwrap();
    let rebuilt = world.catalogue.rebuild(&world.storage, &world.master).unwrap();
    assert_eq!((rebuilt.good, rebuilt.lost), (1, 4));
    for part in [
        "r1-1.bky: the manifest was changed",
        "its artifact is missing",
        "instead of 2",
        "about another object",
    ] {
        assert!(
            rebuilt.problems.iter().any(|problem| problem.contains(part)),
            "{part}: {rebuilt:#?}"
        );
    }
    assert_eq!(rebuilt.problems.len(), 8, "each once by its file and once by its run");
    assert!(world.catalogue.get("r9").unwrap().is_none());
    assert_eq!(world.catalogue.newest_good("shop").unwrap().unwrap().run_id, "r4");
    let other = tempfile::tempdir().unwrap();
    let fresh = crate::control::keys::Fresh { storage_empty: true, catalogue_empty: true };
    let other = MasterKey::create(&other.path().join("k"), None, fresh, NOW).unwrap();
    let rebuilt = world.catalogue.rebuild(&world.storage, &other).unwrap();
    assert_eq!(rebuilt.good, 0);
    assert!(rebuilt.problems[0].contains("key import"), "{:?}", rebuilt.problems);
}
