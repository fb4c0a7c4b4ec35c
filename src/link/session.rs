//! One session: three threads on one socket, from RegisterAck until the first of them ends.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use crossbeam_channel::Sender;

use super::socket::{NoTurn, Socket, Wire};
use super::urgent::Urgent;
use super::{Event, LinkConfig, LinkError, Slots};
use super::{beat, read, write};
use crate::outbox::{self, Outbox, SeqCounter};
use crate::pulse::Pulse;
use crate::thread::{Cancel, STACK, Why};
use crate::wake::Wake;
use crate::wire::RegisterAck;

/// What the three threads share.
pub(super) struct Session<'a> {
    pub(super) config: &'a LinkConfig,
    pub(super) socket: Socket,
    /// Wakes the reader where `poll(2)` would not.
    pub(super) wake: Wake,
    pub(super) urgent: Urgent,
    pub(super) slots: &'a Slots,
    pub(super) outbox: &'a Outbox,
    pub(super) entries: outbox::Session,
    seq: &'a SeqCounter,
    pub(super) durable_acks: bool,
    pub(super) events: &'a Sender<Event>,
    /// Renewed with every pass of the reader.
    pub(super) pulse: &'a Pulse,
    /// The process is stopping.
    pub(super) stop: &'a Cancel,
    /// This session is over.
    pub(super) over: Cancel,
    /// Highest number on a message so far; a server cannot confirm more.
    highest_seq: AtomicU64,
    reason: Mutex<Option<LinkError>>,
}

/// What outlives the session and is lent to it.
pub(super) struct Lent<'a> {
    pub(super) config: &'a LinkConfig,
    pub(super) slots: &'a Slots,
    pub(super) outbox: &'a Outbox,
    pub(super) seq: &'a SeqCounter,
    pub(super) events: &'a Sender<Event>,
    pub(super) pulse: &'a Pulse,
    pub(super) stop: &'a Cancel,
}

/// Runs the session on the wire, where Register had the number `seq`, and returns why it ended. All its threads have ended then.
pub(super) fn hold(wire: Wire, seq: u64, ack: RegisterAck, lent: &Lent<'_>) -> LinkError {
    lent.slots.begin_session();
    match Session::new(wire, seq, ack.durable_acks, lent) {
        Ok(session) => session.run(ack),
        Err(error) => LinkError::System(error),
    }
}

impl<'a> Session<'a> {
    fn new(wire: Wire, seq: u64, durable_acks: bool, lent: &Lent<'a>) -> io::Result<Self> {
        Ok(Self {
            config: lent.config,
            socket: Socket::new(wire)?,
            wake: Wake::new()?,
            urgent: Urgent::new(),
            slots: lent.slots,
            outbox: lent.outbox,
            entries: lent.outbox.begin_session(durable_acks),
            seq: lent.seq,
            durable_acks,
            events: lent.events,
            pulse: lent.pulse,
            stop: lent.stop,
            over: Cancel::new()?,
            highest_seq: AtomicU64::new(seq),
            reason: Mutex::new(None),
        })
    }

    fn run(self, ack: RegisterAck) -> LinkError {
        let interval = beat::interval(&self.config.timing, ack.heartbeat_interval_sec);
        std::thread::scope(|scope| {
            let threads = [
                self.spawn(scope, "link-read", |session| read::run(session, ack)),
                self.spawn(scope, "link-write", write::run),
                self.spawn(scope, "link-beat", move |session| beat::run(session, interval)),
            ];
            // Ends when the first of them does; a stop is the writer's business, which says goodbye first.
            let _ = self.over.done().recv();
            self.socket.end();
            for thread in threads.into_iter().flatten() {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).take();
        reason.unwrap_or(LinkError::Stopped)
    }

    fn spawn<'scope, 'env>(
        &'scope self,
        scope: &'scope Scope<'scope, 'env>,
        name: &str,
        body: impl FnOnce(&Session<'a>) -> Result<(), LinkError> + Send + 'scope,
    ) -> Option<std::thread::ScopedJoinHandle<'scope, ()>> {
        let spawned = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, move || {
                // Also when the body panics: the others must not go on alone.
                let _over = Over(&self.over);
                if let Err(error) = body(self) {
                    self.give_reason(error);
                }
            });
        match spawned {
            Ok(handle) => Some(handle),
            Err(error) => {
                self.give_reason(LinkError::System(error));
                self.over.cancel(Why::Sibling);
                None
            }
        }
    }

    /// The first reason stays.
    fn give_reason(&self, error: LinkError) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The next sequence number for a message of this session.
    pub(super) fn next_seq(&self) -> u64 {
        let seq = self.seq.next();
        self.highest_seq.fetch_max(seq, Ordering::Relaxed);
        seq
    }

    /// Whether the server can know this number.
    pub(super) fn was_given_out(&self, seq: u64) -> bool {
        seq <= self.highest_seq.load(Ordering::Relaxed)
    }

    /// A turn that was not had, as a reason; `None` if another thread has one already.
    pub(super) fn no_turn(&self, no_turn: NoTurn) -> Result<(), LinkError> {
        match no_turn {
            NoTurn::Over => Ok(()),
            NoTurn::TimedOut => Err(LinkError::WriteTimeout(self.config.timing.write)),
        }
    }
}

/// Ends the session when dropped.
struct Over<'a>(&'a Cancel);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.cancel(Why::Sibling);
    }
}
