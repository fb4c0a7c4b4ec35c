//! Which entries wait, are in flight, are confirmed, must be sent again. Pure: no store, no clock, no channel.
//!
//! ```text
//!            next, sent            acked, pong
//! waiting ─────────────→ in flight ───────────→ deleted
//!    ↑                       │ │ pong, result, first time
//!    └──────── begin ────────┘ └→ received once ── begin → waiting, for the last time
//! ```
//! A window knows one session at a time, by its number; what an older one still says is ignored.

use std::collections::{BTreeMap, VecDeque};

use super::{Kind, OutboxLimits};

/// How a session's server confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// By cumulative acknowledgements of what is on its disk.
    Storage,
    /// Not at all; pongs prove receipt.
    Receipt,
}

/// What the window knows about an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its size.
    pub size_bytes: u32,
    /// Of a result: the run.
    pub run_id: Option<Box<str>>,
    /// The session in which its receipt was proved for the first time; 0 = one of an earlier process.
    pub received_in: Option<u64>,
}

/// What a confirmation means for the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// Entries that are done.
    pub delete: Vec<u64>,
    /// Results that were received once and stay for another session.
    pub mark: Vec<u64>,
}

impl Confirmed {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.mark.is_empty()
    }
}

/// Who has to go so that new entries fit in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Entries that are dropped.
    pub evict: Vec<u64>,
    /// Positions of new entries that are dropped at once.
    pub refuse: Vec<usize>,
}

/// The state of delivery.
#[derive(Debug)]
pub struct Window {
    limits: OutboxLimits,
    entries: BTreeMap<u64, Entry>,
    bytes: u64,
    /// Number of the newest session; 0 = none yet.
    session: u64,
    flight: Flight,
}

#[derive(Debug)]
struct Flight {
    confirm: Confirm,
    /// The newest entry that was sent (or skipped) in this session.
    cursor: u64,
    sent: VecDeque<Sent>,
    sent_bytes: u64,
    /// How many were sent so far.
    count: u64,
    pings: VecDeque<Ping>,
    last_ping: Ping,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    id: u64,
    seq: u64,
    ordinal: u64,
    size_bytes: u64,
}

/// A ping, and how many sent entries lie before it.
#[derive(Debug, Clone, Copy)]
struct Ping {
    counter: u64,
    behind: u64,
}

impl Flight {
    fn new(confirm: Confirm) -> Self {
        Self {
            confirm,
            cursor: 0,
            sent: VecDeque::new(),
            sent_bytes: 0,
            count: 0,
            pings: VecDeque::new(),
            last_ping: Ping { counter: 0, behind: 0 },
        }
    }

    fn land(&mut self, landed: impl Fn(&Sent) -> bool) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(first) = self.sent.pop_front_if(|sent| landed(sent)) {
            self.sent_bytes -= first.size_bytes;
            ids.push(first.id);
        }
        ids
    }
}

