//! Dispatch as a whole: commands go in as the link would bring them, what the outbox holds comes out. Store,
//! outbox, pipeline and database are real; the store for artifacts is a few lines of HTTP that the test holds
//! up and answers.

mod checks;
mod hooks;
mod multipart;
mod rig;

use std::time::Duration;

use rig::{Rig, config, job, now_ms, run_backup, window_around};

use super::commands;
use crate::clock::unix_ms;
use crate::model::{AgentConfig, Job, RetryPolicy};
use crate::outbox::{Kind, Message};
use crate::runs::state::{EndKind, MAX_RESTARTS, Outcome, Run};
use crate::runs::table::{Found, Table};
use crate::secret::{Secret, SecretBytes};
use crate::store::highwater::{Highwater, OpenRun};
use crate::wire::{
    AgentMessage, JobStatus, JobUpdate, LogLevel, RegisterAck, RunBackup, ServerMessage,
};

#[test]
fn a_run_is_durable_then_acknowledged_then_ends_by_one_pair() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    assert_eq!(rig.next(), "ack r1");
    // The file is written before the Ack, and the record before the file.
    let mark = Highwater::load(rig.path()).unwrap().unwrap();
    assert_eq!(mark.open_runs, [OpenRun { run_id: "r1".into(), job_id: "j".into() }]);
    let table = Table::load(rig.store()).unwrap();
    assert!(matches!(table.find("r1").unwrap(), Found::Open(run) if run.attempts == 1));
    let bytes = upload.answer(200);
    assert_eq!(rig.next(), format!("completed r1 {bytes}"));
    assert_eq!(rig.next(), "r1 Success");
    rig.expect_nothing();
    assert!(Highwater::load(rig.path()).unwrap().unwrap().open_runs.is_empty());
}

#[test]
fn a_repeat_of_an_open_run_is_acknowledged_and_starts_nothing() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.run("r1", "j");
    assert_eq!((rig.next(), rig.next()), ("ack r1".into(), "ack r1".into()));
    upload.answer(200);
    rig.expect_success("r1");
    rig.expect_nothing();
    assert_eq!(rig.uploads_seen(), 1);
}

#[test]
fn a_repeat_brings_credentials_to_a_waiting_run() {
    let policy = RetryPolicy { max_attempts: 2, backoff_sec: vec![3_600] };
    let maintenance = Some(window_around());
    let mut rig =
        Rig::start(AgentConfig { maintenance, ..config(vec![Job { retry: policy, ..job("j") }]) });
    rig.run("r1", "j");
    assert_eq!(rig.next(), "ack r1");
    let mut command = run_backup("r1", "j", rig.url("other"));
    command.upload_creds.as_mut().unwrap().object_key = "other".into();
    rig.say("again", ServerMessage::RunBackup(command));
    assert_eq!(rig.next(), "ack again");
    rig.configure(config(vec![job("j")]), 2);
    let upload = rig.upload();
    assert_eq!(upload.path(), "/other");
    upload.answer(200);
    assert_eq!(rig.next(), "ack config");
    rig.expect_success("r1");
}

#[test]
fn a_repeat_of_a_finished_run_sends_its_result_again() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let bytes = rig.upload().answer(200);
    assert_eq!(rig.next(), "ack r1");
    rig.expect_success("r1");
    rig.run("r1", "j");
    assert_eq!(rig.next(), format!("completed r1 {bytes}"));
    assert_eq!(rig.next(), "r1 Success");
    assert_eq!(rig.next(), "ack r1");
    assert_eq!(rig.uploads_seen(), 1);
}

#[test]
fn a_tombstone_answers_without_running() {
    let mut rig = Rig::prepared(config(vec![job("j")]), |store| {
        let mut table = Table::load(store.clone()).unwrap();
        let then = unix_ms() - 60 * 86_400_000;
        let old = Run::accept("old".into(), "j".into(), false, None, SecretBytes::default(), then)
            .end(Outcome::Cancelled, then);
        let mut batch = store.batch();
        table.stage(&mut batch, &old).unwrap();
        store.commit(batch).unwrap();
        table.apply(old);
        table.prune(unix_ms(), &|_| true).unwrap();
        assert_eq!(table.find("old").unwrap(), Found::Tombstone(EndKind::Cancelled));
    });
    rig.run("old", "j");
    assert!(rig.next().starts_with("old Cancelled"));
    assert_eq!(rig.next(), "ack old");
    assert_eq!(rig.uploads_seen(), 0);
}

