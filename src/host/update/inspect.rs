//! What a binary says of itself. It is asked only after its hash and its signature were found right, with an empty
//! environment, a time limit and a limit on what is read; whatever it does, it is ended then.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::error::UpdateError;
use crate::clock::Deadline;
use crate::net::{Waited, wait_readable};
use crate::thread::Cancel;

/// How long it may take to say its version.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 4 << 10;
/// Magic, class, byte order … and the machine.
const HEAD_BYTES: usize = 20;
/// A file that was just written is busy for as long as a child that another thread is starting holds it.
const BUSY_TRIES: u32 = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Fails unless it is a program for this machine.
///
/// # Errors
/// [`UpdateError::Program`] with the reason.
pub fn check_machine(path: &Path) -> Result<(), UpdateError> {
    let head = |path: &Path| -> io::Result<[u8; HEAD_BYTES]> {
        let mut head = [0; HEAD_BYTES];
        File::open(path)?.read_exact(&mut head)?;
        Ok(head)
    };
    let Ok(found) = head(path) else { return Err(UpdateError::Program("it is too short")) };
    let own = Path::new("/proc/self/exe");
    let own = head(own).map_err(|error| UpdateError::io("read", own, error))?;
    same_machine(&found, &own).map_err(UpdateError::Program)
}

fn same_machine(found: &[u8; HEAD_BYTES], own: &[u8; HEAD_BYTES]) -> Result<(), &'static str> {
    if found[..4] != *b"\x7fELF" {
        return Err("it is no Linux program");
    }
    if found[4..6] != own[4..6] || found[18..20] != own[18..20] {
        return Err("it is for another processor");
    }
    Ok(())
}

/// The version that the program at `path` prints.
///
/// # Errors
/// When it cannot be started or prints none.
pub fn version_of(path: &Path, cancel: &Cancel) -> Result<String, UpdateError> {
    let mut child = start(path, cancel)?;
    let answer = match child.stdout.take() {
        Some(stdout) => read(stdout, Deadline::after(TIMEOUT), cancel),
        None => Ok(Vec::new()),
    };
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Mostly it has ended by itself.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    child.wait().map_err(|error| UpdateError::Mute("it does not end", Some(error)))?;
    let answer: serde_json::Value = serde_json::from_slice(&answer?)
        .map_err(|_| UpdateError::Mute("its answer is not JSON", None))?;
    let version = answer["version"].as_str().filter(|version| version.len() <= 64);
    version.map(str::to_owned).ok_or(UpdateError::Mute("its answer has no version", None))
}

fn start(path: &Path, cancel: &Cancel) -> Result<Child, UpdateError> {
    let mut tries = 0;
    loop {
        let started = Command::new(path)
            .args(["version", "--json"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match started {
            Ok(child) => return Ok(child),
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
            {
                tries += 1;
                if !cancel.sleep(BUSY_PAUSE) {
                    return Err(UpdateError::Stopped);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let what = "it may not be executed; is the file system of the state directory \
                            mounted noexec?";
                return Err(UpdateError::Mute(what, Some(error)));
            }
            Err(error) => return Err(UpdateError::Mute("it does not start", Some(error))),
        }
    }
}

fn read(mut out: ChildStdout, deadline: Deadline, cancel: &Cancel) -> Result<Vec<u8>, UpdateError> {
    let failed = |error| UpdateError::Mute("its answer does not arrive", Some(error));
    let mut answer = vec![0; MAX_ANSWER];
    let mut length = 0;
    loop {
        match wait_readable(&out, deadline, Some(cancel)).map_err(failed)? {
            Waited::Ready => {}
            Waited::TimedOut => return Err(UpdateError::Mute("it does not answer", None)),
            Waited::Cancelled => return Err(UpdateError::Stopped),
        }
        let Some(room) = answer.get_mut(length..).filter(|room| !room.is_empty()) else {
            return Err(UpdateError::Mute("it says too much", None));
        };
        match out.read(room) {
            Ok(0) => {
                answer.truncate(length);
                return Ok(answer);
            }
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn script(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        (dir, path)
    }

    #[test]
    fn says_its_version_without_our_environment() {
        let (_dir, path) = script(
            r#"[ -z "$CARGO" ] && [ "$*" = "version --json" ] && echo '{"version":"1.2.3"}'"#,
        );
        assert_eq!(version_of(&path, &Cancel::new().unwrap()).unwrap(), "1.2.3");
    }

    #[test]
    fn whatever_else_it_says_is_an_error_and_what_stays_behind_is_ended() {
        let cancel = Cancel::new().unwrap();
        for text in [
            "true",
            "echo 1.2.3",
            "echo '{\"version\":7}'",
            "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",
            &format!("echo '{{\"version\":\"{}\"}}'", "1".repeat(65)),
        ] {
            let (_dir, path) = script(text);
            assert!(version_of(&path, &cancel).is_err(), "{text}");
        }
        let (_dir, path) = script("sleep 600 & exec sleep 600");
        let waiter = cancel.clone();
        let asked = std::thread::spawn(move || version_of(&path, &waiter));
        cancel.cancel(crate::thread::Why::Shutdown);
        assert!(matches!(asked.join().unwrap(), Err(UpdateError::Stopped)));
    }

    #[test]
    fn without_permission_it_does_not_run() {
        let (_dir, path) = script("true");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = version_of(&path, &Cancel::new().unwrap()).unwrap_err().to_string();
        assert!(error.contains("noexec"), "{error}");
    }

    #[test]
    fn only_programs_for_this_machine() {
        check_machine(&std::env::current_exe().unwrap()).unwrap();
        let mut own = [0; HEAD_BYTES];
        own[..6].copy_from_slice(b"\x7fELF\x02\x01");
        own[18] = 62;
        let mut arm = own;
        arm[18] = 183;
        assert_eq!(same_machine(&own, &own), Ok(()));
        assert!(same_machine(&arm, &own).unwrap_err().contains("processor"));
        assert!(same_machine(b"#!/bin/sh\nexit 0\n\n\n\n", &own).is_err());
        let (_dir, path) = script("");
        assert!(check_machine(&path).is_err());
    }
}
