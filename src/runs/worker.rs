//! Carries out one attempt of a run on its own thread and reports how it ended.
//!
//! Order: what can be known is checked, pre-hooks, the pipeline at its lowered priority, post-hooks, the report.
//! The store's 2xx is the end of the run, whatever its post-hooks do: it is told, and made durable, before they run.
//!
//! A worker knows nothing of the link, the outbox or the table: it gets values and sends one [`Report`],
//! also when it panics.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::Sender;

use super::hooks::{self, Hooks, Stops};
use super::state::{Run, Stored};
use crate::artifact::DataKey;
use crate::clock::{Deadline, unix_ms};
use crate::config::{HostPolicy, PipelineLimits};
use crate::drivers::{self, Driver};
use crate::model::{Compression, Job, Multipart, PartUrl, Progress, Target, UploadCreds};
use crate::pipeline::upload::multipart::Ask;
use crate::pipeline::{self, PipelineError, Places, Uploader};
use crate::redact::clean;
use crate::thread::{self, Cancel, Why};

/// What every attempt needs from the host.
#[derive(Debug)]
pub struct Workshop {
    /// How far a configuration may reach.
    pub policy: HostPolicy,
    /// Sizes and times.
    pub limits: PipelineLimits,
    /// Holds spool files, secret files and snapshots in directories of their own.
    pub state_dir: PathBuf,
    /// Sends artifacts.
    pub uploader: Uploader,
}

/// One attempt to carry out.
#[derive(Debug)]
pub struct Attempt {
    /// The run, already started.
    pub run: Run,
    /// Its job as configured now.
    pub job: Job,
    /// The job's target.
    pub target: Target,
    /// When the run's timeout passes.
    pub deadline: Option<Deadline>,
    /// The upload credentials of this moment.
    pub creds: CredsCell,
    /// Ends the post-hooks: somebody insists, or the process has to stop.
    pub hurry: Cancel,
    /// Set by the worker once the outcome stands and only post-hooks are left, which no timeout ends.
    pub finishing: Arc<AtomicBool>,
}

/// Upload credentials that dispatch may replace while the attempt goes on.
#[derive(Debug, Clone)]
pub struct CredsCell {
    creds: Arc<Mutex<UploadCreds>>,
    /// Of an upload in parts.
    places: Option<Places>,
}

impl CredsCell {
    /// Holding these; `ask` is how an upload in parts gets more URLs.
    pub fn new(creds: UploadCreds, ask: impl FnOnce(&str) -> Ask) -> Self {
        let of = |multipart: &Multipart| Places::new(multipart, ask(&multipart.upload_id));
        let places = creds.multipart.as_ref().map(of);
        Self { creds: Arc::new(Mutex::new(creds)), places }
    }

    /// Replaces them, if the attempt can go on with these: one in parts cannot change its upload, and one by a single
    /// PUT cannot become one in parts. A PUT under way goes on with the old ones. Whether they were taken.
    pub fn set(&self, creds: UploadCreds) -> bool {
        match (&self.places, &creds.multipart) {
            (Some(places), Some(multipart)) if places.is_of(&multipart.upload_id) => {
                places.renew(multipart);
            }
            (None, _) if !creds.put_url.is_empty() => {}
            (Some(_), _) | (None, _) => return false,
        }
        *self.creds.lock().unwrap_or_else(PoisonError::into_inner) = creds;
        true
    }

    /// Takes URLs for parts; false if they belong to another upload.
    pub fn deliver(&self, upload_id: &str, parts: &[PartUrl], error: &str) -> bool {
        let places = self.places.as_ref().filter(|places| places.is_of(upload_id));
        places.inspect(|places| places.deliver(parts, error)).is_some()
    }

