//! mongodump's archive: walked from the first to the last byte, while it streams or from a file.
//!
//! ```text
//! archive := 6d e2 99 81 · header · metadata* · end · (segment | closing)*
//! segment := namespace header (EOF = false) · document* · end        segments of several namespaces interleave
//! closing := namespace header (EOF = true, CRC of all its documents) · end
//! end     := ff ff ff ff
//! ```
//! Everything but `end` is a BSON document: its length first, `00` last. An archive that stops at any other place
//! than behind an `end`, or before every namespace was closed, is not whole, whatever the tool says. What is kept is
//! a header at a time and the namespaces that are open, so that memory does not grow with the archive.

use std::collections::HashMap;
use std::fmt;

use super::bson::{self, Value};

/// The first four bytes.
pub(super) const MAGIC: [u8; 4] = [0x6d, 0xe2, 0x99, 0x81];

const END: [u8; 4] = [0xff; 4];
/// Smallest document.
const MIN_DOCUMENT: usize = 5;
/// Largest document: the server's 16 MiB and room for what it adds to its own.
const MAX_DOCUMENT: usize = 17 << 20;
/// Largest header of the archive's own; names have 255 bytes at the most.
const MAX_HEADER: usize = 64 << 10;
/// Namespaces that are dumped at the same time; mongodump's default is 4.
const MAX_OPEN: usize = 4096;
/// CRC-64 as ECMA-182 has it, bits reversed.
const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;

/// Why a stream is not a whole archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// It does not begin as an archive.
    Start,
    /// It stops in the middle.
    Cut,
    /// What should be a document is none, at this byte.
    Document(u64),
    /// A namespace's closing is missing.
    Unfinished(String),
    /// A namespace's documents are not those that were dumped.
    Checksum(String),
    /// More namespaces at the same time than any mongodump writes.
    TooManyOpen,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("it does not begin as a mongodump archive"),
            Self::Cut => f.write_str("it is cut off"),
            Self::Document(at) => write!(f, "there is no valid document at byte {at}"),
            Self::Unfinished(name) => write!(f, "it ends before {name} does"),
            Self::Checksum(name) => write!(f, "the checksum of {name} is wrong"),
            Self::TooManyOpen => write!(f, "more than {MAX_OPEN} namespaces interleave"),
        }
    }
}

/// A namespace that was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) database: String,
    pub(super) collection: String,
    pub(super) documents: u64,
}

/// What the next four bytes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Magic,
    Header,
    Metadata,
    Namespace,
    Body,
}

#[derive(Debug)]
struct Open {
    database: String,
    collection: String,
    documents: u64,
    crc: u64,
}

/// Takes an archive in chunks of any size.
#[derive(Debug)]
pub(super) struct Walker {
    place: Place,
    /// The first four bytes of what comes next, as far as they are there.
    word: Vec<u8>,
    /// Bytes of the document that are still to come.
    left: usize,
    /// The document, where it is a header.
    header: Vec<u8>,
    /// Bytes so far.
    at: u64,
    /// Begun, not closed, and not the current one.
    open: HashMap<String, Open>,
    /// Whose documents come; `None` behind a closing.
    current: Option<(String, Open)>,
    checksums: Option<Box<[u64; 256]>>,
    server_version: String,
}

impl Walker {
    /// At the beginning; `checksums` costs time for each byte.
    pub(super) fn new(checksums: bool) -> Self {
        Self {
            place: Place::Magic,
            word: Vec::with_capacity(4),
            left: 0,
            header: Vec::new(),
            at: 0,
            open: HashMap::new(),
            current: None,
            checksums: checksums.then(crc_table),
            server_version: String::new(),
        }
    }

    /// The server's version as the header has it, once it was seen; may be empty.
    pub(super) fn server_version(&self) -> &str {
        &self.server_version
    }

    /// Takes the next bytes and tells which namespaces were closed.
    pub(super) fn feed(
        &mut self,
        mut chunk: &[u8],
        closed: &mut dyn FnMut(Closed),
    ) -> Result<(), Damage> {
        while !chunk.is_empty() {
            let wanted = if self.left > 0 { self.left } else { 4 - self.word.len() };
            let (now, rest) = chunk.split_at(wanted.min(chunk.len()));
            self.at += now.len() as u64;
            chunk = rest;
            if self.left > 0 {
                self.document(now, closed)?;
            } else {
                self.word.extend_from_slice(now);
                if let Ok(word) = <[u8; 4]>::try_from(self.word.as_slice()) {
                    self.word.clear();
                    self.word(word)?;
                }
            }
        }
        Ok(())
    }

    /// At the end of the stream: whether it was all.
    pub(super) fn finish(&self) -> Result<(), Damage> {
        let between = self.place == Place::Namespace && self.left == 0 && self.word.is_empty();
        if self.at < 4 {
            return Err(Damage::Start);
        }
        if !between {
            return Err(Damage::Cut);
        }
        match self.open.keys().chain(self.current.iter().map(|(name, _)| name)).min() {
            Some(name) => Err(Damage::Unfinished(name.clone())),
            None => Ok(()),
        }
    }

