//! The master key: wraps the data key of every run and authenticates every manifest.
//!
//! ```text
//! master key ─HKDF─┬▶ wrap key ──AES-256-GCM, run id──▶ wrapped data key (in manifest and catalogue)
//!                  └▶ manifest key ──HMAC-SHA256──▶ the manifest's `mac`
//! ```
//! The file holds one key or, after rotations, several: the newest wraps, all of them unwrap. Rotating changes
//! no artifact and no manifest, so the old keys have to stay in the file as long as there are artifacts under
//! them; it protects what is backed up from now on. [`text`] describes the file.
//!
//! A key file that others may read, or that lies inside the storage directory, is refused. A new key is made
//! only where neither storage nor catalogue hold anything ([`Fresh`]): a lost key must be noticed at once, not
//! at the restore.

mod error;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hkdf, hmac};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::durable::{self, Existing};
use crate::artifact::DataKey;
use crate::secret::Secret;

pub use error::KeyError;

/// Largest key file that is read.
const FILE_MAX: u64 = 64 << 10;
/// Most keys in one file.
const KEYS_MAX: usize = 100;
const KEY_BYTES: usize = 32;
/// Nonce, 32 bytes, tag.
const WRAPPED_BYTES: usize = NONCE_LEN + KEY_BYTES + 16;

const ID_DOMAIN: &[u8] = b"backupy master key id v1\0";
const WRAP_DOMAIN: &[u8] = b"backupy wrap data key v1";
const MANIFEST_DOMAIN: &[u8] = b"backupy manifest v1";

/// The keys of one file, newest first.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey(Vec<OneKey>);

#[derive(Clone, PartialEq, Eq)]
struct OneKey {
    id: String,
    created_ms: u64,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

/// A data key under a master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrapped {
    /// The master key's id.
    pub master_key_id: String,
    /// Nonce, ciphertext and tag, base64.
    #[serde(with = "text::base64_bytes")]
    pub data_key: Vec<u8>,
}

/// What a new key may not shadow. Both are looked at by the caller, just before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fresh {
    /// The storage holds no artifact and no manifest.
    pub storage_empty: bool,
    /// The catalogue holds no run.
    pub catalogue_empty: bool,
}

