//! Prometheus' text format 0.0.4: families with their help, samples with their labels, histograms.
//!
//! Label values come from a control plane and may hold anything: they are cut to [`MAX_LABEL_BYTES`] and escaped.

use std::fmt::Write as _;

use ring::digest::{SHA256, digest};

use crate::hex::hex;

/// Media type of a page.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every name starts with it.
const PREFIX: &str = "backupy_agent_";

/// Longest label value, before escapes. What is longer is cut and ends in a hash, so that no two become one.
pub const MAX_LABEL_BYTES: usize = 200;

/// What a family counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets with a sum.
    Histogram,
}

/// A page under construction.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    name: &'static str,
}

impl Text {
    /// Begins a family; the samples that follow belong to it.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        self.name = name;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
    }

    /// One sample of the family; label values as [`label`] made them.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, value);
    }

    /// One histogram of the family, of one label.
    pub fn histogram(&mut self, name: &str, value: &str, histogram: &Histogram) {
        let mut below = 0;
        for (at, count) in histogram.counts.iter().enumerate() {
            below += count;
            let bound = histogram.bounds.get(at).map_or("+Inf".to_owned(), f64::to_string);
            self.line("_bucket", &[(name, value), ("le", &bound)], below as f64);
        }
        self.line("_sum", &[(name, value)], histogram.sum);
        self.line("_count", &[(name, value)], below as f64);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(PREFIX);
        self.out.push_str(self.name);
        self.out.push_str(suffix);
        for (at, (name, value)) in labels.iter().enumerate() {
            self.out.push(if at == 0 { '{' } else { ',' });
            self.out.push_str(name);
            self.out.push_str("=\"");
            self.out.push_str(value);
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    /// The page.
    pub fn finish(self) -> String {
        self.out
    }
}

/// A label's value as it stands between the quotes.
pub fn label(value: &str) -> String {
    let mut end = value.len().min(MAX_LABEL_BYTES);
    let cut = end < value.len();
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let mut escaped = String::with_capacity(end);
    for letter in value[..end].chars() {
        match letter {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            other => escaped.push(other),
        }
    }
    if cut {
        escaped.push('~');
        escaped.push_str(&hex(&digest(&SHA256, value.as_bytes()).as_ref()[..8]));
    }
    escaped
}

/// Observations in buckets, each up to and including its bound; the last one is without.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// Nothing observed yet.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Adds one.
    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_include_their_bound() {
        let mut histogram = Histogram::new(&[1.0, 5.0]);
        for value in [0.5, 1.0, 1.5, 5.0, 5.1] {
            histogram.observe(value);
        }
        let mut text = Text::default();
        text.family("x_seconds", Kind::Histogram, "X.");
        text.histogram("job_id", "a", &histogram);
        assert_eq!(
            text.finish(),
            "# HELP backupy_agent_x_seconds X.\n# TYPE backupy_agent_x_seconds histogram\n\
             backupy_agent_x_seconds_bucket{job_id=\"a\",le=\"1\"} 2\n\
             backupy_agent_x_seconds_bucket{job_id=\"a\",le=\"5\"} 4\n\
             backupy_agent_x_seconds_bucket{job_id=\"a\",le=\"+Inf\"} 5\n\
             backupy_agent_x_seconds_sum{job_id=\"a\"} 13.1\n\
             backupy_agent_x_seconds_count{job_id=\"a\"} 5\n"
        );
    }

    #[test]
    fn labels_are_escaped_and_bounded() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
        let (one, two) = ("ä".repeat(600), format!("{}x", "ä".repeat(599)));
        assert!(label(&one).len() <= MAX_LABEL_BYTES + 17);
        assert_ne!(label(&one), label(&two), "two ids stay two");
        assert_eq!(label(&"x".repeat(MAX_LABEL_BYTES)).len(), MAX_LABEL_BYTES);
    }
}