    fn word(&mut self, word: [u8; 4]) -> Result<(), Damage> {
        let here = Damage::Document(self.at - 4);
        match (self.place, word) {
            (Place::Magic, MAGIC) => self.place = Place::Header,
            (Place::Magic, _) => return Err(Damage::Start),
            (Place::Metadata | Place::Body, END) => self.place = Place::Namespace,
            (place, word) => {
                let most = match place {
                    Place::Header | Place::Namespace => MAX_HEADER,
                    Place::Magic | Place::Metadata | Place::Body => MAX_DOCUMENT,
                };
                // Read without a sign, a negative length is far too large.
                let length = usize::try_from(u32::from_le_bytes(word)).unwrap_or(usize::MAX);
                if !(MIN_DOCUMENT..=most).contains(&length) {
                    return Err(here);
                }
                if place == Place::Body && self.current.is_none() {
                    return Err(here);
                }
                self.header.clear();
                self.left = length - 4;
                self.part(&word);
            }
        }
        Ok(())
    }

    fn document(&mut self, part: &[u8], closed: &mut dyn FnMut(Closed)) -> Result<(), Damage> {
        self.left -= part.len();
        self.part(part);
        if self.left > 0 {
            return Ok(());
        }
        if part.last() != Some(&0) {
            return Err(Damage::Document(self.at));
        }
        match self.place {
            Place::Header => {
                self.server_version = bson::text(&self.header, "server_version").to_owned();
                self.place = Place::Metadata;
            }
            Place::Namespace => {
                self.place = Place::Body;
                self.namespace(closed)?;
            }
            Place::Body => {
                if let Some((_, open)) = &mut self.current {
                    open.documents += 1;
                }
            }
            Place::Magic | Place::Metadata => {}
        }
        Ok(())
    }

    /// Keeps what has to be read again, and adds up what was dumped.
    fn part(&mut self, part: &[u8]) {
        match self.place {
            Place::Header | Place::Namespace => self.header.extend_from_slice(part),
            Place::Body => {
                if let (Some(table), Some((_, open))) = (&self.checksums, &mut self.current) {
                    open.crc = crc(table, open.crc, part);
                }
            }
            Place::Magic | Place::Metadata => {}
        }
    }

    fn namespace(&mut self, closed: &mut dyn FnMut(Closed)) -> Result<(), Damage> {
        let database = bson::text(&self.header, "db");
        let collection = bson::text(&self.header, "collection");
        let name = format!("{database}.{collection}");
        self.open.extend(self.current.take());
        let open = self.open.remove(&name).unwrap_or_else(|| Open {
            database: database.to_owned(),
            collection: collection.to_owned(),
            documents: 0,
            crc: !0,
        });
        if bson::field(&self.header, "EOF") != Some(Value::Bool(true)) {
            if self.open.len() >= MAX_OPEN {
                return Err(Damage::TooManyOpen);
            }
            self.current = Some((name, open));
            return Ok(());
        }
        if let (Some(_), Some(Value::Int(stated))) =
            (&self.checksums, bson::field(&self.header, "CRC"))
            && stated.cast_unsigned() != !open.crc
        {
            return Err(Damage::Checksum(name));
        }
        let Open { database, collection, documents, .. } = open;
        closed(Closed { database, collection, documents });
        Ok(())
    }
}

fn crc_table() -> Box<[u64; 256]> {
    let mut table = Box::new([0; 256]);
    for (entry, byte) in table.iter_mut().zip(0u64..) {
        *entry = (0..8).fold(byte, |crc, _| (crc >> 1) ^ (POLYNOMIAL * (crc & 1)));
    }
    table
}

fn crc(table: &[u64; 256], crc: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(crc, |crc, byte| {
        let [low, ..] = (crc ^ u64::from(*byte)).to_le_bytes();
        table[usize::from(low)] ^ (crc >> 8)
    })
}

/// Archives for tests.
#[cfg(test)]
pub(super) mod testing {
    use super::super::bson::testing::{document, text};
    use super::*;

    /// Magic, header, one metadata document for each namespace, end.
    pub(in super::super) fn prelude(version: &str, names: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(document(&[
            ("concurrent_collections", 0x10, &4i32.to_le_bytes()),
            ("version", 0x02, &text("0.1")),
            ("server_version", 0x02, &text(version)),
            ("tool_version", 0x02, &text("100.9.4")),
        ]));
        for (database, collection) in names {
            bytes.extend(document(&[
                ("db", 0x02, &text(database)),
                ("collection", 0x02, &text(collection)),
                ("metadata", 0x02, &text("{\"indexes\":[]}")),
                ("size", 0x10, &0i32.to_le_bytes()),
            ]));
        }
        bytes.extend(END);
        bytes
    }

