//! Hooks: shell commands of a job's, before its dump and after it.
//!
//! ```text
//! pre-hooks, in order, until one fails → the dump → post-hooks, all of them, in order → the attempt's report
//! ```
//! - They belong to the **attempt**: a run that is tried again runs them again. `BACKUPY_STATUS` is what the
//!   attempt came to, so a post-hook may hear `failed` from a run that succeeds in the end.
//! - A pre-hook that fails fails the run before the database is touched. It is not tried again, as nobody but
//!   its author knows whether that would be safe; with exit code 75 (`EX_TEMPFAIL`) it says that it would be.
//! - Post-hooks run once a pre-hook or the dump began, whatever came of it: success, failure, cancel, timeout.
//!   What they do changes nothing of the outcome; a failing one is a warning of the run, and the next one
//!   runs. Only a killed agent runs none: its run becomes a new attempt, pre-hooks first, unless the artifact was
//!   stored: that is durable before the post-hooks begin, and such a run is complete without them.
//! - A cancel or the run's timeout ends a pre-hook within 2 s. It does not end post-hooks, which may have a service to
//!   start again: those of a cancelled run have [`CANCEL_BUDGET`] together, and a second cancel, or one that came too
//!   late to change the outcome and is repeated, ends them. While the agent stops they have [`STOP_BUDGET`] together.
//! - Bounds: [`MAX_HOOKS`] a list, [`MAX_COMMAND_BYTES`] a command, `BACKUPY_HOOK_TIMEOUT` (5 min, at most 15) for
//!   each, [`BUDGET`] for all of an attempt, of which [`RESERVE`] is kept for the post-hooks. Of each stream
//!   the last 8 KiB are kept: a failed hook's are told as warnings, another's stand in the agent's own log.
//! - In the environment: the variables of [`PASSED`], which hold no secrets, `BACKUPY_JOB_ID`, `BACKUPY_RUN_ID`,
//!   `BACKUPY_STATUS` (`running` before the dump, then `success`, `failed` or `cancelled`) and `BACKUPY_SIZE_BYTES` (of
//!   the stored artifact; `0` if there is none). Nothing is put into the command's text.
//! - What a hook leaves in its process group ends with it: services are started through the service manager, or with
//!   `setsid`.
//! - Hooks run at the agent's own priority, not at the lowered one of the dump: they may start services.
//! - A control plane elsewhere may have hooks run only where the host says `BACKUPY_ALLOW_HOOKS=true`.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::state::Run;
use super::worker::AttemptOutcome;
use crate::clock::Deadline;
use crate::config::HostPolicy;
use crate::drivers::shell::{self, End, Finished, Shell};
use crate::model::{Job, Trust};
use crate::redact::{clean, redact};
use crate::thread::{Cancel, Why};

/// Commands in one list.
pub const MAX_HOOKS: usize = 16;
/// Bytes of one command.
pub const MAX_COMMAND_BYTES: usize = 4 << 10;
/// For all hooks of an attempt.
pub const BUDGET: Duration = Duration::from_secs(30 * 60);
/// What pre-hooks leave for the post-hooks.
pub const RESERVE: Duration = Duration::from_secs(5 * 60);
/// For all post-hooks together of a run that was cancelled.
pub const CANCEL_BUDGET: Duration = Duration::from_secs(60);
/// For all post-hooks together while the agent stops; dispatch waits a little longer.
pub const STOP_BUDGET: Duration = Duration::from_secs(5);

/// Variables of the agent's own that a hook gets.
pub const PASSED: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// `EX_TEMPFAIL`: what a pre-hook says when another attempt may go better.
const TRY_AGAIN: i32 = 75;

/// Bytes of output in one warning; a message holds a little more.
const PIECE_BYTES: usize = 3 << 10;

/// Whether hooks may run at all on this host.
pub fn allowed(policy: &HostPolicy) -> bool {
    match policy.trust {
        Trust::Local => true,
        Trust::Remote => policy.allow_hooks,
    }
}

/// Says why a job's hooks cannot run.
///
/// # Errors
/// Permanent ones: the host does not allow it, or a bound is passed.
pub fn check(job: &Job, policy: &HostPolicy) -> Result<(), String> {
    if job.pre_hooks.is_empty() && job.post_hooks.is_empty() {
        return Ok(());
    }
    if !allowed(policy) {
        return Err("the job has hooks, and this host does not run those of a control plane; set \
                    BACKUPY_ALLOW_HOOKS=true on the host or remove them from the job"
            .to_owned());
    }
    for (kind, list) in [("pre", &job.pre_hooks), ("post", &job.post_hooks)] {
        check_list(kind, list)?;
    }
    Ok(())
}

