//! The store of an agent that is not running, for commands that look into its files.

use std::os::unix::fs::MetadataExt as _;
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
    if let Some(owner) = foreign_owner(state_dir) {
        complain(format!(
            "{} belongs to user {owner}: run this as that user, or the agent could not open its own files later",
            state_dir.display()
        ));
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

/// The user id that owns the directory, if it is not ours. Only root gets past that, and would leave files of its own.
fn foreign_owner(state_dir: &Path) -> Option<u32> {
    let owner = std::fs::metadata(state_dir).ok()?.uid();
    (owner != rustix::process::geteuid().as_raw()).then_some(owner)
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
