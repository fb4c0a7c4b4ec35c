//! The `[[backup]]` sections of the file.
//!
//! One with `globals` stands for two backups: what belongs to the whole server is an artifact of its own, so it is one
//! with runs, rules and a name of its own too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::time::Duration;

use super::notify::ping;
use super::parse::ELSEWHERE;
use super::reader::{At, Report, Section};
use super::{Backup, url};
use crate::calendar::duration;
use crate::config::{MIN_RATE, parse_rate};
use crate::control::keep::Rule;
use crate::control::notify::shrink;
use crate::control::schedule::{CronLine, Schedule};
use crate::model::{Compression, Connection, Engine, RetryPolicy, Target, Way};
use crate::runs::hooks::check_list;
use crate::secret::Secret;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(12 * 3600);
const EVERY_MAX: Duration = Duration::from_secs(366 * 86_400);
const NAME_MAX: usize = 64;
const GLOBALS: &str = "-globals";
const BACKUPS_MAX: usize = 1000;

pub(super) fn backups(top: &Section<'_, '_>) -> Vec<Backup> {
    let sections = top.sections("backup", "[[backup]]");
    if sections.is_empty() && top.place("backup").is_none() {
        top.report().missing(
            &top.span,
            "the file needs at least one [[backup]] with name, database, and cron or every",
        );
    }
    if sections.len() > BACKUPS_MAX {
        top.report().problem(&top.span, format_args!("more than {BACKUPS_MAX} backups"));
        return Vec::new();
    }
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut backups = Vec::new();
    for section in sections {
        let name = name(&section);
        let globals = section.boolean("globals").filter(|at| at.value).map(|at| at.span);
        if let Some(name) = &name {
            take_name(&section, &mut names, &name.value, &name.span);
        }
        if let (Some(name), Some(place)) = (&name, &globals) {
            take_name(&section, &mut names, &globals_name(&name.value), place);
        }
        let Some(backup) = backup(section, name.map(|at| at.value), globals.as_ref()) else {
            continue;
        };
        let of_server = globals.map(|_| globals_of(&backup));
        backups.push(backup);
        backups.extend(of_server);
    }
    backups
}

fn take_name(
    section: &Section<'_, '_>,
    names: &mut HashMap<String, usize>,
    name: &str,
    place: &Range<usize>,
) {
    let report = section.report();
    match names.entry(name.to_lowercase()) {
        Entry::Occupied(first) => {
            report
                .problem(place, format_args!("the name {name:?} is taken by line {}", first.get()));
        }
        Entry::Vacant(free) => {
            free.insert(report.line(place));
        }
    }
}

fn globals_name(name: &str) -> String {
    format!("{name}{GLOBALS}")
}

/// The backup of what belongs to the whole server of this one's database. The hooks are about the database, and so is the
/// ping: its success must not be taken for the database's.
fn globals_of(backup: &Backup) -> Backup {
    let mut globals = backup.clone();
    globals.name = globals_name(&backup.name);
    globals.target.id.clone_from(&globals.name);
    globals.target.display_name.clone_from(&globals.name);
    globals.target.connection.globals_only = true;
    globals.pre_hooks.clear();
    globals.post_hooks.clear();
    globals.ping = None;
    globals
}

/// Whether this database has globals beside it, and their backup a name that fits.
fn check_globals(
    section: &Section<'_, '_>,
    place: &Range<usize>,
    name: Option<&str>,
    engine: Engine,
    connection: &Connection,
) {
    let report = section.report();
    if engine != Engine::PostgreSql {
        report.problem(place, "`globals` (roles and tablespaces) is for PostgreSQL only");
    } else if connection.database.is_empty() {
        report.problem(
            place,
            "a dump of all databases holds the globals already: leave `globals` out",
        );
    }
    if name.is_some_and(|name| name.len() + GLOBALS.len() > NAME_MAX) {
        let most = NAME_MAX - GLOBALS.len();
        report.problem(
            place,
            format_args!("with `globals` the `name` has at most {most} characters"),
        );
    }
}

fn backup(
    section: Section<'_, '_>,
    name: Option<String>,
    globals: Option<&Range<usize>>,
) -> Option<Backup> {
    let target = database(&section);
    let schedule = schedule(&section);
    let keep = keep(&section);
    let compression = compression(&section);
    let timeout = length(&section, "timeout", Duration::from_secs(1)..=EVERY_MAX);
    let retry = retry(&section);
    let upload_bytes_per_sec = upload_limit(&section);
    let pre_hooks = hook_list(&section, "pre_hooks", "pre");
    let post_hooks = hook_list(&section, "post_hooks", "post");
    let ping = ping(&section);
    let shrink_alarm = shrink_alarm(&section);
    if let (Some(place), Some((engine, connection))) = (globals, &target) {
        check_globals(&section, place, name.as_deref(), *engine, connection);
    }
    section.finish(&ELSEWHERE);
    let (engine, connection) = target?;
    let name = name?;
    Some(Backup {
        target: Target { id: name.clone(), engine, display_name: name.clone(), connection },
        name,
        schedule: schedule?,
        keep,
        compression,
        timeout: timeout.map_or(DEFAULT_TIMEOUT, |at| at.value),
        retry,
        upload_bytes_per_sec,
        pre_hooks,
        post_hooks,
        ping,
        shrink_alarm,
    })
}

