//! The durable side: entries in the store, the window in memory, and one session at a time that drains them.
//!
//! ```text
//! outbox  e<id, big-endian>  →  version 1 · kind · level · u16 length · run_id · envelope without seq
//! outbox  m<id, big-endian>  →  nothing: the result was received once
//! meta    outbox/last        →  the newest id
//! meta    outbox/dropped     →  what was given up, JSON
//! ```

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::window::{Confirm, Confirmed, Entry, Window};
use super::{Dropped, Kind, MAX_STORED_BYTES, Message, OutboxError, OutboxLimits};
use crate::store::{Batch, Space, Store, StoreError};
use crate::wire::{self, Header, LogLevel};

const LAST: &[u8] = b"outbox/last";
const DROPPED: &[u8] = b"outbox/dropped";
const ENTRY: u8 = b'e';
const MARK: u8 = b'm';
const VERSION: u8 = 1;

/// The outbox. Clones share it.
#[derive(Clone)]
pub struct Outbox(Arc<Inner>);

struct Inner {
    store: Store,
    /// Held over a whole publish, so that entries become visible in the order of their ids.
    publishing: Mutex<()>,
    state: Mutex<State>,
    wake: Sender<()>,
    ready: Receiver<()>,
}

struct State {
    window: Window,
    last_id: u64,
    /// The newest id that the store is known to hold.
    durable_id: u64,
    dropped: Dropped,
    /// Entries that are confirmed, but could not be deleted from the store yet.
    undeleted: Vec<u64>,
}

/// An entry that is to be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its id, for [`wire::stamp`] and [`Session::sent`].
    pub entry_id: u64,
    /// The envelope without seq, for [`wire::stamp`].
    pub stored: Vec<u8>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Reads what is still to be delivered.
    ///
    /// # Errors
    /// When the store cannot be read, or an entry makes no sense.
    pub fn open(store: Store, limits: OutboxLimits) -> Result<Self, OutboxError> {
        let mut window = Window::new(limits);
        let mut last_id = last(&store)?;
        let mut bad = None;
        store.scan(Space::Outbox, &[ENTRY], &mut |key, value| {
            let Some((tag, id)) = parse_key(key) else { return ControlFlow::Continue(()) };
            if tag == MARK {
                mark(&mut window, id);
                return ControlFlow::Continue(());
            }
            let Some((entry, _)) = decode(value) else {
                bad = Some(id);
                return ControlFlow::Break(());
            };
            last_id = last_id.max(id);
            window.push(id, entry);
            ControlFlow::Continue(())
        })?;
        if let Some(entry_id) = bad {
            return Err(OutboxError::Entry { entry_id });
        }
        let dropped = store.get(Space::Meta, DROPPED)?;
        let dropped = dropped.and_then(|json| serde_json::from_slice(&json).ok());
        let (wake, ready) = bounded(1);
        Ok(Self(Arc::new(Inner {
            store,
            publishing: Mutex::new(()),
            state: Mutex::new(State {
                window,
                last_id,
                durable_id: last_id,
                dropped: dropped.unwrap_or_default(),
                undeleted: Vec::new(),
            }),
            wake,
            ready,
        })))
    }

    /// Makes the caller's changes and the messages durable together, then wakes the writer. The messages keep their
    /// order and are adjacent. Where there is no room, something less important is dropped.
    ///
    /// # Errors
    /// When nothing was done, because the store failed or a message is too large.
    pub fn publish(&self, mut batch: Batch, messages: Vec<Message>) -> Result<(), OutboxError> {
        let mut new = messages.into_iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        let inner = &*self.0;
        let _turn = inner.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = inner.state().admit(&mut new, &mut batch);
        for (id, (_, value)) in (admission.first_id..).zip(&new) {
            batch.put(Space::Outbox, key(ENTRY, id), value.as_slice());
        }
        let result = inner.store.commit(batch);
        let mut state = inner.state();
        if let Err(e) = result {
            state.undeleted.extend(admission.undeleted);
            // They may have reached the disk all the same, and whoever asked tries again under new ids.
            state.undeleted.extend((admission.first_id..).take(new.len()));
            return Err(e.into());
        }
        state.dropped = admission.dropped;
        if !new.is_empty() {
            state.durable_id = admission.first_id + new.len() as u64 - 1;
        }
        for id in admission.evict {
            state.window.remove(id);
        }
        for (id, (entry, _)) in (admission.first_id..).zip(new) {
            state.window.push(id, entry);
        }
        drop(state);
        inner.wake();
        Ok(())
    }

    /// Entries that nobody has confirmed yet.
    pub fn depth(&self) -> usize {
        self.0.state().window.unconfirmed().count()
    }

    /// Results of runs that nobody has confirmed yet.
    pub fn undelivered_results(&self) -> usize {
        let state = self.0.state();
        state.window.unconfirmed().filter(|(_, entry)| entry.kind == Kind::Terminal).count()
    }

    /// What was given up so far.
    pub fn dropped(&self) -> Dropped {
        self.0.state().dropped
    }

    /// The newest id that the store holds, for the high-water file: one that was only set aside, or given to a write
    /// that failed, would look like a loss at the next start.
    pub fn last_durable_id(&self) -> u64 {
        self.0.state().durable_id
    }

    /// The newest id that was handed out.
    pub fn last_entry_id(&self) -> u64 {
        self.0.state().last_id
    }

    /// Hands out only ids above this one from now on: a second witness has seen it, and an id must not name two entries.
    pub fn skip_to(&self, entry_id: u64) {
        let mut state = self.0.state();
        state.last_id = state.last_id.max(entry_id);
    }

    /// Readable when there may be something to send: after a publish, a confirmation, a new session.
    pub fn ready(&self) -> &Receiver<()> {
        &self.0.ready
    }

    /// Starts a session; the one before it is over. Everything that is unconfirmed is sent again, in order.
    pub fn begin_session(&self, durable_acks: bool) -> Session {
        let confirm = if durable_acks { Confirm::Storage } else { Confirm::Receipt };
        let number = self.0.state().window.begin(confirm);
        self.0.wake();
        Session { outbox: self.clone(), number }
    }
}

