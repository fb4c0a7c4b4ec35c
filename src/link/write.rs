//! `link-write`: everything that goes out, in one order.
//!
//! Messages are numbered and encoded before the turn on the socket, because numbering may reach the disk. A
//! write that blocks gives the turn back and waits for the socket; the deadline covers both waits. When the
//! process stops, what is in the outbox goes out and gets confirmed first, then comes the goodbye.

use std::collections::VecDeque;
use std::time::Duration;

use crossbeam_channel::{after, at, never, select};
use rustix::event::{PollFd, PollFlags};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Message};

use super::LinkError;
use super::limit::Limit;
use super::session::Session;
use super::socket::{MAX_FRAMES, Sent, Wire};
use crate::clock::{Deadline, unix_ms};
use crate::net::wait_any;
use crate::wire::{self, Ack, AgentMessage, Header, MAX_MESSAGE_BYTES};

/// Bytes encoded for one turn, as far as single messages allow.
const BATCH_BYTES: usize = 64 * 1024;

/// When an outbox that could not be read is looked at again.
const OUTBOX_RETRY: Duration = Duration::from_secs(10);

/// The thread.
pub(super) fn run(session: &Session<'_>) -> Result<(), LinkError> {
    Writer { session, flush_until: None, outbox_broken: false, limit: Limit::default() }.run()
}

struct Writer<'s, 'a> {
    session: &'s Session<'a>,
    /// Set once the process is stopping.
    flush_until: Option<Deadline>,
    outbox_broken: bool,
    limit: Limit,
}

impl Writer<'_, '_> {
    fn run(&mut self) -> Result<(), LinkError> {
        while !self.session.over.is_cancelled() {
            self.send_all()?;
            match self.flush_until {
                Some(until) if until.passed() || self.session.entries.settled() => {
                    return self.say_goodbye(until);
                }
                Some(_) | None => self.wait(),
            }
        }
        Ok(())
    }

    /// Sends until there is nothing, or the stop's time is up.
    fn send_all(&mut self) -> Result<(), LinkError> {
        while !self.session.over.is_cancelled() {
            if self.flush_until.is_some_and(Deadline::passed) {
                return Ok(());
            }
            let flush = self.session.urgent.take_flush();
            let batch = self.gather();
            if batch.is_empty() && !flush {
                return Ok(());
            }
            self.deliver(batch)?;
        }
        Ok(())
    }

    fn wait(&mut self) {
        let session = self.session;
        let timer = match self.flush_until {
            Some(until) => at(until.instant()),
            None if self.outbox_broken => after(OUTBOX_RETRY),
            None => never(),
        };
        // A stop is news once.
        let stop = if self.flush_until.is_some() { &never() } else { session.stop.done() };
        select! {
            recv(session.urgent.ready()) -> _ => {}
            recv(session.slots.ready()) -> _ => {}
            recv(session.outbox.ready()) -> _ => {}
            recv(session.over.done()) -> _ => {}
            recv(timer) -> _ => {}
            recv(stop) -> _ => {
                self.flush_until = Some(Deadline::after(session.config.timing.stop_flush));
            }
        }
    }

    /// The next batch: answers and heartbeat, then the slots, then the outbox and its ping.
    fn gather(&mut self) -> VecDeque<Message> {
        let mut batch = Batch::default();
        for correlation_id in self.session.urgent.take_acks(MAX_FRAMES / 2) {
            let header = Header { correlation_id: correlation_id.clone(), ..Header::default() };
            self.add(&mut batch, header, AgentMessage::Ack(Ack::ok(correlation_id)));
        }
        if let Some(heartbeat) = self.session.urgent.take_heartbeat() {
            self.add(&mut batch, Header::default(), AgentMessage::Heartbeat(heartbeat));
        }
        for message in self.session.slots.take(MAX_FRAMES / 4) {
            self.add(&mut batch, Header::default(), message);
        }
        self.add_entries(&mut batch);
        if let Some(counter) = self.session.entries.ping_due() {
            batch.push(Message::Ping(Bytes::copy_from_slice(&counter.to_be_bytes())));
        }
        batch.frames
    }