fn name(section: &Section<'_, '_>) -> Option<At<String>> {
    let name = section.required("name", "a short name such as \"shop\"")?;
    match check_name(&name.value) {
        Ok(()) => Some(name),
        Err(message) => {
            section.report().problem(&name.span, message);
            None
        }
    }
}

/// Whether a text can name a backup: it becomes a directory in the storage.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.len() > NAME_MAX {
        Err(format!("`name` is longer than {NAME_MAX} characters"))
    } else if name.chars().all(fits) && name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err("`name` may have letters, digits, '.', '_' and '-' only, and begins with a letter or digit".to_owned())
    }
}

fn database(section: &Section<'_, '_>) -> Option<(Engine, Connection)> {
    let text = section.required("database", "a URL such as \"postgres://user@localhost/shop\"");
    let password = section.string("password", "\"env:NAME\", \"file:/path\" or the password");
    let container = section.string("container", "the name of a container");
    let text = text?;
    let report = section.report();
    let parse = if container.is_some() { url::parse_in_container } else { url::parse };
    let (engine, mut connection) = match parse(&text.value) {
        Ok(parsed) => parsed,
        Err(error) => {
            report.problem(&text.span, format_args!("`database`: {error}"));
            // What can be said about the password without knowing the engine.
            if let Some(Err(message)) = password.as_ref().map(|p| check_password(&p.value)) {
                report.problem(&password.map_or(text.span, |at| at.span), message);
            }
            return None;
        }
    };
    if !connection.password_ref.is_empty() {
        report.warn(&text.span, "the URL carries a password in the clear; better is password = \"file:/path\" or \"env:NAME\"");
    }
    if let Some(password) = password {
        take_password(section, &mut connection, engine, password);
    }
    if let Some(container) = container {
        take_container(section, &mut connection, engine, container);
    }
    Some((engine, connection))
}

fn take_password(
    section: &Section<'_, '_>,
    connection: &mut Connection,
    engine: Engine,
    password: At<String>,
) {
    let report = section.report();
    if engine == Engine::Sqlite {
        report.problem(&password.span, "a SQLite file has no `password`");
    }
    if !connection.password_ref.is_empty() {
        report.problem(&password.span, "the password is given twice: here and in the URL");
    }
    if let Err(message) = check_password(&password.value) {
        report.problem(&password.span, message);
    } else if !password.value.starts_with("env:") && !password.value.starts_with("file:") {
        report.warn(
            &password.span,
            "`password` is written in the clear; better is \"file:/path\" or \"env:NAME\"",
        );
    }
    connection.password_ref = Secret::new(password.value);
}

/// Whether a password reference can be followed; a literal always can.
fn check_password(text: &str) -> Result<(), &'static str> {
    if let Some(name) = text.strip_prefix("env:") {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || !name.chars().all(fits)
            || name.starts_with(|c: char| c.is_ascii_digit())
        {
            return Err("`password`: after env: stands the name of an environment variable");
        }
    } else if let Some(path) = text.strip_prefix("file:")
        && !path.starts_with('/')
    {
        return Err("`password`: after file: stands an absolute path");
    }
    Ok(())
}

fn take_container(
    section: &Section<'_, '_>,
    connection: &mut Connection,
    engine: Engine,
    container: At<String>,
) {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let report = section.report();
    if engine == Engine::Sqlite {
        report.problem(
            &container.span,
            "a SQLite file is read on this host: name its path here, without `container`",
        );
    } else if !container.value.chars().all(fits)
        || !container.value.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        report.problem(&container.span, "`container` is the name or id of a container");
    } else if engine == Engine::Redis && connection.way == Way::UnixSocket {
        report.problem(
            &container.span,
            "a Redis socket inside a container cannot be reached from here; leave it out of the URL, and Docker is asked for the address",
        );
    }
    connection.way = Way::DockerExec;
    connection.container = container.value;
}

fn schedule(section: &Section<'_, '_>) -> Option<Schedule> {
    let cron_place = section.place("cron");
    let every_place = section.place("every");
    let cron = section.string("cron", "a cron line such as \"0 3 * * *\"");
    let every = length(section, "every", Duration::from_secs(1)..=EVERY_MAX);
    let report = section.report();
    match (cron_place, every_place) {
        (Some(_), Some(every)) => {
            report.problem(&every, "both `cron` and `every`: a backup has one schedule");
        }
        (None, None) => report.missing(
            &section.span,
            "[[backup]] needs a schedule: cron = \"0 3 * * *\" (UTC) or every = \"6h\"",
        ),
        _ => {}
    }
    if let Some(line) = cron {
        return match CronLine::parse(&line.value) {
            Ok(line) => Some(Schedule::Cron(line)),
            Err(error) => {
                report.problem(&line.span, format_args!("`cron`: {error}"));
                None
            }
        };
    }
    every.map(|at| Schedule::Every(at.value))
}

