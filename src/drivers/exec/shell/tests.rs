//! Commands that end, talk without end, leave something behind or do not die.

use std::fs;

use super::*;
use crate::thread::{Why, spawn};

const LONG: Duration = Duration::from_secs(60);

fn command(command: &str, timeout: Duration) -> Shell<'_> {
    let path = ("PATH".into(), std::env::var_os("PATH").unwrap_or_default());
    Shell { name: "hook", command, env: vec![path], timeout }
}

fn run_one(text: &str, timeout: Duration) -> Finished {
    run(&command(text, timeout), &[]).unwrap()
}

/// Whether a process with this number runs (a zombie does not).
fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

fn gone(pid: &str) -> bool {
    let deadline = Deadline::after(LONG);
    while alive(pid) && !deadline.passed() {
        std::thread::sleep(Duration::from_millis(10));
    }
    !alive(pid)
}

#[test]
fn both_streams_and_the_code() {
    let finished = run_one("echo out; echo err >&2; exit 3", LONG);
    assert_eq!(finished.end, End::Code(3));
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(run_one("kill -TERM $$", LONG).end, End::Signal(15));
}

#[test]
fn the_environment_is_what_was_given() {
    let finished = run_one("/usr/bin/env", LONG);
    for line in finished.stdout.lines() {
        let name = line.split('=').next().unwrap();
        assert!(["PATH", "PWD", "SHLVL", "_", "OLDPWD"].contains(&name), "{line}");
    }
}

#[test]
fn a_flood_on_both_streams_leaves_the_last_8_kib() {
    let text = "(head -c 100000000 /dev/zero | tr '\\0' y; echo end) & \
                head -c 100000000 /dev/zero | tr '\\0' z >&2; wait; echo over >&2";
    let finished = run_one(text, LONG);
    assert_eq!(finished.end, End::Code(0));
    for (said, end) in [(&finished.stdout, "yend\n"), (&finished.stderr, "zover\n")] {
        assert!(said.len() <= (8 << 10) + "… ".len(), "{}", said.len());
        assert!(said.len() >= 8 << 10 && said.ends_with(end));
    }
}

#[test]
fn time_is_up_for_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let text = format!(
        "trap '' TERM; (sleep 600 & echo $! >> {0}; wait) & echo $$ >> {0}; echo so far; wait; sleep 600",
        pids.display()
    );
    let finished = run_one(&text, Duration::from_secs(5));
    assert_eq!(finished.end, End::TimedOut);
    assert_eq!(finished.stdout, "so far\n");
    let numbers = fs::read_to_string(pids).unwrap();
    assert_eq!(numbers.lines().count(), 2);
    assert!(numbers.lines().all(gone), "{numbers}");
}

#[test]
fn any_of_the_tokens_stops_it() {
    let tokens = [Cancel::new().unwrap(), Cancel::new().unwrap()];
    for stop in &tokens {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let watch = (stop.clone(), ready.clone());
        let canceller = spawn("canceller", move || {
            let deadline = Deadline::after(LONG);
            while !watch.1.exists() && !deadline.passed() {
                std::thread::sleep(Duration::from_millis(5));
            }
            watch.0.cancel(Why::Requested);
        })
        .unwrap();
        let other = Cancel::new().unwrap();
        let text = format!("touch {}; exec sleep 600", ready.display());
        let finished = run(&command(&text, LONG), &[&other, stop]).unwrap();
        assert_eq!(finished.end, End::Stopped);
        canceller.join().unwrap();
    }
}

#[test]
fn what_stays_in_the_background_neither_holds_us_up_nor_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let text = format!("sleep 600 & echo $! > {}; echo done", pid.display());
    // It holds both pipes open.
    let finished = run_one(&text, LONG);
    assert_eq!((finished.end, finished.stdout.as_str()), (End::Code(0), "done\n"));
    assert!(gone(&fs::read_to_string(pid).unwrap()));
}
