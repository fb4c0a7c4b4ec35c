//! `GET /v1/agents/connect`: whose key it is, and the WebSocket upgrade by hand (RFC 6455 §4.2).

use std::io;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::http::{Conn, HttpError, Request, Status};
use crate::secret::Secret;

/// The keys that agents may come with. Keys are kept as MACs under a key of this process's own, so that
/// looking one up takes the same time wherever it differs.
#[derive(Debug)]
pub struct Agents {
    mac: hmac::Key,
    known: Vec<(String, hmac::Tag)>,
}

impl Agents {
    /// Agents by name with their keys.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(keys: impl IntoIterator<Item = (String, Secret)>) -> io::Result<Self> {
        let mut random = [0u8; 32];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| io::Error::other("the system has no randomness"))?;
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &random);
        let known = keys
            .into_iter()
            .map(|(name, key)| (name, hmac::sign(&mac, key.expose().as_bytes())))
            .collect();
        Ok(Self { mac, known })
    }

    /// The agent with this key. Looks at every key, whichever fits.
    pub fn find(&self, key: &str) -> Option<&str> {
        let mut found = None;
        for (name, tag) in &self.known {
            if hmac::verify(&self.mac, key.as_bytes(), tag.as_ref()).is_ok() {
                found = Some(name.as_str());
            }
        }
        found
    }

    /// The agent that sent this request.
    ///
    /// # Errors
    /// 401 without a key of ours.
    pub fn of(&self, request: &Request) -> Result<&str, HttpError> {
        request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .and_then(|key| self.find(key.trim()))
            .ok_or(HttpError::Bad(Status::UNAUTHORIZED, "this needs an agent's key"))
    }
}

/// The value of `Sec-WebSocket-Accept` for an upgrade.
///
/// # Errors
/// When the request is none, or of another version.
pub fn accept_key(request: &Request) -> Result<String, HttpError> {
    let upgrades =
        request.header_has("upgrade", "websocket") && request.header_has("connection", "upgrade");
    if !upgrades {
        return Err(HttpError::Bad(Status::UPGRADE_REQUIRED, "this speaks WebSocket only"));
    }
    if request.header("sec-websocket-version") != Some("13") {
        return Err(HttpError::Bad(Status::UPGRADE_REQUIRED, "this speaks WebSocket version 13"));
    }
    match request.header("sec-websocket-key") {
        // 16 bytes as base64.
        Some(key) if key.len() == 24 => {
            Ok(tungstenite::handshake::derive_accept_key(key.as_bytes()))
        }
        _ => Err(HttpError::Bad(Status::BAD_REQUEST, "the Sec-WebSocket-Key is missing or wrong")),
    }
}

/// Answers the upgrade and hands the connection to a session.
///
/// # Errors
/// The session's; see [`super::session::serve`].
pub fn connect(
    request: &Request,
    conn: &mut Conn,
    agents: &Agents,
    desk: &std::sync::Arc<dyn super::session::Desk>,
    timing: super::session::Timing,
) -> Result<(), HttpError> {
    let agent = agents.of(request)?;
    let accept = accept_key(request)?;
    super::session::serve(conn, &accept, agent, desk, timing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_opens() {
        let agents = Agents::new([
            ("a".to_owned(), Secret::new("bkpy_live_aaaa")),
            ("b".to_owned(), Secret::new("bkpy_live_bbbb")),
        ])
        .unwrap();
        assert_eq!(agents.find("bkpy_live_bbbb"), Some("b"));
        assert_eq!(agents.find("bkpy_live_aaaa"), Some("a"));
        for wrong in ["", "bkpy_live_bbb", "bkpy_live_bbbbb", "bkpy_live_BBBB"] {
            assert_eq!(agents.find(wrong), None, "{wrong}");
        }
    }
}
