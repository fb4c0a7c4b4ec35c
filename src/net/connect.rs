//! TCP connect over all addresses of a name.
//!
//! An address that is refused gives way to the next at once. One that says nothing (a black-holed IPv6,
//! most often) gets a head start of [`HEAD_START`], then the next is tried beside it; the first that answers
//! wins and the rest are closed.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::resolve::resolve;
use super::{NetError, wait_any};
use crate::clock::Deadline;
use crate::thread::Cancel;

/// How long an address is alone in the race.
const HEAD_START: Duration = Duration::from_millis(300);

/// Looks up `host` and connects to it. The stream is non-blocking.
///
/// # Errors
/// When no address takes the connection until the deadline, or the cancel comes first.
pub fn connect(
    host: &str,
    port: u16,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<TcpStream, NetError> {
    let addresses = resolve(host, port, deadline, cancel)?;
    connect_any(host, &addresses, deadline, cancel)
}

/// Connects to the first of `addresses` that answers; `host` is for errors only. The stream is non-blocking.
///
/// # Errors
/// When no address takes the connection until the deadline, or the cancel comes first.
pub fn connect_any(
    host: &str,
    addresses: &[SocketAddr],
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<TcpStream, NetError> {
    let port = addresses.first().map_or(0, SocketAddr::port);
    let mut waiting = addresses.iter();
    let mut race: Vec<OwnedFd> = Vec::new();
    let mut last_error = None;
    loop {
        if let Some(why) = cancel.why() {
            return Err(NetError::Cancelled(why));
        }
        if deadline.passed() {
            return Err(NetError::ConnectTimeout { host: host.to_owned(), port });
        }
        match waiting.next().map(start) {
            Some(Ok(socket)) => race.push(socket),
            Some(Err(error)) => {
                last_error = Some(error);
                continue;
            }
            None => {}
        }
        if race.is_empty() {
            let source = last_error.unwrap_or_else(|| Errno::ADDRNOTAVAIL.into());
            return Err(NetError::Connect { host: host.to_owned(), port, source });
        }
        let step =
            if waiting.len() == 0 { deadline } else { deadline.min(Deadline::after(HEAD_START)) };
        match settle(&mut race, step, cancel) {
            Ok(Some(socket)) => return finish(socket),
            Ok(None) => {}
            Err(error) => last_error = Some(error),
        }
    }
}

/// Starts one connect; a refusal may be known at once.
fn start(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, address) {
        // An interrupted connect goes on like one in progress.
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Waits until one of the race is decided: the winner, nothing yet, or why the last of those that lost did.
fn settle(
    race: &mut Vec<OwnedFd>,
    until: Deadline,
    cancel: &Cancel,
) -> io::Result<Option<OwnedFd>> {
    let mut fds: Vec<PollFd<'_>> =
        race.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
    fds.push(PollFd::new(cancel, PollFlags::IN));
    wait_any(&mut fds, Some(until))?;
    let decided: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(fds);
    let mut last_error = None;
    for index in (0..race.len()).rev().filter(|index| decided[*index]) {
        let socket = race.remove(index);
        match sockopt::socket_error(socket.as_fd())? {
            Ok(()) => return Ok(Some(socket)),
            Err(error) => last_error = Some(error.into()),
        }
    }
    last_error.map_or(Ok(None), Err)
}

fn finish(socket: OwnedFd) -> Result<TcpStream, NetError> {
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).map_err(NetError::System)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::thread::Why;

    fn late() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    #[test]
    fn connects_and_is_non_blocking() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cancel = Cancel::new().unwrap();
        let mut stream = connect("127.0.0.1", port, late(), &cancel).unwrap();
        let error = io::Read::read(&mut stream, &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_name_is_looked_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cancel = Cancel::new().unwrap();
        connect("localhost", port, late(), &cancel).unwrap();
    }

    #[test]
    fn a_refusal_is_told() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let cancel = Cancel::new().unwrap();
        let error = connect("127.0.0.1", gone.port(), late(), &cancel).unwrap_err();
        assert!(matches!(error, NetError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(error.retry());
    }

    #[test]
    fn the_next_address_is_tried() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = ["[::1]:1".parse().unwrap(), gone, listener.local_addr().unwrap()];
        let cancel = Cancel::new().unwrap();
        let stream = connect_any("test", &addresses, late(), &cancel).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }

    /// A full accept queue drops the SYN: the nearest thing to a black hole on loopback.
    fn black_hole() -> (OwnedFd, SocketAddr, Vec<TcpStream>) {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let socket = socket.unwrap();
        rustix::net::bind(&socket, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let mut fill = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            fill.push(stream);
            assert!(fill.len() < 64, "the accept queue never filled");
        }
        (listener.into(), address, fill)
    }

    #[test]
    fn a_silent_address_does_not_hold_up_the_next() {
        let (_hole, silent, _fill) = black_hole();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cancel = Cancel::new().unwrap();
        let stream =
            connect_any("test", &[silent, listener.local_addr().unwrap()], late(), &cancel)
                .unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[test]
    fn deadline_and_cancel_end_a_silent_connect() {
        let (_hole, silent, _fill) = black_hole();
        let cancel = Cancel::new().unwrap();
        let soon = Deadline::after(Duration::from_millis(50));
        let error = connect_any("test", &[silent], soon, &cancel).unwrap_err();
        assert!(matches!(error, NetError::ConnectTimeout { .. }), "{error}");
        let other = cancel.clone();
        let canceller = std::thread::spawn(move || other.cancel(Why::Shutdown));
        let error = connect_any("test", &[silent], late(), &cancel).unwrap_err();
        assert!(matches!(error, NetError::Cancelled(Why::Shutdown)), "{error}");
        canceller.join().unwrap();
    }
}
