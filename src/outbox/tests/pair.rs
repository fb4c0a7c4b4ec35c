//! Agent and server in virtual time, over a network that delays, goes dead, cuts, and delivers late and twice, while
//! both ends may be killed. At the end everything is there exactly once, by the server's own rules.
//!
//! Within one connection bytes arrive in order or not at all, as with TCP. What an old connection still held may
//! reach the server after the new one began, again, or both.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::store::Batch;
use crate::wire::decode_agent;

/// A small generator: the same seed, the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }
}

#[derive(Debug, Clone)]
enum Frame {
    Entry { id: u64, seq: u64, bytes: Vec<u8> },
    Ping(u64),
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Stored(u64),
    Pong(u64),
}

struct Link {
    session: Session,
    up: VecDeque<(u64, Frame)>,
    down: VecDeque<(u64, Answer)>,
    /// Nothing arrives any more, and nobody knows yet.
    dead: bool,
}

#[derive(Default)]
struct Server {
    storage: bool,
    /// Received, not on the disk yet, with the seq where it came over the current connection.
    memory: Vec<(u64, Option<u64>, Vec<u8>)>,
    /// On the disk, in the order of arrival.
    disk: Vec<(u64, Vec<u8>)>,
    ids: BTreeSet<u64>,
    runs: BTreeSet<(String, bool)>,
    arrivals: u64,
    /// How often an entry was lost with the memory.
    lost: BTreeMap<u64, u32>,
}

impl Server {
    fn receive(&mut self, id: u64, seq: Option<u64>, bytes: Vec<u8>) {
        self.arrivals += 1;
        self.memory.push((id, seq, bytes));
    }

    /// Writes what it has, deduplicated; returns what it may acknowledge.
    fn sync(&mut self) -> Option<u64> {
        let mut stored = None;
        for (id, seq, bytes) in std::mem::take(&mut self.memory) {
            stored = stored.max(seq);
            if !self.ids.insert(id) {
                continue;
            }
            let new = match decode_agent(&bytes).unwrap().1 {
                AgentMessage::JobUpdate(m) => self.runs.insert((m.run_id, true)),
                AgentMessage::BackupCompleted(m) => self.runs.insert((m.run_id, false)),
                _ => true,
            };
            if new {
                self.disk.push((id, bytes));
            }
        }
        stored
    }

    fn crash(&mut self) {
        for (id, ..) in self.memory.drain(..) {
            if !self.ids.contains(&id) {
                *self.lost.entry(id).or_default() += 1;
            }
        }
    }
}

struct Pair {
    dice: Dice,
    now: u64,
    store: Store,
    outbox: Outbox,
    seq: SeqCounter,
    last_seq: u64,
    link: Option<Link>,
    late: Vec<(u64, Frame)>,
    server: Server,
    published: Vec<String>,
}

const LIMITS: OutboxLimits = OutboxLimits {
    entries: 10_000,
    bytes: u64::MAX,
    in_flight: 5,
    in_flight_bytes: 2000,
    repeats: 10_000,
};

