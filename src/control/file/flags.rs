//! The simplest case without a file: `up --database URL --to DIR --every 6h`.

use std::path::Path;

use super::{Problem, STATE_DIR, Settings, parse, url};
use crate::model::Engine;

/// What the command line of `up` gives.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--database`.
    pub database: String,
    /// `--to`.
    pub to: String,
    /// `--every`.
    pub every: Option<String>,
    /// `--cron`.
    pub cron: Option<String>,
    /// `--name`; otherwise made from the database's name.
    pub name: Option<String>,
    /// `--password`: a reference, `env:NAME` or `file:/path`.
    pub password: Option<String>,
    /// `--keep`.
    pub keep_last: Option<u32>,
    /// `--keep-days`.
    pub keep_days: Option<u32>,
    /// `--state-dir`.
    pub state_dir: Option<String>,
    /// `--master-key`.
    pub master_key: Option<String>,
}

impl Settings {
    /// The settings that a few flags stand for: one backup, everything else by default.
    ///
    /// # Errors
    /// Every problem there is; none has a line.
    pub fn from_flags(flags: &Flags) -> Result<Self, Vec<Problem>> {
        let file = flags.as_file();
        let unplaced = |problems: Vec<Problem>| -> Vec<Problem> {
            problems
                .into_iter()
                .map(|p| Problem { line: 0, message: as_flag(&p.message) })
                .collect()
        };
        let mut settings = parse::parse(&file).map_err(unplaced)?;
        settings.warnings = unplaced(std::mem::take(&mut settings.warnings));
        Ok(settings)
    }
}

impl Flags {
    /// The same as a file, so that both ways have one set of rules. It also is what a user may go on with.
    pub fn as_file(&self) -> String {
        let state_dir = self.state_dir.as_deref().unwrap_or(STATE_DIR);
        let mut lines = vec![format!("state_dir = {}", toml_string(state_dir))];
        lines.push("\n[storage]".to_owned());
        lines.push(format!("directory = {}", toml_string(&self.to)));
        if let Some(master) = &self.master_key {
            lines.push(format!("\n[keys]\nmaster = {}", toml_string(master)));
        }
        lines.push("\n[[backup]]".to_owned());
        let name = self.name.clone().unwrap_or_else(|| name_of(&self.database));
        let pairs = [
            ("name", Some(&name)),
            ("database", Some(&self.database)),
            ("password", self.password.as_ref()),
            ("cron", self.cron.as_ref()),
            ("every", self.every.as_ref()),
        ];
        for (key, value) in pairs {
            lines.extend(value.map(|value| format!("{key} = {}", toml_string(value))));
        }
        let keep: Vec<_> = [("last", self.keep_last), ("days", self.keep_days)]
            .into_iter()
            .filter_map(|(key, count)| count.map(|count| format!("{key} = {count}")))
            .collect();
        if !keep.is_empty() {
            lines.push(format!("keep = {{ {} }}", keep.join(", ")));
        }
        lines.join("\n") + "\n"
    }
}

/// A basic TOML string.
fn toml_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A name for the database that a URL names: the file's stem, or the database.
fn name_of(database: &str) -> String {
    let Ok((engine, connection)) = url::parse(database) else { return "database".to_owned() };
    let name = match engine {
        Engine::Sqlite => {
            let stem = Path::new(&connection.database).file_stem();
            stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        }
        // Its URL stays whole.
        Engine::MongoDb => {
            let path = connection.host.splitn(4, '/').nth(3).unwrap_or_default();
            path.split('?').next().unwrap_or_default().to_owned()
        }
        _ => connection.database,
    };
    let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.chars().map(fits).take(64).collect();
    let name = name.trim_start_matches(['-', '_', '.']);
    if name.is_empty() { "database".to_owned() } else { name.to_owned() }
}

/// The file's words for the keys → the flags'.
fn as_flag(message: &str) -> String {
    let words = [
        (
            "[[backup]] needs a schedule: cron = \"0 3 * * *\" (UTC) or every = \"6h\"",
            "give a schedule: --every 6h or --cron \"0 3 * * *\" (UTC)",
        ),
        (
            "both `cron` and `every`: a backup has one schedule",
            "both --cron and --every: a backup has one schedule",
        ),
        (
            "this [[backup]] has no `keep`: nothing is ever deleted; for example keep = { last = 7, days = 30 }",
            "no --keep and no --keep-days: nothing is ever deleted",
        ),
        (
            "better is password = \"file:/path\" or \"env:NAME\"",
            "better is --password file:/path or --password env:NAME",
        ),
        ("`directory`", "`--to`"),
        ("`state_dir`", "`--state-dir`"),
        ("`master`", "`--master-key`"),
        ("`last`", "`--keep`"),
        ("`days`", "`--keep-days`"),
        ("`name`", "`--name`"),
        ("`database`", "`--database`"),
        ("`password`", "`--password`"),
        ("`cron`", "`--cron`"),
        ("`every`", "`--every`"),
    ];
    words.iter().fold(message.to_owned(), |text, (key, flag)| text.replace(key, flag))
}
