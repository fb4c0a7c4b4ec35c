//! How long to wait before the next try, and whether there is one. Pure.

use std::time::Duration;

use super::Tries;

/// The pause after try number `tries` (from 1), if another one may follow: it must start before the URL
/// expires and before the run's time is over.
pub(super) fn next(
    rule: &Tries,
    tries: u32,
    retry_after: Option<Duration>,
    now_ms: u64,
    expires_at_ms: u64,
    left: Option<Duration>,
) -> Option<Duration> {
    if tries >= rule.max {
        return None;
    }
    let factor = 2u32.saturating_pow(tries.saturating_sub(1));
    let own = rule.first_pause.saturating_mul(factor).min(rule.max_pause);
    let pause = own.max(retry_after.unwrap_or_default().min(rule.max_retry_after));
    let after_ms = now_ms.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
    let in_time = left.is_none_or(|left| pause < left);
    (in_time && !expired(expires_at_ms, after_ms)).then_some(pause)
}

/// Whether a URL's time (0 = unknown) is over.
pub(super) fn expired(expires_at_ms: u64, now_ms: u64) -> bool {
    expires_at_ms != 0 && now_ms >= expires_at_ms
}

/// `Retry-After`: seconds, or an HTTP date.
pub(super) fn retry_after(value: &str, now_ms: u64) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    let at_ms = u64::try_from(at.as_millisecond()).ok()?;
    Some(Duration::from_millis(at_ms.saturating_sub(now_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::upload::Timing;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn after(tries: u32, retry_after: Option<Duration>) -> Option<Duration> {
        next(&Timing::default().tries, tries, retry_after, 1_000_000, 0, None)
    }

    #[test]
    fn a_part_outlives_a_store_that_is_busy_for_a_minute() {
        let rule = Timing::default().tries;
        let rule = Tries { max: rule.max_part, ..rule };
        let pauses = (1..).map_while(|tries| next(&rule, tries, None, 0, 0, None));
        assert!(pauses.sum::<Duration>() > s(120));
    }

    #[test]
    fn pauses_double_and_end() {
        let pauses: Vec<_> = (1..=6).map(|tries| after(tries, None)).collect();
        let expected = [Some(s(1)), Some(s(2)), Some(s(4)), Some(s(8)), Some(s(16)), None];
        assert_eq!(pauses, expected);
        let endless = Tries { max: u32::MAX, ..Timing::default().tries };
        assert_eq!(next(&endless, 4_000_000, None, 0, 0, None), Some(s(30)));
    }

    #[test]
    fn retry_after_is_honoured_and_bounded() {
        assert_eq!(after(1, Some(s(9))), Some(s(9)));
        assert_eq!(after(4, Some(s(1))), Some(s(8)));
        assert_eq!(after(1, Some(s(86_400))), Some(s(120)));
    }

    #[test]
    fn no_try_after_expiry_or_deadline() {
        let rule = Timing::default().tries;
        let (now, tight, wide) = (1_000_000, 1_001_000, 1_001_001);
        assert_eq!(next(&rule, 1, None, now, tight, None), None);
        assert_eq!(next(&rule, 1, None, now, wide, None), Some(s(1)));
        assert_eq!(next(&rule, 1, None, now, 0, Some(s(1))), None);
        assert_eq!(next(&rule, 1, None, now, 0, Some(s(2))), Some(s(1)));
        assert_eq!(next(&rule, 1, Some(s(60)), now, now + 30_000, None), None);
    }

    #[test]
    fn retry_after_forms() {
        assert_eq!(retry_after(" 12 ", 0), Some(s(12)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after(date, 784_111_767_000), Some(s(10)));
        assert_eq!(retry_after(date, 784_111_999_000), Some(s(0)));
        assert_eq!(retry_after("soon", 0), None);
        assert_eq!(retry_after("-1", 0), None);
    }
}
