//! A TOML table that is read key by key, noting every problem with its line instead of stopping at the first.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Something wrong (or doubtful) in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The line, from 1; 0 when it is about no line: a flag, or the file as a whole.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

/// Collects the problems of one file.
pub(super) struct Report<'t> {
    text: &'t str,
    /// After a syntax error a key may be missing only because its line could not be read.
    quiet_missing: bool,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(text: &'t str, quiet_missing: bool) -> Self {
        Self { text, quiet_missing, problems: RefCell::default(), warnings: RefCell::default() }
    }

    pub(super) fn line(&self, at: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn problem(&self, at: &Range<usize>, message: impl fmt::Display) {
        let problem = Problem { line: self.line(at), message: message.to_string() };
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn missing(&self, at: &Range<usize>, message: impl fmt::Display) {
        if !self.quiet_missing {
            self.problem(at, message);
        }
    }

    pub(super) fn warn(&self, at: &Range<usize>, message: impl fmt::Display) {
        let warning = Problem { line: self.line(at), message: message.to_string() };
        self.warnings.borrow_mut().push(warning);
    }

    /// (problems, warnings), each in the order of the lines.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let (mut problems, mut warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        problems.sort();
        problems.dedup();
        warnings.sort();
        (problems, warnings)
    }
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// One table; [`Section::finish`] complains about every key that nobody asked for.
pub(super) struct Section<'r, 'i> {
    table: &'r DeTable<'i>,
    /// As in the file: `[storage]`, `[[backup]]`, `keep`; empty for the top.
    title: &'static str,
    pub(super) span: Range<usize>,
    report: &'r Report<'r>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'r, 'i> Section<'r, 'i> {
    pub(super) fn new(
        table: &'r DeTable<'i>,
        title: &'static str,
        span: Range<usize>,
        report: &'r Report<'r>,
    ) -> Self {
        Self { table, title, span, report, asked: RefCell::default() }
    }

    pub(super) fn report(&self) -> &'r Report<'r> {
        self.report
    }

    fn get(&self, key: &'static str) -> Option<&'r Spanned<DeValue<'i>>> {
        self.asked.borrow_mut().push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Whether the key is there at all; also counts as asked for.
    pub(super) fn place(&self, key: &'static str) -> Option<Range<usize>> {
        self.get(key).map(Spanned::span)
    }

    fn wrong<T>(&self, key: &str, value: &Spanned<DeValue<'_>>, form: &str) -> Option<T> {
        let kind = kind(value.get_ref());
        self.report.problem(&value.span(), format_args!("`{key}` must be {form}, not {kind}"));
        None
    }

    /// A text that is not empty.
    pub(super) fn string(&self, key: &'static str, form: &str) -> Option<At<String>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.report.problem(&value.span(), format_args!("`{key}` is empty"));
                None
            }
            DeValue::String(text) => Some(At { value: text.to_string(), span: value.span() }),
            _ => self.wrong(key, value, form),
        }
    }

    /// A text that must be there.
    pub(super) fn required(&self, key: &'static str, form: &str) -> Option<At<String>> {
        let present = self.place(key).is_some();
        let value = self.string(key, form);
        if !present {
            let title = self.title;
            self.report.missing(&self.span, format_args!("{title} needs `{key}`: {form}"));
        }
        value
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &'static str) -> Option<At<bool>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(At { value: *flag, span: value.span() }),
            _ => self.wrong(key, value, "true or false"),
        }
    }

    /// A whole number within a range.
    pub(super) fn number(
        &self,
        key: &'static str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Option<At<u32>> {
        let value = self.get(key)?;
        let (from, to) = range.clone().into_inner();
        let form = format!("a number from {from} to {to}");
        match value.get_ref() {
            DeValue::Integer(number) => {
                let read = u32::from_str_radix(number.as_str(), number.radix()).ok();
                match read.filter(|read| range.contains(read)) {
                    Some(read) => Some(At { value: read, span: value.span() }),
                    None => {
                        self.report.problem(&value.span(), format_args!("`{key}` must be {form}"));
                        None
                    }
                }
            }
            _ => self.wrong(key, value, &form),
        }
    }

    /// A list of texts.
    pub(super) fn strings(&self, key: &'static str, form: &str) -> Option<Vec<At<String>>> {
        let value = self.get(key)?;
        let DeValue::Array(list) = value.get_ref() else {
            return self.wrong(key, value, form);
        };
        let mut texts = Vec::new();
        for item in list.iter() {
            match item.get_ref() {
                DeValue::String(text) => {
                    texts.push(At { value: text.to_string(), span: item.span() })
                }
                _ => return self.wrong(key, item, form),
            }
        }
        Some(texts)
    }

    /// A text, or a list of texts.
    pub(super) fn string_or_list(&self, key: &'static str, form: &str) -> Option<Vec<At<String>>> {
        match self.get(key)?.get_ref() {
            DeValue::Array(_) => self.strings(key, form),
            _ => self.string(key, form).map(|text| vec![text]),
        }
    }

    /// A text, or `false` (`None` within).
    pub(super) fn string_or_false(
        &self,
        key: &'static str,
        form: &str,
    ) -> Option<At<Option<String>>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(false) => Some(At { value: None, span: value.span() }),
            DeValue::String(_) => {
                let At { value, span } = self.string(key, form)?;
                Some(At { value: Some(value), span })
            }
            _ => self.wrong(key, value, form),
        }
    }

    /// A table of texts, whatever their names are.
    pub(super) fn texts(
        &self,
        key: &'static str,
        form: &str,
    ) -> Option<Vec<(At<String>, At<String>)>> {
        let value = self.get(key)?;
        let DeValue::Table(table) = value.get_ref() else { return self.wrong(key, value, form) };
        let mut texts = Vec::new();
        for (name, item) in table.iter() {
            let DeValue::String(text) = item.get_ref() else { return self.wrong(key, item, form) };
            let name = At { value: name.get_ref().to_string(), span: name.span() };
            texts.push((name, At { value: text.to_string(), span: item.span() }));
        }
        Some(texts)
    }

    /// A table under this one.
    pub(super) fn section(
        &self,
        key: &'static str,
        title: &'static str,
        form: &str,
    ) -> Option<Section<'r, 'i>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(table, title, value.span(), self.report)),
            _ => self.wrong(key, value, form),
        }
    }

    /// A list of tables: `[[key]]`.
    pub(super) fn sections(&self, key: &'static str, title: &'static str) -> Vec<Section<'r, 'i>> {
        let form = format!("a list of tables, each under {title}");
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(list) = value.get_ref() else {
            self.wrong::<()>(key, value, &form);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in list.iter() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    sections.push(Section::new(table, title, item.span(), self.report));
                }
                _ => {
                    self.wrong::<()>(key, item, &form);
                }
            }
        }
        sections
    }

    /// Complains about the keys that nobody asked for. `elsewhere` maps keys to the tables where they belong.
    pub(super) fn finish(self, elsewhere: &[(&str, &str)]) {
        let asked = self.asked.into_inner();
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if asked.contains(&name) {
                continue;
            }
            let place = if self.title.is_empty() { "at the top" } else { self.title };
            let hint = match elsewhere.iter().find(|(other, _)| *other == name) {
                Some((_, home)) => format!("; it belongs {home}"),
                None => closest(name, &asked)
                    .map_or_else(String::new, |known| format!("; did you mean `{known}`?")),
            };
            let shown: String = name.chars().take(60).collect();
            self.report.problem(&key.span(), format_args!("unknown key `{shown}` {place}{hint}"));
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The known word that a typing mistake most likely meant.
pub(super) fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word: Vec<char> = word.to_lowercase().chars().take(64).collect();
    let near = known.iter().map(|known| (distance(&word, known), *known)).min()?;
    (near.0 <= 1 + near.1.len() / 4).then_some(near.1)
}

/// Edits (insert, delete, replace, swap of neighbours) between the two.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let swap = if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    rows[i - 2][j - 2] + 1
                } else {
                    usize::MAX
                };
                replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(swap)
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_are_recognised() {
        let known = ["name", "database", "password", "cron", "every", "keep", "compression"];
        for (word, meant) in [
            ("databse", "database"),
            ("Cron", "cron"),
            ("evrey", "every"),
            ("passwort", "password"),
        ] {
            assert_eq!(closest(word, &known), Some(meant));
        }
        assert_eq!(closest("retention", &known), None);
        assert_eq!(closest("x", &[]), None);
    }
}
