//! JSON objects out of a stream of bytes, one after the other: the items of a list, or events in a row.
//!
//! Only one object is in memory at a time, and none that is longer than [`MAX_OBJECT_BYTES`]: such a one is passed
//! over and counted. That keeps a list of any length in constant memory, and bounds what a decoder makes of it.

/// Longest object that is looked at; a container with its labels is a few KiB.
pub(super) const MAX_OBJECT_BYTES: usize = 128 << 10;

/// Cuts objects out of what is fed to it.
#[derive(Debug, Default)]
pub(super) struct Objects {
    object: Vec<u8>,
    depth: u32,
    string: bool,
    escape: bool,
    /// How many were too long.
    pub(super) passed_over: u32,
    too_long: bool,
}

/// Between objects stands something that belongs to neither a list nor a row of objects.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoObjects;

impl Objects {
    /// Takes the next piece; `each` gets every object that ends in it and says whether to go on.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<bool, NoObjects> {
        for &byte in bytes {
            if self.depth == 0 {
                match byte {
                    b'{' => self.depth = 1,
                    b'[' | b']' | b',' | b' ' | b'\t' | b'\r' | b'\n' => continue,
                    _ => return Err(NoObjects),
                }
                self.too_long = false;
                self.object.clear();
                self.object.push(byte);
                continue;
            }
            self.keep(byte);
            if !self.ends_with(byte) {
                continue;
            }
            if self.too_long {
                self.passed_over = self.passed_over.saturating_add(1);
            } else if !each(&self.object) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the stream may end here.
    pub(super) fn between(&self) -> bool {
        self.depth == 0
    }

    fn keep(&mut self, byte: u8) {
        if self.object.len() >= MAX_OBJECT_BYTES {
            self.too_long = true;
            self.object.clear();
            self.object.shrink_to(READ_AGAIN);
        }
        if !self.too_long {
            self.object.push(byte);
        }
    }

    /// Follows nesting and strings; true at the object's last byte.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.string {
            match byte {
                _ if self.escape => self.escape = false,
                b'\\' => self.escape = true,
                b'"' => self.string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.string = true,
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        self.depth == 0
    }
}

/// What stays allocated after an object that was too long.
const READ_AGAIN: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, piece: usize) -> (Vec<String>, Result<bool, NoObjects>, bool) {
        let (mut objects, mut found) = (Objects::default(), Vec::new());
        let mut result = Ok(true);
        for bytes in text.as_bytes().chunks(piece) {
            result = objects.feed(bytes, &mut |object| {
                found.push(String::from_utf8(object.to_vec()).unwrap());
                true
            });
            if result.is_err() {
                break;
            }
        }
        (found, result, objects.between())
    }

    #[test]
    fn lists_and_rows_in_any_pieces() {
        let items = [r#"{"a":"}{\"]","b":[{},{"c":{}}]}"#, "{}", r#"{"\\":1}"#];
        let list = format!("[{}]\n", items.join(" ,\n"));
        let row = items.join("\n");
        for text in [list, row] {
            for piece in [1, 2, 3, 1000] {
                let (found, result, between) = cut(&text, piece);
                assert_eq!(found, items, "{piece}");
                assert_eq!((result, between), (Ok(true), true));
            }
        }
    }

    #[test]
    fn what_is_no_object_and_what_has_no_end() {
        assert_eq!(cut("null", 9).1, Err(NoObjects));
        assert_eq!(cut("[1]", 9).1, Err(NoObjects));
        assert_eq!(cut("<html>", 9).1, Err(NoObjects));
        assert!(!cut(r#"[{"a":"#, 9).2);
        assert!(!cut(r#"[{"a":"}"#, 9).2);
    }

    #[test]
    fn a_long_one_is_passed_over() {
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(3 * MAX_OBJECT_BYTES));
        let mut objects = Objects::default();
        let mut found = 0;
        let text = format!("[{long},{{}},{long}]");
        for bytes in text.as_bytes().chunks(5000) {
            objects
                .feed(bytes, &mut |_| {
                    found += 1;
                    true
                })
                .unwrap();
            assert!(objects.object.capacity() <= 2 * MAX_OBJECT_BYTES);
        }
        assert_eq!((found, objects.passed_over), (1, 2));
    }

    #[test]
    fn it_stops_when_told() {
        let mut seen = 0;
        let went_on = Objects::default().feed(b"{}{}{}", &mut |_| {
            seen += 1;
            seen < 2
        });
        assert_eq!((went_on, seen), (Ok(false), 2));
    }
}
