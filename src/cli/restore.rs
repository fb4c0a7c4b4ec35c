//! `backupy restore NAME|RUN --to FILE | --into URL`: the dump back, or right into a database.

use std::io;
use std::path::Path;

use argh::{ArgsInfo, FromArgs};

use super::artifacts::{Artifacts, Failed, Meter, Where, describe, fail};
use super::{complain, key, show};
use crate::control::durable::Existing;
use crate::control::file::url;
use crate::control::manifest::Manifest;
use crate::control::restore::{Watch, into_database, to_file, to_writer};
use crate::exit::Exit;
use crate::model::{Engine, Target};
use crate::secret::Secret;

/// Bring a backup back: as a file, or loaded into a database. Needs the storage and the master key only;
/// `up` need not run.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "restore")]
pub struct RestoreArgs {
    /// a backup's name (its newest good run) or a run's id
    #[argh(positional, arg_name = "NAME|RUN")]
    pub wanted: String,
    /// the file for the dump (`-` = standard output: use it only if the exit code is 0)
    #[argh(option, arg_name = "FILE")]
    pub to: Option<String>,
    /// the database to load it into: sqlite:///srv/app.db, postgres://user@host/name,
    /// mysql://user@host/name
    #[argh(option, arg_name = "URL")]
    pub into: Option<String>,
    /// the database's password: file:/path or env:NAME
    #[argh(option, arg_name = "REF")]
    pub password: Option<String>,
    /// replace the file, or what is in the database
    #[argh(switch)]
    pub replace: bool,
    /// do not ask before loading into a database
    #[argh(switch)]
    pub yes: bool,
    /// the storage, where no file and no state directory knows it: a directory, or s3://bucket/prefix with
    /// ?region=… or ?endpoint=… and the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[argh(option, arg_name = "PLACE")]
    pub storage: Option<String>,
    /// the master key's file, where no file and no state directory knows it
    #[argh(option, arg_name = "FILE")]
    pub master_key: Option<String>,
    /// where the dump lies until it is loaded (default: the state directory)
    #[argh(option, arg_name = "DIR")]
    pub scratch: Option<String>,
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// the state directory of `up`, instead of its file
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
}

/// Runs the command.
pub fn run(args: &RestoreArgs) -> Exit {
    match restore(args) {
        Ok(()) => Exit::Ok,
        Err((why, exit)) => {
            complain(why);
            exit
        }
    }
}

fn restore(args: &RestoreArgs) -> Result<(), Failed> {
    let place = Where {
        config: args.config.as_deref(),
        state_dir: args.state_dir.as_deref(),
        storage: args.storage.as_deref(),
        master_key: args.master_key.as_deref(),
    };
    match (&args.to, &args.into) {
        (Some(to), None) => {
            let artifacts = Artifacts::open(&place)?;
            let manifest = artifacts.select(&args.wanted)?;
            as_file(&artifacts, &manifest, to, args.replace)
        }
        (None, Some(into)) => {
            let target = target(into, args.password.as_deref())?;
            let artifacts = Artifacts::open(&place)?;
            let manifest = artifacts.select(&args.wanted)?;
            load(args, &artifacts, &manifest, &target)
        }
        _ => Err(("say where to: --to FILE for the dump, or --into URL".into(), Exit::Usage)),
    }
}

fn as_file(
    artifacts: &Artifacts,
    manifest: &Manifest,
    to: &str,
    replace: bool,
) -> Result<(), Failed> {
    eprintln!("restoring {}", describe(manifest));
    let meter = Meter::new("restoring");
    let watch =
        Watch { cancel: &artifacts.cancel, progress: &|read, total| meter.show(read, total) };
    let (storage, master) = (&artifacts.storage, &artifacts.master);
    let done = if to == "-" {
        to_writer(storage, manifest, master, &mut io::stdout().lock(), &watch)
    } else {
        let existing = if replace { Existing::Replace } else { Existing::Keep };
        to_file(storage, manifest, master, Path::new(to), existing, &watch)
    };
    meter.clear();
    let done = done.map_err(|error| {
        let (why, exit) = fail(&error);
        let hint = if exit == Exit::Usage { " (--replace)" } else { "" };
        (format!("{why}{hint}"), exit)
    })?;
    let how = match manifest.engine {
        Engine::PostgreSql => "; load it with pg_restore --dbname (all databases: psql --file)",
        Engine::MySql | Engine::MariaDb => {
            "; load it with the mariadb or mysql client, --binary-mode"
        }
        _ => "",
    };
    eprintln!("restored {} to {to}; size and hash are right{how}", show::size(done.bytes_out));
    Ok(())
}

fn target(into: &str, password: Option<&str>) -> Result<Target, Failed> {
    let (engine, mut connection) =
        url::parse(into).map_err(|error| (format!("--into: {error}"), Exit::Usage))?;
    if !connection.password_ref.is_empty() {
        complain(
            "every user of this machine can read a password on the command line; use --password",
        );
    }
    if let Some(reference) = password {
        if !reference.starts_with("file:") && !reference.starts_with("env:") {
            let why = "--password is a reference: file:/path or env:NAME";
            return Err((why.into(), Exit::Usage));
        }
        connection.password_ref = Secret::new(reference);
    }
    Ok(Target { id: "restore".into(), engine, display_name: "restore".into(), connection })
}

fn load(
    args: &RestoreArgs,
    artifacts: &Artifacts,
    manifest: &Manifest,
    target: &Target,
) -> Result<(), Failed> {
    let replacing = if args.replace { ", replacing what is there" } else { "" };
    eprintln!("about to load {} into {}{replacing}", describe(manifest), name(target));
    if !args.yes && !key::ask("Go on? [y/N] ") {
        let why = "nothing was loaded; answer y, or say --yes";
        return Err((why.into(), Exit::Usage));
    }
    let scratch = artifacts.scratch(args.scratch.as_deref())?;
    let meter = Meter::new("restoring");
    let done = artifacts.with_context(scratch.path(), |context| {
        into_database(
            &artifacts.storage,
            manifest,
            &artifacts.master,
            target,
            args.replace,
            context,
            &|read, total| meter.show(read, total),
        )
    });
    meter.clear();
    let done = done.map_err(|error| fail(&error))?;
    eprintln!("loaded a dump of {} into {}", show::size(done.bytes_out), name(target));
    Ok(())
}

/// A database without user and password.
fn name(target: &Target) -> String {
    let connection = &target.connection;
    let place = match (target.engine, connection.host.as_str()) {
        (Engine::Sqlite, _) => connection.database.clone(),
        (_, "") => connection.database.clone(),
        (_, host) if connection.database.is_empty() => format!("at {host}"),
        (_, host) => format!("{} on {host}", connection.database),
    };
    format!("the {} database {}", target.engine, show::printable(&place))
}
