//! The maintenance window: a daily span in UTC in which scheduled backups do not start. Pure.

use std::fmt;

use crate::model::Maintenance;

const DAY_MS: u64 = 86_400_000;

/// A daily span `[start, end)` in UTC; it may cross midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    start_ms: u64,
    end_ms: u64,
}

/// A time of day that is not `HH:MM`, or a window without length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowError(String);

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WindowError {}

impl Window {
    /// Reads the wire's form. Both ends empty means no window.
    ///
    /// # Errors
    /// When an end is not `HH:MM`, or both are the same.
    pub fn parse(window: &Maintenance) -> Result<Option<Self>, WindowError> {
        if window.start_utc.is_empty() && window.end_utc.is_empty() {
            return Ok(None);
        }
        let start_ms = time_of_day(&window.start_utc)?;
        let end_ms = time_of_day(&window.end_utc)?;
        if start_ms == end_ms {
            return Err(WindowError(format!(
                "maintenance window starts and ends at {}",
                window.start_utc
            )));
        }
        Ok(Some(Self { start_ms, end_ms }))
    }

    /// How long the window goes on at `now_ms` (Unix milliseconds); 0 outside it.
    pub fn remaining_ms(self, now_ms: u64) -> u64 {
        let time = now_ms % DAY_MS;
        let since_start = (time + DAY_MS - self.start_ms) % DAY_MS;
        let length = (self.end_ms + DAY_MS - self.start_ms) % DAY_MS;
        length.saturating_sub(since_start)
    }
}

fn time_of_day(text: &str) -> Result<u64, WindowError> {
    let parse = || {
        let (hours, minutes) = text.split_once(':')?;
        let number = |part: &str| {
            let all_digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            all_digits.then(|| part.parse::<u64>().ok()).flatten()
        };
        let (hours, minutes) = (number(hours)?, number(minutes)?);
        (hours < 24 && minutes < 60).then_some((hours * 60 + minutes) * 60_000)
    };
    parse().ok_or_else(|| {
        WindowError(format!("maintenance window needs times such as 02:00 in UTC, not {text:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn window(start: &str, end: &str) -> Result<Option<Window>, WindowError> {
        Window::parse(&Maintenance { start_utc: start.into(), end_utc: end.into() })
    }

    #[test]
    fn within_a_day() {
        let window = window("02:00", "04:30").unwrap().unwrap();
        let day = 20_000 * DAY_MS;
        assert_eq!(window.remaining_ms(day + 2 * HOUR - 1), 0);
        assert_eq!(window.remaining_ms(day + 2 * HOUR), 2 * HOUR + HOUR / 2);
        assert_eq!(window.remaining_ms(day + 4 * HOUR), HOUR / 2);
        assert_eq!(window.remaining_ms(day + 4 * HOUR + HOUR / 2), 0);
    }

    #[test]
    fn across_midnight() {
        let window = window("23:00", "01:00").unwrap().unwrap();
        assert_eq!(window.remaining_ms(23 * HOUR), 2 * HOUR);
        assert_eq!(window.remaining_ms(DAY_MS), HOUR);
        assert_eq!(window.remaining_ms(HOUR), 0);
        assert_eq!(window.remaining_ms(12 * HOUR), 0);
    }

    #[test]
    fn bad_forms_are_errors_and_empty_is_none() {
        assert_eq!(window("", "").unwrap(), None);
        for (start, end) in [
            ("2:00", "04:00"),
            ("24:00", "01:00"),
            ("02:60", "03:00"),
            ("", "03:00"),
            ("+1:00", "03:00"),
        ] {
            assert!(window(start, end).is_err(), "{start}-{end}");
        }
        assert!(window("02:00", "02:00").is_err());
    }
}
