//! What shows that a stream is a whole RDB: its first bytes, its last bytes and its checksum.
//!
//! ```text
//! REDIS0011 | fa redis-ver 7.4.1 | fa … | fe db, keys and values … | ff | CRC-64, little-endian
//! ```
//! Valkey 9 and later begin with `VALKEY080` instead. The opcode `ff` also occurs inside values, so it is looked for
//! only where the framing of the replication protocol (or the file) says that the RDB ends. Versions below
//! 5 have no checksum; one of 0 means that the server was told not to make any.

use std::fmt;

use super::crc64::Crc64;

/// `REDIS` and four digits, or `VALKEY` and three.
const MAGIC_BYTES: usize = 9;
const END_OPCODE: u8 = 0xff;
const AUX_OPCODE: u8 = 0xfa;
/// The end opcode and the checksum.
const END_BYTES: usize = 9;
const FIRST_WITH_CHECKSUM: u16 = 5;
/// The server's version is in the first field after the magic.
const HEAD_BYTES: usize = 128;
const VERSION_MAX: usize = 32;

/// Why a stream is no whole RDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RdbFault {
    /// It does not begin like one.
    NotRdb,
    /// It ends before it could have ended.
    Short {
        /// Its length.
        bytes: u64,
    },
    /// The opcode at its end is missing.
    NoEnd,
    /// Bytes were changed on the way.
    Checksum,
}

impl RdbFault {
    /// Whether another try may bring a good one.
    pub fn retry(self) -> bool {
        match self {
            Self::NotRdb => false,
            Self::Short { .. } | Self::NoEnd | Self::Checksum => true,
        }
    }
}

impl fmt::Display for RdbFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRdb => f.write_str("it does not begin with REDIS or VALKEY and a version"),
            Self::Short { bytes } => write!(f, "it ends after {bytes} bytes"),
            Self::NoEnd => f.write_str("the mark at its end is missing"),
            Self::Checksum => f.write_str("its checksum is wrong"),
        }
    }
}

/// An RDB that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    /// `Redis 7.0.15`, `Valkey 8.1.0`; `None` where the RDB does not say.
    pub(super) server: Option<String>,
    /// False where the server makes no checksum.
    pub(super) checked: bool,
}

/// Watches an RDB pass by, however it is cut.
#[derive(Debug, Default)]
pub(super) struct Watch {
    head: Vec<u8>,
    /// The last bytes, at most [`END_BYTES`], not in `crc` yet.
    tail: Vec<u8>,
    crc: Crc64,
    bytes: u64,
}

impl Watch {
    /// Looks at the next bytes.
    ///
    /// # Errors
    /// As soon as the beginning is not that of an RDB.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(), RdbFault> {
        self.bytes += chunk.len() as u64;
        let knew_version = self.head.len() >= MAGIC_BYTES;
        let wanted = HEAD_BYTES.saturating_sub(self.head.len()).min(chunk.len());
        self.head.extend_from_slice(&chunk[..wanted]);
        if !knew_version && self.head.len() >= MAGIC_BYTES && rdb_version(&self.head).is_none() {
            return Err(RdbFault::NotRdb);
        }
        match chunk.len().checked_sub(END_BYTES) {
            Some(before) => {
                self.crc.update(&self.tail);
                self.crc.update(&chunk[..before]);
                self.tail.clear();
                self.tail.extend_from_slice(&chunk[before..]);
            }
            None => {
                self.tail.extend_from_slice(chunk);
                let before = self.tail.len().saturating_sub(END_BYTES);
                self.crc.update(&self.tail[..before]);
                self.tail.drain(..before);
            }
        }
        Ok(())
    }

    /// Bytes that passed.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Judges it at its end.
    ///
    /// # Errors
    /// When it is not whole.
    pub(super) fn finish(mut self) -> Result<Whole, RdbFault> {
        let short = RdbFault::Short { bytes: self.bytes };
        if self.head.len() <= MAGIC_BYTES {
            return Err(short);
        }
        let version = rdb_version(&self.head).ok_or(RdbFault::NotRdb)?;
        let server = server(&self.head);
        if version < FIRST_WITH_CHECKSUM {
            let ended = self.tail.last() == Some(&END_OPCODE);
            let whole = Whole { server, checked: false };
            return if ended { Ok(whole) } else { Err(RdbFault::NoEnd) };
        }
        if self.bytes < (MAGIC_BYTES + END_BYTES) as u64 {
            return Err(short);
        }
        let (opcode, sum) = self.tail.split_first_chunk::<1>().ok_or(short)?;
        if *opcode != [END_OPCODE] {
            return Err(RdbFault::NoEnd);
        }
        let sum = u64::from_le_bytes(sum.try_into().map_err(|_| short)?);
        self.crc.update(opcode);
        match sum {
            0 => Ok(Whole { server, checked: false }),
            sum if sum == self.crc.value() => Ok(Whole { server, checked: true }),
            _ => Err(RdbFault::Checksum),
        }
    }
}

