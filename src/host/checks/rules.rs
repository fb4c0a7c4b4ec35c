//! Where a check goes, and whether this host lets it.
//!
//! A control plane elsewhere is not trusted with the host: where `BACKUPY_ALLOW_CHECKS` is set, a check (and every
//! redirect) must go to a host in it, named or by all its addresses; link-local and metadata addresses must be
//! spelled out there. Names are judged by the addresses that are connected to. The local file may name anything.

use std::net::{IpAddr, SocketAddr};

use ureq::http::Uri;

use super::fault::Fault;
use crate::config::HostPolicy;
use crate::drivers::address::forbidden;
use crate::model::{CheckKind, Trust};

/// Longest target, in bytes.
const MAX_TARGET: usize = 2 << 10;

/// A parsed target. No `Debug`: user and query are secrets.
#[derive(Clone)]
pub(super) struct Place {
    /// Without brackets.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// For HTTP: without user and fragment.
    pub uri: Option<Uri>,
    /// For HTTP: `user:password`, decoded.
    pub user: Option<Vec<u8>>,
}

impl Place {
    /// Reads a check's target: `host:port`, or a URL.
    pub fn parse(kind: CheckKind, target: &str) -> Result<Self, Fault> {
        if target.len() > MAX_TARGET {
            return Err(Fault::Target("is longer than 2 KiB"));
        }
        let target = target.trim();
        let default = match kind {
            CheckKind::Tcp => return Self::tcp(target.strip_prefix("tcp://").unwrap_or(target)),
            CheckKind::Http => "http",
            CheckKind::Https => "https",
            CheckKind::Unknown(_) => return Err(Fault::Kind),
        };
        let url = if target.contains("://") {
            target.to_owned()
        } else {
            format!("{default}://{target}")
        };
        let place = Self::url(&url)?;
        if kind == CheckKind::Https && !place.tls {
            return Err(Fault::Target("is an http URL, and the check is to be HTTPS"));
        }
        Ok(place)
    }

    fn tcp(target: &str) -> Result<Self, Fault> {
        let (host, port) =
            target.rsplit_once(':').ok_or(Fault::Target("has no port: host:port is wanted"))?;
        let port = port.parse().map_err(|_| Fault::Target("has no port that is a number"))?;
        let bare = bare(host);
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:%".contains(c);
        if port == 0 || bare.is_empty() || !bare.chars().all(fits) {
            return Err(Fault::Target("is not host:port"));
        }
        Ok(Self { host: bare.to_owned(), port, tls: false, uri: None, user: None })
    }

    /// Reads the URL of a check or of a redirect.
    pub fn url(url: &str) -> Result<Self, Fault> {
        let url = url.split('#').next().unwrap_or_default();
        let (scheme, rest) = url.split_once("://").ok_or(Fault::Target("is no URL"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(Fault::Target("is neither http nor https")),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(decode(user)), authority),
            None => (None, authority),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let scheme = if tls { "https" } else { "http" };
        // Its own error could repeat the URL.
        let uri: Uri = format!("{scheme}://{authority}{slash}{path}")
            .parse()
            .map_err(|_| Fault::Target("is malformed"))?;
        let host = bare(uri.host().unwrap_or_default()).to_owned();
        if host.is_empty() {
            return Err(Fault::Target("has no host"));
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { host, port, tls, uri: Some(uri), user })
    }

    /// Where a `Location` leads from here. Who is known here is known there only if it is the same place.
    pub fn follow(&self, location: &str) -> Result<Self, Fault> {
        let scheme = if self.tls { "https" } else { "http" };
        let authority = self.uri.as_ref().and_then(Uri::authority).map_or("", |a| a.as_str());
        let path = self.uri.as_ref().map_or("/", Uri::path);
        // A scheme stands before anything that could be part of a path or a query.
        let absolute = location.find("://").is_some_and(|at| !location[..at].contains(['/', '?']));
        let url = if absolute {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else if location.starts_with('?') {
            format!("{scheme}://{authority}{path}{location}")
        } else {
            let parent = path.rfind('/').map_or("/", |at| &path[..=at]);
            format!("{scheme}://{authority}{parent}{location}")
        };
        let mut next = Self::url(&url).map_err(|_| Fault::Location)?;
        let same = (&next.host, next.port, next.tls) == (&self.host, self.port, self.tls);
        next.user = self.user.clone().filter(|_| same);
        Ok(next)
    }
}

/// What the host lets checks reach.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// Anything goes.
    anything: bool,
    /// Hosts with or without a port; `None` = any.
    allowed: Option<Vec<(String, Option<u16>)>>,
}

impl Rules {
    pub fn new(policy: &HostPolicy) -> Self {
        let entries = policy.allow_checks.as_ref();
        Self {
            anything: policy.trust == Trust::Local,
            allowed: entries.map(|list| list.iter().map(|text| entry(text)).collect()),
        }
    }

    /// Whether these addresses of `host` may be connected to; all of them must.
    pub fn judge(&self, host: &str, addresses: &[SocketAddr]) -> Result<(), Fault> {
        if self.anything {
            return Ok(());
        }
        let port = addresses.first().map_or(0, SocketAddr::port);
        let named = self.lists(host, port);
        for address in addresses {
            let listed = self.lists(&address.ip().to_canonical().to_string(), port);
            if forbidden(address.ip()) && !listed {
                return Err(Fault::Forbidden);
            }
            if self.allowed.is_some() && !named && !listed {
                return Err(Fault::NotAllowed { host: host.to_owned(), port });
            }
        }
        Ok(())
    }

