//! The number on every envelope: rises for ever, over restarts and clocks that are set back.

use std::sync::{Mutex, PoisonError};

use crate::store::{Space, Store, StoreError};

const KEY: &[u8] = b"seq";
/// Numbers are set aside in the store so many at a time: a write every few hours.
const AHEAD: u64 = 1 << 16;
/// Far more numbers than can be sent in a millisecond.
const PER_MS: u64 = 1 << 20;
/// A clock that is centuries ahead must not use the numbers up.
const START_MAX: u64 = u64::MAX / 2;

/// Hands out numbers. Shared by reference among the threads that send.
#[derive(Debug)]
pub struct SeqCounter {
    store: Store,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: u64,
    reserved: u64,
}

impl SeqCounter {
    /// Continues after everything that was ever handed out here, and not before `now_ms` · 2^20.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn open(store: Store, now_ms: u64) -> Result<Self, StoreError> {
        let stored = store.get(Space::Meta, KEY)?;
        let known = match stored.as_deref().map(|bytes| <[u8; 8]>::try_from(bytes.as_slice())) {
            None => 0,
            Some(Ok(bytes)) => u64::from_be_bytes(bytes),
            Some(Err(_)) => {
                return Err(StoreError::damaged(store.dir(), "the record `seq` makes no sense"));
            }
        };
        let start = known.max(now_ms.saturating_mul(PER_MS).min(START_MAX));
        let counter = Self { store, state: Mutex::new(State { last: start, reserved: start }) };
        counter.reserve(start)?;
        Ok(counter)
    }

    /// The next number. Where the store fails, numbers go on all the same: after a restart the clock is ahead of them.
    pub fn next(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last += 1;
        let last = state.last;
        let low = last >= state.reserved;
        drop(state);
        if low && let Err(e) = self.reserve(last) {
            log::warn!("failed to set numbers aside: {e}");
        }
        last
    }

    fn reserve(&self, from: u64) -> Result<(), StoreError> {
        let reserved = from + AHEAD;
        {
            // Whatever becomes of the write: the next attempt comes with the next portion.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.reserved = state.reserved.max(reserved);
        }
        let mut batch = self.store.batch();
        batch.put(Space::Meta, KEY, reserved.to_be_bytes());
        self.store.commit(batch)
    }
}
