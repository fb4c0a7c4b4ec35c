//! A session that goes well: what is sent, in which order, and what is confirmed.

use std::time::Instant;

use super::super::*;
use super::support::*;
use crate::outbox::OutboxLimits;
use crate::wire::{AgentMessage, Container, JobStatus, JobUpdate, ServerMessage};

fn texts(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("entry {n}")).collect()
}

#[test]
fn heartbeats_at_the_servers_interval() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.session(wire::RegisterAck { heartbeat_interval_sec: 1, ..ack() });
    let mut heartbeat =
        || peer.find(|_, message| matches!(message, AgentMessage::Heartbeat(_)).then(Instant::now));
    let (first, second, third) = (heartbeat(), heartbeat(), heartbeat());
    assert!(second - first > Duration::from_millis(700), "{:?}", second - first);
    assert!(third - first > Duration::from_millis(1700), "{:?}", third - first);
    agent.up();
}

#[test]
fn pings_are_answered() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let _agent = Setup::new(server.url()).ca(&file).start();
    let mut peer = server.session(ack());
    for number in 0..100 {
        peer.ping(&format!("ping {number}"));
    }
    peer.frame(tungstenite::Message::Ping("hello".into()));
    loop {
        if let tungstenite::Message::Pong(payload) = peer.websocket.read().unwrap() {
            assert_eq!(&payload[..], b"hello");
            break;
        }
    }
}

#[test]
fn commands_reach_dispatch_in_order() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.session(ack());
    agent.up();
    for number in 0..200 {
        let message = ServerMessage::CancelJob { job_id: format!("{number}") };
        peer.send_with(format!("c{number}"), message);
    }
    for number in 0..200 {
        match agent.event() {
            Event::Message { header, message: ServerMessage::CancelJob { job_id } } => {
                assert_eq!(header.correlation_id, format!("c{number}"));
                assert_eq!(job_id, format!("{number}"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn storage_confirmed_by_acks() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let agent = Setup::new(server.url()).ca(&file).start();
    agent.kept.put(texts(0..10));
    let mut peer = server.session(durable());
    assert!(agent.up().durable_acks);
    let got = peer.entries(10);
    assert!(got.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1), "{got:?}");
    assert_eq!(agent.outbox.depth(), 10);
    peer.confirm(got[6].0);
    until("seven are confirmed", || agent.outbox.depth() == 3);
    drop(peer);

    // The rest is sent again, under new numbers and old ids; what comes later follows.
    agent.kept.put(texts(10..12));
    let mut peer = server.session(durable());
    let again = peer.entries(5);
    for (old, new) in got[7..].iter().zip(&again) {
        assert_eq!((old.1, &old.2), (new.1, &new.2));
        assert!(new.0 > got[9].0);
    }
    assert_eq!(again[4].2, "entry 11");
    peer.confirm(again[4].0);
    until("all are confirmed", || agent.outbox.depth() == 0);
}

#[test]
fn confirmations_that_cannot_be_are_ignored() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    agent.kept.put(texts(0..3));
    let mut peer = server.session(durable());
    let got = peer.entries(3);
    peer.confirm(got[2].0 + 1_000_000);
    peer.ping("behind it");
    assert_eq!(agent.outbox.depth(), 3);
    drop(peer);

    // A server that announced no confirmations cannot make any.
    let mut peer = server.accept();
    peer.recv();
    peer.send(ServerMessage::RegisterAck(ack()));
    peer.confirm(u64::MAX);
    peer.ping("behind it");
    peer.ping("and again");
}

#[test]
fn receipt_confirmed_by_pongs() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    agent.kept.put(texts(0..100));
    agent.kept.put_result("run");
    let mut peer = server.session(ack());
    // Reading answers the pings.
    peer.entries(100);
    let run_id = |_: &wire::Header, message| match message {
        AgentMessage::JobUpdate(update) => Some(update.run_id),
        _ => None,
    };
    assert_eq!(peer.find(run_id), "run");
    peer.ping("so that the last pong is out");
    peer.ping("and answered");
    until("all are received", || agent.outbox.depth() == 0);
    drop(peer);

    // A pong proves no storage: the result comes once more, the log events do not.
    let mut peer = server.session(ack());
    let again = peer.find(|header, message| match message {
        AgentMessage::Log(log) => panic!("{log:?}"),
        AgentMessage::JobUpdate(update) => Some((header.entry_id, update.run_id)),
        _ => None,
    });
    assert_eq!(again, (101, "run".to_owned()));
}

#[test]
fn more_than_fits_in_flight() {
    let server = Server::plain();
    let mut setup = Setup::new(server.url());
    setup.kept = Kept::with(OutboxLimits { in_flight: 7, ..OutboxLimits::default() });
    setup.kept.put(texts(0..100));
    let agent = setup.start();
    let mut peer = server.session(durable());
    for number in 0..100 {
        let got = peer.entries(1);
        assert_eq!(got[0].2, format!("entry {number}"));
        peer.confirm(got[0].0);
    }
    until("all are confirmed", || agent.outbox.depth() == 0);
}

#[test]
fn an_entry_goes_out_at_once() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.session(durable());
    agent.up();
    for number in 0..50 {
        agent.kept.put(texts(number..number + 1));
        assert_eq!(peer.entries(1)[0].2, format!("entry {number}"));
    }
}

