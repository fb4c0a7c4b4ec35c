//! Whole attempts in parts, against a store that is as strict as S3.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use ring::digest::{SHA256, digest};

use super::parts_store::{About, MIB, PART, PartStore, Trouble, chunked};
use super::testing::{Fake, Play, SECRET, Store, noise, quick, s3_error, status};
use super::tests::Bench;
use super::upload::{Fault, Timing, Tries};
use super::*;
use crate::drivers::DriverError;
use crate::secret::Secret;
use crate::thread::spawn;

/// As it is used for parts: nothing can be spooled here.
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.compression = Compression::None;
    bench.limits.min_free_bytes = u64::MAX;
    bench
}

fn places(store_creds: &UploadCreds) -> (Places, Receiver<(u32, u32)>) {
    let (sender, asked) = bounded(1000);
    // Nobody may listen any more.
    let ask = move |first, count| {
        let _ = sender.try_send((first, count));
    };
    (Places::new(store_creds.multipart.as_ref().unwrap(), Arc::new(ask)), asked)
}

fn run(bench: &Bench, store: &PartStore, driver: Fake) -> Result<Outcome, PipelineError> {
    let creds = store.creds(20);
    bench.run_to(driver, &creds, Some(places(&creds).0))
}

fn fault(error: PipelineError) -> Fault {
    match error {
        PipelineError::Upload(error) => error.fault,
        other => panic!("{other}"),
    }
}

#[test]
fn a_dump_goes_to_the_store_in_equal_parts_and_nothing_is_spooled() {
    let (bench, store) = (bench(), PartStore::start(vec![]));
    let data = noise(12 * MIB, 1);
    let outcome = run(&bench, &store, Fake::with(data.clone())).unwrap();
    let object = store.object().unwrap();
    assert_eq!(store.sizes(), [PART, PART, object.len() - 2 * PART]);
    assert_eq!((outcome.size_bytes, outcome.object_key.as_str()), (object.len() as u64, "key"));
    assert_eq!(outcome.sha256, digest(&SHA256, &object).as_ref());
    assert!(bench.undo(&object) == data);
    assert_eq!((store.count(About::Complete), store.count(About::Abort)), (1, 0));
    let steps = [Step::Validating, Step::Dumping, Step::Uploading, Step::Verifying];
    assert_eq!(bench.steps(), steps);
}

#[test]
fn the_smallest_artifact_is_one_part() {
    let (mut bench, store) = (bench(), PartStore::start(vec![]));
    bench.encrypted = false;
    let outcome = run(&bench, &store, Fake::with(vec![])).unwrap();
    assert_eq!((store.object().unwrap().len(), store.sizes().as_slice()), (0, &[0][..]));
    assert_eq!(outcome.sha256, digest(&SHA256, b"").as_ref());
}

#[test]
fn each_part_is_repeated_on_its_own_with_the_same_bytes() {
    let mut bench = bench();
    bench.upload =
        bench.upload.with_timing(Timing { answer: Duration::from_millis(300), ..quick() });
    let busy = Trouble::Answer(status("503 Slow Down"));
    let store = PartStore::start(vec![
        (About::Part(1), vec![busy.clone(), Trouble::ResetAfter(MIB)]),
        (About::Part(2), vec![Trouble::Mute, Trouble::Lost]),
        (About::Part(3), vec![Trouble::Answer(status("200 OK")), busy]),
    ]);
    let data = noise(11 * MIB, 2);
    run(&bench, &store, Fake::with(data.clone())).unwrap();
    assert!(bench.undo(&store.object().unwrap()) == data);
    for number in 1..=3 {
        assert_eq!(store.count(About::Part(number)), 3);
    }
}

#[test]
fn a_part_that_is_refused_fails_the_attempt_and_nothing_is_completed() {
    let denied = Trouble::Answer(s3_error("403 Forbidden", "AccessDenied", "no"));
    let gone = Trouble::Answer(s3_error("404 Not Found", "NoSuchUpload", "gone"));
    // The next attempt may get an upload of its own.
    for (trouble, says, retry) in
        [(denied, "403 AccessDenied", false), (gone, "was given up", true)]
    {
        let store = PartStore::start(vec![(About::Part(2), vec![trouble])]);
        let error = run(&bench(), &store, Fake::with(noise(30 * MIB, 3))).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.retry(), retry, "{error}");
        assert_eq!((store.count(About::Part(2)), store.count(About::Complete)), (1, 0));
    }
}

