//! The two scripts that run inside a container: their arguments, and what they report. Pure, but for the token.

use std::io;

use super::super::exec::Tool;
use crate::hex::hex;

/// Where a tool finds its secret: the descriptor that `run.sh` opens, by its name in the tool's own process.
pub(in crate::drivers) const SECRET_PATH: &str = "/proc/self/fd/3";

const RUN: &str = include_str!("run.sh");
const KILL: &str = include_str!("kill.sh");
/// Prints the path of each of its arguments that is a program, and those that are the path of a socket.
pub(super) const WHICH: &str = "for name; do case $name in \
                                /*) [ -S \"$name\" ] && printf '%s\\n' \"$name\" || : ;; \
                                *) command -v \"$name\" || : ;; esac; done";

/// A process inside the container: its number there, and when it began, so that it is never taken for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pid: u32,
    start: u64,
}

/// The script's first word.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    Ready(Process),
    /// What is missing in the container.
    Missing(&'static str),
}

/// 128 random bits that nothing in a stream can equal by chance.
pub(super) fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(hex(&bytes))
}

/// The command that runs `tool`; what the tool is told are arguments, never text of the script.
pub(super) fn command(
    tool: &Tool<'_>,
    token: &str,
    secret: bool,
    nice: u8,
) -> io::Result<Vec<String>> {
    let secret = if secret { "file" } else { "none" };
    let mut command: Vec<String> = vec!["sh".into(), "-c".into(), bare(RUN), "backupy".into()];
    command.extend([token.to_owned(), secret.to_owned(), nice.to_string()]);
    let text = |word: &std::ffi::OsStr| word.to_str().map(str::to_owned);
    let not_text = || io::Error::other("an argument is not text");
    for (name, value) in &tool.env {
        command.push(format!("{name}={}", text(value).ok_or_else(not_text)?));
    }
    command.push(text(tool.program.as_os_str()).ok_or_else(not_text)?);
    for arg in &tool.args {
        command.push(text(arg).ok_or_else(not_text)?);
    }
    Ok(command)
}

/// The command that kills what the script started.
pub(super) fn kill(process: &Process) -> Vec<String> {
    let [pid, start] = [process.pid.to_string(), process.start.to_string()];
    ["sh", "-c", &bare(KILL), "backupy", &pid, &start].map(str::to_owned).to_vec()
}

