//! `backupy discover`: which databases there are on this host and which of them no backup covers; asks the running
//! process, or looks itself where none runs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::paste::Names;
#[cfg(feature = "control")]
use super::place::Place;
use super::show::Table;
use super::{complain, paste};
use crate::agent::discover::settings;
use crate::config::{Flags, HostConfig, process_env};
use crate::exit::Exit;
use crate::host::discovery::protect::Backup;
use crate::host::discovery::{Finder, view};
use crate::model::Trust;
use crate::observe::socket;
use crate::thread::Cancel;

/// A look takes half a minute where Docker hangs, and another one may be under way.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Show the databases on this host, which of them no backup covers, and what to put into the file of `up` for those.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "discover")]
pub struct DiscoverArgs {
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[cfg(feature = "control")]
    #[argh(option, arg_name = "FILE")]
    config: Option<String>,
    /// directory for state (BACKUPY_STATE_DIR)
    #[argh(option, arg_name = "DIR")]
    state_dir: Option<String>,
    /// as JSON
    #[argh(switch)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &DiscoverArgs) -> Exit {
    let (state_dir, backups, own) = match place(args) {
        Ok(place) => place,
        Err(exit) => return exit,
    };
    let found = match ask(&state_dir) {
        Ok(Some(found)) => found,
        Ok(None) => match look(&state_dir, backups.as_deref()) {
            Ok(found) => found,
            Err(exit) => return exit,
        },
        Err(why) => {
            complain(why);
            return Exit::Failed;
        }
    };
    let printed = if args.json { writeln!(io::stdout(), "{found:#}") } else { print(&found, &own) };
    match printed {
        Ok(()) => Exit::Ok,
        // Whoever read it has seen enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            complain(error);
            Exit::Failed
        }
    }
}

/// The state directory, what a file of `up` says is backed up, and the names of all of its backups.
type Known = (PathBuf, Option<Vec<Backup>>, Vec<String>);

#[cfg(feature = "control")]
fn place(args: &DiscoverArgs) -> Result<Known, Exit> {
    use crate::host::discovery::protect;
    use crate::model::{AgentConfig, Job};
    let found = Place::find(args.config.as_deref(), args.state_dir.as_deref(), &process_env);
    let place = found.map_err(|error| {
        complain(&error);
        error.exit()
    })?;
    let settings = place.settings.as_ref();
    let own = settings.map(|settings| {
        settings.backups.iter().map(|backup| backup.target.id.clone()).collect::<Vec<_>>()
    });
    let backups = place.settings.map(|settings| {
        let job =
            |target: &str| Job { id: target.into(), target_id: target.into(), ..Job::default() };
        let jobs = settings.backups.iter().map(|backup| job(&backup.target.id)).collect();
        let targets = settings.backups.into_iter().map(|backup| backup.target).collect();
        protect::backups(&AgentConfig { targets, jobs, ..AgentConfig::default() })
    });
    Ok((place.state_dir, backups, own.unwrap_or_default()))
}

#[cfg(not(feature = "control"))]
fn place(args: &DiscoverArgs) -> Result<Known, Exit> {
    Ok((super::state_dir(args.state_dir.as_deref()), None, Vec::new()))
}