#[test]
fn tries_of_a_part_end() {
    let busy = Trouble::Answer(status("503 Slow Down"));
    let store = PartStore::start(vec![(About::Part(1), vec![busy; 9])]);
    let error = run(&bench(), &store, Fake::with(noise(6 * MIB, 3))).unwrap_err();
    assert!(error.retry() && error.to_string().contains("3 tries"), "{error}");
    assert_eq!((store.count(About::Part(1)), store.count(About::Complete)), (3, 0));
}

#[test]
fn urls_that_have_expired_are_replaced() {
    let expired = Trouble::Answer(s3_error("403 Forbidden", "AccessDenied", "Request has expired"));
    let store = Arc::new(PartStore::start(vec![(About::Part(2), vec![expired.clone()])]));
    let creds = store.creds(20);
    let (places, asked) = places(&creds);
    let (source, target) = (store.clone(), places.clone());
    let control = spawn("control", move || {
        let (first, count) = asked.recv_timeout(Duration::from_secs(20)).unwrap();
        target.deliver(&source.part_urls(first..=first + count - 1), "");
        first
    });
    let data = noise(12 * MIB, 4);
    let bench = bench();
    bench.run_to(Fake::with(data.clone()), &creds, Some(places)).unwrap();
    assert!(control.unwrap().join().unwrap() >= 2);
    assert!(bench.undo(&store.object().unwrap()) == data);
    assert_eq!(store.count(About::Part(2)), 2);
}

#[test]
fn urls_come_while_they_are_needed() {
    let store = Arc::new(PartStore::start(vec![]));
    let creds = store.creds(1);
    let (places, asked) = places(&creds);
    let (source, target) = (store.clone(), places.clone());
    let control = spawn("control", move || {
        // One by one, however many it asks for.
        let mut firsts = Vec::new();
        while let Ok((first, _)) = asked.recv_timeout(Duration::from_secs(20)) {
            target.deliver(&source.part_urls(first..=first), "");
            firsts.push(first);
            if first == 12 {
                break;
            }
        }
        firsts
    });
    let data = noise(22 * MIB, 5);
    let bench = bench();
    bench.run_to(Fake::with(data.clone()), &creds, Some(places)).unwrap();
    assert!(bench.undo(&store.object().unwrap()) == data);
    assert!(control.unwrap().join().unwrap().starts_with(&[2, 3]));
}

#[test]
fn urls_that_never_come_fail_the_attempt_in_time() {
    let mut bench = bench();
    let timing = Timing { part_urls: Duration::from_millis(50), ..quick() };
    bench.upload = bench.upload.with_timing(timing);
    let store = PartStore::start(vec![]);
    let creds = store.creds(1);
    let (places, _asked) = places(&creds);
    let error = bench.run_to(Fake::with(noise(12 * MIB, 6)), &creds, Some(places)).unwrap_err();
    assert!(error.retry() && error.to_string().contains("part 2"), "{error}");
    assert!(matches!(fault(error), Fault::PlaceTimeout { part: 2, .. }));
    assert_eq!(store.count(About::Complete), 0);
}

#[test]
fn a_control_plane_that_says_no_ends_the_attempt() {
    let store = PartStore::start(vec![]);
    let creds = store.creds(1);
    let (places, asked) = places(&creds);
    let target = places.clone();
    let control = spawn("control", move || {
        asked.recv_timeout(Duration::from_secs(20)).unwrap();
        target.deliver(&[], "the run is over");
    });
    let error = bench().run_to(Fake::with(noise(12 * MIB, 6)), &creds, Some(places)).unwrap_err();
    control.unwrap().join().unwrap();
    assert!(!error.retry() && error.to_string().contains("the run is over"), "{error}");
}

#[test]
fn a_dump_that_fails_behind_some_parts_is_never_completed() {
    let store = PartStore::start(vec![]);
    let driver = Fake::dumping(|_, out| {
        out.write_all(&noise(14 * MIB, 7)).map_err(DriverError::Sink)?;
        // As a tool that exits with 1 or leaves its end mark out.
        Err(DriverError::Cancelled(Why::Sibling))
    });
    let error = run(&bench(), &store, driver).unwrap_err();
    assert!(matches!(error, PipelineError::Driver(_)), "{error}");
    assert_eq!(store.count(About::Complete), 0);
}

