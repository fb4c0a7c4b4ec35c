//! The window against a model that remembers everything that ever happened and derives the answers from it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::outbox::window::{Confirm, Confirmed, Entry, Window};

const LIMITS: OutboxLimits = OutboxLimits {
    entries: usize::MAX,
    bytes: u64::MAX,
    in_flight: 4,
    in_flight_bytes: u64::MAX,
    repeats: usize::MAX,
};

#[derive(Debug, Clone, Copy)]
enum Op {
    Publish(bool),
    Begin(Confirm),
    Send,
    Skip,
    /// Of the n-th seq ever used, counted from the newest; a little beyond as well.
    Ack(u8),
    Ping,
    Pong(u8),
    /// The same from the session before.
    Stale(u8),
    Drop(u8),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<bool>().prop_map(Op::Publish),
        1 => any::<bool>().prop_map(|storage| {
            Op::Begin(if storage { Confirm::Storage } else { Confirm::Receipt })
        }),
        6 => Just(Op::Send),
        1 => Just(Op::Skip),
        3 => (0u8..12).prop_map(Op::Ack),
        3 => Just(Op::Ping),
        3 => (0u8..4).prop_map(Op::Pong),
        1 => (0u8..12).prop_map(Op::Stale),
        1 => any::<u8>().prop_map(Op::Drop),
        1 => Just(Op::Restart),
    ]
}

/// Everything that happened, in order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fact {
    Published { id: u64, result: bool },
    Began { confirm: Confirm },
    Sent { id: u64, seq: u64 },
    Skipped { id: u64 },
    Pinged { counter: u64 },
    Confirmed { id: u64 },
    Received { id: u64 },
    Dropped { id: u64 },
}

#[derive(Default)]
struct Model {
    facts: Vec<Fact>,
}

impl Model {
    fn alive(&self) -> BTreeSet<u64> {
        let mut alive = BTreeSet::new();
        for fact in &self.facts {
            match *fact {
                Fact::Published { id, .. } => drop(alive.insert(id)),
                Fact::Confirmed { id } | Fact::Dropped { id } => drop(alive.remove(&id)),
                _ => {}
            }
        }
        alive
    }

    fn session(&self) -> (Option<Confirm>, &[Fact]) {
        let began = self.facts.iter().rposition(|fact| matches!(fact, Fact::Began { .. }));
        match began {
            Some(at) => {
                let Fact::Began { confirm } = self.facts[at] else { unreachable!() };
                (Some(confirm), &self.facts[at..])
            }
            None => (None, &[]),
        }
    }

    fn sent_now(&self) -> Vec<(u64, u64)> {
        let sent = self.session().1.iter().filter_map(|fact| match *fact {
            Fact::Sent { id, seq } => Some((id, seq)),
            _ => None,
        });
        sent.collect()
    }

    fn is_result(&self, id: u64) -> bool {
        self.facts.contains(&Fact::Published { id, result: true })
    }

    fn settled_now(&self, id: u64) -> bool {
        let facts = self.session().1;
        facts
            .iter()
            .any(|f| matches!(*f, Fact::Confirmed { id: i } | Fact::Received { id: i } if i == id))
    }

    /// Sent in this session and not confirmed in it. What was dropped keeps its place until then.
    fn flying(&self) -> Vec<(u64, u64)> {
        let mut flying = self.sent_now();
        // Confirmations are cumulative, so everything up to the newest confirmed one has landed.
        if let Some(last) = flying.iter().rposition(|(id, _)| self.settled_now(*id)) {
            flying.drain(..=last);
        }
        flying
    }

    fn next(&self, landed: u64) -> Option<u64> {
        self.session().0?;
        let flying = self.sent_now().iter().filter(|(_, seq)| *seq > landed).count();
        if flying >= LIMITS.in_flight {
            return None;
        }
        let over = self.session().1.iter().filter_map(|fact| match *fact {
            Fact::Sent { id, .. } | Fact::Skipped { id } => Some(id),
            _ => None,
        });
        let cursor = over.max().unwrap_or(0);
        self.alive().into_iter().find(|id| *id > cursor)
    }

    fn acked(&self, seq: u64) -> Confirmed {
        let mut confirmed = Confirmed::default();
        if self.session().0 == Some(Confirm::Storage) {
            let alive = self.alive();
            let landed = self.flying().into_iter().filter(|(_, s)| *s <= seq);
            confirmed.delete = landed.map(|(id, _)| id).filter(|id| alive.contains(id)).collect();
        }
        confirmed
    }

