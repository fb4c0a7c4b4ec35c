//! What happened, in the words that people read. Pure: no channel, no clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::redact::clean;

/// Something that people are told of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The backup's or the check's name (`BACKUPY_NAME`).
    pub name: String,
    /// The run, empty if there was none (`BACKUPY_RUN_ID`).
    pub run_id: String,
    /// The word of a [`Kind`] (`BACKUPY_STATUS`).
    pub status: String,
    /// What went wrong (`BACKUPY_ERROR`); of good news, what is good.
    pub error: String,
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A run begins. Only pings hear of it.
    Started,
    /// A run is stored. Only pings hear of it.
    Succeeded,
    /// A run failed.
    Failed,
    /// The first good run after something that was told.
    Recovered,
    /// A run is behind its time; it may still end well.
    Late,
    /// A run was due and could not even begin.
    Missed,
    /// A good run, but far smaller than its predecessors.
    Shrunk,
    /// A check fails.
    CheckFailed,
    /// A check has had no result for a while.
    CheckSilent,
    /// It works again.
    CheckRecovered,
    /// `up` itself cannot start.
    Down,
    /// It runs again.
    Up,
    /// Somebody tries the channels.
    Test,
    /// A word that this version does not know, of a record that another one left.
    Other,
}

impl Kind {
    const WORDS: [(&'static str, Self); 13] = [
        ("started", Self::Started),
        ("succeeded", Self::Succeeded),
        ("failed", Self::Failed),
        ("recovered", Self::Recovered),
        ("late", Self::Late),
        ("missed", Self::Missed),
        ("shrunk", Self::Shrunk),
        ("check-failed", Self::CheckFailed),
        ("check-silent", Self::CheckSilent),
        ("check-recovered", Self::CheckRecovered),
        ("down", Self::Down),
        ("up", Self::Up),
        ("test", Self::Test),
    ];

    /// Of a status word.
    pub fn of(status: &str) -> Self {
        Self::WORDS.iter().find(|(word, _)| *word == status).map_or(Self::Other, |(_, kind)| *kind)
    }

    /// The topic that a channel may leave out; `None` for what only pings hear, and for tests.
    pub fn topic(self) -> Option<Topic> {
        match self {
            Self::Started | Self::Succeeded | Self::Test => None,
            Self::Failed | Self::CheckFailed | Self::CheckSilent | Self::Down | Self::Other => {
                Some(Topic::Failure)
            }
            Self::Recovered | Self::CheckRecovered | Self::Up => Some(Topic::Recovery),
            Self::Late | Self::Missed => Some(Topic::Missed),
            Self::Shrunk => Some(Topic::Shrunk),
        }
    }
}

/// What a channel's `on` chooses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// `failed`, `check-failed`, `check-silent`, `down`.
    Failure,
    /// `recovered`, `check-recovered`, `up`.
    Recovery,
    /// `late`, `missed`.
    Missed,
    /// `shrunk`.
    Shrunk,
}

impl Topic {
    /// All of them: what a channel without `on` gets.
    pub const ALL: [Self; 4] = [Self::Failure, Self::Recovery, Self::Missed, Self::Shrunk];

    /// Its word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Recovery => "recovery",
            Self::Missed => "missed",
            Self::Shrunk => "shrunk",
        }
    }

    /// The topic of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.word() == word)
    }
}

impl Kind {
    /// Whether it still matters after a restart.
    pub fn lasts(self) -> bool {
        !matches!(self, Self::Started | Self::Test)
    }

