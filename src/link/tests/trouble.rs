//! What networks do: silence, slowness, half-open connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tungstenite::Message;

use super::super::*;
use super::support::*;
use crate::wire::ServerMessage;

#[test]
fn silence_ends_the_link() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).timing(|t| t.idle = Duration::from_millis(200)).start();
    let _mute = server.session(ack());
    agent.up();
    let reason = agent.down();
    assert!(reason.contains("nothing came"), "{reason}");
    server.session(ack());
    agent.up();
}

#[test]
fn any_frame_keeps_it_alive() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).timing(|t| t.idle = Duration::from_secs(2)).start();
    let mut peer = server.session(ack());
    agent.up();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        peer.frame(Message::Ping("".into()));
        std::thread::sleep(Duration::from_millis(50));
    }
    peer.ping("alive");
    assert_eq!(agent.status.snapshot().sessions, 1);
}

#[test]
fn half_open() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let network = Network::to(server.address());
    let url = ServerUrl::parse(&format!("https://{}", network.address), false).unwrap();
    let agent = Setup::new(url).ca(&file).timing(|t| t.idle = Duration::from_millis(300)).start();
    let mut peer = server.session(durable());
    agent.up();
    peer.ping("works");
    network.go_dark(true);
    agent.kept.put(["lost on the way".to_owned()]);
    let reason = agent.down();
    assert!(reason.contains("nothing came"), "{reason}");
    network.go_dark(false);
    // Attempts that fell into the dark may have left half a connection in front of the server.
    let mut peer = loop {
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut peer = server.session(durable());
            let got = peer.entries(1);
            (peer, got)
        }));
        if let Ok((peer, got)) = attempt {
            assert_eq!(got[0].2, "lost on the way");
            break peer;
        }
    };
    peer.ping("works again");
}

/// 100 entries of 8 KiB: far more than all buffers on the way hold.
fn large_entries(kept: &Kept) {
    kept.put((0..100).map(|n| format!("{n:04} {}", "x".repeat(8 * 1024))));
}

