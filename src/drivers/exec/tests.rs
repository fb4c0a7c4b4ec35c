//! Children that end, fail, fall silent, talk too much or do not die.

use std::fs;
use std::time::Instant;

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Tool<'static> {
    Tool {
        name: "sh",
        program: Path::new("/bin/sh"),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        secrets: Vec::new(),
    }
}

fn run_shell(script: &str, stuck: Duration) -> (Result<Said, ExecError>, Vec<u8>) {
    let mut out = Vec::new();
    let cancel = Cancel::new().unwrap();
    let result = run(&shell(script), stuck, &cancel, &mut |chunk| {
        out.extend_from_slice(chunk);
        Ok(())
    });
    (result, out)
}

/// Whether a process with this number is there (a zombie counts).
fn alive(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn output_and_words_of_a_good_run() {
    let (result, out) = run_shell("printf abc; echo note >&2; printf def", LONG);
    assert_eq!(result.unwrap().brief(), "note");
    assert_eq!(out, b"abcdef");
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    let (result, _) = run_shell("echo oops >&2; exit 3", LONG);
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "sh failed with exit code 3: oops");
    assert!(!error.retry());
    let (result, _) = run_shell("kill -KILL $$", LONG);
    let error = result.unwrap_err();
    assert!(error.to_string().contains("signal 9 (SIGKILL"), "{error}");
    assert!(error.retry());
    let (result, _) = run_shell("kill -SEGV $$", LONG);
    assert!(!result.unwrap_err().retry());
}

#[test]
fn a_missing_program() {
    let tool = Tool { program: Path::new("/no/such/tool"), ..shell("") };
    let error = capture(&tool, 10, LONG, &Cancel::new().unwrap()).unwrap_err();
    assert!(matches!(error, ExecError::Start { .. }) && !error.retry(), "{error}");
}

#[test]
fn the_environment_is_empty_but_for_the_usual() {
    let tool = Tool { program: Path::new("/usr/bin/env"), args: vec![], ..shell("") };
    let answer = capture(&tool, 10_000, LONG, &Cancel::new().unwrap()).unwrap();
    for line in answer.lines() {
        let name = line.split('=').next().unwrap();
        assert!(["PATH", "LANG", "LC_ALL", "TZ"].contains(&name), "{line}");
    }
    assert!(answer.contains("LC_ALL=C"));
}

#[test]
fn more_on_stderr_than_a_pipe_holds() {
    let (result, out) = run_shell(
        "i=0; while [ $i -lt 3000 ]; do echo 'a line of eighty characters or so, to fill the pipe up quickly' >&2; i=$((i+1)); done; echo last >&2; printf done",
        LONG,
    );
    assert!(result.unwrap().brief().ends_with("last"));
    assert_eq!(out, b"done");
}

#[test]
fn secrets_do_not_come_back() {
    let tool = Tool {
        secrets: vec![Secret::new("hunter2")],
        ..shell("echo 'bad password hunter2' >&2; exit 1")
    };
    let error = capture(&tool, 10, LONG, &Cancel::new().unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("bad password ***"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn a_silent_tool_is_ended_with_all_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "trap '' TERM; sleep 600 & echo $! > {0}; echo $$ >> {0}; printf x; while :; do wait; sleep 1; done",
        pids.display()
    );
    let (result, out) = run_shell(&script, Duration::from_millis(300));
    let error = result.unwrap_err();
    assert!(matches!(error, ExecError::Stuck { .. }) && error.retry(), "{error}");
    assert_eq!(out, b"x");
    let numbers = fs::read_to_string(pids).unwrap();
    assert_eq!(numbers.lines().count(), 2);
    // The grandchild is init's to reap.
    let deadline = Deadline::after(LONG);
    while numbers.lines().any(|pid| alive(pid) && !zombie(pid)) && !deadline.passed() {
        std::thread::sleep(LOOK);
    }
    assert!(!numbers.lines().any(|pid| alive(pid) && !zombie(pid)));
    assert!(!alive(numbers.lines().last().unwrap()), "the child itself was reaped");
}

fn zombie(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn a_tool_that_only_talks_is_stuck_where_its_output_counts() {
    let script = "printf x; while :; do echo 'progress 0%' >&2; sleep 0.05; done";
    let (cancel, stuck) = (Cancel::new().unwrap(), Duration::from_secs(3));
    let mut out = Vec::new();
    let result = run_by_output(&shell(script), stuck, &cancel, &mut |chunk| {
        out.extend_from_slice(chunk);
        Ok(())
    });
    assert!(matches!(result.unwrap_err(), ExecError::Stuck { .. }));
    assert_eq!(out, b"x");
    // While it gets on, it may talk as it likes.
    let script = "for i in 1 2 3 4 5 6 7 8; do printf x; echo note >&2; sleep 0.1; done";
    run_by_output(&shell(script), Duration::from_secs(20), &cancel, &mut |_| Ok(())).unwrap();
}

#[test]
fn a_tool_that_closes_its_output_but_stays_is_stuck_too() {
    let (result, _) = run_shell("exec >&- 2>&-; sleep 600", Duration::from_millis(200));
    assert!(matches!(result.unwrap_err(), ExecError::Stuck { .. }));
}

#[test]
fn what_a_tool_leaves_behind_does_not_hold_us_up() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script =
        format!("sleep 600 >/dev/null & echo $! > {}; echo note >&2; printf ok", pid.display());
    let (result, out) = run_shell(&script, LONG);
    assert_eq!(result.unwrap().brief(), "note");
    assert_eq!(out, b"ok");
    let left = fs::read_to_string(pid).unwrap();
    let deadline = Deadline::after(LONG);
    while alive(&left) && !zombie(&left) && !deadline.passed() {
        std::thread::sleep(LOOK);
    }
    assert!(!alive(&left) || zombie(&left));
}

#[test]
fn a_cancel_ends_a_silent_tool() {
    let cancel = Cancel::new().unwrap();
    let other = cancel.clone();
    let started = Instant::now();
    let result = run(&shell("printf x; exec sleep 600"), LONG, &cancel, &mut |_| {
        other.cancel(Why::Requested);
        Ok(())
    });
    assert!(matches!(result, Err(ExecError::Cancelled(Why::Requested))));
    assert!(started.elapsed() < LONG, "ended by the cancel, not by the silence");
}

#[test]
fn a_failing_sink_ends_an_endless_tool() {
    let cancel = Cancel::new().unwrap();
    let mut seen = 0;
    let result = run(&shell("exec yes"), LONG, &cancel, &mut |chunk| {
        seen += chunk.len();
        if seen > 1 << 20 { Err(io::Error::other("full")) } else { Ok(()) }
    });
    assert!(matches!(result, Err(ExecError::Sink(_))));
}

#[test]
fn no_descriptor_and_no_child_is_left() {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    run_shell("exit 0", LONG).0.unwrap();
    let before = open();
    for _ in 0..20 {
        run_shell("exit 0", LONG).0.unwrap();
        run_shell("exit 1", LONG).0.unwrap_err();
        run_shell("sleep 600", Duration::from_millis(1)).0.unwrap_err();
    }
    // Other tests of this process may hold a few of their own.
    assert!(open() < before + 40, "{} descriptors before, {} after", before, open());
}
