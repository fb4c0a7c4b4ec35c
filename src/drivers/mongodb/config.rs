//! The tools' configuration file: how a password, or a whole URI, reaches them without standing in argv.
//!
//! YAML with one key, `password` or `uri`, its value in double quotes; mongodump reads it with `--config` from
//! version 100.3.0 on (also 4.2.13, 4.4.4). In double quotes YAML can hold every character.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::super::workfile::WorkFile;
use super::super::{Context, DriverError};
use crate::secret::Secret;

/// The file, removed when dropped.
#[derive(Debug)]
pub(super) struct ConfigFile(WorkFile);

impl ConfigFile {
    /// Writes `key: "value"` into a new file of mode 0600 in the work directory.
    pub(super) fn write(key: &str, value: &Secret, cx: &Context<'_>) -> Result<Self, DriverError> {
        let (work, mut file) = WorkFile::create(cx.work_dir, "mongo-config")?;
        file.write_all(line(key, value).as_bytes())
            .map_err(|source| DriverError::Work { path: work.path().to_owned(), source })?;
        Ok(Self(work))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

fn line(key: &str, value: &Secret) -> Zeroizing<String> {
    let text = value.expose();
    // Large enough from the start, so that no copy is left behind.
    let mut line = Zeroizing::new(String::with_capacity(10 * text.len() + key.len() + 16));
    line.push_str(key);
    line.push_str(": \"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                line.push('\\');
                line.push(c);
            }
            // Line breaks of YAML's own, and what it does not take as it is.
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(line, "\\u{:04X}", u32::from(c));
            }
            c if c.is_control() => {
                let _ = write!(line, "\\u{:04X}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push_str("\"\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(password: &str) -> String {
        line("password", &Secret::new(password)).to_string()
    }

    #[test]
    fn escaped() {
        assert_eq!(written("plain"), "password: \"plain\"\n");
        assert_eq!(written(r#"a"b\c"#), "password: \"a\\\"b\\\\c\"\n");
        assert_eq!(written(": - # %ß {x}"), "password: \": - # %ß {x}\"\n");
        assert_eq!(written("a\nuri: b"), "password: \"a\\u000Auri: b\"\n");
        assert_eq!(written("\u{85}\u{2028}\u{feff}"), "password: \"\\u0085\\u2028\\uFEFF\"\n");
    }
}
