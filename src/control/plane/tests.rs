//! The whole plane over a real store, a real storage directory and a real HTTP server; only the agent is a
//! script, and the time is a number.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use ring::digest::{SHA256, digest};

use super::*;
use crate::config::{Flags, HostConfig};
use crate::control::connect::Agents;
use crate::control::file;
use crate::control::http::{Limits, Server};
use crate::control::notify::Means;
use crate::control::server;
use crate::control::session::{Desk, Line, Timing};
use crate::control::storage::Reach;
use crate::hex::hex;
use crate::model::{Trust, UploadCreds};
use crate::secret::Secret;
use crate::store::Migrations;
use crate::thread::Cancel;
use crate::wire::{
    Ack, AgentMessage, BackupCompleted, Header, HealthResult, JobStatus, JobUpdate, Register,
    RunBackup,
};

const PATIENCE: Duration = Duration::from_secs(20);
const MIN: u64 = 60_000;

/// A plane with its server in a directory of its own.
struct Bench {
    dir: tempfile::TempDir,
    plane: Plane,
    server: Server,
}

fn settings(dir: &Path, backups: &str) -> Settings {
    let text = format!(
        "state_dir = \"{0}/state\"\non_failure = \"echo $BACKUPY_NAME $BACKUPY_STATUS >> {0}/told\"\n\
         [storage]\ndirectory = \"{0}/storage\"\n{backups}",
        dir.display()
    );
    file::parse(&text).unwrap()
}

fn reach() -> Reach {
    let host = HostConfig::load(&|_| None, &Flags::default(), Trust::Local).unwrap();
    Reach { proxy: host.proxy, policy: host.policy, cancel: Cancel::new().unwrap() }
}

const APP: &str = "[[backup]]\nname = \"app\"\ndatabase = \"sqlite:///srv/app.db\"\nevery = \"6h\"\ntimeout = \"1h\"\n";

impl Bench {
    fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap(), APP)
    }

    fn open(dir: tempfile::TempDir, backups: &str) -> Self {
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        let settings = settings(dir.path(), backups);
        let books =
            Books::open(&settings, &Secret::new("bkpy_test_key"), &reach(), Migrations::Allowed)
                .unwrap();
        let host = reach();
        let means = Means { proxy: host.proxy, policy: host.policy };
        let kept = Some(books.catalogue().clone());
        let notifier = Notifier::start(settings.channels(), means, kept).unwrap();
        let plane = Plane::new(settings, books, notifier, Patience::default(), unix_ms()).unwrap();
        let agents = Agents::new([]).unwrap();
        let (timing, limits) = (Timing::default(), Limits::default());
        let server = server::start(plane.clone(), agents, timing, limits, None).unwrap();
        plane.books().storage().directory().unwrap().serve_at(server.addr());
        Self { dir, plane, server }
    }

    /// The same directory after the process has ended.
    fn restarted(self) -> Self {
        self.restarted_with(APP)
    }

    fn restarted_with(self, backups: &str) -> Self {
        let Self { dir, plane, mut server } = self;
        server.stop();
        drop(server);
        drop(plane);
        Self::open(dir, backups)
    }

    fn agent(&self) -> Agent<'_> {
        let line = Line::new(LOCAL_AGENT).unwrap();
        line.set_store_id("store");
        self.plane.welcome(LOCAL_AGENT, &Register::default(), &line);
        Agent { bench: self, line }
    }

    /// Waits for lines of the on_failure command.
    fn told(&self, line: &str) {
        let deadline = crate::clock::Deadline::after(PATIENCE);
        let path = self.dir.path().join("told");
        while !std::fs::read_to_string(&path).unwrap_or_default().lines().any(|l| l == line) {
            assert!(!deadline.passed(), "nobody was told {line}");
            crate::control::moment();
        }
    }

    fn view(&self, run_id: &str) -> RunView {
        self.plane.run(run_id).unwrap().unwrap()
    }

    fn files(&self) -> Vec<String> {
        let Ok(dir) = std::fs::read_dir(self.dir.path().join("storage/app")) else { return vec![] };
        let mut names: Vec<_> =
            dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Sends raw bytes and returns the answer.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.server.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// What the session of a real agent would do.
struct Agent<'a> {
    bench: &'a Bench,
    line: Line,
}

fn path_of(creds: &UploadCreds) -> String {
    let url = creds.put_url.expose();
    url[url.find("/objects/").unwrap()..].to_owned()
}