/// A peer that stops reading while it keeps sending commands and pings.
fn stops_reading(server: Server, setup: Setup) {
    let server = server.small_buffers();
    let mut setup = setup.timing(|t| t.write = Duration::from_secs(3));
    setup.send_buffer_bytes = Some(8 * 1024);
    let agent = setup.start();
    let mut peer = server.session(durable());
    agent.up();
    large_entries(&agent.kept);
    let mut sent = 0;
    // What it sends still arrives …
    for number in 0..300 {
        let message = ServerMessage::CancelJob { job_id: format!("{number}") };
        let bytes = wire::encode_server(wire::Header::default(), message);
        // More pongs than may wait: only the newest of them matter.
        let pings = (0..5).map(|_| Message::Ping("p".repeat(100).into()));
        let mut frames = pings.chain([Message::binary(bytes)]);
        if frames.try_for_each(|frame| peer.websocket.send(frame)).is_err() {
            break;
        }
        sent += 1;
        match agent.event() {
            Event::Message { message: ServerMessage::CancelJob { job_id }, .. } => {
                assert_eq!(job_id, format!("{number}"));
            }
            Event::Down { reason } => panic!("after {number}: {reason}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, 300);
    // … and still the link ends, for it takes nothing.
    let reason = agent.down();
    assert!(reason.contains("did not take a message"), "{reason}");
    drop(peer);
    // Nothing is lost.
    let mut peer = server.session(durable());
    for number in 0..100 {
        let got = peer.entries(1);
        assert!(got[0].2.starts_with(&format!("{number:04} ")));
        peer.confirm(got[0].0);
    }
}

#[test]
fn a_peer_that_stops_reading() {
    let server = Server::plain();
    let setup = Setup::new(server.url());
    stops_reading(server, setup);
}

#[test]
fn a_peer_that_stops_reading_over_tls() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let setup = Setup::new(server.url()).ca(&file);
    stops_reading(server, setup);
}

/// A peer that reads slowly and in gulps, while commands and pings come at the agent.
fn slow_but_alive(server: Server, setup: Setup) {
    let server = server.small_buffers();
    let mut setup = setup;
    setup.send_buffer_bytes = Some(8 * 1024);
    let agent = setup.start();
    let mut peer = server.session(durable());
    agent.up();
    let commands = Arc::new(AtomicBool::new(true));
    let listener = std::thread::spawn({
        let (events, commands) = (agent.events.clone(), Arc::clone(&commands));
        move || {
            let mut got = 0;
            while commands.load(Ordering::SeqCst) || !events.is_empty() {
                if let Ok(Event::Message { .. }) = events.recv_timeout(Duration::from_millis(20)) {
                    got += 1;
                }
            }
            got
        }
    });
    large_entries(&agent.kept);
    let mut sent = 0;
    for number in 0..100 {
        if number % 10 == 0 {
            // Long enough for every buffer to fill up.
            std::thread::sleep(Duration::from_millis(30));
        }
        peer.frame(Message::Ping("p".repeat(100).into()));
        peer.send(ServerMessage::CancelJob { job_id: number.to_string() });
        sent += 1;
        let got = peer.entries(1);
        assert!(got[0].2.starts_with(&format!("{number:04} ")), "{number}: {}", &got[0].2[..10]);
        assert_eq!(got[0].2.len(), 5 + 8 * 1024);
        peer.confirm(got[0].0);
    }
    peer.ping("the end");
    commands.store(false, Ordering::SeqCst);
    assert_eq!(listener.join().unwrap(), sent);
    assert_eq!(agent.status.snapshot().sessions, 1);
}

#[test]
fn a_slow_peer() {
    let server = Server::plain();
    let setup = Setup::new(server.url());
    slow_but_alive(server, setup);
}

#[test]
fn a_slow_peer_over_tls() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let setup = Setup::new(server.url()).ca(&file);
    slow_but_alive(server, setup);
}

#[test]
fn input_that_a_write_read_is_not_lost() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca).small_buffers(), ca.file());
    let mut setup = Setup::new(server.url()).ca(&file);
    setup.send_buffer_bytes = Some(8 * 1024);
    setup.events = 1;
    let agent = setup.start();
    let mut peer = server.session(durable());
    agent.up();
    // The reader is stuck with the second command, and the third waits in the kernel …
    for number in 0..3 {
        let message = ServerMessage::CancelJob { job_id: number.to_string() };
        peer.send(message);
        if number < 2 {
            until("not read", || unread_by_agent(&peer) == 0);
        }
    }
    until("not there", || unread_by_agent(&peer) > 0);
    // … where a write that blocks finds it.
    large_entries(&agent.kept);
    until("the write read nothing", || unread_by_agent(&peer) == 0);
    for number in 0..3 {
        match agent.event() {
            Event::Message { message: ServerMessage::CancelJob { job_id }, .. } => {
                assert_eq!(job_id, number.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
}

fn the_last_pong_arrives(server: Server, setup: Setup) {
    let server = server.small_buffers();
    let mut setup = setup;
    setup.send_buffer_bytes = Some(8 * 1024);
    let agent = setup.start();
    let mut peer = server.session(durable());
    agent.up();
    for number in 0..3000 {
        peer.frame(Message::Ping(format!("{number:0100}").into()));
    }
    until("not read", || unread_by_agent(&peer) == 0);
    let last = Message::Pong(format!("{:0100}", 2999).into());
    while peer.websocket.read().unwrap() != last {}
    assert_eq!(agent.status.snapshot().sessions, 1);
}

#[test]
fn a_pong_that_did_not_fit_goes_out_later() {
    let server = Server::plain();
    let setup = Setup::new(server.url());
    the_last_pong_arrives(server, setup);
}

#[test]
fn a_pong_that_did_not_fit_goes_out_later_over_tls() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let setup = Setup::new(server.url()).ca(&file);
    the_last_pong_arrives(server, setup);
}

#[test]
fn new_traffic_keys() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let agent = Setup::new(server.url()).ca(&file).start();
    let mut peer = server.session(durable());
    agent.up();
    for round in 0..20 {
        let Pipe::Tls(tls) = peer.websocket.get_mut() else { panic!("no TLS") };
        tls.conn.refresh_traffic_keys().unwrap();
        peer.ping(&format!("ping {round}"));
        agent.kept.put([format!("entry {round}")]);
        let got = peer.entries(1);
        peer.confirm(got[0].0);
    }
    assert_eq!(agent.status.snapshot().sessions, 1);
}

#[test]
fn a_dispatch_that_is_stuck_ends_the_link() {
    let server = Server::plain();
    let mut setup = Setup::new(server.url()).timing(|t| {
        t.hand_on = Duration::from_millis(200);
        t.backoff_first = LIMIT;
        t.backoff_cap = LIMIT;
    });
    setup.events = 1;
    let agent = setup.start();
    let mut peer = server.session(ack());
    for number in 0..5 {
        peer.send(ServerMessage::CancelJob { job_id: number.to_string() });
    }
    peer.drain();
    until("no error", || agent.status.snapshot().last_error.is_some());
    let error = agent.status.snapshot().last_error.unwrap();
    assert!(error.contains("did not take the server's messages"), "{error}");
}

#[test]
fn a_server_that_says_goodbye() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.session(ack());
    agent.up();
    let frame = tungstenite::protocol::CloseFrame {
        code: tungstenite::protocol::frame::coding::CloseCode::Restart,
        reason: "back\nsoon".into(),
    };
    peer.websocket.close(Some(frame)).unwrap();
    let answered = loop {
        match peer.websocket.read() {
            Ok(Message::Close(frame)) => break frame,
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(u16::from(answered.unwrap().code), 1012);
    assert_eq!(agent.down(), "the server closed the link (code 1012: backsoon)");
}

#[test]
fn a_panic_in_a_link_thread_is_passed_on() {
    let server = Server::plain();
    let kept = Kept::new();
    let config = LinkConfig {
        transport: Transport::Loopback(server.address()),
        agent_key: Secret::new(KEY),
        tls: TlsSettings::default(),
        proxy: ProxySettings::default(),
        timing: timing(),
        send_buffer_bytes: None,
        register: Box::new(wire::Register::default),
        heartbeat: Box::new(|| panic!("a defect")),
    };
    let seq = crate::outbox::SeqCounter::open(kept.store.clone(), 1).unwrap();
    let (events, _received) = crossbeam_channel::bounded(8);
    let stop = Cancel::new().unwrap();
    let outbox = kept.outbox.clone();
    let thread = std::thread::spawn(move || {
        run(config, outbox, seq, Slots::new(), events, LinkStatus::new(), stop);
    });
    let _peer = server.session(ack());
    assert!(thread.join().is_err());
}
