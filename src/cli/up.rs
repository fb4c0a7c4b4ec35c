//! `backupy up`: agent and control plane in one process, from one file or a few flags.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use crossbeam_channel::never;

use super::place::{self, DEFAULT_CONFIG, Note};
use super::run::exit_for;
use super::{complain, launch};
use crate::agent::{Agent, AgentOptions};
use crate::clock::unix_ms;
use crate::config::{self, HostConfig, TlsSettings, process_env};
use crate::control::embedded::{Embedded, EmbeddedError};
use crate::control::file::{self as file_of_up, Flags, Settings};
use crate::control::local;
use crate::control::plane::Plane;
use crate::control::schedule::Schedule;
use crate::control::storage::{Reach, StorageSettings};
use crate::exit::Exit;
use crate::host::update::{Origin, Restart, StartCheck};
use crate::link::Transport;
use crate::model::Trust;
use crate::observe::logging;
use crate::observe::supervisor::{START_PATIENCE, Supervisor};
use crate::pipeline::UrlPolicy;
use crate::signals;
use crate::store::Migrations;
use crate::thread::Cancel;

/// Keep the databases of this host backed up: scheduler, storage and agent in one process.
///
/// Either `--config FILE`, or for a single database `--database URL --to DIR --every 6h`.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "up")]
pub struct UpArgs {
    /// the file (default: /etc/backupy/backupy.toml); SIGHUP reads it again
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// a single database: sqlite:///srv/app.db, postgres://user@host/name
    #[argh(option, arg_name = "URL")]
    pub database: Option<String>,
    /// its password: file:/path or env:NAME
    #[argh(option, arg_name = "REF")]
    pub password: Option<String>,
    /// its name (default: made from the URL)
    #[argh(option)]
    pub name: Option<String>,
    /// where its backups go: a directory (a bucket is named in a file)
    #[argh(option, arg_name = "DIR")]
    pub to: Option<String>,
    /// how often: 30m, 6h, 1d
    #[argh(option)]
    pub every: Option<String>,
    /// or when: a cron line, UTC
    #[argh(option)]
    pub cron: Option<String>,
    /// keep so many of the newest
    #[argh(option, long = "keep", arg_name = "N")]
    pub keep_last: Option<u32>,
    /// keep what is younger than so many days
    #[argh(option, arg_name = "N")]
    pub keep_days: Option<u32>,
    /// directory for state, mode 0700 (default /var/lib/backupy)
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
    /// the master key's file (default: master.key in the state directory)
    #[argh(option, arg_name = "FILE")]
    pub master_key: Option<String>,
    /// trace, debug, info, warn or error (BACKUPY_LOG_LEVEL, default info)
    #[argh(option)]
    pub log_level: Option<String>,
    /// check the file and say what it means, but start nothing
    #[argh(switch)]
    pub check: bool,
}

/// Runs until a signal ends it.
pub fn run(args: &UpArgs) -> Exit {
    let origin = if args.check { None } else { Some(launch::start(&state_dir_of(args))) };
    let origin = match origin.transpose() {
        Ok(origin) => origin,
        Err(code) => return code,
    };
    let (settings, path) = match settings(args) {
        Ok(found) => found,
        Err(why) => {
            complain(why);
            return Exit::Usage;
        }
    };
    let Some(origin) = origin else {
        explain(&settings);
        return Exit::Ok;
    };
    let flags = config::Flags {
        state_dir: Some(settings.state_dir.display().to_string()),
        log_level: args.log_level.clone(),
        ..config::Flags::default()
    };
    let host = match HostConfig::load(&process_env, &flags, Trust::Local) {
        Ok(host) => host,
        Err(error) => {
            complain(error);
            return Exit::Usage;
        }
    };
    logging::init(host.log_level, None);
    for warning in &settings.warnings {
        log::warn!("{}", at(path.as_deref(), warning));
    }
    serve(settings, File { path, pinned: args.state_dir.is_some() }, host, &origin)
}

/// The state directory, as far as it can be told without judging the rest of the file: another version may understand
/// what this one does not.
fn state_dir_of(args: &UpArgs) -> PathBuf {
    let by_flags = args.database.is_some() || args.to.is_some();
    let file = Path::new(args.config.as_deref().unwrap_or(DEFAULT_CONFIG));
    match &args.state_dir {
        Some(dir) => dir.into(),
        None if by_flags => super::state_dir(None),
        None => file_of_up::state_dir_in(file).unwrap_or_else(|| config::DEFAULT_STATE_DIR.into()),
    }
}

/// Whether the file, if there is one, would be taken at a start.
fn start_check(path: Option<PathBuf>) -> StartCheck {
    Box::new(move || match &path {
        Some(path) => {
            file_of_up::load(path).map(drop).map_err(|problems| place::tell(path, &problems))
        }
        None => Ok(()),
    })
}