/// The version in the magic.
fn rdb_version(head: &[u8]) -> Option<u16> {
    let magic = head.get(..MAGIC_BYTES)?;
    let digits = magic.strip_prefix(b"REDIS").or_else(|| magic.strip_prefix(b"VALKEY"))?;
    let digits = std::str::from_utf8(digits).ok()?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The server that wrote it, from the first field.
fn server(head: &[u8]) -> Option<String> {
    let rest = head.get(MAGIC_BYTES..)?.strip_prefix(&[AUX_OPCODE])?;
    let (name, rest) = short_text(rest)?;
    let product = match name {
        "redis-ver" => "Redis",
        "valkey-ver" => "Valkey",
        _ => return None,
    };
    named(product, short_text(rest)?.0)
}

/// A text of less than 64 bytes as the RDB writes it.
fn short_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length)).filter(|_| *length < 64)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// `Redis 7.0.15`, where the version looks like one.
pub(super) fn named(product: &str, version: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '~');
    let sane = (1..=VERSION_MAX).contains(&version.len())
        && version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(fits);
    sane.then(|| format!("{product} {version}"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A whole RDB around `body`.
    pub(in crate::drivers::redis) fn sample(body: &[u8]) -> Vec<u8> {
        let mut rdb = b"REDIS0010\xfa\x09redis-ver\x067.0.15".to_vec();
        rdb.extend_from_slice(body);
        rdb.push(END_OPCODE);
        let mut crc = Crc64::default();
        crc.update(&rdb);
        rdb.extend_from_slice(&crc.value().to_le_bytes());
        rdb
    }

    fn judge(pieces: &[&[u8]]) -> Result<Whole, RdbFault> {
        let mut watch = Watch::default();
        for piece in pieces {
            watch.feed(piece)?;
        }
        watch.finish()
    }

    /// Written by a Redis 7.0.15 that holds `k` = `v`.
    const REAL: &[u8] = b"REDIS0010\xfa\x09redis-ver\x067.0.15\xfa\x0aredis-bits\xc0@\xfa\x05ctime\xc2\x1c\t\x07k\
        \xfa\x08used-mem\xc2\xc8\x17\x0f\x00\xfa\x0erepl-stream-db\xc0\x00\xfa\x07repl-id\
        (e37fb429ac1ed5ed73668f9d746c51d174a4140f\xfa\x0brepl-offset\xc0\x00\xfa\x08aof-base\xc0\x00\
        \xfe\x00\xfb\x01\x00\x00\x01k\x01v\xff\xe3\x13\x98\xac\x94\xc2\x94e";

    #[test]
    fn a_real_one() {
        let whole = judge(&[REAL]).unwrap();
        assert_eq!(whole, Whole { server: Some("Redis 7.0.15".into()), checked: true });
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_seen() {
        for cut in 0..REAL.len() {
            let fault = judge(&[&REAL[..cut]]).unwrap_err();
            assert!(fault.retry(), "cut at {cut}: {fault}");
        }
        for at in 0..REAL.len() {
            let mut changed = REAL.to_vec();
            changed[at] ^= 0x10;
            judge(&[&changed]).unwrap_err();
        }
    }

    #[test]
    fn other_versions() {
        let mut off = sample(b"\xfe\x00");
        let end = off.len() - 8;
        off[end..].fill(0);
        assert!(!judge(&[&off]).unwrap().checked);
        assert_eq!(
            judge(&[b"REDIS0004\xfe\x00\xff"]).unwrap(),
            Whole { server: None, checked: false }
        );
        assert_eq!(judge(&[b"REDIS0004\xfe\x00"]), Err(RdbFault::NoEnd));
        let mut valkey = b"VALKEY080\xfa\x0avalkey-ver\x059.0.1\xff".to_vec();
        valkey.extend_from_slice(&[0; 8]);
        assert_eq!(judge(&[&valkey]).unwrap().server.unwrap(), "Valkey 9.0.1");
    }

    #[test]
    fn what_is_none_shows_at_once() {
        for other in [&b"HTTP/1.1 400"[..], b"REDIS00x0\xff", b"REDISxxxx", b"PGDMP\x01\x0e\0\0\0"]
        {
            assert_eq!(Watch::default().feed(other), Err(RdbFault::NotRdb));
        }
        assert!(!RdbFault::NotRdb.retry());
        assert_eq!(judge(&[]), Err(RdbFault::Short { bytes: 0 }));
    }

    #[test]
    fn versions_that_are_none() {
        assert_eq!(named("Redis", "7.2.4-rc1").unwrap(), "Redis 7.2.4-rc1");
        for odd in ["", "x7", "7 0", "7\n", &"7".repeat(33)] {
            assert_eq!(named("Redis", odd), None);
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut(body: Vec<u8>, cuts: Vec<prop::sample::Index>) {
            let rdb = sample(&body);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(rdb.len() + 1)).collect();
            at.extend([0, rdb.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &rdb[pair[0]..pair[1]]).collect();
            prop_assert!(judge(&pieces).unwrap().checked);
        }
    }
}
