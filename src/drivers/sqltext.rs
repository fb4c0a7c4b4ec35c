//! Dumps that are SQL text: how a whole one begins and ends, and reading one line by line.
//!
//! The head is held back until it has shown the tool's banner, so that not a byte of anything else is passed on.
//! The end mark has to be the last line of all: a database may well contain it as text, but then the dump goes on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::{Context, DriverError};
use crate::model::{Progress, Step};
use crate::thread::Cancel;

/// The banner stands within so many bytes.
pub(super) const HEAD_BYTES: usize = 4096;
/// Longer than any end mark with the line before it.
const TAIL_BYTES: usize = 256;
/// Read at once from a file.
const CHUNK_BYTES: usize = 256 * 1024;
/// What is looked at of a line; rows may be a GiB long.
const LINE_BYTES: usize = 1024;

/// What a kind of dump looks like.
#[derive(Debug)]
pub(super) struct Format {
    /// Beginnings of the line that names the tool; before it are comments only.
    pub(super) banners: &'static [&'static str],
    /// Whether a dump with this tail is complete.
    pub(super) ended: fn(&str) -> bool,
}

/// What came is no dump.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotADump;

/// The marks of one stream.
#[derive(Debug)]
pub(super) struct Marks {
    format: &'static Format,
    head: Vec<u8>,
    begun: bool,
    tail: Vec<u8>,
}

impl Marks {
    /// Of a stream of which nothing has been seen yet.
    pub(super) fn new(format: &'static Format) -> Self {
        Self { format, head: Vec::new(), begun: false, tail: Vec::new() }
    }

    /// Looks at the next chunk; what may be passed on now, in two pieces (while the banner is awaited: nothing).
    pub(super) fn feed<'a>(&'a mut self, chunk: &'a [u8]) -> Result<[&'a [u8]; 2], NotADump> {
        let (start, rest) =
            chunk.split_at(HEAD_BYTES.saturating_sub(self.head.len()).min(chunk.len()));
        self.head.extend_from_slice(start);
        self.keep_tail(chunk);
        if self.begun {
            return Ok([chunk, &[]]);
        }
        match self.judge() {
            Some(true) => {
                self.begun = true;
                Ok([&self.head, rest])
            }
            Some(false) => Err(NotADump),
            None => Ok([&[], &[]]),
        }
    }

    /// Whether the banner was seen.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// Whether the banner was seen, and the end mark is the last line.
    pub(super) fn complete(&self) -> bool {
        self.begun && (self.format.ended)(&String::from_utf8_lossy(&self.tail))
    }

    /// The first [`HEAD_BYTES`] as text.
    pub(super) fn head(&self) -> String {
        String::from_utf8_lossy(&self.head).into_owned()
    }

    fn judge(&self) -> Option<bool> {
        for line in self.head.split_inclusive(|byte| *byte == b'\n') {
            if self.format.banners.iter().any(|banner| line.starts_with(banner.as_bytes())) {
                return Some(true);
            }
            let comment = line == b"\n" || line.starts_with(b"--") || line.starts_with(b"/*");
            if line.ends_with(b"\n") && !comment {
                return Some(false);
            }
        }
        (self.head.len() >= HEAD_BYTES).then_some(false)
    }

    fn keep_tail(&mut self, chunk: &[u8]) {
        self.tail.extend_from_slice(&chunk[chunk.len().saturating_sub(TAIL_BYTES)..]);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
    }
}

/// A dump on its way to the sink: marks, count, progress.
pub(super) struct Flow<'a> {
    pub(super) marks: Marks,
    /// Bytes passed on.
    pub(super) bytes: u64,
    not_a_dump: bool,
    /// A line that has to be in it, if there is one; `None` again once it was seen.
    wanted: Option<Wanted>,
    size_bytes: Option<u64>,
    cx: &'a Context<'a>,
    out: &'a mut dyn Write,
}

/// Looks for a line at any cut of the stream.
#[derive(Debug)]
struct Wanted {
    /// With the line ends on both sides.
    line: String,
    /// The end of what was looked at, shorter than the line.
    carry: Vec<u8>,
}

