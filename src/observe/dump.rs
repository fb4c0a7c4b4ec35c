//! `dump-state`: what the store holds, record by record, for people who look into a problem.

use std::io;
use std::ops::ControlFlow;

use serde_json::json;

use super::socket::Reply;
use crate::store::Store;

/// Hands every record to `reply`, one JSON object each. Without `secrets`, only names and sizes.
///
/// # Errors
/// When the reader has gone. A store that cannot be read to its end says so in the last object.
pub fn dump(store: &Store, secrets: bool, reply: Reply<'_>) -> io::Result<()> {
    reply(&json!({"store_id": store.id(), "directory": store.dir().display().to_string()}))?;
    let mut gone = None;
    let walked = store.walk(&mut |record| match reply(&record.to_json(secrets)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            gone = Some(error);
            ControlFlow::Break(())
        }
    });
    match (gone, walked) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => reply(&json!({"error": error.to_string()})),
        (None, Ok(())) => Ok(()),
    }
}
