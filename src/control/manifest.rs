//! The manifest: a small JSON file beside every artifact that says what it is and how to open it.
//!
//! ```json
//! {"backupy_manifest":1,
//!  "run_id":"…", "backup":"shop", "engine":"postgresql", "engine_version":"PostgreSQL 15.18",
//!  "trigger":"scheduled", "started_ms":1795402800000, "finished_ms":1795402860000,
//!  "object":{"key":"shop/20261123T030000Z-…-1.bky","size_bytes":12345,"sha256":"…hex…"},
//!  "compression":"zstd",
//!  "key":{"master_key_id":"0123456789abcdef","data_key":"…base64…"},
//!  "mac":"…hex…"}
//! ```
//! `mac` is HMAC-SHA256, under a key derived from the master key that `key` names, over the other fields as this
//! module writes them (fixed order, no spaces). Reading is strict: other bytes than this module would write, another
//! version or a wrong `mac` are errors, never a guess. With storage and master key alone everything can be restored.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::keys::{KeyError, MasterKey, Wrapped};
use super::storage::{MANIFEST_MAX, ObjectKey};
use crate::hex::{hex, unhex32};
use crate::model::{Compression, Engine};

/// The version that this program writes and reads.
const VERSION: u32 = 1;

/// What is kept of texts that come from elsewhere.
const TEXT_MAX: usize = 500;

/// Why a run was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// By the schedule.
    Scheduled,
    /// By a person.
    Manual,
}

/// The uploaded object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Its key in the storage.
    pub key: ObjectKey,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 over its exact bytes.
    #[serde(with = "sha256_hex")]
    pub sha256: [u8; 32],
}

/// What is known about one artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    backupy_manifest: u32,
    /// The run that made it.
    pub run_id: String,
    /// The backup's name.
    pub backup: String,
    /// The engine.
    pub engine: Engine,
    /// The server's or library's version; may be empty.
    pub engine_version: String,
    /// Why the run was started.
    pub trigger: Trigger,
    /// When the run began, Unix milliseconds.
    pub started_ms: u64,
    /// When it ended.
    pub finished_ms: u64,
    /// The artifact.
    pub object: Object,
    /// How the dump was compressed.
    pub compression: Compression,
    /// The data key.
    pub key: Wrapped,
}

/// What stands between the body without its last brace and the 64 digits of the mac, and what behind them.
const MAC: (&[u8], &[u8]) = (b",\"mac\":\"", b"\"}");

/// The parts that a caller gives; the version is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// See [`Manifest::run_id`].
    pub run_id: String,
    /// See [`Manifest::backup`].
    pub backup: String,
    /// See [`Manifest::engine`].
    pub engine: Engine,
    /// See [`Manifest::engine_version`].
    pub engine_version: String,
    /// See [`Manifest::trigger`].
    pub trigger: Trigger,
    /// See [`Manifest::started_ms`].
    pub started_ms: u64,
    /// See [`Manifest::finished_ms`].
    pub finished_ms: u64,
    /// See [`Manifest::object`].
    pub object: Object,
    /// See [`Manifest::compression`].
    pub compression: Compression,
    /// See [`Manifest::key`].
    pub key: Wrapped,
}

/// Why a manifest is not believed.
#[derive(Debug)]
pub enum ManifestError {
    /// Not a manifest: the parser's words.
    Form(String),
    /// Of another version.
    Version(u32),
    /// Larger than any manifest.
    TooLarge,
    /// It is about another object than the one it lies beside.
    OtherObject {
        /// Where it lies.
        beside: ObjectKey,
    },
    /// It was not written under the master key that it names, or was changed since.
    NotAuthentic,
    /// The master key cannot be used.
    Key(KeyError),
}