/// What a publish was promised, to be kept once it is durable.
struct Admission {
    first_id: u64,
    evict: Vec<u64>,
    dropped: Dropped,
    undeleted: Vec<u64>,
}

impl State {
    /// Makes room for the new entries (or drops some of them), numbers them, and adds to the batch what that means for
    /// the others.
    fn admit(&mut self, new: &mut Vec<(Entry, Vec<u8>)>, batch: &mut Batch) -> Admission {
        let sizes: Vec<_> = new.iter().map(|(e, _)| (e.kind, e.size_bytes)).collect();
        let room = self.window.make_room(&sizes);
        let mut dropped = self.dropped;
        for &id in &room.evict {
            if let Some(entry) = self.window.get(id) {
                dropped.count(entry.kind);
            }
        }
        let mut position = 0;
        new.retain(|(entry, _)| {
            let refused = room.refuse.contains(&position);
            position += 1;
            if refused {
                dropped.count(entry.kind);
            }
            !refused
        });
        let undeleted = std::mem::take(&mut self.undeleted);
        room.evict.iter().chain(&undeleted).for_each(|&id| delete(batch, id));
        let first_id = self.last_id + 1;
        // An id is never used twice, not even after a failure: it may have reached the disk all the same.
        self.last_id += new.len() as u64;
        if !new.is_empty() {
            batch.put(Space::Meta, LAST, self.last_id.to_be_bytes());
        }
        if dropped != self.dropped {
            batch.put(Space::Meta, DROPPED, serde_json::to_vec(&dropped).unwrap_or_default());
        }
        Admission { first_id, evict: room.evict, dropped, undeleted }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full means that the writer will look anyway.
        let _ = self.wake.try_send(());
    }

    /// One durable batch for all that a confirmation means. A full disk only means that entries are sent again after a
    /// restart, so it ends nothing.
    fn confirm(&self, confirmed: Confirmed) {
        if confirmed.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        let mut deletes = std::mem::take(&mut self.state().undeleted);
        deletes.extend(&confirmed.delete);
        deletes.iter().for_each(|&id| delete(&mut batch, id));
        for &id in &confirmed.mark {
            batch.put(Space::Outbox, key(MARK, id), Vec::new());
        }
        if let Err(e) = self.store.commit(batch) {
            log::warn!("failed to remove what was delivered: {e}");
            self.state().undeleted.extend(deletes);
        }
        self.wake();
    }
}

/// The outbox as one connection sees it. Shared by reader and writer; once the next session began, it says and does
/// nothing more.
#[derive(Clone)]
pub struct Session {
    outbox: Outbox,
    number: u64,
}

