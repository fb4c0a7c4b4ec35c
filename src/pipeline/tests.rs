//! Whole attempts: a driver that is a closure, every stage, and a store on a real socket.

use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use tempfile::TempDir;

use super::testing::{Fake, Play, SECRET, Store, noise, quick, s3_error, status};
use super::*;
use crate::artifact::{Options, decrypt};
use crate::config::{ProxySettings, TlsSettings};
use crate::drivers::DriverError;
use crate::model::Trust;
use crate::thread::spawn;

const KEY: [u8; 32] = [42; 32];

/// One attempt's surroundings.
pub(super) struct Bench {
    dir: TempDir,
    pub(super) limits: PipelineLimits,
    policy: HostPolicy,
    pub(super) upload: Uploader,
    pub(super) compression: Compression,
    pub(super) encrypted: bool,
    deadline: Option<Deadline>,
    pub(super) cancel: Cancel,
    steps: Mutex<Vec<Progress>>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let upload =
            Uploader::new(TlsSettings::default(), ProxySettings::default(), UrlPolicy::AllowHttp);
        Self {
            dir: tempfile::tempdir().unwrap(),
            limits: PipelineLimits {
                min_free_bytes: 0,
                min_free_percent: 0,
                ..PipelineLimits::default()
            },
            policy: HostPolicy::new(Trust::Local),
            upload: upload.with_timing(quick()),
            compression: Compression::Zstd,
            encrypted: true,
            deadline: None,
            cancel: Cancel::new().unwrap(),
            steps: Mutex::default(),
        }
    }

    fn run(&self, driver: Fake, creds: &UploadCreds) -> Result<Outcome, PipelineError> {
        self.run_to(driver, creds, None)
    }

    pub(super) fn run_to(
        &self,
        driver: Fake,
        creds: &UploadCreds,
        places: Option<Places>,
    ) -> Result<Outcome, PipelineError> {
        let progress = |progress: Progress| self.steps.lock().unwrap().push(progress);
        let result = back_up(Order {
            driver: Box::new(driver),
            compression: self.compression,
            key: self.encrypted.then(|| DataKey::from_bytes(&KEY).unwrap()),
            creds: &|| creds.clone(),
            places,
            upload: &self.upload,
            policy: &self.policy,
            limits: &self.limits,
            state_dir: self.dir.path(),
            deadline: self.deadline,
            cancel: &self.cancel,
            progress: &progress,
        });
        if let Err(error) = &result {
            let text = format!("{error} {error:?}");
            assert!(!text.contains(SECRET), "{text}");
        }
        // Whatever happened: nothing is left.
        let spooled = std::fs::read_dir(spool_dir(self.dir.path()));
        assert_eq!(spooled.map_or(0, Iterator::count), 0);
        result
    }

    fn refuse(&self, driver: Fake) -> PipelineError {
        let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
        let error = self.run(driver, &store.creds()).unwrap_err();
        assert_eq!(store.finish().len(), 0, "something was uploaded: {error}");
        error
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<_> = self.steps.lock().unwrap().iter().map(|p| p.step).collect();
        steps.dedup();
        steps
    }

    /// The dump inside what the store got.
    pub(super) fn undo(&self, artifact: &[u8]) -> Vec<u8> {
        let key = self.encrypted.then(|| DataKey::from_bytes(&KEY).unwrap());
        let mut dump = Vec::new();
        let done = decrypt(artifact, key.as_ref(), &mut dump, Options::default()).unwrap();
        assert_eq!(done.compression, self.compression);
        dump
    }
}

fn ok_store() -> Store {
    Store::plain(vec![Play::Answer(status("200 OK"))])
}

/// A dump that compresses somewhat and is not a multiple of anything.
fn sample(length: usize) -> Vec<u8> {
    let mut data = noise(length, 11);
    for chunk in data.chunks_mut(1000) {
        let half = chunk.len() / 2;
        chunk[..half].fill(b'x');
    }
    data
}

const STEPS: [Step; 4] = [Step::Validating, Step::Dumping, Step::Uploading, Step::Verifying];

