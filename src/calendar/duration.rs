//! Durations as people write them: `30s`, `15m`, `6h`, `2d`, `1w`, and sums such as `1h30m`.

use std::fmt;
use std::time::Duration;

const UNITS: [(char, u64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// Longest duration that is read: ten years.
const MAX_SEC: u64 = 3650 * 86_400;

/// A text that is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationError;

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a duration is a number with a unit: \"30s\", \"15m\", \"6h\", \"2d\", \"1h30m\"",
        )
    }
}

impl std::error::Error for DurationError {}

/// Reads a duration; units go from large to small, each at most once.
///
/// # Errors
/// When the text is anything else, or beyond ten years.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut seconds = 0u64;
    let mut digits = String::new();
    let mut below = u64::MAX;
    if text.trim().is_empty() {
        return Err(DurationError);
    }
    for letter in text.trim().chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == letter).ok_or(DurationError)?;
        let count: u64 = digits.parse().map_err(|_| DurationError)?;
        if unit >= below {
            return Err(DurationError);
        }
        below = unit;
        seconds =
            count.checked_mul(unit).and_then(|s| s.checked_add(seconds)).ok_or(DurationError)?;
        digits.clear();
    }
    if !digits.is_empty() || seconds > MAX_SEC {
        return Err(DurationError);
    }
    Ok(Duration::from_secs(seconds))
}

/// A duration in whole seconds as [`parse`] reads it.
pub fn display(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    let mut text = String::new();
    for (name, unit) in UNITS {
        if rest >= unit {
            text.push_str(&format!("{}{name}", rest / unit));
            rest %= unit;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (text, seconds) in
            [("30s", 30), ("15m", 900), ("6h", 21_600), ("1d", 86_400), ("1h30m", 5400)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
            assert_eq!(display(Duration::from_secs(seconds)), text);
        }
        assert_eq!(display(Duration::from_secs(14 * 86_400)), "2w");
        assert_eq!(display(Duration::ZERO), "0s");
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_not_a_duration() {
        for bad in
            ["", "6", "h", "6 h", "6h6h", "1m1h", "-1h", "1.5h", "99999999999999999999s", "4000d"]
        {
            assert_eq!(parse(bad), Err(DurationError), "{bad}");
        }
    }
}
