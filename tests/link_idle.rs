//! An idle link sleeps: in a process of its own, so that the only link threads are this test's.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::TcpListener;
use std::time::Duration;

use backupy::clock::unix_ms;
use backupy::config::{ProxySettings, TlsSettings};
use backupy::link::{self, Event, LinkConfig, LinkStatus, Slots, Timing, Transport};
use backupy::outbox::{Outbox, OutboxLimits, SeqCounter};
use backupy::secret::Secret;
use backupy::store::{Space, Store, StoreKeys};
use backupy::thread::{Cancel, Why};
use backupy::wire::{self, Header, RegisterAck, ServerMessage};

/// Context switches so far of the threads whose names start with `link-`.
fn switches() -> (usize, u64) {
    let mut found = (0, 0);
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or("0").trim().to_owned()
        };
        if field("Name:").starts_with("link-") {
            let voluntary: u64 = field("voluntary_ctxt_switches:").parse().unwrap();
            found = (found.0 + 1, found.1 + voluntary);
        }
    }
    found
}

#[test]
fn an_idle_link_does_not_wake_up() {
    let dir = tempfile::tempdir().unwrap();
    let keys = StoreKeys { current: Secret::new("k"), previous: None };
    let store = Store::open(&dir.path().join("store"), &Space::AGENT, &keys).unwrap();
    let outbox = Outbox::open(store.clone(), OutboxLimits::default()).unwrap();
    let seq = SeqCounter::open(store, unix_ms()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = LinkConfig {
        transport: Transport::Loopback(listener.local_addr().unwrap()),
        agent_key: Secret::new("bkpy_test_ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"),
        tls: TlsSettings::default(),
        proxy: ProxySettings::default(),
        timing: Timing::default(),
        send_buffer_bytes: None,
        register: Box::new(wire::Register::default),
        heartbeat: Box::new(wire::Heartbeat::default),
    };
    let (events, received) = crossbeam_channel::bounded(8);
    let stop = Cancel::new().unwrap();
    let agent = std::thread::spawn({
        let stop = stop.clone();
        move || link::run(config, outbox, seq, Slots::new(), events, LinkStatus::new(), stop)
    });

    let (tcp, _) = listener.accept().unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut peer = tungstenite::accept(tcp).unwrap();
    peer.read().unwrap();
    let ack = RegisterAck { heartbeat_interval_sec: 3600, ..RegisterAck::default() };
    let ack = wire::encode_server(Header::default(), ServerMessage::RegisterAck(ack));
    peer.send(tungstenite::Message::binary(ack)).unwrap();
    peer.read().unwrap();
    assert!(matches!(received.recv_timeout(Duration::from_secs(30)).unwrap(), Event::Up { .. }));

    // The heartbeat is through, so the threads are on their way to sleep.
    std::thread::sleep(Duration::from_millis(500));
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    let after = switches();
    assert_eq!(before.0, 3);
    assert_eq!(after, before, "nobody had a reason to wake up");

    stop.cancel(Why::Shutdown);
    while peer.read().is_ok() {}
    agent.join().unwrap();
}
