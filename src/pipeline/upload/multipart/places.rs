//! The URLs of the parts: some come with the credentials, more are asked for before they are needed.
//!
//! Whoever holds a clone may deliver; the upload waits for what it has not got. What is asked for is asked again while
//! it is needed, so that a lost request, a lost answer and a lost session cost time and nothing else. A control plane
//! that says no ends the wait; one that says nothing has [`Timing::part_urls`](crate::pipeline::upload::Timing).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

use super::plan::MAX_PARTS;
use crate::clock::unix_ms;
use crate::model::{Multipart, PartUrl};
use crate::pipeline::upload::{Fault, pause};
use crate::redact::clean;
use crate::secret::Secret;
use crate::thread::{Cancel, Why};

/// With so many URLs left, more are asked for.
const LOW: u32 = 8;
/// How many are asked for at a time.
const BATCH: u32 = 32;
/// A worker may be so many parts behind another one.
const BEHIND: u32 = 64;
/// Most URLs that are kept.
const MAX_KEPT: usize = 512;

/// Asks the control plane for URLs: the first part without one, and for how many parts. Never blocks.
pub type Ask = Arc<dyn Fn(u32, u32) + Send + Sync>;

/// The places of one attempt's parts. Clones share them.
#[derive(Clone)]
pub struct Places(Arc<Inner>);

struct Inner {
    upload_id: String,
    ask: Ask,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    urls: BTreeMap<u32, Place>,
    /// Highest part whose place was handed out.
    handed_out: u32,
    /// What was asked for last, and when.
    asked: Option<(u32, Instant)>,
    /// The control plane's no.
    refused: Option<String>,
    waiting: Vec<Sender<()>>,
}

/// Where a part goes.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) url: Secret,
    /// Unix milliseconds; 0 = unknown.
    pub(super) expires_at_ms: u64,
}

impl Places {
    /// With the URLs that came with the credentials.
    pub fn new(multipart: &Multipart, ask: Ask) -> Self {
        let mut state = State::default();
        state.put(&multipart.parts, multipart.expires_at_ms);
        let upload_id = multipart.upload_id.clone();
        Self(Arc::new(Inner { upload_id, ask, state: Mutex::new(state) }))
    }

    /// Whether they belong to this upload.
    pub fn is_of(&self, upload_id: &str) -> bool {
        self.0.upload_id == upload_id
    }

    /// Takes the URLs of fresh credentials for the same upload instead of the ones it has.
    pub fn renew(&self, multipart: &Multipart) {
        let mut state = self.lock();
        state.urls.clear();
        state.put(&multipart.parts, multipart.expires_at_ms);
        state.notify();
    }

    /// Takes the answer to a request; an `error` that is not empty is a no.
    pub fn deliver(&self, parts: &[PartUrl], error: &str) {
        let mut state = self.lock();
        if error.is_empty() {
            state.put(parts, 0);
        } else {
            state.refused = Some(clean(error));
        }
        state.notify();
    }

    /// The place of a part, as soon as there is one.
    pub(super) fn wait(
        &self,
        number: u32,
        timeout: Duration,
        again: Duration,
        cancel: &Cancel,
    ) -> Result<Place, Fault> {
        let give_up = Instant::now() + timeout;
        let mut news: Option<Receiver<()>> = None;
        loop {
            let now = Instant::now();
            let (found, ask, refused) = {
                let mut state = self.lock();
                state.forget(number, unix_ms());
                let ask = state.next_ask(number, now, again);
                let found = state.take(number);
                if found.is_none() && news.is_none() {
                    news = Some(state.enlist());
                }
                (found, ask, state.refused.clone())
            };
            if let Some((first, count)) = ask {
                (self.0.ask)(first, count);
            }
            if let Some(place) = found {
                return Ok(place);
            }
            if let Some(error) = refused {
                return Err(Fault::NoPlace { part: number, error });
            }
            if now >= give_up {
                return Err(Fault::PlaceTimeout { part: number, timeout });
            }
            if let Some(news) = &news {
                select! {
                    recv(news) -> _ => {}
                    recv(cancel.done()) -> _ => {
                        return Err(Fault::Cancelled(cancel.why().unwrap_or(Why::Requested)));
                    }
                    default(again.min(give_up - now)) => {}
                }
            }
        }
    }