impl Wanted {
    fn is_in(&mut self, chunk: &[u8]) -> bool {
        let line = self.line.as_bytes();
        let within = |bytes: &[u8]| bytes.windows(line.len()).any(|window| window == line);
        let seam = chunk.len().min(line.len() - 1);
        self.carry.extend_from_slice(&chunk[..seam]);
        if within(&self.carry) || within(chunk) {
            return true;
        }
        self.carry
            .extend_from_slice(&chunk[seam..][(chunk.len() - seam).saturating_sub(line.len())..]);
        let surplus = self.carry.len().saturating_sub(line.len() - 1);
        self.carry.drain(..surplus);
        false
    }
}

impl<'a> Flow<'a> {
    /// For a database of about `size_bytes`.
    pub(super) fn new(
        format: &'static Format,
        size_bytes: Option<u64>,
        cx: &'a Context<'a>,
        out: &'a mut dyn Write,
    ) -> Self {
        let marks = Marks::new(format);
        Self { marks, bytes: 0, not_a_dump: false, wanted: None, size_bytes, cx, out }
    }

    /// A dump without this line is not whole.
    pub(super) fn want_line(&mut self, line: &str) {
        self.wanted = Some(Wanted { line: format!("\n{line}\n"), carry: Vec::new() });
    }

    /// Whether the line that was wanted did not come.
    pub(super) fn lacks_line(&self) -> bool {
        self.wanted.is_some()
    }

