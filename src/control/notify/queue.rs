//! What waits for one channel, and when it is tried (again). Pure: the time is a parameter.
//!
//! ```text
//! push ─▶ waiting ──due──▶ in flight ──done──▶ gone
//!            ▲                  │
//!            └──(retry, later)──┴──(permanent, or the last try)──▶ given up
//! ```
//! Messages of one *lane* leave in order, so that a recovery never overtakes its failure; a lane that waits for a retry
//! does not hold up another. What lasts is tried for a day, and a success for an hour, of which it then says nothing.
//! Beyond [`Queue::BOUND`] the oldest message gives way: the newest says best how things stand.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::event::{Kind, Message};

/// Pauses after a failed try; then the last of them over and over for what lasts ([`Kind::tries_for`]).
pub const PAUSES: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];

/// What a queue wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Try this one now; it is in flight until [`Queue::done`] or [`Queue::failed`].
    Now(Message),
    /// Nothing before this time.
    At(Instant),
    /// Nothing waits.
    Nothing,
}

/// What becomes of a message whose try failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is tried again.
    Again(Duration),
    /// It is given up, after so many tries.
    GivenUp(usize),
}

/// The queue of one channel.
#[derive(Debug)]
pub struct Queue {
    by_name: bool,
    items: VecDeque<Item>,
}

#[derive(Debug)]
struct Item {
    message: Message,
    tries: usize,
    since: Instant,
    due: Instant,
    in_flight: bool,
}

impl Queue {
    /// Messages that may wait.
    pub const BOUND: usize = 64;

    /// An empty queue; `by_name` gives every backup a lane of its own.
    pub fn new(by_name: bool) -> Self {
        Self { by_name, items: VecDeque::new() }
    }

    /// How many messages wait, the one in flight included.
    pub fn waiting(&self) -> usize {
        self.items.len()
    }

    /// Adds a message and returns those that give way to it: the beginning of a run whose end is here, and the oldest of
    /// a full queue.
    pub fn push(&mut self, message: Message, now: Instant) -> Vec<Message> {
        let mut gone = Vec::new();
        let overtaken = |item: &Item| {
            !item.in_flight
                && item.message.kind() == Kind::Started
                && item.message.what.name == message.what.name
        };
        while let Some(at) = self.items.iter().position(overtaken) {
            gone.extend(self.items.remove(at).map(|item| item.message));
        }
        if self.items.len() >= Self::BOUND
            && let Some(at) = self.items.iter().position(|item| !item.in_flight)
        {
            gone.extend(self.items.remove(at).map(|item| item.message));
        }
        self.items.push_back(Item { message, tries: 0, since: now, due: now, in_flight: false });
        gone
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Instant) -> Next {
        let first_of_lane = |items: &VecDeque<Item>, at: usize| {
            let same = |other: &Item| {
                !self.by_name || other.message.what.name == items[at].message.what.name
            };
            !items.iter().take(at).any(same)
        };
        let heads = (0..self.items.len()).filter(|at| first_of_lane(&self.items, *at));
        let Some(at) = heads.min_by_key(|at| self.items[*at].due) else { return Next::Nothing };
        let item = &mut self.items[at];
        if item.due > now {
            return Next::At(item.due);
        }
        item.in_flight = true;
        Next::Now(item.message.clone())
    }

    /// The message arrived.
    pub fn done(&mut self, id: &str) {
        self.items.retain(|item| item.message.id != id);
    }

    /// Its try failed; `retry` says whether another can help.
    pub fn failed(&mut self, id: &str, retry: bool, now: Instant) -> Outcome {
        let Some(item) = self.items.iter_mut().find(|item| item.message.id == id) else {
            return Outcome::GivenUp(0);
        };
        let long = item.message.kind().tries_for();
        let goes_on = long.is_some_and(|long| now.duration_since(item.since) < long);
        let last = PAUSES.last().filter(|_| goes_on);
        let pause = PAUSES.get(item.tries).or(last).filter(|_| retry);
        item.tries += 1;
        match pause {
            Some(pause) => {
                item.due = now + *pause;
                item.in_flight = false;
                Outcome::Again(*pause)
            }
            None => {
                let tries = item.tries;
                self.done(id);
                Outcome::GivenUp(tries)
            }
        }
    }

    /// Takes out the successes that are old news, and in a lane of its own what waits before one: it is older still.
    pub fn stale(&mut self, now: Instant) -> Vec<Message> {
        let is_stale = |item: &Item| {
            item.message.kind() == Kind::Succeeded
                && !item.in_flight
                && Kind::Succeeded
                    .tries_for()
                    .is_some_and(|long| now.duration_since(item.since) >= long)
        };
        let mut gone = Vec::new();
        while let Some(at) = self.items.iter().position(is_stale) {
            let name = self.items[at].message.what.name.clone();
            for before in (0..=at).rev() {
                let item = &self.items[before];
                let old = before == at || (self.by_name && item.message.what.name == name);
                if old && !item.in_flight {
                    gone.extend(self.items.remove(before).map(|item| item.message));
                }
            }
        }
        gone
    }

