//! What the control plane answers on the status socket, beside what the agent does.
//!
//! One JSON object on a line asks; lines answer, the last one with `done` or `error`.
//!
//! | request | lines before | `done` |
//! |---|---|---|
//! | `{"cmd":"backup","name":N,"follow":true}` | `{"progress":run,"elapsed_ms":n}` | `{"run":run}` |
//! | `{"cmd":"cancel","name":N}` | | `{}` |
//! | `{"cmd":"runs","name":N?,"limit":n?}` | `{"run":run}` | `{"count":n}` |
//! | `{"cmd":"run","id":ID}` | | `{"run":run}` |
//! | `{"cmd":"rebuild"}` | | what was found |
//! | `{"cmd":"verified","id":ID,"error":E?}` | | `{}` |
//! | `{"cmd":"key-exported"}` | | `{}` |
//! | `{"cmd":"key-rotate"}` | | `{"id":ID}` |
//! | `{"cmd":"notify-test","channel":N?}` | `{"trying":N}`, `{"tried":N,"problem":P?}` | `{"failed":n}` |
//!
//! `run` is a [`RunView`]. To `{"cmd":"status"}` the agent's own answer is given with `control` (see
//! [`Plane::status`]) and `problems` added. Everything else is the agent's.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use serde_json::{Value, json};

use super::plane::Plane;
use super::view::RunView;
use crate::clock::unix_ms;
use crate::observe::socket::Reply;
use crate::thread::{Cancel, Why, spawn};

/// Runs that one request lists unless it says otherwise.
const RUNS: u64 = 100;
/// Runs that one request may list.
const RUNS_MAX: u64 = 100_000;
/// A follower hears something at least so often, so that it can tell a slow run from a dead process.
const SIGN: Duration = Duration::from_secs(1);

/// Answers the control plane's requests; false for those that are not its own.
///
/// # Errors
/// When whoever asked has gone.
pub fn answer(
    plane: &Plane,
    request: &Value,
    agent_status: &dyn Fn() -> Value,
    reply: Reply<'_>,
) -> io::Result<bool> {
    match request["cmd"].as_str() {
        Some("backup") => back_up(plane, request, reply),
        Some("cancel") => cancel(plane, request, reply),
        Some("runs") => runs(plane, request, reply),
        Some("run") => one_run(plane, request, reply),
        Some("rebuild") => rebuild(plane, reply),
        Some("verified") => verified(plane, request, reply),
        Some("key-exported") => key_exported(plane, reply),
        Some("key-rotate") => key_rotate(plane, reply),
        Some("notify-test") => notify_test(plane, request, reply),
        Some("status") => status(plane, agent_status(), reply),
        Some(_) | None => return Ok(false),
    }?;
    Ok(true)
}

fn status(plane: &Plane, mut status: Value, reply: Reply<'_>) -> io::Result<()> {
    let (control, mut problems) = plane.status(unix_ms());
    // What the agent knows of itself is said once.
    for job in status["dispatch"]["jobs"].as_array().into_iter().flatten() {
        if let (Some(name), Some(error)) = (job["job_id"].as_str(), job["last_error"].as_str()) {
            problems
                .retain(|problem| *problem != format!("the last run of {name} failed: {error}"));
        }
    }
    status["control"] = control;
    status["problems"] = problems.into();
    reply(&status)
}

fn back_up(plane: &Plane, request: &Value, reply: Reply<'_>) -> io::Result<()> {
    let Some(name) = request["name"].as_str() else { return refuse(reply, &"which backup?") };
    let run_id = match plane.back_up(name, unix_ms()) {
        Ok(run_id) => run_id,
        Err(error) => return refuse(reply, &error),
    };
    let mut changes = plane.follow(&run_id);
    let begun = Instant::now();
    loop {
        let run = match plane.run(&run_id) {
            Ok(Some(run)) => run,
            Ok(None) => return refuse(reply, &format!("run {run_id} is gone")),
            Err(error) => return refuse(reply, &error),
        };
        if run.is_over() || request["follow"] == json!(false) {
            return reply(&json!({ "done": { "run": run } }));
        }
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        reply(&json!({ "progress": run, "elapsed_ms": elapsed_ms }))?;
        if changes.recv_timeout(SIGN) == Err(RecvTimeoutError::Disconnected) {
            // The books knew of the end before the channel did, so the next look will tell.
            changes = crossbeam_channel::never();
        }
    }
}