    fn get(&self) -> UploadCreds {
        self.creds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The store answered 2xx for exactly the bytes that were hashed.
    Stored(Stored),
    /// It failed.
    Failed {
        /// Why, without secrets.
        error: String,
        /// Whether another attempt may succeed with nobody changing anything.
        retry: bool,
    },
    /// It was told to stop.
    Stopped(Why),
}

/// The one report of an attempt.
#[derive(Debug)]
pub struct Report {
    /// The run.
    pub run_id: String,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// Things to tell that did not fail it.
    pub warnings: Vec<String>,
    /// Only post-hooks are left, and another report comes behind them.
    pub hooks_follow: bool,
}

/// Told about progress, with run and job; called on the run's threads.
pub type OnProgress = Arc<dyn Fn(&str, &str, Progress) + Send + Sync>;

/// What a run needs and a job says, put together and checked.
#[derive(Debug)]
pub struct Plan {
    /// How the dump is compressed.
    pub compression: Compression,
    /// The key it is sealed with.
    pub key: Option<DataKey>,
    /// Where it goes first; see [`Attempt::creds`].
    pub creds: UploadCreds,
}

/// Longest upload URL, in bytes: signatures with a session token have a few thousand.
const MAX_URL_BYTES: usize = 16 << 10;

/// Longest name of an object, in bytes; S3 takes 1,024. It is part of the result, which has to fit into a message.
const MAX_OBJECT_KEY_BYTES: usize = 4 << 10;

/// Longest name of a multipart upload, in bytes.
const MAX_UPLOAD_ID_BYTES: usize = 2 << 10;

/// Most part URLs at a time.
const MAX_PART_URLS: usize = 256;

/// Most bytes of the part URLs that come with a command.
const MAX_PARTS_BYTES: usize = 64 << 10;

/// Says what is wrong with the size of upload credentials: open runs stay in memory, a thousand at the most.
pub fn check_size(creds: &UploadCreds) -> Result<(), String> {
    let none = Multipart::default();
    let multipart = creds.multipart.as_ref().unwrap_or(&none);
    check_parts(&multipart.parts, MAX_PARTS_BYTES)?;
    for (what, size, limit) in [
        ("upload URL", creds.put_url.expose().len(), MAX_URL_BYTES),
        ("object key", creds.object_key.len(), MAX_OBJECT_KEY_BYTES),
        ("upload id", multipart.upload_id.len(), MAX_UPLOAD_ID_BYTES),
        ("complete URL", multipart.complete_url.expose().len(), MAX_URL_BYTES),
        ("abort URL", multipart.abort_url.expose().len(), MAX_URL_BYTES),
    ] {
        if size > limit {
            return Err(format!("the {what} has {size} bytes, but at most {limit} are taken"));
        }
    }
    Ok(())
}

/// Says what is wrong with the size of URLs that came for an attempt under way; there are few of those.
pub fn check_delivery(parts: &[PartUrl]) -> Result<(), String> {
    check_parts(parts, 4 * MAX_PARTS_BYTES)
}

fn check_parts(parts: &[PartUrl], limit: usize) -> Result<(), String> {
    let sizes = parts.iter().map(|part| part.url.expose().len());
    if let Some(size) = sizes.clone().find(|size| *size > MAX_URL_BYTES) {
        return Err(format!(
            "a part's URL has {size} bytes, but at most {MAX_URL_BYTES} are taken"
        ));
    }
    if parts.len() > MAX_PART_URLS || sizes.sum::<usize>() > limit {
        return Err(format!(
            "there are URLs for {} parts, but at most {MAX_PART_URLS} with {limit} bytes together are taken",
            parts.len()
        ));
    }
    Ok(())
}

impl Plan {
    /// Checks everything that can be known before the database is touched. Pure.
    ///
    /// # Errors
    /// The reason for which the run must fail; no retry can help.
    pub fn new(run: &Run, job: &Job) -> Result<Self, String> {
        let compression = Compression::parse(&job.compression).ok_or_else(|| {
            format!("unknown compression {:?}: expected zstd, gzip or none", job.compression)
        })?;
        let key = match run.data_key.expose() {
            [] if job.encryption_enabled => {
                return Err(
                    "the job asks for encryption but the run came without a data key".to_owned()
                );
            }
            [] => None,
            bytes => Some(DataKey::from_bytes(bytes).map_err(|error| error.to_string())?),
        };
        let creds = run
            .creds
            .clone()
            .filter(UploadCreds::lead_somewhere)
            .ok_or("the run came without an upload URL")?;
        check_size(&creds)?;
        Ok(Self { compression, key, creds })
    }
}

/// Starts the attempt on a thread called `name`. The report arrives on `reports` exactly once.
///
/// # Errors
/// When the system refuses the thread.
pub fn start(
    name: &str,
    workshop: Arc<Workshop>,
    attempt: Attempt,
    cancel: Cancel,
    on_progress: OnProgress,
    reports: Sender<Report>,
) -> io::Result<JoinHandle<()>> {
    thread::spawn(name, move || {
        let run_id = attempt.run.run_id.clone();
        let stored = |outcome: &AttemptOutcome| {
            let (run_id, outcome) = (run_id.clone(), outcome.clone());
            // Nobody there: the report behind the hooks says so.
            let _ =
                reports.send(Report { run_id, outcome, warnings: Vec::new(), hooks_follow: true });
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            carry_out(&workshop, &attempt, &cancel, &on_progress, &stored)
        }));
        let (outcome, warnings) = result.unwrap_or_else(|_| (panicked(), Vec::new()));
        let report = Report { run_id: run_id.clone(), outcome, warnings, hooks_follow: false };
        if reports.send(report).is_err() {
            log::warn!("run {run_id} ended after dispatch; it is resumed at the next start");
        }
    })
}