    fn add(&mut self, batch: &mut Batch, header: Header, message: AgentMessage) {
        let header = Header { seq: self.session.next_seq(), ts_ms: unix_ms(), ..header };
        let bytes = wire::encode_agent(header, message);
        if bytes.len() > MAX_MESSAGE_BYTES {
            self.limit.warn("did not send a message: it is larger than 4 MiB");
        } else {
            batch.push(Message::Binary(Bytes::from(bytes)));
        }
    }

    fn add_entries(&mut self, batch: &mut Batch) {
        self.outbox_broken = false;
        while !batch.is_full() {
            let entry = match self.session.entries.next() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => {
                    // The link stays: heartbeats tell the server that this host lives.
                    self.limit.warn(&format!("failed to read the outbox: {error}; trying again"));
                    self.outbox_broken = true;
                    break;
                }
            };
            let seq = self.session.next_seq();
            // Before it is written: its confirmation may be read before the write returns.
            self.session.entries.sent(entry.entry_id, seq);
            let bytes = wire::stamp(&entry.stored, seq, unix_ms(), entry.entry_id);
            batch.push(Message::Binary(Bytes::from(bytes)));
        }
    }

    /// Writes a batch, all of it, before the deadline.
    fn deliver(&mut self, mut batch: VecDeque<Message>) -> Result<(), LinkError> {
        let session = self.session;
        let limit = session.config.timing.write;
        let mut deadline = Deadline::after(limit);
        loop {
            if let Some(until) = self.flush_until {
                deadline = deadline.min(until);
            }
            let turn = session.socket.turn(deadline, |wire| {
                let sent = push(wire, &mut batch);
                (sent, wire.holds_input())
            });
            let (sent, unseen_input) = match turn {
                Ok(done) => done,
                Err(no_turn) => return session.no_turn(no_turn),
            };
            if unseen_input {
                session.wake.wake();
            }
            if sent? == Sent::All {
                return Ok(());
            }
            self.wait_writable(deadline)?;
            if session.over.is_cancelled() {
                return Ok(());
            }
            if deadline.passed() {
                return Err(LinkError::WriteTimeout(limit));
            }
        }
    }

    /// Waits until the socket takes more, the deadline, the session's end, or the first news of a stop.
    fn wait_writable(&mut self, deadline: Deadline) -> Result<(), LinkError> {
        let session = self.session;
        let mut fds = vec![
            PollFd::new(&session.socket, PollFlags::OUT),
            PollFd::new(&session.over, PollFlags::IN),
        ];
        if self.flush_until.is_none() {
            fds.push(PollFd::new(session.stop, PollFlags::IN));
        }
        wait_any(&mut fds, Some(deadline)).map_err(LinkError::System)?;
        if self.flush_until.is_none() && session.stop.is_cancelled() {
            self.flush_until = Some(Deadline::after(session.config.timing.stop_flush));
        }
        Ok(())
    }

    /// Close, and a moment for the server to answer: its last confirmations come before its own goodbye.
    fn say_goodbye(&mut self, until: Deadline) -> Result<(), LinkError> {
        let session = self.session;
        let until = until.min(Deadline::after(session.config.timing.close_wait));
        let queued = session.socket.turn(until, |wire| wire.close(CloseCode::Normal));
        if matches!(queued, Ok(Ok(Sent::Blocked))) {
            self.deliver(VecDeque::new())?;
        }
        if matches!(queued, Ok(Ok(_))) {
            let _ = session.over.done().recv_timeout(until.remaining());
        }
        Err(LinkError::Stopped)
    }
}

/// Everything still queued first, then frames until one blocks.
fn push(wire: &mut Wire, batch: &mut VecDeque<Message>) -> Result<Sent, LinkError> {
    let mut sent = wire.flush()?;
    while sent == Sent::All
        && let Some(frame) = batch.pop_front()
    {
        sent = wire.put(frame)?;
    }
    if sent == Sent::All { wire.flush() } else { Ok(sent) }
}

#[derive(Default)]
struct Batch {
    frames: VecDeque<Message>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, frame: Message) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn is_full(&self) -> bool {
        // One place is kept for the ping.
        self.frames.len() >= MAX_FRAMES - 1 || self.bytes >= BATCH_BYTES
    }
}
