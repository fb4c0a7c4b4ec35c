//! Free space, looked at before and while a snapshot is written: a backup must not be what fills the disk.

use std::path::Path;

use super::DriverError;
use crate::config::PipelineLimits;

/// Bytes between two looks.
pub(super) const EVERY_BYTES: u64 = 64 << 20;

/// Fails if writing `wanted` more bytes into `dir` would leave less than the limits ask for.
///
/// # Errors
/// [`DriverError::Space`], or [`DriverError::Work`] where the file system cannot be asked.
pub(super) fn check(dir: &Path, wanted: u64, limits: &PipelineLimits) -> Result<(), DriverError> {
    let (free, reserve) = free_and_reserve(dir, limits)?;
    let needed = wanted.saturating_add(reserve);
    if free >= needed {
        return Ok(());
    }
    Err(DriverError::Space { path: dir.to_owned(), free, needed })
}

/// What is free in `dir`, and what the limits want to stay free there, in bytes.
///
/// # Errors
/// [`DriverError::Work`] where the file system cannot be asked.
pub(super) fn free_and_reserve(
    dir: &Path,
    limits: &PipelineLimits,
) -> Result<(u64, u64), DriverError> {
    let system = rustix::fs::statvfs(dir)
        .map_err(|error| DriverError::Work { path: dir.to_owned(), source: error.into() })?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    Ok((free, reserve(system.f_blocks.saturating_mul(system.f_frsize), limits)))
}

/// What must stay free on a file system of `total` bytes.
fn reserve(total: u64, limits: &PipelineLimits) -> u64 {
    let share = u128::from(total) * u128::from(limits.min_free_percent) / 100;
    limits.min_free_bytes.max(u64::try_from(share).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_reserve_counts() {
        let limits = PipelineLimits::default();
        assert_eq!(reserve(1 << 30, &limits), 256 << 20);
        assert_eq!(reserve(100 << 30, &limits), 5 << 30);
        assert_eq!(reserve(u64::MAX, &limits), u64::MAX / 20);
    }

    #[test]
    fn asks_the_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let none = PipelineLimits { min_free_bytes: 0, min_free_percent: 0, ..Default::default() };
        check(dir.path(), 1, &none).unwrap();
        let error = check(dir.path(), u64::MAX, &none).unwrap_err();
        assert!(matches!(error, DriverError::Space { .. }), "{error}");
        assert!(!error.retry());
    }
}
