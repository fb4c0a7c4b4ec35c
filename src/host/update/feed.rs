//! What a service manager hears from the process that watches a trial: that it lives, so that the manager's watchdog does
//! not end the whole service before the trial's own time is over. The version on trial speaks for itself (sd_notify(3)).

use std::env;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use crate::net::notify_address;

/// Never more often.
const SHORTEST: Duration = Duration::from_millis(100);

/// The manager, and when it next wants to hear something.
pub struct Feeder {
    socket: UnixDatagram,
    address: SocketAddr,
    every: Duration,
    next: Instant,
}

impl Feeder {
    /// `None` where nobody listens or has a watchdog.
    pub fn of_environment() -> Option<Self> {
        let name = env::var("NOTIFY_SOCKET").ok()?;
        let address = notify_address(&name).ok()?;
        let usec: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        let every = (Duration::from_micros(usec) / 2).max(SHORTEST);
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, address, every, next: Instant::now() })
    }

    /// When the next one is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Sends it if it is due. A manager that does not take it is not waited for.
    pub fn feed(&mut self, now: Instant) {
        if now >= self.next {
            self.next = now + self.every;
            let _ = self.socket.send_to_addr(b"WATCHDOG=1", &self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feeds_when_it_is_due_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let mut feeder = Feeder {
            socket: UnixDatagram::unbound().unwrap(),
            address: SocketAddr::from_pathname(&path).unwrap(),
            every: Duration::from_secs(5),
            next: now,
        };
        let heard = || {
            let mut bytes = [0; 32];
            manager.recv(&mut bytes).ok().map(|n| bytes[..n].to_vec())
        };
        feeder.feed(now);
        assert_eq!(heard().as_deref(), Some(&b"WATCHDOG=1"[..]));
        feeder.feed(now + Duration::from_secs(4));
        assert_eq!(heard(), None);
        feeder.feed(feeder.next());
        assert!(heard().is_some());
    }
}
