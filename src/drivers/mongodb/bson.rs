//! As much of BSON as an archive's own headers need: scalar fields of a small document.
//!
//! ```text
//! document := i32 length of all of it · element* · 00
//! element  := type byte · name · 00 · value           integers little-endian
//! ```

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Bool(bool),
    Int(i64),
}

/// The field called `name` of a whole document; nothing if it is not there, of another type, or behind a field of a
/// type that no header has.
pub(super) fn field<'a>(document: &'a [u8], name: &str) -> Option<Value<'a>> {
    let mut at = document.get(4..document.len().checked_sub(1)?)?;
    while !at.is_empty() {
        let (kind, key) = (take(&mut at, 1)?[0], cstring(&mut at)?);
        let value = match kind {
            0x01 => take(&mut at, 8).map(|_| None)?,
            0x02 => Some(Value::Text(string(&mut at)?)),
            0x08 => Some(Value::Bool(take(&mut at, 1)?[0] != 0)),
            0x10 => {
                let bytes = take(&mut at, 4)?.first_chunk()?;
                Some(Value::Int(i64::from(i32::from_le_bytes(*bytes))))
            }
            0x12 => Some(Value::Int(i64::from_le_bytes(*take(&mut at, 8)?.first_chunk()?))),
            _ => return None,
        };
        if key == name.as_bytes() {
            return value;
        }
    }
    None
}

/// The text called `name`; empty if there is none.
pub(super) fn text<'a>(document: &'a [u8], name: &str) -> &'a str {
    match field(document, name) {
        Some(Value::Text(text)) => text,
        Some(Value::Bool(_) | Value::Int(_)) | None => "",
    }
}

fn take<'a>(at: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = at.split_at_checked(length)?;
    *at = rest;
    Some(taken)
}

fn cstring<'a>(at: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = at.iter().position(|byte| *byte == 0)?;
    let name = take(at, end)?;
    take(at, 1)?;
    Some(name)
}

fn string<'a>(at: &mut &'a [u8]) -> Option<&'a str> {
    let length = i32::from_le_bytes(*take(at, 4)?.first_chunk()?);
    let bytes = take(at, usize::try_from(length).ok()?)?;
    std::str::from_utf8(bytes.strip_suffix(&[0])?).ok()
}

/// Documents for tests.
#[cfg(test)]
pub(super) mod testing {
    /// `(name, type, value)` as they stand in a document.
    pub(in super::super) fn document(fields: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, kind, value) in fields {
            body.push(*kind);
            body.extend(name.as_bytes());
            body.push(0);
            body.extend(*value);
        }
        let length = i32::try_from(body.len() + 5).unwrap().to_le_bytes();
        [&length[..], &body, &[0]].concat()
    }

    /// A text's value.
    pub(in super::super) fn text(text: &str) -> Vec<u8> {
        let length = i32::try_from(text.len() + 1).unwrap().to_le_bytes();
        [&length[..], text.as_bytes(), &[0]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::document;
    use super::*;

    fn header() -> Vec<u8> {
        document(&[
            ("n", 0x10, &(-4i32).to_le_bytes()),
            ("d", 0x01, &[0; 8]),
            ("db", 0x02, &testing::text("shöp")),
            ("EOF", 0x08, &[1]),
            ("CRC", 0x12, &i64::MIN.to_le_bytes()),
        ])
    }

    #[test]
    fn scalars() {
        let header = header();
        assert_eq!(field(&header, "n"), Some(Value::Int(-4)));
        assert_eq!(field(&header, "db"), Some(Value::Text("shöp")));
        assert_eq!(field(&header, "EOF"), Some(Value::Bool(true)));
        assert_eq!(field(&header, "CRC"), Some(Value::Int(i64::MIN)));
        assert_eq!((field(&header, "d"), field(&header, "x")), (None, None));
        assert_eq!((text(&header, "db"), text(&header, "n")), ("shöp", ""));
    }

    #[test]
    fn whatever_is_cut_or_odd_is_nothing() {
        let whole = header();
        for cut in 0..whole.len() - 10 {
            field(&whole[..cut], "CRC");
        }
        let huge = document(&[("db", 0x02, &[255, 255, 255, 127, b'x', 0])]);
        assert_eq!(field(&huge, "db"), None);
        let negative = document(&[("db", 0x02, &[255, 255, 255, 255, b'x', 0])]);
        assert_eq!(field(&negative, "db"), None);
        assert_eq!(
            field(&document(&[("a", 0x99, b""), ("db", 0x02, &testing::text("x"))]), "db"),
            None
        );
    }
}
