//! Redis and Valkey: the RDB, taken as a replica takes it, by our own code.
//!
//! `prepare` logs in and asks for version and size. `dump` connects anew, asks for the RDB ([`session`]), reads all of
//! it at full speed into memory or an unnamed file ([`hold`]), judges it ([`rdb`]) and only then passes it on: the
//! pace of compression and upload never reaches the server, and nothing that is not whole goes further.
//!
//! **In a container** nothing runs and nothing is needed: Docker is asked where the container is, and this client dials
//! it there, so images without a shell, every version and users with few rights are all the same. `redis-cli --askpass
//! --rdb -` inside (version 6 and later, password by stdin) would be the way to a server that listens on its own loopback
//! or socket alone, or has no network; it leaves the mark of a diskless transfer behind the RDB and needs a shell and the
//! tool. So far such a container is refused by name.
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
use self::place::{Place, Settings};
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
        self.ask(cx).map_err(|error| self.explain(error, cx))
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        self.take(cx, out).map_err(|error| self.explain(error, cx))
    }

    fn dumped_version(&self) -> Option<String> {
        self.version.clone()
    }
}

impl Redis {
    fn ask(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
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

    fn take(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
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

    /// A connection that ends is often a container that does.
    fn explain(&self, error: DriverError, cx: &Context<'_>) -> DriverError {
        match (&self.settings.place, &error) {
            (
                Place::Container { inside, .. },
                DriverError::Redis(
                    RedisFault::Lost { .. }
                    | RedisFault::Silent(_)
                    | RedisFault::Unreachable { .. },
                ),
            ) => inside.explain(error, cx),
            _ => error,
        }
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