    fn lists(&self, host: &str, port: u16) -> bool {
        let host = plain(host);
        let fits = |(name, only): &(String, Option<u16>)| {
            *name == host && only.is_none_or(|only| only == port)
        };
        self.allowed.as_ref().is_some_and(|list| list.iter().any(fits))
    }
}

/// `host`, `host:port`, `1.2.3.4`, `::1`, `[::1]:80`.
fn entry(text: &str) -> (String, Option<u16>) {
    let text = text.trim();
    if bare(text).parse::<IpAddr>().is_ok() {
        return (plain(bare(text)), None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (plain(bare(host)), port.parse().ok()),
        _ => (plain(text), None),
    }
}

/// One spelling for a name or an address.
fn plain(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    }
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Undoes `%41`; what is no such escape stays.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allowed: Option<&[&str]>) -> Rules {
        let list = allowed.map(|list| list.iter().map(|text| entry(text)).collect());
        Rules { anything: false, allowed: list }
    }

    fn ok(rules: &Rules, host: &str, address: &str) -> bool {
        rules.judge(host, &[address.parse().unwrap()]).is_ok()
    }

    #[test]
    fn metadata_is_refused_whatever_it_is_called() {
        let open = rules(None);
        assert!(ok(&open, "a.example", "10.0.0.1:80"));
        assert!(!ok(&open, "a.example", "169.254.169.254:80"));
        assert!(!ok(&open, "a.example", "[::ffff:169.254.169.254]:80"));
        let listed = rules(Some(&["a.example"]));
        assert!(!ok(&listed, "a.example", "169.254.169.254:80"), "a name can mean anything");
        assert!(ok(&rules(Some(&["169.254.1.1"])), "a.example", "169.254.1.1:80"));
        assert!(ok(&Rules { anything: true, allowed: None }, "a", "169.254.169.254:80"));
        let both = ["10.0.0.1:80".parse().unwrap(), "169.254.169.254:80".parse().unwrap()];
        assert!(open.judge("a", &both).is_err(), "any of them may be connected to");
    }

    #[test]
    fn the_list_is_kept() {
        let listed = rules(Some(&["Shop.example", "db.example:5432", "10.0.0.7", "[::1]:81"]));
        for (host, address, allowed) in [
            ("shop.example.", "1.1.1.1:443", true),
            ("evil.example", "1.1.1.1:443", false),
            ("xshop.example", "1.1.1.1:443", false),
            ("db.example", "1.1.1.1:5432", true),
            ("db.example", "1.1.1.1:22", false),
            ("10.0.0.7", "10.0.0.7:22", true),
            ("evil.example", "10.0.0.7:22", true),
            ("10.0.0.70", "10.0.0.70:22", false),
            ("::1", "[::1]:81", true),
            ("::1", "[::1]:82", false),
        ] {
            assert_eq!(ok(&listed, host, address), allowed, "{host} {address}");
        }
        assert!(!ok(&rules(Some(&[])), "a", "1.1.1.1:1"), "an empty list allows nothing");
    }

    #[test]
    fn targets() {
        let parse = |kind, target| {
            Place::parse(kind, target).map(|place| {
                let uri = place.uri.map(|uri| uri.to_string()).unwrap_or_default();
                format!("{} {} {} {uri}", place.host, place.port, place.tls)
            })
        };
        let good = [
            (CheckKind::Tcp, "db.example:5432", "db.example 5432 false "),
            (CheckKind::Tcp, "tcp://[::1]:5432", "::1 5432 false "),
            (CheckKind::Http, "a.example", "a.example 80 false http://a.example/"),
            (CheckKind::Http, "https://a/x?y#z", "a 443 true https://a/x?y"),
            (CheckKind::Https, "a:444?q=1", "a 444 true https://a:444/?q=1"),
            (CheckKind::Https, "https://u:p%40w@[::1]/", "::1 443 true https://[::1]/"),
        ];
        for (kind, target, expected) in good {
            assert_eq!(parse(kind, target).ok().as_deref(), Some(expected), "{target}");
        }
        let bad = [
            (CheckKind::Tcp, "db.example"),
            (CheckKind::Tcp, "a b:1"),
            (CheckKind::Tcp, "a:0"),
            (CheckKind::Tcp, ":5"),
            (CheckKind::Http, "ftp://a/"),
            (CheckKind::Http, "http:///x"),
            (CheckKind::Http, "a\r\nx: y"),
            (CheckKind::Https, "http://a/"),
            (CheckKind::Unknown(9), "http://a/"),
        ];
        for (kind, target) in bad {
            assert!(parse(kind, target).is_err(), "{target}");
        }
        assert!(parse(CheckKind::Http, &"x".repeat(3000)).is_err());
    }

    #[test]
    fn a_user_is_told_to_nobody_else() {
        let place = Place::url("https://u:p%40w@a.example/b/c?d").unwrap();
        assert_eq!(place.user.as_deref(), Some(&b"u:p@w"[..]));
        for (location, uri, known) in [
            ("/x", "https://a.example/x", true),
            ("x?u=http://e/", "https://a.example/b/x?u=http://e/", true),
            ("?e", "https://a.example/b/c?e", true),
            ("https://a.example:443/y", "https://a.example:443/y", true),
            ("http://a.example/y", "http://a.example/y", false),
            ("//evil.example/y", "https://evil.example/y", false),
        ] {
            let next = place.follow(location).ok().unwrap();
            assert_eq!(next.uri.unwrap().to_string(), uri);
            assert_eq!(next.user.is_some(), known, "{location}");
        }
        assert!(place.follow("gopher://a/").is_err());
    }
}
