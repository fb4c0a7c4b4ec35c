//! The data key: 32 bytes, one per run, wiped when dropped and never printed.

use std::fmt;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

const KEY_BYTES: usize = 32;

/// A key of AES-256-GCM. `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(SecretBytes);

impl DataKey {
    /// Takes the key as it came over the wire.
    ///
    /// # Errors
    /// When it does not have 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyLengthError> {
        if bytes.len() != KEY_BYTES {
            return Err(KeyLengthError { got: bytes.len() });
        }
        Ok(Self(SecretBytes::new(bytes)))
    }

    /// A new random key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = Zeroizing::new(vec![0; KEY_BYTES]);
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the system gives no random numbers"))?;
        Ok(Self(SecretBytes::new(std::mem::take(&mut *bytes))))
    }

    /// Reads a key file: 32 raw bytes, or 64 hexadecimal digits, or base64 (white space around the
    /// text does not matter).
    ///
    /// # Errors
    /// When it is none of these.
    pub fn from_file_bytes(bytes: &[u8]) -> Result<Self, KeyFileError> {
        if let Ok(key) = Self::from_bytes(bytes) {
            return Ok(key);
        }
        let text = bytes.trim_ascii();
        let decoded = match text.len() {
            64 => decode_hex(text),
            43 | 44 => BASE64.decode(text).or_else(|_| BASE64_URL.decode(text)).ok(),
            _ => None,
        };
        let decoded = Zeroizing::new(decoded.unwrap_or_default());
        Self::from_bytes(&decoded).map_err(|_| KeyFileError { got: bytes.len() })
    }

    /// The bytes themselves, for wrapping them under another key.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// The key ready for use. `None` cannot happen, because the length was checked.
    pub(super) fn aead(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, self.0.expose()).ok().map(LessSafeKey::new)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(***)")
    }
}

/// Standard base64 with or without padding.
pub(super) const BASE64: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT_PADDING);
/// The URL-safe alphabet, with or without padding.
pub(super) const BASE64_URL: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT_PADDING);
const LENIENT_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Reads hexadecimal digits of either case.
pub(super) fn decode_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    text.chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        })
        .collect()
}

/// A data key that does not have 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLengthError {
    /// How many it has.
    pub got: usize,
}

impl KeyLengthError {
    /// Never: the same key stays as long as it is.
    pub fn retry(&self) -> bool {
        false
    }
}

impl fmt::Display for KeyLengthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the data key has {} bytes, but AES-256-GCM needs exactly {KEY_BYTES}", self.got)
    }
}

impl std::error::Error for KeyLengthError {}

/// A key file that holds no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyFileError {
    /// How many bytes it has.
    pub got: usize,
}

impl KeyFileError {
    /// Never: somebody has to give another file.
    pub fn retry(&self) -> bool {
        false
    }
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the key file holds no key: expected 32 raw bytes, 64 hexadecimal digits or the base64 \
             of 32 bytes, but found {} bytes of something else",
            self.got
        )
    }
}

impl std::error::Error for KeyFileError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_bytes_are_a_key() {
        for length in [0, 1, 16, 31, 33, 64] {
            let error = DataKey::from_bytes(&vec![7; length]).unwrap_err();
            assert_eq!(error, KeyLengthError { got: length });
            assert!(error.to_string().contains(&format!("has {length} bytes")));
        }
        assert_eq!(DataKey::from_bytes(&[7; 32]).unwrap().expose(), &[7; 32]);
    }

    #[test]
    fn debug_shows_nothing() {
        let key = DataKey::from_bytes(b"0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "DataKey(***)");
    }

    #[test]
    fn generated_keys_differ() {
        assert_ne!(DataKey::generate().unwrap(), DataKey::generate().unwrap());
    }

    #[test]
    fn a_key_file_has_three_forms() {
        let key: Vec<u8> = (0xe0..=0xff).collect();
        let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
        let base64 = BASE64.encode(&key);
        let forms = [
            key.clone(),
            hex.clone().into_bytes(),
            format!("\n{}\r\n", hex.to_uppercase()).into_bytes(),
            base64.clone().into_bytes(),
            format!("{base64}\n").into_bytes(),
            base64.trim_end_matches('=').as_bytes().to_vec(),
            BASE64_URL.encode(&key).into_bytes(),
        ];
        for form in forms {
            assert_eq!(DataKey::from_file_bytes(&form).unwrap().expose(), key, "{form:?}");
        }
    }

    #[test]
    fn a_key_file_with_anything_else_is_refused() {
        let wrong: [&[u8]; 6] = [b"", &[1; 31], &[1; 33], &[b'g'; 64], &[b'!'; 44], &[b'a'; 65]];
        for bytes in wrong {
            assert!(DataKey::from_file_bytes(bytes).is_err(), "{bytes:?}");
        }
    }
}
