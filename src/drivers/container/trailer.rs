//! The end of a tool's output as the script in the container marks it: pure.
//!
//! Docker gives a command that has ended only seconds to get its output to a slow reader, and then reports
//! exit code 0 for a stream without its end. So the end of stdout is a line of our own, which no daemon
//! could add: `backupy:TOKEN:CODE\n`. It is held back from whoever takes the output.

/// `backupy:` and `:NNN\n` around the token.
const AROUND: usize = 8 + 5;

/// What has been read and may be the trailer's beginning.
#[derive(Debug)]
pub(super) struct Trailer {
    held: Vec<u8>,
    head: Vec<u8>,
    length: usize,
}

impl Trailer {
    /// For a run's token.
    pub(super) fn new(token: &str) -> Self {
        let head = format!("backupy:{token}:").into_bytes();
        Self { held: Vec::new(), head, length: token.len() + AROUND }
    }

    /// Takes the next bytes; those that are output for certain are handed to `pass`.
    ///
    /// # Errors
    /// Those of `pass`.
    pub(super) fn feed<E>(
        &mut self,
        chunk: &[u8],
        pass: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let free = (self.held.len() + chunk.len()).saturating_sub(self.length);
        let of_held = free.min(self.held.len());
        let of_chunk = free - of_held;
        if of_held > 0 {
            pass(self.held.get(..of_held).unwrap_or_default())?;
            self.held.drain(..of_held);
        }
        if of_chunk > 0 {
            pass(chunk.get(..of_chunk).unwrap_or_default())?;
        }
        self.held.extend_from_slice(chunk.get(of_chunk..).unwrap_or_default());
        Ok(())
    }

    /// The tool's exit code, if the output so far ends with the trailer.
    pub(super) fn code(&self) -> Option<i32> {
        let digits = self.held.strip_prefix(&self.head[..])?.strip_suffix(b"\n")?;
        let plain = digits.len() == 3 && digits.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn feed(bytes: &[u8], size: usize) -> (Vec<u8>, Option<i32>) {
        let (mut trailer, mut out) = (Trailer::new(TOKEN), Vec::new());
        for chunk in bytes.chunks(size) {
            let mut pass = |piece: &[u8]| -> Result<(), ()> {
                out.extend_from_slice(piece);
                Ok(())
            };
            trailer.feed(chunk, &mut pass).unwrap();
        }
        (out, trailer.code())
    }

    #[test]
    fn however_it_is_cut() {
        let output: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for length in [0, 1, 28, 29, 30, 1000] {
            let bytes = [&output[..length], b"backupy:0123456789abcdef:007\n"].concat();
            for size in [1, 2, 28, 29, 30, 31, 2000] {
                assert_eq!(feed(&bytes, size), (output[..length].to_vec(), Some(7)), "{size}");
            }
        }
    }

    #[test]
    fn anything_else_is_output() {
        for end in [
            "",
            "backupy:0123456789abcdef:000",
            "backupy:0123456789abcdef:000\n ",
            "backupy:0123456789abcdee:000\n",
            "backupy:0123456789abcdef:-01\n",
            "backupy:0123456789abcdef:00\n",
        ] {
            let bytes = [b"x".repeat(100), end.into()].concat();
            assert_eq!(feed(&bytes, 64).1, None, "{end}");
        }
    }

    #[test]
    fn an_error_of_the_taker_comes_through() {
        let mut trailer = Trailer::new(TOKEN);
        assert_eq!(trailer.feed(&[0; 100], &mut |_| Err("full")), Err("full"));
    }
}
