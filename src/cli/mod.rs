//! The command line: one file per subcommand, each a struct for argh and a function to an [`Exit`].
//!
//! Results go to stdout, everything about the way there to stderr.

mod allocator;
#[cfg(feature = "control")]
mod artifacts;
#[cfg(feature = "control")]
pub mod backup;
#[cfg(feature = "control")]
pub mod client;
pub mod decrypt;
pub mod discover;
pub mod dump_state;
#[cfg(feature = "control")]
pub mod key;
mod launch;
#[cfg(feature = "control")]
pub mod notify_test;
pub mod paste;
#[cfg(feature = "control")]
pub mod place;
#[cfg(feature = "control")]
pub mod restore;
pub mod run;
#[cfg(feature = "control")]
pub mod runs;
#[cfg(feature = "control")]
mod scratch;
pub mod self_update;
#[cfg(feature = "control")]
pub mod show;
pub mod status;
mod stopped;
#[cfg(feature = "control")]
pub mod up;
#[cfg(feature = "control")]
pub mod verify;
pub mod version;

use argh::{ArgsInfo, FromArgs};

use crate::exit::Exit;
use crate::signals;

/// Backups that run by themselves: databases to encrypted artifacts, without cron.
///
/// On a host with a control plane elsewhere: `backupy run`. On a host of its own: `backupy up`.
#[derive(FromArgs, ArgsInfo, Debug)]
pub struct TopLevel {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum Command {
    Run(run::RunArgs),
    #[cfg(feature = "control")]
    Up(up::UpArgs),
    #[cfg(feature = "control")]
    Backup(backup::BackupArgs),
    #[cfg(feature = "control")]
    Runs(runs::RunsArgs),
    #[cfg(feature = "control")]
    Restore(restore::RestoreArgs),
    #[cfg(feature = "control")]
    Verify(verify::VerifyArgs),
    #[cfg(feature = "control")]
    Key(key::KeyArgs),
    Discover(discover::DiscoverArgs),
    #[cfg(feature = "control")]
    NotifyTest(notify_test::NotifyTestArgs),
    Status(status::StatusArgs),
    HealthCheck(status::HealthCheckArgs),
    Decrypt(decrypt::DecryptArgs),
    DumpState(dump_state::DumpStateArgs),
    Reset(dump_state::ResetArgs),
    SelfUpdate(self_update::SelfUpdateArgs),
    Version(version::VersionArgs),
}

impl Command {
    fn is_daemon(&self) -> bool {
        match self {
            Command::Run(_) => true,
            #[cfg(feature = "control")]
            Command::Up(_) => true,
            _ => false,
        }
    }
}

/// Parses the command line and does what it says.
pub fn main() -> Exit {
    // Everything that we write may hold secrets or somebody's data: for our own user only.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let args: Vec<String> = match std::env::args_os().map(|arg| arg.into_string()).collect() {
        Ok(args) => args,
        Err(arg) => {
            eprintln!("backupy: this argument is not UTF-8: {}", arg.display());
            return Exit::Usage;
        }
    };
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (name, words) = words.split_first().map_or(("backupy", &[][..]), |(first, rest)| {
        (first.rsplit('/').next().unwrap_or(first), rest)
    });
    match TopLevel::from_args(&[name], words) {
        Ok(top) => run(top.command),
        Err(early) if early.status.is_ok() => {
            println!("{}", early.output.trim_end());
            Exit::Ok
        }
        Err(early) => {
            eprintln!("{}", early.output.trim_end());
            Exit::Usage
        }
    }
}

fn run(command: Command) -> Exit {
    if !command.is_daemon() {
        signals::end_with_reader();
    }
    match command {
        Command::Run(args) => {
            allocator::tame();
            run::run(args)
        }
        #[cfg(feature = "control")]
        Command::Up(args) => {
            allocator::tame();
            up::run(&args)
        }
        #[cfg(feature = "control")]
        Command::Backup(args) => backup::run(&args),
        #[cfg(feature = "control")]
        Command::Runs(args) => runs::run(&args),
        #[cfg(feature = "control")]
        Command::Restore(args) => restore::run(&args),
        #[cfg(feature = "control")]
        Command::Verify(args) => verify::run(&args),
        #[cfg(feature = "control")]
        Command::Key(args) => key::run(&args),
        Command::Discover(args) => discover::run(&args),
        #[cfg(feature = "control")]
        Command::NotifyTest(args) => notify_test::run(&args),
        Command::Status(args) => status::status(&args),
        Command::HealthCheck(args) => status::health_check(&args),
        Command::Decrypt(args) => decrypt::run(&args),
        Command::DumpState(args) => dump_state::dump_state(&args),
        Command::Reset(args) => dump_state::reset(&args),
        Command::SelfUpdate(args) => self_update::run(&args),
        Command::Version(args) => version::version(&args),
    }
}

/// The state directory of a command that talks to a process or to its files.
pub(crate) fn state_dir(flag: Option<&str>) -> std::path::PathBuf {
    let variable = || std::env::var_os("BACKUPY_STATE_DIR").filter(|value| !value.is_empty());
    flag.map(std::path::PathBuf::from)
        .or_else(|| variable().map(Into::into))
        .unwrap_or_else(|| crate::config::DEFAULT_STATE_DIR.into())
}

/// Says what went wrong, on stderr, without secrets.
pub(crate) fn complain(text: impl std::fmt::Display) {
    for line in text.to_string().lines() {
        eprintln!("backupy: {}", crate::redact::redact(line));
    }
}