fn put(target: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

impl Agent<'_> {
    fn say(&self, entry_id: u64, message: AgentMessage) {
        let header = Header { entry_id, ..Header::default() };
        self.bench.plane.receive(&self.line, vec![(header, message)]).unwrap();
    }

    fn order(&self) -> Option<(String, RunBackup)> {
        let command = self.line.next()?;
        match command.message {
            ServerMessage::RunBackup(order) => Some((command.correlation_id, order)),
            other => panic!("{other:?}"),
        }
    }

    fn upload(&self, order: &RunBackup, body: &[u8]) {
        let creds = order.upload_creds.as_ref().unwrap();
        let answer = self.bench.raw(&put(&path_of(creds), body.len(), body));
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    }

    fn update(&self, order: &RunBackup, status: JobStatus, error: &str) {
        self.say(
            0,
            AgentMessage::JobUpdate(JobUpdate {
                job_id: order.job_id.clone(),
                run_id: order.run_id.clone(),
                status,
                progress_percent: 40,
                current_step: "dumping".into(),
                error_message: error.into(),
            }),
        );
    }
}

fn report(order: &RunBackup, body: &[u8]) -> AgentMessage {
    AgentMessage::BackupCompleted(BackupCompleted {
        job_id: order.job_id.clone(),
        run_id: order.run_id.clone(),
        s3_key: order.upload_creds.as_ref().unwrap().object_key.clone(),
        size_bytes: body.len() as u64,
        sha256: hex(digest(&SHA256, body).as_ref()),
        duration_ms: 5,
        compression: "zstd".into(),
        db_engine_version: "SQLite 3".into(),
        ..BackupCompleted::default()
    })
}

#[test]
fn a_due_run_is_ordered_uploaded_and_only_then_good() {
    let bench = Bench::new();
    let agent = bench.agent();
    let now_ms = unix_ms();
    bench.plane.tick(now_ms);
    let (correlation_id, order) = agent.order().unwrap();
    assert_eq!(order.job_id, "app");
    assert_eq!(order.encrypted_dek.expose().len(), 32);
    assert!(!order.manual_trigger);
    assert_eq!(bench.view(&order.run_id).state, "waiting");
    agent.say(1, AgentMessage::Ack(Ack::ok(correlation_id)));
    agent.update(&order, JobStatus::Running, "");
    let view = bench.view(&order.run_id);
    assert_eq!((view.state.as_str(), view.step.as_str(), view.percent), ("running", "dumping", 40));
    agent.upload(&order, b"sealed");
    assert_eq!(bench.view(&order.run_id).state, "running", "stored is not yet reported");
    agent.say(2, report(&order, b"sealed"));
    agent.update(&order, JobStatus::Success, "");
    let view = bench.view(&order.run_id);
    assert_eq!((view.state.as_str(), view.size_bytes), ("ok", 6));
    assert_eq!(view.sha256, hex(digest(&SHA256, b"sealed").as_ref()));
    assert_eq!(bench.files().len(), 2, "artifact and manifest: {:?}", bench.files());
    bench.plane.tick(now_ms + MIN);
    assert!(agent.order().is_none(), "six hours are not over");
    bench.plane.tick(now_ms + 6 * 60 * MIN);
    assert!(agent.order().is_some());
}

#[test]
fn a_report_that_does_not_match_what_is_stored_fails_the_run() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, order) = agent.order().unwrap();
    agent.upload(&order, b"sealed");
    agent.say(1, report(&order, b"sealex"));
    let view = bench.view(&order.run_id);
    assert_eq!(view.state, "failed");
    assert!(view.error.contains("another size or hash"), "{}", view.error);
    bench.told("app failed");
    assert!(!bench.files().iter().any(|name| name.ends_with(".json")), "{:?}", bench.files());
}

#[test]
fn a_report_without_an_upload_fails_the_run() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, order) = agent.order().unwrap();
    agent.say(1, report(&order, b"sealed"));
    assert_eq!(bench.view(&order.run_id).state, "failed");
}

#[test]
fn a_report_about_a_foreign_object_fails_the_run() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, mut order) = agent.order().unwrap();
    agent.upload(&order, b"sealed");
    order.upload_creds.as_mut().unwrap().object_key = "app/other.bky".into();
    agent.say(1, report(&order, b"sealed"));
    assert_eq!(bench.view(&order.run_id).state, "failed");
}

