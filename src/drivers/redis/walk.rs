//! Walks over an RDB from key to key, to count them. Values are stepped over, never built.
//!
//! What is known are the types of Redis up to 7.2 and of Valkey up to 9. A later type, or a value of a module of the
//! old kind, ends the walk: its length is known to nobody but its author. That says nothing against the
//! dump, whose checksum was compared before.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};

/// More logical databases than anybody has.
const DATABASES_MAX: usize = 100_000;

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Keys by database.
    pub(super) keys: BTreeMap<u64, u64>,
    /// Libraries of functions.
    pub(super) libraries: u64,
}

/// Why the walk did not come to the end.
#[derive(Debug)]
pub(super) enum Lost {
    /// A type or opcode that is not known here.
    Unknown(u8),
    /// A length that leads past the end, or an end in the wrong place.
    Astray,
    /// The file could not be read.
    Io(io::Error),
    /// The caller said so.
    Stopped,
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Astray } else { Self::Io(error) }
    }
}

/// Counts the keys of an RDB of `length` bytes; `stop` is asked at each of them.
///
/// # Errors
/// When it cannot be walked to its end.
pub(super) fn count(
    file: impl Read + Seek,
    length: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Counted, Lost> {
    let file = io::BufReader::with_capacity(64 << 10, file);
    let mut walk = Walk { file, left: length, valkey: false };
    // The magic and its version.
    walk.valkey = walk.take::<9>()?.starts_with(b"VALKEY");
    let mut counted = Counted::default();
    let mut database = 0;
    loop {
        match walk.byte()? {
            0xff => break,
            0xfe => database = walk.length()?,
            0xfd => walk.skip(4)?,
            0xfc => walk.skip(8)?,
            0xfb => walk.lengths(2)?,
            0xfa => walk.strings(2)?,
            0xf9 => walk.skip(1)?,
            0xf8 => walk.lengths(1)?,
            0xf7 => {
                walk.lengths(3)?;
                walk.module()?;
            }
            0xf5 => {
                walk.string()?;
                counted.libraries += 1;
            }
            0xf4 => walk.lengths(3)?,
            kind => {
                if stop() {
                    return Err(Lost::Stopped);
                }
                walk.string()?;
                walk.value(kind)?;
                *counted.keys.entry(database).or_default() += 1;
                if counted.keys.len() > DATABASES_MAX {
                    return Err(Lost::Astray);
                }
            }
        }
    }
    // The checksum, which versions below 5 do not have.
    if matches!(walk.left, 0 | 8) { Ok(counted) } else { Err(Lost::Astray) }
}

struct Walk<F> {
    file: io::BufReader<F>,
    left: u64,
    /// Since their ways parted, the same number means different types in Redis and Valkey.
    valkey: bool,
}

/// What stands where a string or number begins.
enum Length {
    Plain(u64),
    Encoded(u8),
}

impl<F: Read + Seek> Walk<F> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Lost> {
        self.left = self.left.checked_sub(N as u64).ok_or(Lost::Astray)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Lost> {
        let [byte] = self.take()?;
        Ok(byte)
    }

    fn skip(&mut self, count: u64) -> Result<(), Lost> {
        self.left = self.left.checked_sub(count).ok_or(Lost::Astray)?;
        self.file.seek_relative(i64::try_from(count).map_err(|_| Lost::Astray)?)?;
        Ok(())
    }

    fn any_length(&mut self) -> Result<Length, Lost> {
        let first = self.byte()?;
        let low = first & 0x3f;
        Ok(match first >> 6 {
            0 => Length::Plain(low.into()),
            1 => Length::Plain(u64::from(low) << 8 | u64::from(self.byte()?)),
            2 if first == 0x80 => Length::Plain(u32::from_be_bytes(self.take()?).into()),
            2 if first == 0x81 => Length::Plain(u64::from_be_bytes(self.take()?)),
            2 => return Err(Lost::Astray),
            _ => Length::Encoded(low),
        })
    }

    fn length(&mut self) -> Result<u64, Lost> {
        match self.any_length()? {
            Length::Plain(length) => Ok(length),
            Length::Encoded(_) => Err(Lost::Astray),
        }
    }

    fn lengths(&mut self, count: u64) -> Result<(), Lost> {
        (0..count).try_for_each(|_| self.length().map(drop))
    }

    /// A text, a number written as one, or a text compressed with LZF.
    fn string(&mut self) -> Result<(), Lost> {
        match self.any_length()? {
            Length::Plain(length) => self.skip(length),
            Length::Encoded(0) => self.skip(1),
            Length::Encoded(1) => self.skip(2),
            Length::Encoded(2) => self.skip(4),
            Length::Encoded(3) => {
                let compressed = self.length()?;
                self.length()?;
                self.skip(compressed)
            }
            Length::Encoded(_) => Err(Lost::Astray),
        }
    }

    fn strings(&mut self, count: u64) -> Result<(), Lost> {
        (0..count).try_for_each(|_| self.string())
    }

    fn each(&mut self, step: impl Fn(&mut Self) -> Result<(), Lost>) -> Result<(), Lost> {
        let count = self.length()?;
        (0..count).try_for_each(|_| step(self))
    }

    fn value(&mut self, kind: u8) -> Result<(), Lost> {
        match kind {
            // A string, or a small collection packed into one.
            0 | 9..=13 | 16 | 17 | 20 => self.string(),
            // Lists, sets, and lists of packed pieces.
            1 | 2 | 14 => self.each(Self::string),
            3 => self.each(|walk| {
                walk.string()?;
                match walk.byte()? {
                    // Not a number and the infinities.
                    253..=255 => Ok(()),
                    length => walk.skip(length.into()),
                }
            }),
            4 => self.each(|walk| walk.strings(2)),
            5 => self.each(|walk| {
                walk.string()?;
                walk.skip(8)
            }),
            7 => {
                self.length()?;
                self.module()
            }
            15 | 19 | 21 => self.stream(kind),
            // A hash with fields that expire: name, value, time.
            22 if self.valkey => self.each(|walk| {
                walk.strings(2)?;
                walk.skip(8)
            }),
            18 => self.each(|walk| {
                walk.length()?;
                walk.string()
            }),
            unknown => Err(Lost::Unknown(unknown)),
        }
    }

    /// What a module wrote, each piece with its kind before it.
    fn module(&mut self) -> Result<(), Lost> {
        loop {
            match self.length()? {
                0 => return Ok(()),
                1 | 2 => self.lengths(1)?,
                3 => self.skip(4)?,
                4 => self.skip(8)?,
                5 => self.string()?,
                _ => return Err(Lost::Astray),
            }
        }
    }

    /// Entries, ids and counters, then the groups with what they have pending and their consumers.
    fn stream(&mut self, kind: u8) -> Result<(), Lost> {
        let (second, third) = (kind >= 19, kind >= 21);
        self.each(|walk| walk.strings(2))?;
        self.lengths(if second { 8 } else { 3 })?;
        self.each(|walk| {
            walk.string()?;
            walk.lengths(if second { 3 } else { 2 })?;
            walk.each(|walk| {
                walk.skip(16 + 8)?;
                walk.lengths(1)
            })?;
            walk.each(|walk| {
                walk.string()?;
                walk.skip(if third { 16 } else { 8 })?;
                walk.each(|walk| walk.skip(16))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::super::rdb::tests::sample;
    use super::*;

    fn of(rdb: &[u8]) -> Result<Counted, Lost> {
        count(Cursor::new(rdb), rdb.len() as u64, &|| false)
    }

    #[test]
    fn keys_by_database() {
        let body = b"\xfe\x00\xfb\x02\x01\x00\x01k\x01v\xfc12345678\x00\x01e\xc0\x07\
            \xfe\x05\x04\x01h\x01\x01f\xc3\x04\x05abcd\x12\x01l\x01\x02\x03abc\x03\x01z\x02\x01a\xff\x01b\x011\
            \xf5\x04code";
        let counted = of(&sample(body)).unwrap();
        assert_eq!(counted, Counted { keys: BTreeMap::from([(0, 2), (5, 3)]), libraries: 1 });
    }

    #[test]
    fn lengths_of_every_kind() {
        let mut body = b"\x00\x01a\x41\x00".to_vec();
        body.extend_from_slice(&[b'x'; 256]);
        body.extend_from_slice(
            b"\x00\x01b\x80\x00\x00\x00\x03xyz\x00\x01c\x81\0\0\0\0\0\0\0\x02xy",
        );
        assert_eq!(of(&sample(&body)).unwrap().keys, BTreeMap::from([(0, 3)]));
    }

    #[test]
    fn the_same_number_in_redis_and_valkey() {
        let body = b"\xfe\x00\x16\x01h\x02\x01f\x01v\xa5\xbe\xa2\x13\xa2\x01\0\0\x01g\x01w\xff\xff\xff\xff\xff\xff\xff\xff";
        let redis = sample(body);
        assert!(matches!(of(&redis), Err(Lost::Unknown(22))));
        let valkey = [b"VALKEY080", &redis[9..]].concat();
        assert_eq!(of(&valkey).unwrap().keys, BTreeMap::from([(0, 1)]));
    }

    #[test]
    fn what_cannot_be_walked_is_told() {
        assert!(matches!(of(&sample(b"\x18\x01kxxxx")), Err(Lost::Unknown(0x18))));
        for astray in [
            &b"\x00\x01k\x81\xff\xff\xff\xff\xff\xff\xff\xff"[..],
            b"\x00\x01k\x82",
            b"\x04\x01k\xc0",
        ] {
            assert!(matches!(of(&sample(astray)), Err(Lost::Astray)));
        }
        let rdb = sample(b"\x00\x01k\x01v");
        assert!(matches!(count(Cursor::new(&rdb), 4, &|| false), Err(Lost::Astray)));
        assert!(matches!(count(Cursor::new(&rdb), rdb.len() as u64, &|| true), Err(Lost::Stopped)));
    }

    proptest! {
        /// Whatever it is given, the walk ends.
        #[test]
        fn garbage(body: Vec<u8>) {
            let _ = of(&sample(&body));
        }
    }
}
