//! A scripted agent on a real socket against a desk that only remembers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tungstenite::{Message, WebSocket};

use super::*;
use crate::control::connect::{Agents, connect};
use crate::control::http::{Limits, Server};
use crate::secret::Secret;
use crate::wire::{Heartbeat, JobStatus, JobUpdate};

const PATIENCE: Duration = Duration::from_secs(20);
const KEY: &str = "bkpy_test_0123456789abcdefghijABCDEFGHIJ01";

/// Remembers what it was told.
struct Notes {
    lines: Mutex<Vec<Line>>,
    got: Sender<(u64, AgentMessage)>,
    ended: Sender<String>,
    full: AtomicBool,
}

impl Desk for Notes {
    fn welcome(&self, _: &str, _: &Register, line: &Line) -> AgentConfig {
        self.lines.lock().unwrap().push(line.clone());
        AgentConfig { version: 7, ..AgentConfig::default() }
    }

    fn receive(&self, _: &Line, messages: Vec<(Header, AgentMessage)>) -> Result<(), NotStored> {
        if self.full.load(Ordering::SeqCst) {
            return Err(NotStored("the disk is full".into()));
        }
        for (header, message) in messages {
            self.got.send((header.entry_id, message)).unwrap();
        }
        Ok(())
    }

    fn farewell(&self, _: &Line, reason: &str) {
        self.ended.send(reason.to_owned()).unwrap();
    }
}

struct Bench {
    server: Server,
    notes: Arc<Notes>,
    got: Receiver<(u64, AgentMessage)>,
    ended: Receiver<String>,
}

fn quick() -> Timing {
    Timing { write: Duration::from_millis(500), ..Timing::default() }
}

fn bench(timing: Timing) -> Bench {
    let (got_in, got) = unbounded();
    let (ended_in, ended) = unbounded();
    let notes = Arc::new(Notes {
        lines: Mutex::default(),
        got: got_in,
        ended: ended_in,
        full: AtomicBool::new(false),
    });
    let desk: Arc<dyn Desk> = notes.clone();
    let agents = Agents::new([("local".to_owned(), Secret::new(KEY))]).unwrap();
    let server = Server::start(
        Limits::default(),
        None,
        Arc::new(move |request, conn| connect(&request, conn, &agents, &desk, timing)),
    )
    .unwrap();
    Bench { server, notes, got, ended }
}

impl Bench {
    fn line(&self) -> Line {
        self.notes.lines.lock().unwrap().last().unwrap().clone()
    }

    fn ended(&self) -> String {
        self.ended.recv_timeout(PATIENCE).unwrap()
    }
}

/// The agent's side: plain tungstenite, sequence numbers of its own.
struct Script {
    ws: WebSocket<TcpStream>,
    seq: u64,
}

