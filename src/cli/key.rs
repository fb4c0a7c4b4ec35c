//! `backupy key export|import|rotate`: the master key, without which no backup can be read.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use argh::{ArgsInfo, FromArgs};
use zeroize::Zeroizing;

use super::client::{Client, ClientError};
use super::complain;
use super::place::{Note, Place};
use crate::clock::unix_ms;
use crate::config::process_env;
use crate::control::embedded::private_dir;
use crate::control::keys::MasterKey;
use crate::exit::Exit;

/// Largest export that is read.
const EXPORT_MAX: u64 = 64 << 10;

/// The master key: without it no backup can be restored. Keep a copy outside this machine.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "key")]
pub struct KeyArgs {
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum What {
    Export(ExportArgs),
    Import(ImportArgs),
    Rotate(RotateArgs),
}

/// Write the master key out, to be kept outside this machine.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "export")]
pub struct ExportArgs {
    /// the file to write, mode 0600; it must not exist (default: standard output)
    #[argh(option, arg_name = "FILE")]
    pub out: Option<String>,
    /// do not ask: the copy is safe outside this machine, and `status` need not warn any more
    #[argh(switch)]
    pub confirm: bool,
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// the state directory of `up`, instead of its file
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
}

/// Put an exported master key into its place, on a new machine or to bring back lost older keys. Never
/// drops a key that is there. `up` must not be running.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "import")]
pub struct ImportArgs {
    /// the exported key (default: standard input)
    #[argh(option, long = "in", arg_name = "FILE")]
    pub input: Option<String>,
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// the state directory of `up`, instead of its file
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
}

/// Make a new master key for the backups from now on. The old ones stay in the file: what was backed up
/// under them still needs them. Export again afterwards.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "rotate")]
pub struct RotateArgs {
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// the state directory of `up`, instead of its file
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
}

/// Why a command ended, and with which code.
type Failed = (String, Exit);

/// Runs the command.
pub fn run(args: &KeyArgs) -> Exit {
    let outcome = match &args.what {
        What::Export(args) => export(args),
        What::Import(args) => import(args),
        What::Rotate(args) => rotate(args),
    };
    match outcome {
        Ok(()) => Exit::Ok,
        Err((why, exit)) => {
            complain(why);
            exit
        }
    }
}

fn find(config: Option<&str>, state_dir: Option<&str>) -> Result<(Place, Note), Failed> {
    let place = Place::find(config, state_dir, &process_env)
        .map_err(|error| (error.to_string(), error.exit()))?;
    let note = place.known_note()?.clone();
    Ok((place, note))
}

fn export(args: &ExportArgs) -> Result<(), Failed> {
    let (place, note) = find(args.config.as_deref(), args.state_dir.as_deref())?;
    let key = MasterKey::load(&note.master_key, note.storage.directory()).map_err(state)?;
    match &args.out {
        Some(path) => {
            write_new(Path::new(path), key.to_text().expose()).map_err(|error| {
                (format!("failed to write {path}: {error}; name a new file"), Exit::Failed)
            })?;
            eprintln!("wrote {path}");
        }
        None => io::stdout()
            .write_all(key.to_text().expose().as_bytes())
            .and_then(|()| io::stdout().flush())
            .map_err(|error| (format!("failed to print the key: {error}"), Exit::Failed))?,
    }
    if args.confirm || ask("Is a copy of this key safe outside this machine? [y/N] ") {
        confirm(&place)?;
        eprintln!("noted; `backupy status` will not warn about master key {} any more", key.id());
    } else {
        eprintln!(
            "`backupy status` warns until you confirm: backupy key export --confirm > /dev/null"
        );
    }
    Ok(())
}

fn confirm(place: &Place) -> Result<(), Failed> {
    match Client::new(&place.state_dir).simple("key-exported") {
        Ok(_) => Ok(()),
        Err(ClientError::NotRunning(_)) => {
            let books = place.open_books()?;
            books.key_exported(unix_ms()).map_err(|error| (error.to_string(), error.exit()))
        }
        Err(error) => Err((error.to_string(), error.exit())),
    }
}

fn import(args: &ImportArgs) -> Result<(), Failed> {
    let (place, note) = find(args.config.as_deref(), args.state_dir.as_deref())?;
    if crate::observe::socket::connect(&place.state_dir).is_ok_and(|running| running.is_some()) {
        let why = format!("`up` is running on {}; stop it first", place.state_dir.display());
        return Err((why, Exit::Busy));
    }
    let text = read_export(args.input.as_deref())
        .map_err(|error| (format!("failed to read the exported key: {error}"), Exit::Failed))?;
    if let Some(dir) = note.master_key.parent()
        && dir == place.state_dir
    {
        // On a new machine `up` has not been started yet.
        private_dir(dir).map_err(state)?;
    }
    let key =
        MasterKey::import(&text, &note.master_key, note.storage.directory()).map_err(state)?;
    let keys = key.ids().collect::<Vec<_>>().join(", ");
    eprintln!("{} now holds: {keys}", note.master_key.display());
    Ok(())
}

fn rotate(args: &RotateArgs) -> Result<(), Failed> {
    let (place, note) = find(args.config.as_deref(), args.state_dir.as_deref())?;
    let id = match Client::new(&place.state_dir).simple("key-rotate") {
        Ok(done) => done["id"].as_str().unwrap_or_default().to_owned(),
        Err(ClientError::NotRunning(_)) => {
            MasterKey::load(&note.master_key, note.storage.directory())
                .and_then(|key| key.rotate(&note.master_key, unix_ms()))
                .map_err(state)?
                .id()
                .to_owned()
        }
        Err(error) => return Err((error.to_string(), error.exit())),
    };
    eprintln!("backups from now on use master key {id}; export it now: backupy key export");
    Ok(())
}

fn state(error: impl std::fmt::Display) -> Failed {
    (error.to_string(), Exit::State)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read_export(path: Option<&str>) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    match path {
        Some(path) => std::fs::File::open(path)?.take(EXPORT_MAX).read_to_string(&mut text)?,
        None => io::stdin().lock().take(EXPORT_MAX).read_to_string(&mut text)?,
    };
    Ok(text)
}

/// A question to a person; without one the answer is no.
pub(super) fn ask(question: &str) -> bool {
    if !io::stdin().is_terminal() {
        return false;
    }
    eprint!("{question}");
    let mut line = String::new();
    let read = io::stdin().lock().take(100).read_line(&mut line);
    read.is_ok() && matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}
