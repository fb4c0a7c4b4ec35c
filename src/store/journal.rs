//! A look at the engine's journal before the engine sees it.
//!
//! The engine drops everything behind the first thing it does not understand, without a word, and trusts
//! lengths far enough to run out of memory. Every commit of ours is synced before the next one starts, so a
//! crash can leave **one** broken batch, at the end. Anything else is damage, as far as it shows: where the whole
//! end of the file is gone or zeroed, nothing here can tell how much stood there. For the agent's runs and results
//! the high-water file can.
//!
//! ```text
//! batch := 01 · u32 items · u64 seqno · item* · 03 · u64 xxh3 of the items · "FJL" 03        (little-endian)
//! item  := 02 · u8 kind · u8 compression · u64 keyspace · u16 key length · u32 length · u32 length on disk · key · value
//!        | 04 · u64 keyspace
//! file  := batch* · zeros (space set aside)
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use super::MAX_VALUE_BYTES;

const TRAILER: &[u8; 4] = b"FJL\x03";
/// The end of a batch and the start of the next. Sealed values are random, so it does not stand there by chance.
const SEAM: &[u8; 5] = b"FJL\x03\x01";

/// What a journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Whole batches up to `end`, then nothing.
    Whole {
        /// Where the last one ends.
        end: u64,
    },
    /// Whole batches up to `end`, then one that a crash cut short.
    Torn {
        /// Where the last whole one ends.
        end: u64,
    },
    /// Something that was synced is not what was written.
    Damaged {
        /// Where it starts.
        at: u64,
    },
}

/// Reads and judges a journal.
pub fn check(path: &Path) -> io::Result<Verdict> {
    Ok(inspect(&read_used(path)?))
}

/// Cuts off everything from `end` on; 0 empties the journal. It must stay there as a file: without one the engine
/// forgets what it counted, and hides the tables.
pub fn cut(path: &Path, end: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(end)?;
    file.sync_all()
}

/// Rewrites a damaged journal to the batches that are still whole, before and behind the damage. For copies only.
pub fn keep_whole_batches(path: &Path) -> io::Result<()> {
    std::fs::write(path, whole_batches(&read_used(path)?))
}

fn whole_batches(bytes: &[u8]) -> Vec<u8> {
    let (mut whole, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        match batch(&bytes[at..]) {
            Some(batch) => {
                whole.extend_from_slice(&bytes[at..at + batch.len]);
                at += batch.len;
            }
            None => at += 1,
        }
    }
    whole
}

/// The file without the zeros at its end: a new journal is 64 MiB of nothing.
fn read_used(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    let mut zeros = 0usize;
    let mut chunk = vec![0u8; 64 << 10];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        if chunk[..n].iter().all(|byte| *byte == 0) {
            zeros += n;
        } else {
            bytes.resize(bytes.len() + zeros, 0);
            zeros = 0;
            bytes.extend_from_slice(&chunk[..n]);
        }
    }
    Ok(bytes)
}

/// Judges the content of a journal.
pub fn inspect(bytes: &[u8]) -> Verdict {
    let mut at = 0;
    let mut last = None;
    // Numbers only rise; they are outside of the checksum, so this is what notices a changed one.
    while let Some(batch) = batch(&bytes[at..]).filter(|b| last.is_none_or(|last| b.seqno > last)) {
        at += batch.len;
        last = Some(batch.seqno);
    }
    let end = at as u64;
    let rest = &bytes[at..];
    if rest.iter().all(|&byte| byte == 0) {
        return Verdict::Whole { end };
    }
    // A whole batch behind the broken place was written after it, so the broken place had been synced.
    let later = (0..rest.len()).any(|from| rest[from] == 1 && batch(&rest[from..]).is_some());
    // So does the seam between two batches, whatever became of them.
    let seam = rest.windows(SEAM.len()).any(|bytes| bytes == SEAM);
    // And a length that no commit of ours has.
    if later || seam || absurd(rest) { Verdict::Damaged { at: end } } else { Verdict::Torn { end } }
}

struct Batch {
    len: usize,
    seqno: u64,
}

/// The batch at the start of `bytes`, if a whole and unchanged one is there.
fn batch(bytes: &[u8]) -> Option<Batch> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.u8()? != 1 {
        return None;
    }
    let items = cursor.u32()?;
    let seqno = cursor.u64()?;
    let from = cursor.at;
    for _ in 0..items {
        cursor.item()?;
    }
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[from..cursor.at]);
    let whole = cursor.u8()? == 3 && cursor.u64()? == sum && cursor.take(4)? == TRAILER;
    (whole && items > 0).then_some(Batch { len: cursor.at, seqno })
}

