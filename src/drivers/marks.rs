//! Start marks: the first bytes by which a dump shows that it is one.

/// Compares the beginning of a stream with a fixed mark, however the stream is cut into chunks.
#[derive(Debug)]
pub(super) struct StartMark {
    want: &'static [u8],
    seen: usize,
    wrong: bool,
}

impl StartMark {
    /// A mark of which nothing has been seen yet.
    pub(super) fn new(want: &'static [u8]) -> Self {
        Self { want, seen: 0, wrong: false }
    }

    /// Looks at the next chunk of the stream; false as soon as the mark cannot match any more.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> bool {
        let left = self.want.get(self.seen..).unwrap_or_default();
        let both = left.len().min(chunk.len());
        self.wrong |= left.get(..both) != chunk.get(..both);
        self.seen += both;
        !self.wrong
    }

    /// Whether the whole mark was seen.
    pub(super) fn complete(&self) -> bool {
        !self.wrong && self.seen == self.want.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_it_is_cut() {
        for cut in 0..=7 {
            let (a, b) = b"PGDMP\x01\x0e".split_at(cut);
            let mut mark = StartMark::new(b"PGDMP");
            assert!(mark.feed(a) && mark.feed(b) && mark.complete(), "cut at {cut}");
        }
    }

    #[test]
    fn wrong_or_short() {
        let mut mark = StartMark::new(b"PGDMP");
        assert!(!mark.feed(b"PGDUMP"));
        assert!(!mark.feed(b"P") && !mark.complete());
        let mut mark = StartMark::new(b"PGDMP");
        assert!(mark.feed(b"PGD") && !mark.complete());
    }
}
