//! The store of an agent that is not running, for commands that look into its files.

use std::path::Path;

use super::complain;
use crate::config::{process_env, store_keys};
use crate::exit::Exit;
use crate::secret::Secret;
use crate::store::{Space, Store, StoreError, StoreKeys};

/// Opens it, with the key from the environment or, where `up` made one, from the state directory.
///
/// # Errors
/// The exit code; why has been said.
pub(super) fn open_store(state_dir: &Path) -> Result<Store, Exit> {
    if !Store::is_in(state_dir) {
        complain(format!("there is no agent's store in {}", state_dir.display()));
        return Err(Exit::State);
    }
    Store::open(state_dir, &Space::AGENT, &keys(state_dir)?).map_err(|error| {
        complain(&error);
        match error {
            StoreError::Locked { .. } => Exit::Busy,
            _ => Exit::State,
        }
    })
}

/// The keys that it should open with.
///
/// # Errors
/// The exit code; why has been said.
pub(super) fn keys(state_dir: &Path) -> Result<StoreKeys, Exit> {
    if let Some(current) = own_key(state_dir) {
        return Ok(StoreKeys { current, previous: None });
    }
    match store_keys(&process_env) {
        Ok((current, previous)) => Ok(StoreKeys { current, previous }),
        Err(error) => {
            complain(error);
            Err(Exit::Usage)
        }
    }
}

#[cfg(feature = "control")]
fn own_key(state_dir: &Path) -> Option<Secret> {
    crate::control::embedded::existing_agent_key(state_dir).ok()
}

#[cfg(not(feature = "control"))]
fn own_key(_state_dir: &Path) -> Option<Secret> {
    None
}
