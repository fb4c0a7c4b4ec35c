//! The head of pg_dump's custom format, from which the server's version is read.
//!
//! ```text
//! "PGDMP" · version (major, minor, revision: a byte each) · bytes of an integer · bytes of an offset · format
//! compression (from 1.15 on one byte, before an integer) · 7 integers of the date
//! database name · server version · pg_dump version       (strings: an integer as length, then the bytes)
//! ```
//! An integer is a sign byte and its bytes, the lowest first.

/// Kept of the beginning of the stream.
pub(super) const HEAD_BYTES: usize = 1024;
const DATE_INTEGERS: usize = 7;
/// The first version whose compression is one byte.
const COMPRESSION_BYTE: (u8, u8) = (1, 15);

/// The server's version as the dump states it, such as `15.18`.
pub(super) fn server_version(head: &[u8]) -> Option<String> {
    let mut at = Reader(head.strip_prefix(b"PGDMP")?);
    let [major, minor, _revision, integer, _offset, _format] = *at.take(6)?.first_chunk()?;
    let integer = usize::from(integer);
    if (major, minor) >= COMPRESSION_BYTE {
        at.take(1)?;
    } else {
        at.take(1 + integer)?;
    }
    at.take(DATE_INTEGERS * (1 + integer))?;
    at.string(integer)?;
    let version = at.string(integer)?;
    let number = version.split_whitespace().next()?;
    number.starts_with(|c: char| c.is_ascii_digit()).then(|| number.to_owned())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn string(&mut self, integer: usize) -> Option<&'a str> {
        let length = self.take(1 + integer)?;
        // A sign means that there is no string.
        let (0, bytes) = length.split_first().map(|(sign, bytes)| (*sign, bytes))? else {
            return None;
        };
        let length = bytes
            .iter()
            .rev()
            .try_fold(0usize, |n, b| Some(n.checked_mul(256)? + usize::from(*b)))?;
        std::str::from_utf8(self.take(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integer(value: u32) -> Vec<u8> {
        [&[0][..], &value.to_le_bytes()].concat()
    }

    fn string(text: &str) -> Vec<u8> {
        [integer(u32::try_from(text.len()).unwrap()), text.as_bytes().to_vec()].concat()
    }

    fn head(minor: u8, compression: &[u8]) -> Vec<u8> {
        let mut bytes = [b"PGDMP", &[1, minor, 0, 4, 8, 1][..], compression].concat();
        for _ in 0..DATE_INTEGERS {
            bytes.extend(integer(7));
        }
        bytes.extend(string("app"));
        bytes.extend(string("15.18 (Debian 15.18-0+deb12u1)"));
        bytes.extend(string("17.0"));
        bytes
    }

    #[test]
    fn old_and_new_heads() {
        assert_eq!(server_version(&head(14, &integer(0))).as_deref(), Some("15.18"));
        assert_eq!(server_version(&head(16, &[0])).as_deref(), Some("15.18"));
    }

    #[test]
    fn whatever_is_cut_or_wrong_is_no_version() {
        let whole = head(14, &integer(0));
        let end = whole.len() - string("17.0").len();
        for cut in 0..end {
            assert_eq!(server_version(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(server_version(b"PGDMP\x01\x0e\x00\xff\xff\xff\xff\xff"), None);
        assert_eq!(server_version(b"-- a plain dump"), None);
    }
}