/// Whether the batch at the start of `bytes` claims a value that no commit of ours can have.
fn absurd(bytes: &[u8]) -> bool {
    let mut cursor = Cursor { bytes, at: 13 };
    loop {
        if let Some(head) = bytes.get(cursor.at..).filter(|rest| rest.first() == Some(&2)) {
            let mut head = Cursor { bytes: head, at: 13 };
            let (Some(len), Some(on_disk)) = (head.u32(), head.u32()) else { return false };
            if len as usize > MAX_STORED || on_disk as usize > MAX_STORED {
                return true;
            }
        }
        if cursor.item().is_none() {
            return false;
        }
    }
}

const MAX_STORED: usize = MAX_VALUE_BYTES + super::seal::OVERHEAD;

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn item(&mut self) -> Option<()> {
        match self.u8()? {
            2 => {
                self.take(2 + 8)?;
                let key = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
                let len = self.u32()?;
                if self.u32()? != len {
                    return None;
                }
                self.take(usize::from(key))?;
                self.take(usize::try_from(len).ok()?)?;
                Some(())
            }
            4 => self.take(8).map(|_| ()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch_bytes(seqno: u64, items: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in items {
            body.extend([2, 0, 0]);
            body.extend(7u64.to_le_bytes());
            body.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
            let len = u32::try_from(value.len()).unwrap().to_le_bytes();
            body.extend(len);
            body.extend(len);
            body.extend(*key);
            body.extend(*value);
        }
        let mut bytes = vec![1];
        bytes.extend(u32::try_from(items.len()).unwrap().to_le_bytes());
        bytes.extend(seqno.to_le_bytes());
        bytes.extend(&body);
        bytes.push(3);
        bytes.extend(xxhash_rust::xxh3::xxh3_64(&body).to_le_bytes());
        bytes.extend(TRAILER);
        bytes
    }

    fn three() -> (Vec<u8>, usize) {
        let mut bytes = batch_bytes(1, &[(b"a", b"one")]);
        bytes.extend(batch_bytes(2, &[(b"b", &[9; 5000]), (b"c", b"")]));
        let last = bytes.len();
        bytes.extend(batch_bytes(3, &[(b"d", b"four"), (b"e", &[0; 40])]));
        (bytes, last)
    }

    #[test]
    fn whole_batches_and_zeros_are_whole() {
        let (mut bytes, _) = three();
        let end = bytes.len() as u64;
        assert_eq!(inspect(&bytes), Verdict::Whole { end });
        bytes.resize(bytes.len() + 4096, 0);
        assert_eq!(inspect(&bytes), Verdict::Whole { end });
        assert_eq!(inspect(&[]), Verdict::Whole { end: 0 });
    }

    #[test]
    fn a_cut_anywhere_in_the_last_batch_is_torn_and_nothing_else() {
        let (bytes, last) = three();
        for cut in last + 1..bytes.len() {
            let mut torn = bytes[..cut].to_vec();
            assert_eq!(inspect(&torn), Verdict::Torn { end: last as u64 }, "cut at {cut}");
            torn.resize(bytes.len() + 100, 0);
            assert_eq!(inspect(&torn), Verdict::Torn { end: last as u64 }, "zeros from {cut}");
        }
    }

    #[test]
    fn a_hole_in_the_last_batch_is_torn_and_in_the_last_two_is_damage() {
        let (bytes, last) = three();
        let mut hole = bytes.clone();
        hole[last + 40..last + 60].fill(0);
        assert_eq!(inspect(&hole), Verdict::Torn { end: last as u64 });
        hole[last - 10] ^= 1;
        assert!(matches!(inspect(&hole), Verdict::Damaged { at } if at < last as u64));
    }

    #[test]
    fn a_change_anywhere_before_the_last_batch_is_damage() {
        let (bytes, last) = three();
        for at in 0..last {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                let verdict = inspect(&changed);
                // The first batch's number may become any lower one, which changes nothing.
                let harmless = (5..13).contains(&at) && verdict == inspect(&bytes);
                assert!(
                    harmless || matches!(verdict, Verdict::Damaged { .. }),
                    "byte {at}: {verdict:?}"
                );
            }
        }
        let mut zeroed = bytes.clone();
        zeroed[1000..5000].fill(0);
        assert!(matches!(inspect(&zeroed), Verdict::Damaged { .. }));
    }

    #[test]
    fn what_is_whole_can_be_kept() {
        let (mut bytes, last) = three();
        let all = bytes.clone();
        assert_eq!(whole_batches(&bytes), all);
        bytes[100] ^= 1;
        let first = batch_bytes(1, &[(b"a", b"one")]).len();
        assert_eq!(whole_batches(&bytes), [&all[..first], &all[last..]].concat());
    }

    #[test]
    fn a_huge_length_is_damage_even_at_the_end() {
        let (mut bytes, last) = three();
        bytes[last + 13 + 13 + 4..last + 13 + 13 + 8].fill(0xee);
        assert_eq!(inspect(&bytes), Verdict::Damaged { at: last as u64 });
    }
}