#[test]
fn what_cannot_work_is_accepted_and_fails_and_what_has_no_name_is_refused() {
    let mut rig = Rig::start(config(vec![job("j")]));
    let good = |run_id: &str| run_backup(run_id, "j", Secret::new("http://127.0.0.1:1/o"));
    rig.run("r1", "nobody");
    rig.expect_failure("r1", "not in this agent's configuration");
    assert_eq!(rig.next(), "ack r1");
    let short = RunBackup { encrypted_dek: SecretBytes::new([7; 31]), ..good("r2") };
    rig.say("c2", ServerMessage::RunBackup(short));
    rig.expect_failure("r2", "32");
    assert_eq!(rig.next(), "ack c2");
    let nowhere = RunBackup { upload_creds: None, ..good("r3") };
    rig.say("c3", ServerMessage::RunBackup(nowhere));
    rig.expect_failure("r3", "upload URL");
    assert_eq!(rig.next(), "ack c3");
    rig.say("c4", ServerMessage::RunBackup(good("")));
    assert_eq!(rig.next(), "refused c4: the command has no run_id");
    let mut huge = good("r5");
    huge.upload_creds.as_mut().unwrap().object_key = "k".repeat(1 << 20);
    rig.say("c5", ServerMessage::RunBackup(huge));
    rig.expect_failure("r5", "object key");
    assert_eq!(rig.next(), "ack c5");
    rig.expect_nothing();
}

