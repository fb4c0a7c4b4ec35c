//! The store by its claims: what was acknowledged is there, damage is noticed, a full disk passes.

mod basics;
mod crash;
mod damage;
mod footprint;
mod full;

use std::path::{Path, PathBuf};

use super::engine::Op;
use super::*;

fn keys(key: &str) -> StoreKeys {
    StoreKeys { current: Secret::new(key), previous: None }
}

fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(dir, &Space::AGENT, &keys("bkpy_test_a"))
}

fn put(store: &Store, space: Space, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
    let mut batch = store.batch();
    batch.put(space, key, value);
    store.commit(batch)
}

fn get(store: &Store, space: Space, key: &[u8]) -> Option<Vec<u8>> {
    store.get(space, key).unwrap().map(|value| value.to_vec())
}

fn all(store: &Store, space: Space) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    store
        .scan(space, &[], &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}
