//! What a message may hold, looked at before it is decoded.
//!
//! An empty item of a list takes two bytes on the wire and hundreds in memory, so that the 4 MiB of a message
//! could become gigabytes. Only lists of messages grow like this: containers of a discovery report, the
//! targets, jobs and checks of a configuration, and the parts of an upload.

/// Items of the lists in one message.
pub(super) const MAX_ITEMS: usize = 10_000;

/// Fields of all these items together.
pub(super) const MAX_FIELDS: usize = 200_000;

/// Payloads with lists, and the fields in each other that lead to what holds them (none: the payload does).
const HOLDERS: [(u64, &[u64]); 5] =
    [(12, &[]), (50, &[2]), (51, &[1]), (52, &[4, 100]), (150, &[])];

/// Whether an encoded envelope holds no more than fits. What is no protobuf at all is left to the decoder.
pub(super) fn fits(envelope: &[u8]) -> bool {
    let (mut items, mut fields) = (0, 0);
    for (number, payload) in messages(envelope) {
        let Some((_, path)) = HOLDERS.iter().find(|(holder, _)| *holder == number) else {
            continue;
        };
        for holder in holders(payload, path) {
            for (_, item) in messages(holder) {
                items += 1;
                fields += Fields(item).take(MAX_FIELDS + 1).count();
                if items > MAX_ITEMS || fields > MAX_FIELDS {
                    return false;
                }
            }
        }
    }
    true
}

/// What the path leads to. A field that stands there twice is merged, so that every one of them counts.
fn holders<'a>(payload: &'a [u8], path: &[u64]) -> Vec<&'a [u8]> {
    path.iter().fold(vec![payload], |holders, step| {
        let inside = |holder| messages(holder).filter(|(number, _)| number == step);
        holders.into_iter().flat_map(inside).map(|(_, holder)| holder).collect()
    })
}

/// The fields with a length.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    Fields(bytes).filter_map(|(number, bytes)| Some((number, bytes?)))
}

/// The fields of a message until its end, or until it is none: number, and the bytes of those with a length.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let length = match key & 7 {
            0 => {
                self.varint()?;
                return Some((key >> 3, None));
            }
            1 => 8,
            2 => usize::try_from(self.varint()?).ok()?,
            // The two ends of a group have nothing of their own.
            3 | 4 => 0,
            5 => 4,
            _ => return None,
        };
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((key >> 3, (key & 7 == 2).then_some(bytes)))
    }
}

impl Fields<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AgentConfig, Job};
    use crate::wire::{
        AgentMessage, Container, Header, ServerMessage, decode_server, encode_agent, encode_server,
    };

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        // Keys of two bytes do for numbers below 16 as well.
        let key = u32::from(number) << 3 | 2;
        let mut out = vec![key as u8 | 0x80, (key >> 7) as u8];
        let mut length = bytes.len();
        while length > 0x7f {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn many_empty_items_are_refused_before_they_are_made() {
        let jobs = |count: usize| [0x1a, 0].repeat(count);
        assert!(fits(&field(51, &field(1, &jobs(MAX_ITEMS)))));
        let many = jobs(2_000_000);
        for envelope in [
            field(51, &field(1, &many)),
            field(50, &field(2, &many)),
            field(12, &many),
            // In halves, which the decoder would merge.
            field(51, &field(1, &jobs(MAX_ITEMS / 2 + 1)).repeat(2)),
            field(51, &field(1, &jobs(MAX_ITEMS / 2 + 1))).repeat(2),
            field(52, &field(4, &field(100, &many))),
            field(52, &field(4, &field(100, &jobs(MAX_ITEMS / 2 + 1))).repeat(2)),
            field(150, &many),
            // Behind a group, in which the decoder ignores everything.
            [vec![0x0b, 0x0c], field(51, &field(1, &many))].concat(),
        ] {
            assert!(!fits(&envelope));
            assert!(decode_server(&envelope).unwrap_err().to_string().contains("10000"));
        }
    }

    #[test]
    fn many_fields_of_one_item_are_refused() {
        let hooks = |count: usize| field(51, &field(1, &field(3, &[0x3a, 0].repeat(count))));
        assert!(fits(&hooks(MAX_FIELDS)));
        assert!(!fits(&hooks(MAX_FIELDS + 1)));
    }

    #[test]
    fn what_is_large_in_bytes_only_passes() {
        let job = Job { id: "\x1a\0".repeat(1_000_000), ..Job::default() };
        let config = AgentConfig { jobs: vec![job; 2], ..AgentConfig::default() };
        let update = ServerMessage::ConfigUpdate(Some(config));
        assert!(fits(&encode_server(Header::default(), update)));
        let report = AgentMessage::Discovery(vec![Container::default(); MAX_ITEMS]);
        assert!(fits(&encode_agent(Header::default(), report)));
        for odd in [&b""[..], b"\xff", b"\x9a\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x07"]
        {
            assert!(fits(odd), "{odd:?}");
        }
    }
}
