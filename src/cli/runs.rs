//! `backupy runs [NAME]`: what happened, from the running `up` or from its catalogue.

use std::io::{self, Write};

use argh::{ArgsInfo, FromArgs};
use serde_json::json;

use super::client::{Client, ClientError};
use super::complain;
use super::place::Place;
use super::show::{self, Table};
use crate::config::process_env;
use crate::control::view::RunView;
use crate::exit::Exit;

/// List the runs, newest first.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "runs")]
pub struct RunsArgs {
    /// only the runs of this backup
    #[argh(positional)]
    pub name: Option<String>,
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// the state directory of `up`, instead of its file
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
    /// a JSON object per line instead of a table
    #[argh(switch)]
    pub json: bool,
    /// at most so many (default: 20)
    #[argh(option)]
    pub limit: Option<usize>,
    /// read the storage again and add the runs that the catalogue has lost
    #[argh(switch)]
    pub rebuild: bool,
}

/// Runs that are shown unless `--limit` says otherwise.
const SHOWN: usize = 20;

/// Runs the command.
pub fn run(args: &RunsArgs) -> Exit {
    let place = match Place::find(args.config.as_deref(), args.state_dir.as_deref(), &process_env) {
        Ok(place) => place,
        Err(error) => return fail(&error, error.exit()),
    };
    let (name, limit) = (args.name.as_deref(), args.limit.unwrap_or(SHOWN));
    let mut runs = Vec::new();
    let client = Client::new(&place.state_dir);
    let online = rebuild_online(args, &client).and_then(|()| {
        client.ask(&json!({"cmd": "runs", "name": name, "limit": limit}), &mut |line| {
            if let Ok(run) = serde_json::from_value::<RunView>(line["run"].clone()) {
                runs.push(run);
            }
        })
    });
    match online {
        Ok(_) => {}
        Err(ClientError::NotRunning(_)) => match offline(args, &place, name, limit) {
            Ok(found) => runs = found,
            Err((why, exit)) => return fail(&why, exit),
        },
        Err(error) => return fail(&error, error.exit()),
    }
    match print(&runs, args.json) {
        Ok(()) => Exit::Ok,
        // Whoever read the list has seen enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => fail(&error, Exit::Failed),
    }
}

fn rebuild_online(args: &RunsArgs, client: &Client) -> Result<(), ClientError> {
    if args.rebuild {
        let found = client.simple("rebuild")?;
        eprintln!("{}", rebuilt(&found));
    }
    Ok(())
}

fn offline(
    args: &RunsArgs,
    place: &Place,
    name: Option<&str>,
    limit: usize,
) -> Result<Vec<RunView>, (String, Exit)> {
    let books = if args.rebuild { place.rebuild_books() } else { place.open_books() }?;
    if args.rebuild {
        let found = books.rebuild().map_err(|error| (error.to_string(), error.exit()))?;
        eprintln!("{}", rebuilt(&found));
    }
    books.runs(name, limit).map_err(|error| (error.to_string(), error.exit()))
}

fn print(runs: &[RunView], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        for run in runs {
            writeln!(out, "{}", serde_json::to_string(run)?)?;
        }
        return out.flush();
    }
    if runs.is_empty() {
        writeln!(out, "no runs yet")?;
        return out.flush();
    }
    let mut table = Table::new(&["RUN", "BACKUP", "STATE", "BEGUN (UTC)", "TOOK", "SIZE", "NOTE"]);
    for run in runs {
        table.row(row(run));
    }
    table.write(&mut out)?;
    out.flush()
}

fn row(run: &RunView) -> Vec<String> {
    let took = match run.finished_ms {
        0 => "-".to_owned(),
        end => show::duration(end.saturating_sub(run.created_ms)),
    };
    let size = if run.size_bytes == 0 { "-".to_owned() } else { show::size(run.size_bytes) };
    let note = match (run.error.as_str(), run.is_over()) {
        ("", true) => run.engine_version.clone(),
        ("", false) if run.percent > 0 => format!("{} {} %", run.step, run.percent),
        ("", false) => run.step.clone(),
        (error, _) => error.to_owned(),
    };
    let state = run.state.clone();
    let begun = show::time(run.created_ms);
    vec![run.run_id.clone(), run.backup.clone(), state, begun, took, size, note]
}

fn fail(error: &dyn std::fmt::Display, exit: Exit) -> Exit {
    complain(error);
    exit
}

/// What a rebuild found, in words.
fn rebuilt(found: &serde_json::Value) -> String {
    let mut text = format!(
        "{} backups in the storage, {} of them new to the catalogue, {} lost, {} unfinished uploads",
        found["good"], found["added"], found["lost"], found["unfinished"]
    );
    for problem in found["problems"].as_array().into_iter().flatten() {
        text.push_str("\n! ");
        text.push_str(&show::printable(problem.as_str().unwrap_or_default()));
    }
    text
}