    /// For how long it is worth another try; `None` where the pauses of the queue are enough.
    pub fn tries_for(self) -> Option<Duration> {
        const HOUR: Duration = Duration::from_secs(3600);
        match self {
            // Said much later, it would pass for a run that nobody made.
            Self::Succeeded => Some(HOUR),
            // What took the backup may have taken the way to people too, for hours.
            _ if self.lasts() => Some(24 * HOUR),
            _ => None,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A message on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The same in every try, so that a receiver may know a repeat; sorts by time.
    pub id: String,
    /// When it happened, Unix milliseconds.
    pub at_ms: u64,
    /// This machine's name.
    pub host: String,
    /// What happened.
    pub what: Failure,
    /// Of several recipients those who still have to get it; empty = all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
}

impl Message {
    /// What kind of thing happened.
    pub fn kind(&self) -> Kind {
        Kind::of(&self.what.status)
    }

    /// Whether it would mislead now.
    pub fn is_old_news(&self, now_ms: u64) -> bool {
        let age = Duration::from_millis(now_ms.saturating_sub(self.at_ms));
        self.kind() == Kind::Succeeded && self.kind().tries_for().is_some_and(|long| age >= long)
    }

    /// A line that says it all: the subject of a mail.
    pub fn title(&self) -> String {
        let (name, host) = (clean(&self.what.name), clean(&self.host));
        let what = match self.kind() {
            Kind::Started => format!("backup {name} begins"),
            Kind::Succeeded => format!("backup {name} is stored"),
            Kind::Failed => format!("backup {name} failed"),
            Kind::Recovered => format!("backup {name} works again"),
            Kind::Late => format!("backup {name} is late"),
            Kind::Missed => format!("backup {name} did not start"),
            Kind::Shrunk => format!("backup {name} is far smaller than before"),
            Kind::CheckFailed => format!("check {name} fails"),
            Kind::CheckSilent => format!("check {name} is silent"),
            Kind::CheckRecovered => format!("check {name} works again"),
            Kind::Down => "backupy cannot start".to_owned(),
            Kind::Up => "backupy runs again".to_owned(),
            Kind::Test => "test message of backupy".to_owned(),
            Kind::Other => format!("{name}: {}", clean(&self.what.status)),
        };
        if host.is_empty() { what } else { format!("{what} on {host}") }
    }

    /// The error, or what is good; one line that is never empty.
    pub fn text(&self) -> String {
        let error = clean(&self.what.error);
        let said = match self.kind() {
            _ if !error.is_empty() => error,
            Kind::CheckRecovered => "its last result is good".to_owned(),
            Kind::Up => "what kept it from starting is gone".to_owned(),
            Kind::Test => "nothing is wrong; somebody ran `backupy notify-test`".to_owned(),
            _ => "no reason was given".to_owned(),
        };
        match self.what.run_id.as_str() {
            "" => said,
            run_id => format!("{said} (run {})", clean(run_id)),
        }
    }

    /// When it happened, RFC 3339, UTC.
    pub fn time(&self) -> String {
        let seconds = i64::try_from(self.at_ms / 1000).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |t| t.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_known_again_and_has_a_title() {
        for (word, kind) in Kind::WORDS {
            assert_eq!(Kind::of(word), kind);
            let what = Failure { name: "shop".into(), status: word.into(), ..Failure::default() };
            let message = Message { host: "web1".into(), what, ..Message::default() };
            assert!(message.title().ends_with(" on web1"), "{}", message.title());
            assert!(!message.text().is_empty());
        }
        assert_eq!(Kind::of("colour").topic(), Some(Topic::Failure), "better told than lost");
        for topic in Topic::ALL {
            assert_eq!(Topic::parse(topic.word()), Some(topic));
        }
    }

    #[test]
    fn only_a_success_gets_old() {
        let of = |status: &str| Message {
            at_ms: 5,
            what: Failure { status: status.into(), ..Failure::default() },
            ..Message::default()
        };
        assert!(of("succeeded").is_old_news(5 + 3_600_000));
        assert!(!of("succeeded").is_old_news(4 + 3_600_000));
        assert!(!of("failed").is_old_news(u64::MAX));
    }

    #[test]
    fn no_secret_and_no_second_line() {
        let what = Failure {
            name: "sh\r\nop".into(),
            run_id: "r1".into(),
            status: "failed".into(),
            error: "cannot log in with password=hunter2\r\nBcc: all@example.org".into(),
        };
        let message = Message { at_ms: 1_700_000_000_999, what, ..Message::default() };
        assert_eq!(message.title(), "backup sh  op failed");
        assert_eq!(
            message.text(),
            "cannot log in with password=***  Bcc: all@example.org (run r1)"
        );
        assert_eq!(message.time(), "2023-11-14T22:13:20Z");
    }
}
