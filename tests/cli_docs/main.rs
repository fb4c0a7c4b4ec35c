//! The man pages and completions in `packaging/` say what the program says: they are made from the definition of
//! its command line and the description of its settings, and a test fails when they are not. `scripts/generate-cli-docs` makes them anew.

#![cfg(feature = "control")]
#![expect(clippy::expect_used, reason = "a tree that cannot be read is a failed test")]

mod completions;
mod man;
mod settings;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind};
use backupy::cli::TopLevel;

/// The value that an option takes, by its name in the help.
pub fn value_of<'a>(flag: &FlagInfo<'a>) -> Option<&'a str> {
    match flag.kind {
        FlagInfoKind::Switch => None,
        FlagInfoKind::Option { arg_name } => Some(arg_name),
    }
}

/// What a shell completes for a value or an argument of that name.
pub fn is_path(name: &str) -> bool {
    matches!(name, "FILE" | "DIR") || name.ends_with("_file") || name.ends_with("_dir")
}

/// The flags that people are told about, without `--help`, which each command has.
pub fn flags<'a>(command: &CommandInfoWithArgs) -> impl Iterator<Item = &'a FlagInfo<'a>>
where
    CommandInfoWithArgs: 'a,
{
    command.flags.iter().filter(|flag| !flag.hidden && flag.long != "--help")
}

/// The first sentence of a description, without its full stop.
pub fn summary(description: &str) -> String {
    let words: Vec<&str> = description.split_whitespace().collect();
    let text = words.join(" ");
    let end = text.find(". ").unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_owned()
}

/// Every generated file below `packaging/` with its text.
fn generated() -> BTreeMap<PathBuf, String> {
    let top = TopLevel::get_args_info();
    let mut files = BTreeMap::new();
    files.insert("man/backupy.1".into(), man::overview(&top));
    for sub in &top.commands {
        files.insert(format!("man/backupy-{}.1", sub.name).into(), man::page(&sub.command));
    }
    files.insert(
        "man/backupy.toml.5".into(),
        settings::page(include_str!("../../src/control/file/mod.rs")),
    );
    files.insert("completions/backupy.bash".into(), completions::bash(&top));
    files.insert("completions/_backupy".into(), completions::zsh(&top));
    files.insert("completions/backupy.fish".into(), completions::fish(&top));
    files
}

/// The files there that a generator has made.
fn present(packaging: &Path) -> Vec<PathBuf> {
    let pages = fs::read_dir(packaging.join("man")).expect("a directory of man pages");
    pages
        .map(|entry| PathBuf::from("man").join(entry.expect("an entry").file_name()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "1"))
        .collect()
}

#[test]
fn man_pages_and_completions_say_what_the_command_line_says() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let generated = generated();
    let strangers: Vec<PathBuf> =
        present(&packaging).into_iter().filter(|path| !generated.contains_key(path)).collect();
    if std::env::var_os("BACKUPY_WRITE_CLI_DOCS").is_some() {
        for path in strangers {
            fs::remove_file(packaging.join(path)).expect("a page that can be removed");
        }
        for (path, text) in generated {
            fs::write(packaging.join(path), text).expect("a file that can be written");
        }
        return;
    }
    let mut wrong = strangers;
    for (path, text) in generated {
        if fs::read_to_string(packaging.join(&path)).ok().as_deref() != Some(&text) {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "run scripts/generate-cli-docs: {wrong:?}");
}
