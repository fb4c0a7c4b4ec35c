//! The mail itself (RFC 5322, MIME): headers that nothing can be injected into, and a body that every server takes.
//! Pure.
//!
//! Text that is not ASCII becomes base64, in headers as encoded words (RFC 2047); lines end in CRLF and are never
//! longer than 78 bytes, but in a plain body, where they may have 900.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::event::Message;

/// Bytes of text in one encoded word: 56 of base64 and 12 around them.
const WORD_BYTES: usize = 42;
/// Base64 of a body: 76 characters a line.
const BODY_BYTES: usize = 57;
/// Longest line of a plain body; SMTP ends at 998.
const PLAIN_MAX: usize = 900;
/// A header is folded before this column.
const FOLD: usize = 76;

/// The whole mail, not yet dot-stuffed.
pub(super) fn compose(message: &Message, from: &str, to: &[String]) -> String {
    let mut mail = String::with_capacity(1024);
    let domain = from.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
    for (name, value) in [
        ("Date", date(message.at_ms)),
        ("From", from.to_owned()),
        ("To", to.join(", ")),
        ("Subject", encoded(&message.title())),
        ("Message-ID", format!("<{}.backupy@{domain}>", message.id)),
        ("Auto-Submitted", "auto-generated".to_owned()),
        ("MIME-Version", "1.0".to_owned()),
        ("Content-Type", "text/plain; charset=utf-8".to_owned()),
    ] {
        fold(&mut mail, name, &value);
    }
    let body = format!("{}\n\n{}\n\n{}\n", message.title(), message.text(), message.time());
    if body.is_ascii() && body.lines().all(|line| line.len() <= PLAIN_MAX) {
        mail.push_str("Content-Transfer-Encoding: 7bit\r\n\r\n");
        for line in body.lines() {
            mail.push_str(line);
            mail.push_str("\r\n");
        }
    } else {
        mail.push_str("Content-Transfer-Encoding: base64\r\n\r\n");
        for part in body.replace('\n', "\r\n").as_bytes().chunks(BODY_BYTES) {
            mail.push_str(&STANDARD.encode(part));
            mail.push_str("\r\n");
        }
    }
    mail
}

/// As SMTP sends it: a dot at the begin of a line is doubled, and a line with a dot alone ends it.
pub(super) fn stuffed(mail: &str) -> String {
    let mut out = String::with_capacity(mail.len() + 16);
    for line in mail.split_terminator("\r\n") {
        if line.starts_with('.') {
            out.push('.');
        }
        out.push_str(line);
        out.push_str("\r\n");
    }
    out.push_str(".\r\n");
    out
}

/// Whether a text is an address that can stand in a header and in an envelope as it is.
pub(in crate::control) fn is_address(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let atom = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let host = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    (1..=64).contains(&local.len())
        && (1..=253).contains(&domain.len())
        && local.chars().all(atom)
        && domain.chars().all(host)
        && !domain.starts_with(['-', '.'])
        && !domain.ends_with('.')
}

/// One header, folded at spaces. Control characters become spaces: no value begins another header.
fn fold(mail: &mut String, name: &str, value: &str) {
    mail.push_str(name);
    mail.push(':');
    let mut column = name.len() + 1;
    let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    for word in value.split(' ').filter(|word| !word.is_empty()) {
        if column + 1 + word.len() > FOLD && column > name.len() + 1 {
            mail.push_str("\r\n");
            column = 0;
        }
        mail.push(' ');
        mail.push_str(word);
        column += 1 + word.len();
    }
    mail.push_str("\r\n");
}

/// A text for a header: as it is, or as encoded words. Words that are too long for a line, or look like encoded ones,
/// are encoded too.
fn encoded(text: &str) -> String {
    let plain = |word: &str| word.len() < FOLD && !word.contains("=?");
    if text.chars().all(|c| (' '..='~').contains(&c)) && text.split(' ').all(plain) {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        // Never in the middle of a character.
        let mut end = rest.len().min(WORD_BYTES);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (word, tail) = rest.split_at(end);
        let space = if out.is_empty() { "" } else { " " };
        // Writing to a text cannot fail.
        let _ = write!(out, "{space}=?utf-8?B?{}?=", STANDARD.encode(word));
        rest = tail;
    }
    out
}