#[test]
fn a_cancel_ends_waiting_and_running_runs_of_the_job_and_no_other() {
    let mut rig = Rig::start(config(vec![job("j"), job("other")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.run("r2", "j");
    rig.run("r3", "other");
    rig.expect_acks(3);
    rig.say("stop it", ServerMessage::CancelJob { job_id: "j".into() });
    // The waiting one and the Ack are one batch; the running one follows.
    assert!(rig.next().starts_with("r2 Cancelled"));
    assert_eq!(rig.next(), "ack stop it");
    assert!(rig.next().starts_with("r1 Cancelled"));
    drop(upload);
    rig.upload().answer(200);
    rig.expect_success("r3");
    rig.expect_nothing();
}

#[test]
fn a_cancel_after_the_success_changes_nothing() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    rig.upload().answer(200);
    rig.expect_acks(1);
    rig.expect_success("r1");
    rig.say("late", ServerMessage::CancelJob { job_id: "j".into() });
    assert_eq!(rig.next(), "ack late");
    rig.expect_nothing();
}

#[test]
fn a_failure_that_can_pass_is_tried_again_and_one_that_cannot_is_not() {
    let retry = RetryPolicy { max_attempts: 3, backoff_sec: vec![0] };
    let mut rig = Rig::start(config(vec![Job { retry, ..job("j") }]));
    rig.run("r1", "j");
    rig.expect_acks(1);
    rig.upload().answer(503);
    assert!(rig.next().starts_with("log run r1 failed and is tried again in 0 s"));
    rig.upload().answer(200);
    rig.expect_success("r1");
    rig.run("r2", "j");
    rig.expect_acks(1);
    rig.upload().answer(403);
    rig.expect_failure("r2", "403");
    rig.expect_nothing();
}

#[test]
fn the_policys_attempts_are_all_there_is() {
    let retry = RetryPolicy { max_attempts: 2, backoff_sec: vec![0] };
    let mut rig = Rig::start(config(vec![Job { retry, ..job("j") }]));
    rig.run("r1", "j");
    rig.expect_acks(1);
    rig.upload().answer(503);
    assert!(rig.next().starts_with("log "));
    rig.upload().answer(503);
    rig.expect_failure("r1", "503");
    assert_eq!(rig.uploads_seen(), 2);
}

#[test]
fn runs_of_a_job_never_overlap_and_parallelism_is_bounded() {
    let mut settings = config(vec![job("a"), job("b"), job("c")]);
    settings.advanced.max_parallel_jobs = 2;
    let mut rig = Rig::start(settings);
    for (run_id, job_id) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")] {
        rig.run(run_id, job_id);
    }
    rig.expect_acks(4);
    let mut uploads = vec![rig.upload(), rig.upload()];
    assert_eq!(rig.phases(), "a1 running, a2 queued, b1 running, c1 queued");
    uploads.sort_by_key(|upload| upload.path().to_owned());
    uploads.remove(1).answer(200);
    rig.expect_success("b1");
    let third = rig.upload();
    assert_eq!(rig.phases(), "a1 running, a2 queued, c1 running");
    uploads.remove(0).answer(200);
    rig.expect_success("a1");
    let fourth = rig.upload();
    assert_eq!(rig.phases(), "a2 running, c1 running");
    third.answer(200);
    rig.expect_success("c1");
    fourth.answer(200);
    rig.expect_success("a2");
}

#[test]
fn a_scheduled_run_waits_for_the_window_and_a_manual_one_does_not() {
    let mut settings = config(vec![job("a"), job("b")]);
    settings.maintenance = Some(window_around());
    let mut rig = Rig::start(settings);
    rig.run("scheduled", "a");
    let mut manual = run_backup("manual", "b", rig.url("manual"));
    manual.manual_trigger = true;
    rig.say("manual", ServerMessage::RunBackup(manual));
    rig.expect_acks(2);
    rig.upload().answer(200);
    rig.expect_success("manual");
    assert_eq!(rig.phases(), "scheduled queued");
    let mut late = run_backup("late", "b", rig.url("late"));
    late.upload_creds.as_mut().unwrap().expires_at_ms = now_ms() + 60_000;
    rig.say("late", ServerMessage::RunBackup(late));
    rig.expect_acks(1);
    rig.expect_failure("late", "maintenance window");
    rig.configure(config(vec![job("a"), job("b")]), 2);
    assert_eq!(rig.next(), "ack config");
    rig.upload().answer(200);
    rig.expect_success("scheduled");
}

#[test]
fn a_url_that_expires_ends_the_wait() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    let mut late = run_backup("r2", "j", rig.url("r2"));
    late.upload_creds.as_mut().unwrap().expires_at_ms = now_ms() + 300;
    rig.say("r2", ServerMessage::RunBackup(late));
    rig.expect_acks(2);
    rig.expect_failure("r2", "expired before the run could start");
    upload.answer(200);
    rig.expect_success("r1");
}

#[test]
fn the_timeout_ends_an_attempt() {
    let mut rig = Rig::start(config(vec![Job { timeout_sec: 1, ..job("j") }]));
    rig.run("r1", "j");
    let _held = rig.upload();
    rig.expect_acks(1);
    rig.expect_failure("r1", "timeout of 1 s");
}

#[test]
fn the_timeout_ends_a_pause() {
    let retry = RetryPolicy { max_attempts: 2, backoff_sec: vec![3_600] };
    let mut rig = Rig::start(config(vec![Job { timeout_sec: 2, retry, ..job("j") }]));
    rig.run("r1", "j");
    rig.expect_acks(1);
    rig.upload().answer(503);
    assert!(rig.next().starts_with("log "));
    rig.expect_failure("r1", "timeout");
    assert_eq!(rig.uploads_seen(), 1);
}

