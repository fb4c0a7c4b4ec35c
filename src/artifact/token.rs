//! The decryption token: a JWT that carries one artifact's key to whoever may read it.
//!
//! Its signature cannot be checked offline, so it is not: whoever holds the token holds the key anyway.
//! Everything else is checked, and each failure has its own error. No error repeats the token's text.

use std::fmt;

use base64::Engine as _;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::key::{BASE64, BASE64_URL, decode_hex};
use super::{DataKey, KeyLengthError};

const ISSUER: &str = "backupy-server";
const AUDIENCE: &str = "backupy-decrypt";
const ALGORITHM: &str = "AES-256-GCM";
const FORMAT_VERSION: u64 = 1;
/// A token is a few hundred bytes; more is something else.
pub(crate) const MAX_TOKEN_BYTES: usize = 64 << 10;

/// A token that may be used.
#[derive(Debug)]
pub struct Token {
    /// The artifact's key.
    pub key: DataKey,
    /// The run that made the artifact; may be empty.
    pub run_id: String,
    /// SHA-256 over the exact bytes of the artifact, where the server put it in.
    pub sha256: Option<[u8; 32]>,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    aud: Audience,
    exp: Option<f64>,
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    dek: Zeroized,
    #[serde(default)]
    alg: String,
    #[serde(default)]
    format_version: Option<serde_json::Value>,
    #[serde(default)]
    sha256: Option<String>,
}

/// RFC 7519 allows one audience or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Audience::Many(Vec::new())
    }
}

impl Audience {
    fn includes(&self, name: &str) -> bool {
        match self {
            Audience::One(one) => one == name,
            Audience::Many(many) => many.iter().any(|one| one == name),
        }
    }
}

/// A text that is wiped once it was read.
#[derive(Default, Deserialize)]
#[serde(from = "String")]
struct Zeroized(Zeroizing<String>);

impl From<String> for Zeroized {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Token {
    /// Reads a token as of `now_ms` (Unix milliseconds). White space around it does not matter.
    ///
    /// # Errors
    /// When it is malformed, from somebody else, expired, or for another format.
    pub fn parse(text: &str, now_ms: u64) -> Result<Self, TokenError> {
        let claims = claims(text.trim())?;
        if claims.iss != ISSUER {
            return Err(TokenError::Issuer);
        }
        if !claims.aud.includes(AUDIENCE) {
            return Err(TokenError::Audience);
        }
        check_expiry(claims.exp, now_ms)?;
        if claims.alg != ALGORITHM {
            return Err(TokenError::Algorithm(printable(&claims.alg)));
        }
        match &claims.format_version {
            Some(version) if version.as_u64() == Some(FORMAT_VERSION) => {}
            Some(version) => {
                return Err(TokenError::FormatVersion(printable(&version.to_string())));
            }
            None => return Err(TokenError::Malformed("it has no `format_version`")),
        }
        let key = Zeroizing::new(
            BASE64.decode(claims.dek.0.as_bytes()).map_err(|_| TokenError::KeyEncoding)?,
        );
        let key = DataKey::from_bytes(&key).map_err(TokenError::KeyLength)?;
        let sha256 = claims.sha256.filter(|hex| !hex.is_empty());
        let sha256 = sha256.map(|hex| parse_sha256(&hex).ok_or(TokenError::Sha256)).transpose()?;
        Ok(Self { key, run_id: claims.run_id.unwrap_or_default(), sha256 })
    }
}

fn claims(text: &str) -> Result<Claims, TokenError> {
    if text.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed("it is too long"));
    }
    let mut parts = text.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed("it does not have three parts separated by dots"));
    };
    let decode = |part: &str| {
        BASE64_URL
            .decode(part)
            .map(Zeroizing::new)
            .map_err(|_| TokenError::Malformed("a part of it is not base64url"))
    };
    let (header, payload, _) = (decode(header)?, decode(payload)?, decode(signature)?);
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&header)
        .map_err(|_| TokenError::Malformed("its header is not a JSON object"))?;
    // serde_json's message could repeat a value, so it is not passed on.
    serde_json::from_slice(&payload)
        .map_err(|_| TokenError::Malformed("its claims are not the JSON object they should be"))
}

