//! The thread that drives the plane's decisions: it looks at the clock so that they need not.
//!
//! It sleeps until the next time that matters or a nudge. A suspended machine and a clock that was set
//! stop neither, because it never sleeps for longer than [`LOOK`].

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::select;

use super::plane::Plane;
use crate::clock::{jump_ms, unix_ms};
use crate::pulse::Pulse;
use crate::thread::{Cancel, Why, spawn_vital};

/// The longest sleep: waits count time in which the machine runs, schedules count the time of day.
const LOOK: Duration = Duration::from_secs(60);

/// The longest round that is taken for work: removing what the keep rules let go, from a bucket far away.
const ROUND: Duration = Duration::from_secs(3 * 3600);

/// The shortest, so that no decision that is due at once for ever can spin.
const BREATH: Duration = Duration::from_millis(50);

/// The running thread; dropping it stops it.
#[derive(Debug)]
pub struct Scheduler {
    stop: Cancel,
    pulse: Pulse,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no thread or descriptor left.
    pub fn start(plane: Plane) -> io::Result<Self> {
        let stop = Cancel::new()?;
        let (seen, pulse) = (stop.clone(), Pulse::default());
        let beating = pulse.clone();
        let thread = spawn_vital("schedule", move || run(&plane, &beating, &seen))?;
        Ok(Self { stop, pulse, thread: Some(thread) })
    }

    /// The thread's promise to come round again.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
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

fn run(plane: &Plane, pulse: &Pulse, stop: &Cancel) {
    let mut seen = (Instant::now(), unix_ms());
    loop {
        pulse.within(ROUND);
        let now = (Instant::now(), unix_ms());
        let jump_ms = jump_ms(seen.1, now.1, now.0.saturating_duration_since(seen.0));
        if jump_ms != 0 {
            plane.clock_jumped(jump_ms, now.1);
        }
        seen = now;
        let again_ms = plane.tick(now.1);
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
