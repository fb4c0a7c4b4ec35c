//! A certificate authority, a server that is driven by hand, and an agent's link to it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Bytes, Message, WebSocket};

use super::super::*;
use crate::clock::Deadline;
use crate::outbox::{self, Kind, OutboxLimits};
use crate::store::{Batch, Space, Store, StoreKeys};
use crate::thread::Why;
use crate::wire::{AgentMessage, Header, LogEvent, LogLevel, RegisterAck, ServerMessage};

/// No wait of a test is longer.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A key as an agent has it.
pub const KEY: &str = "bkpy_test_ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";

/// An authority, and a server's certificate under it for `control.test` and 127.0.0.1.
pub struct Ca {
    pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    pub pin: [u8; 32],
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        // Two authorities of one name would be taken for one with a broken signature.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("authority {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let names = vec!["control.test".to_owned(), "127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&leaf_key, &issuer).unwrap();
        let pin = ring::digest::digest(&ring::digest::SHA256, &leaf_key.subject_public_key_info());
        Self {
            pem,
            chain: vec![leaf.der().clone()],
            key: leaf_key.serialize_der(),
            pin: pin.as_ref().try_into().unwrap(),
        }
    }

    /// Writes the authority to a file that lives as long as what is returned.
    pub fn file(&self) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(self.pem.as_bytes()).unwrap();
        file
    }

    pub fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let key = PrivatePkcs8KeyDer::from(self.key.clone());
        let config = ServerConfig::builder_with_provider(crate::net::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key.into())
            .unwrap();
        Arc::new(config)
    }
}

