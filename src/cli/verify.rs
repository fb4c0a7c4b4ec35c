//! `backupy verify NAME|RUN`: restores a backup to a scratch place and checks the whole of it.

use argh::{ArgsInfo, FromArgs};
use serde_json::json;

use super::artifacts::{Artifacts, Failed, Meter, Where, describe, fail};
use super::client::{Client, ClientError};
use super::{complain, show};
use crate::control::manifest::Manifest;
use crate::control::plane::Books;
use crate::control::verify::{Verified, verify as check};
use crate::exit::Exit;

/// Tables that are printed.
const TABLES_SHOWN: usize = 50;

/// Restore a backup to a scratch place and check all of it: hash, decryption, decompression, and the dump by
/// its engine's own means. Exit code 1 if it is bad.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "verify")]
pub struct VerifyArgs {
    /// a backup's name (its newest good run) or a run's id
    #[argh(positional, arg_name = "NAME|RUN")]
    pub wanted: String,
    /// the findings as JSON
    #[argh(switch)]
    pub json: bool,
    /// the storage, where no file and no state directory knows it: a directory, or s3://bucket/prefix with
    /// ?region=… or ?endpoint=… and the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[argh(option, arg_name = "PLACE")]
    pub storage: Option<String>,
    /// the master key's file, where no file and no state directory knows it
    #[argh(option, arg_name = "FILE")]
    pub master_key: Option<String>,
    /// where the dump lies meanwhile (default: the state directory)
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
pub fn run(args: &VerifyArgs) -> Exit {
    match verify(args) {
        Ok(()) => Exit::Ok,
        Err((why, exit)) => {
            complain(why);
            exit
        }
    }
}

fn verify(args: &VerifyArgs) -> Result<(), Failed> {
    let artifacts = Artifacts::open(&Where {
        config: args.config.as_deref(),
        state_dir: args.state_dir.as_deref(),
        storage: args.storage.as_deref(),
        master_key: args.master_key.as_deref(),
    })?;
    let manifest = artifacts.select(&args.wanted)?;
    let scratch = artifacts.scratch(args.scratch.as_deref())?;
    let meter = Meter::new("verifying");
    let outcome = artifacts.with_context(scratch.path(), |context| {
        check(&artifacts.storage, &manifest, &artifacts.master, context, &|read, total| {
            meter.show(read, total);
        })
    });
    meter.clear();
    drop(scratch);
    match outcome {
        Ok(found) => {
            note(&artifacts, &manifest, None);
            print(args, &manifest, &found);
            Ok(())
        }
        Err(error) => {
            let (why, exit) = fail(&error);
            if error.is_about_the_backup() {
                note(&artifacts, &manifest, Some(&why));
                let what = describe(&manifest);
                return Err((format!("{what} is bad: {why}"), Exit::Failed));
            }
            Err((format!("could not verify {}: {why}", describe(&manifest)), exit))
        }
    }
}

/// Writes the outcome into the catalogue, if there is one: the keep rules should know.
fn note(artifacts: &Artifacts, manifest: &Manifest, error: Option<&str>) {
    let request = json!({"cmd": "verified", "id": manifest.run_id, "error": error});
    let noted = match Client::new(&artifacts.state_dir).ask(&request, &mut |_| ()) {
        Ok(_) => Ok(()),
        Err(ClientError::NotRunning(_)) if !artifacts.state_dir.join("control").is_dir() => Ok(()),
        Err(ClientError::NotRunning(_)) => {
            Books::open_beside(&artifacts.state_dir, &artifacts.storage, &artifacts.master)
                .and_then(|books| books.verified(&manifest.run_id, error.map(str::to_owned)))
                .map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = noted {
        complain(format!("failed to note the outcome in the catalogue: {error}"));
    }
}

fn print(args: &VerifyArgs, manifest: &Manifest, found: &Verified) {
    if args.json {
        let tables: Vec<_> =
            found.tables.iter().map(|t| json!({"name": t.name, "rows": t.rows})).collect();
        println!(
            "{}",
            json!({
                "run_id": manifest.run_id,
                "backup": manifest.backup,
                "ok": true,
                "artifact_bytes": found.artifact_bytes,
                "dump_bytes": found.dump_bytes,
                "tables": tables,
                "warnings": found.warnings,
            })
        );
        return;
    }
    println!("{} is good", describe(manifest));
    println!(
        "  {} artifact, {} dump, {} tables",
        show::size(found.artifact_bytes),
        show::size(found.dump_bytes),
        found.tables.len()
    );
    for table in found.tables.iter().take(TABLES_SHOWN) {
        match table.rows {
            Some(rows) => println!("  {}: {rows} rows", show::printable(&table.name)),
            None => println!("  {}", show::printable(&table.name)),
        }
    }
    if found.tables.len() > TABLES_SHOWN {
        println!("  and {} more (--json lists all)", found.tables.len() - TABLES_SHOWN);
    }
    for warning in &found.warnings {
        println!("! {}", show::printable(warning));
    }
}
