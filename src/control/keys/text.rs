//! The key file, which is also the exported form:
//!
//! ```text
//! # backupy master key: whoever holds it can read every backup, without it none can be restored.
//! # Keep a copy away from this machine. Lines that begin with # are comments.
//! backupy-master-key 1
//! key 0123456789abcdef 2026-11-23T10:00:00Z WlhVk…(base64 of 32 bytes)…=
//! ```
//! The first word pair names format and version. Each `key` line holds an id, the time it was made, and the key;
//! the newest stands first. The id is checked against the key, so a mistyped copy is noticed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{KEY_BYTES, KEYS_MAX, KeyError, OneKey};
use crate::secret::Secret;

const HEADER: &str = "backupy-master-key 1";
const COMMENT: &str = "\
# backupy master key: whoever holds it can read every backup, without it none can be restored.
# Keep a copy away from this machine. Lines that begin with # are comments.
";

pub(super) fn write(keys: &[OneKey]) -> Secret {
    // Sized once, so that no copy of a key is left behind by growing.
    let mut text = String::with_capacity(COMMENT.len() + HEADER.len() + 1 + keys.len() * 128);
    text.push_str(COMMENT);
    text.push_str(HEADER);
    text.push('\n');
    for key in keys {
        let encoded = Zeroizing::new(STANDARD.encode(*key.bytes));
        for part in ["key ", &key.id, " ", &created(key.created_ms), " ", &encoded, "\n"] {
            text.push_str(part);
        }
    }
    Secret::new(text)
}

pub(super) fn read(text: &str) -> Result<Vec<OneKey>, KeyError> {
    let mut lines = (1..)
        .zip(text.lines())
        .map(|(number, line)| (number, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    match lines.next() {
        Some((_, HEADER)) => {}
        Some((line, text)) if text.starts_with("backupy-master-key") => {
            return Err(KeyError::Form { line });
        }
        _ => return Err(KeyError::Form { line: 0 }),
    }
    let mut keys: Vec<OneKey> = Vec::new();
    for (line, text) in lines {
        let key = one(text, line)?;
        if keys.len() >= KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    if keys.is_empty() { Err(KeyError::Form { line: 0 }) } else { Ok(keys) }
}

fn one(text: &str, line: usize) -> Result<OneKey, KeyError> {
    let form = || KeyError::Form { line };
    let mut words = text.split_whitespace();
    let (Some("key"), Some(id), Some(made), Some(encoded), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(form());
    };
    let made: Timestamp = made.parse().map_err(|_| form())?;
    let decoded = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| form())?);
    if decoded.len() != KEY_BYTES {
        return Err(form());
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    bytes.copy_from_slice(&decoded);
    let key = OneKey::new(bytes, u64::try_from(made.as_millisecond()).unwrap_or(0));
    if key.id == id { Ok(key) } else { Err(KeyError::Id { line }) }
}

/// RFC 3339, UTC.
fn created(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Bytes as base64 in JSON.
pub(super) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        STANDARD.decode(text).map_err(|_| D::Error::custom("not base64"))
    }
}
