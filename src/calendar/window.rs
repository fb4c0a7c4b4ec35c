//! The maintenance window: a daily span of minutes, UTC, in which no scheduled run starts.

use std::fmt;

const DAY_MIN: u64 = 24 * 60;
const MINUTE_MS: u64 = 60_000;

/// From `start` up to, but not including, `end`; across midnight when `end` is the smaller one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    start_min: u64,
    end_min: u64,
}

/// Why a pair of texts is not a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowError {
    /// The first is not `HH:MM`.
    Start,
    /// The second is not `HH:MM`.
    End,
    /// Both are the same: an empty window, or one that never ends.
    Same,
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "the window's start is a time in UTC such as \"02:00\"",
            Self::End => "the window's end is a time in UTC such as \"04:30\"",
            Self::Same => "the window's start and end are the same time",
        })
    }
}

impl std::error::Error for WindowError {}

impl Window {
    /// Reads two times of the form `HH:MM`.
    ///
    /// # Errors
    /// See [`WindowError`].
    pub fn parse(start: &str, end: &str) -> Result<Self, WindowError> {
        let start_min = minutes(start).ok_or(WindowError::Start)?;
        let end_min = minutes(end).ok_or(WindowError::End)?;
        if start_min == end_min {
            return Err(WindowError::Same);
        }
        Ok(Self { start_min, end_min })
    }

    /// If `now_ms` lies in the window, when it ends.
    pub fn ends_at(&self, now_ms: u64) -> Option<u64> {
        let today = now_ms / MINUTE_MS / DAY_MIN * DAY_MIN;
        let now = now_ms / MINUTE_MS - today;
        let (inside, end) = if self.start_min < self.end_min {
            ((self.start_min..self.end_min).contains(&now), self.end_min)
        } else if now >= self.start_min {
            (true, self.end_min + DAY_MIN)
        } else {
            (now < self.end_min, self.end_min)
        };
        inside.then(|| (today + end) * MINUTE_MS)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start_min, end_min } = self;
        let (hours, rest) = (start_min / 60, start_min % 60);
        write!(f, "{hours:02}:{rest:02}–{:02}:{:02} UTC", end_min / 60, end_min % 60)
    }
}

/// Minutes since midnight of `HH:MM`.
fn minutes(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |part: &str| -> Option<u64> {
        (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * MINUTE_MS;
    const DAY: u64 = 24 * HOUR;

    #[test]
    fn a_window_within_a_day() {
        let window = Window::parse("02:00", "04:30").unwrap();
        let day = 20_000 * DAY;
        assert_eq!(window.ends_at(day + 2 * HOUR - 1), None);
        assert_eq!(window.ends_at(day + 2 * HOUR), Some(day + 4 * HOUR + 30 * MINUTE_MS));
        assert_eq!(window.ends_at(day + 4 * HOUR + 30 * MINUTE_MS), None);
        assert_eq!(window.to_string(), "02:00–04:30 UTC");
    }

    #[test]
    fn a_window_across_midnight() {
        let window = Window::parse("23:00", "01:00").unwrap();
        let day = 20_000 * DAY;
        assert_eq!(window.ends_at(day + 23 * HOUR), Some(day + 25 * HOUR));
        assert_eq!(window.ends_at(day + 30 * MINUTE_MS), Some(day + HOUR));
        assert_eq!(window.ends_at(day + HOUR), None);
        assert_eq!(window.ends_at(day + 12 * HOUR), None);
    }

    #[test]
    fn what_is_not_a_window() {
        assert_eq!(Window::parse("2:00", "04:00"), Err(WindowError::Start));
        assert_eq!(Window::parse("02:00", "24:00"), Err(WindowError::End));
        assert_eq!(Window::parse("02:00", "+1:00"), Err(WindowError::End));
        assert_eq!(Window::parse("02:00", "02:00"), Err(WindowError::Same));
    }
}