fn carry_out(
    workshop: &Workshop,
    attempt: &Attempt,
    cancel: &Cancel,
    on_progress: &OnProgress,
    on_stored: &dyn Fn(&AttemptOutcome),
) -> Attempted {
    let run = &attempt.run;
    let permanent =
        |error: String| (AttemptOutcome::Failed { error: clean(&error), retry: false }, Vec::new());
    let plan = match Plan::new(run, &attempt.job) {
        Ok(plan) => plan,
        Err(error) => return permanent(error),
    };
    let driver = match drivers::for_target(&attempt.target, &workshop.policy) {
        Ok(driver) => driver,
        Err(error) => return permanent(error.to_string()),
    };
    if let Err(error) = hooks::check(&attempt.job, &workshop.policy) {
        return permanent(error);
    }
    let stops = Stops { cancel, hurry: &attempt.hurry, deadline: attempt.deadline };
    let mut hooks = Hooks::new(run, &attempt.job, workshop.limits.hook_timeout, stops);
    let (outcome, mut warnings) = match hooks.before() {
        Ok(()) => kindly(workshop.limits.nice, || {
            back_up(workshop, attempt, plan, driver, cancel, on_progress)
        }),
        Err(outcome) => (outcome, Vec::new()),
    };
    attempt.finishing.store(true, Ordering::SeqCst);
    if matches!(outcome, AttemptOutcome::Stored(_)) && !attempt.job.post_hooks.is_empty() {
        on_stored(&outcome);
    }
    // Whatever happens there, the outcome stands.
    let told = catch_unwind(AssertUnwindSafe(|| hooks.after(&outcome)));
    warnings.extend(told.unwrap_or_else(|_| {
        vec!["internal error: the post-hooks panicked; the agent's log has the details".to_owned()]
    }));
    (outcome, warnings)
}

fn panicked() -> AttemptOutcome {
    let error = "internal error: the run panicked; the agent's log has the details";
    AttemptOutcome::Failed { error: error.to_owned(), retry: false }
}

type Attempted = (AttemptOutcome, Vec<String>);

