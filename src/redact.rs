//! Takes secrets out of text that people will read: logs, error messages, LogEvents, panic messages.
//!
//! A second line of defence: code does not put secrets into text in the first place. Hidden are agent
//! keys, bearer tokens, the query and the user part of URLs, and `password=`-like assignments.

use std::borrow::Cow;

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// Longest text that is kept of a message, in bytes; the rest is cut.
pub const MAX_TEXT_BYTES: usize = 4096;

/// `text` without what looks like a secret.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut result = Cow::Borrowed(text);
    for hide in [hide_keys, hide_bearer, hide_urls, hide_assignments] {
        if let Some(changed) = hide(&result) {
            result = Cow::Owned(changed);
        }
    }
    result
}

/// [`redact`], on one line, without control characters, at most [`MAX_TEXT_BYTES`] long.
pub fn clean(text: &str) -> String {
    let text = redact(text.trim());
    let mut out = String::with_capacity(text.len().min(MAX_TEXT_BYTES));
    for c in text.chars() {
        if out.len() + c.len_utf8() > MAX_TEXT_BYTES {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

/// Replaces, after each `start` that `find` yields in the rest of the text, `len` bytes by [`HIDDEN`].
fn replace_spans(text: &str, find: impl Fn(&str) -> Option<(usize, usize)>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((start, len)) = find(rest) {
        out.push_str(&rest[..start]);
        out.push_str(HIDDEN);
        rest = &rest[start + len..];
    }
    if out.is_empty() && rest.len() == text.len() {
        return None;
    }
    out.push_str(rest);
    Some(out)
}

fn hide_keys(text: &str) -> Option<String> {
    replace_spans(text, |rest| {
        let start = rest.find("bkpy_")?;
        let len = rest[start..]
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len() - start);
        Some((start, len))
    })
}

fn hide_bearer(text: &str) -> Option<String> {
    replace_spans(text, |rest| span_after(rest, "Bearer ", is_end_of_word))
}

fn hide_urls(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    let mut changed = false;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let (url, tail) = url.split_at(url_end(url));
        let shown = hide_in_url(url);
        changed |= shown != url;
        out.push_str(&shown);
        rest = tail;
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// Where a URL in a text ends. In its user part and in its query, punctuation is part of a secret.
fn url_end(url: &str) -> usize {
    let is_end = |c: char| is_end_of_url(c) || matches!(c, '/' | '?' | '#');
    let authority = &url[..url.find(is_end).unwrap_or(url.len())];
    let after_user = authority.rfind('@').map_or(0, |at| at + 1);
    let base = &url[after_user..];
    let end = base.find(is_end_of_word).unwrap_or(base.len());
    if base[..end].contains(['?', '#']) {
        return url.find(is_end_of_url).unwrap_or(url.len());
    }
    after_user + end
}

fn authority_end(url: &str) -> usize {
    url.find(['/', '?', '#']).unwrap_or(url.len())
}

/// `user:password@host/path?query#fragment` → `***@host/path?***`.
fn hide_in_url(url: &str) -> String {
    let (base, has_query) = match url.find(['?', '#']) {
        Some(at) => (&url[..at], true),
        None => (url, false),
    };
    // A password may itself hold an unescaped `/`; everything up to the last @ is taken for the user part
    // only within the authority, which is what every URL parser does.
    let host_start = base[..authority_end(base)].rfind('@').map_or(0, |at| at + 1);
    let mut out = String::new();
    if host_start > 0 {
        out.push_str(HIDDEN);
        out.push('@');
    }
    out.push_str(&base[host_start..]);
    if has_query {
        out.push('?');
        out.push_str(HIDDEN);
    }
    out
}

fn hide_assignments(text: &str) -> Option<String> {
    const NAMES: [&str; 5] = ["password", "passwd", "pwd", "secret", "token"];
    let lower = text.to_ascii_lowercase();
    let (mut out, mut shown) = (String::new(), 0);
    for (at, _) in text.match_indices('=') {
        let named = || NAMES.iter().any(|name| lower[..at].ends_with(name));
        if at < shown || !named() {
            continue;
        }
        let value = &text[at + 1..];
        let len = value_length(value);
        if len == 0 || value.starts_with(HIDDEN) {
            continue;
        }
        out.push_str(&text[shown..=at]);
        out.push_str(HIDDEN);
        shown = at + 1 + len;
    }
    if shown == 0 {
        return None;
    }
    out.push_str(&text[shown..]);
    Some(out)
}

/// How long the value of an assignment is: a word, or all that stands between quotes (`\` escapes one).
fn value_length(value: &str) -> usize {
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        return value.find(is_end_of_word).unwrap_or(value.len());
    };
    let mut escaped = false;
    for (at, c) in value.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    value.len()
}

fn span_after(text: &str, mark: &str, is_end: impl Fn(char) -> bool) -> Option<(usize, usize)> {
    let start = text.find(mark)? + mark.len();
    let rest = &text[start..];
    let len = rest.find(is_end).unwrap_or(rest.len());
    Some((start, len))
}

fn is_end_of_url(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '<' | '>' | '`')
}

fn is_end_of_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`' | ',' | ';' | ')')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_keys_and_bearer_tokens() {
        let key = "bkpy_live_0123456789abcdefghijABCDEFGHIJ00";
        assert_eq!(redact(&format!("key {key}.")), "key ***.");
        assert_eq!(redact("Authorization: Bearer abc.def\r\n"), "Authorization: Bearer ***\r\n");
    }

    #[test]
    fn queries_and_users_of_urls() {
        assert_eq!(
            redact("PUT https://s3.example/b/k?X-Amz-Signature=abc failed (http://u:p@proxy:1/)"),
            "PUT https://s3.example/b/k?*** failed (http://***@proxy:1/)"
        );
        assert_eq!(redact("see https://example.org/a"), "see https://example.org/a");
        assert_eq!(
            redact("https://h/o?X-Amz-SignedHeaders=content-type;host&X-Amz-Signature=abc end"),
            "https://h/o?*** end"
        );
        assert_eq!(
            redact("(mysql://u:p,w;x)'y@db/d), (https://h/a)"),
            "(mysql://***@db/d), (https://h/a)"
        );
    }

    #[test]
    fn assignments() {
        for (text, shown) in [
            ("password=s3cret host=h", "password=*** host=h"),
            ("host=h password='x y' Pwd=abc", "host=h password=*** Pwd=***"),
            (r"password='it\'s \\' host=h", "password=*** host=h"),
            ("password='never closed", "password=***"),
            ("password= host=h password=s3cret", "password= host=h password=***"),
            ("pgpassword=a=b,x=y", "pgpassword=***,x=y"),
            ("token=pwd=abc", "token=***"),
        ] {
            assert_eq!(redact(text), shown);
            assert_eq!(redact(shown), shown, "twice is as good as once");
        }
    }

    #[test]
    fn plain_text_is_not_copied() {
        assert!(matches!(redact("nothing to hide: 3 runs"), Cow::Borrowed(_)));
    }

    /// What a control plane sends as the name of a job is logged: 4 MiB of it must not hold up the thread.
    #[test]
    fn the_time_is_linear() {
        let started = std::time::Instant::now();
        for unit in ["pwd=a ", "token=", "Bearer ", "://@?", "://a,", "bkpy_ "] {
            clean(&unit.repeat((4 << 20) / unit.len()));
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn clean_is_one_bounded_line() {
        assert_eq!(clean("  a\nb\u{1b}[31m  "), "a b [31m");
        assert!(clean(&"ä".repeat(9_000)).len() <= MAX_TEXT_BYTES + '…'.len_utf8());
    }
}
