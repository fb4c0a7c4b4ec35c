//! Whether a backup can really be restored: all of it, to a scratch place, checked by the engine's own means.
//!
//! | engine | after decryption, decompression and hash |
//! |---|---|
//! | SQLite | `integrity_check`, and every table's rows are counted |
//! | PostgreSQL | `pg_restore` reads the whole dump; its tables are listed |
//! | Redis | beginning, end and checksum are compared, and every database's keys are counted |

use super::keys::MasterKey;
use super::manifest::Manifest;
use super::restore::{RestoreError, to_scratch};
use super::storage::Storage;
use crate::drivers::Context;
use crate::drivers::load::{self, Table};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Size of the artifact.
    pub artifact_bytes: u64,
    /// Size of the dump.
    pub dump_bytes: u64,
    /// The tables in it.
    pub tables: Vec<Table>,
    /// What could not be checked, or is odd.
    pub warnings: Vec<String>,
}

/// Verifies one backup. `progress` is told (bytes read, bytes in all) of the artifact.
///
/// # Errors
/// When the backup is bad ([`RestoreError::is_about_the_backup`]), or could not be looked at.
pub fn verify(
    storage: &dyn Storage,
    manifest: &Manifest,
    master: &MasterKey,
    cx: &Context<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<Verified, RestoreError> {
    let (scratch, restored) = to_scratch(storage, manifest, master, cx, progress)?;
    let inspected =
        load::inspect(manifest.engine, scratch.path(), cx).map_err(RestoreError::Dump)?;
    Ok(Verified {
        artifact_bytes: restored.bytes_in,
        dump_bytes: restored.bytes_out,
        tables: inspected.tables,
        warnings: inspected.warnings,
    })
}