    /// From now on a message goes to these recipients only; it as it is now.
    pub fn narrow(&mut self, id: &str, only: &[String]) -> Option<Message> {
        let item = self.items.iter_mut().find(|item| item.message.id == id)?;
        item.message.only = only.to_vec();
        Some(item.message.clone())
    }

    /// What waits, the one in flight included.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.items.iter().map(|item| &item.message)
    }

    /// Takes everything that waits.
    pub fn drain(&mut self) -> Vec<Message> {
        self.items.drain(..).map(|item| item.message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Failure;
    use super::*;

    fn message(id: &str, name: &str, status: &str) -> Message {
        let what = Failure { name: name.into(), status: status.into(), ..Failure::default() };
        Message { id: id.into(), what, ..Message::default() }
    }

    fn taken(queue: &mut Queue, now: Instant) -> Option<String> {
        match queue.next(now) {
            Next::Now(message) => Some(message.id),
            Next::At(_) | Next::Nothing => None,
        }
    }

    #[test]
    fn what_does_not_last_is_tried_five_times_and_holds_its_followers_back() {
        let mut queue = Queue::new(false);
        let mut now = Instant::now();
        queue.push(message("1", "shop", "test"), now);
        queue.push(message("2", "shop", "recovered"), now);
        for pause in PAUSES {
            assert_eq!(taken(&mut queue, now), Some("1".into()));
            assert_eq!(queue.failed("1", true, now), Outcome::Again(pause));
            assert_eq!(queue.next(now), Next::At(now + pause), "in order");
            now += pause;
        }
        assert_eq!(taken(&mut queue, now), Some("1".into()));
        assert_eq!(queue.failed("1", true, now), Outcome::GivenUp(5));
        assert_eq!(taken(&mut queue, now), Some("2".into()));
        assert_eq!(queue.failed("2", false, now), Outcome::GivenUp(1), "no retry can help");
        assert_eq!(queue.next(now), Next::Nothing);
    }

    #[test]
    fn what_lasts_is_tried_for_a_day_every_ten_minutes() {
        let mut queue = Queue::new(false);
        let start = Instant::now();
        let mut now = start;
        queue.push(message("1", "shop", "failed"), now);
        let tries = loop {
            assert_eq!(taken(&mut queue, now), Some("1".into()));
            match queue.failed("1", true, now) {
                Outcome::Again(pause) => now += pause,
                Outcome::GivenUp(tries) => break tries,
            }
        };
        let day = Duration::from_secs(86_400);
        assert!(now - start >= day && now - start < day + PAUSES[3], "{:?}", now - start);
        assert!((144..160).contains(&tries), "{tries}");
    }

    #[test]
    fn a_success_that_is_old_is_not_told_nor_what_is_older() {
        let mut queue = Queue::new(true);
        let now = Instant::now();
        for (id, name, status) in [
            ("1", "shop", "failed"),
            ("2", "shop", "succeeded"),
            ("3", "app", "failed"),
            ("4", "shop", "failed"),
        ] {
            queue.push(message(id, name, status), now);
        }
        let hour = Duration::from_secs(3600);
        assert_eq!(queue.stale(now + hour / 2), []);
        let mut gone: Vec<String> =
            queue.stale(now + hour).into_iter().map(|message| message.id).collect();
        gone.sort();
        assert_eq!(gone, ["1", "2"]);
        assert_eq!(queue.waiting(), 2);
    }

    #[test]
    fn lanes_do_not_hold_each_other_up() {
        let mut queue = Queue::new(true);
        let now = Instant::now();
        queue.push(message("1", "shop", "failed"), now);
        queue.push(message("2", "app", "failed"), now);
        queue.push(message("3", "shop", "succeeded"), now);
        assert_eq!(taken(&mut queue, now), Some("1".into()));
        queue.failed("1", true, now);
        assert_eq!(taken(&mut queue, now), Some("2".into()));
        queue.done("2");
        assert_eq!(queue.next(now), Next::At(now + PAUSES[0]), "3 waits behind 1");
    }

    #[test]
    fn the_end_of_a_run_makes_its_beginning_old_news() {
        let mut queue = Queue::new(true);
        let now = Instant::now();
        queue.push(message("1", "shop", "started"), now);
        queue.push(message("2", "app", "started"), now);
        assert_eq!(taken(&mut queue, now), Some("1".into()));
        let gone = queue.push(message("3", "shop", "succeeded"), now);
        assert_eq!(gone, [], "what is in flight is not called back");
        queue.failed("1", true, now);
        let gone = queue.push(message("4", "shop", "failed"), now);
        assert_eq!(gone, [message("1", "shop", "started")]);
        assert_eq!(queue.waiting(), 3);
    }

    #[test]
    fn the_oldest_gives_way_but_not_the_one_in_flight() {
        let mut queue = Queue::new(false);
        let now = Instant::now();
        for id in 0..Queue::BOUND {
            assert_eq!(queue.push(message(&id.to_string(), "a", "failed"), now), []);
        }
        assert_eq!(taken(&mut queue, now), Some("0".into()));
        let gone = queue.push(message("new", "a", "failed"), now);
        assert_eq!(gone, [message("1", "a", "failed")]);
        assert_eq!(queue.waiting(), Queue::BOUND);
        assert_eq!(queue.drain().len(), Queue::BOUND);
    }
}