#[test]
fn a_new_attempt_uses_the_same_upload_and_only_its_own_parts_count() {
    let store = PartStore::start(vec![]);
    let bench = bench();
    let driver = Fake::dumping(|_, out| {
        // So much more than the way holds that some of its parts have arrived.
        out.write_all(&noise(40 * MIB, 8)).map_err(DriverError::Sink)?;
        Err(DriverError::Cancelled(Why::Sibling))
    });
    run(&bench, &store, driver).unwrap_err();
    let data = noise(6 * MIB, 9);
    run(&bench, &store, Fake::with(data.clone())).unwrap();
    assert!(bench.undo(&store.object().unwrap()) == data);
    assert!(store.sizes().len() > 2, "there are parts of the first attempt");
}

#[test]
fn a_complete_that_fails_behind_its_200_is_a_failure() {
    let hidden =
        |code: &str| Trouble::Answer(chunked(&format!("<Error><Code>{code}</Code></Error>")));
    let store = PartStore::start(vec![(About::Complete, vec![hidden("InternalError")])]);
    run(&bench(), &store, Fake::with(noise(6 * MIB, 10))).unwrap();
    assert_eq!(store.count(About::Complete), 2);
    let store = PartStore::start(vec![(About::Complete, vec![hidden("InvalidPart")])]);
    let error = run(&bench(), &store, Fake::with(noise(6 * MIB, 10))).unwrap_err();
    assert!(error.to_string().contains("InvalidPart") && !error.retry(), "{error}");
    assert_eq!(store.count(About::Complete), 1);
    let empty = Trouble::Answer(status("200 OK"));
    let store = PartStore::start(vec![(About::Complete, vec![empty; 9])]);
    let error = run(&bench(), &store, Fake::with(noise(6 * MIB, 10))).unwrap_err();
    assert!(error.to_string().contains("confirms no object"), "{error}");
}

#[test]
fn a_lost_answer_to_complete_is_asked_for_again_and_never_guessed() {
    let store = PartStore::start(vec![(About::Complete, vec![Trouble::Lost])]);
    let outcome = run(&bench(), &store, Fake::with(noise(6 * MIB, 11))).unwrap();
    assert_eq!(outcome.size_bytes, store.object().unwrap().len() as u64);
    let store = PartStore::start(vec![(About::Complete, vec![Trouble::LostAndForgotten])]);
    let error = run(&bench(), &store, Fake::with(noise(6 * MIB, 11))).unwrap_err();
    assert!(error.to_string().contains("nobody confirmed it") && error.retry(), "{error}");
    assert!(matches!(fault(error), Fault::Unsure));
}

#[test]
fn a_cancel_ends_it_wherever_it_waits() {
    for about in [About::Part(1), About::Part(2), About::Complete] {
        let store = Arc::new(PartStore::start(vec![(about, vec![Trouble::Mute])]));
        let (bench, source) = (bench(), store.clone());
        let cancel = bench.cancel.clone();
        let attempt =
            spawn("attempt", move || run(&bench, &source, Fake::with(noise(11 * MIB, 12))))
                .unwrap();
        while store.arrival() != about {}
        cancel.cancel(Why::Requested);
        let started = Instant::now();
        let error = attempt.join().unwrap().unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        assert_eq!(error.cancelled(), Some(Why::Requested));
        assert_eq!(store.object(), None);
    }
}

#[test]
fn what_is_in_memory_is_bounded_by_the_workers() {
    let mute = || vec![Trouble::Mute];
    let store = Arc::new(PartStore::start(vec![
        (About::Part(1), mute()),
        (About::Part(2), mute()),
        (About::Part(3), mute()),
    ]));
    let taken = Arc::new(AtomicUsize::new(0));
    let (bench, source, count) = (bench(), store.clone(), taken.clone());
    let cancel = bench.cancel.clone();
    let driver = Fake::dumping(move |_, out| {
        let piece = noise(MIB, 13);
        for _ in 0..60 {
            out.write_all(&piece).map_err(DriverError::Sink)?;
            count.fetch_add(1, Ordering::SeqCst);
        }
        Ok(crate::drivers::Dumped { bytes: 60 << 20, warnings: vec![] })
    });
    let attempt = spawn("attempt", move || run(&bench, &source, driver)).unwrap();
    let workers = PartPlan::new(PART as u64)
        .unwrap()
        .workers(std::thread::available_parallelism().unwrap().get(), 0);
    for _ in 0..workers {
        store.arrival();
    }
    // Nobody takes anything any more: the pools and channels fill and the driver stands still.
    let full = spawn("wait", move || cancel.sleep(Duration::from_millis(300)).then_some(cancel));
    full.unwrap().join().unwrap().unwrap().cancel(Why::Requested);
    attempt.join().unwrap().unwrap_err();
    assert_eq!(store.count(About::Part(3)), 0);
    let pipeline = 12;
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken <= workers * PART / MIB + pipeline, "{taken} MiB");
}