#[test]
fn a_result_counts_once_whatever_is_repeated() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, order) = agent.order().unwrap();
    agent.upload(&order, b"sealed");
    for entry_id in [1, 1, 0, 7] {
        agent.say(entry_id, report(&order, b"sealed"));
    }
    let first = bench.view(&order.run_id);
    agent.update(&order, JobStatus::Failed, "too late");
    agent.update(&order, JobStatus::Cancelled, "too late");
    assert_eq!(bench.view(&order.run_id), first);
    assert_eq!(bench.plane.runs(None, 10).unwrap().len(), 1);
    assert_eq!(bench.files().len(), 2);
}

#[test]
fn an_order_without_an_answer_is_repeated_in_the_next_session() {
    let bench = Bench::new();
    bench.plane.tick(unix_ms());
    let agent = bench.agent();
    let (_, first) = agent.order().unwrap();
    bench.plane.farewell(&agent.line, "cut");
    let again = bench.agent();
    let (correlation_id, second) = again.order().unwrap();
    assert_eq!(first.run_id, second.run_id);
    assert_eq!(first.encrypted_dek, second.encrypted_dek);
    let key = |order: &RunBackup| order.upload_creds.as_ref().unwrap().object_key.clone();
    assert_ne!(key(&first), key(&second), "a new attempt has a new object");
    again.say(3, AgentMessage::Ack(Ack::ok(correlation_id)));
    bench.plane.farewell(&again.line, "cut");
    assert!(bench.agent().order().is_none(), "it was acknowledged");
    // The first attempt's object is as good as the second's.
    again.upload(&first, b"sealed");
    again.say(4, report(&first, b"sealed"));
    assert_eq!(bench.view(&first.run_id).state, "ok");
}

#[test]
fn a_retry_of_the_agent_gets_a_new_object() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (correlation_id, first) = agent.order().unwrap();
    agent.say(1, AgentMessage::Ack(Ack::ok(correlation_id)));
    agent.update(&first, JobStatus::Queued, "");
    agent.update(&first, JobStatus::Running, "");
    assert!(agent.order().is_none());
    agent.upload(&first, b"lost answer");
    agent.update(&first, JobStatus::Queued, "");
    let (_, second) = agent.order().unwrap();
    assert_eq!(second.run_id, first.run_id);
    agent.upload(&second, b"sealed");
    agent.say(2, report(&second, b"sealed"));
    assert_eq!(bench.view(&first.run_id).state, "ok");
    assert_eq!(bench.files().len(), 3, "something may still arrive under the first key");
    bench.plane.tick(unix_ms() + 25 * 60 * MIN);
    assert_eq!(bench.files().len(), 2, "the first attempt's object is gone: {:?}", bench.files());
}

#[test]
fn a_refused_or_failed_run_is_told() {
    let bench = Bench::new();
    let agent = bench.agent();
    let now_ms = unix_ms();
    bench.plane.tick(now_ms);
    let (correlation_id, order) = agent.order().unwrap();
    agent.say(1, AgentMessage::Ack(Ack::refused(correlation_id, "full")));
    assert!(bench.view(&order.run_id).error.contains("full"));
    bench.told("app failed");
    let run_id = bench.plane.back_up("app", now_ms).unwrap();
    assert_eq!(bench.plane.back_up("app", now_ms).unwrap(), run_id, "one at a time");
    let (_, order) = agent.order().unwrap();
    assert!(order.manual_trigger);
    agent.update(&order, JobStatus::Cancelled, "");
    assert_eq!(bench.view(&run_id).state, "cancelled");
    let told = std::fs::read_to_string(bench.dir.path().join("told")).unwrap();
    assert!(!told.contains("cancelled"), "somebody wanted it so");
    assert!(matches!(bench.plane.back_up("nope", now_ms), Err(BeginError::Unknown(_))));
}

