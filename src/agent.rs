//! The agent as a whole: opens what must be opened, starts the long-lived threads, joins them.
//!
//! ```text
//! caller's thread: link::run (reconnect loop) ── link-read, link-write, link-beat
//! dispatch ── run-N …, checks ── probe-N …, discover
//! status ── status-conn …, metrics ── metrics-conn …
//! ```
//! A stop goes one way: `stop` → dispatch lets runs end → the link flushes the outbox → the store closes.

pub mod discover;
mod vitals;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use serde_json::{Value, json};

use crate::clock::{is_unset, unix_ms};
use crate::config::{HostPolicy, PipelineLimits, ProxySettings, TlsSettings, UpdateSettings};
use crate::dispatch::{self, Dispatch, DispatchError, Queries, Shared};
use crate::drivers;
use crate::host::checks::Means;
use crate::host::discovery::{Discovery, Finder};
use crate::host::metrics::Sampler;
use crate::host::update::{self, Order, Origin, Restart, Updater};
use crate::link::{self, LinkConfig, LinkStatus, Slots, Timing, Transport};
use crate::net::http::Server;
use crate::observe::dump::dump;
use crate::observe::health::liveness;
use crate::observe::metrics::{Build, Connection, Intervals, Metrics, Moment, endpoint};
use crate::observe::socket::{Handler, Reply, StatusSocket};
use crate::observe::supervisor::{Supervisor, Vitals};
use crate::observe::tap::Line;
use crate::outbox::{Outbox, OutboxError, OutboxLimits, SeqCounter};
use crate::pipeline::{self, Uploader, UrlPolicy};
use crate::runs::hooks;
use crate::runs::worker::Workshop;
use crate::secret::Secret;
use crate::store::{Space, Store, StoreError, StoreKeys};
use crate::thread::{self, Cancel, Why};
use crate::wire;

pub use vitals::Vital;

