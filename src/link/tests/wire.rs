//! The wire without threads, and the turns.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use crossbeam_channel::bounded;
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

use super::super::socket::{NoTurn, Sent, Socket, Wire, websocket_config};
use super::super::stream::Stream;
use super::support::*;
use crate::clock::Deadline;

fn pair() -> (Wire, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 8 * 1024).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nonblocking(true).unwrap();
    let (far, _) = listener.accept().unwrap();
    let config = Some(websocket_config());
    (Wire::new(WebSocket::from_raw_socket(Stream::plain(near), Role::Client, config)), far)
}

fn late() -> Deadline {
    Deadline::after(LIMIT)
}

#[test]
fn a_pass_ends_even_where_no_message_does() {
    let (mut wire, mut far) = pair();
    let writer = std::thread::spawn(move || {
        // An unfinished message, then nothing but empty pieces of it.
        far.write_all(&[0x02, 0x00]).unwrap();
        far.write_all(&[0x00, 0x00].repeat(300 * 1024)).unwrap();
        far
    });
    let mut starved = 0;
    let deadline = late();
    while starved < 2 {
        assert!(!deadline.passed(), "the passes never ended early");
        let pass = wire.read_pass();
        assert!(pass.end.is_none() && pass.frames.is_empty(), "{pass:?}");
        if pass.more {
            starved += 1;
        } else {
            crate::net::wait_readable(wire.stream(), late(), None).unwrap();
        }
    }
    while !writer.is_finished() {
        wire.read_pass();
    }
    writer.join().unwrap();
}

#[test]
fn a_pass_has_a_limited_number_of_frames() {
    let (mut wire, mut far) = pair();
    far.write_all(&[0x89, 0x00].repeat(100)).unwrap();
    let mut counts = Vec::new();
    let mut more = false;
    while counts.iter().sum::<usize>() < 100 {
        if !more {
            crate::net::wait_readable(wire.stream(), late(), None).unwrap();
        }
        let pass = wire.read_pass();
        assert!(pass.frames.len() < 32 || pass.more);
        more = pass.more;
        counts.push(pass.frames.len());
    }
    assert!(counts.iter().all(|count| *count <= 32), "{counts:?}");
}

#[test]
fn pongs_do_not_pile_up() {
    let (mut wire, mut far) = pair();
    rustix::net::sockopt::set_socket_send_buffer_size(wire.stream().tcp(), 8 * 1024).unwrap();
    far.set_write_timeout(Some(LIMIT)).unwrap();
    // Nobody reads the answers; what the kernel holds of them is not ours.
    let mut ping = vec![0x89, 100];
    ping.resize(102, b'p');
    let (mut sent, mut answered) = (0, Sent::All);
    while answered == Sent::All || sent < 5_000 {
        far.write_all(&ping).unwrap();
        sent += 1;
        let pass = wire.read_pass();
        assert!(pass.end.is_none(), "{pass:?}");
        answered = wire.flush().unwrap();
        assert!(sent < 100_000, "never blocked");
    }
    // A message still fits behind them.
    assert_eq!(wire.put(Message::binary(vec![7; 100_000])).unwrap(), Sent::Blocked);
    let mut got = 0;
    far.set_nonblocking(true).unwrap();
    while wire.flush().unwrap() == Sent::Blocked {
        got += far.read(&mut [0; 4096]).unwrap_or(0);
    }
    // The message, the room for pongs and the kernel's buffers; far less than the pongs to all pings.
    assert!(got < 100_000 + 64 * 1024 + 64 * 1024, "{got} for {sent} pings");
}

#[test]
fn turns_are_had_in_the_order_they_were_asked_for() {
    let (wire, _far) = pair();
    let socket = Arc::new(Socket::new(wire).unwrap());
    let (order, served) = bounded(10);
    let mut threads = Vec::new();
    socket
        .turn(late(), |_| {
            for number in 0..5 {
                let (order, asking) = (order.clone(), Arc::clone(&socket));
                threads.push(std::thread::spawn(move || {
                    asking.turn(late(), |_| order.send(number).unwrap()).unwrap();
                }));
                until("nobody asked", || socket.asked() == number + 2);
            }
        })
        .unwrap();
    // Whoever had one asks behind the others.
    socket.turn(late(), |_| order.send(99).unwrap()).unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(served.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 99]);
}

#[test]
fn a_missed_turn_ends_it_for_everybody() {
    let (wire, _far) = pair();
    let socket = Socket::new(wire).unwrap();
    socket
        .turn(late(), |_| {
            let soon = Deadline::after(std::time::Duration::from_millis(20));
            assert_eq!(socket.turn(soon, |_| ()).unwrap_err(), NoTurn::TimedOut);
            assert_eq!(socket.turn(late(), |_| ()).unwrap_err(), NoTurn::Over);
        })
        .unwrap();
    assert_eq!(socket.turn(late(), |_| ()).unwrap_err(), NoTurn::Over);
}
