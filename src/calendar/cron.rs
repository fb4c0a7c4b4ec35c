//! One cron line: five fields, UTC, or one of the usual `@daily` words.

use std::fmt;
use std::sync::Arc;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

/// Longest cron line that is read.
const TEXT_MAX: usize = 200;

/// Where the search for a first date starts when a line is read: a leap year is within reach.
const EPOCH_OF_CHECK_MS: u64 = 1_767_225_600_000; // 2026-01-01T00:00:00Z

/// A cron line that has at least one date.
#[derive(Clone)]
pub struct CronLine {
    text: String,
    cron: Arc<Cron>,
}

/// Why a line is not a cron line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CronError {
    /// Not five fields.
    Fields(usize),
    /// A field that cannot be read; the parser's words.
    Syntax(String),
    /// A line without any date, such as 30 February.
    NoDate,
    /// Longer than any real line.
    TooLong,
}

impl fmt::Display for CronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields(count) => write!(
                f,
                "a cron line has five fields (minute hour day month weekday), not {count}: \"0 3 * * *\" is 03:00 UTC every day"
            ),
            Self::Syntax(what) => write!(f, "not a cron line: {what}"),
            Self::NoDate => f.write_str("this cron line matches no date at all"),
            Self::TooLong => write!(f, "a cron line of more than {TEXT_MAX} characters"),
        }
    }
}

impl std::error::Error for CronError {}

impl CronLine {
    /// Reads a line: five fields, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    ///
    /// # Errors
    /// See [`CronError`].
    pub fn parse(text: &str) -> Result<Self, CronError> {
        if text.len() > TEXT_MAX {
            return Err(CronError::TooLong);
        }
        let text = match text.split_whitespace().collect::<Vec<_>>().join(" ").as_str() {
            "@hourly" => "0 * * * *".to_owned(),
            "@daily" | "@midnight" => "0 0 * * *".to_owned(),
            "@weekly" => "0 0 * * 0".to_owned(),
            "@monthly" => "0 0 1 * *".to_owned(),
            "@yearly" | "@annually" => "0 0 1 1 *".to_owned(),
            fields => fields.to_owned(),
        };
        let fields = text.split(' ').filter(|field| !field.is_empty()).count();
        if fields != 5 {
            return Err(CronError::Fields(fields));
        }
        let cron = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build()
            .parse(&text)
            .map_err(|error| CronError::Syntax(plain(&error.to_string())))?;
        let line = Self { text, cron: Arc::new(cron) };
        line.next_after(EPOCH_OF_CHECK_MS).map(|_| ()).ok_or(CronError::NoDate)?;
        Ok(line)
    }

    /// The line with single spaces; aliases are written out.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first date after `after_ms`.
    pub fn next_after(&self, after_ms: u64) -> Option<u64> {
        self.cron.find_next_occurrence(&civil(after_ms)?, false).ok().and_then(unix_ms)
    }

    /// The last date up to and including `until_ms`.
    pub fn latest_until(&self, until_ms: u64) -> Option<u64> {
        self.cron.find_previous_occurrence(&civil(until_ms)?, true).ok().and_then(unix_ms)
    }

    /// How many dates lie between the two, both dates themselves: the first counts, the last does not.
    pub fn count(&self, first_ms: u64, last_ms: u64, max: u32) -> u32 {
        let mut at = first_ms;
        let mut count = 0;
        while at < last_ms && count < max {
            count += 1;
            match self.next_after(at) {
                Some(next) => at = next,
                None => break,
            }
        }
        count
    }
}

impl fmt::Debug for CronLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CronLine").field(&self.text).finish()
    }
}

impl PartialEq for CronLine {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// The parser's message in our style: lower case, no full stop, without its own prefix.
fn plain(message: &str) -> String {
    let message = message.trim_end_matches('.');
    let message = message.split_once(": ").map_or(message, |(_, rest)| rest);
    let mut letters = message.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn civil(ms: u64) -> Option<DateTime> {
    // Whole seconds: a date is a minute, and the search would carry the rest along.
    let seconds = i64::try_from(ms / 1000).ok()?;
    Some(Offset::UTC.to_datetime(Timestamp::from_second(seconds).ok()?))
}

fn unix_ms(at: DateTime) -> Option<u64> {
    let timestamp = at.to_zoned(TimeZone::UTC).ok()?.timestamp();
    u64::try_from(timestamp.as_millisecond()).ok()
}
