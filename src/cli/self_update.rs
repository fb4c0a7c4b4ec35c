//! `backupy self-update`: another version of this program, by hand.

use std::path::Path;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{complain, state_dir};
use crate::agent::VERSION;
use crate::config::{self, HostConfig, TlsSettings, UpdateKey, process_env};
use crate::exit::Exit;
use crate::host::update::Order;
use crate::host::update::by_hand::{Request, Source, order_for_next_start, stage};
use crate::model::Trust;
use crate::observe::socket;
use crate::secret::Secret;
use crate::signals;

/// How long the process may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Have another version of this program take over, once it has proven itself.
///
/// It must be signed by the owner of the update key (BACKUPY_UPDATE_PUBLIC_KEY).
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "self-update")]
pub struct SelfUpdateArgs {
    /// the binary: a file or an https URL
    #[argh(positional, arg_name = "FILE|URL")]
    source: String,
    /// its SHA-256, hex, if that is to be checked too
    #[argh(option, arg_name = "HEX")]
    sha256: Option<String>,
    /// its signature, as `cosign sign-blob` makes it (default: FILE.sig or URL.sig)
    #[argh(option, arg_name = "FILE")]
    signature: Option<String>,
    /// also if it is older, the same, or failed before
    #[argh(switch)]
    force: bool,
    /// directory for state (BACKUPY_STATE_DIR)
    #[argh(option, arg_name = "DIR")]
    state_dir: Option<String>,
}

/// Puts the version into its slot and tells the process that runs.
pub fn run(args: &SelfUpdateArgs) -> Exit {
    let state_dir = state_dir(args.state_dir.as_deref());
    match HostConfig::load(&process_env, &config::Flags::default(), Trust::Local) {
        Ok(HostConfig { update: config::UpdateSettings { key: Some(key), .. }, proxy, .. }) => {
            let order = match get(args, &state_dir, &key, proxy) {
                Ok(order) => order,
                Err(why) => {
                    complain(why);
                    return Exit::Failed;
                }
            };
            hand_over(&state_dir, &order)
        }
        Ok(_) => {
            complain(
                "there is no update key: set BACKUPY_UPDATE_PUBLIC_KEY to the public key (PEM, or \
                 its file) that the binary is signed with, here and for the process that runs",
            );
            Exit::Usage
        }
        Err(error) => {
            complain(error);
            Exit::Usage
        }
    }
}

fn get(
    args: &SelfUpdateArgs,
    state_dir: &Path,
    key: &UpdateKey,
    proxy: config::ProxySettings,
) -> Result<Order, String> {
    if !state_dir.is_dir() {
        return Err(format!(
            "{} is not there; name the state directory with --state-dir",
            state_dir.display()
        ));
    }
    let cancel =
        signals::listen(None).map_err(|error| format!("failed to listen for signals: {error}"))?;
    let is_url = args.source.contains("://");
    let request = Request {
        source: if is_url {
            Source::Url(Secret::new(args.source.clone()))
        } else {
            Source::File(args.source.clone().into())
        },
        signature: args.signature.as_deref().map(Path::new),
        sha256: args.sha256.as_deref(),
        force: args.force,
        key,
    };
    let ca_file = process_env("BACKUPY_CA_FILE").filter(|path| !path.is_empty()).map(Into::into);
    let tls = TlsSettings { ca_file, ..TlsSettings::default() };
    stage(state_dir, &request, tls, proxy, &cancel).map_err(|error| error.to_string())
}

fn hand_over(state_dir: &Path, order: &Order) -> Exit {
    let request = json!({
        "cmd": "self-update",
        "version": order.version,
        "sha256": order.sha256,
        "signature": STANDARD.encode(&order.signature),
        "force": order.force,
    });
    let mut answer = Value::Null;
    let refused = match socket::ask(state_dir, &request, Some(TIMEOUT), &mut |line| answer = line) {
        Ok(true) => match answer["error"].as_str() {
            Some(reason) => Some(reason.to_owned()),
            None if answer.is_null() => {
                Some("the process closed the connection without an answer".to_owned())
            }
            None => {
                println!(
                    "version {} takes over as soon as no backup runs; `backupy status` says how it went",
                    order.version
                );
                None
            }
        },
        Ok(false) => match order_for_next_start(state_dir, order, VERSION) {
            Ok(()) => {
                println!(
                    "nobody runs on {}; version {} is tried at the next start",
                    state_dir.display(),
                    order.version
                );
                None
            }
            Err(reason) => Some(reason),
        },
        Err(error) => {
            Some(format!("failed to ask the process that runs on {}: {error}", state_dir.display()))
        }
    };
    match refused {
        None => Exit::Ok,
        Some(reason) => {
            complain(reason);
            Exit::Failed
        }
    }
}