#[test]
fn every_combination_restores() {
    for length in [0, 1, 100_000, (9 << 20) + 17] {
        let dump = sample(length);
        for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
            for encrypted in [true, false] {
                for (memory_bytes, threads) in [(8 << 20, 1), (0, 2)] {
                    let mut bench = Bench { compression, encrypted, ..Bench::new() };
                    bench.limits.memory_bytes = memory_bytes;
                    bench.limits.compress_threads = threads;
                    let store = ok_store();
                    let outcome = bench.run(Fake::with(dump.clone()), &store.creds()).unwrap();
                    let artifact = store.finish().remove(0).body;
                    let what = format!("{length} {compression:?} {encrypted} {memory_bytes}");
                    assert!(bench.undo(&artifact) == dump, "{what}");
                    assert_eq!(outcome.size_bytes, artifact.len() as u64, "{what}");
                    assert_eq!(outcome.sha256, digest(&SHA256, &artifact).as_ref(), "{what}");
                    assert_eq!(outcome.dump_bytes, length as u64, "{what}");
                    assert_eq!(bench.steps(), STEPS, "{what}");
                }
            }
        }
    }
}

#[test]
fn the_outcome_names_version_compression_and_warnings() {
    let bench = Bench::new();
    let outcome = bench.run(Fake::with(sample(10)), &ok_store().creds()).unwrap();
    assert_eq!(outcome.engine_version, "Fake 1.0");
    assert_eq!(outcome.compression, Compression::Zstd);
    assert_eq!(outcome.warnings, ["prepared", "dumped"]);
}

#[test]
fn small_writes_of_a_driver_add_up() {
    let bench = Bench { compression: Compression::None, ..Bench::new() };
    let store = ok_store();
    let driver = Fake::dumping(|_, out| {
        for _ in 0..300_000 {
            out.write_all(b"0123456789").map_err(DriverError::Sink)?;
        }
        out.flush().map_err(DriverError::Sink)?;
        Ok(Dumped { bytes: 3_000_000, warnings: Vec::new() })
    });
    bench.run(driver, &store.creds()).unwrap();
    let artifact = store.finish().remove(0).body;
    assert!(bench.undo(&artifact) == b"0123456789".repeat(300_000));
    // Full frames, one short one, the end: what a strict reader asks for.
    assert_eq!(artifact.len(), 3_000_000 + 3 * 32 + 4);
}

#[test]
fn the_network_is_retried_with_the_same_bytes_and_one_dump() {
    let bench = Bench::new();
    let script = vec![
        Play::ResetAfter(100_000),
        Play::Answer(status("503 Slow Down")),
        Play::Answer(status("200 OK")),
    ];
    let store = Store::plain(script);
    static DUMPS: AtomicUsize = AtomicUsize::new(0);
    let data = noise(9 << 20, 12);
    let length = data.len() as u64;
    let driver = Fake::dumping(move |_, out| {
        DUMPS.fetch_add(1, Ordering::Relaxed);
        out.write_all(&data).map_err(DriverError::Sink)?;
        Ok(Dumped { bytes: length, warnings: Vec::new() })
    });
    let outcome = bench.run(driver, &store.creds()).unwrap();
    let requests = store.finish();
    assert_eq!((requests.len(), DUMPS.load(Ordering::Relaxed)), (3, 1));
    assert!(requests[1].body == requests[2].body);
    assert_eq!(outcome.sha256, digest(&SHA256, &requests[2].body).as_ref());
}

#[test]
fn a_refusal_ends_the_attempt() {
    let bench = Bench::new();
    let refusal = s3_error("403 Forbidden", "SignatureDoesNotMatch", "m");
    let store = Store::plain(vec![Play::Answer(refusal)]);
    let error = bench.run(Fake::with(sample(10)), &store.creds()).unwrap_err();
    assert!(!error.retry() && !error.is_cancelled());
    assert!(error.to_string().contains("403 SignatureDoesNotMatch"), "{error}");
    assert_eq!(bench.steps(), STEPS[..3]);
}