/// `Tue, 14 Nov 2023 22:13:20 +0000`.
fn date(at_ms: u64) -> String {
    let seconds = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    jiff::fmt::rfc2822::to_string(&time.to_zoned(jiff::tz::TimeZone::UTC)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::super::event::Failure;
    use super::*;

    fn message(name: &str, error: &str) -> Message {
        let what = Failure {
            name: name.into(),
            run_id: "r1".into(),
            status: "failed".into(),
            error: error.into(),
        };
        let (id, host) = ("018b-1".into(), "web1".into());
        Message { id, host, at_ms: 1_700_000_000_000, what, only: Vec::new() }
    }

    fn mail(name: &str, error: &str) -> String {
        compose(&message(name, error), "backupy@example.org", &["ops@example.org".into()])
    }

    /// What a reader makes of the encoded words of a header.
    fn decoded(header: &str) -> String {
        let words = header.split_whitespace().map(|word| {
            let base64 = word.strip_prefix("=?utf-8?B?").unwrap().strip_suffix("?=").unwrap();
            assert!(word.len() <= 75, "{word}");
            String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap()
        });
        words.collect()
    }

    #[test]
    fn a_plain_mail() {
        assert_eq!(
            mail("shop", "no space left"),
            "Date: Tue, 14 Nov 2023 22:13:20 +0000\r\nFrom: backupy@example.org\r\n\
             To: ops@example.org\r\nSubject: backup shop failed on web1\r\n\
             Message-ID: <018b-1.backupy@example.org>\r\nAuto-Submitted: auto-generated\r\n\
             MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Transfer-Encoding: 7bit\r\n\r\nbackup shop failed on web1\r\n\r\n\
             no space left (run r1)\r\n\r\n2023-11-14T22:13:20Z\r\n"
        );
    }

    #[test]
    fn nothing_gets_into_the_headers() {
        let mail = mail("x\r\nBcc: all@example.org\r\n\r\nhello", "a\r\n.\r\nMAIL FROM:<evil@x>");
        let (headers, body) = mail.split_once("\r\n\r\n").unwrap();
        assert!(!headers.lines().any(|line| line.starts_with("Bcc")), "{headers}");
        assert!(!body.contains("\r\n.\r\n") && !body.contains("\nMAIL"), "{body}");
        let mut folded = String::new();
        fold(&mut folded, "Subject", "a\r\nBcc: b\u{0}\u{85}c");
        assert_eq!(folded, "Subject: a Bcc: b c\r\n");
    }

    #[test]
    fn what_is_not_ascii_is_encoded_and_every_line_is_short() {
        let name = "Bäckerei-ß-".repeat(20);
        let mail = mail(&name, &"größer ".repeat(300));
        assert!(mail.is_ascii());
        assert!(mail.lines().all(|line| line.len() <= 78), "{mail}");
        let (headers, body) = mail.split_once("\r\n\r\n").unwrap();
        let subject = headers.split_once("Subject:").unwrap().1.split_once("Message-ID").unwrap().0;
        assert_eq!(decoded(subject), format!("backup {name} failed on web1"));
        let body = STANDARD.decode(body.replace("\r\n", "")).unwrap();
        assert!(String::from_utf8(body).unwrap().contains("größer größer"));
    }

    #[test]
    fn long_words_and_many_recipients() {
        let word = "x".repeat(200);
        let subject = encoded(&word);
        assert_eq!(decoded(&subject), word, "a word without a space cannot be folded");
        assert_eq!(decoded(&encoded("=?utf-8?Q?x?=")), "=?utf-8?Q?x?=");
        let to: Vec<String> = (0..30).map(|n| format!("someone{n}@example.org")).collect();
        let mail = compose(&message("shop", "x"), "b@example.org", &to);
        let headers = mail.split_once("\r\n\r\n").unwrap().0;
        assert!(headers.lines().all(|line| line.len() <= 78), "{headers}");
        let unfolded = headers.replace("\r\n ", " ");
        assert!(unfolded.contains(&format!("To: {}\r\n", to.join(", "))), "{unfolded}");
        assert!(mail.lines().all(|line| line.len() <= PLAIN_MAX));
    }

    #[test]
    fn dots_are_doubled() {
        assert_eq!(stuffed("a\r\n.\r\n..b\r\nc."), "a\r\n..\r\n...b\r\nc.\r\n.\r\n");
        assert_eq!(stuffed(""), ".\r\n");
    }

    #[test]
    fn addresses() {
        for good in ["a@b", "ops+db@example.org", "x.y@a-b.example"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "@b",
            "a@",
            "a b@c",
            "a@b c",
            "a@b>",
            "<a@b>",
            "a@b\r\nRCPT",
            "ä@b",
            "a@-b",
            "Ops <a@b>",
            "a@b,c@d",
            "a@b.",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
