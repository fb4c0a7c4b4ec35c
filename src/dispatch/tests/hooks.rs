//! Hooks around whole runs, each with its database, its upload and its result.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rig::{Rig, config, job};
use crate::model::{Job, RetryPolicy};
use crate::runs::table::{Found, Table};
use crate::wire::ServerMessage;

const TELL: &str = "echo $BACKUPY_STATUS $BACKUPY_SIZE_BYTES >> LOG";

/// A job whose hooks write to a file in `dir` that is called `LOG` in them.
fn hooked(dir: &Path, pre: &[&str], post: &[&str]) -> (Job, PathBuf) {
    let log = dir.join("log");
    let list = |list: &[&str]| {
        list.iter().map(|text| text.replace("LOG", &log.display().to_string())).collect()
    };
    (Job { pre_hooks: list(pre), post_hooks: list(post), ..job("j") }, log)
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

#[test]
fn hooks_stand_around_the_dump_and_end_before_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &[TELL], &[TELL, "echo oops >&2; exit 1"]);
    let mut rig = Rig::start(config(vec![job]));
    rig.run("r1", "j");
    let upload = rig.upload();
    assert_eq!(read(&log), "running 0\n");
    let size = upload.answer(200);
    rig.expect_acks(1);
    assert_eq!(rig.next(), "log post-hook 1 said on stderr: oops".replace('1', "2"));
    assert_eq!(rig.next(), "log post-hook 2 failed with exit code 1: oops");
    rig.expect_success("r1");
    assert_eq!(read(&log), format!("running 0\nsuccess {size}\n"));
}

#[test]
fn a_failing_pre_hook_fails_the_run_and_nothing_is_uploaded_or_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &["exit 3"], &[TELL]);
    let retry = RetryPolicy { max_attempts: 3, backoff_sec: vec![0] };
    let mut rig = Rig::start(config(vec![Job { retry, ..job }]));
    rig.run("r1", "j");
    rig.expect_acks(1);
    rig.expect_failure("r1", "pre-hook 1 failed with exit code 3; the database was not touched");
    assert_eq!((rig.uploads_seen(), read(&log).as_str()), (0, "failed 0\n"));
}

#[test]
fn every_attempt_has_its_hooks() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &[TELL], &[TELL]);
    let retry = RetryPolicy { max_attempts: 2, backoff_sec: vec![0] };
    let mut rig = Rig::start(config(vec![Job { retry, ..job }]));
    rig.run("r1", "j");
    rig.expect_acks(1);
    rig.upload().answer(503);
    assert!(rig.next().starts_with("log run r1 failed and is tried again"));
    let size = rig.upload().answer(200);
    rig.expect_success("r1");
    assert_eq!(read(&log), format!("running 0\nfailed 0\nrunning 0\nsuccess {size}\n"));
}

#[test]
fn a_cancelled_run_ends_behind_its_post_hooks() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &[], &[TELL]);
    let mut rig = Rig::start(config(vec![job]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.expect_acks(1);
    rig.say("stop it", ServerMessage::CancelJob { job_id: "j".into() });
    assert_eq!(rig.next(), "ack stop it");
    assert!(rig.next().starts_with("r1 Cancelled"));
    assert_eq!(read(&log), "cancelled 0\n");
    drop(upload);
}

#[test]
fn a_cancel_during_a_post_hook_of_a_stored_artifact_loses() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &[], &["echo here >> LOG; exec sleep 600"]);
    let mut rig = Rig::start(config(vec![job]));
    rig.run("r1", "j");
    rig.upload().answer(200);
    rig.expect_acks(1);
    while read(&log).is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.say("stop it", ServerMessage::CancelJob { job_id: "j".into() });
    assert_eq!(rig.next(), "ack stop it");
    rig.expect_nothing();
    rig.say("I mean it", ServerMessage::CancelJob { job_id: "j".into() });
    assert_eq!(rig.next(), "ack I mean it");
    assert_eq!(rig.next(), "log post-hook 1 was ended before it was done");
    rig.expect_success("r1");
}

/// The store has the artifact, and that is on disk before the hook begins: no second dump, no other end.
#[test]
fn a_killed_agent_knows_of_the_artifact_that_was_stored_before_its_post_hooks() {
    let dir = tempfile::tempdir().unwrap();
    let (job, _) = hooked(dir.path(), &[], &["exec sleep 600"]);
    let mut rig = Rig::start(config(vec![job]));
    rig.run("r1", "j");
    rig.upload().answer(200);
    rig.expect_acks(1);
    let noted = |rig: &mut Rig| {
        let table = Table::load(rig.store()).unwrap();
        matches!(table.find("r1").unwrap(), Found::Open(run) if run.stored.is_some())
    };
    while !noted(&mut rig) {
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.say("too late", ServerMessage::CancelJob { job_id: "j".into() });
    assert_eq!(rig.next(), "ack too late");
    rig.crash();
    rig.restart();
    rig.expect_success("r1");
    assert_eq!(rig.uploads_seen(), 1);
}

/// A hook that starts a service again must not die by the run's timeout.
#[test]
fn the_timeout_does_not_bind_post_hooks() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &[], &["sleep 2; echo started >> LOG"]);
    let mut rig = Rig::start(config(vec![Job { timeout_sec: 1, ..job }]));
    rig.run("r1", "j");
    rig.upload().answer(200);
    rig.expect_acks(1);
    rig.expect_success("r1");
    assert_eq!(read(&log), "started\n");
}

#[test]
fn a_stopping_process_ends_the_post_hooks_of_a_cancelled_run() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &[], &["echo here >> LOG; exec sleep 600"]);
    let mut rig = Rig::with_grace(config(vec![job]), Duration::from_millis(100));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.expect_acks(1);
    rig.say("stop it", ServerMessage::CancelJob { job_id: "j".into() });
    while read(&log).is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.stop();
    rig.join();
    assert_eq!(rig.next(), "ack stop it");
    assert_eq!(rig.next(), "log post-hook 1 was ended before it was done");
    assert!(rig.next().starts_with("r1 Cancelled"));
    drop(upload);
}

#[test]
fn the_timeout_counts_pre_hooks_in() {
    let dir = tempfile::tempdir().unwrap();
    let (job, log) = hooked(dir.path(), &["exec sleep 600"], &[TELL]);
    let mut rig = Rig::start(config(vec![Job { timeout_sec: 1, ..job }]));
    rig.run("r1", "j");
    rig.expect_acks(1);
    rig.expect_failure("r1", "timeout of 1 s");
    assert_eq!((rig.uploads_seen(), read(&log).as_str()), (0, "failed 0\n"));
}
