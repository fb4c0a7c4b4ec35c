//! A way to people: what the file says about it, and which messages it wants.

use std::path::PathBuf;
use std::time::Duration;

use super::command::{self, OnFailure};
use super::email::{self, Email};
use super::event::{Kind, Message, Topic};
use super::ping::{self, Pings};
use super::telegram::{self, Telegram};
use super::webhook::{self, Webhook};
use super::{DeliverError, Tools, http};
use crate::secret::Secret;

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its name: in the log, in `status` and for `notify-test`.
    pub name: String,
    /// What it wants to hear of; the command and pings have rules of their own.
    pub topics: Vec<Topic>,
    /// A trust root beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// How it gets there.
    pub way: Way,
}

/// The kinds of channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The command of `on_failure`, and how long it may take.
    Command(OnFailure, Duration),
    /// JSON by POST.
    Webhook(Webhook),
    /// A mail.
    Email(Email),
    /// A bot.
    Telegram(Telegram),
    /// All pings of all backups.
    Pings(Pings),
}

impl Way {
    /// Its word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Command(..) => "command",
            Self::Webhook(_) => "webhook",
            Self::Email(_) => "email",
            Self::Telegram(_) => "telegram",
            Self::Pings(_) => "ping",
        }
    }

    /// Whether messages for the one may go to the other: both lead to the same people.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Command(..), Self::Command(..)) | (Self::Pings(_), Self::Pings(_)) => true,
            (Self::Webhook(one), Self::Webhook(other)) => one.url == other.url,
            (Self::Email(one), Self::Email(other)) => {
                (&one.to, &one.host, one.port) == (&other.to, &other.host, other.port)
            }
            (Self::Telegram(one), Self::Telegram(other)) => {
                (&one.chat, &one.api) == (&other.chat, &other.api)
            }
            _ => false,
        }
    }

    /// The references that it follows.
    pub fn secrets(&self) -> Vec<&Secret> {
        match self {
            Self::Command(..) => Vec::new(),
            Self::Webhook(hook) => {
                hook.headers.iter().map(|(_, value)| value).chain([&hook.url]).collect()
            }
            Self::Email(email) => vec![&email.password],
            Self::Telegram(bot) => vec![&bot.token],
            Self::Pings(urls) => urls.values().collect(),
        }
    }

    /// Where it goes, for people; no secret.
    pub fn place(&self) -> String {
        let host = |url: &Secret| {
            http::check_url(url.expose(), true).unwrap_or_else(|_| "a URL elsewhere".to_owned())
        };
        match self {
            Self::Command(..) => "a command".to_owned(),
            Self::Webhook(hook) => format!("webhook at {}", host(&hook.url)),
            Self::Email(email) => {
                format!("mail to {} through {}", email.to.join(", "), email.host)
            }
            Self::Telegram(bot) => format!("Telegram chat {}", bot.chat),
            Self::Pings(urls) => format!("pings of {} backups", urls.len()),
        }
    }
}

impl Channel {
    /// Whether it wants a message.
    pub fn wants(&self, message: &Message) -> bool {
        let kind = message.kind();
        match &self.way {
            // It is called `on_failure`: no good news but a check's, of which it always heard.
            Way::Command(..) => {
                !matches!(kind, Kind::Started | Kind::Succeeded | Kind::Recovered | Kind::Up)
            }
            Way::Pings(urls) => {
                let wanted =
                    [Kind::Started, Kind::Succeeded, Kind::Failed, Kind::Missed, Kind::Test];
                wanted.contains(&kind) && urls.contains_key(&message.what.name)
            }
            Way::Webhook(_) | Way::Email(_) | Way::Telegram(_) => match kind.topic() {
                Some(topic) => self.topics.contains(&topic),
                None => kind == Kind::Test,
            },
        }
    }

    /// Whether its messages wait over a restart. A command is not run twice.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(self.way, Way::Command(..))
    }

    /// One try; at most about a minute.
    ///
    /// # Errors
    /// When the message does not arrive.
    pub fn deliver(&self, message: &Message, tools: &Tools<'_>) -> Result<(), DeliverError> {
        let ca_file = self.ca_file.as_deref();
        match &self.way {
            Way::Command(hook, timeout) => {
                command::deliver(hook, &message.what, tools.stop, *timeout)
            }
            Way::Webhook(hook) => webhook::deliver(hook, ca_file, message, tools),
            Way::Email(email) => email::deliver(email, ca_file, message, tools),
            Way::Telegram(bot) => telegram::deliver(bot, ca_file, message, tools),
            Way::Pings(urls) => ping::deliver(urls, message, tools),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Failure;
    use super::*;

    fn wanted(channel: &Channel) -> String {
        let words = [
            "started",
            "succeeded",
            "failed",
            "recovered",
            "late",
            "missed",
            "shrunk",
            "check-failed",
            "check-recovered",
            "down",
            "up",
            "test",
        ];
        let wants = |word: &&str| {
            let what =
                Failure { name: "shop".into(), status: (*word).into(), ..Failure::default() };
            channel.wants(&Message { what, ..Message::default() })
        };
        words.into_iter().filter(wants).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn who_hears_what() {
        let channel = |topics: &[Topic], way| Channel {
            name: "x".into(),
            topics: topics.to_vec(),
            ca_file: None,
            way,
        };
        let bot = Telegram {
            token: Secret::new("1:a"),
            chat: "1".into(),
            api: telegram::API.into(),
            insecure_http: false,
        };
        let bot = Way::Telegram(bot);
        assert_eq!(
            wanted(&channel(&Topic::ALL, bot.clone())),
            "failed recovered late missed shrunk check-failed check-recovered down up test"
        );
        assert_eq!(wanted(&channel(&[Topic::Missed], bot)), "late missed test");
        let command = Way::Command(OnFailure::default(), Duration::ZERO);
        assert_eq!(
            wanted(&channel(&[], command)),
            "failed late missed shrunk check-failed check-recovered down test"
        );
        let pings =
            |name: &str| Way::Pings(Pings::from([(name.into(), Secret::new("https://h/u"))]));
        assert_eq!(wanted(&channel(&[], pings("shop"))), "started succeeded failed missed test");
        assert_eq!(wanted(&channel(&[], pings("other"))), "");
    }
}
