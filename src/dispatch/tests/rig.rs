//! A dispatch on its own thread, and a store for artifacts whose answers the test gives.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::Connection as Database;
use serde_json::Value;

use crate::config::{HostPolicy, PipelineLimits};
use crate::dispatch::{CONFIG_KEY, Dispatch, Parts, Queries};
use crate::host::update::{self, Updater};
use crate::link::{self, Slots};
use crate::model::{AgentConfig, Connection, Engine, Job, Maintenance, Target, Trust, UploadCreds};
use crate::observe::metrics::{Build, Metrics};
use crate::observe::tap::Line;
use crate::outbox::{self, Message, Outbox, OutboxLimits};
use crate::pipeline::upload::{Timing, Tries};
use crate::pipeline::{Uploader, UrlPolicy};
use crate::runs::worker::Workshop;
use crate::secret::{Secret, SecretBytes};
use crate::store::{Batch, Space, Store, StoreKeys};
use crate::thread::{Cancel, Why, spawn};
use crate::wire::{
    self, AgentMessage, Header, LogEvent, LogLevel, RegisterAck, RunBackup, ServerMessage,
};

/// What must be seen nowhere.
pub(super) const SIGNATURE: &str = "5ec7e7516";

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) use crate::clock::unix_ms as now_ms;

/// A job on the rig's database; its target is filled in by the rig.
pub(super) fn job(id: &str) -> Job {
    Job { id: id.into(), target_id: "t".into(), compression: "none".into(), ..Job::default() }
}

pub(super) fn config(jobs: Vec<Job>) -> AgentConfig {
    AgentConfig { version: 1, jobs, ..AgentConfig::default() }
}

/// A window that is open now and for some hours.
pub(super) fn window_around() -> Maintenance {
    let hour = now_ms() / 3_600_000 % 24;
    let at = |hour: u64| format!("{:02}:00", hour % 24);
    Maintenance { start_utc: at(hour + 23), end_utc: at(hour + 3) }
}

pub(super) fn run_backup(run_id: &str, job_id: &str, put_url: Secret) -> RunBackup {
    RunBackup {
        job_id: job_id.into(),
        run_id: run_id.into(),
        manual_trigger: false,
        upload_creds: Some(UploadCreds {
            put_url,
            expires_at_ms: 0,
            object_key: "o".into(),
            ..UploadCreds::default()
        }),
        encrypted_dek: SecretBytes::new([7; 32]),
    }
}

pub(super) struct Rig {
    dir: tempfile::TempDir,
    state_dir: PathBuf,
    config: AgentConfig,
    grace: Duration,
    artifacts: Artifacts,
    store: Option<Store>,
    life: Option<Life>,
    /// Lines that are received and not yet asked for.
    lines: VecDeque<String>,
    /// What was told about runs.
    pub(super) said: Vec<LogEvent>,
    seq: u64,
}

/// One process's worth.
struct Life {
    outbox: Outbox,
    slots: Slots,
    session: outbox::Session,
    events: Sender<link::Event>,
    log: Sender<Line>,
    stop: Cancel,
    queries: Queries,
    crash: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    pub(super) fn start(config: AgentConfig) -> Self {
        Self::new(config, Duration::from_secs(60), |_| ())
    }

    pub(super) fn with_grace(config: AgentConfig, grace: Duration) -> Self {
        Self::new(config, grace, |_| ())
    }

    /// With something done to the store before.
    pub(super) fn prepared(config: AgentConfig, prepare: impl FnOnce(&Store)) -> Self {
        Self::new(config, Duration::from_secs(60), prepare)
    }

