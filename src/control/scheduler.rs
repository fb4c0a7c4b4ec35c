//! The thread that drives the plane's decisions: it looks at the clock so that they need not.
//!
//! It sleeps until the next time that matters or a nudge. A suspended machine and a clock that was set
//! stop neither, because it never sleeps for longer than [`LOOK`].

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::select;

use super::plane::Plane;
use crate::clock::unix_ms;
use crate::thread::{Cancel, Why, spawn_vital};

/// The longest sleep: waits count time in which the machine runs, schedules count the time of day.
const LOOK: Duration = Duration::from_secs(60);

/// The shortest, so that no decision that is due at once for ever can spin.
const BREATH: Duration = Duration::from_millis(50);

/// The running thread; dropping it stops it.
#[derive(Debug)]
pub struct Scheduler {
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no thread or descriptor left.
    pub fn start(plane: Plane) -> io::Result<Self> {
        let stop = Cancel::new()?;
        let seen = stop.clone();
        let thread = spawn_vital("schedule", move || run(&plane, &seen))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops and joins the thread.
    pub fn stop(&mut self) {
        self.stop.cancel(Why::Shutdown);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the scheduler panicked");
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(plane: &Plane, stop: &Cancel) {
    loop {
        let again_ms = plane.tick(unix_ms());
        if !stop.sleep(BREATH) {
            return;
        }
        let wait = Duration::from_millis(again_ms.saturating_sub(unix_ms())).min(LOOK);
        select! {
            recv(plane.nudged()) -> _ => {}
            recv(stop.done()) -> _ => return,
            default(wait) => {}
        }
    }
}
