//! Whether a good run is suspiciously small. Pure.
//!
//! A run is measured against the median of up to [`MOST`] good runs before it, and only where there are at least
//! [`LEAST`]. A drop is told once: the next run that is as small as the one before it is no news, and after a few of
//! them the median has followed.

/// Predecessors that count.
pub const MOST: usize = 5;
/// Predecessors that there must be.
pub const LEAST: usize = 3;
/// The alarm of a backup without `shrink_alarm`.
pub const PERCENT: u32 = 50;

/// The median that a run of `size` bytes fell below `percent` of, if that is news. `before` are the sizes of the good
/// runs before it, newest first.
pub fn shrunk(size: u64, before: &[u64], percent: u32) -> Option<u64> {
    let before = &before[..before.len().min(MOST)];
    if before.len() < LEAST {
        return None;
    }
    let mut sorted = before.to_vec();
    sorted.sort_unstable();
    let median = sorted[sorted.len() / 2];
    let below = |size: u64, of: u64| u128::from(size) * 100 < u128::from(of) * u128::from(percent);
    let last = before[0];
    let news = !below(last, median) || below(size, last);
    (below(size, median) && news).then_some(median)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    /// What a series of runs tells, by number.
    fn told(sizes: &[u64], percent: u32) -> Vec<usize> {
        let alarmed = |at: &usize| {
            let before: Vec<u64> = sizes[..*at].iter().rev().copied().collect();
            shrunk(sizes[*at], &before, percent).is_some()
        };
        (0..sizes.len()).filter(alarmed).collect()
    }

    #[test]
    fn three_predecessors_and_less_than_half() {
        assert_eq!(told(&[100, 100, 1], 50), NONE, "two are no history");
        assert_eq!(told(&[100, 100, 100, 50], 50), NONE, "half is not less than half");
        assert_eq!(told(&[100, 100, 100, 49], 50), [3]);
        assert_eq!(told(&[100, 100, 100, 49], 40), NONE);
        assert_eq!(told(&[1, 1, 1, 100, 100, 100, 90], 50), NONE, "growing is fine");
        assert_eq!(shrunk(0, &[0, 0, 0], 50), None);
        assert_eq!(shrunk(u64::MAX / 3, &[u64::MAX; 3], 50), Some(u64::MAX));
    }

    #[test]
    fn one_odd_run_does_not_spoil_the_measure() {
        assert_eq!(told(&[100, 100, 1, 100, 100, 40], 50), [5]);
        assert_eq!(told(&[100, 100, 9999, 100, 100], 50), NONE);
        assert_eq!(shrunk(1, &[4, 4, 4, 4, 4, 900, 900, 900], 50), Some(4), "the last five");
    }

    #[test]
    fn a_drop_is_told_once_and_a_second_one_again() {
        assert_eq!(told(&[100, 100, 100, 10, 10, 10, 10, 10], 50), [3]);
        assert_eq!(told(&[100, 100, 100, 10, 10, 1, 1], 50), [3, 5]);
        assert_eq!(told(&[100, 100, 100, 10, 100, 10], 50), [3, 5], "it had recovered");
    }
}
