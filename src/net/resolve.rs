//! Name look-up with a deadline.
//!
//! `getaddrinfo` can neither be given a deadline nor be interrupted, so it runs on a thread of its own that
//! is left behind when time is up. That is the one thread nobody joins: the resolver ends it, after its own
//! timeouts, and at most [`MAX_LOOKUPS`] of them exist.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{bounded, select};

use super::NetError;
use crate::clock::Deadline;
use crate::thread::{Cancel, Why, spawn};

/// Look-ups under way at once, those that were given up included.
const MAX_LOOKUPS: usize = 16;

/// Of these, what work that can do without may take: the link and the backups come first.
const SPARE_LOOKUPS: usize = 8;

/// Addresses tried for one name.
const MAX_ADDRESSES: usize = 16;

static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// The addresses of `host` (a name, or an IP address with or without brackets), families alternating,
/// the one the system prefers first.
///
/// # Errors
/// When the name cannot be looked up until the deadline, or the cancel comes first.
pub fn resolve(
    host: &str,
    port: u16,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<Vec<SocketAddr>, NetError> {
    resolve_within(MAX_LOOKUPS, host, port, deadline, cancel)
}

/// As [`resolve`], for work that must not take the link's and the backups' look-ups: fails at once while half of all
/// look-ups are under way.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_sparing(
    host: &str,
    port: u16,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<Vec<SocketAddr>, NetError> {
    resolve_within(SPARE_LOOKUPS, host, port, deadline, cancel)
}

fn resolve_within(
    most: usize,
    host: &str,
    port: u16,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<Vec<SocketAddr>, NetError> {
    if let Some(address) = literal(host) {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let query = (host.to_owned(), port);
    let place = Place::take(most)?;
    look_up(place, host, deadline, cancel, move || query.to_socket_addrs().map(Iterator::collect))
}

/// The address that `host` spells out, if it does.
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

fn look_up(
    place: Place,
    host: &str,
    deadline: Deadline,
    cancel: &Cancel,
    query: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>, NetError> {
    let (send, answer) = bounded(1);
    spawn("look-up", move || {
        let _place = place;
        // Nobody listens any more: the caller gave up.
        let _ = send.send(query());
    })
    .map_err(NetError::System)?;
    select! {
        recv(answer) -> found => match found {
            Ok(Ok(addresses)) if addresses.is_empty() => {
                Err(NetError::NoAddress { host: host.to_owned() })
            }
            Ok(Ok(addresses)) => Ok(alternate(addresses)),
            Ok(Err(source)) => Err(NetError::Lookup { host: host.to_owned(), source }),
            Err(_) => Err(NetError::Lookup {
                host: host.to_owned(),
                source: io::Error::other("the look-up thread died"),
            }),
        },
        recv(cancel.done()) -> _ => {
            Err(NetError::Cancelled(cancel.why().unwrap_or(Why::Requested)))
        }
        default(deadline.remaining()) => Err(NetError::LookupTimeout { host: host.to_owned() }),
    }
}

/// First the first address's family, then the other, in turn: one dead family costs one attempt.
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (ours, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let longest = ours.len().max(others.len());
    let (mut ours, mut others) = (ours.into_iter(), others.into_iter());
    (0..longest).flat_map(|_| [ours.next(), others.next()]).flatten().take(MAX_ADDRESSES).collect()
}

/// One of the [`MAX_LOOKUPS`] places.
struct Place;

impl Place {
    fn take(most: usize) -> Result<Self, NetError> {
        LOOKUPS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1))
            .map(|_| Self)
            .map_err(|_| NetError::LookupsStuck)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        LOOKUPS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn late() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    #[test]
    fn literals_need_no_resolver() {
        let cancel = Cancel::new().unwrap();
        let v6 = resolve("[::1]", 7, late(), &cancel).unwrap();
        assert_eq!(v6, ["[::1]:7".parse().unwrap()]);
        let v4 = resolve("10.1.2.3", 7, late(), &cancel).unwrap();
        assert_eq!(v4, ["10.1.2.3:7".parse().unwrap()]);
    }

    #[test]
    fn families_alternate() {
        let list = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
        let mixed = list(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        assert_eq!(alternate(mixed), list(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
    }

    #[test]
    fn a_resolver_that_hangs_is_left_behind() {
        let cancel = Cancel::new().unwrap();
        let (release, hang) = bounded::<()>(0);
        let stuck = move || {
            let _ = hang.recv();
            Ok(vec![])
        };
        let soon = Deadline::after(Duration::from_millis(30));
        let error =
            look_up(Place::take(MAX_LOOKUPS).unwrap(), "slow.example", soon, &cancel, stuck)
                .unwrap_err();
        assert!(matches!(error, NetError::LookupTimeout { .. }), "{error}");
        assert!(error.retry());
        drop(release);
    }

    #[test]
    fn a_cancel_ends_the_wait() {
        let cancel = Cancel::new().unwrap();
        let (release, hang) = bounded::<()>(0);
        let canceller = cancel.clone();
        let stuck = move || {
            canceller.cancel(Why::Shutdown);
            let _ = hang.recv();
            Ok(vec![])
        };
        let error =
            look_up(Place::take(MAX_LOOKUPS).unwrap(), "slow.example", late(), &cancel, stuck)
                .unwrap_err();
        assert!(matches!(error, NetError::Cancelled(Why::Shutdown)), "{error}");
        drop(release);
    }
}
