//! The daemon's stream of events: whether containers came, went or changed their names. What exactly happened is not
//! kept; whoever wants to know lists the containers.

use serde::Deserialize;

use super::body::Body;
use super::http::{Line, Request};
use super::objects::Objects;
use super::{Bounds, Docker, DockerError};

const DOING: &str = "following its events";
/// The daemon leaves everything else out; podman calls two of them differently.
const ACTIONS: [&str; 6] = ["start", "stop", "die", "died", "rename", "restart"];
/// So much that does not concern us is taken in one go.
const MAX_NOISE_BYTES: usize = 64 << 10;

/// What the stream brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A container came, went or was renamed.
    Containers,
    /// Nothing until the deadline.
    Nothing,
    /// A lot that was not asked for. Whoever follows should take a break.
    Noise,
    /// The daemon ended the stream.
    Ended,
}

/// The stream. Dropping it ends it.
pub struct Events<'a> {
    body: Body<'a>,
    objects: Objects,
}

impl Docker {
    /// Starts to follow; `bounds` are for the start alone.
    ///
    /// # Errors
    /// When the daemon fails.
    pub fn events<'a>(&self, bounds: Bounds<'a>) -> Result<Events<'a>, DockerError> {
        let actions = ACTIONS.map(|action| format!("%22{action}%22")).join("%2C");
        let path = format!(
            "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B{actions}%5D%7D"
        );
        let request = self.versioned(Request::get(&path));
        let body = Line::open(&self.socket, bounds, DOING)?.stream(&request)?;
        Ok(Events { body, objects: Objects::default() })
    }
}

impl<'a> Events<'a> {
    /// Waits for news until the deadline.
    ///
    /// # Errors
    /// When the connection breaks, the daemon talks nonsense, or the wait is cancelled.
    pub fn next(&mut self, bounds: Bounds<'a>) -> Result<News, DockerError> {
        self.body.within(bounds);
        let (mut noise, mut news) = (0, false);
        loop {
            let objects = &mut self.objects;
            let fed = self.body.piece(|bytes| {
                noise += bytes.len();
                objects.feed(bytes, &mut |object| {
                    news |= is_news(object);
                    true
                })
            });
            match fed {
                Ok(Some(Ok(_))) if news => return Ok(News::Containers),
                Ok(Some(Ok(_))) if noise >= MAX_NOISE_BYTES => return Ok(News::Noise),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_))) => return Err(self.body.odd("these are no events")),
                Ok(None) => return Ok(News::Ended),
                Err(DockerError::Timeout { .. }) => return Ok(News::Nothing),
                Err(error) => return Err(error),
            }
        }
    }
}

impl std::fmt::Debug for Events<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// Whether an event is one that was asked for: not everything that listens on a socket honours filters.
fn is_news(object: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(rename = "Type", default)]
        kind: Option<&'a str>,
        #[serde(rename = "Action", default)]
        action: Option<&'a str>,
        #[serde(default)]
        status: Option<&'a str>,
    }
    let Ok(event) = serde_json::from_slice::<Event<'_>>(object) else { return false };
    let action = event.action.or(event.status).unwrap_or_default();
    event.kind.is_none_or(|kind| kind == "container") && ACTIONS.contains(&action)
}