impl Pair {
    fn new(dir: &Path, seed: u64, storage: bool) -> Self {
        let store = store(dir);
        Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 0,
            outbox: Outbox::open(store.clone(), LIMITS).unwrap(),
            seq: SeqCounter::open(store.clone(), 1000).unwrap(),
            last_seq: 0,
            store,
            link: None,
            late: Vec::new(),
            server: Server { storage, ..Server::default() },
            published: Vec::new(),
        }
    }

    fn step(&mut self, faults: bool) {
        self.now += 1;
        if self.link.is_none() && (!faults || self.dice.one_in(5)) {
            let session = self.outbox.begin_session(self.server.storage);
            let (up, down) = (VecDeque::new(), VecDeque::new());
            self.link = Some(Link { session, up, down, dead: false });
        }
        if faults {
            self.break_something();
        }
        self.write();
        self.deliver();
        if self.dice.one_in(3) || !faults {
            let stored = self.server.sync();
            if let (Some(link), Some(seq), true) = (&mut self.link, stored, self.server.storage) {
                link.down.push_back((self.now + 1 + self.dice.roll(6), Answer::Stored(seq)));
            }
        }
    }

    fn break_something(&mut self) {
        if self.dice.one_in(25)
            && let Some(link) = &mut self.link
        {
            link.dead = true;
        }
        if self.dice.one_in(20) {
            self.cut();
        }
        if self.dice.one_in(40) {
            // The agent is killed and comes back with what was durable.
            self.cut();
            self.outbox = Outbox::open(self.store.clone(), LIMITS).unwrap();
            self.seq = SeqCounter::open(self.store.clone(), 500).unwrap();
        }
        if self.dice.one_in(40) {
            self.cut();
            self.server.crash();
        }
    }

    /// The connection ends. Of what was under way some arrives later, some twice, the rest never.
    fn cut(&mut self) {
        let Some(link) = self.link.take() else { return };
        // What sits in the server's memory came over a connection that is gone: nobody to acknowledge it to.
        self.server.memory.iter_mut().for_each(|(_, seq, _)| *seq = None);
        let survives = if link.dead { 0 } else { self.dice.roll(link.up.len() as u64 + 1) };
        let mut at = self.now + self.dice.roll(30);
        for (_, frame) in link.up.into_iter().take(usize::try_from(survives).unwrap()) {
            at += self.dice.roll(5);
            self.late.push((at, frame.clone()));
            if self.dice.one_in(4) {
                self.late.push((at + self.dice.roll(40), frame));
            }
        }
        self.late.sort_by_key(|(at, _)| *at);
    }

    fn write(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some(out) = link.session.next().unwrap() {
            let seq = self.seq.next();
            assert!(seq > self.last_seq, "seq only rises, re-sends and restarts included");
            self.last_seq = seq;
            link.session.sent(out.entry_id, seq);
            let frame = Frame::Entry { id: out.entry_id, seq, bytes: out.stored };
            let at = link.up.back().map_or(self.now, |(at, _)| *at) + 1 + self.dice.roll(5);
            link.up.push_back((at, frame));
        }
        if let Some(counter) = link.session.ping_due() {
            assert!(!self.server.storage);
            let at = link.up.back().map_or(self.now, |(at, _)| *at) + 1;
            link.up.push_back((at, Frame::Ping(counter)));
        }
    }

    fn deliver(&mut self) {
        let (now, mut late) = (self.now, std::mem::take(&mut self.late));
        late.retain(|(at, frame)| {
            if *at > now {
                return true;
            }
            if let Frame::Entry { id, bytes, .. } = frame {
                self.server.receive(*id, None, bytes.clone());
            }
            false
        });
        self.late = late;
        let Some(link) = &mut self.link else { return };
        if link.dead {
            return;
        }
        while let Some((_, frame)) = link.up.pop_front_if(|(at, _)| *at <= now) {
            match frame {
                Frame::Entry { id, seq, bytes } => self.server.receive(id, Some(seq), bytes),
                Frame::Ping(counter) => {
                    link.down.push_back((now + 1 + self.dice.roll(6), Answer::Pong(counter)));
                }
            }
        }
        while let Some((_, answer)) = link.down.pop_front_if(|(at, _)| *at <= now) {
            match answer {
                Answer::Stored(seq) => link.session.acked(seq),
                Answer::Pong(counter) => link.session.pong(counter),
            }
        }
    }

    fn publish(&mut self, n: u64) {
        let messages = match self.dice.roll(4) {
            0 => vec![line(&format!("line {n}"))],
            1 => vec![health(&format!("check {n}")), ack(&format!("command {n}"))],
            _ => {
                self.published.push(format!("run {n}"));
                vec![completed(&format!("run {n}")), terminal(&format!("run {n}"))]
            }
        };
        self.outbox.publish(Batch::new(), messages).unwrap();
    }

    /// Good weather for as long as it takes, in two sessions, because a pong alone does not finish a result.
    fn quiesce(&mut self) {
        for _ in 0..2 {
            self.cut();
            self.step(false);
            let patience = self.now + 20_000;
            while !self.link.as_ref().unwrap().session.settled() || !self.late.is_empty() {
                self.step(false);
                assert!(self.now < patience, "the session never settles");
            }
        }
        self.server.sync();
    }
}

fn story(seed: u64, storage: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::new(dir.path(), seed, storage);
    for n in 0..60 {
        pair.publish(n);
        for _ in 0..pair.dice.roll(12) {
            pair.step(true);
        }
    }
    pair.quiesce();
    let ids: Vec<u64> = pair.server.disk.iter().map(|(id, _)| *id).collect();
    let unique: BTreeSet<u64> = ids.iter().copied().collect();
    assert_eq!(ids.len(), unique.len(), "seed {seed}: stored twice");
    let last = pair.outbox.last_entry_id();
    for id in 1..=last {
        // A pong only says that the server had it; what it then loses is lost unless it is a result, which came again.
        let excused = !storage && pair.server.lost.contains_key(&id);
        assert!(unique.contains(&id) || excused, "seed {seed}: entry {id} is missing");
    }
    for run in &pair.published {
        let losses = pair.server.lost.iter().filter(|(_, losses)| **losses > 1).count();
        let position = |terminal| {
            pair.server.disk.iter().position(|(_, bytes)| match decode_agent(bytes).unwrap().1 {
                AgentMessage::JobUpdate(m) => terminal && m.run_id == *run,
                AgentMessage::BackupCompleted(m) => !terminal && m.run_id == *run,
                _ => false,
            })
        };
        let (completed, terminal) = (position(false), position(true));
        assert!(
            (completed.is_some() && terminal.is_some()) || losses > 0,
            "seed {seed}: {run} has no result"
        );
        assert!(losses > 0 || completed < terminal, "seed {seed}: {run} in the wrong order");
    }
    assert!(pair.server.arrivals > last, "seed {seed}: the story had no repeats in it");
    let reopened = Outbox::open(pair.store.clone(), LIMITS).unwrap();
    let after = reopened.begin_session(storage);
    assert_eq!(after.next().unwrap(), None, "seed {seed}: something is left");
}

#[test]
fn everything_arrives_exactly_once_where_storage_is_confirmed() {
    for seed in 1..=12 {
        story(seed, true);
    }
}

#[test]
fn results_arrive_exactly_once_where_only_receipt_is_confirmed() {
    for seed in 1..=12 {
        story(seed, false);
    }
}
