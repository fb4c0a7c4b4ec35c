//! The connection to the control plane: one WebSocket, opened by us, for as long as the process runs.
//!
//! [`run`] is the reconnect loop, on its caller's thread. An attempt is `dial` (TCP, proxy, TLS 1.3), the
//! upgrade and Register → RegisterAck (`handshake`); then `session` starts three threads and waits for the
//! first of them to end:
//!
//! ```text
//! link-read   poll(socket, wake, over) → turn: read ≤ 32 frames or 256 KiB → decode → dispatch, outbox, urgent
//! link-write  select!(urgent, slots, outbox, stop, over) → number, encode → turn: write → poll for OUT, ≤ 10 s
//! link-beat   select!(heartbeat, progress, over) → urgent, slots
//! ```
//!
//! The two that use the socket take turns on it (`socket`) and never sleep with it. What can get lost, and why
//! it does not:
//!
//! - a write may read and decrypt, and then `poll` shows nothing: after each turn the writer looks whether
//!   there is such input ([`stream`]: `holds_input`) and wakes the reader;
//! - a pong, close or key update queued by a read may not fit the socket: after each pass the reader flushes
//!   once, and if that blocks, the writer gets to wait for it;
//! - a confirmation makes room in flight: the outbox wakes the writer after each.
//!
//! Nothing here knows what a job is. What must arrive waits in the outbox and is sent again in the next session;
//! what is only of the moment lives in [`Slots`] and the urgent slot.

mod backoff;
mod beat;
mod dial;
mod error;
mod handshake;
mod limit;
mod read;
mod session;
mod slots;
mod socket;
mod status;
mod stream;
mod tls;
mod urgent;
mod url;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::config::{ProxySettings, TlsSettings};
use crate::outbox::{Outbox, SeqCounter};
use crate::secret::Secret;
use crate::thread::Cancel;
use crate::wire;

use backoff::{Backoff, Outcome};
use error::clean;
use session::Lent;

pub use error::LinkError;
pub use slots::Slots;
pub use status::{LinkSnapshot, LinkStatus};
pub use url::{ServerUrl, UrlError};

/// How the control plane is reached.
#[derive(Debug, Clone)]
pub enum Transport {
    /// A configured URL, over the proxy if there is one.
    Remote(ServerUrl),
    /// Plain TCP to a port of this machine; only `up` builds this.
    Loopback(SocketAddr),
}

/// The link's deadlines and intervals (WIRE.md §1); tests shrink them.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Look-up, TCP, proxy, TLS and upgrade together.
    pub dial: Duration,
    /// Register until RegisterAck.
    pub register: Duration,
    /// Heartbeat where the server says 0.
    pub heartbeat: Duration,
    /// Shortest heartbeat a server can ask for.
    pub heartbeat_min: Duration,
    /// Longest heartbeat a server can ask for.
    pub heartbeat_max: Duration,
    /// Without any frame for so long, the link is dead.
    pub idle: Duration,
    /// One write, the wait for the socket included.
    pub write: Duration,
    /// How long dispatch may take to accept a message.
    pub hand_on: Duration,
    /// Between two percentages of a run.
    pub progress: Duration,
    /// First delay before a reconnect …
    pub backoff_first: Duration,
    /// … and the longest.
    pub backoff_cap: Duration,
    /// On stop: for the outbox to be sent.
    pub stop_flush: Duration,
    /// On stop: for the server to answer the goodbye, within `stop_flush`.
    pub close_wait: Duration,
}

impl Timing {
    /// The longest that one attempt takes until it is a session or has failed.
    fn attempt(&self) -> Duration {
        self.dial + self.register + SLACK
    }

    /// The longest between two passes of a session's reader, or from its last one to the end of the session.
    fn pass(&self) -> Duration {
        self.idle + self.write + self.hand_on * 2 + SLACK
    }
}

/// What a loaded machine may add to deadlines before the link counts as hung.
const SLACK: Duration = Duration::from_secs(60);

impl Default for Timing {
    fn default() -> Self {
        let sec = Duration::from_secs;
        Self {
            dial: sec(15),
            register: sec(15),
            heartbeat: sec(30),
            heartbeat_min: sec(1),
            heartbeat_max: sec(3600),
            idle: sec(90),
            write: sec(10),
            hand_on: sec(10),
            progress: sec(1),
            backoff_first: sec(1),
            backoff_cap: sec(60),
            stop_flush: sec(5),
            close_wait: sec(2),
        }
    }
}

