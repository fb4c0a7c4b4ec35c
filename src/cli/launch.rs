//! Before a daemon begins and after it has ended: which version of this program runs.

use std::path::Path;

use crate::agent::VERSION;
use crate::config::{UpdateSettings, process_env};
use crate::exit::Exit;
use crate::host::update::launcher::{self, Launcher};
use crate::host::update::{Origin, Restart};
use crate::signals::Asked;
use crate::store::CONTROL_STORE;

use super::complain;

/// Starts the version that should run, which mostly does not come back. `Ok` is: this one. `Err` is how this process ends
/// after it has watched another.
pub(super) fn start(state_dir: &Path) -> Result<Origin, Exit> {
    let (settings, problems) = UpdateSettings::of_launcher(&process_env);
    let launcher = Launcher {
        state_dir,
        stores: &[state_dir.to_owned(), state_dir.join(CONTROL_STORE)],
        own_version: VERSION,
        settings,
        problems,
        say: &|text| complain(text),
    };
    match launcher.start() {
        None => Ok(Origin::of_this_process(state_dir, VERSION)),
        Some(code) => Err(Exit::Of(code)),
    }
}

/// The end of a daemon that stopped in order. Where another version shall run, and no signal asked for the stop, it does
/// not come back.
pub(super) fn end(origin: &Origin, restart: &Restart, asked: &Asked) -> Exit {
    if restart.is_requested() && !asked.is_set() { launcher::restart(origin) } else { Exit::Ok }
}