#[test]
fn a_job_that_is_removed_ends_its_waiting_run_and_tries_no_more() {
    let retry = RetryPolicy { max_attempts: 2, backoff_sec: vec![0] };
    let mut rig = Rig::start(config(vec![Job { retry, ..job("j") }]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.run("r2", "j");
    rig.expect_acks(2);
    rig.configure(config(vec![]), 2);
    assert_eq!(rig.next(), "ack config");
    upload.answer(503);
    rig.expect_failure("r1", "503");
    rig.expect_failure("r2", "no longer in this agent's configuration");
}

#[test]
fn an_interrupted_run_goes_on_as_a_new_attempt() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.expect_acks(1);
    rig.crash();
    drop(upload);
    rig.restart();
    let upload = rig.upload();
    let table = Table::load(rig.store()).unwrap();
    let Found::Open(run) = table.find("r1").unwrap() else { panic!("it is open") };
    assert_eq!((run.attempts, run.restarts), (1, 1));
    upload.answer(200);
    rig.expect_success("r1");
    rig.expect_nothing();
}

#[test]
fn an_interrupted_run_whose_url_expired_fails() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.expect_acks(1);
    rig.crash();
    drop(upload);
    let store = rig.store();
    let mut run = Table::load(store.clone()).unwrap().get_open("r1").unwrap().clone();
    run.creds.as_mut().unwrap().expires_at_ms = now_ms() - 1;
    let mut batch = store.batch();
    Table::load(store.clone()).unwrap().stage(&mut batch, &run).unwrap();
    store.commit(batch).unwrap();
    drop(store);
    rig.restart();
    rig.expect_failure("r1", "expired since");
}

#[test]
fn a_run_that_stops_the_agent_again_and_again_is_given_up() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    rig.expect_acks(1);
    for _ in 0..MAX_RESTARTS {
        let upload = rig.upload();
        rig.crash();
        drop(upload);
        rig.restart();
    }
    let upload = rig.upload();
    rig.crash();
    drop(upload);
    rig.restart();
    rig.expect_failure("r1", "stopped 6 times");
    rig.expect_nothing();
}

#[test]
fn a_run_that_the_store_forgot_ends_as_lost() {
    let mut rig = Rig::prepared(config(vec![job("j")]), |_| ());
    rig.crash();
    let mut mark = Highwater::load(rig.path()).unwrap().unwrap();
    mark.open_runs.push(OpenRun { run_id: "gone".into(), job_id: "j".into() });
    mark.save(rig.path()).unwrap();
    rig.restart();
    rig.expect_failure("gone", "state lost");
    assert!(rig.next().contains("went back in time: 1 runs are lost"));
    rig.crash();
    rig.restart();
    rig.expect_nothing();
}

#[test]
fn a_plain_restart_is_no_alarm() {
    let mut rig = Rig::start(config(vec![job("j")]));
    for _ in 0..3 {
        rig.crash();
        rig.restart();
        rig.expect_nothing();
    }
    rig.run("r1", "j");
    rig.upload().answer(200);
    rig.expect_acks(1);
    rig.expect_success("r1");
    for _ in 0..2 {
        rig.crash();
        rig.restart();
        rig.expect_nothing();
    }
}

#[test]
fn an_older_configuration_is_refused_unless_the_handshake_brings_it() {
    let mut rig = Rig::start(AgentConfig { version: 5, ..config(vec![job("j")]) });
    rig.configure(config(vec![]), 4);
    assert_eq!(rig.next(), "refused config: version 4 is older than version 5, which is held");
    let ack = RegisterAck {
        config: Some(AgentConfig { version: 3, ..config(vec![job("k")]) }),
        ..RegisterAck::default()
    };
    rig.session(ack);
    rig.run("r1", "k");
    rig.upload().answer(200);
    rig.expect_acks(1);
    rig.expect_success("r1");
    rig.crash();
    assert_eq!(commands::load_config(&rig.store()).unwrap().version, 3);
    rig.restart();
    rig.run("r2", "k");
    rig.upload().answer(200);
    rig.expect_acks(1);
    rig.expect_success("r2");
}

#[test]
fn a_stop_lets_a_run_finish_within_the_grace() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.expect_acks(1);
    rig.stop();
    // Taken and kept, but not started.
    rig.run("r2", "j");
    assert_eq!(rig.next(), "ack r2");
    upload.answer(200);
    rig.join();
    rig.expect_success("r1");
    rig.restart();
    rig.upload().answer(200);
    rig.expect_success("r2");
}

