//! Completions for bash, zsh and fish: commands, their options, and files where a value is one.

use std::fmt::Write;

use argh::{CommandInfoWithArgs, SubCommandInfo};

use crate::{flags, is_path, summary, value_of};

const MADE: &str = "# Made by scripts/generate-cli-docs from the command line's definition.\n";

/// A command by the words that lead to it, with all of its own.
struct Path<'a> {
    words: Vec<&'a str>,
    command: &'a CommandInfoWithArgs,
}

/// Every command that takes options, not those that only lead to others.
fn leaves<'a>(above: &[&'a str], commands: &'a [SubCommandInfo]) -> Vec<Path<'a>> {
    let mut found = Vec::new();
    for sub in commands {
        let words: Vec<&str> = above.iter().copied().chain([sub.name]).collect();
        if sub.command.commands.is_empty() {
            found.push(Path { words, command: &sub.command });
        } else {
            found.extend(leaves(&words, &sub.command.commands));
        }
    }
    found
}

fn names(commands: &[SubCommandInfo]) -> String {
    commands.iter().map(|sub| sub.name).collect::<Vec<_>>().join(" ")
}

fn options(command: &CommandInfoWithArgs) -> String {
    flags(command).map(|flag| flag.long).chain(["--help"]).collect::<Vec<_>>().join(" ")
}

/// For bash, without the bash-completion package's helpers.
pub fn bash(top: &CommandInfoWithArgs) -> String {
    let mut text = format!("{MADE}_backupy() {{\n");
    text += "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} path='' at options=''\n";
    text += "    COMPREPLY=()\n";
    text += "    for ((at = 1; at < COMP_CWORD; at++)); do\n";
    text += "        [[ ${COMP_WORDS[at]} == -* ]] && break\n";
    text += "        case \"$path ${COMP_WORDS[at]}\" in\n";
    let mut known: Vec<String> = Vec::new();
    for sub in &top.commands {
        known.push(format!("\" {}\"", sub.name));
        for below in &sub.command.commands {
            known.push(format!("\" {} {}\"", sub.name, below.name));
        }
    }
    let _ = writeln!(text, "        {}) path+=\" ${{COMP_WORDS[at]}}\" ;;", known.join(" | "));
    text += "        *) break ;;\n        esac\n    done\n";
    text += "    case \"$path:$before\" in\n";
    for leaf in leaves(&[], &top.commands) {
        for flag in flags(leaf.command) {
            let Some(value) = value_of(flag) else { continue };
            let reply = if is_path(value) {
                "mapfile -t COMPREPLY < <(compgen -f -- \"$word\")"
            } else {
                ":"
            };
            let _ = writeln!(
                text,
                "    \" {}:{}\") {reply}; return ;;",
                leaf.words.join(" "),
                flag.long
            );
        }
    }
    text += "    esac\n    case \"$path\" in\n";
    let _ = writeln!(text, "    \"\") options=\"{} --help\" ;;", names(&top.commands));
    for sub in top.commands.iter().filter(|sub| !sub.command.commands.is_empty()) {
        let _ = writeln!(
            text,
            "    \" {}\") options=\"{} --help\" ;;",
            sub.name,
            names(&sub.command.commands)
        );
    }
    for leaf in leaves(&[], &top.commands) {
        let _ = writeln!(
            text,
            "    \" {}\") options=\"{}\" ;;",
            leaf.words.join(" "),
            options(leaf.command)
        );
    }
    text += "    esac\n    mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$word\")\n}\n";
    text += "complete -o filenames -F _backupy backupy\n";
    text
}

/// For zsh, as an autoloaded function.
pub fn zsh(top: &CommandInfoWithArgs) -> String {
    let mut text = format!("#compdef backupy\n{MADE}\n");
    text += &zsh_function("_backupy", top);
    text += "\n_backupy \"$@\"\n";
    text
}

fn zsh_function(name: &str, command: &CommandInfoWithArgs) -> String {
    let mut text = String::new();
    let mut below = String::new();
    let _ = writeln!(text, "{name}() {{");
    if command.commands.is_empty() {
        text += "    _arguments \\\n";
        for flag in flags(command) {
            let value = match value_of(flag) {
                None => String::new(),
                Some(value) if is_path(value) => format!(":{value}:_files"),
                Some(value) => format!(":{value}: "),
            };
            let words = zsh_text(&summary(flag.description));
            let _ = writeln!(text, "        '{}[{words}]{value}' \\", flag.long);
        }
        for positional in command.positionals {
            let reply = if is_path(positional.name) { "_files" } else { " " };
            let _ = writeln!(text, "        ':{}:{reply}' \\", positional.name);
        }
        text += "        '--help[say what there is]'\n}\n";
        return text;
    }
    text += "    local -a commands=(\n";
    for sub in &command.commands {
        let words = zsh_text(&summary(sub.command.description));
        let _ = writeln!(text, "        '{}:{words}'", sub.name);
    }
    text += "    )\n    local curcontext=$curcontext state line\n";
    text += "    _arguments -C '--help[say what there is]' '1: :->command' '*:: :->rest'\n";
    text += "    case $state in\n    command) _describe command commands ;;\n    rest)\n        case $line[1] in\n";
    for sub in &command.commands {
        let inner = format!("{name}_{}", sub.name.replace('-', "_"));
        let _ = writeln!(text, "        {}) {inner} ;;", sub.name);
        below.push('\n');
        below += &zsh_function(&inner, &sub.command);
    }
    text += "        esac\n        ;;\n    esac\n}\n";
    text + &below
}

/// Text within single quotes and the brackets of `_arguments`.
fn zsh_text(text: &str) -> String {
    text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:")
}

/// For fish.
pub fn fish(top: &CommandInfoWithArgs) -> String {
    let mut text = format!("{MADE}complete -c backupy -f\n");
    for sub in &top.commands {
        let words = fish_text(&summary(sub.command.description));
        let _ = writeln!(
            text,
            "complete -c backupy -n __fish_use_subcommand -a {} -d '{words}'",
            sub.name
        );
        for below in &sub.command.commands {
            let words = fish_text(&summary(below.command.description));
            let _ = writeln!(
                text,
                "complete -c backupy -n '__fish_seen_subcommand_from {}; and not __fish_seen_subcommand_from {}' -a {} -d '{words}'",
                sub.name,
                names(&sub.command.commands),
                below.name,
            );
        }
    }
    for leaf in leaves(&[], &top.commands) {
        let seen: Vec<String> =
            leaf.words.iter().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        for flag in flags(leaf.command) {
            let value = match value_of(flag) {
                None => "",
                Some(value) if is_path(value) => " -r -F",
                Some(_) => " -x",
            };
            let words = fish_text(&summary(flag.description));
            let long = flag.long.trim_start_matches('-');
            let _ = writeln!(
                text,
                "complete -c backupy -n '{}' -l {long}{value} -d '{words}'",
                seen.join("; and ")
            );
        }
    }
    text
}

/// Text within single quotes.
fn fish_text(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}
