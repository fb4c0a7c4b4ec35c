//! `backupy dump-state` and `backupy reset`: for people whose agent is in trouble.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::stopped::{keys, open_store};
use super::{complain, state_dir};
use crate::clock::unix_ms;
use crate::exit::Exit;
use crate::observe::dump::dump;
use crate::observe::socket;
use crate::store::{Store, StoreError, salvage, set_aside};

/// How long the process may take between two records.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Print what the agent's store holds, one JSON object a line. A running agent is asked; the store of a
/// stopped one is opened, for which its key is needed (BACKUPY_AGENT_KEY or BACKUPY_AGENT_KEY_FILE).
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "dump-state")]
pub struct DumpStateArgs {
    /// directory for state (BACKUPY_STATE_DIR)
    #[argh(option)]
    state_dir: Option<String>,
    /// show values too, with passwords, data keys and upload URLs in the clear
    #[argh(switch)]
    allow_secrets: bool,
}

/// Move a store that cannot be opened aside, so that the agent can start with an empty one. Deletes nothing.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "reset")]
pub struct ResetArgs {
    /// directory for state (BACKUPY_STATE_DIR)
    #[argh(option)]
    state_dir: Option<String>,
    /// do not ask
    #[argh(switch)]
    yes: bool,
}

/// Prints the records.
pub fn dump_state(args: &DumpStateArgs) -> Exit {
    let state_dir = state_dir(args.state_dir.as_deref());
    let mut failed = false;
    let mut print = |line: &Value| -> io::Result<()> {
        failed |= line.get("error").is_some();
        writeln!(io::stdout().lock(), "{line}")
    };
    let request = json!({"cmd": "dump-state", "allow_secrets": args.allow_secrets});
    let mut broken = None;
    let asked = socket::ask(&state_dir, &request, Some(TIMEOUT), &mut |line| {
        if broken.is_none() {
            broken = print(&line).err();
        }
    });
    let result = match asked {
        Ok(true) => broken.map_or(Ok(()), Err),
        Ok(false) => {
            let exit = dump_stopped(&state_dir, args.allow_secrets, &mut print);
            return if exit == Exit::Ok && failed { Exit::State } else { exit };
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(()) if failed => Exit::Failed,
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(format!("failed to dump the state in {}: {error}", state_dir.display()));
            Exit::Failed
        }
    }
}

fn dump_stopped(
    state_dir: &Path,
    secrets: bool,
    print: &mut dyn FnMut(&Value) -> io::Result<()>,
) -> Exit {
    let store = match open_store(state_dir) {
        Ok(store) => store,
        // It does not open: what can still be found is shown all the same.
        Err(Exit::State) if Store::is_in(state_dir) => {
            return dump_damaged(state_dir, secrets, print);
        }
        Err(exit) => return exit,
    };
    let result = dump(&store, secrets, print);
    if let Err(error) = store.close() {
        complain(error);
    }
    match result {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(format!("failed to print: {error}"));
            Exit::Failed
        }
    }
}

/// Every record that the engine still finds; values where a key opens them. The exit code stays that of a
/// store that does not open.
fn dump_damaged(
    state_dir: &Path,
    secrets: bool,
    print: &mut dyn FnMut(&Value) -> io::Result<()>,
) -> Exit {
    let keys = match keys(state_dir) {
        Ok(keys) => keys,
        Err(exit) => return exit,
    };
    complain("this is what can still be found in it:");
    let found = salvage(state_dir, &keys, &mut |record| match print(&record.to_json(secrets)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    });
    if let Err(error) = found {
        complain(error);
    }
    Exit::State
}

/// Moves the store aside after a question.
pub fn reset(args: &ResetArgs) -> Exit {
    let state_dir = state_dir(args.state_dir.as_deref());
    if !args.yes && !confirmed(&state_dir) {
        complain("nothing was changed");
        return Exit::Failed;
    }
    match set_aside(&state_dir, unix_ms() / 1_000) {
        Ok(moved_to) => {
            println!("the store of {} is now in {}", state_dir.display(), moved_to.display());
            Exit::Ok
        }
        Err(error) => {
            complain(&error);
            match error {
                StoreError::Locked { .. } => Exit::Busy,
                _ => Exit::State,
            }
        }
    }
}

fn confirmed(state_dir: &Path) -> bool {
    if !io::stdin().is_terminal() {
        complain("this is not a terminal: say --yes to go on without a question");
        return false;
    }
    eprintln!(
        "The agent's store in {} is moved aside. Results that were not delivered yet are not\n\
         delivered any more, and runs that were open are forgotten. Type yes to go on:",
        state_dir.display()
    );
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}
