//! Uploads in parts, as dispatch sees them: who asks, who answers, and when an upload is given up.

use super::rig::{Rig, Upload, config, job, run_backup};
use crate::model::{Job, Multipart, PartUrl, RetryPolicy};
use crate::runs::state::MAX_RESTARTS;
use crate::runs::table::Table;
use crate::secret::Secret;
use crate::wire::{PartUrls, RunBackup, ServerMessage};

const RESULT: &str = "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>";

fn part(rig: &Rig, upload_id: &str, number: u32) -> PartUrl {
    PartUrl { number, url: rig.url(&format!("{upload_id}-{number}")) }
}

/// With URLs for so many parts.
fn order(rig: &Rig, run_id: &str, upload_id: &str, parts: u32) -> RunBackup {
    let mut command = run_backup(run_id, "j", Secret::default());
    command.upload_creds.as_mut().unwrap().multipart = Some(Multipart {
        upload_id: upload_id.into(),
        part_size_bytes: 8 << 20,
        parts: (1..=parts).map(|number| part(rig, upload_id, number)).collect(),
        complete_url: rig.url(&format!("{upload_id}?uploadId={upload_id}")),
        abort_url: rig.url(&format!("{upload_id}?uploadId={upload_id}")),
        expires_at_ms: 0,
    });
    command
}

#[track_caller]
fn send(rig: &mut Rig, run_id: &str, upload_id: &str, parts: u32) {
    rig.say(run_id, ServerMessage::RunBackup(order(rig, run_id, upload_id, parts)));
    assert_eq!(rig.next(), format!("ack {run_id}"));
}

fn deliver(rig: &Rig, run_id: &str, upload_id: &str, parts: u32, error: &str) {
    let urls = PartUrls {
        run_id: run_id.into(),
        upload_id: upload_id.into(),
        parts: (1..=parts).map(|number| part(rig, upload_id, number)).collect(),
        error: error.into(),
    };
    rig.say("", ServerMessage::PartUrls(urls));
}

#[track_caller]
fn expect_upload(rig: &Rig, path: &str) -> Upload {
    let upload = rig.upload();
    assert_eq!(upload.path(), path);
    upload
}

#[track_caller]
fn expect_abort(rig: &Rig, upload_id: &str) {
    expect_upload(rig, &format!("DELETE /{upload_id}")).answer(204);
}

/// The rest of a run whose part is on its way.
#[track_caller]
fn expect_stored(rig: &mut Rig, run_id: &str, upload_id: &str) {
    expect_upload(rig, &format!("/{upload_id}-1")).answer(200);
    expect_upload(rig, &format!("POST /{upload_id}")).answer_with(200, RESULT);
    rig.expect_success(run_id);
    rig.expect_nothing();
}

#[test]
fn urls_are_asked_for_until_they_come_and_only_the_right_ones_count() {
    let mut rig = Rig::start(config(vec![job("j")]));
    send(&mut rig, "r1", "u1", 0);
    let request = rig.part_urls_request();
    assert_eq!((request.run_id.as_str(), request.upload_id.as_str()), ("r1", "u1"));
    assert_eq!(request.first_part, 1);
    assert!(request.count > 1);
    deliver(&rig, "r1", "u2", 1, "");
    deliver(&rig, "r2", "u1", 1, "");
    deliver(&rig, "r2", "u1", 0, "no");
    rig.expect_nothing();
    assert_eq!(rig.uploads_seen(), 0);
    // The connection was lost, and with it the request or its answer.
    rig.new_session();
    assert_eq!(rig.part_urls_request(), request);
    deliver(&rig, "r1", "u1", 1, "");
    expect_stored(&mut rig, "r1", "u1");
}

#[test]
fn a_refusal_ends_the_run_and_gives_the_upload_up() {
    let mut rig = Rig::start(config(vec![job("j")]));
    send(&mut rig, "r1", "u1", 0);
    rig.part_urls_request();
    deliver(&rig, "r1", "u1", 0, "the run is unknown");
    rig.expect_failure("r1", "the run is unknown");
    expect_abort(&rig, "u1");
    rig.expect_nothing();
}

