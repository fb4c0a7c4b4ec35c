//! What no compiler checks: which module may use which, how files open, how long they are, what is not in them.

#![expect(clippy::expect_used, reason = "a tree that cannot be read is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the bottom to the top; one uses only what stands in an earlier row.
const LAYERS: &[&[&str]] = &[
    &["hex", "exit", "clock", "pulse", "wake", "secret", "redact", "calendar"],
    &["model", "thread"],
    &["config", "signals"],
    &["net"],
    &["store", "docker"],
    &["artifact"],
    &["drivers"],
    &["pipeline"],
    &["runs", "host"],
    &["wire"],
    &["outbox"],
    &["link", "observe"],
    &["dispatch"],
    &["agent", "control"],
    &["cli"],
    &["main", "lib"],
];

/// The only users of the generated types.
const WIRE_USERS: &[&str] = &["wire", "outbox", "link", "dispatch", "agent", "control"];

/// Who may wait by looking again, and why nothing can wake it instead.
const MAY_SLEEP: &[(&str, &str)] = &[
    (
        "drivers/exec.rs",
        "waiting for a child has no deadline of its own; 10 ms, bounded, only at its end",
    ),
    ("store/engine.rs", "fjall tells nobody when it has written its tables; bounded by a deadline"),
    (
        "drivers/exec.rs",
        "the end of a killed child, looked for at most a few times; bounded by a deadline",
    ),
    (
        "control/local.rs",
        "a run that is between the books and the board for an instant; not to spin there",
    ),
    ("store/files.rs", "another process is about to write its pid into the lock file; 200 ms"),
];

const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory that can be listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() || ["target", ".git", ".venv", "__pycache__"].contains(&name.as_str())
        {
            continue;
        }
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

/// Every source file below `src` with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    paths.sort();
    assert!(paths.len() > 10, "the sources were not found");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8"))).collect()
}

/// `src/link/read.rs` → `link`.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix(root().join("src")).expect("a file below src");
    let first = below.components().next().expect("a component").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// Whether a file holds nothing but tests.
fn is_test(path: &Path) -> bool {
    let below = path.strip_prefix(root()).expect("a file of ours").to_string_lossy().into_owned();
    below.contains("/tests/") || below.ends_with("/tests.rs") || below.ends_with("/testing.rs")
}

/// The lines of the program itself, with their numbers: nothing from the first `#[cfg(test)] mod` on.
fn program(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().enumerate().map(|(number, line)| (number + 1, line))
}

fn level(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// The top-level modules that a line names: `use crate::a::B`, `crate::a::f()`, `use crate::{a, b::C}`.
fn used(text: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut found = BTreeSet::new();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.insert(word(&list[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn imports_go_down() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let Some(own) = level(&module) else {
            wrong.push(format!("{} is in no layer", path.display()));
            continue;
        };
        for other in used(&text).into_iter().filter(|other| *other != module) {
            // Macros and items of the crate root are no modules.
            let Some(theirs) = level(&other) else { continue };
            if theirs >= own {
                wrong.push(format!("{}: {module} uses {other}", path.display()));
            }
            if other == "wire" && !WIRE_USERS.contains(&module.as_str()) {
                wrong.push(format!("{}: {module} must not know the wire", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_layer_test_sees_imports() {
    let text = "use crate::a::B;\nlet x = crate::b::f();\n// crate::no\nuse crate::{c, d::{E, F},\n    g};";
    let expected = ["a", "b", "c", "d", "g"].map(str::to_owned);
    assert_eq!(used(text), BTreeSet::from(expected));
}

#[test]
fn every_file_opens_with_its_purpose() {
    let bare: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| path)
        .collect();
    assert!(bare.is_empty(), "no `//!` at the top: {bare:?}");
}

#[test]
fn files_stay_readable() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "does each still own one thing? {long:?}");
}

#[test]
fn nothing_sleeps_or_waits_to_be_written() {
    let sleep = concat!("thread::", "sleep");
    let words = ["to\u{64}o!(", "unimple\u{6d}ented!(", "TO\u{44}O", "FIX\u{4d}E", "XX\u{58}:"];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let may_sleep = MAY_SLEEP.iter().any(|(file, _)| path.ends_with(file));
        for (number, line) in program(&text) {
            let asleep = line.contains(sleep) && !may_sleep && !is_test(&path);
            if asleep || words.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn only_the_command_line_prints() {
    let words = ["println!(", "eprintln!(", "print!(", "eprint!("];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if ["cli", "main"].contains(&module_of(&path).as_str()) || is_test(&path) {
            continue;
        }
        for (number, line) in program(&text) {
            if words.iter().any(|word| line.trim_start().starts_with(word)) {
                wrong.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Nothing in the tree depends on the machine it was written on.
#[test]
fn no_machine_is_named() {
    let words = [
        concat!("/wo", "rk/"),
        concat!("/tm", "p/w/"),
        concat!("/ro", "ot/"),
        concat!("crates", ".io"),
        concat!("py", "pi.org"),
        concat!("npm", "js.org"),
        concat!("deb.", "debian.org"),
        concat!("proxy.", "golang.org"),
    ];
    let mut paths = Vec::new();
    walk(&root(), &mut paths);
    let mut wrong = Vec::new();
    for path in paths {
        if path.file_name().is_some_and(|name| name == "Cargo.lock") {
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            // A path of this shape further down in another one is nobody's machine.
            let whole = |at: usize| !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
            if words.iter().any(|word| line.match_indices(word).any(|(at, _)| whole(at))) {
                wrong.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
