//! What must be right before there is a session, and what is said where it is not.

use std::io::{Read, Write};
use std::net::TcpListener;

use crossbeam_channel::Receiver;

use super::super::*;
use super::support::*;
use crate::wire::{AgentMessage, ServerMessage};

#[test]
fn header_path_register_heartbeat() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let agent = Setup::new(server.url()).ca(&file).start();
    let mut peer = server.accept();
    assert!(peer.head.starts_with("/base/v1/agents/connect "), "{}", peer.head);
    let (first, register) = peer.recv();
    let AgentMessage::Register(register) = register else { panic!("{register:?}") };
    assert_eq!(register.hostname, "test");
    peer.send(ServerMessage::RegisterAck(ack()));
    let (second, heartbeat) = peer.recv();
    assert!(matches!(heartbeat, AgentMessage::Heartbeat(_)), "{heartbeat:?}");
    assert!(second.seq > first.seq && first.seq > 0 && first.ts_ms > 0);
    assert_eq!(agent.up(), ack());
    let snapshot = agent.status.snapshot();
    assert_eq!((snapshot.sessions, snapshot.session_id.as_deref()), (1, Some("s")));
}

#[test]
fn the_key_is_a_bearer_token() {
    let server = Server::plain();
    let _agent = Setup::new(server.url()).start();
    let mut stream = server.accept_tcp();
    let mut head = [0; 1024];
    let count = stream.read(&mut head).unwrap();
    let head = String::from_utf8_lossy(&head[..count]).to_lowercase();
    assert!(head.contains(&format!("authorization: bearer {KEY}\r\n").to_lowercase()), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", server.address())), "{head}");
}

#[test]
fn loopback_needs_no_url_and_takes_nothing_else() {
    let server = Server::plain();
    let mut setup = Setup::new(server.url());
    setup.transport = Transport::Loopback(server.address());
    let agent = setup.start();
    let peer = server.session(ack());
    assert!(peer.head.starts_with("/v1/agents/connect "), "{}", peer.head);
    agent.up();

    let mut setup = Setup::new(server.url());
    setup.transport = Transport::Loopback("192.0.2.1:80".parse().unwrap());
    let error = setup.start().failure().last_error.unwrap();
    assert!(error.contains("loopback"), "{error}");
}

/// The one failure there must be within the test's limit.
fn failure(setup: Setup) -> String {
    setup.start().failure().last_error.unwrap()
}

#[test]
fn mute_before_tls() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let setup = Setup::new(server.url()).ca(&file);
    let error = failure(setup.timing(|t| t.dial = Duration::from_millis(100)));
    assert!(error.contains("failed to set up TLS"), "{error}");
}

#[test]
fn mute_before_the_upgrade() {
    let server = Server::plain();
    let setup = Setup::new(server.url()).timing(|t| t.dial = Duration::from_millis(100));
    let error = failure(setup);
    assert!(error.contains("failed to open the WebSocket in time"), "{error}");
}

#[test]
fn mute_before_the_register_ack() {
    let server = Server::plain();
    let setup = Setup::new(server.url()).timing(|t| t.register = Duration::from_millis(100));
    let agent = setup.start();
    let mut peer = server.accept();
    peer.recv();
    let error = agent.failure().last_error.unwrap();
    assert!(error.contains("failed to register in time"), "{error}");
}

#[test]
fn pings_do_not_stretch_the_register_deadline() {
    let server = Server::plain();
    let setup = Setup::new(server.url()).timing(|t| t.register = Duration::from_millis(300));
    let agent = setup.start();
    let mut peer = server.accept();
    while agent.status.snapshot().failed_attempts == 0 {
        if peer.websocket.send(tungstenite::Message::Ping("x".into())).is_err() {
            break;
        }
    }
    let error = agent.failure().last_error.unwrap();
    assert!(error.contains("failed to register in time"), "{error}");
}

#[test]
fn a_stop_ends_every_step() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let _mute = server.accept_tcp();
    agent.finish().unwrap();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.accept();
    peer.recv();
    agent.finish().unwrap();
}

#[test]
fn a_wrong_key_waits_at_the_cap_and_says_so() {
    for status in [401, 403] {
        let server = Server::plain();
        let setup = Setup::new(server.url()).timing(|t| {
            t.backoff_first = Duration::from_millis(1);
            t.backoff_cap = Duration::from_millis(300);
        });
        let agent = setup.start();
        assert!(server.accept_with(Some(status)).is_none());
        let snapshot = agent.failure();
        let refused_at = std::time::Instant::now();
        let error = snapshot.last_error.unwrap();
        assert!(
            error.contains(&status.to_string()) && error.contains("BACKUPY_AGENT_KEY"),
            "{error}"
        );
        assert!(!error.contains(KEY));
        assert!(snapshot.key_refused);
        let mut peer = server.session(ack());
        // At least the cap less the jitter, and less what passed before it was noticed.
        assert!(refused_at.elapsed() > Duration::from_millis(150), "{:?}", refused_at.elapsed());
        peer.ping("works");
        assert!(!agent.status.snapshot().key_refused);
    }
}