    fn new(config: AgentConfig, grace: Duration, prepare: impl FnOnce(&Store)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path().join("app.db")).unwrap();
        database.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1);").unwrap();
        drop(database);
        let mut rig = Self {
            state_dir: dir.path().join("state"),
            dir,
            config,
            grace,
            artifacts: Artifacts::start(),
            store: None,
            life: None,
            lines: VecDeque::new(),
            said: Vec::new(),
            seq: 0,
        };
        let store = rig.store();
        let mut batch = store.batch();
        let held = rig.complete(rig.config.clone());
        batch.put(Space::Config, CONFIG_KEY.to_vec(), wire::config_to_bytes(&held));
        store.commit(batch).unwrap();
        prepare(&store);
        drop(store);
        rig.restart();
        rig
    }

    fn complete(&self, mut config: AgentConfig) -> AgentConfig {
        let database = self.dir.path().join("app.db").display().to_string();
        config.targets = vec![Target {
            id: "t".into(),
            engine: Engine::Sqlite,
            display_name: "app".into(),
            connection: Connection { database, ..Connection::default() },
        }];
        config
    }

    fn updater(&self) -> Updater {
        Updater::open(
            self.path(),
            update::Means {
                version: "0.1.0",
                settings: crate::config::UpdateSettings::default(),
                origin: update::Origin::of_this_process(self.path(), "0.1.0"),
                tls: crate::config::TlsSettings::default(),
                proxy: crate::config::ProxySettings::default(),
                trust: crate::model::Trust::Remote,
            },
        )
    }

    /// Starts as a new process would.
    pub(super) fn restart(&mut self) {
        assert!(self.life.is_none(), "it still runs");
        let store = self.store();
        let outbox = Outbox::open(store.clone(), OutboxLimits::default()).unwrap();
        let (events, link_events) = bounded(64);
        let (log, log_lines) = bounded(64);
        let stop = Cancel::new().unwrap();
        let slots = Slots::new();
        let (mut dispatch, queries, _) = Dispatch::open(Parts {
            store,
            outbox: outbox.clone(),
            slots: slots.clone(),
            workshop: Arc::new(self.workshop()),
            checks: crate::host::checks::Means {
                policy: self.workshop().policy,
                proxy: crate::config::ProxySettings::default(),
                tls: crate::config::TlsSettings::default(),
            },
            state_dir: self.path().to_owned(),
            link_events,
            stop: stop.clone(),
            stop_grace: self.grace,
            log_level: log::LevelFilter::Info,
            log_lines,
            updater: Arc::new(self.updater()),
            restart: update::Restart::checked_by(Box::new(|| Ok(()))),
            metrics: Metrics::new(Build { version: "0", commit: "0" }, None),
        })
        .unwrap();
        let crash = Arc::new(AtomicBool::new(false));
        let crashed = crash.clone();
        let thread = spawn("dispatch", move || {
            dispatch.admit();
            while !dispatch.finished() {
                let event = dispatch.next_event();
                if crashed.load(Ordering::SeqCst) {
                    // A process that dies takes its attempts with it.
                    for running in dispatch.running.values() {
                        running.cancel.cancel(Why::Shutdown);
                    }
                    return;
                }
                dispatch.handle_event(event);
            }
            dispatch.leave();
        });
        let session = outbox.begin_session(true);
        let thread = Some(thread.unwrap());
        self.life =
            Some(Life { outbox, slots, session, events, log, stop, queries, crash, thread });
    }

    fn workshop(&self) -> Workshop {
        let tries = Tries {
            max: 1,
            max_part: 1,
            first_pause: Duration::ZERO,
            max_pause: Duration::ZERO,
            max_retry_after: Duration::ZERO,
        };
        let timing = Timing { tries, ..Timing::default() };
        let limits =
            PipelineLimits { min_free_bytes: 0, min_free_percent: 0, ..PipelineLimits::default() };
        Workshop {
            policy: HostPolicy { allow_hooks: true, ..HostPolicy::new(Trust::Remote) },
            limits,
            state_dir: self.path().to_owned(),
            uploader: Uploader::new(
                crate::config::TlsSettings::default(),
                crate::config::ProxySettings::default(),
                UrlPolicy::AllowHttp,
            )
            .with_timing(timing),
        }
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("it runs")
    }

    /// The state directory.
    pub(super) fn path(&self) -> &Path {
        &self.state_dir
    }

    /// The store, opened when nobody has it.
    pub(super) fn store(&mut self) -> Store {
        let keys = StoreKeys { current: Secret::new("k"), previous: None };
        let dir = &self.state_dir;
        self.store.get_or_insert_with(|| Store::open(dir, &Space::AGENT, &keys).unwrap()).clone()
    }

    pub(super) fn url(&self, object: &str) -> Secret {
        let address = self.artifacts.address;
        let and = if object.contains('?') { '&' } else { '?' };
        Secret::new(format!("http://{address}/{object}{and}X-Amz-Signature={SIGNATURE}"))
    }

    /// What the link would hand on.
    pub(super) fn say(&self, correlation_id: &str, message: ServerMessage) {
        let header = Header { correlation_id: correlation_id.into(), ..Header::default() };
        let event = link::Event::Message { header, message };
        self.life().events.send_timeout(event, LIMIT).unwrap();
    }

    /// A RunBackup whose correlation id and object are the run's name.
    pub(super) fn run(&self, run_id: &str, job_id: &str) {
        let url = self.url(&run_id.replace(' ', "-"));
        self.say(run_id, ServerMessage::RunBackup(run_backup(run_id, job_id, url)));
    }

    pub(super) fn configure(&self, config: AgentConfig, version: u64) {
        let config = AgentConfig { version, ..self.complete(config) };
        self.say("config", ServerMessage::ConfigUpdate(Some(config)));
    }

    pub(super) fn session(&self, ack: RegisterAck) {
        let config = ack.config.map(|config| self.complete(config));
        let ack = RegisterAck { config, ..ack };
        let event = link::Event::Up { session_id: "s".into(), ack };
        self.life().events.send_timeout(event, LIMIT).unwrap();
    }

    pub(super) fn publish(&self, messages: Vec<Message>) {
        self.life().outbox.publish(Batch::new(), messages).unwrap();
    }

    /// Everything that the outbox has, taken as a server would that stores at once.
    fn receive(&mut self) {
        let Some(life) = &self.life else { return };
        while let Some(entry) = life.session.next().unwrap() {
            self.seq += 1;
            life.session.sent(entry.entry_id, self.seq);
            let bytes = wire::stamp(&entry.stored, self.seq, 0, entry.entry_id);
            let (_, message) = wire::decode_agent(&bytes).unwrap();
            match message {
                // What is told about every run would stand between the lines that the tests compare.
                AgentMessage::Log(event) if tells_of_a_run(&event) => self.said.push(event),
                message => self.lines.push_back(line(message)),
            }
            life.session.acked(self.seq);
        }
    }

    /// The next message, in short.
    #[track_caller]
    pub(super) fn next(&mut self) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            if self.lines.is_empty() {
                self.receive();
            }
            if let Some(line) = self.lines.pop_front() {
                return line;
            }
            let ready = self.life().outbox.ready().clone();
            assert!(ready.recv_deadline(deadline).is_ok(), "nothing came");
        }
    }

    pub(super) fn find(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.next();
            if wanted(&line) {
                return line;
            }
        }
    }

    #[track_caller]
    pub(super) fn expect_acks(&mut self, count: usize) {
        for _ in 0..count {
            let line = self.next();
            assert!(line.starts_with("ack "), "{line}");
        }
    }

    #[track_caller]
    pub(super) fn expect_success(&mut self, run_id: &str) {
        let first = self.next();
        assert!(first.starts_with(&format!("completed {run_id} ")), "{first}");
        assert_eq!(self.next(), format!("{run_id} Success"));
    }

    #[track_caller]
    pub(super) fn expect_failure(&mut self, run_id: &str, why: &str) {
        let line = self.next();
        assert!(line.starts_with(&format!("{run_id} Failed: ")) && line.contains(why), "{line}");
    }

    /// Dispatch has done all it was told, and nothing more came of it.
    #[track_caller]
    pub(super) fn expect_nothing(&mut self) {
        // Events of one channel stay in order, so the answer to this one comes last.
        self.say("last", ServerMessage::ConfigUpdate(None));
        assert!(self.next().starts_with("refused last"));
        self.expect_nothing_queued();
    }

    #[track_caller]
    pub(super) fn expect_nothing_queued(&mut self) {
        self.receive();
        assert_eq!(self.lines.pop_front(), None);
    }

    /// As if a thread had logged this.
    pub(super) fn log(&self, level: log::Level, text: &str) {
        let line = Line { level, text: text.to_owned() };
        self.life().log.send_timeout(line, LIMIT).unwrap();
    }

    pub(super) fn snapshot(&self) -> Value {
        self.life().queries.snapshot(LIMIT).expect("dispatch answers")
    }

    /// What an upload in parts asks for, once it does.
    pub(super) fn part_urls_request(&self) -> crate::wire::PartUrlsRequest {
        let deadline = Instant::now() + LIMIT;
        loop {
            for message in self.life().slots.take(100) {
                if let AgentMessage::PartUrlsRequest(request) = message {
                    return request;
                }
            }
            assert!(Instant::now() < deadline, "nothing is asked for");
            std::thread::yield_now();
        }
    }

    /// Another session, which has seen nothing yet.
    pub(super) fn new_session(&self) {
        self.life().slots.begin_session();
    }

    /// Waits until so many decisions wait for the store.
    pub(super) fn wait_for_unsaved(&self, count: u64) {
        let deadline = Instant::now() + LIMIT;
        while self.snapshot()["unsaved_results"] != count {
            assert!(Instant::now() < deadline, "{}", self.snapshot());
        }
    }

    /// Waits until so much is queued.
    pub(super) fn wait_for_depth(&self, depth: usize) {
        let ready = self.life().outbox.ready();
        while self.life().outbox.depth() < depth {
            ready.recv_timeout(LIMIT).expect("more is queued");
        }
    }

    /// The open runs by name.
    pub(super) fn phases(&self) -> String {
        let snapshot = self.snapshot();
        let mut runs: Vec<String> = snapshot["open_runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| {
                format!("{} {}", run["run_id"].as_str().unwrap(), run["phase"].as_str().unwrap())
            })
            .collect();
        runs.sort();
        runs.join(", ")
    }

    /// The next upload, complete but for its answer.
    #[track_caller]
    pub(super) fn upload(&self) -> Upload {
        self.artifacts.uploads.recv_timeout(LIMIT).expect("an upload")
    }

    pub(super) fn uploads_seen(&self) -> usize {
        self.artifacts.seen.load(Ordering::SeqCst)
    }

    pub(super) fn stop(&self) {
        self.life().stop.cancel(Why::Shutdown);
        // Once it says so, it has seen it.
        while self.snapshot()["stopping"] != Value::Bool(true) {}
    }

    /// Waits for the end of a stop; what is queued then can still be received.
    pub(super) fn join(&mut self) {
        let life = self.life.as_mut().expect("it runs");
        life.thread.take().unwrap().join().unwrap();
        self.receive();
        self.life = None;
        self.close();
    }

    /// Ends without another word.
    pub(super) fn crash(&mut self) {
        let mut life = self.life.take().expect("it runs");
        life.crash.store(true, Ordering::SeqCst);
        // Wakes it; nobody answers.
        let _ = life.queries.snapshot(LIMIT);
        life.thread.take().unwrap().join().unwrap();
        drop(life);
        self.close();
    }

    fn close(&mut self) {
        self.store.take().expect("it is open").close().unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.life.as_ref().is_some_and(|life| life.thread.is_some()) {
            self.crash();
        }
    }
}

