//! ECDSA P-256 over SHA-256 of a whole file, as `cosign sign-blob` and `openssl dgst -sha256 -sign` make it.
//!
//! The one question answered here is whether the owner of the key signed these bytes. What they are, and whether
//! they are wanted, is decided elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use crate::config::UpdateKey;

/// Longest signature in any of its forms, in bytes: DER has 72 at most.
pub const MAX_BYTES: usize = 1 << 10;

/// DER's tag of a SEQUENCE, which a signature is.
const SEQUENCE: u8 = 0x30;

/// A signature as DER from DER or from base64 text, the two forms that tools write; `None` for anything else.
pub fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() > MAX_BYTES {
        return None;
    }
    if bytes.first() == Some(&SEQUENCE) {
        return Some(bytes.to_vec());
    }
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok().filter(|der| der.first() == Some(&SEQUENCE))
}

/// Whether the key's owner signed `blob`; `signature` is DER.
pub fn is_valid(key: &UpdateKey, blob: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.point()).verify(blob, signature).is_ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    /// A signature of `blob`, and the key that it is to be checked with.
    pub fn signed(blob: &[u8]) -> (Vec<u8>, UpdateKey) {
        let (pair, key) = pair();
        (pair.sign(&SystemRandom::new(), blob).unwrap().as_ref().to_vec(), key)
    }

    fn pair() -> (EcdsaKeyPair, UpdateKey) {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random)
                .unwrap();
        let key = UpdateKey::from_point(pair.public_key().as_ref()).unwrap();
        (pair, key)
    }

    #[test]
    fn only_these_bytes_by_this_key() {
        let (pair, key) = pair();
        let signature = pair.sign(&SystemRandom::new(), b"blob").unwrap();
        let der = signature.as_ref();
        assert!(is_valid(&key, b"blob", der));
        assert!(!is_valid(&key, b"blob ", der));
        assert!(!is_valid(&self::pair().1, b"blob", der));
        let mut flipped = der.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(!is_valid(&key, b"blob", &flipped));
        assert!(!is_valid(&key, b"blob", &[]));
    }

    #[test]
    fn both_forms_that_tools_write() {
        let (pair, _) = pair();
        let signature = pair.sign(&SystemRandom::new(), b"blob").unwrap();
        let der = signature.as_ref();
        assert_eq!(decode(der).as_deref(), Some(der));
        let text = format!("{}\n", STANDARD.encode(der));
        assert_eq!(decode(text.as_bytes()).as_deref(), Some(der));
        for bad in [&b""[..], b"not base64!", b"AAAA", &[0x31; 70], &[0x30; MAX_BYTES + 1]] {
            assert_eq!(decode(bad), None);
        }
    }
}
