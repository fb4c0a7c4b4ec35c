//! The `[[check]]` sections of the file.

use std::collections::HashSet;
use std::time::Duration;

use super::backup::{check_name, length};
use super::parse::ELSEWHERE;
use super::reader::Section;
use crate::host::checks::schedule::{MAX_INTERVAL_SEC, MAX_TIMEOUT_SEC, MIN_INTERVAL_SEC};
use crate::model::{Check, CheckKind};

const CHECKS_MAX: usize = 1000;
const FORM: &str = "\"http://host/path\" or \"https://host/path\"";

pub(super) fn checks(top: &Section<'_, '_>) -> Vec<Check> {
    let sections = top.sections("check", "[[check]]");
    if sections.len() > CHECKS_MAX {
        top.report().problem(&top.span, format_args!("more than {CHECKS_MAX} checks"));
        return Vec::new();
    }
    let mut names = HashSet::new();
    let mut checks = Vec::new();
    for section in sections {
        let report = section.report();
        let name = section.required("name", "a short name such as \"shop\"");
        if let Some(name) = &name {
            if let Err(message) = check_name(&name.value) {
                report.problem(&name.span, message);
            }
            if !names.insert(name.value.to_lowercase()) {
                let text = format_args!("two checks have the name {:?}", name.value);
                report.problem(&name.span, text);
            }
        }
        checks.extend(check(section, name.map(|at| at.value)));
    }
    checks
}

fn check(section: Section<'_, '_>, name: Option<String>) -> Option<Check> {
    let report = section.report();
    let url = section.string("url", FORM);
    let tcp = section.string("tcp", "\"host:port\"");
    let second = Duration::from_secs(1);
    let between = |from: u32, to: u32| second * from..=second * to;
    let interval = length(&section, "interval", between(MIN_INTERVAL_SEC, MAX_INTERVAL_SEC));
    let timeout = length(&section, "timeout", between(1, MAX_TIMEOUT_SEC));
    let status = section.number("expected_status", 100..=599);
    let (kind, target) = match (url, tcp) {
        (Some(url), None) => match url.value.split_once("://").map(|(scheme, _)| scheme) {
            Some("http") => (CheckKind::Http, url.value),
            Some("https") => (CheckKind::Https, url.value),
            Some(_) | None => {
                report.problem(&url.span, format_args!("`url` must be {FORM}"));
                return None;
            }
        },
        (None, Some(tcp)) => (CheckKind::Tcp, tcp.value),
        (None, None) | (Some(_), Some(_)) => {
            report.problem(&section.span, "a [[check]] needs either `url` or `tcp`");
            return None;
        }
    };
    if let Some(status) = status.as_ref().filter(|_| kind == CheckKind::Tcp) {
        report.problem(&status.span, "`expected_status` is for a `url` only");
    }
    section.finish(&ELSEWHERE);
    let seconds = |length: Duration| u32::try_from(length.as_secs()).unwrap_or(u32::MAX);
    let name = name?;
    Some(Check {
        id: name.clone(),
        name,
        kind,
        target,
        interval_sec: interval.map_or(60, |at| seconds(at.value)),
        timeout_sec: timeout.map_or(10, |at| seconds(at.value)),
        expected_status: status.map_or(0, |at| at.value),
    })
}
