//! An eventfd: lets one thread wake another out of `poll(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// A level-triggered wake-up: readable from [`Wake::wake`] until [`Wake::drain`].
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A wake-up that is not set.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable. Never blocks; a counter that is already full is as good as set.
    pub fn wake(&self) {
        // The one possible error, EAGAIN, means that the counter is saturated and thus readable.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable again; call it before looking at what the wake-up announced.
    pub fn drain(&self) {
        let mut counter = [0u8; 8];
        // EAGAIN: nothing was set.
        let _ = rustix::io::read(&self.0, &mut counter);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(wake: &Wake) -> bool {
        let mut fds = [PollFd::new(wake, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn stays_set_until_drained() {
        let wake = Wake::new().unwrap();
        assert!(!readable(&wake));
        wake.wake();
        wake.wake();
        assert!(readable(&wake));
        assert!(readable(&wake));
        wake.drain();
        assert!(!readable(&wake));
    }
}
