//! The tools' configuration file: how a password, or a whole URI, reaches them without standing in argv.
//!
//! YAML with one key, `password` or `uri`, its value in double quotes; mongodump reads it with `--config` from
//! version 100.3.0 on (also 4.2.13, 4.4.4). In double quotes YAML can hold every character.

use std::fmt::Write as _;

use crate::secret::Secret;

/// The file's content: `key: "value"`.
pub(super) fn content(key: &str, value: &Secret) -> Secret {
    let text = value.expose();
    // Large enough from the start, so that no copy is left behind.
    let mut line = String::with_capacity(10 * text.len() + key.len() + 16);
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
    Secret::new(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(password: &str) -> String {
        content("password", &Secret::new(password)).expose().to_owned()
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