pub(super) fn length(
    section: &Section<'_, '_>,
    key: &'static str,
    range: std::ops::RangeInclusive<Duration>,
) -> Option<At<Duration>> {
    let text = section.string(key, "a duration such as \"6h\"")?;
    checked_length(section.report(), key, &text, range)
}

fn checked_length(
    report: &Report<'_>,
    key: &str,
    text: &At<String>,
    range: std::ops::RangeInclusive<Duration>,
) -> Option<At<Duration>> {
    match duration::parse(&text.value) {
        Ok(value) if range.contains(&value) => Some(At { value, span: text.span.clone() }),
        Ok(_) => {
            let (from, to) = (duration::display(*range.start()), duration::display(*range.end()));
            report.problem(&text.span, format_args!("`{key}` must be between {from} and {to}"));
            None
        }
        Err(error) => {
            report.problem(&text.span, format_args!("`{key}`: {error}"));
            None
        }
    }
}

fn keep(section: &Section<'_, '_>) -> Rule {
    if section.place("keep").is_none() {
        section.report().warn(&section.span, "this [[backup]] has no `keep`: nothing is ever deleted; for example keep = { last = 7, days = 30 }");
        return Rule::default();
    }
    let Some(keep) = section.section("keep", "keep", "a table such as { last = 7, days = 30 }")
    else {
        return Rule::default();
    };
    let (last, days) = (keep.number("last", 1..=100_000), keep.number("days", 1..=36_500));
    if keep.place("last").is_none() && keep.place("days").is_none() {
        keep.report().problem(&keep.span, "`keep` says nothing: give it last, days or both");
    }
    keep.finish(&[]);
    Rule { last: last.map(|at| at.value), days: days.map(|at| at.value) }
}

fn compression(section: &Section<'_, '_>) -> Compression {
    let form = "\"zstd\", \"gzip\" or \"none\"";
    let Some(word) = section.string("compression", form) else { return Compression::Zstd };
    Compression::parse(&word.value).unwrap_or_else(|| {
        section.report().problem(&word.span, format_args!("`compression` must be {form}"));
        Compression::Zstd
    })
}

/// Bytes per second; 0 without a limit.
fn upload_limit(section: &Section<'_, '_>) -> u64 {
    let Some(text) = section.string("upload_limit", "a rate such as \"2MiB/s\"") else { return 0 };
    parse_rate(&text.value).unwrap_or_else(|| {
        let least = MIN_RATE >> 10;
        section.report().problem(
            &text.span,
            format_args!(
                "`upload_limit` must be a rate such as \"2MiB/s\", at least {least} KiB/s"
            ),
        );
        0
    })
}

/// Percent of its predecessors below which a run is told; `None` = off.
fn shrink_alarm(section: &Section<'_, '_>) -> Option<u32> {
    let form = "a share such as \"50%\", from 1% to 99%, or false";
    let Some(text) = section.string_or_false("shrink_alarm", form) else {
        return Some(shrink::PERCENT);
    };
    let word = text.value?;
    let percent = word.strip_suffix('%').and_then(|digits| digits.trim().parse().ok());
    let percent = percent.filter(|percent| (1..=99).contains(percent));
    if percent.is_none() {
        section.report().problem(&text.span, format_args!("`shrink_alarm` must be {form}"));
    }
    percent
}

fn hook_list(section: &Section<'_, '_>, key: &'static str, kind: &str) -> Vec<String> {
    let form = "a list of shell commands such as [\"systemctl stop shop\"]";
    let commands = section.strings(key, form).unwrap_or_default();
    let commands: Vec<String> = commands.into_iter().map(|at| at.value).collect();
    if let (Err(problem), Some(place)) = (check_list(kind, &commands), section.place(key)) {
        section.report().problem(&place, format_args!("`{key}`: {problem}"));
    }
    commands
}

/// What a backup without `retry` gets.
fn default_retry() -> RetryPolicy {
    RetryPolicy { max_attempts: 3, backoff_sec: vec![30, 120] }
}

fn retry(section: &Section<'_, '_>) -> RetryPolicy {
    let mut policy = default_retry();
    let form = "a table such as { attempts = 3, backoff = [\"30s\", \"2m\"] }";
    let Some(retry) = section.section("retry", "retry", form) else { return policy };
    if let Some(attempts) = retry.number("attempts", 1..=100) {
        policy.max_attempts = attempts.value;
    }
    if let Some(pauses) = retry.strings("backoff", "a list of durations such as [\"30s\", \"2m\"]")
    {
        let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
        let report = retry.report();
        let read =
            pauses.iter().filter_map(|p| checked_length(report, "backoff", p, range.clone()));
        let seconds = read.map(|at| u32::try_from(at.value.as_secs()).unwrap_or(u32::MAX));
        policy.backoff_sec = seconds.collect();
    }
    retry.finish(&[]);
    policy
}
