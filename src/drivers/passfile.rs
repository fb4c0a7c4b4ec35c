//! libpq's password file: how a password reaches `pg_dump` without standing in argv or the environment.
//!
//! One line, `*:*:*:*:password`: the file is for one connection only, so there is nothing to match. The
//! format escapes `:` and `\` with a backslash and has no way to write a line break; a password with one is
//! refused, because whatever else would be sent instead is not the password.

use std::io::Write;
use std::path::Path;

use zeroize::Zeroizing;

use super::workfile::WorkFile;
use super::{Context, DriverError};
use crate::secret::Secret;

/// The file, removed when dropped.
#[derive(Debug)]
pub(super) struct PassFile(WorkFile);

impl PassFile {
    /// Writes the password into a new file of mode 0600 in the work directory.
    pub(super) fn write(password: &Secret, cx: &Context<'_>) -> Result<Self, DriverError> {
        let line = line(password)?;
        let (work, mut file) = WorkFile::create(cx.work_dir, "passfile")?;
        file.write_all(line.as_bytes())
            .map_err(|source| DriverError::Work { path: work.path().to_owned(), source })?;
        Ok(Self(work))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

fn line(password: &Secret) -> Result<Zeroizing<String>, DriverError> {
    let text = password.expose();
    if text.contains(['\n', '\r', '\0']) {
        return Err(DriverError::Setting {
            field: "password",
            problem: "contains a line break, which PostgreSQL's password file cannot hold"
                .to_owned(),
        });
    }
    // Large enough from the start, so that no copy is left behind.
    let mut line = Zeroizing::new(String::with_capacity(2 * text.len() + 16));
    line.push_str("*:*:*:*:");
    for c in text.chars() {
        if matches!(c, ':' | '\\') {
            line.push('\\');
        }
        line.push(c);
    }
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(password: &str) -> String {
        line(&Secret::new(password)).unwrap().to_string()
    }

    #[test]
    fn escaped() {
        assert_eq!(written("plain"), "*:*:*:*:plain\n");
        assert_eq!(written(r"a:b\c"), "*:*:*:*:a\\:b\\\\c\n");
        assert_eq!(written("q'u\"o te#ß"), "*:*:*:*:q'u\"o te#ß\n");
    }

    #[test]
    fn line_breaks_are_refused_without_the_password() {
        for bad in ["hunter2\nx", "hunter2\r", "hunter2\0"] {
            let error = line(&Secret::new(bad)).unwrap_err();
            assert!(!error.retry() && !error.to_string().contains("hunter2"), "{error}");
        }
    }
}