/// The bounds of one list, whose `kind` is `pre` or `post`.
///
/// # Errors
/// The bound that is passed.
pub fn check_list(kind: &str, list: &[String]) -> Result<(), String> {
    if list.len() > MAX_HOOKS {
        return Err(format!("{} {kind}-hooks, but at most {MAX_HOOKS} are run", list.len()));
    }
    for (at, command) in list.iter().enumerate() {
        let number = at + 1;
        if command.len() > MAX_COMMAND_BYTES {
            let size = command.len();
            return Err(format!(
                "{kind}-hook {number} has {size} bytes, but at most {MAX_COMMAND_BYTES} are run; put it into a script"
            ));
        }
        if command.trim().is_empty() || command.contains('\0') {
            return Err(format!("{kind}-hook {number} is empty or holds a NUL byte"));
        }
    }
    Ok(())
}

/// What may end a hook.
#[derive(Debug, Clone, Copy)]
pub struct Stops<'a> {
    /// The attempt's own token.
    pub cancel: &'a Cancel,
    /// Ends post-hooks, and those behind them do not run.
    pub hurry: &'a Cancel,
    /// The end of the run's timeout; it does not bind post-hooks.
    pub deadline: Option<Deadline>,
}

/// The hooks of one attempt.
#[derive(Debug)]
pub struct Hooks<'a> {
    run: &'a Run,
    job: &'a Job,
    timeout: Duration,
    stops: Stops<'a>,
    used: Duration,
    began: bool,
    warnings: Vec<String>,
}

impl<'a> Hooks<'a> {
    /// For an attempt whose hooks were checked; each may take `timeout`.
    pub fn new(run: &'a Run, job: &'a Job, timeout: Duration, stops: Stops<'a>) -> Self {
        let (used, warnings) = (Duration::ZERO, Vec::new());
        Self { run, job, timeout, stops, used, began: false, warnings }
    }

    /// Runs the pre-hooks.
    ///
    /// # Errors
    /// The attempt's outcome; the dump must not begin then.
    pub fn before(&mut self) -> Result<(), AttemptOutcome> {
        for (at, command) in self.job.pre_hooks.iter().enumerate() {
            if let Some(why) = self.stops.cancel.why() {
                return Err(AttemptOutcome::Stopped(why));
            }
            self.began = true;
            let name = format!("pre-hook {}", at + 1);
            let left = (BUDGET - RESERVE).saturating_sub(self.used);
            let run_left = self.stops.deadline.map_or(left, Deadline::remaining);
            let limit = self.timeout.min(left).min(run_left);
            let env = environment(self.run, "running", 0);
            let result = self.execute(&name, command, env, limit, &[self.stops.cancel]);
            let (problem, retry) = match &result {
                Ok(finished) => match finished.end {
                    End::Code(0) => continue,
                    End::Stopped => {
                        let why = self.stops.cancel.why().unwrap_or(Why::Requested);
                        return Err(AttemptOutcome::Stopped(why));
                    }
                    End::TimedOut if self.stops.deadline.is_some_and(Deadline::passed) => {
                        return Err(AttemptOutcome::Stopped(Why::Timeout));
                    }
                    End::Code(_) | End::Signal(_) | End::TimedOut => {
                        (problem(&name, finished, limit), finished.end == End::Code(TRY_AGAIN))
                    }
                },
                Err(error) => (error.clone(), false),
            };
            let error = format!("{problem}; the database was not touched");
            return Err(AttemptOutcome::Failed { error: clean(&error), retry });
        }
        if let Some(why) = self.stops.cancel.why() {
            return Err(AttemptOutcome::Stopped(why));
        }
        self.began = true;
        Ok(())
    }