#[test]
fn more_urls_than_anybody_needs_are_not_taken() {
    let mut rig = Rig::start(config(vec![job("j")]));
    rig.say("r1", ServerMessage::RunBackup(order(&rig, "r1", "u1", 300)));
    rig.expect_failure("r1", "URLs for 300 parts");
    assert_eq!(rig.next(), "ack r1");
    expect_abort(&rig, "u1");
    send(&mut rig, "r2", "u2", 0);
    rig.part_urls_request();
    deliver(&rig, "r2", "u2", 300, "");
    rig.expect_failure("r2", "URLs for 300 parts");
    expect_abort(&rig, "u2");
}

#[test]
fn a_cancel_ends_the_run_and_gives_the_upload_up() {
    let mut rig = Rig::start(config(vec![job("j")]));
    send(&mut rig, "r1", "u1", 20);
    let _held = expect_upload(&rig, "/u1-1");
    rig.say("cancel", ServerMessage::CancelJob { job_id: "j".into() });
    assert_eq!(rig.next(), "ack cancel");
    assert!(rig.next().starts_with("r1 Cancelled"));
    expect_abort(&rig, "u1");
}

#[test]
fn a_retry_uses_the_same_upload_and_the_end_gives_it_up() {
    let retry = RetryPolicy { max_attempts: 2, backoff_sec: vec![0] };
    let mut rig = Rig::start(config(vec![Job { retry, ..job("j") }]));
    for (run_id, upload_id) in [("r1", "u1"), ("r2", "u2")] {
        send(&mut rig, run_id, upload_id, 20);
        expect_upload(&rig, &format!("/{upload_id}-1")).answer(503);
        assert!(rig.next().contains("tried again"));
        if run_id == "r1" {
            expect_stored(&mut rig, run_id, upload_id);
        } else {
            expect_upload(&rig, &format!("/{upload_id}-1")).answer(503);
            rig.expect_failure(run_id, "503");
            expect_abort(&rig, upload_id);
        }
    }
}

#[test]
fn a_crash_resumes_with_the_same_upload() {
    let mut rig = Rig::start(config(vec![job("j")]));
    send(&mut rig, "r1", "u1", 20);
    let held = expect_upload(&rig, "/u1-1");
    rig.crash();
    drop(held);
    rig.restart();
    expect_stored(&mut rig, "r1", "u1");
}

#[test]
fn what_a_crash_left_is_given_up_when_the_run_cannot_go_on() {
    let mut rig = Rig::start(config(vec![job("j")]));
    send(&mut rig, "r1", "u1", 20);
    let held = expect_upload(&rig, "/u1-1");
    rig.crash();
    drop(held);
    let store = rig.store();
    let mut table = Table::load(store.clone()).unwrap();
    let mut run = table.get_open("r1").unwrap().clone();
    run.restarts = MAX_RESTARTS;
    let mut batch = store.batch();
    table.stage(&mut batch, &run).unwrap();
    store.commit(batch).unwrap();
    table.apply(run);
    drop((table, store));
    rig.restart();
    rig.expect_failure("r1", "not tried again");
    expect_abort(&rig, "u1");
}

#[test]
fn a_repeat_renews_the_urls_of_the_same_upload_only() {
    let mut rig = Rig::start(config(vec![job("j")]));
    send(&mut rig, "r1", "u1", 0);
    let request = rig.part_urls_request();
    send(&mut rig, "r1", "u2", 20);
    rig.expect_nothing();
    rig.new_session();
    assert_eq!(rig.part_urls_request(), request, "it still needs them");
    assert_eq!(rig.uploads_seen(), 0, "the attempt keeps its own upload");
    send(&mut rig, "r1", "u1", 20);
    expect_stored(&mut rig, "r1", "u1");
}