#[test]
fn bad_credentials_fail_before_the_dump() {
    let unused = || Fake::dumping(|_, _| panic!("dumped in vain"));
    let store = ok_store();
    let expired = UploadCreds { expires_at_ms: 1, ..store.creds() };
    let error = Bench::new().run(unused(), &expired).unwrap_err();
    assert!(error.to_string().contains("expired") && !error.retry(), "{error}");
    let missing = UploadCreds { put_url: crate::secret::Secret::default(), ..store.creds() };
    let error = Bench::new().run(unused(), &missing).unwrap_err();
    assert!(error.to_string().contains("missing") && !error.retry(), "{error}");
}

#[test]
fn the_upload_takes_the_credentials_of_its_moment() {
    let bench = Bench::new();
    let (first, second) = (ok_store(), ok_store());
    let asked = AtomicUsize::new(0);
    let creds = || match asked.fetch_add(1, Ordering::Relaxed) {
        0 => first.creds(),
        _ => UploadCreds { object_key: "fresh".into(), ..second.creds() },
    };
    let outcome = back_up(Order {
        driver: Box::new(Fake::with(sample(1000))),
        compression: Compression::Zstd,
        key: None,
        creds: &creds,
        places: None,
        upload: &bench.upload,
        policy: &bench.policy,
        limits: &bench.limits,
        state_dir: bench.dir.path(),
        deadline: None,
        cancel: &bench.cancel,
        progress: &|_| (),
    })
    .unwrap();
    assert_eq!(outcome.object_key, "fresh");
    assert_eq!((first.finish().len(), second.finish().len()), (0, 1));
}

#[test]
fn a_driver_that_fails_uploads_nothing() {
    let half = || {
        Fake::dumping(|_, out| {
            out.write_all(&noise(3 << 20, 13)).map_err(DriverError::Sink)?;
            Err(DriverError::Unsupported { what: "the second half".into() })
        })
    };
    let error = Bench::new().refuse(half());
    assert!(matches!(error, PipelineError::Driver(DriverError::Unsupported { .. })), "{error}");
    let early = Fake {
        prepare: Box::new(|_| Err(DriverError::Unsupported { what: "it".into() })),
        ..half()
    };
    let bench = Bench::new();
    assert!(matches!(bench.refuse(early), PipelineError::Driver(_)));
    assert_eq!(bench.steps(), STEPS[..1]);
}

#[test]
fn a_driver_that_panics_fails_its_run() {
    let dumping = Fake::dumping(|_, out| {
        out.write_all(b"some").map_err(DriverError::Sink)?;
        panic!("in the dump")
    });
    let error = Bench::new().refuse(dumping);
    assert!(matches!(error, PipelineError::Panicked { stage: "dump" }), "{error}");
    let preparing = Fake { prepare: Box::new(|_| panic!("in prepare")), ..Fake::with(Vec::new()) };
    let error = Bench::new().refuse(preparing);
    assert!(matches!(error, PipelineError::Panicked { stage: "prepare" }), "{error}");
}

#[test]
fn a_driver_that_miscounts_uploads_nothing() {
    let driver = Fake::dumping(|_, out| {
        out.write_all(b"1234").map_err(DriverError::Sink)?;
        Ok(Dumped { bytes: 5, warnings: Vec::new() })
    });
    let error = Bench::new().refuse(driver);
    assert!(matches!(error, PipelineError::DumpSize { written: 5, arrived: 4 }), "{error}");
}