/// Does the work on a thread of its own, since a lowered priority cannot be raised again for what comes after.
fn kindly(nice: u8, work: impl FnOnce() -> Attempted + Send) -> Attempted {
    std::thread::scope(|scope| {
        let name = std::thread::current().name().unwrap_or("run").to_owned();
        let started =
            Builder::new().name(name).stack_size(thread::STACK).spawn_scoped(scope, move || {
                if let Err(error) = thread::be_nice(nice) {
                    log::warn!(
                        "failed to lower the priority of a backup: {error}; it runs at full priority"
                    );
                }
                work()
            });
        match started {
            Ok(thread) => thread.join().unwrap_or_else(|_| (panicked(), Vec::new())),
            Err(error) => {
                let error = format!("failed to start a thread: {error}");
                (AttemptOutcome::Failed { error, retry: true }, Vec::new())
            }
        }
    })
}

fn back_up(
    workshop: &Workshop,
    attempt: &Attempt,
    plan: Plan,
    driver: Box<dyn Driver + Send>,
    cancel: &Cancel,
    on_progress: &OnProgress,
) -> Attempted {
    let run = &attempt.run;
    let progress = |progress: Progress| on_progress(&run.run_id, &run.job_id, progress);
    let uploader = workshop.uploader.clone().limited(attempt.job.upload_bytes_per_sec);
    let result = pipeline::back_up(pipeline::Order {
        driver,
        compression: plan.compression,
        key: plan.key,
        creds: &|| attempt.creds.get(),
        places: attempt.creds.places.clone(),
        upload: &uploader,
        policy: &workshop.policy,
        limits: &workshop.limits,
        state_dir: &workshop.state_dir,
        deadline: attempt.deadline,
        cancel,
        progress: &progress,
    });
    match result {
        Ok(outcome) => {
            let started = run.first_started_ms.unwrap_or(run.accepted_ms);
            let stored = Stored {
                object_key: outcome.object_key,
                size_bytes: outcome.size_bytes,
                sha256: crate::hex::hex(&outcome.sha256),
                duration_ms: unix_ms().saturating_sub(started),
                compression: outcome.compression,
                engine_version: outcome.engine_version,
            };
            (AttemptOutcome::Stored(stored), outcome.warnings)
        }
        Err(PipelineError::Cancelled(why)) => (AttemptOutcome::Stopped(why), Vec::new()),
        Err(error) => {
            let retry = error.retry();
            (AttemptOutcome::Failed { error: clean(&error.to_string()), retry }, Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Secret, SecretBytes};

    fn run(key: &[u8], url: &str) -> Run {
        let creds = UploadCreds {
            put_url: Secret::new(url),
            expires_at_ms: 0,
            object_key: "o".into(),
            ..UploadCreds::default()
        };
        Run::accept("r".into(), "j".into(), false, Some(creds), SecretBytes::new(key), 0)
    }

    #[test]
    fn a_plan_refuses_what_cannot_work() {
        let job = Job::default();
        let good = run(&[7; 32], "https://s/o");
        assert!(Plan::new(&good, &job).unwrap().key.is_some());
        assert!(Plan::new(&run(&[], "https://s/o"), &job).unwrap().key.is_none());
        let refused = |run: &Run, job: &Job| Plan::new(run, job).unwrap_err();
        assert!(refused(&run(&[7; 31], "https://s/o"), &job).contains("32"));
        assert!(refused(&run(&[7; 32], ""), &job).contains("upload URL"));
        let no_creds = Run { creds: None, ..good.clone() };
        assert!(refused(&no_creds, &job).contains("upload URL"));
        let encrypted = Job { encryption_enabled: true, ..Job::default() };
        assert!(refused(&run(&[], "https://s/o"), &encrypted).contains("data key"));
        let lz4 = Job { compression: "lz4".into(), ..Job::default() };
        assert!(refused(&good, &lz4).contains("lz4"));
        let long = run(&[7; 32], &"u".repeat(MAX_URL_BYTES + 1));
        assert!(refused(&long, &job).contains("upload URL has 16385 bytes"));
        let mut named = good.clone();
        named.creds.as_mut().unwrap().object_key = "k".repeat(MAX_OBJECT_KEY_BYTES + 1);
        assert!(refused(&named, &job).contains("object key has 4097 bytes"));
    }
}