/// The file that the settings came from.
struct File {
    path: Option<PathBuf>,
    /// Whether `--state-dir` overrides what it says.
    pinned: bool,
}

fn serve(settings: Settings, file: File, host: HostConfig, origin: &Origin) -> Exit {
    let starts_again = start_check(file.path.clone());
    let plane: Arc<OnceLock<Plane>> = Arc::default();
    let supervisor = Supervisor::from_env(&process_env);
    let (reloaded, told) = (plane.clone(), supervisor.clone());
    let listening = signals::listen_and_tell(Some(Box::new(move || {
        if let Some(plane) = reloaded.get() {
            told.reloading(|| reload(plane, &file));
        }
    })));
    let (stop, asked) = match listening {
        Ok(listening) => listening,
        Err(error) => {
            complain(format!("failed to listen for signals: {error}"));
            return Exit::Internal;
        }
    };
    let reach = match Cancel::new() {
        Ok(cancel) => Reach { proxy: host.proxy.clone(), policy: host.policy.clone(), cancel },
        Err(error) => {
            complain(error);
            return Exit::Internal;
        }
    };
    let migrations = origin.migrations(&settings.state_dir);
    let mut embedded = match begin(&settings, &reach, &stop, &supervisor, migrations) {
        Ok(Some(embedded)) => embedded,
        Ok(None) => return Exit::Ok,
        Err(error) => {
            complain(&error);
            // Beside one that runs, nothing is down.
            if error.exit() != Exit::Busy {
                error.tell(&settings, &reach, &stop);
            }
            return error.exit();
        }
    };
    if let Err(error) = Note::of(&settings).leave(&settings.state_dir) {
        log::warn!("failed to note where the storage is: {error}");
    }
    // Nobody sets it but this line.
    let _ = plane.set(embedded.plane().clone());
    let restart = Restart::checked_by(starts_again);
    let options =
        options(&embedded, &settings.storage, host, supervisor, origin.clone(), restart.clone());
    let exit = match Agent::start(options, stop) {
        Ok(agent) => {
            agent.run();
            Exit::Ok
        }
        Err(error) => {
            complain(&error);
            exit_for(&error)
        }
    };
    embedded.stop();
    log::info!("stopped");
    if exit == Exit::Ok { launch::end(origin, &restart, &asked) } else { exit }
}

/// Starts the control plane; `None` if it was asked to stop first. Of a bucket that was never reached nothing is known,
/// so that there is nothing to do until it answers.
fn begin(
    settings: &Settings,
    reach: &Reach,
    stop: &Cancel,
    supervisor: &Supervisor,
    migrations: Migrations,
) -> Result<Option<Embedded>, EmbeddedError> {
    const AGAIN: Duration = Duration::from_secs(30);
    let mut told = false;
    supervisor.starting("opening store and storage", START_PATIENCE);
    loop {
        match Embedded::start(settings.clone(), reach, migrations) {
            Err(error) if error.is_away() => {
                log::error!("{error}; nothing can start before it was reached once");
                supervisor.starting(&format!("waiting for the storage: {error}"), START_PATIENCE);
                if !std::mem::replace(&mut told, true) {
                    error.tell(settings, reach, stop);
                }
                if !stop.sleep(AGAIN) {
                    return Ok(None);
                }
            }
            started => return started.map(Some),
        }
    }
}

fn options(
    embedded: &Embedded,
    storage: &StorageSettings,
    host: HostConfig,
    supervisor: Supervisor,
    origin: Origin,
    restart: Restart,
) -> AgentOptions {
    let plane = embedded.plane().clone();
    let settings = plane.settings();
    let schedules = plane.clone();
    let (uploads, ca_file) = match storage {
        StorageSettings::Directory(_) => (UrlPolicy::Loopback(embedded.addr()), None),
        StorageSettings::S3(bucket) => (bucket.policy(), bucket.ca_file.clone()),
    };
    AgentOptions {
        transport: Transport::Loopback(embedded.addr()),
        agent_key: embedded.agent_key().clone(),
        previous_key: None,
        state_dir: host.state_dir,
        uploads,
        tls: TlsSettings { ca_file, ..TlsSettings::default() },
        proxy: host.proxy,
        policy: host.policy,
        limits: host.limits,
        stop_grace: host.stop_grace,
        log_level: host.log_level,
        log_lines: never(),
        metrics_listen: settings.metrics_listen.unwrap_or(host.metrics_listen),
        intervals: Some(Box::new(move |job_id| {
            match schedules.settings().backup(job_id)?.schedule {
                Schedule::Every(interval) => Some(interval),
                Schedule::Cron(_) => None,
            }
        })),
        extra: Some(Arc::new(move |request, status, reply| {
            local::answer(&plane, request, status, reply)
        })),
        supervisor,
        vital: Some(embedded.vital()),
        updates: host.update,
        origin,
        restart,
    }
}