fn tells_of_a_run(event: &LogEvent) -> bool {
    event.level != LogLevel::Warn && event.fields.iter().any(|(name, _)| name == "run_id")
}

fn line(message: AgentMessage) -> String {
    match message {
        AgentMessage::Ack(ack) if ack.accepted => format!("ack {}", ack.correlation_id),
        AgentMessage::Ack(ack) => format!("refused {}: {}", ack.correlation_id, ack.reason),
        AgentMessage::BackupCompleted(done) => {
            format!("completed {} {}", done.run_id, done.size_bytes)
        }
        AgentMessage::JobUpdate(update) if update.error_message.is_empty() => {
            format!("{} {:?}", update.run_id, update.status)
        }
        AgentMessage::JobUpdate(update) => {
            format!("{} {:?}: {}", update.run_id, update.status, update.error_message)
        }
        AgentMessage::HealthResult(result) => {
            format!("check {} {} {}", result.check_id, result.ok, result.error)
        }
        AgentMessage::Log(event) => format!("log {}", event.message),
        other => panic!("not for the outbox: {other:?}"),
    }
}

/// One upload that waits for its answer; dropped, it is cut.
pub(super) struct Upload {
    path: String,
    size: u64,
    stream: TcpStream,
}

impl Upload {
    /// Where it went, without the query, and how, if it is no PUT.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Answers and says how many bytes there were.
    pub(super) fn answer(self, status: u16) -> u64 {
        self.answer_with(status, "")
    }