    fn pong(&self, counter: u64) -> Confirmed {
        let mut confirmed = Confirmed::default();
        let (_, facts) = self.session();
        let Some(ping) = facts.iter().position(|f| *f == Fact::Pinged { counter }) else {
            return confirmed;
        };
        let began = self.facts.len() - facts.len();
        let alive = self.alive();
        for (id, seq) in self.flying() {
            let sent = facts.iter().position(|f| *f == Fact::Sent { id, seq }).unwrap();
            if sent > ping || !alive.contains(&id) {
                continue;
            }
            let before = self.facts[..began].contains(&Fact::Received { id });
            if before || !self.is_result(id) {
                confirmed.delete.push(id);
            } else {
                confirmed.mark.push(id);
            }
        }
        confirmed
    }
}

fn entry(result: bool, received: bool) -> Entry {
    Entry {
        kind: if result { Kind::Terminal } else { Kind::Health },
        size_bytes: 10,
        run_id: None,
        received_in: received.then_some(0),
    }
}

struct Machine {
    window: Window,
    model: Model,
    session: u64,
    seq: u64,
    /// The newest seq of this session that has landed, dropped or not.
    landed: u64,
    next_id: u64,
    pings: u64,
}

impl Machine {
    fn new() -> Self {
        Self {
            window: Window::new(LIMITS),
            model: Model::default(),
            session: 0,
            seq: 100,
            landed: 0,
            next_id: 0,
            pings: 0,
        }
    }

    fn learn(&mut self, confirmed: &Confirmed) {
        for &id in &confirmed.delete {
            self.model.facts.push(Fact::Confirmed { id });
        }
        for &id in &confirmed.mark {
            self.model.facts.push(Fact::Received { id });
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Publish(result) => {
                self.next_id += 1;
                self.window.push(self.next_id, entry(result, false));
                self.model.facts.push(Fact::Published { id: self.next_id, result });
            }
            Op::Begin(confirm) => {
                self.session = self.window.begin(confirm);
                self.model.facts.push(Fact::Began { confirm });
                (self.landed, self.pings) = (self.seq, 0);
            }
            Op::Send | Op::Skip => {
                let next = self.window.next(self.session);
                assert_eq!(next, self.model.next(self.landed));
                let Some(id) = next else { return };
                if matches!(op, Op::Skip) {
                    self.window.skip(self.session, id);
                    self.model.facts.push(Fact::Skipped { id });
                } else {
                    self.seq += 1;
                    self.window.sent(self.session, id, self.seq);
                    self.model.facts.push(Fact::Sent { id, seq: self.seq });
                }
            }
            Op::Ack(back) => {
                let seq = (self.seq + 3).saturating_sub(u64::from(back));
                let confirmed = self.window.acked(self.session, seq);
                assert_eq!(confirmed, self.model.acked(seq));
                if self.model.session().0 == Some(Confirm::Storage) {
                    self.landed = self.landed.max(seq.min(self.seq));
                }
                self.learn(&confirmed);
            }
            Op::Ping => {
                let due = self.window.ping_due(self.session);
                let sent = self.model.session().1.iter().rev();
                let unpinged = sent
                    .take_while(|f| !matches!(f, Fact::Pinged { .. }))
                    .any(|f| matches!(f, Fact::Sent { .. }));
                let receipt = self.model.session().0 == Some(Confirm::Receipt);
                assert_eq!(due.is_some(), unpinged && receipt);
                if let Some(counter) = due {
                    self.pings += 1;
                    assert_eq!(counter, self.pings);
                    self.model.facts.push(Fact::Pinged { counter });
                }
            }
            Op::Pong(back) => {
                let counter = (self.pings + 1).saturating_sub(u64::from(back));
                let confirmed = self.window.pong(self.session, counter);
                assert_eq!(confirmed, self.model.pong(counter));
                self.landed = self.landed.max(self.seq_behind(counter));
                self.learn(&confirmed);
            }
            Op::Stale(back) => {
                let old = self.session.wrapping_sub(1);
                let seq = (self.seq + 3).saturating_sub(u64::from(back));
                assert!(self.window.acked(old, seq).is_empty());
                assert!(self.window.pong(old, self.pings).is_empty());
                assert_eq!(self.window.next(old).filter(|_| self.session > 0), None);
            }
            Op::Drop(which) => {
                let alive: Vec<u64> = self.model.alive().into_iter().collect();
                let Some(&id) = alive.get(usize::from(which) % alive.len().max(1)) else { return };
                assert!(self.window.remove(id).is_some());
                self.model.facts.push(Fact::Dropped { id });
            }
            Op::Restart => {
                self.window = Window::new(LIMITS);
                for id in self.model.alive() {
                    let received = self.model.facts.contains(&Fact::Received { id });
                    self.window.push(id, entry(self.model.is_result(id), received));
                }
                self.step(Op::Begin(Confirm::Receipt));
            }
        }
        assert!(self.window.in_flight() <= LIMITS.in_flight);
    }

