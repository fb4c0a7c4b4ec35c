//! The log: one line per record on stderr, redacted, with a level that can change while we run.

use std::fmt::Write as _;
use std::io::Write as _;
use std::panic;

use log::LevelFilter;

use super::tap::Tap;
use crate::redact::clean;

/// Starts logging to stderr at `level`, and offers every record to the tap. Call it once; a second call changes only
/// the level.
pub fn init(level: LevelFilter, tap: Option<Tap>) {
    // Under systemd the journal has its own clock.
    let with_time = std::env::var_os("JOURNAL_STREAM").is_none();
    let logger = env_logger::Builder::new()
        .filter_level(LevelFilter::Trace)
        .format(move |out, record| {
            let mut line = String::new();
            if with_time {
                let _ = write!(line, "{} ", out.timestamp_seconds());
            }
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("?");
            let _ = write!(line, "{:<5} [{name}] ", record.level());
            line.push_str(&clean(&record.args().to_string()));
            writeln!(out, "{line}")
        })
        .build();
    let logger = Filter { logger, tap };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        panic::set_hook(Box::new(log_panic));
    }
    set_level(level);
}

/// Changes the level of a running process.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Libraries speak only from warnings on, whatever level was asked for: at trace level ureq prints
/// presigned URLs and tungstenite the Authorization header and every message.
struct Filter {
    logger: env_logger::Logger,
    tap: Option<Tap>,
}

impl log::Log for Filter {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("backupy");
        ours || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.logger.log(record);
            if let Some(tap) = &self.tap {
                let text = clean(&record.args().to_string());
                tap.offer(record.target(), record.level(), &text);
            }
        }
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

fn log_panic(info: &panic::PanicHookInfo<'_>) {
    let text = info
        .payload()
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| info.payload().downcast_ref::<String>().cloned())
        .unwrap_or_default();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    log::error!("panic at {place}: {text} (this is a defect, please report it)");
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Log as _;

    #[test]
    fn libraries_are_heard_from_warnings_on() {
        let logger = env_logger::Builder::new().filter_level(LevelFilter::Trace).build();
        let filter = Filter { logger, tap: None };
        let enabled = |target: &str, level| {
            filter.enabled(&log::Metadata::builder().target(target).level(level).build())
        };
        for target in ["tungstenite::protocol", "ureq", "ureq_proto::util", "rustls", "fjall"] {
            assert!(!enabled(target, log::Level::Trace) && !enabled(target, log::Level::Info));
            assert!(enabled(target, log::Level::Warn), "{target}");
        }
        assert!(enabled("backupy::link", log::Level::Trace));
    }
}
