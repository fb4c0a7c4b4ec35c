//! `backupy status` and `backupy health-check`: ask the running process how things stand.

use std::path::Path;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::stopped::open_store;
use super::{complain, state_dir};
use crate::clock::unix_ms;
use crate::dispatch::of_stopped;
use crate::exit::Exit;
use crate::observe::health::liveness;
use crate::observe::socket;
use crate::redact::clean;
use crate::store::Store;

/// How long the process may take to answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Show how things stand: connection, jobs, runs, queue. Exit code 1 when something needs attention,
/// 5 when nobody is running.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "status")]
pub struct StatusArgs {
    /// directory for state (BACKUPY_STATE_DIR)
    #[argh(option)]
    state_dir: Option<String>,
    /// as JSON
    #[argh(switch)]
    json: bool,
}

/// For supervisors: exit code 0 when healthy, 1 when not, 5 when nobody is running.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "health-check")]
pub struct HealthCheckArgs {
    /// directory for state (BACKUPY_STATE_DIR)
    #[argh(option)]
    state_dir: Option<String>,
    /// only process and store; a control plane that is down does not matter
    #[argh(switch)]
    live: bool,
}

/// Shows how things stand.
pub fn status(args: &StatusArgs) -> Exit {
    let state_dir = state_dir(args.state_dir.as_deref());
    let status = match fetch(&state_dir) {
        Ok(status) => status,
        Err(Exit::NotRunning) => return status_of_stopped(args, &state_dir),
        Err(exit) => return exit,
    };
    let problems = problems(&status);
    if args.json {
        let mut status = status;
        status["problems"] = problems.clone().into();
        println!("{status:#}");
    } else {
        print_status(&status);
        for problem in &problems {
            println!("! {}", clean(problem));
        }
        for warning in warnings(&status) {
            println!("warning: {}", clean(warning));
        }
        for warning in unprotected(&status) {
            println!("warning: {}", clean(&warning));
        }
    }
    if problems.is_empty() { Exit::Ok } else { Exit::Failed }
}

/// What the files of a stopped agent say; the exit code says that it is stopped.
fn status_of_stopped(args: &StatusArgs, state_dir: &Path) -> Exit {
    let store = match open_store(state_dir) {
        Ok(store) => store,
        Err(Exit::Usage) => {
            complain("set the agent's key to see what the files of a stopped agent say");
            return Exit::NotRunning;
        }
        Err(Exit::State) if !Store::is_in(state_dir) => return Exit::NotRunning,
        Err(exit) => return exit,
    };
    let stored = of_stopped(&store);
    if let Err(error) = store.close() {
        complain(error);
    }
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            complain(error);
            return Exit::State;
        }
    };
    let state_dir = state_dir.display().to_string();
    let status = json!({"running": false, "state_dir": state_dir, "dispatch": stored});
    if args.json {
        println!("{status:#}");
    } else {
        println!("not running; this is what the files in {state_dir} say");
        print_stored(&status["dispatch"]);
    }
    Exit::NotRunning
}

/// Says nothing when all is well.
pub fn health_check(args: &HealthCheckArgs) -> Exit {
    let state_dir = state_dir(args.state_dir.as_deref());
    let status = match fetch(&state_dir) {
        Ok(status) => status,
        Err(exit) => return exit,
    };
    let mut problems = liveness(&status["dispatch"]);
    if !args.live && status["session_lost"] == Value::Bool(true) {
        problems.push(no_session(&status));
    }
    for problem in &problems {
        complain(problem);
    }
    if problems.is_empty() { Exit::Ok } else { Exit::Failed }
}

fn fetch(state_dir: &Path) -> Result<Value, Exit> {
    let mut answer = None;
    let request = json!({"cmd": "status"});
    match socket::ask(state_dir, &request, Some(TIMEOUT), &mut |line| answer = Some(line)) {
        Ok(true) => {}
        Ok(false) => {
            complain(format!("nobody is running on {}", state_dir.display()));
            return Err(Exit::NotRunning);
        }
        Err(error) => {
            complain(format!(
                "failed to ask the process that runs on {}: {error}",
                state_dir.display()
            ));
            return Err(Exit::Failed);
        }
    }
    match answer {
        Some(status) if status.get("error").is_none() => Ok(status),
        Some(status) => {
            complain(&status["error"]);
            Err(Exit::Failed)
        }
        None => {
            complain("the process closed the connection without an answer");
            Err(Exit::Failed)
        }
    }
}