/// What the server speaks through.
pub enum Pipe {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(buffer),
            Self::Tls(tls) => tls.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// A listening control plane.
pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

impl Server {
    pub fn plain() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap(), tls: None }
    }

    pub fn tls(ca: &Ca) -> Self {
        Self { tls: Some(ca.server(&[&rustls::version::TLS13])), ..Self::plain() }
    }

    pub fn with_tls(config: Arc<ServerConfig>) -> Self {
        Self { tls: Some(config), ..Self::plain() }
    }

    /// Connections from now on have a small receive buffer.
    pub fn small_buffers(self) -> Self {
        rustix::net::sockopt::set_socket_recv_buffer_size(&self.listener, 8 * 1024).unwrap();
        self
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub fn url(&self) -> ServerUrl {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        ServerUrl::parse(&format!("{scheme}://{}/base", self.address()), true).unwrap()
    }

    /// The next TCP connection, untouched.
    pub fn accept_tcp(&self) -> TcpStream {
        self.listener.set_nonblocking(true).unwrap();
        let deadline = Deadline::after(LIMIT);
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    stream.set_write_timeout(Some(LIMIT)).unwrap();
                    stream.set_nodelay(true).unwrap();
                    return stream;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let ready = crate::net::wait_readable(&self.listener, deadline, None);
                    assert_eq!(ready.unwrap(), crate::net::Waited::Ready, "nobody connected");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next connection, with TLS where the server has it.
    pub fn accept_pipe(&self) -> io::Result<Pipe> {
        let mut tcp = self.accept_tcp();
        let Some(config) = &self.tls else { return Ok(Pipe::Plain(tcp)) };
        let mut connection = ServerConnection::new(Arc::clone(config)).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(Pipe::Tls(Box::new(StreamOwned::new(connection, tcp))))
    }

    /// The next connection, upgraded.
    pub fn accept(&self) -> Peer {
        self.accept_with(None).unwrap()
    }

    #[allow(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
    /// As [`Server::accept`]; `refuse` is an HTTP status to answer instead.
    pub fn accept_with(&self, refuse: Option<u16>) -> Option<Peer> {
        let mut head = String::new();
        let callback = |request: &Request, response: Response| {
            head = format!("{} {:?}", request.uri(), request.headers());
            match refuse {
                None => Ok(response),
                Some(status) => {
                    let mut answer = ErrorResponse::new(None);
                    *answer.status_mut() = status.try_into().unwrap();
                    Err(answer)
                }
            }
        };
        let config = WebSocketConfig::default();
        let pipe = self.accept_pipe().unwrap();
        let result = tungstenite::accept_hdr_with_config(pipe, callback, Some(config));
        match (result, refuse) {
            (Ok(websocket), None) => Some(Peer { websocket, head, seq: 0 }),
            (Err(_), Some(_)) => None,
            (Ok(_), Some(_)) => panic!("the refusal was not noticed"),
            (Err(error), None) => panic!("{error}"),
        }
    }

    /// The next connection, upgraded and registered.
    pub fn session(&self, ack: RegisterAck) -> Peer {
        let mut peer = self.accept();
        assert!(matches!(peer.recv().1, AgentMessage::Register(_)));
        peer.send(ServerMessage::RegisterAck(ack));
        peer
    }
}

/// One connection, from the server's side.
pub struct Peer {
    pub websocket: WebSocket<Pipe>,
    pub head: String,
    seq: u64,
}

impl Peer {
    pub fn tcp(&self) -> &TcpStream {
        match self.websocket.get_ref() {
            Pipe::Plain(tcp) => tcp,
            Pipe::Tls(tls) => &tls.sock,
        }
    }

    pub fn send(&mut self, message: ServerMessage) {
        self.send_with(String::new(), message);
    }

    pub fn send_with(&mut self, correlation_id: String, message: ServerMessage) {
        self.seq += 1;
        let header = Header { seq: self.seq, correlation_id, ..Header::default() };
        let bytes = wire::encode_server(header, message);
        self.websocket.send(Message::Binary(Bytes::from(bytes))).unwrap();
    }

    pub fn frame(&mut self, frame: Message) {
        self.websocket.send(frame).unwrap();
    }

    /// The next frame that is no ping, pong or close.
    pub fn recv(&mut self) -> (Header, AgentMessage) {
        self.try_recv().unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_recv(&mut self) -> Result<(Header, AgentMessage), tungstenite::Error> {
        loop {
            match self.websocket.read()? {
                Message::Binary(bytes) => return Ok(wire::decode_agent(&bytes).unwrap()),
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => return Err(tungstenite::Error::ConnectionClosed),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next message that `pick` wants; the others are dropped.
    pub fn find<T>(&mut self, mut pick: impl FnMut(&Header, AgentMessage) -> Option<T>) -> T {
        let deadline = Deadline::after(LIMIT);
        loop {
            assert!(!deadline.passed(), "the message never came");
            let (header, message) = self.recv();
            if let Some(found) = pick(&header, message) {
                return found;
            }
        }
    }

    /// The next `count` log events, as (seq, entry_id, text).
    pub fn entries(&mut self, count: usize) -> Vec<(u64, u64, String)> {
        (0..count)
            .map(|_| {
                self.find(|header, message| match message {
                    AgentMessage::Log(log) => Some((header.seq, header.entry_id, log.message)),
                    _ => None,
                })
            })
            .collect()
    }

    /// Pings with `text` as the correlation id and waits for its Ack.
    pub fn ping(&mut self, text: &str) {
        self.send_with(text.to_owned(), ServerMessage::Ping { ts_ms: 1 });
        self.find(|header, message| match message {
            AgentMessage::Ack(ack) => {
                assert!(ack.accepted);
                assert_eq!(header.correlation_id, ack.correlation_id);
                (ack.correlation_id == text).then_some(())
            }
            _ => None,
        });
    }

    /// Confirms storage up to `seq`.
    pub fn confirm(&mut self, seq: u64) {
        self.send(ServerMessage::Ack(wire::Ack::ok(format!("seq-{seq}"))));
    }

    /// Reads until the link is gone.
    pub fn drain(mut self) {
        while self.websocket.read().is_ok() {}
    }
}

/// A RegisterAck with a heartbeat that does not disturb a test.
pub fn ack() -> RegisterAck {
    RegisterAck {
        session_id: "s".to_owned(),
        heartbeat_interval_sec: 3600,
        ..RegisterAck::default()
    }
}

pub fn durable() -> RegisterAck {
    RegisterAck { durable_acks: true, ..ack() }
}

/// Short delays, long deadlines: a test shortens what it is about.
pub fn timing() -> Timing {
    Timing {
        backoff_first: Duration::from_millis(10),
        backoff_cap: Duration::from_millis(100),
        ..Timing::default()
    }
}

/// An agent's link, running.
pub struct Agent {
    pub events: Receiver<Event>,
    pub status: LinkStatus,
    pub slots: Slots,
    pub outbox: Outbox,
    pub stop: Cancel,
    thread: Option<JoinHandle<()>>,
    pub kept: Kept,
}

/// A store in a directory of its own, and the outbox in it.
#[derive(Clone)]
pub struct Kept {
    pub store: Store,
    pub outbox: Outbox,
    _dir: Arc<tempfile::TempDir>,
}

impl Kept {
    pub fn new() -> Self {
        Self::with(OutboxLimits::default())
    }

    pub fn with(limits: OutboxLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = StoreKeys { current: Secret::new(KEY), previous: None };
        let store = Store::open(&dir.path().join("store"), &Space::AGENT, &keys).unwrap();
        let outbox = Outbox::open(store.clone(), limits).unwrap();
        Self { store, outbox, _dir: Arc::new(dir) }
    }

    /// Publishes log events with these texts.
    pub fn put(&self, texts: impl IntoIterator<Item = String>) {
        let messages = texts.into_iter().map(|message| outbox::Message {
            kind: Kind::Log(LogLevel::Warn),
            run_id: None,
            correlation_id: String::new(),
            message: AgentMessage::Log(LogEvent {
                ts_ms: 1,
                level: LogLevel::Warn,
                job_id: String::new(),
                message,
                fields: vec![],
            }),
        });
        self.outbox.publish(Batch::new(), messages.collect()).unwrap();
    }

    /// Publishes the result of a run.
    pub fn put_result(&self, run_id: &str) {
        let update = wire::JobUpdate {
            job_id: "j".to_owned(),
            run_id: run_id.to_owned(),
            status: wire::JobStatus::Failed,
            progress_percent: 0,
            current_step: String::new(),
            error_message: String::new(),
        };
        let message = outbox::Message {
            kind: Kind::Terminal,
            run_id: Some(run_id.to_owned()),
            correlation_id: String::new(),
            message: AgentMessage::JobUpdate(update),
        };
        self.outbox.publish(Batch::new(), vec![message]).unwrap();
    }
}

/// What is asked of a link.
pub struct Setup {
    pub transport: Transport,
    pub tls: TlsSettings,
    pub proxy: ProxySettings,
    pub timing: Timing,
    pub send_buffer_bytes: Option<usize>,
    pub events: usize,
    pub kept: Kept,
}

impl Setup {
    pub fn new(url: ServerUrl) -> Self {
        Self {
            transport: Transport::Remote(url),
            tls: TlsSettings::default(),
            proxy: ProxySettings::default(),
            timing: timing(),
            send_buffer_bytes: None,
            events: 1024,
            kept: Kept::new(),
        }
    }

    pub fn ca(mut self, file: &tempfile::NamedTempFile) -> Self {
        self.tls.ca_file = Some(file.path().to_owned());
        self
    }

    pub fn timing(mut self, change: impl FnOnce(&mut Timing)) -> Self {
        change(&mut self.timing);
        self
    }

    pub fn start(self) -> Agent {
        let config = LinkConfig {
            transport: self.transport,
            agent_key: Secret::new(KEY),
            tls: self.tls,
            proxy: self.proxy,
            timing: self.timing,
            send_buffer_bytes: self.send_buffer_bytes,
            register: Box::new(|| wire::Register {
                hostname: "test".to_owned(),
                ..wire::Register::default()
            }),
            heartbeat: Box::new(wire::Heartbeat::default),
        };
        let (send, events) = bounded(self.events);
        let (slots, status, stop) = (Slots::new(), LinkStatus::new(), Cancel::new().unwrap());
        let thread = std::thread::spawn({
            let (outbox, slots, status) = (self.kept.outbox.clone(), slots.clone(), status.clone());
            let (stop, store) = (stop.clone(), self.kept.store.clone());
            let seq = SeqCounter::open(store, crate::clock::unix_ms()).unwrap();
            move || run(config, outbox, seq, slots, send, status, stop)
        });
        Agent {
            events,
            status,
            slots,
            outbox: self.kept.outbox.clone(),
            stop,
            thread: Some(thread),
            kept: self.kept,
        }
    }
}

impl Agent {
    pub fn event(&self) -> Event {
        self.events.recv_timeout(LIMIT).expect("no event")
    }

    pub fn up(&self) -> RegisterAck {
        match self.event() {
            Event::Up { ack, .. } => ack,
            other => panic!("{other:?}"),
        }
    }

    /// The next Down's reason; messages before it are dropped.
    pub fn down(&self) -> String {
        loop {
            if let Event::Down { reason } = self.event() {
                return reason;
            }
        }
    }

    /// The error of the first failed attempt.
    pub fn failure(&self) -> LinkSnapshot {
        until("no attempt failed", || self.status.snapshot().failed_attempts > 0);
        self.status.snapshot()
    }

    /// Stops it and waits for its end; the thread's panic is passed on as a value.
    pub fn finish(mut self) -> std::thread::Result<()> {
        self.stop.cancel(Why::Shutdown);
        self.thread.take().unwrap().join()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel(Why::Shutdown);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// Waits until a value is reached; the other end is told, not asked, so there is nothing to wait on.
pub fn until(what: &str, check: impl Fn() -> bool) {
    let deadline = Deadline::after(LIMIT);
    while !check() {
        assert!(!deadline.passed(), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that the kernel holds for the agent's end of this connection.
pub fn unread_by_agent(peer: &Peer) -> u64 {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let (near, far) =
        (port(peer.tcp().peer_addr().unwrap()), port(peer.tcp().local_addr().unwrap()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = line.into_iter().find(|w| w[1].ends_with(&near) && w[2].ends_with(&far));
    let queues = line.expect("the connection is gone")[4].to_owned();
    u64::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap()
}

/// Passes bytes both ways until either side ends.
pub fn relay(near: TcpStream, far: TcpStream) {
    let frozen = Arc::new(AtomicBool::new(false));
    forward(near.try_clone().unwrap(), far.try_clone().unwrap(), Arc::clone(&frozen));
    forward(far, near, frozen);
}

fn forward(mut from: TcpStream, mut to: TcpStream, frozen: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if !frozen.load(Ordering::SeqCst) && to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

/// A network between agent and server that can go dark: everything is swallowed, nobody is told.
pub struct Network {
    pub address: SocketAddr,
    dark: Arc<AtomicBool>,
}

impl Network {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dark = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&dark);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(target) else { break };
                forward(near.try_clone().unwrap(), far.try_clone().unwrap(), Arc::clone(&shared));
                forward(far, near, Arc::clone(&shared));
            }
        });
        Self { address, dark }
    }

    pub fn go_dark(&self, dark: bool) {
        self.dark.store(dark, Ordering::SeqCst);
    }
}
