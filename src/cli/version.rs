//! `backupy version`.

use argh::{ArgsInfo, FromArgs};
use serde_json::json;

use crate::agent::{COMMIT, VERSION};
use crate::exit::Exit;

/// Print the version.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "version")]
pub struct VersionArgs {
    /// as JSON
    #[argh(switch)]
    json: bool,
}

/// Prints it.
pub fn version(args: &VersionArgs) -> Exit {
    let arch = crate::host::metrics::arch();
    if args.json {
        let control = cfg!(feature = "control");
        println!(
            "{}",
            json!({"version": VERSION, "commit": COMMIT, "os": "linux", "arch": arch, "control": control})
        );
    } else {
        let commit = COMMIT.map(|commit| format!(" ({commit})")).unwrap_or_default();
        println!("backupy {VERSION}{commit} linux/{arch}");
    }
    Exit::Ok
}
