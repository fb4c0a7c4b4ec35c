//! How sizes, times, tables and progress look to people. Nothing here decides anything.

use std::io::{self, IsTerminal, Write};

/// A size with the unit that reads best: `873 B`, `1.2 KiB`, `34.0 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A duration in at most two units: `850 ms`, `12 s`, `3 min 4 s`, `2 h 10 min`, `5 d 3 h`.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| {
        if small == 0 {
            format!("{big} {big_unit}")
        } else {
            format!("{big} {big_unit} {small} {small_unit}")
        }
    };
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// A point in time, UTC, to the second; a dash for none.
pub fn time(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).ok().filter(|seconds| *seconds > 0);
    match seconds.map(jiff::Timestamp::from_second) {
        Some(Ok(time)) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Some(Err(_)) | None => "-".to_owned(),
    }
}

/// Columns that line up; the last one is not padded.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row with as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Writes it.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Text from elsewhere on one line and without escapes for the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Progress on stderr: one line that is painted over on a terminal, else a line per step.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    painted: usize,
    last_step: String,
}

impl Default for Progress {
    fn default() -> Self {
        Self { terminal: io::stderr().is_terminal(), painted: 0, last_step: String::new() }
    }
}

impl Progress {
    /// Shows a step, with a bar where the percentage is known and a note (such as a size) behind it.
    pub fn step(&mut self, step: &str, percent: Option<u8>, note: &str) {
        let step = printable(step);
        if self.terminal {
            let bar = percent.map_or(String::new(), bar);
            self.paint(&format!("{step:<12}{bar}  {note}"));
        } else if step != self.last_step {
            eprintln!("{step}");
        }
        self.last_step = step;
    }

    /// Takes the painted line away, so that what follows starts on a clean one.
    pub fn clear(&mut self) {
        if self.painted > 0 {
            self.paint("");
            eprint!("\r");
            self.painted = 0;
        }
    }

    fn paint(&mut self, line: &str) {
        let width = line.chars().count();
        eprint!("\r{line}{}", " ".repeat(self.painted.saturating_sub(width)));
        // A terminal that has gone away needs no progress.
        let _ = io::stderr().flush();
        self.painted = width;
    }
}

fn bar(percent: u8) -> String {
    const WIDTH: usize = 30;
    let percent = usize::from(percent.min(100));
    let full = percent * WIDTH / 100;
    format!("[{}{}] {percent:>3} %", "#".repeat(full), "-".repeat(WIDTH - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(
            [0, 1023, 1024, 1536, 10 << 20, 1 << 60].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 MiB", "1024.0 PiB"]
        );
        assert_eq!(
            [0, 999, 1_000, 61_000, 3_600_000, 93_600_000].map(duration),
            ["0 ms", "999 ms", "1 s", "1 min 1 s", "1 h", "1 d 2 h"]
        );
        assert_eq!(time(0), "-");
        assert_eq!(time(1_700_000_000_999), "2023-11-14 22:13:20");
    }

    #[test]
    fn tables_line_up_and_carry_no_escapes() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["a".into(), "ok\x1b[2J".into()]);
        table.row(vec!["größer".into(), String::new()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME    STATE\na       ok [2J\ngrößer\n");
    }

    #[test]
    fn a_bar_is_full_at_a_hundred() {
        assert!(bar(100).starts_with(&format!("[{}]", "#".repeat(30))));
        assert!(bar(0).starts_with(&format!("[{}]", "-".repeat(30))));
    }
}
