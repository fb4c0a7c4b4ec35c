//! Where the RDB ends in the replication stream.
//!
//! The server announces it with one line: `$<length>` if it has the RDB on its disk, `$EOF:<40 bytes>` if it sends it
//! while making it; the same 40 random bytes then follow the RDB. What comes after is the stream of later
//! writes, which nobody here reads.

/// Length of the mark of a stream without a length.
pub(super) const MARK_BYTES: usize = 40;

/// How the end of the RDB is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// Until the mark comes.
    Mark([u8; MARK_BYTES]),
}

impl Framing {
    /// Reads the announcement; `None` if it is none.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix('$')?;
        if let Some(mark) = rest.strip_prefix("EOF:") {
            return mark.as_bytes().try_into().ok().map(Self::Mark);
        }
        let digits = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
        let length: u64 = digits.then(|| rest.parse().ok())??;
        // What no file system holds is no length.
        i64::try_from(length).ok().map(|_| Self::Length(length))
    }

    /// The RDB's length, where it is known ahead.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Mark(_) => None,
        }
    }

    /// How many bytes at the beginning of `window` are the RDB's for sure, and whether they are its last.
    /// The caller takes exactly these away and comes again with the rest and more.
    pub(super) fn split(&mut self, window: &[u8]) -> (usize, bool) {
        match self {
            Self::Length(left) => {
                let taken =
                    usize::try_from(*left).map_or(window.len(), |left| left.min(window.len()));
                *left -= taken as u64;
                (taken, *left == 0)
            }
            Self::Mark(mark) => match find(window, mark) {
                Some(at) => (at, true),
                // The rest may be the beginning of the mark.
                None => (window.len().saturating_sub(MARK_BYTES - 1), false),
            },
        }
    }
}

/// The first place of `mark`. Looks at every 40th byte where that one does not occur in the mark.
fn find(window: &[u8], mark: &[u8; MARK_BYTES]) -> Option<usize> {
    let (last, before) = mark.split_last()?;
    let mut skip = [MARK_BYTES; 256];
    for (at, byte) in before.iter().enumerate() {
        skip[usize::from(*byte)] = MARK_BYTES - 1 - at;
    }
    let mut at = 0;
    while let Some(place) = window.get(at..at + MARK_BYTES) {
        let end = place[MARK_BYTES - 1];
        if end == *last && place == mark {
            return Some(at);
        }
        at += skip[usize::from(end)];
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: &[u8; MARK_BYTES] = b"13848549cf93eeb5576897c0eecf8ae8aed67549";

    #[test]
    fn announcements() {
        assert_eq!(Framing::parse("$182"), Some(Framing::Length(182)));
        assert_eq!(Framing::parse("$0"), Some(Framing::Length(0)));
        let line = format!("$EOF:{}", std::str::from_utf8(MARK).unwrap());
        assert_eq!(Framing::parse(&line), Some(Framing::Mark(*MARK)));
        for bad in [
            "",
            "$",
            "182",
            "$-1",
            "$+1",
            "$ 1",
            "$1x",
            "$18446744073709551615",
            "$99999999999999999999999",
            "$EOF:",
            "$EOF:123",
            "+OK",
            "$eof:1",
            "$EOF:13848549cf93eeb5576897c0eecf8ae8aed675491",
        ] {
            assert_eq!(Framing::parse(bad), None, "{bad}");
        }
    }

    /// The payload as the driver takes it, when the stream arrives in such pieces.
    fn take(mut framing: Framing, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut payload, mut window) = (Vec::new(), Vec::new());
        for piece in pieces {
            window.extend_from_slice(piece);
            let (taken, done) = framing.split(&window);
            payload.extend(window.drain(..taken));
            if done {
                return (payload, true);
            }
        }
        (payload, false)
    }

    #[test]
    fn the_mark_split_anywhere_and_its_beginning_in_the_payload() {
        let mut stream = b"REDIS ".to_vec();
        for length in 1..MARK_BYTES {
            stream.extend_from_slice(&MARK[..length]);
        }
        let payload = stream.clone();
        stream.extend_from_slice(MARK);
        stream.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
        for cut in 0..=stream.len() {
            let (a, b) = stream.split_at(cut);
            assert_eq!(take(Framing::Mark(*MARK), &[a, b]), (payload.clone(), true), "{cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(take(Framing::Mark(*MARK), &bytes), (payload.clone(), true));
        let without = &stream[..payload.len() + MARK_BYTES - 1];
        let (taken, done) = take(Framing::Mark(*MARK), &[without]);
        assert!(!done && payload.starts_with(&taken));
    }

    #[test]
    fn a_length_is_exact() {
        let pieces: [&[u8]; 3] = [b"abc", b"", b"defgh"];
        assert_eq!(take(Framing::Length(5), &pieces), (b"abcde".to_vec(), true));
        assert_eq!(take(Framing::Length(9), &pieces), (b"abcdefgh".to_vec(), false));
        assert_eq!(take(Framing::Length(0), &[b"x"]), (Vec::new(), true));
    }

    proptest! {
        /// Few letters, so that marks nearly occur everywhere.
        #[test]
        fn finds_what_a_plain_search_finds(
            mark in prop::array::uniform32(0..2_u8), window in prop::collection::vec(0..2_u8, 0..200),
            plant: Option<prop::sample::Index>,
        ) {
            let mut whole = [1; MARK_BYTES];
            whole[..32].copy_from_slice(&mark);
            let mut window = window;
            if let Some(at) = plant {
                let at = at.index(window.len() + 1);
                window.splice(at..at, whole);
            }
            let plain = window.windows(MARK_BYTES).position(|place| place == whole);
            prop_assert_eq!(find(&window, &whole), plain);
        }
    }
}