#[test]
fn an_end_that_was_written_and_not_told_is_told_by_the_next_process() {
    let bench = Bench::new();
    let now_ms = unix_ms();
    bench.plane.tick(now_ms);
    let run_id = bench.plane.runs(None, 1).unwrap()[0].run_id.clone();
    bench.plane.books().catalogue().end(&run_id, false, "no space left", now_ms).unwrap();
    assert!(!bench.dir.path().join("told").exists());
    let bench = bench.restarted();
    bench.told("app failed");
    assert_eq!(bench.plane.books().catalogue().owed().unwrap(), [""; 0]);
    assert!(bench.plane.books().catalogue().alarm("app").unwrap().is_some());
    let bench = bench.restarted();
    bench.plane.stop(PATIENCE);
    let told = std::fs::read_to_string(bench.dir.path().join("told")).unwrap();
    assert_eq!(told.lines().collect::<Vec<_>>(), ["app failed"], "once");
}

#[test]
fn silence_is_told_and_given_up_in_the_end() {
    let bench = Bench::new();
    let now_ms = unix_ms();
    bench.plane.tick(now_ms);
    let run_id = bench.plane.runs(None, 1).unwrap()[0].run_id.clone();
    bench.plane.tick(now_ms + 4 * MIN);
    assert!(!bench.dir.path().join("told").exists());
    bench.plane.tick(now_ms + 6 * MIN);
    bench.told("app late");
    let (_, problems) = bench.plane.status(now_ms + 6 * MIN);
    assert!(problems.iter().any(|p| p.contains("not connected")), "{problems:?}");
    bench.plane.tick(now_ms + 7 * MIN + 75 * MIN);
    assert_eq!(bench.view(&run_id).state, "failed");
    bench.told("app failed");
}

#[test]
fn an_open_run_survives_a_restart() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, first) = agent.order().unwrap();
    agent.upload(&first, b"sealed");
    drop(agent);
    let bench = bench.restarted();
    let agent = bench.agent();
    let (_, second) = agent.order().unwrap();
    assert_eq!((&first.run_id, &first.encrypted_dek), (&second.run_id, &second.encrypted_dek));
    agent.say(1, report(&first, b"sealed"));
    assert_eq!(bench.view(&first.run_id).state, "ok", "{}", bench.view(&first.run_id).error);
    bench.plane.tick(unix_ms());
    assert!(agent.order().is_none(), "the schedule remembers that it ran");
}

#[test]
fn a_reload_disturbs_nothing_that_did_not_change() {
    let bench = Bench::new();
    let agent = bench.agent();
    let now_ms = unix_ms();
    bench.plane.tick(now_ms);
    let (_, order) = agent.order().unwrap();
    let same = || settings(bench.dir.path(), APP);
    assert!(!bench.plane.reload(same(), now_ms).unwrap());
    assert!(agent.line.next().is_none(), "the agent is left alone");
    let more =
        format!("{APP}[[backup]]\nname = \"b\"\ndatabase = \"sqlite:///b.db\"\nevery = \"1d\"\n");
    assert!(bench.plane.reload(settings(bench.dir.path(), &more), now_ms).unwrap());
    let command = agent.line.next().unwrap();
    let ServerMessage::ConfigUpdate(Some(config)) = command.message else { panic!("no config") };
    assert_eq!(config.jobs.len(), 2);
    bench.plane.tick(now_ms + 1);
    let (_, new) = agent.order().unwrap();
    assert_eq!(new.job_id, "b");
    assert_eq!(bench.view(&order.run_id).state, "waiting", "the open run goes on");
    let moved = Settings { state_dir: "/elsewhere".into(), ..same() };
    assert_eq!(bench.plane.reload(moved, now_ms), Err(NeedsRestart("state_dir")));
}