impl Window {
    /// An empty window without a session.
    pub fn new(limits: OutboxLimits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            bytes: 0,
            session: 0,
            flight: Flight::new(Confirm::Receipt),
        }
    }

    /// Adds an entry; ids only rise.
    pub fn push(&mut self, id: u64, entry: Entry) {
        self.bytes += u64::from(entry.size_bytes);
        if let Some(old) = self.entries.insert(id, entry) {
            self.bytes -= u64::from(old.size_bytes);
        }
    }

    /// Forgets an entry, wherever it is.
    pub fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.bytes -= u64::from(entry.size_bytes);
        Some(entry)
    }

    /// An entry.
    pub fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// The entries that nobody has confirmed in any way.
    pub fn unconfirmed(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.iter().filter(|(_, e)| e.received_in.is_none()).map(|(id, e)| (*id, e))
    }

    /// Who has to go so that `new` entries of these kinds and sizes fit in: the oldest of the least important.
    pub fn make_room(&self, new: &[(Kind, u32)]) -> Room {
        let mut room = Room::default();
        let mut entries = self.entries.len() + new.len();
        let mut bytes = self.bytes + new.iter().map(|(_, size)| u64::from(*size)).sum::<u64>();
        let full = |entries, bytes| entries > self.limits.entries || bytes > self.limits.bytes;
        for rank in 0..RESULT_RANK {
            let old = self.entries.iter().map(|(id, e)| (e.kind, e.size_bytes, Ok(*id)));
            let new = new.iter().enumerate().map(|(i, (kind, size))| (*kind, *size, Err(i)));
            for (kind, size, which) in old.chain(new) {
                if !full(entries, bytes) {
                    return room;
                }
                if rank_of(kind) == rank {
                    entries -= 1;
                    bytes -= u64::from(size);
                    match which {
                        Ok(id) => room.evict.push(id),
                        Err(position) => room.refuse.push(position),
                    }
                }
            }
        }
        room
    }

    /// Starts a session: everything that is left will be sent again, in order. Returns its number.
    pub fn begin(&mut self, confirm: Confirm) -> u64 {
        self.session += 1;
        self.flight = Flight::new(confirm);
        self.session
    }

    fn is_current(&self, session: u64) -> bool {
        session == self.session && session != 0
    }

    /// The entry to send now, if there is one and not too much is in flight.
    pub fn next(&self, session: u64) -> Option<u64> {
        if !self.is_current(session) || self.flight.sent.len() >= self.limits.in_flight {
            return None;
        }
        let (id, entry) = self.entries.range(self.flight.cursor + 1..).next()?;
        let bytes = self.flight.sent_bytes + u64::from(entry.size_bytes);
        (bytes <= self.limits.in_flight_bytes || self.flight.sent.is_empty()).then_some(*id)
    }

    /// The entry goes out under this seq. Said before it is written, or its confirmation might be first.
    pub fn sent(&mut self, session: u64, id: u64, seq: u64) {
        if !self.is_current(session) || id <= self.flight.cursor {
            return;
        }
        let size_bytes = self.entries.get(&id).map_or(0, |entry| u64::from(entry.size_bytes));
        self.flight.cursor = id;
        self.flight.count += 1;
        self.flight.sent_bytes += size_bytes;
        let ordinal = self.flight.count;
        self.flight.sent.push_back(Sent { id, seq, ordinal, size_bytes });
    }

    /// Leaves an entry out of this session.
    pub fn skip(&mut self, session: u64, id: u64) {
        if self.is_current(session) {
            self.flight.cursor = self.flight.cursor.max(id);
        }
    }

    /// The server has stored everything up to this seq.
    pub fn acked(&mut self, session: u64, seq: u64) -> Confirmed {
        let mut confirmed = Confirmed::default();
        if !self.is_current(session) || self.flight.confirm != Confirm::Storage {
            return confirmed;
        }
        for id in self.flight.land(|sent| sent.seq <= seq) {
            if self.remove(id).is_some() {
                confirmed.delete.push(id);
            }
        }
        confirmed
    }

    /// The counter of a ping to send now, if something was sent since the one before.
    pub fn ping_due(&mut self, session: u64) -> Option<u64> {
        let current = self.is_current(session);
        let flight = &mut self.flight;
        let due =
            current && flight.confirm == Confirm::Receipt && flight.count > flight.last_ping.behind;
        if !due {
            return None;
        }
        flight.last_ping = Ping { counter: flight.last_ping.counter + 1, behind: flight.count };
        flight.pings.push_back(flight.last_ping);
        Some(flight.last_ping.counter)
    }

    /// The server answered the ping with this counter, and so has received all that lay before it. A counter that was
    /// never sent proves nothing.
    pub fn pong(&mut self, session: u64, counter: u64) -> Confirmed {
        let mut confirmed = Confirmed::default();
        if !self.is_current(session) || counter > self.flight.last_ping.counter {
            return confirmed;
        }
        let mut behind = 0;
        while let Some(ping) = self.flight.pings.pop_front_if(|ping| ping.counter <= counter) {
            behind = ping.behind;
        }
        for id in self.flight.land(|sent| sent.ordinal <= behind) {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let again = entry.received_in.is_some_and(|earlier| earlier < session);
            if again || !entry.kind.is_result() {
                self.remove(id);
                confirmed.delete.push(id);
            } else {
                entry.received_in = Some(session);
                confirmed.mark.push(id);
            }
        }
        if !confirmed.mark.is_empty() {
            self.release_oldest(&mut confirmed);
        }
        confirmed
    }

    /// Keeps the number of results that wait for another session within its bound.
    fn release_oldest(&mut self, confirmed: &mut Confirmed) {
        let received = self.entries.iter().filter(|(_, e)| e.received_in.is_some());
        let received: Vec<u64> = received.map(|(id, _)| *id).collect();
        let too_many = received.len().saturating_sub(self.limits.repeats);
        for &id in &received[..too_many] {
            self.remove(id);
            confirmed.delete.push(id);
            confirmed.mark.retain(|marked| *marked != id);
        }
    }

    /// Whether this session has sent all there is, and all of it is confirmed as far as this session can.
    pub fn settled(&self, session: u64) -> bool {
        !self.is_current(session)
            || (self.flight.sent.is_empty()
                && self.entries.range(self.flight.cursor + 1..).next().is_none())
    }

    /// Entries in flight.
    pub fn in_flight(&self) -> usize {
        self.flight.sent.len()
    }
}

const RESULT_RANK: u8 = 3;

/// The order in which entries are dropped.
fn rank_of(kind: Kind) -> u8 {
    match kind {
        Kind::Log(_) => 0,
        Kind::Health => 1,
        Kind::Ack => 2,
        Kind::Terminal | Kind::Completed => RESULT_RANK,
    }
}
