//! `backupy backup NAME`: back up now, follow it, and say how it ended.

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::complain;
use super::place::Place;
use super::show;
use crate::config::process_env;
use crate::control::view::RunView;
use crate::exit::Exit;

/// Back a database up now and follow it. Needs a running `backupy up`. Exit code 0 only if the backup is
/// stored and verified.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "backup")]
pub struct BackupArgs {
    /// the backup's name in the file of `up`
    #[argh(positional)]
    pub name: String,
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// the state directory of the running `up`, instead of its file
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
    /// start it and do not wait for its end
    #[argh(switch)]
    pub no_wait: bool,
    /// cancel the running backup instead
    #[argh(switch)]
    pub cancel: bool,
    /// print the finished run as JSON
    #[argh(switch)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &BackupArgs) -> Exit {
    let place = match Place::find(args.config.as_deref(), args.state_dir.as_deref(), &process_env) {
        Ok(place) => place,
        Err(error) => return fail(&error, error.exit()),
    };
    let client = Client::new(&place.state_dir);
    if args.cancel {
        return match client.ask(&json!({"cmd": "cancel", "name": args.name}), &mut |_| ()) {
            Ok(_) => {
                println!("asked for the end of {}", show::printable(&args.name));
                Exit::Ok
            }
            Err(error) => fail(&error, error.exit()),
        };
    }
    let mut progress = show::Progress::default();
    let request = json!({"cmd": "backup", "name": args.name, "follow": !args.no_wait});
    let outcome = client.ask(&request, &mut |line| paint(&mut progress, line));
    progress.clear();
    let run = outcome.and_then(|done| {
        serde_json::from_value::<RunView>(done["run"].clone())
            .map_err(|error| ClientError::Refused(format!("failed to read the answer: {error}")))
    });
    match run {
        Ok(run) => finish(args, &run),
        Err(error) => fail(&error, error.exit()),
    }
}

fn paint(progress: &mut show::Progress, line: &Value) {
    let Ok(run) = serde_json::from_value::<RunView>(line["progress"].clone()) else { return };
    let elapsed = Duration::from_millis(line["elapsed_ms"].as_u64().unwrap_or(0));
    let note = show::duration(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    let percent = u8::try_from(run.percent).ok().filter(|percent| *percent > 0);
    let step = if run.step.is_empty() { &run.state } else { &run.step };
    progress.step(step, percent, &note);
}

fn finish(args: &BackupArgs, run: &RunView) -> Exit {
    if args.json {
        match serde_json::to_string(run) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(&error, Exit::Internal),
        }
    }
    if !run.is_over() {
        if !args.json {
            println!("run {} of {} is {}", run.run_id, run.backup, run.state);
        }
        return if args.no_wait { Exit::Ok } else { Exit::Failed };
    }
    if !run.is_ok() {
        let why = show::printable(&run.error);
        complain(format!("run {} of {} {}: {why}", run.run_id, run.backup, run.state));
        return Exit::Failed;
    }
    if !args.json {
        println!(
            "run {} of {} is stored: {} in {}, {}",
            run.run_id,
            run.backup,
            show::size(run.size_bytes),
            show::duration(run.finished_ms.saturating_sub(run.created_ms)),
            run.object_key
        );
    }
    Exit::Ok
}

fn fail(error: &dyn std::fmt::Display, exit: Exit) -> Exit {
    complain(error);
    exit
}
