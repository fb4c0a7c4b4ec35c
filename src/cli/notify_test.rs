//! `backupy notify-test [CHANNEL]`: does it reach people?
//!
//! Through the running `up`, because that is who will have to do it: with its environment, its rights and its proxy.
//! Where none runs, from here, as the file says.

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::complain;
use super::place::{self, Place};
use super::show::printable;
use crate::config::process_env;
use crate::control::notify::{self, Means};
use crate::exit::Exit;

/// Send a test message through every channel of the file: `on_failure`, each `[[notify]]`, and the pings (to
/// URL/log, which raises no alarm). Exit code 1 if any fails.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "notify-test")]
pub struct NotifyTestArgs {
    /// only this one, by its name (`on_failure` and `pings` are those without a section)
    #[argh(positional)]
    pub channel: Option<String>,
    /// the file of `up` (default: /etc/backupy/backupy.toml, if there is one)
    #[argh(option, arg_name = "FILE")]
    pub config: Option<String>,
    /// the state directory of the running `up`, instead of its file
    #[argh(option, arg_name = "DIR")]
    pub state_dir: Option<String>,
}

/// Runs the command.
pub fn run(args: &NotifyTestArgs) -> Exit {
    let place = match Place::find(args.config.as_deref(), args.state_dir.as_deref(), &process_env) {
        Ok(place) => place,
        Err(error) => return fail(&error, error.exit()),
    };
    let (mut tried, mut failed) = (0, 0);
    let mut each = |name: &str, error: Option<&str>| {
        tried += 1;
        failed += usize::from(error.is_some());
        match error {
            None => println!("{}: ok", printable(name)),
            Some(error) => println!("{}: failed: {}", printable(name), printable(error)),
        }
    };
    let request = json!({ "cmd": "notify-test", "channel": args.channel });
    let asked = Client::new(&place.state_dir).ask(&request, &mut |line: &Value| {
        if let Some(name) = line["tried"].as_str() {
            each(name, line["problem"].as_str());
        }
    });
    match asked {
        Ok(_) => {}
        Err(ClientError::NotRunning(_)) => {
            if let Err((why, exit)) = from_here(args, &place, &mut each) {
                return fail(&why, exit);
            }
        }
        Err(error) => return fail(&error, error.exit()),
    }
    if tried == 0 {
        return fail(
            &"the file names no way to people: on_failure, [[notify]] or ping",
            Exit::Usage,
        );
    }
    if failed == 0 { Exit::Ok } else { Exit::Failed }
}

fn from_here(
    args: &NotifyTestArgs,
    place: &Place,
    each: &mut dyn FnMut(&str, Option<&str>),
) -> Result<(), (String, Exit)> {
    let Some(settings) = &place.settings else {
        let why = "nobody runs here; name the file of `up` with --config".to_owned();
        return Err((why, Exit::Usage));
    };
    let mut channels = settings.channels();
    if let Some(name) = &args.channel {
        channels.retain(|channel| channel.name == *name);
        if channels.is_empty() {
            return Err((format!("there is no channel called \"{name}\""), Exit::Failed));
        }
    }
    let reach = place::reach()?;
    let means = Means { proxy: reach.proxy, policy: reach.policy };
    for channel in channels {
        let error = notify::test(&channel, &means, &reach.cancel).err();
        each(&channel.name, error.map(|error| error.to_string()).as_deref());
    }
    Ok(())
}

fn fail(error: &dyn std::fmt::Display, exit: Exit) -> Exit {
    complain(error);
    exit
}