fn progress(step: &str, percent: u32) -> JobUpdate {
    JobUpdate {
        job_id: "j".to_owned(),
        run_id: "r".to_owned(),
        status: JobStatus::Running,
        progress_percent: percent,
        current_step: step.to_owned(),
        error_message: String::new(),
    }
}

#[test]
fn every_step_and_the_last_percentage() {
    let server = Server::plain();
    let agent =
        Setup::new(server.url()).timing(|t| t.progress = Duration::from_millis(200)).start();
    let mut peer = server.session(ack());
    agent.up();
    let slots = agent.slots.clone();
    for step in ["validating", "dumping"] {
        slots.put_progress("r", progress(step, 0));
    }
    for percent in 1..=90 {
        slots.put_progress("r", progress("dumping", percent));
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&("dumping".to_owned(), 90)) {
        seen.push(peer.find(|_, message| match message {
            AgentMessage::JobUpdate(u) => Some((u.current_step, u.progress_percent)),
            _ => None,
        }));
    }
    assert_eq!(seen[..2], [("validating".to_owned(), 0), ("dumping".to_owned(), 0)]);
    assert!(seen.len() < 10, "{seen:?}");
}

#[test]
fn discovery_in_every_session() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    agent.slots.put_discovery(vec![Container::default()]);
    for _ in 0..2 {
        let mut peer = server.session(ack());
        let found = peer.find(|_, message| match message {
            AgentMessage::Discovery(found) => Some(found.len()),
            _ => None,
        });
        assert_eq!(found, 1);
    }
}

#[test]
fn a_stop_sends_what_is_left_and_says_goodbye() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let agent = Setup::new(server.url()).ca(&file).start();
    let mut peer = server.session(durable());
    agent.up();
    agent.kept.put(texts(0..150));
    let (kept, stop) = (agent.kept.clone(), agent.stop.clone());
    stop.cancel(crate::thread::Why::Shutdown);
    for _ in 0..150 {
        let got = peer.entries(1);
        peer.confirm(got[0].0);
    }
    let end = peer.try_recv().unwrap_err();
    assert!(matches!(end, tungstenite::Error::ConnectionClosed), "{end}");
    peer.drain();
    agent.finish().unwrap();
    assert_eq!(kept.outbox.depth(), 0);
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let server = Server::plain();
    let agent =
        Setup::new(server.url()).timing(|t| t.stop_flush = Duration::from_millis(200)).start();
    let mut peer = server.session(durable());
    agent.kept.put(texts(0..3));
    peer.entries(3);
    // Never confirmed, and the goodbye is never answered.
    agent.finish().unwrap();
}

#[test]
fn backoff_grows_and_a_session_resets_it() {
    let server = Server::plain();
    let setup = Setup::new(server.url()).timing(|t| {
        t.backoff_first = Duration::from_millis(50);
        t.backoff_cap = Duration::from_millis(200);
    });
    let start = Instant::now();
    let agent = setup.start();
    for least in [0, 40, 120, 280, 440] {
        drop(server.accept_tcp());
        let passed = start.elapsed();
        assert!(passed >= Duration::from_millis(least), "{passed:?} < {least} ms");
    }
    drop(server.session(ack()));
    agent.up();
    assert!(agent.down().contains("dropped"));
    server.session(ack());
    agent.up();
    let snapshot = agent.status.snapshot();
    assert_eq!((snapshot.sessions, snapshot.failed_attempts), (2, 5));
}

/// What a watchdog goes by: a session promises to move on, an end promises nothing.
#[test]
fn the_link_promises_to_move_on() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let _peer = server.session(ack());
    agent.up();
    let status = agent.status.clone();
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    assert_eq!(status.late(now + Duration::from_secs(60)), None);
    assert!(status.late(now + hour).is_some(), "a reader that hangs would show");
    agent.finish().unwrap();
    assert_eq!(status.late(now + hour), None, "nobody is expected to move any more");
}
