//! Docker's multiplexed stream, taken apart: pure, and without memory of its own beyond one header.
//!
//! ```text
//! frame := stream (0 stdin, 1 stdout, 2 stderr, 3 the daemon's own error) · 0 0 0 · u32 big-endian length · payload
//! ```
//! A payload is handed on in the pieces in which it comes, so a frame of any length costs nothing.

/// Where a piece belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// What does not look like the format.
pub(super) type Garbage = &'static str;

#[derive(Debug, Default)]
pub(super) struct Frames {
    header: Vec<u8>,
    /// The frame that is under way, and what is missing of it.
    open: Option<(Stream, usize)>,
}

impl Frames {
    /// Takes the next piece off `input`; `None` once nothing is left of it.
    pub(super) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<(Stream, &'a [u8])>, Garbage> {
        loop {
            match self.open {
                Some((_, 0)) => self.open = None,
                Some((_, _)) if input.is_empty() => return Ok(None),
                Some((stream, missing)) => {
                    let (piece, rest) = input.split_at(missing.min(input.len()));
                    *input = rest;
                    self.open = Some((stream, missing - piece.len()));
                    return Ok(Some((stream, piece)));
                }
                None => {
                    let (head, rest) = input.split_at(input.len().min(8 - self.header.len()));
                    *input = rest;
                    self.header.extend_from_slice(head);
                    if self.header.len() < 8 {
                        return Ok(None);
                    }
                    self.open = Some(judge(&self.header)?);
                    self.header.clear();
                }
            }
        }
    }

    /// Whether the stream may end here.
    pub(super) fn between(&self) -> bool {
        self.header.is_empty() && self.open.is_none_or(|(_, missing)| missing == 0)
    }
}

fn judge(header: &[u8]) -> Result<(Stream, usize), Garbage> {
    let &[stream, 0, 0, 0, a, b, c, d] = header else {
        return Err("the stream is not in Docker's frames");
    };
    let stream = match stream {
        0 | 1 => Stream::Stdout,
        2 => Stream::Stderr,
        3 => return Err("the stream ended with an error of the daemon's own"),
        _ => return Err("the stream is not in Docker's frames"),
    };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    Ok((stream, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Feeds `bytes` in pieces of `size`.
    fn feed(bytes: &[u8], size: usize) -> Result<(Vec<u8>, Vec<u8>, bool), Garbage> {
        let (mut frames, mut out, mut err) = (Frames::default(), Vec::new(), Vec::new());
        for mut piece in bytes.chunks(size) {
            while let Some((stream, payload)) = frames.next(&mut piece)? {
                match stream {
                    Stream::Stdout => out.extend_from_slice(payload),
                    Stream::Stderr => err.extend_from_slice(payload),
                }
            }
            assert!(piece.is_empty(), "all of it was taken");
        }
        Ok((out, err, frames.between()))
    }

    #[test]
    fn however_it_is_cut() {
        let mut bytes = frame(1, b"hello ");
        bytes.extend(frame(2, b"note"));
        bytes.extend(frame(1, b""));
        bytes.extend(frame(0, b"wor"));
        bytes.extend(frame(1, b"ld"));
        for size in 1..=bytes.len() {
            let (out, err, whole) = feed(&bytes, size).unwrap();
            assert_eq!((&out[..], &err[..], whole), (&b"hello world"[..], &b"note"[..], true));
        }
        for end in (0..bytes.len()).filter(|end| ![0, 14, 26, 34, 45].contains(end)) {
            assert!(!feed(&bytes[..end], 5).unwrap().2, "cut at {end}");
        }
    }

    #[test]
    fn garbage() {
        for bad in [&b"HTTP/1.1"[..], &[1, 0, 1, 0, 0, 0, 0, 1], &[3, 0, 0, 0, 0, 0, 0, 1], &[4; 8]]
        {
            feed(bad, 8).unwrap_err();
        }
    }

    #[test]
    fn a_frame_that_claims_four_gigabytes_costs_nothing() {
        let bytes = [&[1, 0, 0, 0, 255, 255, 255, 255], &b"x"[..]].concat();
        assert_eq!(feed(&bytes, 3).unwrap(), (b"x".to_vec(), vec![], false));
    }
}