    fn seq_behind(&self, counter: u64) -> u64 {
        let facts = self.model.session().1;
        let ping = facts.iter().position(|f| *f == Fact::Pinged { counter });
        let sent = facts[..ping.unwrap_or(0)].iter().filter_map(|f| match f {
            Fact::Sent { seq, .. } => Some(*seq),
            _ => None,
        });
        sent.max().unwrap_or(0)
    }

    /// Two good sessions must deliver all that is left, whatever happened before.
    fn finish(&mut self) {
        for _ in 0..2 {
            self.step(Op::Begin(Confirm::Receipt));
            let mut sent = BTreeSet::new();
            while let Some(id) = self.window.next(self.session) {
                assert!(sent.insert(id), "entry {id} twice in one session");
                self.step(Op::Send);
                self.step(Op::Ping);
                self.step(Op::Pong(1));
            }
            assert!(self.window.settled(self.session));
        }
        assert_eq!(self.model.alive().len(), 0);
        assert_eq!(self.window.unconfirmed().count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_window_agrees_with_the_model(ops in proptest::collection::vec(op(), 1..120)) {
        let mut machine = Machine::new();
        for op in ops {
            machine.step(op);
        }
        machine.finish();
    }

    #[test]
    fn room_is_made_in_order_and_never_at_the_cost_of_results(
        old in proptest::collection::vec((0u8..4, 1u32..100), 0..30),
        new in proptest::collection::vec((0u8..4, 1u32..100), 0..6),
        entries in 1usize..20,
        bytes in 1u64..1500,
    ) {
        let kind = |rank| match rank {
            0 => Kind::Log(LogLevel::Info),
            1 => Kind::Health,
            2 => Kind::Ack,
            _ => Kind::Terminal,
        };
        let mut window = Window::new(OutboxLimits { entries, bytes, ..LIMITS });
        for (id, (rank, size_bytes)) in (1u64..).zip(&old) {
            window.push(id, Entry { kind: kind(*rank), size_bytes: *size_bytes, ..entry(false, false) });
        }
        let sizes: Vec<_> = new.iter().map(|(rank, size)| (kind(*rank), *size)).collect();
        let room = window.make_room(&sizes);
        // All candidates from the least important and oldest on; what is dropped is a prefix of them.
        let mut order: Vec<(u8, u64, u32)> = (1u64..)
            .zip(old.iter().chain(&new))
            .map(|(id, (rank, size))| (*rank, id, *size))
            .filter(|(rank, ..)| *rank < 3)
            .collect();
        order.sort_unstable();
        let mut dropped: Vec<u64> = room.evict.clone();
        dropped.extend(room.refuse.iter().map(|i| (old.len() + i + 1) as u64));
        dropped.sort_unstable();
        let mut prefix: Vec<u64> = order[..dropped.len()].iter().map(|(_, id, _)| *id).collect();
        prefix.sort_unstable();
        prop_assert_eq!(&dropped, &prefix);
        let left = |dropped: usize| {
            let gone: u64 = order[..dropped].iter().map(|(_, _, size)| u64::from(*size)).sum();
            let all: u64 = old.iter().chain(&new).map(|(_, size)| u64::from(*size)).sum();
            (old.len() + new.len() - dropped, all - gone)
        };
        let fits = |(n, b): (usize, u64)| n <= entries && b <= bytes;
        prop_assert!(fits(left(dropped.len())) || dropped.len() == order.len(), "enough is dropped");
        prop_assert!(dropped.is_empty() || !fits(left(dropped.len() - 1)), "and not too much");
    }
}