#[test]
fn a_stop_interrupts_what_outlasts_the_grace() {
    let mut rig = Rig::with_grace(config(vec![job("j")]), Duration::from_millis(50));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.expect_acks(1);
    rig.stop();
    rig.join();
    drop(upload);
    rig.expect_nothing_queued();
    rig.restart();
    rig.upload().answer(200);
    rig.expect_success("r1");
}

#[test]
fn too_many_undelivered_results_refuse_new_runs() {
    let mut rig = Rig::prepared(config(vec![job("j")]), |_| ());
    let results = (0..super::MAX_OPEN).map(|number| {
        let run_id = format!("r{number}");
        let update = JobUpdate {
            job_id: "j".into(),
            run_id: run_id.clone(),
            status: JobStatus::Failed,
            progress_percent: 0,
            current_step: String::new(),
            error_message: String::new(),
        };
        Message {
            kind: Kind::Terminal,
            run_id: Some(run_id),
            correlation_id: String::new(),
            message: AgentMessage::JobUpdate(update),
        }
    });
    rig.publish(results.collect());
    rig.run("one too many", "j");
    // Nothing is received, and so delivered, before it has its answer.
    rig.wait_for_depth(super::MAX_OPEN + 1);
    let refused = rig.find(|line| line.contains("one too many"));
    assert!(refused.starts_with("refused one too many: 1000 runs"), "{refused}");
    // They are delivered now.
    rig.run("now", "j");
    rig.upload().answer(200);
    rig.expect_acks(1);
    rig.expect_success("now");
}

#[test]
fn the_snapshot_shows_no_secret() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.expect_acks(1);
    let shown = rig.snapshot().to_string();
    assert!(shown.contains("r1") && !shown.contains(rig::SIGNATURE), "{shown}");
    upload.answer(403);
    let failure = rig.next();
    assert!(failure.starts_with("r1 Failed") && !failure.contains(rig::SIGNATURE), "{failure}");
    assert!(!rig.snapshot().to_string().contains(rig::SIGNATURE));
}

#[test]
fn the_first_decision_stays_while_the_store_takes_nothing() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    let upload = rig.upload();
    rig.run("r2", "j");
    rig.expect_acks(2);
    rig.store().close().unwrap();
    // Neither the cancel of the waiting run nor the end of the running one can be stored.
    rig.say("c", ServerMessage::CancelJob { job_id: "j".into() });
    rig.wait_for_unsaved(1);
    upload.answer(200);
    rig.wait_for_unsaved(2);
    // A repeat changes nothing about a run that is decided, and starts nothing.
    rig.run("r2", "j");
    rig.wait_for_unsaved(2);
    rig.expect_nothing_queued();
    assert_eq!(rig.uploads_seen(), 1);
}

#[test]
fn warnings_of_the_process_reach_the_control_plane() {
    let mut rig = Rig::start(config(vec![]));
    rig.log(log::Level::Error, "the disk smells of smoke");
    assert_eq!(rig.next(), "log the disk smells of smoke");
    rig.log(log::Level::Warn, "see https://h/o?X-Amz-Signature=5ec7e7516");
    assert!(!rig.next().contains("5ec7e7516"));
}

#[test]
fn the_control_plane_is_told_of_start_and_end_of_a_run() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.run("r1", "j");
    rig.upload().answer(200);
    assert_eq!(rig.next(), "ack r1");
    rig.expect_success("r1");
    rig.run("r2", "j");
    rig.upload().answer(403);
    rig.find(|line| line.starts_with("r2 Failed"));
    let said: Vec<_> =
        rig.said.iter().map(|e| (e.level, e.fields[0].1.as_str(), &e.message)).collect();
    assert_eq!(said.len(), 4, "{said:?}");
    for ((level, run_id, text), (wanted, of, word)) in said.into_iter().zip([
        (LogLevel::Info, "r1", "attempt 1"),
        (LogLevel::Info, "r1", "completed"),
        (LogLevel::Info, "r2", "attempt 1"),
        (LogLevel::Error, "r2", "failed"),
    ]) {
        assert!(
            level == wanted && run_id == of && text.contains(word),
            "{level:?} {run_id} {text}"
        );
    }
}