impl Session {
    /// The entry to send now; `None` if there is none, or enough is in flight.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next(&self) -> Result<Option<Outgoing>, OutboxError> {
        let inner = &*self.outbox.0;
        loop {
            let Some(id) = inner.state().window.next(self.number) else { return Ok(None) };
            let stored = match inner.store.get(Space::Outbox, &key(ENTRY, id)) {
                Err(StoreError::Damaged { what, .. }) => {
                    log::error!("entry {id} of the outbox: {what}");
                    None
                }
                stored => stored?,
            };
            if let Some((_, envelope)) = stored.as_deref().and_then(|value| decode(value)) {
                return Ok(Some(Outgoing { entry_id: id, stored: envelope.to_vec() }));
            }
            // Dropped for a more important one since we looked; or gone, which must not stop the others.
            let mut state = inner.state();
            if state.window.get(id).is_some() {
                log::error!("entry {id} of the outbox cannot be read, it is left out");
                state.window.skip(self.number, id);
            }
        }
    }

    /// The entry goes out under this seq. To be called before it is written to the socket.
    pub fn sent(&self, entry_id: u64, seq: u64) {
        self.outbox.0.state().window.sent(self.number, entry_id, seq);
    }

    /// The server said that everything up to this seq is on its disk.
    pub fn acked(&self, seq: u64) {
        let confirmed = self.outbox.0.state().window.acked(self.number, seq);
        self.outbox.0.confirm(confirmed);
    }

    /// The counter to send as a ping's payload (8 bytes, big-endian), if one is due behind what was sent. To be called
    /// when [`Session::next`] has nothing more.
    pub fn ping_due(&self) -> Option<u64> {
        self.outbox.0.state().window.ping_due(self.number)
    }

    /// The server answered the ping with this counter.
    pub fn pong(&self, counter: u64) {
        let confirmed = self.outbox.0.state().window.pong(self.number, counter);
        self.outbox.0.confirm(confirmed);
    }

    /// Whether everything was sent and is confirmed as far as this session can confirm it.
    pub fn settled(&self) -> bool {
        self.outbox.0.state().window.settled(self.number)
    }
}

fn last(store: &Store) -> Result<u64, OutboxError> {
    let stored = store.get(Space::Meta, LAST)?;
    let last = stored.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_slice().try_into().ok()?)));
    Ok(last.unwrap_or(0))
}

fn mark(window: &mut Window, id: u64) {
    // A mark without its entry is left over from a delete that did not happen as a whole; it means nothing.
    if let Some(mut entry) = window.remove(id) {
        entry.received_in = Some(0);
        window.push(id, entry);
    }
}

fn delete(batch: &mut Batch, id: u64) {
    batch.delete(Space::Outbox, key(ENTRY, id));
    batch.delete(Space::Outbox, key(MARK, id));
}

fn key(tag: u8, id: u64) -> Vec<u8> {
    let mut key = vec![tag];
    key.extend_from_slice(&id.to_be_bytes());
    key
}

fn parse_key(key: &[u8]) -> Option<(u8, u64)> {
    let (&tag, id) = key.split_first()?;
    Some((tag, u64::from_be_bytes(id.try_into().ok()?)))
}

fn encode(message: Message) -> Result<(Entry, Vec<u8>), OutboxError> {
    let Message { kind, run_id, correlation_id, message } = message;
    let header = Header { correlation_id, ..Header::default() };
    let envelope = wire::encode_agent(header, message);
    if envelope.len() > MAX_STORED_BYTES {
        return Err(OutboxError::TooLarge { size_bytes: envelope.len() });
    }
    let run = run_id.as_deref().unwrap_or_default();
    let run_len =
        u16::try_from(run.len()).map_err(|_| OutboxError::TooLarge { size_bytes: run.len() })?;
    let (kind_byte, level) = match kind {
        Kind::Terminal => (1, 0),
        Kind::Completed => (2, 0),
        Kind::Ack => (3, 0),
        Kind::Health => (4, 0),
        Kind::Log(level) => (5, level_byte(level)),
    };
    let mut value = Vec::with_capacity(5 + run.len() + envelope.len());
    value.extend_from_slice(&[VERSION, kind_byte, level]);
    value.extend_from_slice(&run_len.to_be_bytes());
    value.extend_from_slice(run.as_bytes());
    value.extend_from_slice(&envelope);
    Ok((entry(kind, run, value.len()), value))
}

fn entry(kind: Kind, run_id: &str, size: usize) -> Entry {
    Entry {
        kind,
        size_bytes: u32::try_from(size).unwrap_or(u32::MAX),
        run_id: kind.is_result().then(|| run_id.into()),
        received_in: None,
    }
}

fn decode(value: &[u8]) -> Option<(Entry, &[u8])> {
    let (head, rest) = value.split_at_checked(5)?;
    let [VERSION, kind, level, high, low] = *head else { return None };
    let (run, envelope) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
    let kind = match kind {
        1 => Kind::Terminal,
        2 => Kind::Completed,
        3 => Kind::Ack,
        4 => Kind::Health,
        5 => Kind::Log(level_of(level)?),
        _ => return None,
    };
    Some((entry(kind, std::str::from_utf8(run).ok()?, value.len()), envelope))
}

fn level_byte(level: LogLevel) -> u8 {
    match level {
        LogLevel::Trace => 0,
        LogLevel::Debug => 1,
        LogLevel::Info => 2,
        LogLevel::Warn => 3,
        LogLevel::Error => 4,
    }
}

fn level_of(byte: u8) -> Option<LogLevel> {
    Some(match byte {
        0 => LogLevel::Trace,
        1 => LogLevel::Debug,
        2 => LogLevel::Info,
        3 => LogLevel::Warn,
        4 => LogLevel::Error,
        _ => return None,
    })
}
