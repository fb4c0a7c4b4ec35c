//! The file as a whole and its single sections, in the order of the module's table.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use toml::de::DeTable;

use super::backup::backups;
use super::check::checks;
use super::notify::channels;
use super::reader::{At, Problem, Report, Section};
use super::storage::storage;
use super::{FILE_MAX, STATE_DIR, Settings};
use crate::config::parse_listen;
use crate::control::schedule::Window;
use crate::model::Maintenance;

/// Keys that people put into the wrong table, and where they belong.
pub(super) const ELSEWHERE: [(&str, &str); 18] = [
    ("state_dir", "at the top, before the first [table]"),
    ("on_failure", "at the top, before the first [table]"),
    ("max_parallel", "at the top, before the first [table]"),
    ("metrics_listen", "at the top, before the first [table]"),
    ("directory", "under [storage]"),
    ("s3", "under [storage], or as [storage.s3]"),
    ("bucket", "under [storage.s3]"),
    ("endpoint", "under [storage.s3]"),
    ("access_key", "under [storage.s3]"),
    ("secret_key", "under [storage.s3]"),
    ("master", "under [keys]"),
    ("retention", "under [[backup]] as keep = { last = 7, days = 30 }"),
    ("webhook", "under [[notify]]"),
    ("email", "under [[notify]]"),
    ("telegram", "under [[notify]]"),
    ("ping", "under [[backup]]"),
    ("backups", "in one [[backup]] for each of them"),
    ("schedule", "under [[backup]] as cron = \"0 3 * * *\" or every = \"6h\""),
];

/// Reads and checks a file.
///
/// # Errors
/// Every problem there is, in the order of the lines.
pub fn load(path: &Path) -> Result<Settings, Vec<Problem>> {
    let fail = |what: String| vec![Problem { line: 0, message: what }];
    let file = std::fs::File::open(path)
        .map_err(|error| fail(format!("failed to open {}: {error}", path.display())))?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(format!("failed to read {}: {error}", path.display())))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(fail(format!(
            "{} is larger than 1 MiB: not a file of settings",
            path.display()
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
        vec![Problem { line, message: "not UTF-8 text".to_owned() }]
    })?;
    parse(&text)
}

/// The state directory that a file names, whatever else may be wrong with it; `None` if it names none.
pub fn state_dir_in(path: &Path) -> Option<PathBuf> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(FILE_MAX).read_to_string(&mut text).ok()?;
    let (table, _) = DeTable::parse_recoverable(&text);
    let dir = PathBuf::from(table.get_ref().get("state_dir")?.get_ref().as_str()?);
    dir.is_absolute().then_some(dir)
}

/// Checks the text of a file.
///
/// # Errors
/// Every problem there is, in the order of the lines.
pub fn parse(text: &str) -> Result<Settings, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let report = Report::new(text, !errors.is_empty());
    for error in &errors {
        report.problem(&error.span().unwrap_or_default(), error.message().replace('\n', ", "));
    }
    let settings = top(Section::new(table.get_ref(), "", 0..0, &report));
    let (problems, warnings) = report.finish();
    match settings {
        Some(settings) if problems.is_empty() => Ok(Settings { warnings, ..settings }),
        // A missing part always comes with its problem; this one is for the reader of a defect.
        _ if problems.is_empty() => {
            Err(vec![Problem { line: 0, message: "the settings are incomplete".to_owned() }])
        }
        _ => Err(problems),
    }
}

