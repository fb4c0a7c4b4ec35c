//! What the link needs of the outbox.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::Receiver;

/// The outbox, as the link sees it.
pub trait Queue: Send + Sync {
    /// Starts a session: everything unconfirmed is sent again, in order.
    fn begin_session(&self, durable_acks: bool) -> Arc<dyn QueueSession>;
    /// There may be something to send.
    fn ready(&self) -> &Receiver<()>;
    /// The next sequence number.
    ///
    /// # Errors
    /// When it cannot be made durable.
    fn next_seq(&self) -> Result<u64, QueueError>;
}

/// One session's way through the outbox.
pub trait QueueSession: Send + Sync {
    /// The next entry to send, if there is one and it may be in flight.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn next(&self) -> Result<Option<Outgoing>, QueueError>;
    /// The entry goes out under this number.
    fn sent(&self, entry_id: u64, seq: u64);
    /// The server has stored everything up to `seq`.
    fn acked(&self, seq: u64);
    /// A counter to send as a WebSocket ping behind what was sent.
    fn ping_due(&self) -> Option<u64>;
    /// The server answered it.
    fn pong(&self, counter: u64);
}

/// An entry.
pub struct Outgoing {
    /// Its id.
    pub entry_id: u64,
    /// The envelope without its stamp.
    pub stored: Vec<u8>,
}

/// The store's trouble.
#[derive(Debug)]
pub struct QueueError(pub String);

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
