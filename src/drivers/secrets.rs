//! Password references: `env:NAME`, `file:PATH`, or the password itself.
//!
//! A control plane elsewhere is not trusted with the host, so from it only `env:BACKUPY_SECRET_*` and files
//! that really lie (links followed) under the secrets directory are read, and a file that everybody on the
//! host can read is refused as a mistake. The operator's own file may name any other variable or file.
//! The agent's own key is never a password, for either: neither under its variables' names nor, for a control plane,
//! as the content of a variable or file.
//!
//! Nothing is read before a run needs it, and no error repeats a reference (it may be the password).

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::config::HostPolicy;
use crate::model::Trust;
use crate::secret::Secret;

/// Longer than any password or token that a database takes.
const MAX_BYTES: u64 = 64 * 1024;

const REMOTE_PREFIX: &str = "BACKUPY_SECRET_";
/// The agent's key under its own name and the older one, current, previous and as a file.
const AGENT_KEYS: [&str; 2] = ["BACKUPY_AGENT_KEY", "BACKUP_AGENT_KEY"];

/// Why a password reference was not followed.
#[derive(Debug)]
pub enum SecretError {
    /// It names the agent's own key.
    AgentKey,
    /// A control plane may only name `BACKUPY_SECRET_*`.
    VariableNotAllowed,
    /// No such variable.
    VariableMissing {
        /// Its name.
        name: String,
    },
    /// The name is empty or no name of a variable.
    VariableName,
    /// The path does not begin with `/`.
    RelativePath,
    /// A control plane names a file, but the host has no secrets directory.
    NoSecretsDir,
    /// The file is not, or not really, under the secrets directory.
    OutsideSecretsDir {
        /// The directory.
        dir: PathBuf,
    },
    /// Everybody on the host can read it.
    WorldReadable {
        /// The file.
        path: PathBuf,
    },
    /// A directory, a FIFO, a device.
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// More than 64 KiB.
    TooLong,
    /// Not UTF-8, or with a NUL.
    NotText,
    /// It cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl SecretError {
    /// Never: somebody has to change a setting or a file.
    pub fn retry(&self) -> bool {
        false
    }
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AgentKey => f.write_str("the password reference names the agent's own key"),
            Self::VariableNotAllowed => write!(
                f,
                "a control plane may only name variables that begin with {REMOTE_PREFIX}; \
                 rename the variable on this host"
            ),
            Self::VariableMissing { name } => write!(
                f,
                "the environment variable {name} of the password reference is not set for the agent"
            ),
            Self::VariableName => f.write_str("the password reference env: names no variable"),
            Self::RelativePath => {
                f.write_str("the path of the password reference file: must begin with '/'")
            }
            Self::NoSecretsDir => f.write_str(
                "a control plane may only name files under BACKUPY_SECRETS_DIR, which is not set on this host",
            ),
            Self::OutsideSecretsDir { dir } => write!(
                f,
                "the file of the password reference is not under BACKUPY_SECRETS_DIR ({})",
                dir.display()
            ),
            Self::WorldReadable { path } => write!(
                f,
                "the password file {} can be read by everybody on this host; chmod o-r it",
                path.display()
            ),
            Self::NotAFile { path } => write!(f, "{} is not a regular file", path.display()),
            Self::TooLong => f.write_str("the password is longer than 64 KiB"),
            Self::NotText => f.write_str("the password is not UTF-8 text, or contains a NUL byte"),
            Self::Read { path, source } => {
                write!(f, "failed to read the password file {}: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for SecretError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The password that `reference` stands for; empty for an empty reference.
///
/// # Errors
/// When the reference is not allowed, or leads nowhere.
pub fn resolve(reference: &Secret, policy: &HostPolicy) -> Result<Secret, SecretError> {
    resolve_with(reference, policy, &|name| std::env::var_os(name))
}

fn resolve_with(
    reference: &Secret,
    policy: &HostPolicy,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Secret, SecretError> {
    let text = reference.expose();
    if let Some(name) = text.strip_prefix("env:") {
        variable(name, policy.trust, env)
    } else if let Some(path) = text.strip_prefix("file:") {
        file(Path::new(path), policy)
    } else if text.len() as u64 > MAX_BYTES {
        Err(SecretError::TooLong)
    } else if text.contains('\0') {
        Err(SecretError::NotText)
    } else {
        Ok(reference.clone())
    }
}

fn variable(
    name: &str,
    trust: Trust,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Secret, SecretError> {
    if AGENT_KEYS.iter().any(|key| name.starts_with(key)) {
        return Err(SecretError::AgentKey);
    }
    if trust == Trust::Remote && !name.starts_with(REMOTE_PREFIX) {
        return Err(SecretError::VariableNotAllowed);
    }
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(SecretError::VariableName);
    }
    let value = env(name).ok_or_else(|| SecretError::VariableMissing { name: name.to_owned() })?;
    let value = value.into_string().map_err(|_| SecretError::NotText)?;
    judge(Secret::new(value), trust)
}

fn file(path: &Path, policy: &HostPolicy) -> Result<Secret, SecretError> {
    let real = match policy.trust {
        Trust::Local if !path.is_absolute() => return Err(SecretError::RelativePath),
        Trust::Local => path.to_owned(),
        Trust::Remote => inside_secrets_dir(path, policy)?,
    };
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    // Not blocking, in case it is a FIFO; that it is a file is only certain once it is open.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(&real)
        .map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(SecretError::NotAFile { path: path.to_owned() });
    }
    if policy.trust == Trust::Remote && meta.mode() & 0o004 != 0 {
        return Err(SecretError::WorldReadable { path: path.to_owned() });
    }
    judge(read_line(file, failed)?, policy.trust)
}

/// The real path of a file that a control plane may name.
///
/// What lies outside is refused with the same words whether it exists or not, so that nobody can ask
/// through us what there is on the host.
///
/// # Errors
/// [`SecretError::NoSecretsDir`], [`SecretError::OutsideSecretsDir`], or the path cannot be followed.
pub(super) fn inside_secrets_dir(path: &Path, policy: &HostPolicy) -> Result<PathBuf, SecretError> {
    let dir = policy.secrets_dir.as_deref().ok_or(SecretError::NoSecretsDir)?;
    let outside = || SecretError::OutsideSecretsDir { dir: dir.to_owned() };
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    if !path.is_absolute() || climbs {
        return Err(outside());
    }
    let real_dir = fs::canonicalize(dir)
        .map_err(|source| SecretError::Read { path: dir.to_owned(), source })?;
    let named_inside = path.starts_with(dir) || path.starts_with(&real_dir);
    match fs::canonicalize(path) {
        Ok(real) if real.starts_with(&real_dir) => Ok(real),
        Err(source) if named_inside => Err(SecretError::Read { path: path.to_owned(), source }),
        _ => Err(outside()),
    }
}

/// The file's text without the line end that editors and `echo` leave.
fn read_line(file: File, failed: impl Fn(io::Error) -> SecretError) -> Result<Secret, SecretError> {
    // Of the full size from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 1));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(SecretError::TooLong);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| SecretError::NotText)?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    Ok(Secret::new(line.strip_suffix('\r').unwrap_or(line)))
}

fn judge(secret: Secret, trust: Trust) -> Result<Secret, SecretError> {
    if secret.expose().len() as u64 > MAX_BYTES {
        return Err(SecretError::TooLong);
    }
    if secret.expose().contains('\0') {
        return Err(SecretError::NotText);
    }
    if trust == Trust::Remote && looks_like_agent_key(secret.expose()) {
        return Err(SecretError::AgentKey);
    }
    Ok(secret)
}

fn looks_like_agent_key(text: &str) -> bool {
    text.trim().strip_prefix("bkpy_").is_some_and(|rest| {
        let body = rest.strip_prefix("live_").or_else(|| rest.strip_prefix("test_"));
        body.is_some_and(|b| b.len() == 32 && b.bytes().all(|c| c.is_ascii_alphanumeric()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn policy(trust: Trust, secrets_dir: Option<&Path>) -> HostPolicy {
        HostPolicy {
            trust,
            secrets_dir: secrets_dir.map(Path::to_owned),
            allow_paths: None,
            allow_containers: None,
            allow_checks: None,
            allow_hooks: false,
            pg_bin_dir: None,
            mongo_bin_dir: None,
        }
    }

    const KEY: &str = "bkpy_live_abcdefghijklmnopqrstuvwxyz012345";

    fn env(name: &str) -> Option<OsString> {
        match name {
            "BACKUPY_SECRET_DB" | "DB_PASSWORD" => Some("hunter2\n".into()),
            "BACKUPY_SECRET_KEY" | "BACKUPY_AGENT_KEY" | "MY_KEY" => Some(KEY.into()),
            _ => None,
        }
    }

    fn get(reference: &str, policy: &HostPolicy) -> Result<String, SecretError> {
        resolve_with(&Secret::new(reference), policy, &env).map(|s| s.expose().to_owned())
    }

    fn write(path: &Path, content: &[u8], mode: u32) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn literals_are_taken_as_they_are() {
        for trust in [Trust::Local, Trust::Remote] {
            for literal in ["", "pass word", "a\nb", "ENV:X", "it's"] {
                assert_eq!(get(literal, &policy(trust, None)).unwrap(), literal);
            }
            assert!(matches!(get("a\0b", &policy(trust, None)), Err(SecretError::NotText)));
        }
    }

    #[test]
    fn variables_by_trust() {
        let (local, remote) = (policy(Trust::Local, None), policy(Trust::Remote, None));
        assert_eq!(get("env:DB_PASSWORD", &local).unwrap(), "hunter2\n");
        assert_eq!(get("env:BACKUPY_SECRET_DB", &remote).unwrap(), "hunter2\n");
        assert!(matches!(get("env:DB_PASSWORD", &remote), Err(SecretError::VariableNotAllowed)));
        assert!(matches!(get("env:", &local), Err(SecretError::VariableName)));
        assert!(matches!(get("env:A=B", &local), Err(SecretError::VariableName)));
        assert!(matches!(get("env:GONE", &local), Err(SecretError::VariableMissing { .. })));
    }

    #[test]
    fn the_agent_key_is_no_password() {
        for trust in [Trust::Local, Trust::Remote] {
            for name in ["BACKUPY_AGENT_KEY", "BACKUP_AGENT_KEY", "BACKUPY_AGENT_KEY_PREVIOUS"] {
                let found = get(&format!("env:{name}"), &policy(trust, None));
                assert!(matches!(found, Err(SecretError::AgentKey)), "{name}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        write(&file, format!("{KEY}\n").as_bytes(), 0o600);
        let remote = policy(Trust::Remote, Some(dir.path()));
        for reference in ["env:BACKUPY_SECRET_KEY".to_owned(), format!("file:{}", file.display())] {
            assert!(matches!(get(&reference, &remote), Err(SecretError::AgentKey)), "{reference}");
        }
    }

    #[test]
    fn remote_files_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        fs::create_dir(&secrets).unwrap();
        write(&secrets.join("db"), b"hunter2\n", 0o640);
        write(&dir.path().join("outside"), b"no", 0o600);
        write(&secrets.join("open"), b"x", 0o644);
        symlink(dir.path().join("outside"), secrets.join("link")).unwrap();
        symlink(secrets.join("db"), secrets.join("good-link")).unwrap();
        let remote = policy(Trust::Remote, Some(&secrets));
        let at = |name: &str| get(&format!("file:{}/{name}", secrets.display()), &remote);
        assert_eq!(at("db").unwrap(), "hunter2");
        assert_eq!(at("good-link").unwrap(), "hunter2");
        assert!(matches!(at("open"), Err(SecretError::WorldReadable { .. })));
        assert!(matches!(at("gone"), Err(SecretError::Read { .. })));
        assert!(matches!(at(""), Err(SecretError::NotAFile { .. })));
        for outside in ["link", "../outside", "../gone", "../secrets/db"] {
            let found = at(outside);
            assert!(matches!(found, Err(SecretError::OutsideSecretsDir { .. })), "{outside}");
        }
        for path in ["/etc/passwd", "/etc/no-such-file", "relative", "/proc/self/environ"] {
            let found = get(&format!("file:{path}"), &remote);
            assert!(matches!(found, Err(SecretError::OutsideSecretsDir { .. })), "{path}");
        }
        let none = get("file:/etc/passwd", &policy(Trust::Remote, None));
        assert!(matches!(none, Err(SecretError::NoSecretsDir)));
    }

    #[test]
    fn local_files_are_bounded_regular_text() {
        let dir = tempfile::tempdir().unwrap();
        let local = policy(Trust::Local, None);
        let at = |name: &str| get(&format!("file:{}/{name}", dir.path().display()), &local);
        write(&dir.path().join("dos"), b"two\nlines\r\n", 0o644);
        write(&dir.path().join("long"), &vec![b'x'; MAX_BYTES as usize + 1], 0o600);
        write(&dir.path().join("full"), &vec![b'x'; MAX_BYTES as usize], 0o600);
        write(&dir.path().join("binary"), b"\xff\xfe", 0o600);
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(at("dos").unwrap(), "two\nlines");
        assert_eq!(at("full").unwrap().len() as u64, MAX_BYTES);
        assert!(matches!(at("long"), Err(SecretError::TooLong)));
        assert!(matches!(at("binary"), Err(SecretError::NotText)));
        assert!(matches!(at("fifo"), Err(SecretError::NotAFile { .. })));
        assert!(matches!(get("file:db", &local), Err(SecretError::RelativePath)));
    }
}
