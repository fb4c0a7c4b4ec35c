//! The CA file of a target, as far as whoever named it may name it.

use std::path::{Path, PathBuf};

use super::{DriverError, secrets};
use crate::config::HostPolicy;
use crate::model::Trust;

/// The CA file that may be used: from a control plane only one inside the secrets directory.
pub(super) fn admit(ca_file: &Path, policy: &HostPolicy) -> Result<PathBuf, DriverError> {
    let real = match policy.trust {
        Trust::Local => Ok(ca_file.to_owned()),
        Trust::Remote => secrets::inside_secrets_dir(ca_file, policy),
    };
    match real {
        Ok(real) if real.is_file() => Ok(real),
        Ok(_) | Err(secrets::SecretError::Read { .. }) => Err(DriverError::Setting {
            field: "TLS CA file",
            problem: "is not a file that the agent can read".to_owned(),
        }),
        Err(_) => Err(DriverError::NotAllowed {
            what: "a TLS CA file outside BACKUPY_SECRETS_DIR".to_owned(),
        }),
    }
}
