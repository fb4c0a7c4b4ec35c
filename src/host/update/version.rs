//! Which of two versions is the newer one. Pure.
//!
//! As in semantic versioning: three numbers, then an optional `-rc.1` that comes before the plain version; what
//! follows a `+` does not count. A leading `v` is let pass.

use std::cmp::Ordering;

/// Longest text that is read, in bytes.
const MAX_BYTES: usize = 64;

/// A version that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    numbers: [u64; 3],
    /// What stands before the release; empty = the release itself.
    pre: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

impl Version {
    /// Reads `1.2.3`, `v1.2.3`, `1.2.3-rc.1`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let text = bare(text);
        if text.len() > MAX_BYTES {
            return None;
        }
        let text = text.split('+').next()?;
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (text, None),
        };
        let mut parts = numbers.split('.');
        let numbers = [number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?];
        if parts.next().is_some() {
            return None;
        }
        let pre = match pre {
            None => Vec::new(),
            Some(pre) => pre.split('.').map(part).collect::<Option<Vec<_>>>()?,
        };
        Some(Self { numbers, pre })
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let release = self.pre.is_empty().cmp(&other.pre.is_empty());
        self.numbers.cmp(&other.numbers).then(release).then_with(|| self.pre.cmp(&other.pre))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A version's text without a leading `v`, for comparing names.
pub fn bare(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('v').unwrap_or(text)
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn part(text: &str) -> Option<Part> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if text.is_empty() || !text.bytes().all(word) {
        return None;
    }
    Some(number(text).map_or_else(|| Part::Word(text.to_owned()), Part::Number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_semantic_versions() {
        let order = [
            "0.1.0-1",
            "0.1.0-alpha",
            "0.1.0-rc.1",
            "0.1.0-rc.2",
            "0.1.0-rc.10",
            "v0.1.0",
            "0.1.1",
            "0.10.0",
            "1.0.0",
            "10.0.0",
        ];
        for pair in order.windows(2) {
            let [lower, higher] = pair else { unreachable!() };
            let (lower, higher) = (Version::parse(lower).unwrap(), Version::parse(higher).unwrap());
            assert!(lower < higher, "{lower:?} {higher:?}");
        }
        assert_eq!(Version::parse("1.2.3+a"), Version::parse("v1.2.3+b"));
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "-1.2.3",
            "1.2.3-",
            "1.2.3-a..b",
            "1.2.3-a b",
            "99999999999999999999.0.0",
            "latest",
            "1.2.3\n4",
            "+",
        ] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert_eq!(Version::parse(&format!("1.2.3-{}", "a".repeat(99))), None);
    }
}