#[test]
fn other_answers_are_told() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    assert!(server.accept_with(Some(404)).is_none());
    let snapshot = agent.failure();
    assert!(snapshot.last_error.unwrap().contains("answered 404"));
    assert!(!snapshot.key_refused);
}

#[test]
fn the_first_message_must_be_a_register_ack() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.accept();
    peer.send(ServerMessage::Ping { ts_ms: 1 });
    let error = agent.failure().last_error.unwrap();
    assert!(error.contains("no RegisterAck"), "{error}");
}

#[test]
fn odd_frames_before_the_register_ack_are_tolerated() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.accept();
    peer.frame(tungstenite::Message::text("hello"));
    peer.frame(tungstenite::Message::binary(vec![]));
    peer.frame(tungstenite::Message::binary(vec![0xff; 9]));
    peer.frame(tungstenite::Message::Ping("x".into()));
    peer.send(ServerMessage::RegisterAck(ack()));
    agent.up();
}

#[test]
fn a_foreign_authority_is_refused() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (server, file) = (Server::tls(&theirs), ours.file());
    let agent = Setup::new(server.url()).ca(&file).start();
    assert!(server.accept_pipe().is_err());
    let error = agent.failure().last_error.unwrap();
    assert!(error.contains("BACKUPY_CA_FILE"), "{error}");
}

#[test]
fn pins_are_checked_on_top() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (server, file) = (Server::tls(&ours), ours.file());
    let with_pins = |pins: Vec<[u8; 32]>, file| {
        let mut setup = Setup::new(server.url()).ca(file);
        setup.tls.server_pins = pins;
        setup.start()
    };
    let agent = with_pins(vec![[7; 32], ours.pin], &file);
    server.session(ack());
    agent.up();
    drop(agent);

    let agent = with_pins(vec![theirs.pin], &file);
    assert!(server.accept_pipe().is_err());
    let error = agent.failure().last_error.unwrap();
    assert!(error.contains("BACKUPY_SERVER_PIN"), "{error}");
    drop(agent);

    // The right pin does not replace the authority.
    let foreign = theirs.file();
    let agent = with_pins(vec![ours.pin], &foreign);
    assert!(server.accept_pipe().is_err());
    let error = agent.failure().last_error.unwrap();
    assert!(error.contains("BACKUPY_CA_FILE"), "{error}");
}

#[test]
fn tls_1_2_is_refused() {
    let ca = Ca::new();
    let (server, file) = (Server::with_tls(ca.server(&[&rustls::version::TLS12])), ca.file());
    let agent = Setup::new(server.url()).ca(&file).start();
    assert!(server.accept_pipe().is_err());
    let error = agent.failure().last_error.unwrap();
    assert!(error.contains("TLS 1.3"), "{error}");
}

#[test]
fn no_dns() {
    let url = ServerUrl::parse("https://no-such-host.invalid", false).unwrap();
    let error = failure(Setup::new(url).timing(|t| t.dial = Duration::from_secs(2)));
    assert!(error.contains("failed to look up no-such-host.invalid"), "{error}");
}

/// A proxy that answers `answer` to one CONNECT and then passes bytes to `target`.
fn proxy(answer: &'static str, target: std::net::SocketAddr) -> (ProxySettings, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://me:s3cret@{}", listener.local_addr().unwrap());
    let (send, heads) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        near.write_all(answer.as_bytes()).unwrap();
        send.send(String::from_utf8(head).unwrap()).unwrap();
        if answer.contains(" 200 ") {
            let far = std::net::TcpStream::connect(target).unwrap();
            relay(near, far);
        }
    });
    (ProxySettings { url: Some(Secret::new(url)), bypass: vec![] }, heads)
}

#[test]
fn through_a_proxy() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let (settings, heads) = proxy("HTTP/1.1 200 OK\r\n\r\n", server.address());
    let url = ServerUrl::parse("https://control.test", false).unwrap();
    let mut setup = Setup::new(url).ca(&file);
    setup.proxy = settings;
    let agent = setup.start();
    let mut peer = server.session(ack());
    peer.ping("through");
    agent.up();
    assert!(heads.recv_timeout(LIMIT).unwrap().starts_with("CONNECT control.test:443 HTTP/1.1"));
}

#[test]
fn a_proxy_that_wants_another_password() {
    let (settings, _heads) =
        proxy("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "127.0.0.1:1".parse().unwrap());
    let mut setup = Setup::new(ServerUrl::parse("https://control.test", false).unwrap());
    setup.proxy = settings;
    let error = failure(setup);
    assert!(error.contains("407") && error.contains("HTTPS_PROXY"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}
