//! `link-beat`: when the heartbeat goes out, and how often the progress within a step does.

use std::time::{Duration, Instant};

use crossbeam_channel::{after, never, select};

use super::session::Session;
use super::{LinkError, Timing};

/// The interval to use for what the server asks: 0 means the default, and what is absurd is held between
/// [`Timing::heartbeat_min`] and [`Timing::heartbeat_max`].
pub(super) fn interval(timing: &Timing, asked_sec: u32) -> Duration {
    if asked_sec == 0 {
        return timing.heartbeat;
    }
    let asked = Duration::from_secs(asked_sec.into());
    let held = asked.clamp(timing.heartbeat_min, timing.heartbeat_max);
    if held != asked {
        log::warn!("the server wants a heartbeat every {asked:?}; using {held:?}");
    }
    held
}

/// The thread.
pub(super) fn run(session: &Session<'_>, interval: Duration) -> Result<(), LinkError> {
    let pause = session.config.timing.progress;
    let mut beat = after(Duration::ZERO);
    // When percentages may go out again; never, while none waits.
    let mut due = never::<Instant>();
    let mut released: Option<Instant> = None;
    loop {
        select! {
            recv(session.over.done()) -> _ => return Ok(()),
            recv(beat) -> _ => {
                beat = after(interval);
                session.urgent.heartbeat((session.config.heartbeat)());
            }
            recv(session.slots.percent()) -> _ => {
                let since = released.map_or(pause, |released| released.elapsed());
                due = after(pause.saturating_sub(since));
            }
            recv(due) -> _ => {
                due = never();
                released = Some(Instant::now());
                session.slots.release();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_intervals_are_held() {
        let timing = Timing::default();
        let seconds = |asked| interval(&timing, asked).as_secs();
        assert_eq!(seconds(0), 30);
        assert_eq!(seconds(1), 1);
        assert_eq!(seconds(45), 45);
        assert_eq!(seconds(u32::MAX), 3600);
    }
}