#[test]
fn only_whole_uploads_with_a_good_signature_are_taken() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, order) = agent.order().unwrap();
    let target = path_of(order.upload_creds.as_ref().unwrap());
    let status = |request: Vec<u8>| {
        let answer = bench.raw(&request);
        answer.split(' ').nth(1).map(str::to_owned).unwrap_or_default()
    };
    let without = format!("PUT {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(without.into_bytes()), "411");
    assert_eq!(status(put(&target.replace("sig=", "sig=A"), 1, b"a")), "403");
    assert_eq!(status(put(&target.replace("expires=", "expires=9"), 1, b"a")), "403");
    assert_eq!(status(put("/objects/../state/agent.key?expires=1&max=1&sig=x", 1, b"a")), "403");
    assert_eq!(status(put("/objects/%2e%2e/a.bky", 1, b"a")), "403");
    assert_eq!(status(put("/objects/", 1, b"a")), "403");
    assert_eq!(status(put(&target, 10, b"short")), "", "a cut upload gets no answer");
    assert_eq!(status(put(&target, 3, b"long")), "400");
    let get = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(get.into_bytes()), "403", "the URL is for PUT");
    assert_eq!(bench.files(), Vec::<String>::new(), "nothing is left behind");
    assert_eq!(status(put(&target, 6, b"sealed")), "201");
    assert_eq!(status(put(&target, 6, b"sealed")), "201", "the same bytes again, as a retry does");
    agent.say(1, report(&order, b"sealed"));
    assert_eq!(status(put(&target, 6, b"abcdef")), "409", "a finished backup is not written again");
    assert_eq!(status(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()), "404");
    assert_eq!(status(b"POST /objects/a HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()), "405");
}

#[test]
fn a_storage_that_is_not_mounted_is_told_and_waited_for() {
    let bench = Bench::new();
    let marker = bench.dir.path().join("storage/.backupy-storage");
    let aside = bench.dir.path().join("aside");
    std::fs::rename(&marker, &aside).unwrap();
    let agent = bench.agent();
    let now_ms = unix_ms();
    bench.plane.tick(now_ms);
    assert!(agent.order().is_none());
    bench.told("app late");
    let run_id = bench.plane.runs(None, 1).unwrap()[0].run_id.clone();
    assert_eq!(bench.view(&run_id).state, "waiting");
    let (_, problems) = bench.plane.status(now_ms);
    assert!(problems.iter().any(|p| p.contains("mounted")), "{problems:?}");
    std::fs::rename(&aside, &marker).unwrap();
    bench.plane.tick(now_ms + MIN);
    let (_, order) = agent.order().unwrap();
    assert_eq!(order.run_id, run_id);
    agent.update(&order, JobStatus::Failed, "x");
    std::fs::rename(&marker, &aside).unwrap();
    let run_id = bench.plane.back_up("app", now_ms).unwrap();
    assert_eq!(bench.view(&run_id).state, "failed", "a person is not kept waiting");
}

/// A whole run that ended well.
fn back_up(bench: &Bench) {
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, order) = agent.order().unwrap();
    agent.upload(&order, b"sealed");
    agent.say(1, report(&order, b"sealed"));
    assert_eq!(bench.view(&order.run_id).state, "ok");
}

/// Another key in the place of the first.
fn swap_key(dir: &Path) {
    let path = dir.join("state/master.key");
    std::fs::remove_file(&path).unwrap();
    let fresh = crate::control::keys::Fresh { storage_empty: true, catalogue_empty: true };
    crate::control::keys::MasterKey::create(&path, None, fresh, 1).unwrap();
}

#[test]
fn another_master_key_is_refused_with_and_without_a_catalogue() {
    let bench = Bench::new();
    back_up(&bench);
    let Bench { dir, plane, server } = bench;
    drop((server, plane));
    swap_key(dir.path());
    let settings = settings(dir.path(), APP);
    let open =
        || Books::open(&settings, &Secret::new("bkpy_test_key"), &reach(), Migrations::Allowed);
    let error = open().unwrap_err();
    assert!(error.to_string().starts_with("1 backups in the storage cannot be opened"), "{error}");
    std::fs::remove_dir_all(dir.path().join("state/control")).unwrap();
    let error = open().unwrap_err();
    assert!(error.to_string().contains("is it another one?"), "{error}");
}

#[test]
fn a_rebuilt_catalogue_waits_for_its_storage() {
    let bench = Bench::new();
    back_up(&bench);
    let Bench { dir, plane, server } = bench;
    drop((server, plane));
    let (state, storage) = (dir.path().join("state"), dir.path().join("storage"));
    std::fs::remove_dir_all(state.join("control")).unwrap();
    std::fs::write(state.join("agent.key"), format!("bkpy_live_{}", "a".repeat(32))).unwrap();
    let settings = settings(dir.path(), APP);
    let key = crate::control::embedded::existing_agent_key(&state);
    let Ok(key) = key else { panic!("{key:?}") };
    let offline =
        Books::open_offline(&state, &settings.storage, &settings.master_key, &reach()).unwrap();
    assert_eq!(offline.rebuild().unwrap()["good"], 1);
    drop(offline);
    std::fs::rename(&storage, dir.path().join("away")).unwrap();
    let error = Books::open(&settings, &key, &reach(), Migrations::Allowed).unwrap_err();
    assert!(error.to_string().contains("is its disk mounted?"), "{error}");
    assert!(!storage.exists());
}