fn check_expiry(exp: Option<f64>, now_ms: u64) -> Result<(), TokenError> {
    let exp = exp.ok_or(TokenError::Malformed("it has no `exp`"))?;
    if !exp.is_finite() || exp < 0.0 {
        return Err(TokenError::Malformed("its `exp` is not a time"));
    }
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit f64 exactly")]
    let left_ms = exp * 1000.0 - now_ms as f64;
    if left_ms > 0.0 {
        return Ok(());
    }
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, which is far enough")]
    #[expect(clippy::cast_sign_loss, reason = "the sign was just looked at")]
    Err(TokenError::Expired { ago_sec: (-left_ms / 1000.0) as u64 })
}

fn parse_sha256(hex: &str) -> Option<[u8; 32]> {
    decode_hex(hex.as_bytes())?.try_into().ok()
}

/// A foreign text, short and without control characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

/// Why a token cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// It is not a JWT with the claims of a decryption token.
    Malformed(&'static str),
    /// Another issuer's.
    Issuer,
    /// A token for another purpose.
    Audience,
    /// Its time is over.
    Expired {
        /// Since when.
        ago_sec: u64,
    },
    /// Another cipher.
    Algorithm(String),
    /// Another version of the artifact's format.
    FormatVersion(String),
    /// Its key is not base64.
    KeyEncoding,
    /// Its key does not have 32 bytes.
    KeyLength(KeyLengthError),
    /// Its `sha256` is not 64 hexadecimal digits.
    Sha256,
}

impl TokenError {
    /// Never: another token is needed.
    pub fn retry(&self) -> bool {
        false
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenError::Malformed(why) => write!(f, "the token is malformed: {why}"),
            TokenError::Issuer => {
                write!(f, "the token is foreign: its issuer is not `{ISSUER}`")
            }
            TokenError::Audience => write!(
                f,
                "the token is for another purpose: its audience is not `{AUDIENCE}`; ask the control \
                 plane for a decryption token"
            ),
            TokenError::Expired { ago_sec } => write!(
                f,
                "the token expired {ago_sec} seconds ago; ask the control plane for a new one (or \
                 check this machine's clock)"
            ),
            TokenError::Algorithm(found) => write!(
                f,
                "the token is for the algorithm `{found}`, but this version opens {ALGORITHM} only"
            ),
            TokenError::FormatVersion(found) => write!(
                f,
                "the token is for format version {found}, but this version of backupy opens version \
                 {FORMAT_VERSION} only; use a newer backupy"
            ),
            TokenError::KeyEncoding => f.write_str("the token's key is not base64"),
            TokenError::KeyLength(error) => write!(f, "the token cannot be used: {error}"),
            TokenError::Sha256 => f.write_str("the token's sha256 is not 64 hexadecimal digits"),
        }
    }
}

