//! SIGTERM, SIGINT and SIGHUP as values. The first request to stop cancels a token, the second exits.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::exit::Exit;
use crate::thread::{self, Cancel, Why};

/// For commands that print and end: whoever reads us may stop reading (`backupy runs | head`), which ends the
/// process quietly, as with any other tool. A daemon must not call it.
pub fn end_with_reader() {
    let always = Arc::new(AtomicBool::new(true));
    if let Err(error) = flag::register_conditional_shutdown(SIGPIPE, 128 + SIGPIPE, always) {
        log::debug!("failed to prepare for a reader that leaves: {error}");
    }
}

/// Whether a signal asked this process to stop: the token may have been cancelled for another reason.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<AtomicBool>);

impl Asked {
    /// Whether one did.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Called on the signal thread at every SIGHUP.
pub type OnHangUp = Box<dyn Fn() + Send>;

/// Starts the thread `signals`. It lives as long as the process. Without `on_hang_up`, SIGHUP is ignored
/// with a line in the log, so that a closed terminal or a habit of reloading does not end backups.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn listen(on_hang_up: Option<OnHangUp>) -> io::Result<Cancel> {
    listen_and_tell(on_hang_up).map(|(stop, _)| stop)
}

/// As [`listen`], for whoever cancels the token too and wants to know afterwards whether a signal came.
///
/// # Errors
/// As [`listen`].
pub fn listen_and_tell(on_hang_up: Option<OnHangUp>) -> io::Result<(Cancel, Asked)> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let stop = Cancel::new()?;
    let asked = Asked::default();
    let (token, told) = (stop.clone(), asked.clone());
    thread::spawn_vital("signals", move || {
        for signal in signals.forever() {
            match (signal, &on_hang_up) {
                (SIGHUP, Some(reload)) => reload(),
                (SIGHUP, None) => log::info!("SIGHUP: nothing to read again"),
                _ if !told.0.swap(true, Ordering::SeqCst) => {
                    token.cancel(Why::Shutdown);
                    log::info!("stopping; a second signal ends the process at once");
                }
                _ => {
                    log::warn!("second signal: leaving at once");
                    process::exit(Exit::Forced.code().into());
                }
            }
        }
    })?;
    Ok((stop, asked))
}
