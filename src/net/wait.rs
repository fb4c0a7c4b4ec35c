//! Waiting for a descriptor, bounded by a deadline and a cancel. Nothing here polls at an interval.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::clock::Deadline;
use crate::thread::Cancel;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The descriptor is ready, or broken: the next call on it will say.
    Ready,
    /// The deadline passed first.
    TimedOut,
    /// The cancel came first.
    Cancelled,
}

/// Waits until `fd` can be read, at most until the deadline or the cancel.
///
/// # Errors
/// The system's, from `poll(2)`.
pub fn wait_readable(
    fd: impl AsFd,
    deadline: Deadline,
    cancel: Option<&Cancel>,
) -> io::Result<Waited> {
    wait(fd, PollFlags::IN, deadline, cancel)
}

/// Waits until `fd` can be written, at most until the deadline or the cancel.
///
/// # Errors
/// The system's, from `poll(2)`.
pub fn wait_writable(
    fd: impl AsFd,
    deadline: Deadline,
    cancel: Option<&Cancel>,
) -> io::Result<Waited> {
    wait(fd, PollFlags::OUT, deadline, cancel)
}

/// Waits for any of several descriptors; true if at least one is ready, false if the deadline passed.
///
/// # Errors
/// The system's, from `poll(2)`.
pub fn wait_any(fds: &mut [PollFd<'_>], deadline: Option<Deadline>) -> io::Result<bool> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.remaining();
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn wait(
    fd: impl AsFd,
    flags: PollFlags,
    deadline: Deadline,
    cancel: Option<&Cancel>,
) -> io::Result<Waited> {
    let fd = fd.as_fd();
    let ready = match cancel {
        Some(cancel) => {
            let mut fds = [PollFd::new(&fd, flags), PollFd::new(cancel, PollFlags::IN)];
            let ready = wait_any(&mut fds, Some(deadline))?;
            if cancel.is_cancelled() {
                return Ok(Waited::Cancelled);
            }
            ready
        }
        None => wait_any(&mut [PollFd::new(&fd, flags)], Some(deadline))?,
    };
    Ok(if ready { Waited::Ready } else { Waited::TimedOut })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::thread::Why;

    #[test]
    fn ready_timed_out_cancelled() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let cancel = Cancel::new().unwrap();
        let soon = Deadline::after(Duration::from_millis(20));
        assert_eq!(wait_readable(&far, soon, Some(&cancel)).unwrap(), Waited::TimedOut);
        let late = Deadline::after(Duration::from_secs(60));
        assert_eq!(wait_writable(&far, late, Some(&cancel)).unwrap(), Waited::Ready);
        near.write_all(b"x").unwrap();
        assert_eq!(wait_readable(&far, late, None).unwrap(), Waited::Ready);
        cancel.cancel(Why::Shutdown);
        assert_eq!(wait_readable(&far, late, Some(&cancel)).unwrap(), Waited::Cancelled);
    }

    #[test]
    fn a_closed_peer_counts_as_ready() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(near);
        let late = Deadline::after(Duration::from_secs(60));
        assert_eq!(wait_readable(&far, late, None).unwrap(), Waited::Ready);
    }
}
