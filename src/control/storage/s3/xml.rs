//! As much XML as S3 speaks, read from one bounded answer: elements and text, no attributes, no DTD.
//!
//! A document that breaks off, nests wrongly or goes on behind its root is an error, so that a list that was cut
//! never counts as a shorter list.

/// No answer of S3 nests deeper than half of this.
const MAX_DEPTH: usize = 16;

/// An element's end, with the text directly in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leaf<'d> {
    /// Names from the root down, joined by `/`, without namespace prefixes.
    pub path: &'d str,
    /// Its own text, entities resolved.
    pub text: &'d str,
}

/// Calls `each` at the end of every element, inner ones first.
pub(super) fn walk(document: &[u8], each: &mut dyn FnMut(Leaf<'_>)) -> Result<(), &'static str> {
    let document = std::str::from_utf8(document).map_err(|_| "it is not UTF-8")?;
    let mut rest = document.trim_start_matches('\u{feff}').trim_start();
    let mut path = String::new();
    let mut texts: Vec<String> = Vec::new();
    let mut ended = false;
    while !rest.is_empty() {
        let Some(tag) = rest.strip_prefix('<') else {
            let (text, after) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
            match texts.last_mut() {
                Some(own) => unescape(text, own)?,
                None if text.trim().is_empty() => {}
                None => return Err("it is not XML"),
            }
            rest = after;
            continue;
        };
        if let Some(comment) = tag.strip_prefix("!--") {
            rest = after(comment, "-->")?.1;
        } else if let Some(data) = tag.strip_prefix("![CDATA[") {
            let (data, next) = after(data, "]]>")?;
            texts.last_mut().ok_or("it is not XML")?.push_str(data);
            rest = next;
        } else if let Some(instruction) = tag.strip_prefix('?') {
            rest = after(instruction, "?>")?.1;
        } else if tag.starts_with('!') {
            return Err("it has a DTD");
        } else {
            let (tag, next) = after(tag, ">")?;
            rest = next;
            if let Some(name) = tag.strip_prefix('/') {
                end(local(name)?, &mut path, &mut texts, each)?;
            } else {
                if ended && texts.is_empty() {
                    return Err("it goes on behind its end");
                }
                let (open, empty) = match tag.strip_suffix('/') {
                    Some(open) => (open, true),
                    None => (tag, false),
                };
                let name = local(open)?;
                if texts.len() == MAX_DEPTH {
                    return Err("it nests too deeply");
                }
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(name);
                texts.push(String::new());
                if empty {
                    end(name, &mut path, &mut texts, each)?;
                }
            }
            ended = texts.is_empty();
        }
    }
    if ended { Ok(()) } else { Err("it breaks off, or is not XML") }
}

fn end(
    name: &str,
    path: &mut String,
    texts: &mut Vec<String>,
    each: &mut dyn FnMut(Leaf<'_>),
) -> Result<(), &'static str> {
    let above = path.rfind('/').unwrap_or(0);
    let open = &path[above..];
    if path.is_empty() || open.strip_prefix('/').unwrap_or(open) != name {
        return Err("its elements do not match");
    }
    let text = texts.pop().ok_or("its elements do not match")?;
    each(Leaf { path, text: &text });
    path.truncate(above);
    Ok(())
}

fn after<'d>(text: &'d str, mark: &str) -> Result<(&'d str, &'d str), &'static str> {
    text.split_once(mark).ok_or("it breaks off")
}

/// A tag's name without attributes and namespace prefix.
fn local(tag: &str) -> Result<&str, &'static str> {
    let name = tag.split_ascii_whitespace().next().unwrap_or_default();
    let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(fits) {
        return Err("it is not XML");
    }
    Ok(name)
}

fn unescape(text: &str, out: &mut String) -> Result<(), &'static str> {
    let mut rest = text;
    while let Some((before, entity)) = rest.split_once('&') {
        out.push_str(before);
        let (name, after) = entity.split_once(';').ok_or("it has a broken entity")?;
        out.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => numbered(name).ok_or("it has an unknown entity")?,
        });
        rest = after;
    }
    out.push_str(rest);
    Ok(())
}

fn numbered(name: &str) -> Option<char> {
    let digits = name.strip_prefix('#')?;
    let code = match digits.strip_prefix('x') {
        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(document: &str) -> Result<Vec<(String, String)>, &'static str> {
        let mut found = Vec::new();
        walk(document.as_bytes(), &mut |leaf| found.push((leaf.path.into(), leaf.text.into())))?;
        Ok(found)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect()
    }

    #[test]
    fn elements_text_and_entities() {
        let document = "\u{feff}<?xml version=\"1.0\"?>\n<!-- x --><s:A xmlns:s=\"u\"><B> a&amp;&#x41;&#66;</B>\
                        <C/><C a='1' /><D><![CDATA[<x>&]]></D></s:A>\n";
        let expected = [("A/B", " a&AB"), ("A/C", ""), ("A/C", ""), ("A/D", "<x>&"), ("A", "")];
        assert_eq!(leaves(document).unwrap(), pairs(&expected));
    }

    #[test]
    fn whatever_is_cut_or_foreign_is_refused() {
        let good = "<A><B>x</B><C>&lt;</C></A>";
        assert!(leaves(good).is_ok());
        for end in 0..good.len() {
            assert!(leaves(&good[..end]).is_err(), "{}", &good[..end]);
        }
        for bad in [
            "<!DOCTYPE html><html></html>",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
            "<A>&b;</A>",
            "<A>&#xD800;</A>",
            "<A><B></A></B>",
            "<A></B>",
            "</A>",
            "<A></A><B></B>",
            "<A></A>x",
            "x<A></A>",
            "{\"a\": 1}",
            "<a\u{1b}></a\u{1b}>",
        ] {
            assert!(leaves(bad).is_err(), "{bad}");
        }
        assert!(leaves(&"<A>".repeat(17)).unwrap_err().contains("deeply"));
        assert!(walk(b"<A>\xff</A>", &mut |_| ()).is_err());
    }
}
