//! What is counted, what disappears, and what a page is bounded by.

use super::*;
use crate::model::{Check, CheckKind, Compression, Job};
use crate::runs::state::Stored;
use crate::secret::SecretBytes;

const HOUR: u64 = 3_600_000;

fn metrics() -> Metrics {
    Metrics::new(Build { version: "1.2.3", commit: "abc" }, None)
}

fn moment() -> Moment {
    Moment {
        connection: Connection::Connecting,
        reconnects: 2,
        pending: 3,
        dropped: [("log", 4), ("health", 0), ("ack", 0)],
        config_version: 5,
        unprotected: Some(6),
    }
}

fn config(jobs: &[&str], checks: &[&str]) -> AgentConfig {
    let job =
        |id: &&str| Job { id: (*id).to_owned(), cron: "0 * * * *".to_owned(), ..Job::default() };
    let check = |id: &&str| Check {
        id: (*id).to_owned(),
        name: String::new(),
        kind: CheckKind::Tcp,
        target: String::new(),
        interval_sec: 0,
        timeout_sec: 0,
        expected_status: 0,
    };
    AgentConfig {
        jobs: jobs.iter().map(job).collect(),
        checks: checks.iter().map(check).collect(),
        ..AgentConfig::default()
    }
}

fn run(job_id: &str) -> Run {
    Run::accept("r".into(), job_id.into(), false, None, SecretBytes::default(), 0).started(0)
}

fn stored(duration_ms: u64, size_bytes: u64) -> Outcome {
    Outcome::Completed(Stored {
        object_key: "o".into(),
        size_bytes,
        sha256: String::new(),
        duration_ms,
        compression: Compression::Zstd,
        engine_version: String::new(),
    })
}

/// The value of a sample.
#[track_caller]
fn value(metrics: &Metrics, sample: &str) -> Option<f64> {
    let page = metrics.page(&moment());
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    let found = lines.next().map(|value| value.parse().unwrap());
    assert_eq!(lines.next(), None, "{sample} occurs twice");
    found
}

#[test]
fn ends_of_runs_are_counted_once_and_only_ends() {
    let metrics = metrics();
    metrics.configure(&config(&["a"], &[]), &BTreeMap::new());
    let status = |status| {
        value(&metrics, &format!("backupy_agent_runs_total{{job_id=\"a\",status=\"{status}\"}}"))
    };
    assert_eq!(status("failed"), Some(0.0), "an increase needs a first value");
    metrics.run_changed(&run("a"));
    metrics.run_changed(&run("a").end(stored(1_500, 2 << 20), 7_000));
    metrics.run_changed(&run("a").end(Outcome::Failed { error: "e".into() }, 8_000));
    metrics.run_changed(&run("a").end(Outcome::Cancelled, 9_000));
    assert_eq!([status("success"), status("failed"), status("cancelled")], [Some(1.0); 3]);
    for (sample, expected) in [
        ("backupy_agent_run_duration_seconds_bucket{job_id=\"a\",le=\"1\"}", 0.0),
        ("backupy_agent_run_duration_seconds_bucket{job_id=\"a\",le=\"5\"}", 1.0),
        ("backupy_agent_run_duration_seconds_sum{job_id=\"a\"}", 1.5),
        ("backupy_agent_run_size_bytes_bucket{job_id=\"a\",le=\"1048576\"}", 0.0),
        ("backupy_agent_run_size_bytes_bucket{job_id=\"a\",le=\"10485760\"}", 1.0),
        ("backupy_agent_run_size_bytes_bucket{job_id=\"a\",le=\"+Inf\"}", 1.0),
        ("backupy_agent_last_success_timestamp_seconds{job_id=\"a\"}", 7.0),
    ] {
        assert_eq!(value(&metrics, sample), Some(expected), "{sample}");
    }
}

#[test]
fn a_run_of_an_unknown_job_makes_no_series_of_its_own() {
    let metrics = metrics();
    metrics.configure(&config(&["a"], &[]), &BTreeMap::new());
    for n in 0..100 {
        metrics.run_changed(&run(&format!("x{n}")).end(Outcome::Cancelled, 1));
    }
    let sample = "backupy_agent_runs_total{job_id=\"\",status=\"cancelled\"}";
    assert_eq!(value(&metrics, sample), Some(100.0));
    assert!(!metrics.page(&moment()).contains("x1"));
}

