//! The option file: how user, password and place reach MySQL's and MariaDB's tools without standing in argv or
//! the environment.
//!
//! Both read `key="value"` lines below `[client]`: the outer quotes go, `\\`, `\"`, `\n`, `\r`, `\t` and `\b`
//! are escapes, and within quotes neither `#` nor `;` begins a comment. A line longer than the readers'
//! buffer would be taken apart into two options, so it is refused here.

use zeroize::Zeroizing;

use super::super::DriverError;
use crate::secret::Secret;

/// The readers' buffer is 4096 bytes.
const LINE_BYTES: usize = 4000;

/// The lines of an option file; wiped when dropped.
pub(super) struct Options(Zeroizing<String>);

impl Options {
    /// The `[client]` group, which every tool reads.
    pub(super) fn new() -> Self {
        // Large enough for most, so that few copies are left behind.
        let mut text = Zeroizing::new(String::with_capacity(16 * 1024));
        text.push_str("[client]\n");
        Self(text)
    }

    /// An option with a value that somebody chose.
    ///
    /// # Errors
    /// When the file cannot hold it; `field` names it.
    pub(super) fn set(
        &mut self,
        field: &'static str,
        key: &str,
        value: &str,
    ) -> Result<(), DriverError> {
        let wrong = |problem: &str| DriverError::Setting { field, problem: problem.to_owned() };
        if value.contains('\0') {
            return Err(wrong("contains a NUL byte, which MySQL's option file cannot hold"));
        }
        let start = self.0.len();
        self.0.push_str(key);
        self.0.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                '\t' => self.0.push_str("\\t"),
                '\u{8}' => self.0.push_str("\\b"),
                c => self.0.push(c),
            }
        }
        self.0.push_str("\"\n");
        if self.0.len() - start > LINE_BYTES {
            return Err(wrong("is longer than MySQL's option file can hold"));
        }
        Ok(())
    }

    /// An option of ours.
    pub(super) fn add(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// The file's content.
    pub(super) fn content(&self) -> Secret {
        Secret::new(self.0.as_str())
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(password: &str) -> String {
        let mut options = Options::new();
        options.set("password", "password", password).unwrap();
        options.text().strip_prefix("[client]\n").unwrap().to_owned()
    }

    #[test]
    fn escaped() {
        for (password, line) in [
            ("plain", r#"password="plain""#),
            ("", r#"password="""#),
            (r#"a"b'c\d"#, r#"password="a\"b'c\\d""#),
            (r"\n is no line break", r#"password="\\n is no line break""#),
            ("a\nb\r\tc\u{8}", r#"password="a\nb\r\tc\b""#),
            (" # not ; a comment ", r#"password=" # not ; a comment ""#),
            ("[client]\nuser=evil", r#"password="[client]\nuser=evil""#),
            ("größe😀", r#"password="größe😀""#),
        ] {
            assert_eq!(written(password), format!("{line}\n"));
            assert_eq!(written(password).lines().count(), 1);
        }
    }

    #[test]
    fn what_it_cannot_hold_is_refused_without_being_repeated() {
        let long = "hunter2".repeat(1000);
        for bad in ["hunter2\0", &long, &"\\".repeat(2001)] {
            let error = Options::new().set("password", "password", bad).unwrap_err();
            assert!(!error.retry() && !error.to_string().contains("hunter2"), "{error}");
        }
    }
}