impl MasterKey {
    /// Reads the key file.
    ///
    /// # Errors
    /// When it is missing, readable by others, inside the storage, or not a key file.
    pub fn load(path: &Path, storage_dir: Option<&Path>) -> Result<Self, KeyError> {
        refuse_inside(path, storage_dir)?;
        let io = |error| KeyError::Io { path: path.to_owned(), error };
        let file = match std::fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(KeyError::Missing { path: path.to_owned() });
            }
            other => other.map_err(io)?,
        };
        let metadata = file.metadata().map_err(io)?;
        let mode = metadata.permissions().mode() & 0o777;
        if !metadata.is_file() {
            return Err(KeyError::NotAFile { path: path.to_owned() });
        }
        if mode & 0o077 != 0 {
            return Err(KeyError::Readable { path: path.to_owned(), mode });
        }
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(FILE_MAX).read_to_end(&mut bytes).map_err(io)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::Form { line: 0 })?;
        Self::from_text(text)
    }

    /// Makes a new key and its file, readable by its owner only.
    ///
    /// # Errors
    /// When storage or catalogue are not empty, when there is a file already, or it cannot be written.
    pub fn create(
        path: &Path,
        storage_dir: Option<&Path>,
        fresh: Fresh,
        now_ms: u64,
    ) -> Result<Self, KeyError> {
        if !fresh.storage_empty || !fresh.catalogue_empty {
            return Err(KeyError::NotFresh { path: path.to_owned(), fresh });
        }
        refuse_inside(path, storage_dir)?;
        let key = Self(vec![OneKey::generate(now_ms)?]);
        key.save(path, Existing::Keep)?;
        Ok(key)
    }

    /// Loads the key, or makes one at the very first start. Says which.
    ///
    /// # Errors
    /// As [`MasterKey::load`] and [`MasterKey::create`].
    pub fn load_or_create(
        path: &Path,
        storage_dir: Option<&Path>,
        fresh: impl FnOnce() -> Result<Fresh, KeyError>,
        now_ms: u64,
    ) -> Result<(Self, bool), KeyError> {
        match Self::load(path, storage_dir) {
            Err(KeyError::Missing { .. }) => {
                Self::create(path, storage_dir, fresh()?, now_ms).map(|key| (key, true))
            }
            other => other.map(|key| (key, false)),
        }
    }

    /// Reads the text form: a key file, or what `key export` printed.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        text::read(text).map(Self)
    }

    /// The text form: what `key export` prints and `key import` reads.
    pub fn to_text(&self) -> Secret {
        text::write(&self.0)
    }

    /// Writes an exported key to its place. A file that is there is only replaced if the import holds all of
    /// its keys, so that an import can never lose one.
    ///
    /// # Errors
    /// When keys would be lost, the place is inside the storage, or the file cannot be written.
    pub fn import(text: &str, path: &Path, storage_dir: Option<&Path>) -> Result<Self, KeyError> {
        let key = Self::from_text(text)?;
        match Self::load(path, storage_dir) {
            Err(KeyError::Missing { .. }) => key.save(path, Existing::Keep)?,
            Err(error) => return Err(error),
            Ok(present) => {
                if let Some(lost) = present.ids().find(|id| !key.ids().any(|other| other == *id)) {
                    return Err(KeyError::WouldLose { path: path.to_owned(), id: lost.to_owned() });
                }
                key.save(path, Existing::Replace)?;
            }
        }
        Ok(key)
    }

    /// Puts a new key before the others and writes the file. The new key has to be exported again.
    ///
    /// # Errors
    /// When the file cannot be written (then nothing has changed), or holds too many keys.
    pub fn rotate(&self, path: &Path, now_ms: u64) -> Result<Self, KeyError> {
        if self.0.len() >= KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let mut keys = vec![OneKey::generate(now_ms)?];
        keys.extend(self.0.iter().cloned());
        let rotated = Self(keys);
        rotated.save(path, Existing::Replace)?;
        Ok(rotated)
    }

    fn save(&self, path: &Path, existing: Existing) -> Result<(), KeyError> {
        durable::write(path, self.to_text().expose().as_bytes(), 0o600, existing)
            .map_err(|error| KeyError::Io { path: path.to_owned(), error })
    }

    /// The id of the key that wraps: 16 hex digits that say nothing about it.
    pub fn id(&self) -> &str {
        // The list is never empty: every constructor makes or checks that.
        self.0.first().map_or("", |key| &key.id)
    }

    /// The ids of all keys, newest first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.id.as_str())
    }

    /// When the newest key was made, Unix milliseconds.
    pub fn created_ms(&self) -> u64 {
        self.0.first().map_or(0, |key| key.created_ms)
    }

    fn by_id(&self, id: &str) -> Result<&OneKey, KeyError> {
        self.0.iter().find(|key| key.id == id).ok_or_else(|| KeyError::Unknown {
            id: id.chars().filter(char::is_ascii_alphanumeric).take(32).collect(),
        })
    }

    /// Wraps a run's data key under the newest key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn wrap(&self, run_id: &str, key: &DataKey) -> Result<Wrapped, KeyError> {
        let master = self.by_id(self.id())?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| KeyError::Random)?;
        let mut sealed = Zeroizing::new(key.expose().to_vec());
        let tag = master
            .wrap_key()?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                aad(run_id),
                &mut sealed,
            )
            .map_err(|_| KeyError::Random)?;
        let data_key = [&nonce[..], &sealed, tag.as_ref()].concat();
        Ok(Wrapped { master_key_id: master.id.clone(), data_key })
    }

    /// Unwraps the data key of a run.
    ///
    /// # Errors
    /// When the master key is not in this file, or the wrapped key is not this run's.
    pub fn unwrap(&self, run_id: &str, wrapped: &Wrapped) -> Result<DataKey, KeyError> {
        let master = self.by_id(&wrapped.master_key_id)?;
        let damaged = || KeyError::Damaged { run_id: run_id.to_owned() };
        if wrapped.data_key.len() != WRAPPED_BYTES {
            return Err(damaged());
        }
        let (nonce, sealed) = wrapped.data_key.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened = master
            .wrap_key()?
            .open_in_place(nonce, aad(run_id), &mut sealed)
            .map_err(|_| damaged())?;
        DataKey::from_bytes(opened).map_err(|_| damaged())
    }

    /// Authenticates a manifest's bytes under the key of that id.
    ///
    /// # Errors
    /// When that key is not in this file.
    pub fn sign_manifest(&self, id: &str, bytes: &[u8]) -> Result<[u8; 32], KeyError> {
        let tag = hmac::sign(&self.by_id(id)?.manifest_key()?, bytes);
        let mut mac = [0; 32];
        mac.copy_from_slice(tag.as_ref());
        Ok(mac)
    }

    /// Whether a manifest's bytes were authenticated under the key of that id.
    ///
    /// # Errors
    /// When that key is not in this file.
    pub fn is_manifest_signed(&self, id: &str, bytes: &[u8], mac: &[u8]) -> Result<bool, KeyError> {
        Ok(hmac::verify(&self.by_id(id)?.manifest_key()?, bytes, mac).is_ok())
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MasterKey").field(&self.ids().collect::<Vec<_>>()).finish()
    }
}

impl OneKey {
    fn new(bytes: Zeroizing<[u8; KEY_BYTES]>, created_ms: u64) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(ID_DOMAIN);
        context.update(&*bytes);
        let id = crate::hex::hex(&context.finish().as_ref()[..8]);
        Self { id, created_ms, bytes }
    }

    fn generate(created_ms: u64) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new().fill(&mut *bytes).map_err(|_| KeyError::Random)?;
        Ok(Self::new(bytes, created_ms))
    }

    fn derive(&self, domain: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"backupy")
            .extract(&*self.bytes)
            .expand(&[domain], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut *key))
            .map_err(|_| KeyError::Random)?;
        Ok(key)
    }

    fn wrap_key(&self) -> Result<LessSafeKey, KeyError> {
        let key = UnboundKey::new(&AES_256_GCM, &*self.derive(WRAP_DOMAIN)?);
        key.map(LessSafeKey::new).map_err(|_| KeyError::Random)
    }

    fn manifest_key(&self) -> Result<hmac::Key, KeyError> {
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &*self.derive(MANIFEST_DOMAIN)?))
    }
}

/// Binds a wrapped key to its run.
fn aad(run_id: &str) -> Aad<Vec<u8>> {
    Aad::from([b"backupy data key v1\0", run_id.as_bytes()].concat())
}

/// Compares real paths, so that a link into the storage is seen, too.
fn refuse_inside(path: &Path, storage_dir: Option<&Path>) -> Result<(), KeyError> {
    let Some(storage) = storage_dir else { return Ok(()) };
    let real_storage = storage.canonicalize().unwrap_or_else(|_| storage.to_owned());
    let parent = path.parent().unwrap_or(Path::new("/"));
    let real_parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
    let real_path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if [path, &real_path, &real_parent].iter().any(|p| p.starts_with(&real_storage))
        || path.starts_with(storage)
    {
        return Err(KeyError::InsideStorage { path: path.to_owned() });
    }
    Ok(())
}