/// Without the comments, which are for whoever reads the file and not for `ps`.
fn bare(script: &str) -> String {
    let lines = script.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

/// The script's first word, once all of it has been heard.
pub(super) fn report(heard: &[u8], token: &str) -> Option<Report> {
    let heard = String::from_utf8_lossy(heard);
    let mark = format!("backupy:{token}:");
    let word = heard.split_once(&mark)?.1.split_once('\n')?.0;
    let missing = |problem| Some(Report::Missing(problem));
    match word {
        "proc" => missing("it has no /proc"),
        "printf" => {
            missing("its shell cannot keep the password out of arguments (no printf of its own)")
        }
        "place" => missing(
            "it has no writable directory for the password (/dev/shm, /tmp, /var/tmp, /run), or no rm",
        ),
        "cut" => missing("the connection ended before the password was sent"),
        _ => {
            let (pid, start) = word.strip_prefix("ready:")?.split_once(':')?;
            Some(Report::Ready(Process { pid: pid.parse().ok()?, start: start.parse().ok()? }))
        }
    }
}

/// Whether the runtime says that there is no `sh`.
pub(super) fn no_shell(heard: &[u8]) -> bool {
    let heard = String::from_utf8_lossy(heard);
    ["executable file not found", "no such file or directory", "not found in $PATH"]
        .iter()
        .any(|words| heard.contains(words))
}

/// The scripts in the shells that are there.
#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, ChildStdin, Command, Stdio};

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    /// `sh` is what every container has; the others where the host has them.
    fn shells() -> Vec<Vec<&'static str>> {
        let there = |path: &str| Path::new(path).exists();
        let mut shells = vec![vec!["sh"]];
        shells.extend(there("/bin/bash").then(|| vec!["bash", "--posix"]));
        shells.extend(there("/bin/busybox").then(|| vec!["busybox", "sh"]));
        shells
    }

    struct Running {
        child: Child,
        stdin: Option<ChildStdin>,
        process: Process,
    }

    fn start(shell: &[&str], secret: bool, script: &str) -> Running {
        let env = vec![("GREETING", "hello".into())];
        let args = vec!["-c".into(), script.into()];
        let tool =
            Tool { name: "sh", program: Path::new("/bin/sh"), args, env, secrets: Vec::new() };
        let words = command(&tool, TOKEN, secret, 3).unwrap();
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .args(&words[1..])
            .env("PGPASSWORD", "not for the tool")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(Report::Ready(process)) = report(line.as_bytes(), TOKEN) else { panic!("{line}") };
        assert_eq!(process.pid, child.id());
        let stdin = child.stdin.take();
        Running { child, stdin, process }
    }

    impl Running {
        fn tell(&mut self, text: &str) {
            self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        }

        /// Stdout up to the trailer, which is then confirmed.
        fn output(&mut self) -> String {
            let mut out = Vec::new();
            let stdout = self.child.stdout.as_mut().unwrap();
            let mut byte = [0];
            while !(out.ends_with(b"\n")
                && out.len() > 44
                && out[out.len() - 45..].starts_with(b"backupy:"))
            {
                assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&out));
                out.push(byte[0]);
            }
            self.tell(&format!("{TOKEN}\n"));
            String::from_utf8(out).unwrap()
        }

        fn end(mut self) -> (std::process::ExitStatus, String) {
            drop(self.stdin.take());
            let mut said = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            (self.child.wait().unwrap(), said)
        }
    }

    #[test]
    fn the_secret_the_output_and_the_end_mark() {
        for shell in shells() {
            let script = "cat /proc/self/fd/3; cat /proc/self/fd/3; echo $GREETING $PGPASSWORD; \
                          stat -Lc '%a %h' /proc/self/fd/3; nice; echo note >&2; cat; exit 5";
            let mut running = start(&shell, true, script);
            running.tell(&format!("two \\\\ words\n  'and' $more  \n{TOKEN}\n"));
            let secret = "two \\\\ words\n  'and' $more  \n";
            let niceness = rustix::process::getpriority_process(None).unwrap() + 3;
            let expected =
                format!("{secret}{secret}hello\n600 0\n{niceness}\nbackupy:{TOKEN}:005\n");
            assert_eq!(running.output(), expected, "{shell:?}");
            let (status, said) = running.end();
            assert_eq!((status.code(), said.as_str()), (Some(5), "note\n"), "{shell:?}");
        }
        for dir in ["/dev/shm", "/tmp"] {
            let name = format!("{dir}/.backupy-{TOKEN}");
            assert!(!Path::new(&name).exists(), "{name}");
        }
    }

    #[test]
    fn without_a_secret_and_by_signal() {
        for shell in shells() {
            let mut running = start(&shell, false, "echo x; kill -9 $$");
            running.tell(&format!("{TOKEN}\n"));
            assert_eq!(running.output(), format!("x\nbackupy:{TOKEN}:137\n"), "{shell:?}");
            assert_eq!(running.end().0.code(), Some(137), "{shell:?}");
        }
    }

    #[test]
    fn a_secret_that_is_cut_runs_nothing() {
        for shell in shells() {
            let mut running = start(&shell, true, "echo ran");
            running.tell("half a sec");
            let (status, said) = running.end();
            assert_eq!(status.code(), Some(125), "{shell:?}");
            let cut = format!("backupy:{TOKEN}:cut\n");
            assert!(said.ends_with(&cut), "{said}");
            assert!(matches!(report(said.as_bytes(), TOKEN), Some(Report::Missing(_))));
        }
    }

    /// Waits until `first` is on stdout.
    fn wait_for(running: &mut Running, first: &str) {
        let mut seen = vec![0; first.len()];
        running.child.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(seen, first.as_bytes());
    }

    #[test]
    fn the_end_of_stdin_ends_the_tool_and_leaves_no_orphan() {
        for shell in shells() {
            // Deaf to TERM, so that KILL has to do it.
            for (trap, code) in [("", 143), ("trap '' TERM;", 137)] {
                let script = format!("{trap} echo up; exec sleep 600");
                let mut running = start(&shell, false, &script);
                running.tell(&format!("{TOKEN}\n"));
                wait_for(&mut running, "up\n");
                drop(running.stdin.take());
                // Ends when nobody holds it any more.
                let mut rest = String::new();
                running.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
                assert_eq!(rest, format!("backupy:{TOKEN}:{code}\n"), "{shell:?}");
                // The script ended by itself, so it has waited for the tool.
                assert_eq!(running.end().0.code(), Some(code), "{shell:?}");
            }
        }
    }

    #[test]
    fn the_second_command_kills_the_right_process_only() {
        for shell in shells() {
            let mut running = start(&shell, false, "echo up; exec sleep 600");
            running.tell(&format!("{TOKEN}\n"));
            wait_for(&mut running, "up\n");
            let killed = |process: &Process| {
                let words = kill(process);
                let mut command = Command::new(shell[0]);
                command.args(&shell[1..]).args(&words[1..]).status().unwrap()
            };
            let other = Process { start: running.process.start + 1, ..running.process.clone() };
            assert!(killed(&other).success());
            assert!(running.child.try_wait().unwrap().is_none(), "{shell:?}");
            assert!(killed(&running.process).success());
            let mut rest = String::new();
            running.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
            assert_eq!(rest, format!("backupy:{TOKEN}:137\n"), "{shell:?}");
            assert_eq!(running.end().0.code(), Some(137), "{shell:?}");
        }
    }
}
