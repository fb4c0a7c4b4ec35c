//! The wire contract (`backup.v1`, see `proto/`): plain values in, bytes out, and back.
//!
//! The generated types stay in here and are converted once, both ways, because this crate is both ends.
//! Strings and numbers are passed on as they came; whoever uses them checks them.
//!
//! An outbox entry is kept as an [`Envelope`](proto::Envelope) without `seq`, `ts_ms` and `entry_id`.
//! Concatenated protobuf messages merge, so [`stamp`] only puts those in front when it is sent.

mod agent;
mod bounds;
mod multipart;
mod server;

use std::fmt;

use prost::Message as _;

pub use agent::{
    AgentMessage, AgentMetrics, BackupCompleted, Container, HealthResult, Heartbeat, JobStatus,
    JobUpdate, LogEvent, LogLevel, PortBinding, Register, RestoreUpdate,
};
pub use multipart::{PartUrls, PartUrlsRequest};
pub use server::{
    RegisterAck, RunBackup, SelfUpdate, ServerMessage, config_from_bytes, config_to_bytes,
};

/// The generated types.
#[allow(missing_docs, clippy::all, reason = "generated from proto/, where the docs are")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/backup.v1.rs"));
}

/// Largest message that is accepted, in bytes; a larger one closes the connection.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Path of the WebSocket endpoint.
pub const CONNECT_PATH: &str = "/v1/agents/connect";

/// Capability: this agent understands confirmations of storage.
pub const DURABLE_ACKS: &str = "durable_acks";

/// Capability: this agent streams in parts where the credentials offer it.
pub const MULTIPART: &str = "multipart";

/// Prefix of the correlation id of such a confirmation: `seq-<n>`.
pub const ACK_SEQ_PREFIX: &str = "seq-";

/// Why a message was not read.
#[derive(Debug)]
pub enum WireError {
    /// It is not an Envelope.
    Decode(prost::DecodeError),
    /// A list in it is longer than anybody needs.
    TooMany,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(error) => write!(f, "failed to read an envelope: {error}"),
            Self::TooMany => write!(
                f,
                "failed to read an envelope: its lists have more than {} items or {} fields",
                bounds::MAX_ITEMS,
                bounds::MAX_FIELDS
            ),
        }
    }
}

impl std::error::Error for WireError {}

/// What stands around every payload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Strictly increasing per direction; 0 while it waits in the outbox.
    pub seq: u64,
    /// Sender's Unix milliseconds.
    pub ts_ms: u64,
    /// Ties an answer to its request; may be empty.
    pub correlation_id: String,
    /// The outbox entry this carries; 0 = none.
    pub entry_id: u64,
}

/// An acknowledgement, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Of the request.
    pub correlation_id: String,
    /// Whether it was accepted.
    pub accepted: bool,
    /// Why not.
    pub reason: String,
}

impl Ack {
    /// An acceptance.
    pub fn ok(correlation_id: impl Into<String>) -> Self {
        Self { correlation_id: correlation_id.into(), accepted: true, reason: String::new() }
    }

    /// A refusal.
    pub fn refused(correlation_id: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { correlation_id: correlation_id.into(), accepted: false, reason: reason.into() }
    }

    /// The seq up to which a server confirms storage, if this is such a confirmation.
    pub fn confirmed_seq(&self) -> Option<u64> {
        if !self.accepted {
            return None;
        }
        self.correlation_id.strip_prefix(ACK_SEQ_PREFIX)?.parse().ok()
    }

    fn into_proto(self) -> proto::Ack {
        proto::Ack {
            correlation_id: self.correlation_id,
            accepted: self.accepted,
            reason: self.reason,
        }
    }

    fn from_proto(ack: proto::Ack) -> Self {
        Self { correlation_id: ack.correlation_id, accepted: ack.accepted, reason: ack.reason }
    }
}

/// An agent's message as the bytes of one frame.
pub fn encode_agent(header: Header, message: AgentMessage) -> Vec<u8> {
    envelope(header, message.into_payload()).encode_to_vec()
}

/// A server's message as the bytes of one frame.
pub fn encode_server(header: Header, message: ServerMessage) -> Vec<u8> {
    envelope(header, message.into_payload()).encode_to_vec()
}

/// Reads what a server sent. A payload this version does not know is [`ServerMessage::Unknown`].
///
/// # Errors
/// When the bytes are not an Envelope, or one with lists beyond all measure.
pub fn decode_server(bytes: &[u8]) -> Result<(Header, ServerMessage), WireError> {
    let (header, payload) = open(bytes)?;
    Ok((header, ServerMessage::from_payload(payload)))
}

/// Reads what an agent sent. A payload this version does not know is [`AgentMessage::Unknown`].
///
/// # Errors
/// When the bytes are not an Envelope, or one with lists beyond all measure.
pub fn decode_agent(bytes: &[u8]) -> Result<(Header, AgentMessage), WireError> {
    let (header, payload) = open(bytes)?;
    Ok((header, AgentMessage::from_payload(payload)))
}

/// Puts `seq`, `ts_ms` and `entry_id` on an envelope that was stored without them.
pub fn stamp(stored: &[u8], seq: u64, ts_ms: u64, entry_id: u64) -> Vec<u8> {
    let head = proto::Envelope { seq, ts_ms, entry_id, ..Default::default() };
    let mut bytes = Vec::with_capacity(head.encoded_len() + stored.len());
    bytes.extend_from_slice(&head.encode_to_vec());
    bytes.extend_from_slice(stored);
    bytes
}

fn envelope(header: Header, payload: Option<proto::envelope::Payload>) -> proto::Envelope {
    proto::Envelope {
        seq: header.seq,
        ts_ms: header.ts_ms,
        correlation_id: header.correlation_id,
        entry_id: header.entry_id,
        payload,
    }
}

fn open(bytes: &[u8]) -> Result<(Header, Option<proto::envelope::Payload>), WireError> {
    if !bounds::fits(bytes) {
        return Err(WireError::TooMany);
    }
    let envelope = proto::Envelope::decode(bytes).map_err(WireError::Decode)?;
    let header = Header {
        seq: envelope.seq,
        ts_ms: envelope.ts_ms,
        correlation_id: envelope.correlation_id,
        entry_id: envelope.entry_id,
    };
    Ok((header, envelope.payload))
}

#[cfg(test)]
mod tests;