#[test]
fn a_full_disk_ends_a_dump_that_goes_on() {
    let mut bench = Bench { compression: Compression::None, ..Bench::new() };
    bench.limits.min_free_bytes = u64::MAX;
    bench.limits.memory_bytes = 1 << 20;
    // Never ends by itself, only by the error of its sink.
    let endless = || {
        Fake::dumping(|_, out| {
            let data = noise(1 << 20, 14);
            loop {
                out.write_all(&data).map_err(DriverError::Sink)?;
            }
        })
    };
    let error = bench.refuse(endless());
    assert!(matches!(error, PipelineError::Spool(SpoolError::DiskFull { .. })), "{error}");
    assert!(!error.retry() && error.to_string().contains("free space"));
    // Waits for its tool instead, where no closed channel is seen.
    let waiting = Fake::dumping(|cx, out| {
        let data = noise(4 << 20, 15);
        let result = out.write_all(&data).map_err(DriverError::Sink);
        assert!(!cx.cancel.sleep(Duration::from_secs(60)), "nobody woke the driver");
        result.and(Err(DriverError::Sink(std::io::ErrorKind::BrokenPipe.into())))
    });
    let error = bench.refuse(waiting);
    assert!(matches!(error, PipelineError::Spool(SpoolError::DiskFull { .. })), "{error}");
    // Ignores the error and claims success.
    let lying = Fake::dumping(|_, out| {
        let data = noise(1 << 20, 16);
        let written = (0..64).filter(|_| out.write_all(&data).is_ok()).count() as u64;
        Ok(Dumped { bytes: written << 20, warnings: Vec::new() })
    });
    let error = bench.refuse(lying);
    assert!(matches!(error, PipelineError::Spool(SpoolError::DiskFull { .. })), "{error}");
}

#[test]
fn small_artifacts_need_no_disk() {
    let mut bench = Bench::new();
    bench.limits.min_free_bytes = u64::MAX;
    bench.run(Fake::with(sample(100_000)), &ok_store().creds()).unwrap();
}

#[test]
fn a_hint_that_is_too_large_fails_before_the_dump() {
    let bench = Bench { compression: Compression::None, ..Bench::new() };
    let driver = Fake {
        hurries: false,
        prepare: Box::new(|_| {
            Ok(Prepared { size_hint_bytes: Some(20 << 30), ..Prepared::default() })
        }),
        dump: Box::new(|_, _| panic!("dumped in vain")),
    };
    let error = bench.refuse(driver);
    assert!(matches!(error, PipelineError::Spool(SpoolError::TooLarge { .. })), "{error}");
    assert!(error.to_string().contains("5 GiB"));
}

#[test]
fn a_state_directory_that_cannot_be_used() {
    let bench = Bench::new();
    std::fs::write(bench.dir.path().join("spool"), "a file").unwrap();
    let store = ok_store();
    let progress = |_: Progress| ();
    let error = back_up(Order {
        driver: Box::new(Fake::with(Vec::new())),
        compression: Compression::Zstd,
        key: None,
        creds: &|| store.creds(),
        places: None,
        upload: &bench.upload,
        policy: &bench.policy,
        limits: &bench.limits,
        state_dir: bench.dir.path(),
        deadline: None,
        cancel: &bench.cancel,
        progress: &progress,
    })
    .unwrap_err();
    assert!(matches!(error, PipelineError::Spool(SpoolError::Io { .. })), "{error}");
}

#[test]
fn directories_are_private() {
    let bench = Bench::new();
    bench.run(Fake::with(sample(10)), &ok_store().creds()).unwrap();
    for dir in [work_dir(bench.dir.path()), spool_dir(bench.dir.path())] {
        let mode = dir.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", dir.display());
    }
}

/// Cancels once `ready`, and checks that the attempt ends soon after and says so.
fn assert_cancelled(bench: &Bench, driver: Fake, store: &Store, ready: &(dyn Fn() + Sync)) {
    let asked = Mutex::new(None);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            ready();
            *asked.lock().unwrap() = Some(Instant::now());
            bench.cancel.cancel(Why::Requested);
        });
        bench.run(driver, &store.creds()).unwrap_err()
    });
    let took = asked.lock().unwrap().unwrap().elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(error.cancelled(), Some(Why::Requested), "{error}");
    assert!(!error.retry() && error.is_cancelled());
}

