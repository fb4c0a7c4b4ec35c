//! The conversation with the server, from the first word to the announcement of the RDB.
//!
//! ```text
//! PING → +PONG or -NOAUTH       it is Redis; no password is sent to anything else
//! AUTH [user] password
//! PING → +PONG                  not loading, not full, logged in
//! INFO server, INFO memory      version and size; refused without consequences
//! REPLCONF version, rdb-only 1, the RDB as it is; no stream behind it; both framings;
//!          capa eof             refusals do not matter
//! PSYNC ? -1 → +FULLRESYNC …    or SYNC, where that is not known or not permitted
//! … \n \n \n                    while the server forks
//! $<length> or $EOF:<mark>
//! ```

use std::time::Duration;

use zeroize::Zeroizing;

use super::fault::RedisFault;
use super::framing::Framing;
use super::place::Settings;
use super::rdb;
use super::socket::{Line, Stream};
use crate::drivers::{Context, DriverError, secrets};
use crate::secret::Secret;

/// A server answers simple questions within this, even a busy one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Empty lines, one a second, while the server makes the RDB: a day of it.
const KEEPALIVES_MAX: u32 = 86_400;

/// Valkey 9 writes an older format for whoever does not say how new it is, and closes the connection where the
/// data does not fit into that. Whatever it writes for itself is right here.
const ANY_VERSION: &str = "255.255.255";

/// An answer; what `INFO` says is the only text that is looked at.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Good(String),
    /// Without the `-`.
    Refusal(String),
}

/// What the server says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `Redis 7.0.15`, `Valkey 8.1.0`.
    pub(super) version: Option<String>,
    /// Memory that the data takes; its RDB is smaller, as a rule.
    pub(super) data_bytes: Option<u64>,
    /// One node of many.
    pub(super) cluster: bool,
}

/// A server that lets us in.
pub(super) struct Session<'a> {
    line: Line<'a>,
    secrets: Vec<Secret>,
    stuck: Duration,
    cx: &'a Context<'a>,
}

impl<'a> Session<'a> {
    /// Connects and logs in; with it what the operator should know.
    ///
    /// # Errors
    /// Whatever keeps us out.
    pub(super) fn open(
        settings: &Settings,
        cx: &'a Context<'a>,
    ) -> Result<(Self, Vec<String>), DriverError> {
        // First of all, so that a reference that leads nowhere makes no connection.
        let password = secrets::resolve(&settings.password_ref, cx.policy)?;
        let stream = Stream::connect(settings, cx)?;
        let patience = cx.limits.stuck_timeout.min(ANSWER_TIMEOUT);
        let line = Line::new(stream, patience, cx.cancel);
        let stuck = cx.limits.stuck_timeout;
        let mut session = Self { line, secrets: vec![password.clone()], stuck, cx };
        let warnings = session.log_in(&settings.user, &password)?;
        Ok((session, warnings))
    }

    fn log_in(&mut self, user: &str, password: &Secret) -> Result<Vec<String>, DriverError> {
        let mut warnings = Vec::new();
        let hello = self.ask(&["PING"])?;
        if user.is_empty() && password.is_empty() {
            return self.admitted(hello).map(|()| warnings);
        }
        if let Answer::Refusal(line) = &hello {
            let fault = self.fault(line);
            // These are about the connection, not about who makes it.
            if matches!(fault, RedisFault::Busy(_) | RedisFault::Protected(_)) {
                return Err(fault.into());
            }
        }
        let answer = match user {
            "" => self.ask(&["AUTH", password.expose()])?,
            user => self.ask(&["AUTH", user, password.expose()])?,
        };
        match answer {
            Answer::Good(_) => {}
            Answer::Refusal(line) if user.is_empty() && knows_no_password(&line) => {
                warnings.push(
                    "a password is configured for the target, but this Redis asks for none: anybody who \
                     reaches it can read and change it"
                        .to_owned(),
                );
            }
            Answer::Refusal(line) if line.contains("wrong number of arguments") => {
                return Err(RedisFault::NoUsers.into());
            }
            Answer::Refusal(line) => return Err(self.fault(&line).into()),
        }
        let hello = self.ask(&["PING"])?;
        self.admitted(hello).map(|()| warnings)
    }

    /// Judges the answer to PING. A user that may not even do that may still replicate.
    fn admitted(&self, hello: Answer) -> Result<(), DriverError> {
        match hello {
            Answer::Good(_) => Ok(()),
            Answer::Refusal(line) => match self.fault(&line) {
                RedisFault::Permission(_) | RedisFault::NoSync(_) => Ok(()),
                fault => Err(fault.into()),
            },
        }
    }

    /// Asks for version and size.
    ///
    /// # Errors
    /// Those of the connection; a refusal only leaves the facts out.
    pub(super) fn facts(&mut self) -> Result<Facts, DriverError> {
        let mut facts = Facts::default();
        for section in ["server", "memory"] {
            if let Answer::Good(text) = self.ask(&["INFO", section])? {
                facts.read(&text);
            }
        }
        Ok(facts)
    }

