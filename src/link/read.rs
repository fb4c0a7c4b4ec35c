//! `link-read`: from the socket to dispatch, the outbox and the urgent slot.
//!
//! Sleeps in `poll(2)` on the socket, the wake-up and the session's end, until the idle deadline, and never
//! while it has the wire. Input that a write happened to read does not show in `poll`; the writer wakes it then.

use crossbeam_channel::{TrySendError, select};
use rustix::event::{PollFd, PollFlags};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Bytes, Message};

use super::error::clean;
use super::limit::Limit;
use super::session::Session;
use super::socket::Pass;
use super::{Event, LinkError};
use crate::clock::Deadline;
use crate::net::wait_any;
use crate::wire::{self, Ack, Header, RegisterAck, ServerMessage};

/// The thread.
pub(super) fn run(session: &Session<'_>, ack: RegisterAck) -> Result<(), LinkError> {
    let mut reader = Reader { session, limits: Limits::default() };
    let session_id = ack.session_id.clone();
    reader.hand_on(Event::Up { session_id, ack })?;
    reader.run()
}

/// A server's goodbye as a reason.
pub(super) fn goodbye(frame: Option<CloseFrame>) -> LinkError {
    match frame {
        Some(frame) => LinkError::Closed { code: frame.code.into(), reason: clean(&frame.reason) },
        None => LinkError::Closed { code: 1005, reason: String::new() },
    }
}

struct Reader<'s, 'a> {
    session: &'s Session<'a>,
    limits: Limits,
}

/// One limit per kind of warning.
#[derive(Default)]
struct Limits {
    text: Limit,
    undecodable: Limit,
    unknown: Limit,
    pings: Limit,
    acks: Limit,
    again: Limit,
}

impl Reader<'_, '_> {
    fn run(&mut self) -> Result<(), LinkError> {
        let timing = &self.session.config.timing;
        let mut idle = Deadline::after(timing.idle);
        // The first pass comes before the first poll: the handshake may have read more than its own.
        while !self.session.over.is_cancelled() {
            self.session.pulse.within(timing.pass());
            let turn = Deadline::after(timing.write);
            let pass = match self.session.socket.turn(turn, |wire| wire.read_pass()) {
                Ok(pass) => pass,
                Err(no_turn) => return self.session.no_turn(no_turn),
            };
            if !pass.frames.is_empty() {
                idle = Deadline::after(timing.idle);
            }
            if pass.blocked {
                self.session.urgent.flush();
            }
            let more = pass.more;
            self.digest(pass)?;
            if !more && !self.wait(idle)? || idle.passed() {
                return Err(LinkError::Idle(timing.idle));
            }
        }
        Ok(())
    }

    /// Waits for input; false if there was none until the deadline.
    fn wait(&self, idle: Deadline) -> Result<bool, LinkError> {
        let session = self.session;
        let mut fds = [
            PollFd::new(&session.socket, PollFlags::IN),
            PollFd::new(&session.wake, PollFlags::IN),
            PollFd::new(&session.over, PollFlags::IN),
        ];
        let ready = wait_any(&mut fds, Some(idle)).map_err(LinkError::System)?;
        // Before the pass it announces, so that a wake-up during the pass is not lost.
        session.wake.drain();
        Ok(ready)
    }

    fn digest(&mut self, pass: Pass) -> Result<(), LinkError> {
        for frame in pass.frames {
            match frame {
                Message::Binary(bytes) => self.message(bytes)?,
                Message::Pong(payload) => self.pong(&payload),
                Message::Text(_) => {
                    self.limits
                        .text
                        .warn("ignored a text frame from the server: messages are binary");
                }
                Message::Close(frame) => return Err(goodbye(frame)),
                // Pings are answered by tungstenite; a raw frame is never read.
                Message::Ping(_) | Message::Frame(_) => {}
            }
        }
        pass.end.map_or(Ok(()), Err)
    }

    fn message(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        let (header, message) = match wire::decode_server(&bytes) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.limits.undecodable.warn(&format!("ignored a frame from the server: {error}"));
                return Ok(());
            }
        };
        // The message may be large, and so is what is handed on.
        drop(bytes);
        match message {
            ServerMessage::Ping { .. } => self.ping(header),
            ServerMessage::Ack(ack) => return self.ack(header, ack),
            ServerMessage::Unknown => {
                self.limits.unknown.warn("ignored a message of an unknown kind from the server");
            }
            ServerMessage::RegisterAck(_) => {
                self.limits.again.warn("ignored a second RegisterAck in one session");
            }
            message @ (ServerMessage::ConfigUpdate(_)
            | ServerMessage::RunBackup(_)
            | ServerMessage::CancelJob { .. }
            | ServerMessage::RunHealthCheck { .. }
            | ServerMessage::SelfUpdate(_)
            | ServerMessage::PartUrls(_)) => {
                return self.hand_on(Event::Message { header, message });
            }
        }
        Ok(())
    }

    fn ping(&mut self, header: Header) {
        if !self.session.urgent.ack(header.correlation_id) {
            self.limits.pings.warn("left a Ping unanswered: too many wait already");
        }
    }

    fn ack(&mut self, header: Header, ack: Ack) -> Result<(), LinkError> {
        let Some(seq) = ack.confirmed_seq() else {
            return self.hand_on(Event::Message { header, message: ServerMessage::Ack(ack) });
        };
        if !self.session.durable_acks {
            self.limits.acks.warn("ignored a confirmation: the server did not announce any");
        } else if !self.session.was_given_out(seq) {
            self.limits.acks.warn("ignored a confirmation of messages that were never sent");
        } else {
            self.session.entries.acked(seq);
        }
        Ok(())
    }

    fn pong(&self, payload: &[u8]) {
        if let Ok(counter) = <[u8; 8]>::try_from(payload) {
            self.session.entries.pong(u64::from_be_bytes(counter));
        }
    }

    /// To dispatch, which has so long to take it.
    fn hand_on(&self, event: Event) -> Result<(), LinkError> {
        let limit = self.session.config.timing.hand_on;
        let event = match self.session.events.try_send(event) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(event)) => event,
            Err(TrySendError::Disconnected(_)) => {
                return Err(LinkError::NobodyListens);
            }
        };
        select! {
            send(self.session.events, event) -> sent => sent.map_err(|_| LinkError::NobodyListens),
            recv(self.session.over.done()) -> _ => Ok(()),
            default(limit) => Err(LinkError::Stuck(limit)),
        }
    }
}