/// What only wants doing some day: no reason for an exit code.
fn warnings(status: &Value) -> impl Iterator<Item = &str> {
    status["control"]["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The databases on this host that no backup covers: no reason for an exit code either, for that may be meant.
fn unprotected(status: &Value) -> Vec<String> {
    let discovery = &status["discovery"];
    let shown = discovery["unprotected"].as_array().map_or(&[][..], Vec::as_slice);
    let mut lines: Vec<String> = shown
        .iter()
        .filter_map(Value::as_str)
        .map(|title| format!("not backed up: {title}"))
        .collect();
    match number(&discovery["unprotected_count"]).saturating_sub(shown.len() as u64) {
        0 => {}
        more => lines.push(format!("not backed up: {more} more databases")),
    }
    if let Some(last) = lines.last_mut() {
        last.push_str("; `backupy discover` shows how to change that");
    }
    lines
}

fn problems(status: &Value) -> Vec<String> {
    let mut problems = liveness(&status["dispatch"]);
    if status["clock_unset"] == Value::Bool(true) {
        problems.push(
            "the clock of this host is not set; does it get the time from anywhere (NTP)?"
                .to_owned(),
        );
    }
    if status["session_lost"] == Value::Bool(true) {
        problems.push(no_session(status));
    }
    for job in status["dispatch"]["jobs"].as_array().into_iter().flatten() {
        let name = job["job_id"].as_str().unwrap_or("?");
        if job["overdue"] == Value::Bool(true) {
            problems.push(format!("backup {name} is overdue"));
        } else if job["last_kind"] == "failed" {
            let error = job["last_error"].as_str().unwrap_or("");
            problems.push(format!("the last run of {name} failed: {error}"));
        }
    }
    problems.extend(
        status["problems"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned),
    );
    problems
}

fn no_session(status: &Value) -> String {
    let seconds = status["without_session_sec"].as_u64().unwrap_or(0);
    match status["last_link_error"].as_str() {
        Some(error) => format!("no session with the control plane for {seconds} s: {error}"),
        None => format!("no session with the control plane for {seconds} s"),
    }
}

fn print_status(status: &Value) {
    let dispatch = &status["dispatch"];
    println!(
        "backupy {} (pid {}), up {}, state in {}",
        status["version"].as_str().unwrap_or("?"),
        number(&status["pid"]),
        duration(number(&status["uptime_sec"])),
        status["state_dir"].as_str().unwrap_or("?"),
    );
    let link = if status["connected"] == Value::Bool(true) {
        "connected".to_owned()
    } else {
        format!("not connected: {}", text(&status["last_link_error"], "connecting"))
    };
    println!("control plane: {link}, {} sessions since the start", number(&status["sessions"]));
    print_update(&dispatch["update"]);
    print_stored(dispatch);
    print_channels(&status["control"]["notify"]);
}

/// The ways to people. What is wrong with one follows as a problem.
fn print_channels(channels: &Value) {
    for channel in channels.as_array().into_iter().flatten() {
        let last = match channel["last_ok_ms"].as_u64() {
            Some(ms) => format!("{} ago", duration(unix_ms().saturating_sub(ms) / 1_000)),
            None => "never since the start".to_owned(),
        };
        let waiting = match number(&channel["waiting"]) {
            0 => String::new(),
            waiting => format!(", {waiting} waiting"),
        };
        let name = text(&channel["channel"], "?");
        println!("  notify {name} ({}): last sent {last}{waiting}", text(&channel["kind"], "?"));
    }
}

/// Which version this is, if not the installed one, and how the last update went.
fn print_update(update: &Value) {
    if update["slot"].is_string() {
        println!(
            "this version was started by {} ({})",
            text(&update["installed"], "another"),
            text(&update["installed_version"], "?"),
        );
    }
    if let Some(phase) = update["phase"].as_str() {
        println!("update to {}: {}", text(&update["version"], "another version"), clean(phase));
    }
    let last = &update["last"];
    if let Some(version) = last["version"].as_str() {
        let ago = duration(unix_ms().saturating_sub(number(&last["at_ms"])) / 1_000);
        let how = match last["error"].as_str() {
            None => "it took over".to_owned(),
            Some(error) => format!("not taken: {}", clean(error)),
        };
        let from = text(&last["from"], "?");
        println!("last update: from {from} to {}, {ago} ago: {how}", clean(version));
    }
}

/// What stands in the store, whether somebody runs or not.
fn print_stored(dispatch: &Value) {
    println!(
        "configuration {}, {} queued messages, {} undelivered results",
        number(&dispatch["config_version"]),
        number(&dispatch["queue_depth"]),
        number(&dispatch["undelivered_results"]),
    );
    for job in dispatch["jobs"].as_array().into_iter().flatten() {
        print_job(job);
    }
    print_checks(&dispatch["checks"]);
    for run in dispatch["open_runs"].as_array().into_iter().flatten() {
        println!(
            "  {} {} of {}, attempt {}",
            text(&run["phase"], "?"),
            text(&run["run_id"], "?"),
            text(&run["job_id"], "?"),
            number(&run["attempts"]),
        );
    }
    let shown = dispatch["open_runs"].as_array().map_or(0, Vec::len) as u64;
    if let more @ 1.. = number(&dispatch["open_count"]).saturating_sub(shown) {
        println!("  and {more} more runs");
    }
}

fn print_checks(checks: &Value) {
    let shown = checks["shown"].as_array().map_or(&[][..], Vec::as_slice);
    for check in shown {
        let state = match check["ok"].as_bool() {
            Some(true) => format!("ok, {} ms", number(&check["latency_ms"])),
            Some(false) => "failing".to_owned(),
            None => "no result yet".to_owned(),
        };
        let error = text(&check["error"], "");
        let colon = if error.is_empty() { "" } else { ": " };
        println!("  check {}: {state}{colon}{error}", text(&check["check_id"], "?"));
    }
    if let more @ 1.. = number(&checks["count"]).saturating_sub(shown.len() as u64) {
        println!("  and {more} more checks");
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// What a control plane named, without what a terminal would obey.
fn text(value: &Value, otherwise: &str) -> String {
    clean(value.as_str().unwrap_or(otherwise))
}

fn print_job(job: &Value) {
    let last = job["last_success_ms"].as_u64().unwrap_or(0);
    let when = if last == 0 {
        "never".to_owned()
    } else {
        format!("{} ago", duration(unix_ms().saturating_sub(last) / 1_000))
    };
    println!(
        "  {} ({}): last success {when}",
        text(&job["job_id"], "?"),
        text(&job["engine"], "no target"),
    );
}

/// `3d 4h`, `5m 12s`.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}
