//! Redis and Valkey: the RDB, taken as a replica takes it, by our own code.
//!
//! `prepare` logs in and asks for version and size. `dump` connects anew, asks for the RDB ([`session`]), reads all of
//! it at full speed into memory or an unnamed file ([`hold`]), judges it ([`rdb`]) and only then passes it on: the
//! pace of compression and upload never reaches the server, and nothing that is not whole goes further.
//!
//! An RDB holds all logical databases, functions included. The server forks for it, as for every replica
//! that is attached; with `repl-diskless-sync-delay` above 0 it waits that long first.

mod crc64;
mod fault;
mod framing;
mod hold;
pub(super) mod load;
mod place;
mod rdb;
mod session;
mod socket;
mod tls;
mod walk;

use std::io::Write;

pub use fault::RedisFault;
pub use rdb::RdbFault;

use self::framing::Framing;
use self::hold::Hold;
use self::place::Settings;
use self::rdb::Watch;
use self::session::Session;
use self::socket::Line;
use super::{Context, Driver, DriverError, Dumped, Prepared};
use crate::clock::Deadline;
use crate::model::{Connection, Progress, Step};

/// The driver of one server.
pub(super) struct Redis {
    settings: Settings,
    data_bytes: Option<u64>,
    version: Option<String>,
}

impl Redis {
    /// A driver for the target's server.
    pub(super) fn new(connection: &Connection) -> Result<Self, DriverError> {
        Ok(Self { settings: Settings::new(connection)?, data_bytes: None, version: None })
    }
}

impl Driver for Redis {
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
        let (mut session, mut warnings) = Session::open(&self.settings, cx)?;
        let facts = session.facts()?;
        if let Some(number) = self.settings.only {
            warnings.push(format!(
                "the target names database {number}, but a dump of Redis holds all databases"
            ));
        }
        if facts.cluster {
            warnings.push(
                "this Redis is one node of a cluster: the dump holds its part only; back up every master"
                    .to_owned(),
            );
        }
        self.data_bytes = facts.data_bytes;
        Ok(Prepared {
            engine_version: facts.version.unwrap_or_default(),
            size_hint_bytes: facts.data_bytes,
            warnings,
        })
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        let (session, _) = Session::open(&self.settings, cx)?;
        let (framing, line) = session.sync()?;
        let mut hold = Hold::new(framing.length(), cx)?;
        let expected = framing.length().or(self.data_bytes);
        let watch = receive(framing, line, &mut hold, expected, cx)?;
        let whole = watch.finish().map_err(RedisFault::Rdb)?;
        let mut warnings = Vec::new();
        if !whole.checked {
            warnings.push(
                "this Redis makes no checksum of its dump (rdbchecksum no): damage on the way would not be seen"
                    .to_owned(),
            );
        }
        self.version = whole.server;
        Ok(Dumped { bytes: hold.pass_on(out)?, warnings })
    }

    fn dumped_version(&self) -> Option<String> {
        self.version.clone()
    }
}

/// Reads the RDB to its end, and nothing of what follows; the connection is closed then.
fn receive(
    mut framing: Framing,
    mut line: Line<'_>,
    hold: &mut Hold<'_>,
    expected: Option<u64>,
    cx: &Context<'_>,
) -> Result<Watch, DriverError> {
    let mut watch = Watch::default();
    loop {
        let (count, done) = framing.split(line.window());
        let payload = &line.window()[..count];
        watch.feed(payload).map_err(RedisFault::Rdb)?;
        hold.keep(payload)?;
        line.consume(count);
        let percent = expected.and_then(|total| {
            let share = (u128::from(watch.bytes()) * 100).checked_div(u128::from(total))?;
            u8::try_from(share.min(99)).ok()
        });
        (cx.progress)(Progress { step: Step::Dumping, percent, bytes: watch.bytes() });
        if done {
            return Ok(watch);
        }
        let silence = Deadline::after(cx.limits.stuck_timeout);
        line.fill(silence).map_err(|error| within(error, watch.bytes(), cx))?;
    }
}

/// An error of the connection, with how far the RDB had come.
fn within(error: DriverError, received: u64, cx: &Context<'_>) -> DriverError {
    match error {
        DriverError::Redis(RedisFault::Lost { source, .. }) => {
            RedisFault::Lost { received, source }.into()
        }
        DriverError::Redis(RedisFault::Silent(_)) => {
            RedisFault::Silent(cx.limits.stuck_timeout).into()
        }
        other => other,
    }
}