impl ManifestError {
    /// Whether the same may succeed later with nobody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Key(error) => error.retry(),
            Self::Form(_)
            | Self::Version(_)
            | Self::TooLarge
            | Self::OtherObject { .. }
            | Self::NotAuthentic => false,
        }
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form(what) => write!(f, "failed to read the manifest: {what}"),
            Self::Version(version) => write!(
                f,
                "the manifest has version {version}, but this program reads version {VERSION}; use a newer backupy"
            ),
            Self::TooLarge => f.write_str("the manifest is too large to be one"),
            Self::OtherObject { beside } => {
                write!(f, "the manifest beside {beside} is about another object")
            }
            Self::NotAuthentic => f.write_str(
                "the manifest was changed or was not written under the master key that it names",
            ),
            Self::Key(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ManifestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Key(error) => Some(error),
            _ => None,
        }
    }
}

impl Manifest {
    /// A manifest of this version.
    pub fn new(parts: Parts) -> Self {
        Self {
            backupy_manifest: VERSION,
            run_id: parts.run_id,
            backup: parts.backup,
            engine: parts.engine,
            engine_version: parts.engine_version.chars().take(TEXT_MAX).collect(),
            trigger: parts.trigger,
            started_ms: parts.started_ms,
            finished_ms: parts.finished_ms,
            object: parts.object,
            compression: parts.compression,
            key: parts.key,
        }
    }

    /// The file, authenticated under the master key that wraps the data key.
    ///
    /// # Errors
    /// When that key is not there.
    pub fn to_bytes(&self, master: &MasterKey) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = self.body()?;
        let mac = master.sign_manifest(&self.key.master_key_id, &bytes);
        let mac = hex(&mac.map_err(ManifestError::Key)?);
        bytes.pop();
        for part in [MAC.0, mac.as_bytes(), MAC.1, b"\n"] {
            bytes.extend_from_slice(part);
        }
        Ok(bytes)
    }

    /// Reads the file beside `beside` and checks that it is authentic and about that object.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn from_bytes(
        bytes: &[u8],
        beside: &ObjectKey,
        master: &MasterKey,
    ) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MANIFEST_MAX {
            return Err(ManifestError::TooLarge);
        }
        // The version first, so that a newer file is called that and not damaged.
        #[derive(Deserialize)]
        struct Version {
            backupy_manifest: u32,
        }
        let version = serde_json::from_slice::<Version>(bytes).map_err(form)?.backupy_manifest;
        if version != VERSION {
            return Err(ManifestError::Version(version));
        }
        let rewritten = || ManifestError::Form("it was rewritten by another program".to_owned());
        let (body, mac) = split_mac(bytes.trim_ascii_end()).ok_or_else(rewritten)?;
        let manifest: Self = serde_json::from_slice(&body).map_err(form)?;
        // One way to write it: what was added, doubled or moved is not ours.
        if manifest.body()? != body {
            return Err(rewritten());
        }
        let id = &manifest.key.master_key_id;
        let authentic = master.is_manifest_signed(id, &body, &mac);
        if !authentic.map_err(ManifestError::Key)? {
            return Err(ManifestError::NotAuthentic);
        }
        if manifest.object.key != *beside || manifest.backup != beside.backup() {
            return Err(ManifestError::OtherObject { beside: beside.clone() });
        }
        Ok(manifest)
    }

    /// What is authenticated.
    fn body(&self) -> Result<Vec<u8>, ManifestError> {
        serde_json::to_vec(self).map_err(form)
    }
}

/// The body and the mac of a file.
fn split_mac(bytes: &[u8]) -> Option<(Vec<u8>, [u8; 32])> {
    const DIGITS: usize = 64;
    let at = bytes.len().checked_sub(MAC.0.len() + DIGITS + MAC.1.len())?;
    let (open, end) = bytes.split_at_checked(at)?;
    let digits = end.strip_prefix(MAC.0)?.strip_suffix(MAC.1)?;
    let mac = unhex32(std::str::from_utf8(digits).ok()?)?;
    let mut body = open.to_vec();
    body.push(b'}');
    Some((body, mac))
}

fn form(error: serde_json::Error) -> ManifestError {
    ManifestError::Form(error.to_string())
}

