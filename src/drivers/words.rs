//! What a string of a configuration must not be, before anything is done with it.
//!
//! Nothing of a target becomes an option, a second line or a connection string: every string is checked here
//! first and escaped where it is used, and each of the two would do alone.

use super::DriverError;

/// Longer than any name, path or host that exists.
const MAX_BYTES: usize = 4096;

/// Refuses a leading `-`, control characters and absurd lengths in the setting called `field`.
///
/// # Errors
/// [`DriverError::Setting`], without the value.
pub(super) fn check(field: &'static str, value: &str) -> Result<(), DriverError> {
    let problem = if value.len() > MAX_BYTES {
        "is too long"
    } else if value.starts_with('-') {
        "must not begin with '-'"
    } else if value.chars().any(char::is_control) {
        "must not contain control characters"
    } else {
        return Ok(());
    };
    Err(DriverError::Setting { field, problem: problem.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_control_characters_are_refused() {
        for bad in ["--file=/etc/passwd", "-f", "a\nb", "a\0b", "\u{85}", "\u{1b}[31m", "\r"] {
            let error = check("database", bad).unwrap_err();
            assert!(!error.retry());
            assert!(error.to_string().contains("database"), "{error}");
            assert!(!error.to_string().contains("passwd"), "the value is not repeated: {error}");
        }
        assert!(check("database", &"x".repeat(MAX_BYTES + 1)).is_err());
    }

    #[test]
    fn odd_names_are_just_names() {
        for good in ["", "host=evil", "postgres://evil/x", "it's \\ \"odd\"", "größe", "a-b"] {
            check("database", good).unwrap();
        }
    }
}
