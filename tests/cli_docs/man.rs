//! Man pages in the man(7) macros: one for the program, one for each command.

use std::fmt::Write;

use argh::{CommandInfoWithArgs, Optionality, PositionalInfo};

use crate::{flags, summary, value_of};

/// What no argument says. The numbers are those of `backupy::exit`.
const MORE: &str = r#".SH FILES
.TP
.I /etc/backupy/backupy.toml
The settings of
.BR "backupy up" .
.TP
.I /var/lib/backupy
State, mode 0700, among it the master key of
.BR "backupy up" .
Without that key nobody can open the backups; keep a copy of it outside the machine
.RB ( backupy-key (1)).
.SH ENVIRONMENT
.TP
.B BACKUPY_STATE_DIR
The directory for state, instead of
.IR /var/lib/backupy .
.TP
.B BACKUPY_LOG_LEVEL
.BR trace ", " debug ", " info " (the default), " warn " or " error .
.TP
.BR BACKUPY_SERVER_URL ", " BACKUPY_AGENT_KEY ", " BACKUPY_AGENT_KEY_FILE
The control plane of
.BR "backupy run" ,
and the agent's key or a file that holds it.
.PP
The README has the whole list.
.SH EXIT STATUS
.TP
.B 0
Done; for
.BR up " and " run :
stopped as asked.
.TP
.B 1
The command did not succeed.
.TP
.B 2
The command line, a variable or a file of settings is wrong; nothing was done.
.TP
.B 3
The state directory cannot be used: damaged, wrong key, no permission.
.TP
.B 4
Another process holds the state directory.
.TP
.B 5
Nobody is running where a running process is needed.
.TP
.B 70
A defect: a thread died. The supervisor should restart it.
.TP
.B 130
A second signal ended the process without a clean stop.
"#;

/// `backupy(1)`.
pub fn overview(top: &CommandInfoWithArgs) -> String {
    let mut page = heading("backupy", 1, &summary(top.description));
    page += ".SH SYNOPSIS\n.B backupy\n.I COMMAND\n[options]\n.br\n.B backupy\n.I COMMAND\n.B \\-\\-help\n";
    page += ".SH DESCRIPTION\n";
    page += &paragraphs(top.description);
    page += ".SH COMMANDS\n";
    for sub in &top.commands {
        let text = escaped(&summary(sub.command.description));
        let _ = write!(page, ".TP\n.BR backupy\\-{} (1)\n{text}.\n", escaped(sub.name));
    }
    page += MORE;
    page += ".SH SEE ALSO\n.BR backupy.toml (5),\n";
    let pages: Vec<String> =
        top.commands.iter().map(|sub| format!(".BR backupy\\-{} (1)", escaped(sub.name))).collect();
    page += &pages.join(",\n");
    page.push('\n');
    page
}

/// `backupy-COMMAND(1)`, with the commands below it.
pub fn page(command: &CommandInfoWithArgs) -> String {
    let name = format!("backupy {}", command.name);
    let mut page = heading(&name.replace(' ', "-"), 1, &summary(command.description));
    page += ".SH SYNOPSIS\n";
    if command.commands.is_empty() {
        page += &synopsis(&name, command);
    }
    for (at, sub) in command.commands.iter().enumerate() {
        page += if at > 0 { ".br\n" } else { "" };
        page += &synopsis(&format!("{name} {}", sub.name), &sub.command);
    }
    page += ".SH DESCRIPTION\n";
    page += &paragraphs(command.description);
    page += &arguments(".SH", command);
    for sub in &command.commands {
        let _ = writeln!(page, ".SH {}", escaped(&sub.name.to_uppercase()));
        page += &paragraphs(sub.command.description);
        page += &arguments("", &sub.command);
    }
    page += ".SH SEE ALSO\n.BR backupy (1)\n";
    page
}

/// A page's title and NAME, for a section of the manual.
pub fn heading(name: &str, section: u8, summary: &str) -> String {
    let mut summary = summary.to_owned();
    // NAME lines are phrases.
    if let Some(first) = summary.get(..1) {
        summary = first.to_lowercase() + &summary[1..];
    }
    format!(
        ".\\\" Made by scripts/generate-cli-docs from the command line's definition.\n\
         .TH {} {section} \"\" \"backupy\" \"backupy\"\n.SH NAME\n{} \\- {}\n",
        escaped(&name.to_uppercase()),
        escaped(name),
        escaped(&summary),
    )
}

fn synopsis(name: &str, command: &CommandInfoWithArgs) -> String {
    let mut line = format!(".B {}\n", escaped(name));
    for positional in command.positionals {
        let (open, close) = brackets(&positional.optionality);
        let _ = writeln!(line, "{open}\\fI{}\\fR{close}", escaped(&argument(positional)));
    }
    for flag in flags(command) {
        let (open, close) = brackets(&flag.optionality);
        let value = value_of(flag).map_or(String::new(), |v| format!(" \\fI{}\\fR", escaped(v)));
        let _ = writeln!(line, "{open}\\fB{}\\fR{value}{close}", escaped(flag.long));
    }
    line
}

fn brackets(optionality: &Optionality) -> (&'static str, &'static str) {
    match optionality {
        Optionality::Required => ("", ""),
        Optionality::Optional => ("[", "]"),
        Optionality::Repeating | Optionality::Greedy => ("[", "]..."),
    }
}

fn argument(positional: &PositionalInfo<'_>) -> String {
    positional.name.to_uppercase()
}

/// Arguments and options of one command as tagged paragraphs, below a heading of their own if one is given.
fn arguments(heading: &str, command: &CommandInfoWithArgs) -> String {
    let mut text = String::new();
    if !heading.is_empty() {
        text += &format!("{heading} OPTIONS\n");
    }
    for positional in command.positionals {
        let words = sentence(positional.description);
        let _ = write!(text, ".TP\n.I {}\n{words}", escaped(&argument(positional)));
    }
    for flag in flags(command) {
        let value = value_of(flag).map_or(String::new(), |v| format!(" \\fI{}\\fR", escaped(v)));
        let words = sentence(flag.description);
        let _ = write!(text, ".TP\n\\fB{}\\fR{value}\n{words}", escaped(flag.long));
    }
    text += ".TP\n.B \\-\\-help\nSay what there is.\n";
    text
}

/// A description with a capital and a full stop, on a line of its own.
fn sentence(description: &str) -> String {
    let text = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return "\n".into() };
    // A file's or a word's own name keeps its case.
    let text = format!("{}{}", first.to_uppercase(), letters.as_str());
    format!("{}.\n", escaped(text.trim_end_matches('.')))
}

/// The paragraphs of a doc comment.
fn paragraphs(description: &str) -> String {
    let parts: Vec<String> = description
        .split("\n\n")
        .map(|part| escaped(&part.split_whitespace().collect::<Vec<_>>().join(" ")))
        .filter(|part| !part.is_empty())
        .collect();
    format!("{}\n", parts.join("\n.PP\n"))
}

/// Text that roff prints as it is.
pub fn escaped(text: &str) -> String {
    let text = text
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('`', "\\(ga")
        .replace('~', "\\(ti")
        .replace('…', "...")
        .replace('–', "\\(en");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}