/// What a link needs to know.
pub struct LinkConfig {
    /// How the control plane is reached.
    pub transport: Transport,
    /// Sent as a bearer token, and nowhere else.
    pub agent_key: Secret,
    /// Trust roots and pins.
    pub tls: TlsSettings,
    /// The proxy.
    pub proxy: ProxySettings,
    /// Deadlines and intervals.
    pub timing: Timing,
    /// Size of the kernel's send buffer; `None` leaves it to the system.
    pub send_buffer_bytes: Option<usize>,
    /// The first message of a session.
    pub register: Box<dyn Fn() -> wire::Register + Send + Sync>,
    /// The heartbeat of this moment.
    pub heartbeat: Box<dyn Fn() -> wire::Heartbeat + Send + Sync>,
}

impl fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkConfig").field("transport", &self.transport).finish_non_exhaustive()
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(url) => url.fmt(f),
            Self::Loopback(address) => write!(f, "ws://{address} (this process)"),
        }
    }
}

/// What happens on the link, for dispatch.
#[derive(Debug)]
pub enum Event {
    /// A session began.
    Up {
        /// The server's name for it.
        session_id: String,
        /// With the configuration to apply.
        ack: wire::RegisterAck,
    },
    /// The server said something. Pings and confirmations of storage are dealt with before.
    Message {
        /// Its envelope.
        header: wire::Header,
        /// What it said.
        message: wire::ServerMessage,
    },
    /// The session ended.
    Down {
        /// Why.
        reason: String,
    },
}

/// The reconnect loop: returns after `stop`, once the outbox had its chance and every thread has ended.
///
/// # Panics
/// When one of the link's threads panicked.
pub fn run(
    config: LinkConfig,
    outbox: Outbox,
    seq: SeqCounter,
    slots: Slots,
    events: Sender<Event>,
    status: LinkStatus,
    stop: Cancel,
) {
    let timing = &config.timing;
    let mut backoff = Backoff::new(timing.backoff_first, timing.backoff_cap);
    let pulse = status.pulse();
    let lent = Lent {
        config: &config,
        slots: &slots,
        outbox: &outbox,
        seq: &seq,
        events: &events,
        pulse: &pulse,
        stop: &stop,
    };
    log::info!("connecting to {}", config.transport);
    while !stop.is_cancelled() {
        pulse.within(timing.attempt());
        let (outcome, error) = attempt(&lent, &status);
        let key_refused = matches!(error, LinkError::Refused(_));
        status.down(error.to_string(), key_refused);
        if stop.is_cancelled() {
            break;
        }
        let delay = backoff.after(outcome, random());
        let level = if key_refused { log::Level::Error } else { log::Level::Warn };
        log::log!(level, "{error}; connecting again in {:.1} s", delay.as_secs_f64());
        pulse.within(delay + SLACK);
        stop.sleep(delay);
    }
    pulse.rest();
}

/// One attempt and, if it gives a session, that session.
fn attempt(lent: &Lent<'_>, status: &LinkStatus) -> (Outcome, LinkError) {
    let seq = lent.seq.next();
    status.connecting();
    let (wire, ack) = match handshake::open(lent.config, seq, lent.stop) {
        Ok(opened) => opened,
        Err(error @ LinkError::Refused(_)) => return (Outcome::Refused, error),
        Err(error) => return (Outcome::Failed, error),
    };
    let session_id = clean(&ack.session_id);
    log::info!("connected, session {session_id}");
    status.up(&session_id, ack.durable_acks);
    let error = session::hold(wire, seq, ack, lent);
    announce_down(lent, error.to_string());
    (Outcome::Session, error)
}

/// Best effort: a dispatch that takes nothing for so long has other troubles.
fn announce_down(lent: &Lent<'_>, reason: String) {
    let patience =
        if lent.stop.is_cancelled() { Duration::ZERO } else { lent.config.timing.hand_on };
    let _ = lent.events.send_timeout(Event::Down { reason }, patience);
}

/// Uniform in 0..1. Without randomness the jitter is none, and nothing else.
fn random() -> f64 {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0u8; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
