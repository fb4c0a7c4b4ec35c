//! What a host says about updates of the program itself: whose signature counts, and how long a new version may take.

use std::fmt;
use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Env;
use super::reader::Reader;

/// The key that releases are signed with, where the build names one.
const BUILT_IN: Option<&str> = option_env!("BACKUPY_UPDATE_PUBLIC_KEY");
const KEY_VARIABLE: &str = "BACKUPY_UPDATE_PUBLIC_KEY";
const TIMEOUT_VARIABLE: &str = "BACKUPY_UPDATE_CONFIRM_TIMEOUT";
/// Largest file of a key.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// What stands before the point in the SubjectPublicKeyInfo of every P-256 key: id-ecPublicKey, prime256v1, a bit
/// string of 66 bytes.
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const POINT_BYTES: usize = 65;

/// A public key on P-256.
#[derive(Clone, PartialEq, Eq)]
pub struct UpdateKey([u8; POINT_BYTES]);

impl UpdateKey {
    /// An uncompressed point; `None` for any other form.
    pub fn from_point(point: &[u8]) -> Option<Self> {
        <[u8; POINT_BYTES]>::try_from(point).ok().filter(|point| point[0] == 4).map(Self)
    }

    /// `-----BEGIN PUBLIC KEY-----`, or what stands between these lines.
    pub fn parse(text: &str) -> Option<Self> {
        let body: String = text.lines().filter(|line| !line.contains("-----")).collect();
        let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let der = STANDARD.decode(body).ok()?;
        Self::from_point(der.strip_prefix(&SPKI_HEAD[..])?)
    }

    /// The uncompressed point.
    pub fn point(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for UpdateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpdateKey")
    }
}

/// Updates of the program itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateSettings {
    /// Whose signature counts (`BACKUPY_UPDATE_PUBLIC_KEY`: PEM or the path of a file, before the one built in);
    /// `None` = no updates.
    pub key: Option<UpdateKey>,
    /// How long a new version may take to its first session (`BACKUPY_UPDATE_CONFIRM_TIMEOUT`, 5 s to 10 min,
    /// default 60 s).
    pub confirm_timeout: Duration,
}

impl Default for UpdateSettings {
    fn default() -> Self {
        Self { key: None, confirm_timeout: Duration::from_secs(60) }
    }
}

impl UpdateSettings {
    /// Reads them alone, before anything else is looked at; what is wrong counts as not set, and is told.
    pub fn of_launcher(env: Env<'_>) -> (Self, Vec<String>) {
        let mut reader = Reader { env, problems: Vec::new() };
        let settings = Self::read(&mut reader);
        (settings, reader.problems)
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let confirm_timeout = reader.duration(TIMEOUT_VARIABLE);
        let range = Duration::from_secs(5)..=Duration::from_secs(600);
        if confirm_timeout.is_some_and(|timeout| !range.contains(&timeout)) {
            reader.problem(format!("{TIMEOUT_VARIABLE} must be between 5s and 10m"));
        }
        Self {
            key: key(reader),
            confirm_timeout: confirm_timeout
                .filter(|timeout| range.contains(timeout))
                .unwrap_or(Self::default().confirm_timeout),
        }
    }
}

fn key(reader: &mut Reader<'_>) -> Option<UpdateKey> {
    let expected = "expected a P-256 public key as PEM (`cosign public-key`), or the absolute path of such a file";
    let Some(text) = reader.get(KEY_VARIABLE) else {
        let key = BUILT_IN.filter(|text| !text.is_empty()).map(UpdateKey::parse)?;
        if key.is_none() {
            reader.problem(format!("the update key of this build does not read: {expected}"));
        }
        return key;
    };
    let text = if text.starts_with('/') {
        match read_file(&text) {
            Ok(text) => text,
            Err(error) => {
                reader.problem(format!("failed to read {KEY_VARIABLE} {text}: {error}"));
                return None;
            }
        }
    } else {
        text
    };
    let key = UpdateKey::parse(&text);
    if key.is_none() {
        reader.problem(format!("{KEY_VARIABLE} does not read: {expected}"));
    }
    key
}

fn read_file(path: &str) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_KEY_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl ecparam -name prime256v1 -genkey | openssl ec -pubout`.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE18JYzy79cF3OB6UFMmmc2roDNBsh
vO1Y9EXMnEl6YY+0dyvSRUx3Qj819eljRwFQqD58gj4nwqZeKqtzb5vOPw==
-----END PUBLIC KEY-----
";

    fn read(key: &str, timeout: &str) -> (UpdateSettings, Vec<String>) {
        let env = |name: &str| match name {
            KEY_VARIABLE => Some(key.to_owned()),
            TIMEOUT_VARIABLE => Some(timeout.to_owned()),
            _ => None,
        };
        let mut reader = Reader { env: &env, problems: Vec::new() };
        let settings = UpdateSettings::read(&mut reader);
        (settings, reader.problems)
    }

    #[test]
    fn a_key_is_pem_its_body_or_a_file() {
        let (settings, problems) = read(PEM, "");
        assert_eq!(problems, [""; 0]);
        let key = settings.key.unwrap();
        let body: String = PEM.lines().filter(|line| !line.starts_with('-')).collect();
        assert_eq!(read(&body, "").0.key.as_ref(), Some(&key));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), PEM).unwrap();
        assert_eq!(read(file.path().to_str().unwrap(), "").0.key, Some(key));
    }

    #[test]
    fn anything_else_is_a_problem_and_no_key() {
        let private = PEM.replace("PUBLIC", "PRIVATE").replace('M', "N");
        for bad in ["/nowhere/key.pem", "key.pem", "AAAA", private.as_str()] {
            let (settings, problems) = read(bad, "");
            assert_eq!((settings.key, problems.len()), (None, 1), "{bad}");
        }
    }

    #[test]
    fn the_time_to_confirm_has_bounds() {
        assert_eq!(read("", "90s").0.confirm_timeout, Duration::from_secs(90));
        for bad in ["4s", "11m", "soon"] {
            let (settings, problems) = read("", bad);
            assert_eq!(settings.confirm_timeout, Duration::from_secs(60));
            assert_eq!(problems.len(), 1, "{bad}");
        }
    }
}