    /// Asks for the RDB, and waits until it begins.
    ///
    /// # Errors
    /// Where the server does not give it.
    pub(super) fn sync(mut self) -> Result<(Framing, Line<'a>), DriverError> {
        for [name, value] in [["version", ANY_VERSION], ["rdb-only", "1"], ["capa", "eof"]] {
            self.ask(&["REPLCONF", name, value])?;
        }
        self.say(&["PSYNC", "?", "-1"])?;
        let mut keepalives = KEEPALIVES_MAX;
        let mut first = self.after_keepalives(&mut keepalives)?;
        if let Some(refusal) = first.strip_prefix('-') {
            let refused = self.fault(refusal);
            if !matches!(refused, RedisFault::NoSync(_) | RedisFault::Permission(_)) {
                return Err(refused.into());
            }
            self.say(&["SYNC"])?;
            first = self.after_keepalives(&mut keepalives)?;
            if let Some(refusal) = first.strip_prefix('-') {
                let fault = self.fault(refusal);
                let permission = matches!(refused, RedisFault::Permission(_));
                let unknown = matches!(fault, RedisFault::NoSync(_));
                return Err(if permission && unknown { refused } else { fault }.into());
            }
        } else if first.starts_with("+FULLRESYNC ") {
            first = self.after_keepalives(&mut keepalives)?;
        }
        if let Some(refusal) = first.strip_prefix('-') {
            return Err(self.fault(refusal).into());
        }
        let what = "it announces no RDB";
        let framing = Framing::parse(&first).ok_or(RedisFault::NotRedis { what })?;
        Ok((framing, self.line))
    }

    /// The next line that is not empty. Each one that is shows that the server is at work.
    fn after_keepalives(&mut self, left: &mut u32) -> Result<String, DriverError> {
        loop {
            let line = self.line.line(crate::clock::Deadline::after(self.stuck));
            let line = line.map_err(|error| match error {
                DriverError::Redis(RedisFault::Silent(_)) => RedisFault::Silent(self.stuck).into(),
                other => other,
            })?;
            if !line.is_empty() {
                return Ok(line);
            }
            *left = left
                .checked_sub(1)
                .ok_or(RedisFault::NotRedis { what: "it sends nothing but empty lines" })?;
            if let Some(why) = self.cx.cancel.why() {
                return Err(DriverError::Cancelled(why));
            }
        }
    }

    fn ask(&mut self, words: &[&str]) -> Result<Answer, DriverError> {
        self.say(words)?;
        let deadline = self.line.deadline();
        let line = self.line.line(deadline)?;
        let (kind, rest) = line.split_at_checked(1).unwrap_or_default();
        match kind {
            "+" => Ok(Answer::Good(rest.to_owned())),
            "-" => Ok(Answer::Refusal(rest.to_owned())),
            "$" => {
                let what = "its answer has no length";
                let length = rest.parse().map_err(|_| RedisFault::NotRedis { what })?;
                self.line.bulk(length, deadline).map(Answer::Good)
            }
            _ => Err(RedisFault::NotRedis { what: "it does not speak the Redis protocol" }.into()),
        }
    }

    fn say(&mut self, words: &[&str]) -> Result<(), DriverError> {
        self.line.send(&command(words))
    }

    fn fault(&self, line: &str) -> RedisFault {
        RedisFault::read(line, &self.secrets)
    }
}

/// As an array of counted strings: no word can become another command.
fn command(words: &[&str]) -> Zeroizing<Vec<u8>> {
    let room = words.iter().map(|word| word.len() + 24).sum::<usize>() + 24;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// From version 6 on, and before.
fn knows_no_password(line: &str) -> bool {
    line.contains("without any password configured") || line.contains("no password is set")
}

impl Facts {
    /// Reads one section of `INFO`.
    fn read(&mut self, text: &str) {
        let mut redis = None;
        let mut valkey = None;
        for line in text.lines() {
            match line.split_once(':') {
                Some(("redis_version", version)) => redis = rdb::named("Redis", version),
                Some(("valkey_version", version)) => valkey = rdb::named("Valkey", version),
                Some(("redis_mode" | "server_mode", mode)) => self.cluster |= mode == "cluster",
                Some(("used_memory_dataset", bytes)) => self.data_bytes = bytes.parse().ok(),
                _ => {}
            }
        }
        // Valkey also says which Redis it is like.
        self.version = valkey.or(redis).or(self.version.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        let bytes = command(&["AUTH", "", "p\r\n*1\r\nü"]);
        assert_eq!(&bytes[..], "*3\r\n$4\r\nAUTH\r\n$0\r\n\r\n$9\r\np\r\n*1\r\nü\r\n".as_bytes());
    }

    #[test]
    fn facts() {
        let mut facts = Facts::default();
        facts.read("# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\nredis_mode:standalone\r\n");
        facts.read("# Memory\r\nused_memory:1089016\r\nused_memory_dataset:195348\r\n");
        let valkey = Some("Valkey 8.1.0".to_owned());
        assert_eq!(facts, Facts { version: valkey, data_bytes: Some(195_348), cluster: false });
        let mut facts = Facts::default();
        facts.read("redis_version:\x1b[31m\r\nredis_mode:cluster\r\nused_memory_dataset:-5\r\n");
        assert_eq!(facts, Facts { version: None, data_bytes: None, cluster: true });
    }
}
