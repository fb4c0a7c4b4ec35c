//! Cuts the sealed stream into parts and hashes the whole of it, in order, whoever takes the parts.

use crossbeam_channel::Receiver;
use ring::digest::{Context, SHA256};

use super::plan::{MAX_PARTS, PartPlan, PlanError};
use crate::pipeline::buffers::{Giver, Piece};
use crate::pipeline::spool::Sealed;
use crate::pipeline::stages::StageError;

/// One part.
pub(super) struct Part {
    /// From 1.
    pub(super) number: u32,
    pub(super) content: Sealed,
}

pub(super) struct Cutter {
    plan: PartPlan,
    pieces: Receiver<Piece>,
    used: Giver,
    /// The piece that is being cut, and how far.
    piece: Vec<u8>,
    at: usize,
    ended: bool,
    parts: u32,
    bytes: u64,
    hash: Context,
}

impl Cutter {
    pub(super) fn new(plan: PartPlan, pieces: Receiver<Piece>, used: Giver) -> Self {
        Self {
            plan,
            pieces,
            used,
            piece: Vec::new(),
            at: 0,
            ended: false,
            parts: 0,
            bytes: 0,
            hash: Context::new(&SHA256),
        }
    }

    /// The next part, in this buffer; `None` behind the last. An empty stream is one empty part.
    pub(super) fn next(&mut self, mut buffer: Vec<u8>) -> Result<Option<Part>, StageError> {
        buffer.clear();
        buffer.reserve_exact(self.plan.part_bytes());
        while buffer.len() < self.plan.part_bytes() && self.more()? {
            let rest = &self.piece[self.at..];
            let count = rest.len().min(self.plan.part_bytes() - buffer.len());
            buffer.extend_from_slice(&rest[..count]);
            self.at += count;
            if self.at == self.piece.len() {
                self.used.give(std::mem::take(&mut self.piece));
                self.at = 0;
            }
        }
        if buffer.is_empty() && self.parts > 0 {
            return Ok(None);
        }
        self.bytes += buffer.len() as u64;
        if self.parts == MAX_PARTS {
            let part_bytes = self.plan.part_bytes() as u64;
            let error = PlanError::TooLarge { at_least: self.bytes, part_bytes };
            return Err(StageError::Upload(error.into()));
        }
        self.parts += 1;
        let before = self.hash.clone();
        self.hash.update(&buffer);
        let content = Sealed::part(buffer, before, digest(self.hash.clone()));
        Ok(Some(Part { number: self.parts, content }))
    }

    /// Whether there is a byte to cut.
    fn more(&mut self) -> Result<bool, StageError> {
        while self.at == self.piece.len() && !self.ended {
            match self.pieces.recv() {
                Ok(Piece::Data(bytes)) => self.piece = bytes,
                Ok(Piece::End) => self.ended = true,
                Err(_) => return Err(StageError::NeighbourGone),
            }
        }
        Ok(self.at < self.piece.len())
    }

    /// Size and SHA-256 of everything that was cut, once all of it was.
    pub(super) fn finish(self) -> (u64, [u8; 32]) {
        (self.bytes, digest(self.hash))
    }
}

fn digest(context: Context) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(context.finish().as_ref());
    sha256
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;
    use ring::digest::digest as sha256_of;

    use super::*;
    use crate::pipeline::buffers::{pieces, pool};
    use crate::pipeline::testing::noise;

    const MIB: usize = 1 << 20;

    /// Cuts pieces of these sizes into parts of 5 MiB, and gives the parts' bytes.
    fn cut(sizes: &[usize], end: bool) -> Result<(Vec<Vec<u8>>, Cutter), StageError> {
        let (sender, receiver) = pieces();
        let (_taker, giver) = pool(1);
        let plan = PartPlan::new(5 << 20).unwrap();
        let mut cutter = Cutter::new(plan, receiver, giver);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (seed, size) in sizes.iter().enumerate() {
                    sender.send(Piece::Data(noise(*size, seed as u64))).unwrap();
                }
                if end {
                    sender.send(Piece::End).unwrap();
                }
            });
            let mut parts = Vec::new();
            let mut buffer = Vec::new();
            while let Some(part) = cutter.next(buffer)? {
                assert_eq!(part.number as usize, parts.len() + 1);
                let mut bytes = Vec::new();
                part.content.reader().read_to_end(&mut bytes).unwrap();
                parts.push(bytes);
                buffer = part.content.into_buffer();
                assert!(buffer.capacity() <= 5 * MIB + MIB, "the buffer is used again");
            }
            Ok((parts, cutter))
        })
    }

    #[test]
    fn an_empty_stream_is_one_empty_part_and_a_broken_one_is_an_error() {
        assert_eq!(cut(&[], true).unwrap().0, [Vec::<u8>::new()]);
        assert_eq!(cut(&[0, 0], true).unwrap().0, [Vec::<u8>::new()]);
        for sizes in [&[][..], &[7], &[5 * MIB]] {
            assert!(matches!(cut(sizes, false), Err(StageError::NeighbourGone)));
        }
    }

    #[test]
    fn a_whole_number_of_parts_has_no_empty_one_behind() {
        let (parts, _) = cut(&[4 * MIB, 4 * MIB, 2 * MIB], true).unwrap();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [5 * MIB, 5 * MIB]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
        #[test]
        fn parts_are_the_stream(sizes in prop::collection::vec(0usize..3 * MIB, 0..8)) {
            let (parts, cutter) = cut(&sizes, true).unwrap();
            let whole: Vec<u8> =
                sizes.iter().enumerate().flat_map(|(seed, size)| noise(*size, seed as u64)).collect();
            for part in &parts[..parts.len() - 1] {
                prop_assert_eq!(part.len(), 5 * MIB);
            }
            prop_assert!(parts.concat() == whole);
            let (bytes, sha256) = cutter.finish();
            prop_assert_eq!(bytes, whole.len() as u64);
            let expected = sha256_of(&SHA256, &whole);
            prop_assert_eq!(&sha256[..], expected.as_ref());
        }
    }
}