/// The settings and the file that they came from.
fn settings(args: &UpArgs) -> Result<(Settings, Option<PathBuf>), String> {
    let single = [&args.database, &args.to, &args.every, &args.cron, &args.name, &args.password];
    let by_flags = single.iter().any(|flag| flag.is_some())
        || args.keep_last.is_some()
        || args.keep_days.is_some();
    if by_flags && args.config.is_some() {
        return Err("either --config FILE, or --database, --to and a schedule".into());
    }
    if by_flags { from_flags(args).map(|settings| (settings, None)) } else { from_file(args) }
}

fn from_file(args: &UpArgs) -> Result<(Settings, Option<PathBuf>), String> {
    let path = PathBuf::from(args.config.as_deref().unwrap_or(DEFAULT_CONFIG));
    if args.config.is_none() && !path.exists() {
        return Err(format!(
            "there is no {DEFAULT_CONFIG}; name a file with --config, or start with\n\
             backupy up {EXAMPLE}"
        ));
    }
    let mut settings = file_of_up::load(&path).map_err(|problems| place::tell(&path, &problems))?;
    if let Some(dir) = &args.state_dir {
        override_state_dir(&mut settings, Path::new(dir))?;
    }
    Ok((settings, Some(path)))
}

fn from_flags(args: &UpArgs) -> Result<Settings, String> {
    let needed = |flag: &Option<String>, name: &str| {
        flag.clone().ok_or_else(|| format!("{name} is missing, as in: {EXAMPLE}"))
    };
    let flags = Flags {
        database: needed(&args.database, "--database")?,
        to: needed(&args.to, "--to")?,
        every: args.every.clone(),
        cron: args.cron.clone(),
        name: args.name.clone(),
        password: args.password.clone(),
        keep_last: args.keep_last,
        keep_days: args.keep_days,
        state_dir: args.state_dir.clone().or_else(|| process_env("BACKUPY_STATE_DIR")),
        master_key: args.master_key.clone(),
    };
    Settings::from_flags(&flags).map_err(|problems| {
        problems.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>().join("\n")
    })
}

const EXAMPLE: &str = "--database sqlite:///srv/app.db --to /var/backups --every 6h";

/// `--state-dir` beside a file: the default place of the master key moves along.
fn override_state_dir(settings: &mut Settings, dir: &Path) -> Result<(), String> {
    if !dir.is_absolute() {
        return Err("--state-dir needs an absolute path".into());
    }
    if let Ok(inside) = settings.master_key.strip_prefix(&settings.state_dir) {
        settings.master_key = dir.join(inside);
    }
    settings.state_dir = dir.to_owned();
    Ok(())
}

/// Reads the file again; a wrong one changes nothing.
fn reload(plane: &Plane, file: &File) {
    let Some(path) = &file.path else {
        return log::info!("SIGHUP: started by flags, so there is no file to read again");
    };
    let mut settings = match file_of_up::load(path) {
        Ok(settings) => settings,
        Err(problems) => {
            return log::error!("the file was not applied:\n{}", place::tell(path, &problems));
        }
    };
    if file.pinned
        && let Err(why) = override_state_dir(&mut settings, &plane.settings().state_dir)
    {
        return log::error!("the file was not applied: {why}");
    }
    for warning in &settings.warnings {
        log::warn!("{}", at(Some(path), warning));
    }
    match plane.reload(settings, unix_ms()) {
        Ok(true) => log::info!("{} was applied", path.display()),
        Ok(false) => log::info!("{} was read again; nothing changes for the agent", path.display()),
        Err(error) => log::error!("{error}"),
    }
}

fn at(path: Option<&Path>, problem: &file_of_up::Problem) -> String {
    match path {
        Some(path) => place::tell(path, std::slice::from_ref(problem)),
        None => problem.message.clone(),
    }
}

/// What `--check` prints.
fn explain(settings: &Settings) {
    let note = Note::of(settings);
    println!("state      {}", settings.state_dir.display());
    println!("storage    {}", note.storage);
    println!("master key {}", note.master_key.display());
    for backup in &settings.backups {
        println!("backup     {} ({}), {}", backup.name, backup.target.engine, backup.schedule);
    }
    for channel in settings.channels() {
        let topics: Vec<_> = channel.topics.iter().map(ToString::to_string).collect();
        let on =
            if topics.is_empty() { String::new() } else { format!(", on {}", topics.join(", ")) };
        println!("notify     {}: {}{on}", channel.name, channel.way.place());
    }
    for warning in &settings.warnings {
        println!("warning    line {}: {}", warning.line, warning.message);
    }
}