    /// Passes the next chunk on.
    pub(super) fn pass(&mut self, chunk: &[u8]) -> io::Result<()> {
        if self.wanted.as_mut().is_some_and(|wanted| wanted.is_in(chunk)) {
            self.wanted = None;
        }
        let parts = match self.marks.feed(chunk) {
            Ok(parts) => parts,
            Err(NotADump) => {
                self.not_a_dump = true;
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        for part in parts {
            self.out.write_all(part)?;
            self.bytes += part.len() as u64;
        }
        // Of the tables as they are stored; as text they may be larger or smaller.
        let percent = self.size_bytes.and_then(|size| {
            let share = (u128::from(self.bytes) * 100).checked_div(u128::from(size))?;
            u8::try_from(share.min(99)).ok()
        });
        let bytes = self.bytes;
        (self.cx.progress)(Progress { step: Step::Dumping, percent, bytes });
        Ok(())
    }

    /// Whether something else than a dump came, so that no other error says more.
    pub(super) fn begins_as_a_dump(&self, tool: &str) -> Result<(), DriverError> {
        if self.not_a_dump { Err(DriverError::Mark { tool: tool.to_owned() }) } else { Ok(()) }
    }

    /// Whether a tool that ended well wrote a whole dump.
    pub(super) fn is_whole(&self, tool: &str) -> Result<(), DriverError> {
        if !self.marks.begun() {
            return Err(DriverError::Mark { tool: tool.to_owned() });
        }
        let problem = "ended without its end mark, although the tool reported no error";
        if self.marks.complete() { Ok(()) } else { Err(DriverError::BadDump { problem }) }
    }
}

/// The first [`HEAD_BYTES`] of the file as text.
pub(super) fn head(dump: &Path) -> Result<String, DriverError> {
    let mut head = Vec::new();
    File::open(dump)
        .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
        .map_err(|source| DriverError::Work { path: dump.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Reads the whole dump and hands the beginning of every line to `each`; an error if it is no whole one.
pub(super) fn scan(
    format: &'static Format,
    dump: &Path,
    cancel: &Cancel,
    each: &mut dyn FnMut(&str),
) -> Result<(), DriverError> {
    let failed = |source| DriverError::Work { path: dump.to_owned(), source };
    let bad = |problem| DriverError::BadDump { problem };
    let mut file = File::open(dump).map_err(failed)?;
    let mut marks = Marks::new(format);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut line = Vec::new();
    loop {
        if let Some(why) = cancel.why() {
            return Err(DriverError::Cancelled(why));
        }
        let count = file.read(&mut buffer).map_err(failed)?;
        let chunk = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            break;
        }
        marks.feed(chunk).map_err(|NotADump| bad("does not begin as a dump does"))?;
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES.saturating_sub(line.len()).min(part.len());
            line.extend_from_slice(&part[..room]);
            if part.ends_with(b"\n") {
                each(String::from_utf8_lossy(&line).trim_end_matches('\n'));
                line.clear();
            }
        }
    }
    match (marks.begun(), marks.complete()) {
        (true, true) => Ok(()),
        (true, false) => Err(bad("ends without its end mark: it was cut off")),
        (false, _) => Err(bad("does not begin as a dump does")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FORMAT: Format =
        Format { banners: &["-- Some dump "], ended: |tail| tail.ends_with("\n-- end\n") };
    const WHOLE: &[u8] = b"/* sandbox */\n-- Some dump 1\n\nINSERT 1;\n-- end\n";

    fn passed(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut marks = Marks::new(&FORMAT);
        let mut out = Vec::new();
        for chunk in chunks {
            let [a, b] = marks.feed(chunk).unwrap();
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
        (out, marks.complete())
    }

    #[test]
    fn however_it_is_cut() {
        for cut in 0..=WHOLE.len() {
            let (a, b) = WHOLE.split_at(cut);
            assert_eq!(passed(&[a, b]), (WHOLE.to_vec(), true), "cut at {cut}");
        }
        let bytes: Vec<_> = WHOLE.chunks(1).collect();
        assert_eq!(passed(&bytes), (WHOLE.to_vec(), true));
    }

    #[test]
    fn a_wanted_line_is_found_at_any_cut() {
        let wanted = || Wanted { line: "\n-- here\n".to_owned(), carry: Vec::new() };
        let text = b"one\ntwo\n-- here\nthree\n";
        for size in 1..=text.len() {
            let mut looked = wanted();
            assert!(text.chunks(size).any(|chunk| looked.is_in(chunk)), "chunks of {size}");
            let mut looked = wanted();
            let other = b"one\ntwo -- here\n-- here, not\n-- her\n";
            assert!(!other.chunks(size).any(|chunk| looked.is_in(chunk)), "chunks of {size}");
        }
    }

    #[test]
    fn long_ones_pass_whole() {
        let mut long = WHOLE[..30].to_vec();
        long.extend(vec![b'x'; 3 * HEAD_BYTES]);
        long.extend(b"\n-- end\n");
        assert_eq!(passed(&[&long]), (long.clone(), true));
        let chunks: Vec<_> = long.chunks(1000).collect();
        assert_eq!(passed(&chunks), (long.clone(), true));
        assert!(!passed(&[&long, b"more\n"]).1, "the end mark is not the last line");
    }

    #[test]
    fn what_is_no_dump_is_not_passed_on() {
        for bad in [&b"welcome\n-- Some dump 1\n"[..], b"welcome to -- Some dump\n"] {
            assert_eq!(Marks::new(&FORMAT).feed(bad), Err(NotADump));
        }
        let late = [b"-- x\n".repeat(HEAD_BYTES), b"-- Some dump 1\n".to_vec()].concat();
        assert_eq!(Marks::new(&FORMAT).feed(&late), Err(NotADump));
        for short in [&b""[..], b"-- Some", b"welcome"] {
            assert_eq!(passed(&[short]), (Vec::new(), false));
        }
    }

    #[test]
    fn files_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump");
        let cancel = Cancel::new().unwrap();
        let read = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            let mut lines = Vec::new();
            scan(&FORMAT, &path, &cancel, &mut |line| lines.push(line.to_owned())).map(|()| lines)
        };
        let long =
            [b"-- Some dump 1\n".to_vec(), vec![b'x'; 2 * CHUNK_BYTES], b"\n-- end\n".to_vec()];
        let lines = read(&long.concat()).unwrap();
        assert_eq!((lines.len(), lines[1].len(), lines[2].as_str()), (3, LINE_BYTES, "-- end"));
        for cut in [0, 5, 30, WHOLE.len() - 1] {
            let error = read(&WHOLE[..cut]).unwrap_err();
            assert!(matches!(error, DriverError::BadDump { .. }), "{error}");
        }
        std::fs::write(&path, vec![b'x'; 2 * HEAD_BYTES]).unwrap();
        assert_eq!(head(&path).unwrap(), "x".repeat(HEAD_BYTES));
    }
}