/// Version of this binary; a build may name another one than the package has.
pub const VERSION: &str = match option_env!("BACKUPY_BUILD_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};
/// Commit it was built from, if the build said so.
pub const COMMIT: Option<&str> = option_env!("BACKUPY_BUILD_COMMIT");

/// Messages that wait between link and dispatch.
const LINK_EVENTS: usize = 64;
/// How long dispatch may take to answer before it counts as stuck.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a session for so long, the full health check fails.
const SESSION_PATIENCE: Duration = Duration::from_secs(180);

/// Everything an agent is made from.
pub struct AgentOptions {
    /// Where the control plane is.
    pub transport: Transport,
    /// The agent's key.
    pub agent_key: Secret,
    /// The key before the last rotation.
    pub previous_key: Option<Secret>,
    /// Where state lives.
    pub state_dir: PathBuf,
    /// Which upload URLs are allowed.
    pub uploads: UrlPolicy,
    /// Trust roots and pins.
    pub tls: TlsSettings,
    /// Forward proxy.
    pub proxy: ProxySettings,
    /// How far a configuration may reach.
    pub policy: HostPolicy,
    /// Sizes and times of the pipeline.
    pub limits: PipelineLimits,
    /// How long runs may go on after the first signal.
    pub stop_grace: Duration,
    /// Level when the configuration names none.
    pub log_level: log::LevelFilter,
    /// Warnings and errors of this process for the control plane; one in the same process needs none.
    pub log_lines: Receiver<Line>,
    /// Where Prometheus may ask; `None` = nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Intervals of jobs without a cron line, where somebody in this process knows them.
    pub intervals: Option<Intervals>,
    /// Requests on the status socket that are not the agent's own; `up` adds some. Gets the agent's own
    /// status, so that it can be part of the answer.
    pub extra: Option<ExtraHandler>,
    /// The service manager that wants to hear of us.
    pub supervisor: Supervisor,
    /// What else must be alive; `up` has a control plane.
    pub vital: Option<Vital>,
    /// Whose signature an update needs.
    pub updates: UpdateSettings,
    /// Where this process came from.
    pub origin: Origin,
    /// Set when the installed binary is to be executed in the end.
    pub restart: Restart,
}

/// Answers a request on the status socket; `Ok(false)` when the request is not one of its own.
pub type ExtraHandler =
    Arc<dyn Fn(&Value, &dyn Fn() -> Value, Reply<'_>) -> io::Result<bool> + Send + Sync>;

/// Why an agent could not start.
#[derive(Debug)]
pub enum AgentError {
    /// The store cannot be used.
    Store(StoreError),
    /// The outbox cannot be read.
    Outbox(OutboxError),
    /// The runs cannot be read.
    Dispatch(DispatchError),
    /// The system refused a thread, a socket or a descriptor.
    Io(&'static str, io::Error),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentError::Store(error) => error.fmt(f),
            AgentError::Outbox(error) => error.fmt(f),
            AgentError::Dispatch(error) => error.fmt(f),
            AgentError::Io(what, error) => write!(f, "failed to {what}: {error}"),
        }
    }
}

impl std::error::Error for AgentError {}

/// An agent that is open but not yet connected.
pub struct Agent {
    link: LinkConfig,
    outbox: Outbox,
    seq: SeqCounter,
    slots: Slots,
    link_events: crossbeam_channel::Sender<link::Event>,
    status: LinkStatus,
    store: Store,
    dispatch: JoinHandle<()>,
    discovery: Discovery,
    link_stop: Cancel,
    supervisor: Supervisor,
    vitals: Vitals,
    stop: Cancel,
    /// Kept until the link has ended: without a receiver, a command that arrives during the last flush would
    /// end the session, and with it the flush.
    _events: Receiver<link::Event>,
    _socket: StatusSocket,
    _metrics: Option<Server>,
    done: Receiver<()>,
}

impl Agent {
    /// Opens the store, settles what the last process left, and starts dispatch and the status socket.
    ///
    /// # Errors
    /// See [`AgentError`]; nothing keeps running then.
    pub fn start(options: AgentOptions, stop: Cancel) -> Result<Self, AgentError> {
        let state_dir = options.state_dir.clone();
        if is_unset(unix_ms()) {
            log::warn!(
                "the clock of this host is not set: certificates and upload URLs are good for nothing until it is"
            );
        }
        let keys = StoreKeys { current: options.agent_key.clone(), previous: options.previous_key };
        let updater = Updater::open(
            &state_dir,
            update::Means {
                version: VERSION,
                settings: options.updates,
                origin: options.origin,
                tls: options.tls.clone(),
                proxy: options.proxy.clone(),
                trust: options.policy.trust,
            },
        );
        let updater = Arc::new(updater);
        let store = Store::open_as(&state_dir, &Space::AGENT, &keys, updater.migrations())
            .map_err(AgentError::Store)?;
        updater.tidy();
        drivers::sweep(&pipeline::work_dir(&state_dir));
        pipeline::sweep(&state_dir);
        let outbox =
            Outbox::open(store.clone(), OutboxLimits::default()).map_err(AgentError::Outbox)?;
        let seq = SeqCounter::open(store.clone(), unix_ms()).map_err(AgentError::Store)?;
        let slots = Slots::new();
        let uploader = Uploader::new(options.tls.clone(), options.proxy.clone(), options.uploads)
            .limited(options.limits.upload_bytes_per_sec);
        let mut capabilities = vec![wire::DURABLE_ACKS.to_owned(), wire::MULTIPART.to_owned()];
        capabilities.extend(drivers::capabilities(&options.policy).into_iter().map(str::to_owned));
        let policy = options.policy.clone();
        let checks = Means {
            policy: options.policy.clone(),
            proxy: options.proxy.clone(),
            tls: options.tls.clone(),
        };
        if hooks::allowed(&options.policy) {
            capabilities.push("hooks".to_owned());
        }
        if updater.is_able() {
            capabilities.push("self_update".to_owned());
        }
        let workshop = Workshop {
            policy: options.policy,
            limits: options.limits,
            state_dir: state_dir.clone(),
            uploader,
        };
        let finder = Finder::new(discover::settings(&policy, &state_dir));
        let asked_to_stop = stop.clone();
        let build = Build { version: VERSION, commit: COMMIT.unwrap_or("unknown") };
        let metrics = Metrics::new(build, options.intervals);
        let (link_events, received) = bounded(LINK_EVENTS);
        let events = received.clone();
        let (dispatch, queries, shared) = Dispatch::open(dispatch::Parts {
            store: store.clone(),
            outbox: outbox.clone(),
            slots: slots.clone(),
            workshop: Arc::new(workshop),
            checks,
            state_dir: state_dir.clone(),
            link_events: received,
            stop: stop.clone(),
            stop_grace: options.stop_grace,
            log_level: options.log_level,
            log_lines: options.log_lines,
            updater,
            restart: options.restart.clone(),
            metrics: metrics.clone(),
        })
        .map_err(AgentError::Dispatch)?;
        let status = LinkStatus::new();
        let own_plane = matches!(options.transport, Transport::Loopback(_));
        let vitals = vitals::Organs {
            queries: queries.clone(),
            link: status.clone(),
            shared: shared.clone(),
            store: store.clone(),
            own_plane,
            extra: options.vital,
            stop_grace: options.stop_grace,
            restart: options.restart,
        }
        .vitals();
        let found = discover::Found::new(finder.clone(), shared.clone(), asked_to_stop);
        let served = options.metrics_listen.and_then(|addr| {
            let moment = moment(status.clone(), shared.clone(), outbox.clone(), found.clone());
            serve_metrics(addr, metrics, moment, queries.clone())
        });
        let asked = Asked {
            queries,
            link: status.clone(),
            store: store.clone(),
            state_dir: state_dir.clone(),
            found,
        };
        let handler = handler(asked, options.extra);
        let socket = StatusSocket::start(&state_dir, handler)
            .map_err(|error| AgentError::Io("open the status socket", error))?;
        let link_stop =
            Cancel::new().map_err(|error| AgentError::Io("make a stop token", error))?;
        let (done, finished) = bounded(1);
        let after_dispatch = link_stop.clone();
        let thread = thread::spawn_vital("dispatch", move || {
            dispatch.run();
            after_dispatch.cancel(Why::Shutdown);
            // Nobody waits for it when the link has ended already.
            let _ = done.send(());
        })
        .map_err(|error| AgentError::Io("start the dispatch thread", error))?;
        let discovery =
            Discovery::start(&finder, discover::reporter(slots.clone(), shared.clone()))
                .map_err(|error| AgentError::Io("start the discovery thread", error))?;
        let link = LinkConfig {
            transport: options.transport,
            agent_key: options.agent_key,
            tls: options.tls,
            proxy: options.proxy,
            timing: Timing::default(),
            send_buffer_bytes: None,
            register: register(store.id().to_owned(), shared.clone(), capabilities, policy),
            heartbeat: heartbeat(shared, outbox.clone(), state_dir),
        };
        Ok(Self {
            link,
            outbox,
            seq,
            slots,
            link_events,
            status,
            store,
            dispatch: thread,
            discovery,
            link_stop,
            supervisor: options.supervisor,
            vitals,
            stop,
            _events: events,
            _socket: socket,
            _metrics: served,
            done: finished,
        })
    }

    /// Keeps the connection until the stop token given at the start is cancelled, then leaves in order.
    pub fn run(self) {
        let over = self.link_stop.clone();
        let supervise = match self.supervisor.watch(self.vitals, self.stop, over) {
            Ok(thread) => thread,
            Err(error) => {
                log::error!("failed to start the thread for the service manager: {error}");
                None
            }
        };
        link::run(
            self.link,
            self.outbox,
            self.seq,
            self.slots,
            self.link_events,
            self.status,
            self.link_stop,
        );
        drop(self.discovery);
        // The link ends only after dispatch has told it to.
        if self.done.recv_timeout(Duration::from_secs(1)).is_ok() {
            if self.dispatch.join().is_err() {
                log::error!("the dispatch thread panicked");
            }
            if supervise.is_some_and(|thread| thread.join().is_err()) {
                log::error!("the thread for the service manager panicked");
            }
        } else {
            log::error!("dispatch did not end; leaving without it");
        }
        if let Err(error) = self.store.close() {
            log::warn!("{error}");
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

fn register(
    store_id: String,
    shared: Shared,
    capabilities: Vec<String>,
    policy: HostPolicy,
) -> Box<dyn Fn() -> wire::Register + Send + Sync> {
    Box::new(move || {
        // Docker may come and go while the agent runs.
        let docker_version = drivers::docker_version(&policy);
        let mut capabilities = capabilities.clone();
        if docker_version.is_some() {
            capabilities.push("docker_exec".to_owned());
            capabilities.extend(policy.discover.then(|| "docker_discovery".to_owned()));
        }
        wire::Register {
            agent_version: VERSION.to_owned(),
            hostname: crate::host::metrics::hostname(),
            os: "linux".to_owned(),
            arch: crate::host::metrics::arch().to_owned(),
            docker_version: docker_version.unwrap_or_default(),
            capabilities,
            last_known_config_version: shared.config_version(),
            store_id: store_id.clone(),
        }
    })
}

fn heartbeat(
    shared: Shared,
    outbox: Outbox,
    state_dir: PathBuf,
) -> Box<dyn Fn() -> wire::Heartbeat + Send + Sync> {
    let sampler = Mutex::new(Sampler::new(&state_dir));
    Box::new(move || {
        let host = sampler.lock().unwrap_or_else(PoisonError::into_inner).sample();
        wire::Heartbeat {
            config_version: shared.config_version(),
            metrics: wire::AgentMetrics {
                cpu_percent: host.cpu_percent,
                mem_used_bytes: host.mem_used_bytes,
                mem_total_bytes: host.mem_total_bytes,
                disk_used_bytes: host.disk_used_bytes,
                disk_total_bytes: host.disk_total_bytes,
                queue_depth: u32::try_from(outbox.depth()).unwrap_or(u32::MAX),
            },
            active_job_ids: shared.active_jobs(),
        }
    })
}

/// How things stand, for a page of metrics.
fn moment(
    link: LinkStatus,
    shared: Shared,
    outbox: Outbox,
    found: discover::Found,
) -> impl Fn() -> Moment + Send + Sync + 'static {
    move || {
        let link = link.snapshot();
        let connection = match (link.connected_since_ms, link.connecting) {
            (Some(_), _) => Connection::Connected,
            (None, true) => Connection::Connecting,
            (None, false) => Connection::Disconnected,
        };
        let dropped = outbox.dropped();
        Moment {
            connection,
            reconnects: link.sessions.saturating_sub(1),
            pending: outbox.depth() as u64,
            dropped: [("log", dropped.logs), ("health", dropped.health), ("ack", dropped.acks)],
            config_version: shared.config_version(),
            unprotected: found.unprotected(),
        }
    }
}

/// An agent that nobody can watch still backs up: what is in the way is a warning.
fn serve_metrics(
    addr: SocketAddr,
    metrics: Metrics,
    moment: impl Fn() -> Moment + Send + Sync + 'static,
    queries: Queries,
) -> Option<Server> {
    let page = Box::new(move || metrics.page(&moment()));
    let health =
        Box::new(move || liveness(&queries.snapshot(PROBE_TIMEOUT).unwrap_or(Value::Null)));
    match endpoint::start(addr, page, health) {
        Ok(server) => {
            log::info!("metrics at http://{}/metrics", server.addr());
            Some(server)
        }
        Err(error) => {
            log::warn!(
                "failed to serve metrics at {addr}: {error}; going on without (BACKUPY_METRICS_LISTEN_ADDR names another address, or none)"
            );
            None
        }
    }
}

/// Who answers what is asked on the status socket.
struct Asked {
    queries: Queries,
    link: LinkStatus,
    store: Store,
    state_dir: PathBuf,
    found: discover::Found,
}

/// The agent's own requests: `status`, `discover`, `dump-state`; everything else goes to `extra`.
fn handler(asked: Asked, extra: Option<ExtraHandler>) -> Handler {
    let started = Instant::now();
    let Asked { queries, link, store, state_dir, found } = asked;
    Arc::new(move |request, reply| {
        let status = || {
            let without_session = link.without_session(Instant::now());
            let link = link.snapshot();
            json!({
                "version": VERSION,
                "pid": std::process::id(),
                "uptime_sec": started.elapsed().as_secs(),
                "state_dir": state_dir.display().to_string(),
                "connected": link.connected_since_ms.is_some(),
                "connected_since_ms": link.connected_since_ms,
                "without_session_sec": without_session.map(|time| time.as_secs()),
                "session_lost": without_session.is_some_and(|time| time >= SESSION_PATIENCE),
                "key_refused": link.key_refused,
                "last_link_error": link.last_error,
                "clock_unset": is_unset(unix_ms()),
                "sessions": link.sessions,
                "dispatch": queries.snapshot(PROBE_TIMEOUT),
                "discovery": found.status(),
            })
        };
        if let Some(extra) = &extra
            && extra(request, &status, reply)?
        {
            return Ok(());
        }
        match request.get("cmd").and_then(Value::as_str) {
            Some("status") => reply(&status()),
            Some("discover") => reply(&found.look()),
            Some("self-update") => reply(&ordered(&queries, request)),
            Some("dump-state") => {
                let secrets = request.get("allow_secrets").and_then(Value::as_bool);
                dump(&store, secrets.unwrap_or(false), reply)
            }
            command => reply(&json!({"error": format!("unknown request {command:?}")})),
        }
    })
}

/// An order to update from somebody at the host, whose version is in its slot already.
fn ordered(queries: &Queries, request: &Value) -> Value {
    let text = |name: &str| request.get(name).and_then(Value::as_str).unwrap_or_default();
    let force = request.get("force").and_then(Value::as_bool).unwrap_or(false);
    let signature = text("signature").as_bytes();
    let refused = match Order::read(text("version"), None, text("sha256"), signature, force) {
        Ok(order) => queries.order(order, PROBE_TIMEOUT),
        Err(reason) => Some(Err(reason)),
    };
    match refused {
        Some(Ok(())) => json!({"done": true}),
        Some(Err(reason)) => json!({"error": reason}),
        None => json!({"error": "the dispatch thread does not answer"}),
    }
}