/// What the running process finds; `None` if there is none.
fn ask(state_dir: &Path) -> Result<Option<Value>, String> {
    let mut answer = Value::Null;
    let request = json!({ "cmd": "discover" });
    let on = state_dir.display();
    match socket::ask(state_dir, &request, Some(TIMEOUT), &mut |line| answer = line) {
        Ok(false) => Ok(None),
        Ok(true) => match (answer["done"].take(), answer["error"].as_str()) {
            (_, Some(why)) => Err(why.to_owned()),
            (Value::Null, None) => Err(format!("the process on {on} ended before it had answered")),
            (found, None) => Ok(Some(found)),
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(format!(
            "failed to reach the process on {on}: {error}; be root or the user it runs as"
        )),
        Err(error) => Err(format!("failed to ask the process on {on}: {error}")),
    }
}

/// What this process finds by itself.
fn look(state_dir: &Path, backups: Option<&[Backup]>) -> Result<Value, Exit> {
    let flags = Flags { state_dir: Some(state_dir.display().to_string()), ..Flags::default() };
    let host = HostConfig::load(&process_env, &flags, Trust::Local).map_err(|error| {
        complain(error);
        Exit::Usage
    })?;
    let cancel = Cancel::new().map_err(|error| {
        complain(error);
        Exit::Internal
    })?;
    let report = Finder::new(settings(&host.policy, state_dir)).look_now(&cancel);
    if backups.is_none() {
        complain(format!(
            "nobody runs on {}, so what is backed up is not known",
            state_dir.display()
        ));
    }
    backups.iter().copied().flatten().for_each(Backup::follow_links);
    Ok(view::whole(&report, backups))
}

fn print(found: &Value, own: &[String]) -> io::Result<()> {
    let databases = found["databases"].as_array().map_or(&[][..], Vec::as_slice);
    if let (Some(why), false) =
        (found["docker"]["error"].as_str(), found["docker"]["absent"] == json!(true))
    {
        complain(format!("containers were not looked at: {why}"));
    }
    for note in found["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        complain(note);
    }
    let mut out = io::stdout().lock();
    if databases.is_empty() {
        return writeln!(out, "no databases were found");
    }
    let mut table = Table::new(&["DATABASE", "IMAGE OR PROCESS", "PORTS", "BACKUP"]);
    for database in databases {
        table.row(row(database));
    }
    table.write(&mut out)?;
    let open: Vec<&Value> = databases.iter().filter(|d| d["protected"] != json!(true)).collect();
    if open.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", headline(&open))?;
    let mut names = Names::new(taken(found).chain(own.iter().map(String::as_str)));
    for database in open {
        writeln!(out, "\n{}", paste::section(database, &mut names))?;
    }
    Ok(())
}

/// Over what is there to paste.
fn headline(open: &[&Value]) -> &'static str {
    if open.iter().all(|database| database["protected"] == json!(false)) {
        "# For the file of `backupy up`: what is not backed up so far."
    } else {
        "# For the file of `backupy up`: everything that was found; whether it is backed up already is not known."
    }
}

/// The names of all backups of the process, those included that protect nothing here.
fn taken(found: &Value) -> impl Iterator<Item = &str> {
    let databases = found["databases"].as_array().into_iter().flatten();
    let protecting = databases.filter_map(|database| database["backups"].as_array()).flatten();
    let jobs = found["jobs"].as_array().into_iter().flatten();
    jobs.chain(protecting).filter_map(Value::as_str)
}

fn row(database: &Value) -> Vec<String> {
    let text = |key: &str| database[key].as_str().unwrap_or_default();
    let made_of = if database["place"] == "container" { text("image") } else { text("process") };
    let ports = database["ports"].as_array().into_iter().flatten().map(|port| {
        let (inside, outside) = (&port["container_port"], &port["host_port"]);
        if *outside == json!(0) { inside.to_string() } else { format!("{inside} at {outside}") }
    });
    let backups = match database["backups"].as_array() {
        None => "?".to_owned(),
        Some(names) if names.is_empty() => "none".to_owned(),
        Some(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
    };
    let ports = ports.collect::<Vec<_>>().join(", ");
    vec![text("title").to_owned(), made_of.to_owned(), ports, backups]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_called_unprotected() {
        let (open, unknown) = (json!({ "protected": false }), json!({ "protected": null }));
        assert!(headline(&[&open]).contains("not backed up so far"));
        assert!(headline(&[&unknown]).contains("is not known"));
    }

    #[test]
    fn names_of_backups_of_other_hosts_are_taken_too() {
        let found = json!({ "jobs": ["shop"], "databases": [{ "backups": ["app"] }, {}] });
        assert_eq!(taken(&found).collect::<Vec<_>>(), ["shop", "app"]);
        assert_eq!(taken(&json!({})).count(), 0);
    }
}
