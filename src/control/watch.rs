//! What should have happened by now: silence is failure. Pure: the run and the time are parameters.
//!
//! ```text
//! waiting ──(sent)──▶ sent ──(agent's Ack)──▶ accepted ──(RUNNING)──▶ running ──(result)──▶ over
//! ```
//! Each stage has a time after which it is too late. Being late is told once per stage, as loudly as a
//! failure, and the run goes on: its agent may only be slow or cut off. A run that is late for as long
//! again as its whole timeout is given up, so that a lost one cannot block its backup for ever.

use std::fmt;
use std::time::Duration;

/// Times that belong to nobody's settings.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until a run that is due has reached the agent.
    pub sent: Duration,
    /// Until the agent has acknowledged it.
    pub accepted: Duration,
    /// A run may wait this long in the agent's queue behind others.
    pub started: Duration,
    /// On top of the run's own timeout, for stopping, retrying the upload and reporting.
    pub result: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            sent: Duration::from_secs(5 * 60),
            accepted: Duration::from_secs(5 * 60),
            started: Duration::from_secs(24 * 3600),
            result: Duration::from_secs(15 * 60),
        }
    }
}

/// How far an open run is, as far as its control plane knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The agent is not connected, or was not told yet.
    Waiting,
    /// It was told and has not answered.
    Sent,
    /// It has taken the run on.
    Accepted,
    /// It is working.
    Running,
}

/// An open run: its stage and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The stage.
    pub stage: Stage,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// The run's timeout.
    pub timeout: Duration,
    /// The stage whose lateness was told already.
    pub told: Option<Stage>,
}

/// What is to be done about an open run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing until then, Unix milliseconds.
    Fine(u64),
    /// Tell people.
    Late(Late),
    /// End it as failed.
    GiveUp(Late),
}

/// What did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// In which stage.
    pub stage: Stage,
    /// For how long.
    pub waited: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.stage {
            Stage::Waiting => "the backup did not start: its agent is not connected",
            Stage::Sent => "the backup did not start: its agent does not answer",
            Stage::Accepted => "the backup did not start: it waits in its agent's queue",
            Stage::Running => {
                "the backup has no result: its agent reports neither success nor failure"
            }
        })?;
        write!(f, " (for {} min)", self.waited.as_secs() / 60)
    }
}

impl Open {
    /// A run that begins to wait now.
    pub fn new(timeout: Duration, now_ms: u64) -> Self {
        Self { stage: Stage::Waiting, since_ms: now_ms, timeout, told: None }
    }

    /// Moves on to a stage; staying in one does not renew its patience.
    pub fn enter(&mut self, stage: Stage, now_ms: u64) {
        if self.stage != stage {
            self.stage = stage;
            self.since_ms = now_ms;
        }
    }

    /// The clock jumped by `jump_ms`, or the machine slept for so long: patience counts time in which there was somebody to
    /// do something. A stage that began after the jump, or whose beginning is not known any more, begins now.
    pub fn clock_jumped(&mut self, jump_ms: i64, now_ms: u64) {
        let ahead_ms = u64::try_from(jump_ms).unwrap_or(0);
        self.since_ms = self.since_ms.saturating_add(ahead_ms).min(now_ms);
    }

    /// What is to be done about the run now.
    pub fn verdict(&self, patience: &Patience, now_ms: u64) -> Verdict {
        let allowed = ms(match self.stage {
            Stage::Waiting => patience.sent,
            Stage::Sent => patience.accepted,
            Stage::Accepted => patience.started,
            Stage::Running => self.timeout.saturating_add(patience.result),
        });
        // A clock that went back starts the stage's patience anew instead of stretching it.
        let waited = now_ms.saturating_sub(self.since_ms);
        let given_up = allowed.saturating_add(ms(self.timeout.saturating_add(patience.result)));
        let late = Late { stage: self.stage, waited: Duration::from_millis(waited) };
        if waited >= given_up {
            Verdict::GiveUp(late)
        } else if waited < allowed {
            Verdict::Fine(now_ms.saturating_add(allowed - waited))
        } else if self.told == Some(self.stage) {
            Verdict::Fine(now_ms.saturating_add(given_up - waited))
        } else {
            Verdict::Late(late)
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: u64 = 60_000;
    const T0: u64 = 1_800_000_000_000;

    fn open() -> Open {
        Open::new(Duration::from_secs(3600), T0)
    }

    #[test]
    fn every_stage_is_late_once_and_given_up_in_the_end() {
        let patience = Patience::default();
        for (stage, allowed) in [
            (Stage::Waiting, 5 * MIN),
            (Stage::Sent, 5 * MIN),
            (Stage::Accepted, 24 * 60 * MIN),
            (Stage::Running, 75 * MIN),
        ] {
            let mut run = open();
            run.enter(stage, T0);
            assert_eq!(run.verdict(&patience, T0), Verdict::Fine(T0 + allowed), "{stage:?}");
            assert_eq!(run.verdict(&patience, T0 + allowed - 1), Verdict::Fine(T0 + allowed));
            let Verdict::Late(late) = run.verdict(&patience, T0 + allowed) else {
                panic!("{stage:?} is not late");
            };
            assert!(late.to_string().contains("(for "), "{late}");
            run.told = Some(stage);
            let end = T0 + allowed + 75 * MIN;
            assert_eq!(run.verdict(&patience, T0 + allowed), Verdict::Fine(end));
            assert!(matches!(run.verdict(&patience, end), Verdict::GiveUp(_)));
        }
    }

    #[test]
    fn a_new_stage_is_new_patience_and_the_same_one_is_not() {
        let patience = Patience::default();
        let mut run = open();
        run.enter(Stage::Waiting, T0 + 4 * MIN);
        assert!(matches!(run.verdict(&patience, T0 + 5 * MIN), Verdict::Late(_)));
        run.told = Some(Stage::Waiting);
        run.enter(Stage::Sent, T0 + 5 * MIN);
        assert_eq!(run.verdict(&patience, T0 + 5 * MIN), Verdict::Fine(T0 + 10 * MIN));
        assert!(matches!(run.verdict(&patience, T0 + 10 * MIN), Verdict::Late(_)));
    }

    #[test]
    fn a_clock_that_jumped_uses_up_no_patience() {
        const DAY: u64 = 24 * 60 * MIN;
        let patience = Patience::default();
        let mut run = open();
        run.enter(Stage::Running, T0);
        let jumped = T0 + 10 * MIN + DAY;
        assert!(matches!(run.verdict(&patience, jumped), Verdict::GiveUp(_)), "without being told");
        run.clock_jumped(DAY as i64, jumped);
        assert_eq!(run.verdict(&patience, jumped), Verdict::Fine(jumped + 65 * MIN));
        // Whatever began after the jump and before anybody noticed.
        let mut late = Open::new(Duration::from_secs(3600), jumped);
        late.clock_jumped(DAY as i64, jumped + MIN);
        assert_eq!(late.since_ms, jumped + MIN);
        // Back again: the stage begins anew, and is not waited for until the old time comes round.
        let back = T0 - 2 * DAY;
        run.clock_jumped(-3 * DAY as i64, back);
        assert_eq!(run.verdict(&patience, back), Verdict::Fine(back + 75 * MIN));
    }

    #[test]
    fn a_clock_that_went_back_makes_nothing_late() {
        assert!(matches!(open().verdict(&Patience::default(), T0 - 1000 * MIN), Verdict::Fine(_)));
    }
}