/// A hash as 64 hex digits.
pub(super) mod sha256_hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::{hex, unhex32};

    pub fn serialize<S: Serializer>(hash: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex(hash))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        unhex32(&text).ok_or_else(|| D::Error::custom("not 64 hex digits"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A fixed master key.
    pub(crate) fn master() -> MasterKey {
        MasterKey::from_text(
            "backupy-master-key 1\nkey 346107268f46d059 2026-11-23T10:00:00Z AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        )
        .unwrap()
    }

    /// A manifest with fixed content.
    pub(crate) fn manifest(key: &str) -> Manifest {
        let key = ObjectKey::parse(key).unwrap();
        let wrapped = Wrapped { master_key_id: "346107268f46d059".into(), data_key: vec![1; 60] };
        Manifest::new(Parts {
            run_id: "run-1".into(),
            backup: key.backup().into(),
            engine: Engine::PostgreSql,
            engine_version: "PostgreSQL 15.18".into(),
            trigger: Trigger::Scheduled,
            started_ms: 1_795_402_800_000,
            finished_ms: 1_795_402_860_000,
            object: Object { key, size_bytes: 5, sha256: [0xab; 32] },
            compression: Compression::Zstd,
            key: wrapped,
        })
    }

    fn read(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        Manifest::from_bytes(bytes, &ObjectKey::parse("shop/a.bky").unwrap(), &master())
    }

    /// Must never change: old manifests have to stay readable. The mac was computed with Python's hmac.
    #[test]
    fn the_form_is_fixed() {
        let bytes = manifest("shop/a.bky").to_bytes(&master()).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let (body, mac) = text.split_once(",\"mac\":\"").unwrap();
        assert_eq!(
            body,
            concat!(
                r#"{"backupy_manifest":1,"run_id":"run-1","backup":"shop","engine":"postgresql","#,
                r#""engine_version":"PostgreSQL 15.18","trigger":"scheduled","started_ms":1795402800000,"#,
                r#""finished_ms":1795402860000,"object":{"key":"shop/a.bky","size_bytes":5,"sha256":"#,
                r#""abababababababababababababababababababababababababababababababab"},"compression":"zstd","#,
                r#""key":{"master_key_id":"346107268f46d059","data_key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"}"#,
            )
        );
        assert_eq!(mac, "dbc688faf0e23ac22cf99811e8cef9d1dcde725750314a77bff0197ef90186cd\"}\n");
        assert_eq!(read(&bytes).unwrap(), manifest("shop/a.bky"));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let bytes = manifest("shop/a.bky").to_bytes(&master()).unwrap();
        for index in 0..bytes.len() - 1 {
            let mut bad = bytes.clone();
            bad[index] ^= 1;
            assert!(read(&bad).is_err(), "byte {index}: {}", String::from_utf8_lossy(&bad));
        }
    }

    #[test]
    fn what_is_refused_and_why() {
        let good = manifest("shop/a.bky").to_bytes(&master()).unwrap();
        let good = String::from_utf8(good).unwrap();
        let edit = |from: &str, to: &str| read(good.replacen(from, to, 1).as_bytes());
        assert!(matches!(edit("manifest\":1", "manifest\":2"), Err(ManifestError::Version(2))));
        assert!(matches!(edit("{", "{\"more\":1,"), Err(ManifestError::Form(_))));
        assert!(matches!(edit("{", "{\"run_id\":\"x\","), Err(ManifestError::Form(_))));
        assert!(matches!(edit("run-1", "run-2"), Err(ManifestError::NotAuthentic)));
        assert!(matches!(edit("346107268f46d059", "0000000000000000"), Err(ManifestError::Key(_))));
        assert!(matches!(edit("shop/a", "../a"), Err(ManifestError::Form(_))));
        assert!(matches!(read(b""), Err(ManifestError::Form(_))));
        assert!(matches!(read(&good.as_bytes()[..good.len() - 3]), Err(ManifestError::Form(_))));
        assert!(matches!(read(format!("{good}{good}").as_bytes()), Err(ManifestError::Form(_))));
        assert!(matches!(read(&vec![b' '; 70_000]), Err(ManifestError::TooLarge)));
        let other = manifest("shop/b.bky").to_bytes(&master()).unwrap();
        assert!(
            matches!(read(&other), Err(ManifestError::OtherObject { .. })),
            "moved beside another artifact"
        );
    }
}