    /// The store says that this URL has expired: so have the ones that came with it.
    pub(super) fn expired(&self, place: &Place) {
        let mut state = self.lock();
        state.urls.retain(|_, other| other.expires_at_ms != place.expires_at_ms);
        state.asked = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, parts: &[PartUrl], expires_at_ms: u64) {
        for part in parts.iter().filter(|part| (1..=MAX_PARTS).contains(&part.number)) {
            // Room is made for the nearer ones.
            if self.urls.len() >= MAX_KEPT
                && self.urls.last_key_value().is_some_and(|(last, _)| *last > part.number)
            {
                self.urls.pop_last();
            }
            if self.urls.len() < MAX_KEPT || self.urls.contains_key(&part.number) {
                self.urls.insert(part.number, Place { url: part.url.clone(), expires_at_ms });
            }
        }
        (self.asked, self.refused) = (None, None);
    }

    /// Drops what has expired, and what came twice for parts that are long gone.
    fn forget(&mut self, number: u32, now_ms: u64) {
        self.urls.retain(|other, place| {
            *other + BEHIND >= number && !pause::expired(place.expires_at_ms, now_ms)
        });
    }

    /// Hands out the place of a part. Workers come for theirs in any order.
    fn take(&mut self, number: u32) -> Option<Place> {
        let place = self.urls.remove(&number)?;
        self.handed_out = self.handed_out.max(number);
        Some(place)
    }

    /// What to ask for when part `number` is next.
    fn next_ask(&mut self, number: u32, now: Instant, again: Duration) -> Option<(u32, u32)> {
        let here = self.urls.contains_key(&number);
        let from = if here { number.max(self.handed_out + 1) } else { number };
        let first = (from..=MAX_PARTS).find(|number| !self.urls.contains_key(number))?;
        let asked = |(asked, at): (u32, Instant)| {
            asked == first && now.saturating_duration_since(at) < again
        };
        if first - from > LOW || self.asked.is_some_and(asked) {
            return None;
        }
        self.asked = Some((first, now));
        Some((first, BATCH.min(MAX_PARTS - first + 1)))
    }

    fn enlist(&mut self) -> Receiver<()> {
        let (sender, receiver) = bounded(1);
        self.notify();
        self.waiting.push(sender);
        receiver
    }

