//! Whether a failed attempt is followed by another one, and when. Pure.

use std::time::Duration;

use crate::model::RetryPolicy;

/// Attempts that a policy can ask for at most.
const MAX_ATTEMPTS: u32 = 100;

/// The pause before the next attempt, or `None` when `attempts` were all that the policy gives.
/// A short list of pauses repeats its last value; without a list there is no pause.
pub fn next_attempt(policy: &RetryPolicy, attempts: u32) -> Option<Duration> {
    let allowed = policy.max_attempts.clamp(1, MAX_ATTEMPTS);
    if attempts >= allowed {
        return None;
    }
    let index = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = policy.backoff_sec.get(index).or(policy.backoff_sec.last()).copied().unwrap_or(0);
    Some(Duration::from_secs(u64::from(pause)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max_attempts: u32, backoff_sec: &[u32]) -> RetryPolicy {
        RetryPolicy { max_attempts, backoff_sec: backoff_sec.to_vec() }
    }

    #[test]
    fn zero_attempts_mean_one() {
        assert_eq!(next_attempt(&policy(0, &[5]), 1), None);
        assert_eq!(next_attempt(&policy(1, &[5]), 1), None);
    }

    #[test]
    fn a_short_list_repeats_its_last_value() {
        let policy = policy(5, &[10, 60]);
        let pauses: Vec<_> =
            (1..=5).map(|n| next_attempt(&policy, n).map(|d| d.as_secs())).collect();
        assert_eq!(pauses, [Some(10), Some(60), Some(60), Some(60), None]);
    }

    #[test]
    fn no_list_means_no_pause() {
        assert_eq!(next_attempt(&policy(2, &[]), 1), Some(Duration::ZERO));
    }
}
