//! A program from a URL into its [`Arrival`]: HTTPS, bounded in size and time, ended by a cancel at any moment.
//!
//! It goes the way of uploads (proxy, trust roots, no metadata services). Redirects are followed, unlike there: what comes
//! is believed for its hash and signature alone, and release pages send everybody elsewhere.

use std::io::{self, Read as _};
use std::time::Duration;

use ureq::http::{Method, Uri};

use super::arrival::Arrival;
use super::error::UpdateError;
use super::slots::MAX_PROGRAM_BYTES;
use crate::clock::Deadline;
use crate::pipeline::upload::{Ask, Caller, Download};
use crate::secret::Secret;

/// All of it, however slowly it comes.
pub const TIMEOUT: Duration = Duration::from_secs(1_800);
/// The same for a signature.
const SMALL_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_REDIRECTS: usize = 5;
/// What some servers' clients call it; no server says so itself.
const TOO_MANY_REDIRECTS: u16 = 310;
const PIECE_BYTES: usize = 64 << 10;

/// Reads the program at `url`.
///
/// # Errors
/// When it does not come whole, in time, or fits nowhere.
pub fn fetch(caller: &Caller, url: &Secret, arrival: &mut Arrival) -> Result<(), UpdateError> {
    let deadline = Deadline::after(TIMEOUT);
    let mut url = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let shown = shown(&url);
        let mut ask =
            || Ask { method: Method::GET, url: url.clone(), headers: Vec::new(), body: None };
        match caller.open(&mut ask, deadline) {
            Ok(Ok((head, body))) => {
                if let Some(length) = head.length() {
                    if length > MAX_PROGRAM_BYTES {
                        return Err(UpdateError::TooBig);
                    }
                    arrival.look_for_room(length)?;
                }
                return read(body, &shown, deadline, arrival);
            }
            Ok(Err(answer)) => {
                let status = answer.head.status;
                let location = answer.head.header("location").filter(|_| is_redirect(status));
                let next = location.and_then(|location| follow(&url, location));
                url = next.ok_or(UpdateError::Answer(shown, status))?;
            }
            Err(_) if caller.cancel().is_cancelled() => return Err(UpdateError::Stopped),
            Err(fault) => return Err(UpdateError::Download(shown, fault)),
        }
    }
    Err(UpdateError::Answer(shown(&url), TOO_MANY_REDIRECTS))
}

/// Reads a small file beside a program.
///
/// # Errors
/// When it does not come, or is larger than `most` bytes.
pub fn fetch_small(caller: &Caller, url: &Secret, most: usize) -> Result<Vec<u8>, UpdateError> {
    let deadline = Deadline::after(SMALL_TIMEOUT);
    let mut url = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut ask =
            || Ask { method: Method::GET, url: url.clone(), headers: Vec::new(), body: None };
        let answer = caller
            .ask(&mut ask, most as u64, deadline)
            .map_err(|fault| UpdateError::Download(shown(&url), fault))?;
        if answer.head.is_success() && answer.whole {
            return Ok(answer.body);
        }
        let status = answer.head.status;
        let location = answer.head.header("location").filter(|_| is_redirect(status));
        let next = location.and_then(|location| follow(&url, location));
        url = next.ok_or_else(|| UpdateError::Answer(shown(&url), status))?;
    }
    Err(UpdateError::Answer(shown(&url), TOO_MANY_REDIRECTS))
}

fn read(
    mut body: Download,
    shown: &str,
    deadline: Deadline,
    arrival: &mut Arrival,
) -> Result<(), UpdateError> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        if deadline.passed() {
            return Err(UpdateError::TooLate(shown.to_owned()));
        }
        match body.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => arrival.write(piece.get(..n).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(UpdateError::Download(shown.to_owned(), body.fault(&error))),
        }
    }
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads: a whole URL, or another path on the same host. What it may be, the caller judges.
fn follow(from: &Secret, location: &str) -> Option<Secret> {
    if location.starts_with('/') && !location.starts_with("//") {
        let from: Uri = from.expose().parse().ok()?;
        return Some(Secret::new(format!(
            "{}://{}{location}",
            from.scheme_str()?,
            from.authority()?
        )));
    }
    location.contains("://").then(|| Secret::new(location))
}

/// Without the query, which may hold a signature.
fn shown(url: &Secret) -> String {
    let text = url.expose();
    let end = text.find(['?', '#']).unwrap_or(text.len());
    crate::redact::clean(text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_a_url_or_to_another_path() {
        let from = Secret::new("https://h.example:444/a/b?sig=1");
        let to = |location| follow(&from, location).map(|url| url.expose().to_owned());
        assert_eq!(to("/c?x=1").as_deref(), Some("https://h.example:444/c?x=1"));
        assert_eq!(to("https://o.example/c").as_deref(), Some("https://o.example/c"));
        for nowhere in ["//o.example/c", "c", ""] {
            assert_eq!(to(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn the_query_is_not_shown() {
        assert_eq!(shown(&Secret::new("https://h/x?X-Amz-Signature=5")), "https://h/x");
    }
}