fn cancel(plane: &Plane, request: &Value, reply: Reply<'_>) -> io::Result<()> {
    let Some(name) = request["name"].as_str() else { return refuse(reply, &"which backup?") };
    if plane.settings().backup(name).is_none() {
        return refuse(reply, &format!("there is no backup called \"{name}\""));
    }
    if plane.runs(Some(name), 1).is_ok_and(|runs| runs.iter().all(RunView::is_over)) {
        return refuse(reply, &format!("no run of {name} is open"));
    }
    if plane.cancel(name) {
        reply(&json!({ "done": {} }))
    } else {
        refuse(reply, &"the agent is not connected; try again in a moment")
    }
}

fn runs(plane: &Plane, request: &Value, reply: Reply<'_>) -> io::Result<()> {
    let most = request["limit"].as_u64().unwrap_or(RUNS).min(RUNS_MAX);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    match plane.runs(request["name"].as_str(), most) {
        Ok(runs) => {
            for run in &runs {
                reply(&json!({ "run": run }))?;
            }
            reply(&json!({ "done": { "count": runs.len() } }))
        }
        Err(error) => refuse(reply, &error),
    }
}

fn one_run(plane: &Plane, request: &Value, reply: Reply<'_>) -> io::Result<()> {
    let run: Result<Option<RunView>, _> = plane.run(request["id"].as_str().unwrap_or_default());
    match run {
        Ok(Some(run)) => reply(&json!({ "done": { "run": run } })),
        Ok(None) => refuse(reply, &"there is no such run"),
        Err(error) => refuse(reply, &error),
    }
}

fn rebuild(plane: &Plane, reply: Reply<'_>) -> io::Result<()> {
    match plane.books().rebuild() {
        Ok(found) => reply(&json!({ "done": found })),
        Err(error) => refuse(reply, &error),
    }
}

fn verified(plane: &Plane, request: &Value, reply: Reply<'_>) -> io::Result<()> {
    let error = request["error"].as_str().map(str::to_owned);
    match plane.books().verified(request["id"].as_str().unwrap_or_default(), error) {
        Ok(()) => reply(&json!({ "done": {} })),
        Err(error) => refuse(reply, &error),
    }
}

fn key_exported(plane: &Plane, reply: Reply<'_>) -> io::Result<()> {
    match plane.books().key_exported(unix_ms()) {
        Ok(()) => reply(&json!({ "done": {} })),
        Err(error) => refuse(reply, &error),
    }
}

fn key_rotate(plane: &Plane, reply: Reply<'_>) -> io::Result<()> {
    match plane.rotate_key(unix_ms()) {
        Ok(id) => reply(&json!({ "done": { "id": id } })),
        Err(error) => refuse(reply, &error),
    }
}

/// Each try has a thread of its own, so that whoever asked, and a stop, need not wait for a server that hangs.
fn notify_test(plane: &Plane, request: &Value, reply: Reply<'_>) -> io::Result<()> {
    let mut failed = 0;
    let mut testers = plane.testers();
    if let Some(name) = request["channel"].as_str() {
        testers.retain(|tester| tester.channel().name == name);
        if testers.is_empty() {
            return refuse(reply, &format!("there is no channel called \"{name}\""));
        }
    }
    for tester in testers {
        let name = tester.channel().name;
        let stop = Cancel::new()?;
        let (answer, answers) = bounded(1);
        let seen = stop.clone();
        let thread = spawn("notify-test", move || {
            // Nobody listens any more after a stop.
            let _ = answer.send(tester.test(&seen));
        })?;
        let outcome = loop {
            match answers.recv_timeout(SIGN) {
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = reply(&json!({ "trying": name })) {
                        stop.cancel(Why::Requested);
                        break Err(error);
                    }
                }
                Ok(outcome) => break Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    break Ok(Err("the test broke off; see the log".to_owned()));
                }
            }
        };
        // A panic was said by the answer that did not come.
        let _ = thread.join();
        let error = outcome?.err();
        failed += usize::from(error.is_some());
        reply(&json!({ "tried": name, "problem": error }))?;
    }
    reply(&json!({ "done": { "failed": failed } }))
}

fn refuse(reply: Reply<'_>, why: &dyn std::fmt::Display) -> io::Result<()> {
    reply(&json!({ "error": why.to_string() }))
}
