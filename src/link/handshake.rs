//! From nothing to a session: dial, upgrade, Register, RegisterAck. One thread, two deadlines.

use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::{ClientHandshake, Request};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{AUTHORIZATION, HOST, USER_AGENT};
use tungstenite::{Bytes, Message};

use super::error::clean;
use super::read::goodbye;
use super::socket::{Wire, websocket_config};
use super::stream::Stream;
use super::{LinkConfig, LinkError, Transport};
use crate::clock::{Deadline, unix_ms};
use crate::thread::Cancel;
use crate::wire::{self, AgentMessage, CONNECT_PATH, Header, RegisterAck, ServerMessage};

/// What may be read before the request is answered.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Opens the link and registers. What the server sent behind its RegisterAck is still in the wire.
pub(super) fn open(
    config: &LinkConfig,
    seq: u64,
    cancel: &Cancel,
) -> Result<(Wire, RegisterAck), LinkError> {
    let deadline = Deadline::after(config.timing.dial);
    let stream = super::dial::dial(config, deadline, cancel)?;
    let mut wire = upgrade(stream, request(config)?, deadline, cancel)?;
    let deadline = Deadline::after(config.timing.register);
    let ack = register(&mut wire, config, seq, deadline, cancel)?;
    Ok((wire, ack))
}

fn request(config: &LinkConfig) -> Result<Request, LinkError> {
    let (authority, target) = match &config.transport {
        Transport::Remote(url) => (url.host_header(), url.target()),
        Transport::Loopback(address) => (address.to_string(), CONNECT_PATH.to_owned()),
    };
    // The scheme only has to be one of a WebSocket; TLS is beneath.
    let mut request = format!("ws://{authority}{target}")
        .into_client_request()
        .map_err(LinkError::from_websocket)?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", config.agent_key.expose()))
        .map_err(|_| LinkError::Key)?;
    bearer.set_sensitive(true);
    let host = HeaderValue::try_from(authority).map_err(|_| LinkError::HostName)?;
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, bearer);
    headers.insert(HOST, host);
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("backupy/", env!("CARGO_PKG_VERSION"))),
    );
    Ok(request)
}

fn upgrade(
    mut stream: Stream,
    request: Request,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<Wire, LinkError> {
    stream.allow(MAX_RESPONSE_BYTES);
    let mut handshake = ClientHandshake::start(stream, request, Some(websocket_config()))
        .map_err(LinkError::from_websocket)?;
    loop {
        match handshake.handshake() {
            Ok((websocket, _)) => return Ok(Wire::new(websocket)),
            Err(HandshakeError::Interrupted(middle)) => {
                let stream = middle.get_ref().get_ref();
                if stream.starved() {
                    return Err(LinkError::Protocol("its answer is too long".to_owned()));
                }
                if !stream.wait(deadline, cancel)? {
                    return Err(LinkError::HandshakeTimeout("open the WebSocket"));
                }
                handshake = middle;
            }
            Err(HandshakeError::Failure(error)) => return Err(LinkError::from_websocket(error)),
        }
    }
}

fn register(
    wire: &mut Wire,
    config: &LinkConfig,
    seq: u64,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<RegisterAck, LinkError> {
    let header = Header { seq, ts_ms: unix_ms(), ..Header::default() };
    let bytes = wire::encode_agent(header, AgentMessage::Register((config.register)()));
    wire.put(Message::Binary(Bytes::from(bytes)))?;
    while !deadline.passed() {
        // Also the pongs that were queued while reading.
        wire.flush()?;
        if let Some(frame) = wire.read()? {
            if let Some(ack) = answer(frame)? {
                return Ok(ack);
            }
        } else if !wire.holds_input() && !wire.stream().wait(deadline, cancel)? {
            break;
        }
        if cancel.is_cancelled() {
            return Err(LinkError::Stopped);
        }
    }
    Err(LinkError::HandshakeTimeout("register"))
}

/// The RegisterAck, or nothing where a frame is none of a message.
fn answer(frame: Message) -> Result<Option<RegisterAck>, LinkError> {
    match frame {
        Message::Binary(bytes) => match wire::decode_server(&bytes) {
            Ok((_, ServerMessage::RegisterAck(ack))) => Ok(Some(ack)),
            Ok((_, ServerMessage::Unknown)) => {
                log::warn!("ignored a message of an unknown kind before the RegisterAck");
                Ok(None)
            }
            Ok(_) => Err(LinkError::NotRegistered),
            Err(error) => {
                log::warn!("ignored a frame: {}", clean(&error.to_string()));
                Ok(None)
            }
        },
        Message::Text(_) => {
            log::warn!("ignored a text frame: messages are binary");
            Ok(None)
        }
        Message::Close(frame) => Err(goodbye(frame)),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
    }
}
