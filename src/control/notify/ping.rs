//! Pings as healthchecks.io takes them: a monitor elsewhere that raises the alarm when it hears nothing, and so the one
//! channel that still works when this machine does not.
//!
//! | what | where | body |
//! |---|---|---|
//! | a run begins to work | `URL/start` | |
//! | a run is stored | `URL` | what was stored |
//! | a run failed, or could not begin | `URL/fail` | the error |
//! | `notify-test` | `URL/log` | which changes nothing there |

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::event::{Kind, Message};
use super::http::Post;
use super::{DeliverError, Tools};
use crate::secret::Secret;

/// The URLs (or references to them) by backup.
pub type Pings = BTreeMap<String, Secret>;

pub(super) fn deliver(
    urls: &Pings,
    message: &Message,
    tools: &Tools<'_>,
) -> Result<(), DeliverError> {
    let Some(url) = urls.get(&message.what.name) else { return Ok(()) };
    let url = Secret::new(at(tools.secret(url)?.expose(), message.kind()));
    let body = match message.kind() {
        Kind::Started => String::new(),
        _ => message.text(),
    };
    let headers = vec![(Cow::Borrowed("content-type"), "text/plain; charset=utf-8".to_owned())];
    let (insecure_http, ca_file) = (false, None);
    Post { url: &url, insecure_http, ca_file, headers, body: body.as_bytes() }.send(tools)
}

/// The address for a kind of message: the last part of the path, before any query.
fn at(url: &str, kind: Kind) -> String {
    let end = match kind {
        Kind::Started => "/start",
        Kind::Succeeded => "",
        Kind::Test => "/log",
        _ => "/fail",
    };
    let (base, query) = match url.find('?') {
        Some(at) => url.split_at(at),
        None => (url, ""),
    };
    format!("{}{end}{query}", base.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_says_what_happened() {
        let url = "https://hc.example/uuid/";
        assert_eq!(at(url, Kind::Started), "https://hc.example/uuid/start");
        assert_eq!(at(url, Kind::Succeeded), "https://hc.example/uuid");
        assert_eq!(at(url, Kind::Failed), "https://hc.example/uuid/fail");
        assert_eq!(at(url, Kind::Missed), "https://hc.example/uuid/fail");
        assert_eq!(
            at("https://hc.example/u?create=1", Kind::Test),
            "https://hc.example/u/log?create=1"
        );
    }
}