    /// As a store does that takes parts.
    pub(super) fn answer_with(mut self, status: u16, body: &str) -> u64 {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nETag: \"e\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(answer.as_bytes()).unwrap();
        self.size
    }
}

/// Takes uploads and hands them to the test.
struct Artifacts {
    address: SocketAddr,
    uploads: Receiver<Upload>,
    seen: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Artifacts {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (hand, uploads) = bounded(64);
        let seen = Arc::new(AtomicUsize::new(0));
        let stopping = Arc::new(AtomicBool::new(false));
        let (count, stop) = (seen.clone(), stopping.clone());
        let thread = spawn("artifacts", move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                // A client that was cancelled may be gone already.
                if let Some(upload) = receive(stream.unwrap()) {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = hand.try_send(upload);
                }
            }
        });
        Self { address, uploads, seen, stopping, thread: Some(thread.unwrap()) }
    }
}

impl Drop for Artifacts {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// Reads a whole PUT.
fn receive(stream: TcpStream) -> Option<Upload> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut path, mut size) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        let method = |name| line.strip_prefix(name).map(|target| (name, target));
        if let Some(target) = line.strip_prefix("PUT ") {
            path = target.split(['?', ' ']).next()?.to_owned();
        } else if let Some((name, target)) = method("POST ").or_else(|| method("DELETE ")) {
            path = format!("{name}{}", target.split(['?', ' ']).next()?);
        } else if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            size = length.parse().ok()?;
        } else if line.is_empty() {
            break;
        }
    }
    let body = std::io::copy(&mut reader.take(size), &mut std::io::sink()).ok()?;
    (body == size && !path.is_empty()).then_some(Upload { path, size, stream })
}
