//! `backupy.toml(5)`, made from the head of the module that reads the file: its example and its table of keys.

use std::fmt::Write;

use crate::man::{escaped, heading};

/// A row of the table: `where`, `key`, `default`, `meaning`.
type Row = [String; 4];

/// The page, from the text of `src/control/file/mod.rs`.
pub fn page(source: &str) -> String {
    let head: Vec<&str> = source.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let rows: Vec<Row> = head.iter().filter_map(|line| row(line)).collect();
    assert!(rows.len() > 20, "the table of keys was not found");
    let mut page = heading("backupy.toml", 5, "settings of backupy up");
    page += ".SH SYNOPSIS\n.I /etc/backupy/backupy.toml\n.SH DESCRIPTION\n\
             One file says what\n.B backupy up\nbacks up, when, and where to. It is TOML, version 1.0. A key that is not known is an \
             error, and so is every\nvalue that does not fit;\n.B backupy up \\-\\-check\nnames them all with their lines.\n\
             SIGHUP reads the file again.\n.PP\nKeys without a table stand before the first one.\n";
    let mut table = String::new();
    for [place, key, default, meaning] in &rows {
        if !place.is_empty() && *place != table {
            table.clone_from(place);
            let title =
                if place == "top" { "KEYS AT THE TOP".into() } else { place.replace('`', "") };
            let _ = writeln!(page, ".SH {}", escaped(&title));
        }
        let _ = writeln!(page, ".TP\n\\fB{}\\fR", escaped(&key.replace('`', "")));
        let _ = write!(page, "{}", escaped(&sentences(default, meaning)));
    }
    page += ".SH EXAMPLE\n.nf\n";
    let example = head.iter().skip_while(|line| !line.contains("```toml")).skip(1);
    for line in example.take_while(|line| !line.contains("```")) {
        let _ = writeln!(page, "{}", escaped(line.strip_prefix(' ').unwrap_or(line)));
    }
    page += ".fi\n.SH SEE ALSO\n.BR backupy (1),\n.BR backupy\\-up (1)\n";
    page
}

/// What a key means and what it is without it, a line each.
fn sentences(default: &str, meaning: &str) -> String {
    let meaning = plain(meaning);
    let meaning = meaning.trim_end_matches([':', '.']);
    let mut text = if meaning.is_empty() { String::new() } else { format!("{meaning}.\n") };
    match default {
        "–" => {}
        "required" => text += "Required.\n",
        choice if choice.starts_with("this or") || choice.starts_with("one of") => {
            text += &format!("Required: {}.\n", plain(choice));
        }
        other => text += &format!("Default: {}.\n", plain(other)),
    }
    text
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<String> =
        line.trim().strip_prefix('|')?.split('|').map(|cell| cell.trim().to_owned()).collect();
    let [place, key, default, meaning, _] = <[String; 5]>::try_from(cells).ok()?;
    let is_head = place == "where" || place.starts_with("---");
    (!is_head).then_some([place, key, default, meaning])
}

/// A cell without the marks of Markdown; what links to code is not for readers of a manual.
fn plain(cell: &str) -> String {
    let parts: Vec<&str> = cell.split("; ").filter(|part| !part.starts_with("see [")).collect();
    parts.join("; ").replace('`', "")
}