    /// Wakes who waits, and forgets who no longer does.
    fn notify(&mut self) {
        self.waiting.retain(|one| !matches!(one.try_send(()), Err(TrySendError::Disconnected(()))));
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("upload_id", &self.0.upload_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::spawn;

    const AGAIN: Duration = Duration::from_secs(30);

    fn urls(numbers: impl IntoIterator<Item = u32>) -> Vec<PartUrl> {
        let one = |number| PartUrl { number, url: Secret::new(format!("https://s/{number}")) };
        numbers.into_iter().map(one).collect()
    }

    fn state(numbers: impl IntoIterator<Item = u32>) -> State {
        let mut state = State::default();
        state.put(&urls(numbers), 0);
        state
    }

    #[test]
    fn more_are_asked_for_before_the_last_is_used() {
        let now = Instant::now();
        let mut state = state(1..=20);
        assert_eq!(state.next_ask(1, now, AGAIN), None);
        assert_eq!(state.next_ask(12, now, AGAIN), None);
        assert_eq!(state.next_ask(13, now, AGAIN), Some((21, BATCH)));
        assert_eq!(state.next_ask(14, now, AGAIN), None, "it is under way");
        assert_eq!(state.next_ask(14, now + AGAIN, AGAIN), Some((21, BATCH)), "perhaps not");
        state.put(&urls(21..=22), 0);
        assert_eq!(state.next_ask(15, now, AGAIN), Some((23, BATCH)), "a server may send fewer");
    }

    #[test]
    fn nothing_is_asked_beyond_the_last_part() {
        let now = Instant::now();
        let mut state = state(9_990..=9_998);
        assert_eq!(state.next_ask(9_995, now, AGAIN), Some((9_999, 2)));
        state.put(&urls(9_999..=10_050), 0);
        assert_eq!(state.next_ask(9_995, now, AGAIN), None);
        assert!(!state.urls.contains_key(&10_001) && state.urls.contains_key(&10_000));
    }

    #[test]
    fn bounded_and_never_expired() {
        let mut state = state(1..=5_000);
        assert_eq!(state.urls.len(), MAX_KEPT);
        state.forget(400, 1);
        assert_eq!(state.urls.first_key_value().map(|(number, _)| *number), Some(400 - BEHIND));
        state.put(&urls([400]), 1_000);
        state.forget(400, 999);
        assert!(state.urls.contains_key(&400));
        state.forget(400, 1_000);
        assert!(!state.urls.contains_key(&400));
    }

    #[test]
    fn workers_may_come_in_any_order() {
        let now = Instant::now();
        let mut state = state(1..=20);
        for number in [2, 1, 4, 3] {
            assert_eq!(state.next_ask(number, now, AGAIN), None);
            assert!(state.take(number).is_some());
        }
        assert!(state.take(4).is_none(), "handed out once");
        assert_eq!(state.next_ask(4, now, AGAIN), Some((4, BATCH)), "expired after all");
    }

    fn places(numbers: impl IntoIterator<Item = u32>) -> (Places, Receiver<(u32, u32)>) {
        let (sender, asked) = bounded(100);
        let ask = move |first, count| sender.try_send((first, count)).unwrap();
        let multipart = Multipart { parts: urls(numbers), ..Multipart::default() };
        (Places::new(&multipart, Arc::new(ask)), asked)
    }

    #[test]
    fn a_wait_ends_with_the_delivery_the_refusal_the_cancel_or_the_time() {
        let long = Duration::from_secs(60);
        let (places, asked) = places([]);
        let cancel = Cancel::new().unwrap();
        let wait = |number| {
            let (places, cancel) = (places.clone(), cancel.clone());
            spawn("wait", move || places.wait(number, long, long, &cancel).map(|place| place.url))
                .unwrap()
        };
        let (one, two) = (wait(1), wait(2));
        let first = [asked.recv_timeout(long).unwrap(), asked.recv_timeout(long).unwrap()];
        assert!(first.contains(&(1, BATCH)) && first.contains(&(2, BATCH)));
        places.deliver(&urls([1, 2]), "");
        assert_eq!(two.join().unwrap().unwrap().expose(), "https://s/2");
        assert_eq!(one.join().unwrap().unwrap().expose(), "https://s/1");
        let three = wait(3);
        asked.recv_timeout(long).unwrap();
        places.deliver(&[], "no such run");
        let fault = three.join().unwrap().unwrap_err();
        assert!(matches!(fault, Fault::NoPlace { part: 3, .. }) && !fault.retry(), "{fault}");
        places.renew(&Multipart::default());
        let none = Duration::ZERO;
        let fault = places.wait(3, none, none, &cancel).map(|_| ()).unwrap_err();
        assert!(matches!(fault, Fault::PlaceTimeout { part: 3, .. }) && fault.retry(), "{fault}");
        let three = wait(3);
        cancel.cancel(Why::Timeout);
        assert!(matches!(three.join().unwrap(), Err(Fault::Cancelled(Why::Timeout))));
    }

    #[test]
    fn what_expired_is_asked_for_again() {
        let (places, asked) = places(1..=40);
        let cancel = Cancel::new().unwrap();
        let place = places.wait(1, AGAIN, AGAIN, &cancel).map_err(|fault| fault.to_string());
        assert!(asked.is_empty());
        places.expired(&place.unwrap());
        let none = Duration::ZERO;
        assert!(places.wait(1, none, none, &cancel).is_err());
        assert_eq!(asked.try_recv().unwrap(), (1, BATCH));
    }
}
