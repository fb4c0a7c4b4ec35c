//! Sealing of records: AES-256-GCM under a random store key, which is wrapped under the agent key.
//!
//! ```text
//! record   := version 1 · 12-byte random nonce · ciphertext and 16-byte tag
//!             associated data: length of the space's name · its name · key
//! key file := version 1 · 32-byte salt · 12-byte nonce · 32-byte store key, sealed · 8 bytes of SHA-256 over it all
//! ```
//! The checksum of the wrapped key tells a wrong agent key (checksum right, tag wrong) from damage.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::error::Unspecified;
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::secret::Secret;

const VERSION: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;
const KEY: usize = 32;
const SALT: usize = 32;
const CHECK: usize = 8;
const WRAPPED: usize = 1 + SALT + NONCE + KEY + TAG + CHECK;

/// What a record grows by when it is sealed.
pub const OVERHEAD: usize = 1 + NONCE + TAG;

/// Why a wrapped store key did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnwrapError {
    /// The record is not what was written.
    Damaged,
    /// It is, but another agent key wrote it.
    WrongKey,
}

/// The store key, as it is known while the store is open.
pub struct StoreKey(Zeroizing<[u8; KEY]>);

impl StoreKey {
    /// A random one.
    pub fn generate() -> Result<Self, Unspecified> {
        let mut bytes = Zeroizing::new([0u8; KEY]);
        fill(&mut bytes[..])?;
        Ok(Self(bytes))
    }

    /// The record that holds it, readable with `agent_key` only.
    pub fn wrap(&self, agent_key: &Secret) -> Result<Vec<u8>, Unspecified> {
        let mut record = vec![0u8; 1 + SALT + NONCE];
        record[0] = VERSION;
        fill(&mut record[1..])?;
        let (salt, nonce) = record[1..].split_at(SALT);
        let kek = derive(agent_key, salt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce)?;
        let mut sealed = Zeroizing::new(self.0.to_vec());
        kek.seal_in_place_append_tag(nonce, Aad::from(&record[..1 + SALT]), &mut *sealed)?;
        record.extend_from_slice(&sealed);
        let check = digest(&SHA256, &record);
        record.extend_from_slice(&check.as_ref()[..CHECK]);
        Ok(record)
    }

    /// Reads such a record.
    pub fn unwrap(record: &[u8], agent_key: &Secret) -> Result<Self, UnwrapError> {
        if record.len() != WRAPPED || record[0] != VERSION {
            return Err(UnwrapError::Damaged);
        }
        let (body, check) = record.split_at(WRAPPED - CHECK);
        if digest(&SHA256, body).as_ref()[..CHECK] != *check {
            return Err(UnwrapError::Damaged);
        }
        let (head, rest) = body.split_at(1 + SALT);
        let (nonce, sealed) = rest.split_at(NONCE);
        let open = || {
            let kek = derive(agent_key, &head[1..])?;
            let mut bytes = Zeroizing::new(sealed.to_vec());
            let nonce = Nonce::try_assume_unique_for_key(nonce)?;
            let plain = kek.open_in_place(nonce, Aad::from(head), &mut bytes)?;
            let mut key = Zeroizing::new([0u8; KEY]);
            key.copy_from_slice(plain);
            Ok(Self(key))
        };
        open().map_err(|_: Unspecified| UnwrapError::WrongKey)
    }

    /// What seals and opens records.
    pub fn sealer(&self) -> Result<Sealer, Unspecified> {
        Ok(Sealer {
            key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0[..])?),
            random: SystemRandom::new(),
        })
    }
}

/// Seals and opens records.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    /// The sealed form of `value`, valid for this space and key only.
    pub fn seal(&self, space: &str, key: &[u8], value: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut record = Vec::with_capacity(value.len() + OVERHEAD);
        record.push(VERSION);
        record.resize(1 + NONCE, 0);
        self.random.fill(&mut record[1..])?;
        let nonce = Nonce::try_assume_unique_for_key(&record[1..])?;
        record.extend_from_slice(value);
        let aad = associated(space, key);
        let (_, plain) = record.split_at_mut(1 + NONCE);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), plain)?;
        record.extend_from_slice(tag.as_ref());
        Ok(record)
    }

    /// The value of a sealed record; `None` if it is not one that [`Sealer::seal`] made for this space and key.
    pub fn open(&self, space: &str, key: &[u8], record: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if record.len() < OVERHEAD || record[0] != VERSION {
            return None;
        }
        let (nonce, sealed) = record[1..].split_at(NONCE);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let aad = associated(space, key);
        let len = self.key.open_in_place(nonce, Aad::from(aad), &mut bytes).ok()?.len();
        bytes.truncate(len);
        Some(bytes)
    }
}

/// Fills `bytes` with random ones.
pub fn fill(bytes: &mut [u8]) -> Result<(), Unspecified> {
    SystemRandom::new().fill(bytes)
}

fn associated(space: &str, key: &[u8]) -> Vec<u8> {
    let mut aad = Vec::with_capacity(8 + space.len() + key.len());
    aad.extend_from_slice(&(space.len() as u64).to_be_bytes());
    aad.extend_from_slice(space.as_bytes());
    aad.extend_from_slice(key);
    aad
}

fn derive(agent_key: &Secret, salt: &[u8]) -> Result<LessSafeKey, Unspecified> {
    struct Len;
    impl KeyType for Len {
        fn len(&self) -> usize {
            KEY
        }
    }
    let mut bytes = Zeroizing::new([0u8; KEY]);
    Salt::new(HKDF_SHA256, salt)
        .extract(agent_key.expose().as_bytes())
        .expand(&[b"backupy store key v1"], Len)?
        .fill(&mut bytes[..])?;
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes[..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_at_its_own_place_only() {
        let sealer = StoreKey::generate().unwrap().sealer().unwrap();
        let record = sealer.seal("runs", b"r1", b"value").unwrap();
        assert_eq!(sealer.open("runs", b"r1", &record).unwrap().as_slice(), b"value");
        assert!(sealer.open("runs", b"r2", &record).is_none(), "another key");
        assert!(sealer.open("jobs", b"r1", &record).is_none(), "another space");
        assert!(sealer.open("run", b"sr1", &record).is_none(), "another cut between the two");
        for i in 0..record.len() {
            let mut changed = record.clone();
            changed[i] ^= 1;
            assert!(sealer.open("runs", b"r1", &changed).is_none(), "byte {i}");
            assert!(sealer.open("runs", b"r1", &record[..i]).is_none(), "cut at {i}");
        }
        assert_ne!(record, sealer.seal("runs", b"r1", b"value").unwrap(), "a fresh nonce");
    }

    #[test]
    fn a_wrapped_key_tells_damage_from_a_wrong_key() {
        let (right, wrong) = (Secret::new("bkpy_live_a"), Secret::new("bkpy_live_b"));
        let key = StoreKey::generate().unwrap();
        let record = key.wrap(&right).unwrap();
        assert_eq!(StoreKey::unwrap(&record, &right).ok().unwrap().0, key.0);
        assert_eq!(StoreKey::unwrap(&record, &wrong).err(), Some(UnwrapError::WrongKey));
        for i in 0..record.len() {
            let mut changed = record.clone();
            changed[i] ^= 0x80;
            assert_eq!(StoreKey::unwrap(&changed, &right).err(), Some(UnwrapError::Damaged));
        }
    }
}
