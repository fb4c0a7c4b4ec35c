//! The end of what a tool said on stderr, fit for an error message.
//!
//! Bounded, one line, without control characters and without the passwords the tool was given.

use crate::secret::Secret;

/// What is kept.
const KEPT_BYTES: usize = 8 * 1024;
/// What an error message shows of it.
const SHOWN_BYTES: usize = 800;
/// A shorter secret is not searched for: it would blot out ordinary text and show itself by that.
const SHORTEST_SECRET: usize = 4;

/// The last [`KEPT_BYTES`] of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    /// Takes the next bytes of the stream.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        if self.bytes.len() > KEPT_BYTES {
            self.bytes.drain(..self.bytes.len() - KEPT_BYTES);
            self.cut = true;
        }
    }

    /// What was kept, for text that was given no secrets.
    pub(super) fn recent(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        if self.cut { format!("… {text}") } else { text.into_owned() }
    }

    /// The text. If something was cut off, the first line goes too: it may begin in the middle of a secret.
    pub(super) fn text(&self, secrets: &[Secret]) -> Said {
        let whole = String::from_utf8_lossy(&self.bytes);
        let said =
            if self.cut { whole.split_once('\n').map_or("", |(_, rest)| rest) } else { &whole };
        let mut shown = said.to_owned();
        for secret in secrets {
            if secret.expose().len() >= SHORTEST_SECRET {
                shown = shown.replace(secret.expose(), "***");
            }
        }
        Said { said: Secret::new(said), shown }
    }
}

/// What a tool said. What is shown of it has the secrets blotted out; what it means is read from the whole,
/// for a password may well be an ordinary word such as `server`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    said: Secret,
    shown: String,
}

impl Said {
    /// The lines that say something, without control characters.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.shown
            .lines()
            .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
    }

    /// Whether any of `patterns` occurs in it.
    pub(super) fn has_any(&self, patterns: &[&str]) -> bool {
        patterns.iter().any(|pattern| self.said.expose().contains(pattern))
    }

    /// What stands between `before` and the next of `ends`.
    pub(super) fn after(&self, before: &str, ends: &[char]) -> Option<&str> {
        let rest = self.said.expose().split_once(before)?.1;
        rest.split(ends).next()
    }

    /// One line for an error message: the beginning and the end of it if it is long.
    pub(super) fn brief(&self) -> String {
        let line = self.lines().collect::<Vec<_>>().join("; ");
        if line.len() <= SHOWN_BYTES {
            return line;
        }
        let half = SHOWN_BYTES / 2;
        let (head, tail) =
            (line.floor_char_boundary(half), line.ceil_char_boundary(line.len() - half));
        format!("{} … {}", &line[..head], &line[tail..])
    }
}

impl From<&str> for Said {
    fn from(text: &str) -> Self {
        Self { said: Secret::new(text), shown: text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_clean_line() {
        let mut tail = Tail::default();
        tail.push(b"pg_dump: error: \x1b[31mno\x07\r\n\n  detail: \xff\n");
        assert_eq!(tail.text(&[]).brief(), "pg_dump: error: [31mno; detail: \u{fffd}");
    }

    #[test]
    fn secrets_are_blotted_out_even_where_the_tail_was_cut() {
        let secret = Secret::new("s3cret-password");
        let mut tail = Tail::default();
        tail.push(b"login s3cret-password failed\n");
        assert_eq!(tail.text(std::slice::from_ref(&secret)).brief(), "login *** failed");
        for extra in 0..40 {
            let mut tail = Tail::default();
            tail.push(b"login s3cret-password failed\n");
            tail.push(&vec![b'x'; KEPT_BYTES - extra]);
            let said = tail.text(std::slice::from_ref(&secret)).brief();
            assert!(!said.contains("password"), "{said}");
        }
    }

    #[test]
    fn a_password_that_is_an_ordinary_word_does_not_hide_the_meaning() {
        let mut tail = Tail::default();
        tail.push(b"server closed the connection\n");
        let said = tail.text(&[Secret::new("server")]);
        assert_eq!(said.brief(), "*** closed the connection");
        assert!(said.has_any(&["server closed"]));
        assert!(!format!("{said:?}").contains("server"));
    }

    #[test]
    fn bounded() {
        let mut tail = Tail::default();
        for _ in 0..10_000 {
            tail.push("wörter und mehr Wörter\n".as_bytes());
        }
        assert!(tail.bytes.len() <= KEPT_BYTES);
        let said = tail.text(&[]).brief();
        assert!(said.len() <= SHOWN_BYTES + 16 && said.contains(" … "), "{said}");
    }
}