    fn header(database: &str, collection: &str, eof: bool, crc: u64) -> Vec<u8> {
        document(&[
            ("db", 0x02, &text(database)),
            ("collection", 0x02, &text(collection)),
            ("EOF", 0x08, &[u8::from(eof)]),
            ("CRC", 0x12, &crc.to_le_bytes()),
        ])
    }

    /// A part of a namespace.
    pub(in super::super) fn segment(name: (&str, &str), documents: &[Vec<u8>]) -> Vec<u8> {
        [header(name.0, name.1, false, 0), documents.concat(), END.to_vec()].concat()
    }

    /// The end of a namespace with these documents.
    pub(in super::super) fn closing(name: (&str, &str), documents: &[Vec<u8>]) -> Vec<u8> {
        let crc = !crc(&crc_table(), !0, &documents.concat());
        [header(name.0, name.1, true, crc), END.to_vec()].concat()
    }

    /// A document with a number.
    pub(in super::super) fn numbered(n: i32) -> Vec<u8> {
        document(&[("_id", 0x10, &n.to_le_bytes()), ("pad", 0x02, &text(&"x".repeat(50)))])
    }

    /// Two interleaved namespaces with 3 and 2 documents and an empty one.
    pub(in super::super) fn archive() -> Vec<u8> {
        let (a, b, c) = (("shop", "orders"), ("shop", "users"), ("app", "empty"));
        let docs: Vec<Vec<u8>> = (0..5).map(numbered).collect();
        [
            prelude("6.0.5", &[a, b, c]),
            segment(a, &docs[..2]),
            segment(b, &docs[3..]),
            segment(a, &docs[2..3]),
            closing(a, &docs[..3]),
            closing(c, &[]),
            closing(b, &docs[3..]),
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{archive, closing, numbered, prelude, segment};
    use super::*;

    fn walk(bytes: &[u8], step: usize) -> Result<Vec<String>, Damage> {
        let mut walker = Walker::new(true);
        let mut closed = Vec::new();
        for chunk in bytes.chunks(step) {
            walker.feed(chunk, &mut |c| {
                closed.push(format!("{}.{} {}", c.database, c.collection, c.documents));
            })?;
        }
        walker.finish()?;
        assert_eq!(walker.server_version(), "6.0.5");
        Ok(closed)
    }

    #[test]
    fn the_checksum_is_the_one_of_the_format() {
        // The check value of CRC-64/XZ.
        assert_eq!(!crc(&crc_table(), !0, b"123456789"), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn however_it_is_cut_into_chunks() {
        for step in [1, 2, 3, 5, 7, 64, 100_000] {
            let closed = walk(&archive(), step).unwrap();
            assert_eq!(closed, ["shop.orders 3", "app.empty 0", "shop.users 2"]);
        }
        assert_eq!(walk(&prelude("6.0.5", &[]), 9).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_shorter_one_is_not_whole() {
        let whole = archive();
        // Behind the prelude's end nothing says that something is missing: a server without data looks like it.
        let empty = prelude("6.0.5", &[("shop", "orders"), ("shop", "users"), ("app", "empty")]);
        for length in (0..whole.len()).filter(|length| *length != empty.len()) {
            assert!(walk(&whole[..length], 1 << 20).is_err(), "{length}");
        }
        let error = walk(&whole[..whole.len() - closing(("shop", "users"), &[]).len()], 64);
        assert_eq!(error, Err(Damage::Unfinished("shop.users".to_owned())));
    }

    #[test]
    fn a_changed_document_is_noticed() {
        let mut bytes = archive();
        let at = bytes.windows(4).rposition(|window| window == b"xxxx").unwrap();
        bytes[at] = b'y';
        assert_eq!(walk(&bytes, 64), Err(Damage::Checksum("shop.orders".to_owned())));
    }

    #[test]
    fn lengths_that_cannot_be() {
        assert_eq!(walk(b"-- a dump", 64), Err(Damage::Start));
        assert_eq!(walk(b"6d", 64), Err(Damage::Start));
        let name = ("shop", "orders");
        let start = [prelude("6.0.5", &[name]), segment(name, &[numbered(1)])].concat();
        for length in [0i32, 4, -2, i32::MAX, 17 << 21] {
            let bytes = [&start[..], &length.to_le_bytes(), &[0; 64]].concat();
            assert_eq!(walk(&bytes, 64), Err(Damage::Document(start.len() as u64)), "{length}");
        }
        // Two ends behind each other, and a document behind a closing.
        let twice = [&start[..], &END].concat();
        assert!(matches!(walk(&twice, 64), Err(Damage::Document(_))));
        let closed = closing(name, &[numbered(1)]);
        let behind = [&start[..], &closed[..closed.len() - 4], &numbered(2)].concat();
        assert!(matches!(walk(&behind, 64), Err(Damage::Document(_))));
        let mut open_end = [&start[..], &numbered(1)].concat();
        *open_end.last_mut().unwrap() = 7;
        assert!(matches!(walk(&open_end, 64), Err(Damage::Document(_))));
    }
}