#[test]
fn a_cancel_ends_every_step() {
    let waiting = |cx: &Context<'_>| {
        assert!(!cx.cancel.sleep(Duration::from_secs(60)), "not cancelled");
        DriverError::Sink(std::io::ErrorKind::Interrupted.into())
    };
    let (began, seen) = bounded::<()>(1);
    let ready = || seen.recv_timeout(Duration::from_secs(20)).unwrap();

    let tell = began.clone();
    let preparing = Fake {
        prepare: Box::new(move |cx| {
            tell.send(()).unwrap();
            Err(waiting(cx))
        }),
        ..Fake::with(Vec::new())
    };
    let bench = Bench::new();
    assert_cancelled(&bench, preparing, &ok_store(), &ready);
    assert_eq!(bench.steps(), STEPS[..1]);

    let dumping = Fake::dumping(move |cx, out| {
        out.write_all(&noise(2 << 20, 17)).map_err(DriverError::Sink)?;
        began.send(()).unwrap();
        Err(waiting(cx))
    });
    let bench = Bench::new();
    assert_cancelled(&bench, dumping, &ok_store(), &ready);
    assert_eq!(bench.steps(), STEPS[..2]);

    for play in [Play::Deaf, Play::Mute] {
        let bench = Bench::new();
        let store = Store::plain(vec![play]);
        let ready = || store.wait_for_head();
        assert_cancelled(&bench, Fake::with(noise(24 << 20, 18)), &store, &ready);
        assert_eq!(bench.steps(), STEPS[..3]);
    }
}

#[test]
fn a_cancel_before_the_start_starts_nothing() {
    let bench = Bench::new();
    bench.cancel.cancel(Why::Shutdown);
    let driver = Fake { prepare: Box::new(|_| panic!("started")), ..Fake::with(Vec::new()) };
    let error = bench.refuse(driver);
    assert_eq!(error.cancelled(), Some(Why::Shutdown));
    assert!(error.retry(), "it is resumed at the next start");
}

#[test]
fn a_driver_that_finishes_although_cancelled_uploads_nothing() {
    let bench = Bench::new();
    let token = bench.cancel.clone();
    let driver = Fake::dumping(move |cx, _| {
        token.cancel(Why::Requested);
        assert!(!cx.cancel.sleep(Duration::from_secs(60)));
        Ok(Dumped::default())
    });
    assert_eq!(bench.refuse(driver).cancelled(), Some(Why::Requested));
}

#[test]
fn the_deadline_ends_the_attempt() {
    let bench =
        Bench { deadline: Some(Deadline::after(Duration::from_millis(50))), ..Bench::new() };
    let driver = Fake::dumping(|cx, _| {
        assert!(!cx.cancel.sleep(Duration::from_secs(60)), "no timeout");
        Err(DriverError::Sink(std::io::ErrorKind::Interrupted.into()))
    });
    let error = bench.refuse(driver);
    assert_eq!(error.cancelled(), Some(Why::Timeout));
    assert!(error.to_string().contains("timeout") && !error.retry());
}

#[test]
fn progress_is_thin_and_has_percentages() {
    let bench = Bench { compression: Compression::None, ..Bench::new() };
    let store = ok_store();
    let driver = Fake {
        hurries: false,
        prepare: Box::new(|_| {
            Ok(Prepared { size_hint_bytes: Some(8 << 20), ..Prepared::default() })
        }),
        dump: Box::new(|cx, out| {
            for part in 0..8 {
                out.write_all(&noise(1 << 20, part)).map_err(DriverError::Sink)?;
                (cx.progress)(Progress {
                    step: Step::Dumping,
                    percent: Some(u8::try_from(part * 100 / 8).unwrap()),
                    bytes: part << 20,
                });
            }
            Ok(Dumped { bytes: 8 << 20, warnings: Vec::new() })
        }),
    };
    let started = Instant::now();
    bench.run(driver, &store.creds()).unwrap();
    let allowed = 4 + 4 * usize::try_from(started.elapsed().as_secs()).unwrap();
    let seen = bench.steps.lock().unwrap().len();
    assert!((4..=allowed).contains(&seen), "{seen} reports");
}

#[test]
fn runs_side_by_side_do_not_meet() {
    let results: Vec<_> = (0..4u64)
        .map(|seed| {
            spawn("side", move || {
                let bench = Bench::new();
                let store = ok_store();
                let dump = noise(10 << 20, seed);
                bench.run(Fake::with(dump.clone()), &store.creds()).unwrap();
                bench.undo(&store.finish().remove(0).body) == dump
            })
            .unwrap()
        })
        .collect();
    for result in results {
        assert!(result.join().unwrap());
    }
}