#[test]
fn without_the_key_file_nothing_is_backed_up_and_people_are_told() {
    let bench = Bench::new();
    let agent = bench.agent();
    let path = bench.dir.path().join("state/master.key");
    std::fs::remove_file(&path).unwrap();
    bench.plane.tick(unix_ms());
    assert!(agent.order().is_none(), "nobody could restore it after a restart");
    bench.told("app failed");
    let (_, problems) = bench.plane.status(unix_ms());
    assert!(problems.iter().any(|problem| problem.contains("key rotate")), "{problems:?}");
    bench.plane.rotate_key(unix_ms()).unwrap();
    assert!(path.exists());
    bench.plane.back_up("app", unix_ms()).unwrap();
    assert!(agent.order().is_some());
}

#[test]
fn a_result_under_a_lost_key_is_not_offered_for_ever() {
    let bench = Bench::new();
    let agent = bench.agent();
    bench.plane.tick(unix_ms());
    let (_, order) = agent.order().unwrap();
    agent.upload(&order, b"sealed");
    drop(agent);
    swap_key(bench.dir.path());
    let bench = bench.restarted();
    bench.agent().say(1, report(&order, b"sealed"));
    let view = bench.view(&order.run_id);
    assert_eq!(view.state, "failed");
    assert!(view.error.contains("master key"), "{}", view.error);
}

const WITH_CHECK: &str = "[[backup]]\nname = \"app\"\ndatabase = \"sqlite:///srv/app.db\"\nevery = \"6h\"\n\
     [[check]]\nname = \"web\"\nurl = \"http://127.0.0.1:1/\"\ninterval = \"10s\"\n";

impl Bench {
    fn heard(&self, ts_ms: u64, ok: bool) {
        let error = if ok { String::new() } else { "refused".to_owned() };
        let result =
            HealthResult { check_id: "web".into(), ts_ms, ok, error, ..HealthResult::default() };
        self.agent().say(0, AgentMessage::HealthResult(result));
    }

    /// All that the on_failure command has said, once it has said `line`.
    fn all_told(&self, line: &str) -> Vec<String> {
        self.told(line);
        let text = std::fs::read_to_string(self.dir.path().join("told")).unwrap();
        text.lines().filter(|line| line.starts_with("web ")).map(str::to_owned).collect()
    }

    fn problems(&self) -> String {
        self.plane.status(unix_ms()).1.join("; ")
    }
}

#[test]
fn a_failing_check_is_told_once_whatever_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir, WITH_CHECK);
    for ts_ms in 1..4 {
        bench.heard(ts_ms, false);
    }
    bench.told("web check-failed");
    for ts_ms in [4, 5] {
        bench = bench.restarted_with(WITH_CHECK);
        assert!(bench.problems().contains("the check web fails: refused"), "{}", bench.problems());
        bench.heard(ts_ms * 10, false);
        bench.heard(ts_ms * 10 + 1, false);
    }
    bench.heard(60, true);
    assert_eq!(bench.all_told("web check-recovered"), ["web check-failed", "web check-recovered"]);
    bench = bench.restarted_with(WITH_CHECK);
    assert!(!bench.problems().contains("web"), "{}", bench.problems());
    bench.heard(70, true);
    bench.heard(71, false);
    bench.heard(72, false);
    bench.told("web check-failed");
    // Whoever leaves the file is forgotten, and new when he comes back.
    bench = bench.restarted_with(APP).restarted_with(WITH_CHECK);
    assert!(!bench.problems().contains("web"), "{}", bench.problems());
}

#[test]
fn a_check_that_falls_silent_is_told_like_a_failure() {
    let mut bench = Bench::open(tempfile::tempdir().unwrap(), WITH_CHECK);
    bench.heard(1, true);
    let now_ms = unix_ms();
    for minute in 1..=7 {
        bench.plane.tick(now_ms + minute * MIN);
        assert_eq!(bench.problems().contains("silent"), minute >= 5, "{minute}");
    }
    bench.told("web check-silent");
    bench = bench.restarted_with(WITH_CHECK);
    assert!(bench.problems().contains("the check web is silent: it has not reported for 5 min"));
    bench.heard(2, true);
    assert_eq!(bench.all_told("web check-recovered"), ["web check-silent", "web check-recovered"]);
    assert!(!bench.problems().contains("web"));
}
