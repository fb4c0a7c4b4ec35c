//! The name of an object: `BACKUP/20261123T030000Z-RUN-ATTEMPT.bky`.
//!
//! Two parts, never more, of letters that need no escape in a path, a URL or a shell. The date is for people; what
//! a manifest says counts.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// End of every artifact's name.
const SUFFIX: &str = ".bky";

const BACKUP_MAX: usize = 64;
const FILE_MAX: usize = 200;

/// A checked key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectKey(String);

/// A text that is not an object's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyFormError;

impl fmt::Display for KeyFormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an object's key (NAME/FILE.bky)")
    }
}

impl std::error::Error for KeyFormError {}

impl ObjectKey {
    /// The key for one attempt of a run.
    ///
    /// # Errors
    /// When the name or the run's id has letters that a key cannot have.
    pub fn new(backup: &str, run_id: &str, attempt: u32, at_ms: u64) -> Result<Self, KeyFormError> {
        let seconds = i64::try_from(at_ms / 1000).map_err(|_| KeyFormError)?;
        let at = Timestamp::from_second(seconds).map_err(|_| KeyFormError)?;
        let at = at.strftime("%Y%m%dT%H%M%SZ");
        Self::parse(&format!("{backup}/{at}-{run_id}-{attempt}{SUFFIX}"))
    }

    /// Checks a key.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, KeyFormError> {
        let (backup, file) = text.split_once('/').ok_or(KeyFormError)?;
        let stem = file.strip_suffix(SUFFIX).ok_or(KeyFormError)?;
        let fits = |part: &str, max: usize| {
            part.len() <= max
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if fits(backup, BACKUP_MAX) && fits(stem, FILE_MAX) {
            Ok(Self(text.to_owned()))
        } else {
            Err(KeyFormError)
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The backup's name.
    pub fn backup(&self) -> &str {
        self.0.split_once('/').map_or("", |(backup, _)| backup)
    }

    /// The run that it was made for.
    pub fn run_id(&self) -> Option<&str> {
        self.file().split('-').nth(1)
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, file)| file)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ObjectKey {
    type Error = KeyFormError;

    fn try_from(text: String) -> Result<Self, KeyFormError> {
        Self::parse(&text)
    }
}

impl From<ObjectKey> for String {
    fn from(key: ObjectKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_backup_time_run_and_attempt() {
        let key = ObjectKey::new("shop", "r1", 2, 1_795_402_800_123).unwrap();
        assert_eq!(key.as_str(), "shop/20261123T030000Z-r1-2.bky");
        assert_eq!((key.backup(), key.file()), ("shop", "20261123T030000Z-r1-2.bky"));
    }

    #[test]
    fn nothing_gets_out_of_the_storage() {
        for bad in [
            "",
            "a",
            "a/",
            "/a.bky",
            "a/b",
            "a/.bky",
            "../b.bky",
            "a/../b.bky",
            "a/b/c.bky",
            "./b.bky",
            ".hidden/b.bky",
            "a/.b.bky",
            "a/b.bky.json",
            "a\\b/c.bky",
            "a/b%2f.bky",
            "a/b c.bky",
            "a/b\0.bky",
            "a/-b.bky",
            "ä/b.bky",
            "a//b.bky",
        ] {
            assert_eq!(ObjectKey::parse(bad), Err(KeyFormError), "{bad}");
        }
        assert!(ObjectKey::parse(&format!("{}/b.bky", "a".repeat(65))).is_err());
        assert!(ObjectKey::parse(&format!("a/{}.bky", "b".repeat(201))).is_err());
        assert!(ObjectKey::new("a", "../x", 1, 0).is_err());
        assert!(serde_json::from_str::<ObjectKey>("\"../x.bky\"").is_err());
    }
}