fn top(section: Section<'_, '_>) -> Option<Settings> {
    let state_dir = match section.string("state_dir", "an absolute path") {
        Some(path) => absolute(&section, "state_dir", path),
        None => Some(At { value: PathBuf::from(STATE_DIR), span: 0..0 }),
    };
    let on_failure = section.string("on_failure", "a shell command").map(|at| at.value);
    let max_parallel = section.number("max_parallel", 1..=32).map_or(1, |at| at.value);
    let metrics_listen = metrics_listen(&section);
    let storage = storage(&section);
    let directory = storage.as_ref().and_then(|at| {
        at.value.directory().map(|path| At { value: path.to_owned(), span: at.span.clone() })
    });
    let master_key = master_key(&section, state_dir.as_ref());
    let maintenance = maintenance(&section);
    let backups = backups(&section);
    let checks = checks(&section);
    let notify = channels(&section);
    apart(&section, state_dir.as_ref(), directory.as_ref(), master_key.as_ref());
    section.finish(&ELSEWHERE);
    let (window, maintenance) = maintenance.unzip();
    Some(Settings {
        state_dir: state_dir?.value,
        storage: storage?.value,
        master_key: master_key?.value,
        window,
        maintenance,
        on_failure,
        max_parallel,
        metrics_listen,
        backups,
        checks,
        notify,
        warnings: Vec::new(),
    })
}

fn metrics_listen(top: &Section<'_, '_>) -> Option<Option<SocketAddr>> {
    let at = top.string("metrics_listen", "ADDRESS:PORT such as \"127.0.0.1:9090\", or \"off\"")?;
    parse_listen(&at.value)
        .map_err(|form| {
            top.report().problem(&at.span, format_args!("`metrics_listen` must be {form}"));
        })
        .ok()
}

fn master_key(top: &Section<'_, '_>, state_dir: Option<&At<PathBuf>>) -> Option<At<PathBuf>> {
    let default =
        || state_dir.map(|dir| At { value: dir.value.join("master.key"), span: dir.span.clone() });
    if top.place("keys").is_none() {
        return default();
    }
    let section =
        top.section("keys", "[keys]", "a table: [keys] with master = \"/etc/backupy/master.key\"")?;
    let path = match section.string("master", "the absolute path of the master key's file") {
        Some(path) => absolute(&section, "master", path),
        None => default(),
    };
    section.finish(&ELSEWHERE);
    path
}

fn maintenance(top: &Section<'_, '_>) -> Option<(Window, Maintenance)> {
    let section = top.section("maintenance", "[maintenance]", "a table with start and end")?;
    let start = section.required("start", "a time in UTC such as \"02:00\"");
    let end = section.required("end", "a time in UTC such as \"04:30\"");
    let window =
        start.zip(end).and_then(|(start, end)| match Window::parse(&start.value, &end.value) {
            Ok(window) => {
                Some((window, Maintenance { start_utc: start.value, end_utc: end.value }))
            }
            Err(error) => {
                let late = error == crate::calendar::window::WindowError::End;
                section.report().problem(if late { &end.span } else { &start.span }, error);
                None
            }
        });
    section.finish(&ELSEWHERE);
    window
}

/// State, storage and key must be apart, so that losing one is not losing all.
fn apart(
    top: &Section<'_, '_>,
    state_dir: Option<&At<PathBuf>>,
    directory: Option<&At<PathBuf>>,
    master: Option<&At<PathBuf>>,
) {
    let report = top.report();
    if let (Some(state), Some(storage)) = (state_dir, directory) {
        if storage.value.starts_with(&state.value) {
            let state = state.value.display();
            report.problem(&storage.span, format_args!("`directory` lies inside the state directory {state}: backups must survive its loss"));
        } else if state.value.starts_with(&storage.value) {
            let state = state.value.display();
            report.problem(&storage.span, format_args!("`directory` contains the state directory {state}: put the storage somewhere else"));
        }
    }
    if let (Some(storage), Some(master)) = (directory, master)
        && master.value.starts_with(&storage.value)
    {
        report.problem(&master.span, "the master key lies inside the storage directory: whoever takes the backups would have their key");
    }
}

pub(super) fn absolute(
    section: &Section<'_, '_>,
    key: &str,
    path: At<String>,
) -> Option<At<PathBuf>> {
    match check_path(key, &path.value) {
        Ok(value) => Some(At { value, span: path.span }),
        Err(message) => {
            section.report().problem(&path.span, message);
            None
        }
    }
}

/// An absolute path without detours, so that comparing two of them means something.
fn check_path(key: &str, text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!(
            "`{key}` must be an absolute path: a relative one depends on where the program was started"
        ));
    }
    if text.contains('\0') || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("`{key}` must be a path without \"..\""));
    }
    Ok(path.components().collect())
}