#[test]
fn what_leaves_the_configuration_leaves_the_page_and_the_rest_keeps_its_counts() {
    let metrics = metrics();
    metrics.configure(&config(&["a", "b"], &["c", "d"]), &BTreeMap::new());
    for id in ["c", "d"] {
        metrics.checked(&CheckResult {
            check_id: id.into(),
            ts_ms: 0,
            ok: id == "c",
            latency_ms: 250,
            error: String::new(),
            status_code: 0,
        });
    }
    metrics.run_changed(&run("b").end(Outcome::Cancelled, 1));
    assert_eq!(value(&metrics, "backupy_agent_health_check_up{check_id=\"d\"}"), Some(0.0));
    let duration = "backupy_agent_health_check_duration_seconds{check_id=\"c\"}";
    assert_eq!(value(&metrics, duration), Some(0.25));
    metrics.configure(&config(&["b"], &["c"]), &BTreeMap::new());
    let page = metrics.page(&moment());
    assert!(!page.contains("\"a\"") && !page.contains("\"d\""), "{page}");
    let kept = "backupy_agent_runs_total{job_id=\"b\",status=\"cancelled\"}";
    assert_eq!(value(&metrics, kept), Some(1.0));
}

#[test]
fn the_last_success_comes_from_the_table_and_says_when_the_next_is_overdue() {
    let metrics = metrics();
    let last = LastResults {
        first_end_ms: HOUR,
        last_success_ms: 10 * HOUR + 5_000,
        ..LastResults::default()
    };
    metrics.configure(&config(&["a", "new"], &[]), &BTreeMap::from([("a".to_owned(), last)]));
    let of = |name: &str, job: &str| {
        value(&metrics, &format!("backupy_agent_{name}{{job_id=\"{job}\"}}"))
    };
    assert_eq!(of("last_success_timestamp_seconds", "a"), Some(36_005.0));
    assert_eq!(of("job_overdue_after_timestamp_seconds", "a"), Some(12.0 * 3_600.0));
    assert_eq!(of("last_success_timestamp_seconds", "new"), Some(0.0));
    let new = of("job_overdue_after_timestamp_seconds", "new").unwrap();
    let now = unix_ms() as f64 / 1e3;
    assert!((now..=now + 7_200.0).contains(&new), "{new} is not within two turns of {now}");
}

#[test]
fn an_interval_without_a_cron_line_is_asked_for() {
    let every = |job_id: &str| (job_id == "a").then(|| Duration::from_secs(60));
    let metrics = Metrics::new(Build { version: "1", commit: "c" }, Some(Box::new(every)));
    let mut config = config(&["a", "b"], &[]);
    config.jobs.iter_mut().for_each(|job| job.cron.clear());
    metrics.configure(&config, &BTreeMap::new());
    metrics.run_changed(&run("a").end(stored(1, 1), 30_000));
    let of = |job| {
        value(
            &metrics,
            &format!("backupy_agent_job_overdue_after_timestamp_seconds{{job_id=\"{job}\"}}"),
        )
    };
    assert_eq!((of("a"), of("b")), (Some(150.0), None));
}

#[test]
fn a_configuration_without_bounds_makes_a_page_with_them() {
    let metrics = metrics();
    let ids: Vec<String> =
        (0..MAX_JOBS + 300).map(|n| format!("{n}{}", "\"".repeat(1_000))).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    metrics.configure(&config(&ids, &ids), &BTreeMap::new());
    let page = metrics.page(&moment());
    assert!(page.len() < 8 << 20, "{} bytes", page.len());
    assert_eq!(page.matches("backupy_agent_last_success_timestamp_seconds{").count(), MAX_JOBS);
}

#[test]
fn the_connection_is_in_one_state() {
    let metrics = metrics();
    let state = |state| {
        value(&metrics, &format!("backupy_agent_wss_connection_state{{state=\"{state}\"}}"))
    };
    assert_eq!(
        (state("connected"), state("connecting"), state("disconnected")),
        (Some(0.0), Some(1.0), Some(0.0))
    );
    let build = "backupy_agent_build_info{version=\"1.2.3\",commit=\"abc\"}";
    assert_eq!(value(&metrics, build), Some(1.0));
    assert_eq!(value(&metrics, "backupy_agent_outbox_dropped_total{kind=\"log\"}"), Some(4.0));
}