    /// Runs the post-hooks, if anything began, and hands out what is to be told about all hooks.
    pub fn after(mut self, outcome: &AttemptOutcome) -> Vec<String> {
        if !self.began {
            return self.warnings;
        }
        let (status, size_bytes) = match outcome {
            AttemptOutcome::Stored(stored) => ("success", stored.size_bytes),
            AttemptOutcome::Failed { .. }
            | AttemptOutcome::Stopped(Why::Timeout | Why::Sibling) => ("failed", 0),
            AttemptOutcome::Stopped(Why::Requested | Why::Shutdown) => ("cancelled", 0),
        };
        let cancelled = matches!(outcome, AttemptOutcome::Stopped(Why::Requested));
        let mut budget = cancelled.then(|| Deadline::after(CANCEL_BUDGET));
        let mut stopping = false;
        for (at, command) in self.job.post_hooks.iter().enumerate() {
            let name = format!("post-hook {}", at + 1);
            if !stopping && self.stops.cancel.why() == Some(Why::Shutdown) {
                stopping = true;
                budget = Some(Deadline::after(STOP_BUDGET));
            }
            let left = budget.map_or(BUDGET.saturating_sub(self.used), Deadline::remaining);
            if left.is_zero() || self.stops.hurry.is_cancelled() {
                self.warn(format!("{name} did not run: no time was left for it"));
                continue;
            }
            // A token that is used up cannot stop anything any more.
            let mut stops = vec![self.stops.hurry];
            stops.extend(Some(self.stops.cancel).filter(|cancel| !cancel.is_cancelled()));
            let limit = self.timeout.min(left);
            let env = environment(self.run, status, size_bytes);
            match self.execute(&name, command, env, limit, &stops) {
                Ok(finished) if finished.end == End::Code(0) => {}
                Ok(finished) => self.warn(problem(&name, &finished, limit)),
                Err(error) => self.warn(error),
            }
        }
        self.warnings
    }

    fn execute(
        &mut self,
        name: &str,
        command: &str,
        env: Vec<(OsString, OsString)>,
        timeout: Duration,
        stops: &[&Cancel],
    ) -> Result<Finished, String> {
        let started = Instant::now();
        let result = shell::run(&Shell { name, command, env, timeout }, stops);
        self.used += started.elapsed();
        let finished = result.map_err(|error| error.to_string())?;
        let run_id = &self.run.run_id;
        log::info!("run {run_id}: {name} ended after {} ms", started.elapsed().as_millis());
        for (stream, text) in [("stdout", &finished.stdout), ("stderr", &finished.stderr)] {
            for piece in pieces(text) {
                let line = format!("{name} said on {stream}: {}", clean(&piece));
                match finished.end {
                    End::Code(0) => log::info!("run {run_id}: {line}"),
                    End::Code(_) | End::Signal(_) | End::TimedOut | End::Stopped => self.warn(line),
                }
            }
        }
        Ok(finished)
    }

    fn warn(&mut self, text: String) {
        self.warnings.push(clean(&text));
    }
}

fn environment(run: &Run, status: &str, size_bytes: u64) -> Vec<(OsString, OsString)> {
    let passed = PASSED.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    // An argument or variable cannot hold a NUL; the ids come from the wire.
    let plain = |text: &str| OsString::from(text.replace('\0', ""));
    passed
        .chain([
            ("BACKUPY_JOB_ID".into(), plain(&run.job_id)),
            ("BACKUPY_RUN_ID".into(), plain(&run.run_id)),
            ("BACKUPY_STATUS".into(), status.into()),
            ("BACKUPY_SIZE_BYTES".into(), size_bytes.to_string().into()),
        ])
        .collect()
}

/// `pre-hook 1 failed with exit code 3: the last line that it said`.
fn problem(name: &str, finished: &Finished, limit: Duration) -> String {
    let what = match finished.end {
        End::Code(code) => format!("failed with exit code {code}"),
        End::Signal(signal) => format!("was ended by signal {signal}"),
        End::TimedOut => {
            format!("did not end within {} s and was ended", limit.as_secs_f32().ceil())
        }
        End::Stopped => "was ended before it was done".to_owned(),
    };
    let last = |text: &str| text.lines().rev().map(str::trim).find(|l| !l.is_empty()).map(tail);
    match last(&finished.stderr).or_else(|| last(&finished.stdout)) {
        Some(said) => format!("{name} {what}: {said}"),
        None => format!("{name} {what}"),
    }
}

/// The end of a line, as much of it as an error message may hold.
fn tail(line: &str) -> String {
    const BYTES: usize = 500;
    line[line.ceil_char_boundary(line.len().saturating_sub(BYTES))..].to_owned()
}

/// Output in parts that fit a message. Secrets are looked for before it is cut.
fn pieces(text: &str) -> Vec<String> {
    let text = redact(text.trim());
    let mut rest = text.as_ref();
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let most = rest.floor_char_boundary(PIECE_BYTES);
        let head = &rest[..most];
        let cut = match head.rfind('\n') {
            Some(line) if most < rest.len() => line + 1,
            _ => most,
        };
        pieces.push(rest[..cut].to_owned());
        rest = &rest[cut..];
    }
    pieces
}

#[cfg(test)]
mod tests;