fn upgrade(bench: &Bench, key: &str) -> Result<WebSocket<TcpStream>, String> {
    let stream = TcpStream::connect(bench.server.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = tungstenite::http::Request::builder()
        .uri(format!("ws://{}{}", bench.server.addr(), wire::CONNECT_PATH))
        .header("Host", "127.0.0.1")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Authorization", format!("Bearer {key}"))
        .body(())
        .unwrap();
    tungstenite::client(request, stream).map(|(ws, _)| ws).map_err(|error| error.to_string())
}

impl Script {
    fn dial(bench: &Bench) -> Self {
        Self { ws: upgrade(bench, KEY).unwrap(), seq: 100 }
    }

    fn registered(bench: &Bench, capabilities: &[&str]) -> Self {
        let mut script = Self::dial(bench);
        let capabilities = capabilities.iter().map(|c| (*c).to_owned()).collect();
        let register = Register { capabilities, store_id: "s1".into(), ..Register::default() };
        script.say(0, AgentMessage::Register(register));
        let ServerMessage::RegisterAck(ack) = script.hear().1 else { panic!("no RegisterAck") };
        assert_eq!(ack.config.unwrap().version, 7);
        assert!(ack.durable_acks && ack.heartbeat_interval_sec == 30);
        script
    }

    fn say(&mut self, entry_id: u64, message: AgentMessage) -> u64 {
        self.seq += 1;
        let header = Header { seq: self.seq, entry_id, ..Header::default() };
        let bytes = wire::encode_agent(header, message);
        self.ws.send(Message::Binary(bytes.into())).unwrap();
        self.seq
    }

    fn hear(&mut self) -> (Header, ServerMessage) {
        loop {
            if let Message::Binary(bytes) = self.ws.read().unwrap() {
                return wire::decode_server(&bytes).unwrap();
            }
        }
    }

    /// Waits for the server to end the connection.
    fn closed(&mut self) {
        while self.ws.read().is_ok() {}
    }
}

fn update(run_id: &str) -> AgentMessage {
    AgentMessage::JobUpdate(JobUpdate {
        job_id: "db".into(),
        run_id: run_id.into(),
        status: JobStatus::Running,
        progress_percent: 5,
        current_step: "dumping".into(),
        error_message: String::new(),
    })
}

#[test]
fn a_wrong_key_is_401_and_a_plain_request_is_426() {
    let bench = bench(quick());
    let error = upgrade(&bench, "bkpy_test_wrong").unwrap_err();
    assert!(error.contains("401"), "{error}");
    let mut stream = TcpStream::connect(bench.server.addr()).unwrap();
    write!(
        stream,
        "GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n",
        wire::CONNECT_PATH
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
}

#[test]
fn entries_are_stored_and_then_confirmed() {
    let bench = bench(quick());
    let mut agent = Script::registered(&bench, &[wire::DURABLE_ACKS]);
    agent.say(0, AgentMessage::Heartbeat(Heartbeat::default()));
    let seq = agent.say(1, update("r1"));
    let (_, message) = agent.hear();
    let ServerMessage::Ack(ack) = message else { panic!("{message:?}") };
    assert_eq!(ack.confirmed_seq(), Some(seq));
    assert_eq!(bench.got.recv_timeout(PATIENCE).unwrap().0, 0);
    assert_eq!(bench.got.recv_timeout(PATIENCE).unwrap(), (1, update("r1")));
}

#[test]
fn an_agent_that_does_not_know_confirmations_gets_none() {
    let bench = bench(quick());
    let mut agent = Script::registered(&bench, &["sqlite"]);
    agent.say(1, update("r1"));
    bench.got.recv_timeout(PATIENCE).unwrap();
    bench
        .line()
        .send(Command { correlation_id: "c1".into(), message: ServerMessage::Ping { ts_ms: 1 } });
    let (header, message) = agent.hear();
    assert_eq!((header.correlation_id.as_str(), message), ("c1", ServerMessage::Ping { ts_ms: 1 }));
}

#[test]
fn what_cannot_be_stored_is_not_confirmed() {
    let bench = bench(quick());
    let mut agent = Script::registered(&bench, &[wire::DURABLE_ACKS]);
    bench.notes.full.store(true, Ordering::SeqCst);
    agent.say(1, update("r1"));
    agent.closed();
    assert!(bench.ended().contains("the disk is full"));
}

#[test]
fn the_first_message_must_be_register_and_must_come() {
    let bench = bench(Timing { register: Duration::from_millis(200), ..quick() });
    let mut agent = Script::dial(&bench);
    agent.say(0, AgentMessage::Heartbeat(Heartbeat::default()));
    agent.closed();
    Script::dial(&bench).closed();
    assert!(bench.ended.is_empty(), "nobody was welcomed");
}

#[test]
fn silence_ends_a_session_and_signs_of_life_keep_it() {
    let timing = Timing { idle: Duration::from_millis(600), ..quick() };
    let bench = bench(Timing { speak: Duration::from_millis(100), ..timing });
    let mut agent = Script::registered(&bench, &[]);
    // Answering the server's pings is enough of a sign: tungstenite does while it reads.
    for _ in 0..12 {
        assert!(matches!(agent.ws.read(), Ok(Message::Ping(_))));
    }
    assert!(bench.ended.is_empty());
    assert!(bench.ended().contains("silent"));
}

#[test]
fn a_mute_agent_does_not_hold_the_session() {
    let bench = bench(quick());
    let agent = Script::registered(&bench, &[]);
    let config = AgentConfig {
        targets: vec![crate::model::Target {
            id: "x".repeat(1 << 20),
            engine: crate::model::Engine::Sqlite,
            display_name: String::new(),
            connection: crate::model::Connection::default(),
        }],
        ..AgentConfig::default()
    };
    for _ in 0..20 {
        let message = ServerMessage::ConfigUpdate(Some(config.clone()));
        bench.line().send(Command { correlation_id: String::new(), message });
    }
    assert!(bench.ended().contains("took nothing"));
    drop(agent);
}

#[test]
fn garbage_text_and_unknown_payloads_are_survived() {
    let bench = bench(quick());
    let mut agent = Script::registered(&bench, &[wire::DURABLE_ACKS]);
    agent.ws.send(Message::text("hello")).unwrap();
    agent.ws.send(Message::Binary(vec![0xff, 0xff, 0xff].into())).unwrap();
    agent.say(0, AgentMessage::Unknown);
    let seq = agent.say(9, update("r1"));
    let ServerMessage::Ack(ack) = agent.hear().1 else { panic!("no confirmation") };
    assert_eq!(ack.confirmed_seq(), Some(seq));
}

#[test]
fn a_message_over_the_limit_ends_the_session() {
    let bench = bench(quick());
    let mut agent = Script::registered(&bench, &[]);
    // The server may reset while this is still being written.
    let _ = agent.ws.send(Message::Binary(vec![0; wire::MAX_MESSAGE_BYTES + 1].into()));
    assert!(bench.ended().contains("protocol"));
}

#[test]
fn the_line_ends_a_session_and_so_does_a_stop() {
    let mut bench = bench(quick());
    let mut first = Script::registered(&bench, &[]);
    bench.line().hang_up();
    first.closed();
    assert!(bench.ended().contains("anew"));
    let mut second = Script::registered(&bench, &[]);
    bench.server.stop();
    second.closed();
    assert!(bench.ended().contains("stopping"));
}

#[test]
fn a_cut_connection_is_noticed() {
    let bench = bench(quick());
    let agent = Script::registered(&bench, &[]);
    drop(agent);
    let reason = bench.ended();
    assert!(reason.contains("closed") || reason.contains("failed"), "{reason}");
}
