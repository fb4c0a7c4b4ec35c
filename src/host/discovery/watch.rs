//! The thread's own work: follow one daemon after the other, for they restart, and look when [`Pace`] says so.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::look::CONNECT;
use super::pace::{Pace, Scope};
use super::report::DockerState;
use super::{Finder, OnReport, Report};
use crate::clock::Deadline;
use crate::docker::{Bounds, Docker, DockerError, Events, News};
use crate::thread::Cancel;

/// A stream of events that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(30);
/// Pause of a listener that hears nothing but noise.
const DEAF: Duration = Duration::from_secs(1);
/// Pieces of news that are taken together before a look.
const MAX_TOGETHER: u32 = 64;

/// What the thread owns.
pub(super) struct Watch {
    finder: Finder,
    on_report: OnReport,
    stop: Cancel,
    pace: Pace,
    /// How the daemon stood when the log was last told.
    told: Option<DockerState>,
}

impl Watch {
    pub(super) fn new(finder: Finder, on_report: OnReport, stop: Cancel) -> Self {
        Self { finder, on_report, stop, pace: Pace::new(Instant::now()), told: None }
    }

    /// Until the stop.
    pub(super) fn run(&mut self) {
        let stop = self.stop.clone();
        while !stop.is_cancelled() {
            let began = Instant::now();
            let within = || Bounds { deadline: Deadline::after(CONNECT), cancel: Some(&stop) };
            let followed = Docker::connect(&self.finder.0.socket, within())
                .and_then(|docker| docker.events(within()).map(|events| (docker, events)));
            let ended = match followed {
                Ok((docker, mut events)) => {
                    // Something may have happened while nobody listened.
                    self.pace.on_news(Instant::now());
                    self.follow(&docker, &mut events, &stop)
                }
                Err(error) => {
                    self.look_if_due(Err(&error));
                    Err(error)
                }
            };
            if let Err(error) = ended {
                log::debug!("discovery: {error}");
            }
            if began.elapsed() >= GOOD {
                self.pace.calm();
            }
            stop.sleep(self.pace.pause());
        }
    }

    /// Until the stream ends, or the stop.
    fn follow<'a>(
        &mut self,
        docker: &Docker,
        events: &mut Events<'a>,
        stop: &'a Cancel,
    ) -> Result<(), DockerError> {
        let within = |time| Bounds { deadline: Deadline::after(time), cancel: Some(stop) };
        loop {
            let left = self.pace.due_at().saturating_duration_since(Instant::now());
            if self.pace.has_news() {
                // Until the look nothing has to be heard; what happens meanwhile is part of it.
                if !stop.sleep(left) {
                    return Ok(());
                }
                let mut together = 0;
                while together < MAX_TOGETHER
                    && !matches!(events.next(within(Duration::ZERO))?, News::Nothing | News::Ended)
                {
                    together += 1;
                }
            } else {
                match events.next(within(left))? {
                    News::Containers => self.pace.on_news(Instant::now()),
                    News::Nothing => {}
                    News::Noise => {
                        stop.sleep(DEAF);
                    }
                    News::Ended => return Ok(()),
                }
            }
            self.look_if_due(Ok(docker));
        }
    }

    fn look_if_due(&mut self, docker: Result<&Docker, &DockerError>) {
        let Some(scope) = self.pace.take(Instant::now()) else { return };
        let mut looker = self.finder.0.looker.lock().unwrap_or_else(PoisonError::into_inner);
        let report = looker.look(docker, scope, &self.stop);
        if self.stop.is_cancelled() {
            return;
        }
        let report = self.finder.keep(report);
        drop(looker);
        self.tell(&report);
        // Of a daemon that does not answer there is no news.
        if scope == Scope::Everything || matches!(report.docker, DockerState::Answers { .. }) {
            (self.on_report)(&report);
        }
    }

    /// The log hears of a change, once.
    fn tell(&mut self, report: &Report) {
        let same = match (&self.told, &report.docker) {
            (Some(DockerState::Answers { .. }), DockerState::Answers { .. }) => true,
            (Some(DockerState::Away { absent, .. }), DockerState::Away { absent: now, .. }) => {
                absent == now
            }
            _ => false,
        };
        if same {
            return;
        }
        match &report.docker {
            DockerState::Answers { version } => {
                log::info!("looking for databases in the containers of Docker {version}");
            }
            DockerState::Away { absent: true, .. } if self.told.is_none() => {
                log::debug!("no Docker here: looking for databases on the host alone");
            }
            DockerState::Away { why, .. } => {
                log::info!("databases in containers cannot be looked for at the moment: {why}");
            }
        }
        self.told = Some(report.docker.clone());
    }
}