#[test]
fn what_cannot_fit_fails_before_anything_is_dumped() {
    let store = PartStore::start(vec![]);
    let mut driver = Fake::dumping(|_, _| panic!("dumped"));
    driver.prepare = Box::new(|_| {
        let size_hint_bytes = Some(4_000_000 * MIB as u64);
        Ok(Prepared { engine_version: String::new(), size_hint_bytes, warnings: vec![] })
    });
    let error = run(&bench(), &store, driver).unwrap_err();
    assert!(error.to_string().contains("larger parts") && !error.retry(), "{error}");
    for size in [0, 1 << 20, 5 << 30] {
        let mut creds = store.creds(1);
        creds.multipart.as_mut().unwrap().part_size_bytes = size;
        let error = bench().upload.check(&creds).unwrap_err();
        assert!(error.to_string().contains("5 to 64 MiB") && !error.retry(), "{error}");
    }
}

#[test]
fn an_abort_is_content_with_an_upload_that_is_gone() {
    let cancel = Cancel::new().unwrap();
    let busy = Trouble::Answer(status("503 Slow Down"));
    let store = PartStore::start(vec![(About::Abort, vec![busy])]);
    let multipart = store.creds(1).multipart.unwrap();
    let upload = bench().upload.with_timing(quick());
    upload.abort(&multipart, &cancel).unwrap();
    upload.abort(&multipart, &cancel).unwrap();
    assert_eq!(store.count(About::Abort), 3);
    let once = Timing { tries: Tries { max: 1, ..quick().tries }, ..quick() };
    let denied = Trouble::Answer(s3_error("403 Forbidden", "AccessDenied", "no"));
    let store = PartStore::start(vec![(About::Abort, vec![denied])]);
    let multipart = store.creds(1).multipart.unwrap();
    let error = bench().upload.with_timing(once).abort(&multipart, &cancel).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
}

#[test]
fn an_abort_that_would_delete_an_object_is_never_sent() {
    let store = PartStore::start(vec![]);
    let mut creds = store.creds(1);
    let multipart = creds.multipart.as_mut().unwrap();
    let url = multipart.abort_url.expose().replace("uploadId=u&", "");
    multipart.abort_url = Secret::new(url);
    let upload = bench().upload.with_timing(quick());
    let cancel = Cancel::new().unwrap();
    for error in [upload.check(&creds), upload.abort(creds.multipart.as_ref().unwrap(), &cancel)] {
        let error = error.unwrap_err();
        assert!(error.to_string().contains("does not name the upload") && !error.retry());
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }
    assert!(store.is_untouched());
}

#[test]
fn a_dump_whose_server_does_not_wait_is_completed_first() {
    for (hint, in_one) in [(Some(1 << 20), true), (Some(6 << 30), false), (None, false)] {
        let (parts, one) =
            (PartStore::start(vec![]), Store::plain(vec![Play::Answer(status("200 OK"))]));
        let mut driver = Fake::with(noise(MIB, 21));
        driver.prepare = Box::new(move |_| {
            Ok(Prepared { engine_version: String::new(), size_hint_bytes: hint, warnings: vec![] })
        });
        driver.hurries = true;
        let creds = UploadCreds { put_url: one.creds().put_url, ..parts.creds(20) };
        bench().run_to(driver, &creds, Some(places(&creds).0)).unwrap();
        assert_eq!(parts.count(About::Complete), usize::from(!in_one), "{hint:?}");
        assert_eq!(parts.object().is_none(), in_one, "{hint:?}");
    }
}
