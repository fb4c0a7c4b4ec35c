//! libpq's password file: how a password reaches `pg_dump` without standing in argv or the environment.
//!
//! One line, `*:*:*:*:password`: the file is for one connection only, so there is nothing to match. The
//! format escapes `:` and `\` with a backslash and has no way to write a line break; a password with one is
//! refused, because whatever else would be sent instead is not the password.

use super::site::{SecretFile, Site};
use super::{Context, DriverError};
use crate::secret::Secret;

/// A password file for one tool at `site`.
pub(super) fn write(
    password: &Secret,
    site: &Site,
    cx: &Context<'_>,
) -> Result<SecretFile, DriverError> {
    site.secret_file("passfile", &line(password)?, cx)
}

fn line(password: &Secret) -> Result<Secret, DriverError> {
    let text = password.expose();
    if text.contains(['\n', '\r', '\0']) {
        return Err(DriverError::Setting {
            field: "password",
            problem: "contains a line break, which PostgreSQL's password file cannot hold"
                .to_owned(),
        });
    }
    // Large enough from the start, so that no copy is left behind.
    let mut line = String::with_capacity(2 * text.len() + 16);
    line.push_str("*:*:*:*:");
    for c in text.chars() {
        if matches!(c, ':' | '\\') {
            line.push('\\');
        }
        line.push(c);
    }
    line.push('\n');
    Ok(Secret::new(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(password: &str) -> String {
        line(&Secret::new(password)).unwrap().expose().to_owned()
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
