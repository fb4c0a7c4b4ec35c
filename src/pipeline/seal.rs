//! The stage that seals: each frame in the buffer it came in, and the end marker behind the last.

use crossbeam_channel::{Receiver, Sender};

use super::buffers::Piece;
use super::stages::StageError;
use crate::artifact::{DataKey, END_MARKER, Sealer};

/// Seals until the end.
pub(super) fn run(
    key: &DataKey,
    frames: &Receiver<Piece>,
    next: &Sender<Piece>,
) -> Result<(), StageError> {
    let mut sealer = Sealer::new(key).map_err(StageError::Seal)?;
    let send = |piece| next.send(piece).map_err(|_| StageError::NeighbourGone);
    loop {
        match frames.recv() {
            Ok(Piece::Data(mut frame)) => {
                sealer.seal(&mut frame).map_err(StageError::Seal)?;
                send(Piece::Data(frame))?;
            }
            Ok(Piece::End) => {
                send(Piece::Data(END_MARKER.to_vec()))?;
                return send(Piece::End);
            }
            Err(_) => return Err(StageError::NeighbourGone),
        }
    }
}
