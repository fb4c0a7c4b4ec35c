//! The page of a scrape: every family with its help, in a fixed order.

use std::collections::BTreeMap;

use super::text::{Kind, Text, label};
use super::{Connection, Metrics, Moment};

/// A job or check with its id as a label.
type Labelled<'a, T> = Vec<(String, &'a T)>;

fn labelled<T>(series: &BTreeMap<String, T>) -> Labelled<'_, T> {
    series.iter().map(|(id, series)| (label(id), series)).collect()
}

impl Metrics {
    /// All numbers, with `now` for those that are not counted.
    pub fn page(&self, now: &Moment) -> String {
        let mut text = Text::default();
        self.process(&mut text, now);
        connection(&mut text, now);
        self.runs(&mut text);
        self.checks(&mut text);
        text.finish()
    }

    fn process(&self, text: &mut Text, now: &Moment) {
        let build = self.0.build;
        text.family("up", Kind::Gauge, "1 while the agent runs.");
        text.sample(&[], 1.0);
        text.family("build_info", Kind::Gauge, "1, with the version and commit of the binary.");
        text.sample(&[("version", build.version), ("commit", build.commit)], 1.0);
        text.family("config_version", Kind::Gauge, "Version of the configuration that is held.");
        text.sample(&[], now.config_version as f64);
        if let Some(unprotected) = now.unprotected {
            text.family(
                "unprotected_databases",
                Kind::Gauge,
                "Databases found on this host that no job backs up.",
            );
            text.sample(&[], unprotected as f64);
        }
    }

    fn runs(&self, text: &mut Text) {
        let intervals = self.intervals();
        let state = self.state();
        let jobs = labelled(&state.jobs);
        text.family("runs_total", Kind::Counter, "Runs that ended since the start, by status.");
        for (id, series) in &jobs {
            for (status, count) in series.runs.by_status() {
                text.sample(&[("job_id", id), ("status", status)], count as f64);
            }
        }
        for (status, count) in state.other_runs.by_status() {
            // From the start: a series that is born with its first count shows no increase.
            text.sample(&[("job_id", ""), ("status", status)], count as f64);
        }
        text.family(
            "run_duration_seconds",
            Kind::Histogram,
            "Successful runs: from the start of the first attempt until the artifact was stored.",
        );
        jobs.iter().for_each(|(id, series)| text.histogram("job_id", id, &series.duration));
        text.family("run_size_bytes", Kind::Histogram, "Successful runs: size of the artifact.");
        jobs.iter().for_each(|(id, series)| text.histogram("job_id", id, &series.size));
        text.family(
            "last_success_timestamp_seconds",
            Kind::Gauge,
            "When the job last succeeded; 0 if it never did.",
        );
        for (id, series) in &jobs {
            text.sample(&[("job_id", id)], series.last_success_ms as f64 / 1e3);
        }
        text.family(
            "job_overdue_after_timestamp_seconds",
            Kind::Gauge,
            "When the job is overdue without another success: its schedule has come round twice by then.",
        );
        for ((id, series), job_id) in jobs.iter().zip(state.jobs.keys()) {
            let every = intervals.get(job_id).copied();
            if let Some(overdue_ms) = series.overdue_after_ms(every) {
                text.sample(&[("job_id", id)], overdue_ms as f64 / 1e3);
            }
        }
    }

    fn checks(&self, text: &mut Text) {
        let state = self.state();
        let checks = labelled(&state.checks);
        text.family("health_check_up", Kind::Gauge, "Whether the last probe of the check passed.");
        for (id, series) in &checks {
            text.sample(&[("check_id", id)], f64::from(u8::from(series.ok)));
        }
        text.family(
            "health_check_duration_seconds",
            Kind::Gauge,
            "How long the last probe of the check took.",
        );
        for (id, series) in &checks {
            text.sample(&[("check_id", id)], f64::from(series.latency_ms) / 1e3);
        }
    }
}

fn connection(text: &mut Text, now: &Moment) {
    text.family(
        "wss_connection_state",
        Kind::Gauge,
        "1 for the state that the connection to the control plane is in.",
    );
    for (state, name) in [
        (Connection::Connected, "connected"),
        (Connection::Connecting, "connecting"),
        (Connection::Disconnected, "disconnected"),
    ] {
        text.sample(&[("state", name)], f64::from(u8::from(now.connection == state)));
    }
    text.family("wss_reconnects_total", Kind::Counter, "Sessions after the first since the start.");
    text.sample(&[], now.reconnects as f64);
    text.family(
        "dispatch_pending",
        Kind::Gauge,
        "Messages that wait for their delivery to the control plane.",
    );
    text.sample(&[], now.pending as f64);
    text.family(
        "outbox_dropped_total",
        Kind::Counter,
        "Messages dropped because the queue was full, by kind, over the life of the state directory.",
    );
    for (kind, count) in now.dropped {
        text.sample(&[("kind", kind)], count as f64);
    }
}
