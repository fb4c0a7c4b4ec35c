//! Named threads that are joined, and the token that asks them to stop.
//!
//! Every thread has a name and one owner that joins it. A [`Cancel`] is seen in three ways, because our
//! threads block in three places: as a flag, as a channel for `select!`, and as a descriptor for `poll(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::exit::Exit;
use crate::wake::Wake;

/// Spawns a thread called `name` (at most 15 bytes are visible in `ps`).
///
/// # Errors
/// When the system refuses another thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body)
}

/// As [`spawn`], for a thread that the process cannot do without: when it panics, the process ends with
/// [`Exit::Internal`], so that the supervisor starts it again. All state that counts is on disk.
///
/// # Errors
/// When the system refuses another thread.
pub fn spawn_vital<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let shown = name.to_owned();
    spawn(name, move || {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
            log::error!("thread {shown} died; ending the process so that it is started again");
            std::process::exit(Exit::Internal.code().into())
        })
    })
}

/// Gives this thread, the threads it spawns and the programs it starts a lower priority: `nice` from 0 to 19, never
/// a higher one than it has. The kernel derives the priority of disk access from it (schedulers such as BFQ obey).
///
/// # Errors
/// When the system refuses; the priority is as before.
pub fn be_nice(nice: u8) -> io::Result<()> {
    // Of the calling thread alone: on Linux priorities belong to threads, and new ones inherit them.
    let now = rustix::process::getpriority_process(None)?;
    let nice = i32::from(nice.min(19));
    if nice > now { Ok(rustix::process::setpriority_process(None, nice)?) } else { Ok(()) }
}

/// Stack of a thread: no recursion here goes deep, and zstd and SQLite keep their tables on the heap.
pub const STACK: usize = 512 * 1024;

/// Why something was asked to stop; the first reason given stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Somebody asked for it (CancelJob, an operator).
    Requested,
    /// The run's `timeout` passed.
    Timeout,
    /// The process is stopping; the work is resumed at the next start.
    Shutdown,
    /// A sibling stage failed; its error is the one to report.
    Sibling,
}

/// A value that cannot exist: the channel of a [`Cancel`] only ever disconnects.
#[derive(Debug)]
pub enum Never {}

/// A token that asks work to stop. Clones share one state.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    why: OnceLock<Why>,
    hold: Mutex<Option<Sender<Never>>>,
    done: Receiver<Never>,
    wake: Wake,
}

impl Cancel {
    /// A token that nobody has cancelled.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let (hold, done) = bounded(0);
        Ok(Self(Arc::new(Inner {
            why: OnceLock::new(),
            hold: Mutex::new(Some(hold)),
            done,
            wake: Wake::new()?,
        })))
    }

    /// Asks for the stop. Only the first reason counts; returns whether this was it.
    pub fn cancel(&self, why: Why) -> bool {
        let first = self.0.why.set(why).is_ok();
        drop(self.0.hold.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.0.wake.wake();
        first
    }

    /// Why the work should stop, if it should.
    pub fn why(&self) -> Option<Why> {
        self.0.why.get().copied()
    }

    /// Whether the work should stop.
    pub fn is_cancelled(&self) -> bool {
        self.why().is_some()
    }

    /// A channel that disconnects when the work should stop.
    pub fn done(&self) -> &Receiver<Never> {
        &self.0.done
    }

    /// Waits for `timeout` or the cancel, whichever is first; true if the wait was not cut short.
    pub fn sleep(&self, timeout: Duration) -> bool {
        matches!(self.0.done.recv_timeout(timeout), Err(RecvTimeoutError::Timeout))
    }
}

/// Readable once cancelled, and for ever after.
impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reason_stays_and_everyone_sees_it() {
        let cancel = Cancel::new().unwrap();
        let other = cancel.clone();
        let waiter = spawn("waiter", move || other.sleep(Duration::from_secs(60))).unwrap();
        assert!(!cancel.is_cancelled());
        assert!(cancel.cancel(Why::Timeout));
        assert!(!cancel.cancel(Why::Requested));
        assert_eq!(cancel.why(), Some(Why::Timeout));
        assert!(!waiter.join().unwrap(), "the wait was cut short");
    }

    #[test]
    fn nice_is_of_the_thread_and_what_it_starts_and_never_goes_back() {
        let before = rustix::process::getpriority_process(None).unwrap();
        let nice = spawn("nice", move || {
            be_nice(19).unwrap();
            be_nice(0).unwrap();
            let own = rustix::process::getpriority_process(None).unwrap();
            let threads =
                std::thread::spawn(|| rustix::process::getpriority_process(None).unwrap());
            let programs = std::process::Command::new("nice").output().unwrap().stdout;
            (own, threads.join().unwrap(), String::from_utf8(programs).unwrap())
        });
        assert_eq!(nice.unwrap().join().unwrap(), (19, 19, "19\n".to_owned()));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
    }
}