impl std::error::Error for TokenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TokenError::KeyLength(error) => Some(error),
            TokenError::Malformed(_)
            | TokenError::Issuer
            | TokenError::Audience
            | TokenError::Expired { .. }
            | TokenError::Algorithm(_)
            | TokenError::FormatVersion(_)
            | TokenError::KeyEncoding
            | TokenError::Sha256 => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    /// Claims that are all right at [`NOW_MS`].
    pub(crate) fn good_claims(key: &[u8]) -> Value {
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "iat": 1_799_999_000, "exp": 1_800_000_600,
            "run_id": "run-1", "company_id": "c-1", "dek": BASE64.encode(key), "alg": ALGORITHM,
            "format_version": 1,
        })
    }

    /// A token around `claims`.
    pub(crate) fn token(claims: &Value) -> String {
        let part = |text: &str| BASE64_URL.encode(text).trim_end_matches('=').to_owned();
        let header = part(r#"{"alg":"EdDSA","typ":"JWT"}"#);
        format!("{header}.{}.{}", part(&claims.to_string()), part("signature"))
    }

    fn parse(change: impl FnOnce(&mut Value)) -> Result<Token, TokenError> {
        let mut claims = good_claims(&[5; 32]);
        change(&mut claims);
        Token::parse(&token(&claims), NOW_MS)
    }

    fn set(name: &'static str, value: Value) -> impl FnOnce(&mut Value) {
        move |claims| claims[name] = value
    }

    #[test]
    fn a_good_token_gives_key_run_and_hash() {
        let found = parse(set("sha256", json!("aB".repeat(32)))).unwrap();
        assert_eq!(found.key.expose(), &[5; 32]);
        assert_eq!(found.run_id, "run-1");
        assert_eq!(found.sha256, Some([0xab; 32]));
        assert_eq!(parse(|_| ()).unwrap().sha256, None);
        assert_eq!(parse(set("sha256", json!(""))).unwrap().sha256, None);
        assert!(parse(set("aud", json!(["other", AUDIENCE]))).is_ok());
        let text = format!("  {}\r\n", token(&good_claims(&[5; 32])));
        assert!(Token::parse(&text, NOW_MS).is_ok());
    }

    #[test]
    fn each_wrong_claim_has_its_own_error() {
        assert_eq!(parse(set("iss", json!("evil"))).unwrap_err(), TokenError::Issuer);
        assert_eq!(parse(set("aud", json!("backupy-api"))).unwrap_err(), TokenError::Audience);
        assert_eq!(parse(set("aud", json!([]))).unwrap_err(), TokenError::Audience);
        assert_eq!(
            parse(set("exp", json!(1_800_000_000))).unwrap_err(),
            TokenError::Expired { ago_sec: 0 }
        );
        assert_eq!(
            parse(set("exp", json!(1_799_999_990.5))).unwrap_err(),
            TokenError::Expired { ago_sec: 9 }
        );
        assert_eq!(
            parse(set("alg", json!("AES-128-\nGCM"))).unwrap_err(),
            TokenError::Algorithm("AES-128-GCM".into())
        );
        assert_eq!(
            parse(set("format_version", json!(2))).unwrap_err(),
            TokenError::FormatVersion("2".into())
        );
        assert_eq!(parse(set("dek", json!("§§"))).unwrap_err(), TokenError::KeyEncoding);
        assert_eq!(
            parse(set("dek", json!(BASE64.encode([1; 16])))).unwrap_err(),
            TokenError::KeyLength(KeyLengthError { got: 16 })
        );
        assert_eq!(parse(set("sha256", json!("abc"))).unwrap_err(), TokenError::Sha256);
        assert_eq!(parse(set("sha256", json!("ab"))).unwrap_err(), TokenError::Sha256);
    }

    #[test]
    fn missing_claims_are_noticed() {
        for name in ["iss", "aud", "exp", "alg", "format_version", "dek"] {
            let result = parse(|claims| {
                claims.as_object_mut().unwrap().remove(name);
            });
            assert!(result.is_err(), "{name}");
        }
    }

    #[test]
    fn garbage_is_malformed() {
        let good = token(&good_claims(&[5; 32]));
        let mut parts = good.split('.');
        let (header, payload) = (parts.next().unwrap(), parts.next().unwrap());
        let list = BASE64_URL.encode("[1]");
        let garbage = [
            String::new(),
            "hello".into(),
            format!("{header}.{payload}"),
            format!("{good}.x"),
            format!("{header}.{payload}.&&&"),
            format!("!!.{payload}.x"),
            format!("{list}.{payload}.eA"),
            format!("{header}.{list}.eA"),
            format!("{header}.{}.eA", BASE64_URL.encode("{\"exp\":\"soon\"}")),
            "a".repeat(MAX_TOKEN_BYTES + 1),
        ];
        for text in garbage {
            let error = Token::parse(&text, NOW_MS).unwrap_err();
            assert!(matches!(error, TokenError::Malformed(_)), "{text}: {error}");
        }
    }

    #[test]
    fn no_error_repeats_the_key() {
        let secret = BASE64.encode([0x5a; 32]);
        let shown = |change: &dyn Fn(&mut Value)| {
            let mut claims = good_claims(&[0x5a; 32]);
            change(&mut claims);
            let result = Token::parse(&token(&claims), NOW_MS);
            format!(
                "{result:?} {}",
                result.as_ref().err().map(ToString::to_string).unwrap_or_default()
            )
        };
        let changes: [&dyn Fn(&mut Value); 4] = [
            &|_| (),
            &|claims| claims["exp"] = claims["dek"].clone(),
            &|claims| claims["dek"] = json!(format!("{secret}!")),
            &|claims| claims["exp"] = json!(1),
        ];
        for change in changes {
            assert!(!shown(change).contains(&secret), "{}", shown(change));
        }
    }
}
