//! A server that is wrong, or means harm.

use tungstenite::Message;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::super::*;
use super::support::*;
use crate::wire::{MAX_MESSAGE_BYTES, ServerMessage};

#[test]
fn odd_frames_are_tolerated() {
    let ca = Ca::new();
    let (server, file) = (Server::tls(&ca), ca.file());
    let agent = Setup::new(server.url()).ca(&file).start();
    let mut peer = server.session(ack());
    agent.up();
    peer.frame(Message::text("hello"));
    peer.frame(Message::binary(vec![]));
    peer.frame(Message::binary(vec![0xff; 100]));
    peer.frame(Message::Pong("what?".into()));
    peer.frame(Message::Pong(u64::MAX.to_be_bytes().to_vec().into()));
    // Payload 99, as a later version might have; and the reserved 55.
    peer.frame(Message::binary(vec![0x9a, 0x06, 0x00]));
    peer.frame(Message::binary(vec![0xba, 0x03, 0x00]));
    peer.send(ServerMessage::RegisterAck(ack()));
    peer.ping("still here");
    assert_eq!(agent.status.snapshot().sessions, 1);
    assert!(agent.events.is_empty());
}

#[test]
fn the_largest_message_is_taken_and_a_larger_one_ends_the_link() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.session(ack());
    agent.up();
    let job_id = "x".repeat(MAX_MESSAGE_BYTES - 100);
    peer.send(ServerMessage::CancelJob { job_id: job_id.clone() });
    match agent.event() {
        Event::Message { message: ServerMessage::CancelJob { job_id: got }, .. } => {
            assert_eq!(got.len(), job_id.len());
        }
        other => panic!("{other:?}"),
    }
    let _ = peer.websocket.send(Message::binary(vec![0; MAX_MESSAGE_BYTES + 1]));
    let reason = agent.down();
    assert!(reason.contains("4 MiB"), "{reason}");
    server.session(ack());
    agent.up();
}

#[test]
fn fragments_that_grow_too_large_end_the_link() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.session(ack());
    agent.up();
    let mut opcode = OpCode::Data(Data::Binary);
    for _ in 0..100 {
        let frame = Frame::message(vec![0; 64 * 1024], opcode, false);
        if peer.websocket.send(Message::Frame(frame)).is_err() {
            break;
        }
        opcode = OpCode::Data(Data::Continue);
    }
    let reason = agent.down();
    assert!(reason.contains("4 MiB"), "{reason}");
}

/// Sends `frame` as fast as it can, and meanwhile an entry of the agent must get through.
fn flood(mut first: Option<Frame>, frame: impl Fn() -> Message + Send + 'static) {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let peer = server.session(durable());
    agent.up();
    let events = agent.events.clone();
    let sink = std::thread::spawn(move || events.iter().count());
    // The server's two directions, each with a thread: one floods, one reads.
    let writer = peer.tcp().try_clone().unwrap();
    let mut reader = peer;
    let flooder = std::thread::spawn(move || {
        use tungstenite::protocol::{Role, WebSocket};
        let mut writer = WebSocket::from_raw_socket(writer, Role::Server, None);
        if let Some(first) = first.take() {
            writer.send(Message::Frame(first)).unwrap();
        }
        while writer.send(frame()).is_ok() {}
    });
    for number in 0..20 {
        agent.kept.put([format!("entry {number}")]);
        assert_eq!(reader.entries(1)[0].2, format!("entry {number}"));
    }
    let _ = reader.tcp().shutdown(std::net::Shutdown::Both);
    flooder.join().unwrap();
    assert_eq!(agent.status.snapshot().sessions, 1);
    drop(agent);
    sink.join().unwrap();
}

#[test]
fn a_flood_of_pings() {
    flood(None, || Message::Ping("p".repeat(100).into()));
}

#[test]
fn a_flood_of_pongs() {
    flood(None, || Message::Pong(7u64.to_be_bytes().to_vec().into()));
}

#[test]
fn a_flood_of_text() {
    flood(None, || Message::text("hello"));
}

#[test]
fn a_flood_of_commands() {
    let bytes = wire::encode_server(
        wire::Header::default(),
        ServerMessage::CancelJob { job_id: "j".to_owned() },
    );
    flood(None, move || Message::binary(bytes.clone()));
}

#[test]
fn a_flood_of_empty_fragments() {
    let first = Frame::message(vec![], OpCode::Data(Data::Binary), false);
    flood(Some(first), || {
        Message::Frame(Frame::message(vec![], OpCode::Data(Data::Continue), false))
    });
}

#[test]
fn a_flood_of_messages_to_acknowledge() {
    let server = Server::plain();
    let agent = Setup::new(server.url()).start();
    let mut peer = server.session(ack());
    agent.up();
    // More than are ever kept, some of them huge; the link must live, the rest does not matter.
    let (mut head, tail) = ("x".repeat(1 << 20), "y".to_owned());
    for number in 0..500 {
        let id = if number % 100 == 0 { head.clone() } else { tail.clone() };
        peer.send_with(id, ServerMessage::Ping { ts_ms: 1 });
    }
    head.clear();
    // Once this is through, so are the pings before it; those that were kept are answered.
    peer.send(ServerMessage::CancelJob { job_id: "j".to_owned() });
    assert!(matches!(agent.event(), Event::Message { .. }));
    peer.ping("y");
    agent.kept.put(["through".to_owned()]);
    assert_eq!(peer.entries(1)[0].2, "through");
    peer.ping("last");
}
