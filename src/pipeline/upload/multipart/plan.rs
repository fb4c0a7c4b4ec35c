//! How an artifact of unknown size becomes parts. Pure.
//!
//! S3 takes 1 to 10,000 parts; every part but the last has 5 MiB to 5 GiB. The control plane names one size, and all
//! parts but the last have exactly that. A part waits in memory for its upload, so this agent takes 64 MiB at most,
//! which still makes 625 GiB of artifact.

use std::fmt;

/// Least size of every part but the last.
pub const MIN_PART_BYTES: u64 = 5 << 20;
/// Largest part that is held in memory.
pub const MAX_PART_BYTES: u64 = 64 << 20;
/// What a control plane uses where nothing speaks against it.
pub const DEFAULT_PART_BYTES: u64 = 8 << 20;
/// Most parts of an upload.
pub const MAX_PARTS: u32 = 10_000;

/// The parts on their way and the compressor may have so much together for a second worker to be worth its memory.
const SHARED_BYTES: usize = 32 << 20;

/// The size of the parts, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartPlan {
    part_bytes: usize,
}

/// Why an upload cannot be made in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanError {
    /// The size of the parts is none.
    PartBytes(u64),
    /// The artifact does not fit.
    TooLarge {
        /// Least size of the artifact that is known.
        at_least: u64,
        /// Size of the parts.
        part_bytes: u64,
    },
}

impl PartPlan {
    /// A plan with parts of this size.
    ///
    /// # Errors
    /// When S3 or this agent takes no such parts.
    pub fn new(part_bytes: u64) -> Result<Self, PlanError> {
        if !(MIN_PART_BYTES..=MAX_PART_BYTES).contains(&part_bytes) {
            return Err(PlanError::PartBytes(part_bytes));
        }
        let part_bytes =
            usize::try_from(part_bytes).map_err(|_| PlanError::PartBytes(part_bytes))?;
        Ok(Self { part_bytes })
    }

    /// The same with larger parts where [`MAX_PARTS`] of these could not hold a dump of about that size. URLs of parts
    /// bind no size, so this is ours to decide.
    ///
    /// # Errors
    /// As [`PartPlan::new`].
    pub fn for_dump_of(self, size_hint_bytes: Option<u64>) -> Result<Self, PlanError> {
        let part_bytes = self.part_bytes as u64;
        match size_hint_bytes {
            Some(hint) if hint.div_ceil(part_bytes) > u64::from(MAX_PARTS) => {
                Self::new(part_bytes.max(part_bytes_for(size_hint_bytes)))
            }
            Some(_) | None => Ok(self),
        }
    }

    /// Size of every part but the last.
    pub fn part_bytes(self) -> usize {
        self.part_bytes
    }

    /// How many parts are on their way at once, each in memory, beside a compressor that takes so many bytes. One that
    /// takes many also holds enough input to go on while the only worker sends.
    pub fn workers(self, cores: usize, compressor_bytes: usize) -> usize {
        let both = (self.part_bytes * 2).saturating_add(compressor_bytes);
        if cores > 1 && both <= SHARED_BYTES { 2 } else { 1 }
    }

    /// Fails if an artifact of at least so many bytes does not fit.
    ///
    /// # Errors
    /// [`PlanError::TooLarge`].
    pub fn check_size(self, at_least: u64) -> Result<(), PlanError> {
        let part_bytes = self.part_bytes as u64;
        if at_least.div_ceil(part_bytes) > u64::from(MAX_PARTS) {
            return Err(PlanError::TooLarge { at_least, part_bytes });
        }
        Ok(())
    }
}

/// The size of parts that a control plane names for an artifact of at most about this size: whole MiB, with room for
/// twice as much. `None` = nothing is known.
pub fn part_bytes_for(size_hint_bytes: Option<u64>) -> u64 {
    let wanted = size_hint_bytes.unwrap_or(0).saturating_mul(2).div_ceil(u64::from(MAX_PARTS));
    wanted.next_multiple_of(1 << 20).clamp(DEFAULT_PART_BYTES, MAX_PART_BYTES)
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::PartBytes(part_bytes) => write!(
                f,
                "the control plane wants parts of {part_bytes} bytes, but a part has {} to {} MiB",
                MIN_PART_BYTES >> 20,
                MAX_PART_BYTES >> 20
            ),
            PlanError::TooLarge { at_least, part_bytes } => write!(
                f,
                "the artifact has at least {at_least} bytes and does not fit into {MAX_PARTS} parts of \
                 {part_bytes} bytes; the control plane has to name larger parts"
            ),
        }
    }
}

impl std::error::Error for PlanError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_that_nobody_takes() {
        for size in [0, 1, MIN_PART_BYTES - 1, MAX_PART_BYTES + 1, 5 << 30, u64::MAX] {
            assert_eq!(PartPlan::new(size), Err(PlanError::PartBytes(size)));
        }
        for size in [MIN_PART_BYTES, DEFAULT_PART_BYTES, MAX_PART_BYTES] {
            assert_eq!(PartPlan::new(size).unwrap().part_bytes() as u64, size);
        }
    }

    #[test]
    fn memory_decides_over_the_workers() {
        let workers = |size, cores| PartPlan::new(size).unwrap().workers(cores, 0);
        assert_eq!(workers(DEFAULT_PART_BYTES, 1), 1);
        assert_eq!(workers(DEFAULT_PART_BYTES, 64), 2);
        assert_eq!(workers(16 << 20, 2), 2);
        assert_eq!(workers((16 << 20) + 1, 2), 1);
        let default = PartPlan::new(DEFAULT_PART_BYTES).unwrap();
        assert_eq!((default.workers(2, 13 << 20), default.workers(2, 18 << 20)), (2, 1));
    }

    proptest! {
        #[test]
        fn what_fits_is_what_ten_thousand_parts_hold(
            part in MIN_PART_BYTES..=MAX_PART_BYTES, more in 1u64..1 << 40,
        ) {
            let plan = PartPlan::new(part).unwrap();
            let most = part * u64::from(MAX_PARTS);
            prop_assert!(plan.check_size(most).is_ok());
            prop_assert!(plan.check_size(most - (more % most)).is_ok());
            prop_assert!(plan.check_size(most + more).is_err());
        }

        #[test]
        fn a_named_size_is_always_taken_and_fits_the_hint(hint in 0u64..300 << 30) {
            let plan = PartPlan::new(part_bytes_for(Some(hint))).unwrap();
            prop_assert!(plan.check_size(hint * 2).is_ok());
            prop_assert!(plan.part_bytes() as u64 >= DEFAULT_PART_BYTES);
        }
    }
}
