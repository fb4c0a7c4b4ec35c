//! Through a forward proxy: HTTP `CONNECT`, with `Proxy-Authorization: Basic` where the URL has a user.
//!
//! A host that `NO_PROXY` names is reached directly, and so is this machine itself.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::resolve::literal;
use super::{NetError, Waited, connect, wait_readable, wait_writable};
use crate::clock::Deadline;
use crate::config::ProxySettings;
use crate::secret::Secret;
use crate::thread::{Cancel, Why};

/// Largest response head that is read from a proxy.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// A TCP stream to `host`, directly or through the proxy. It is non-blocking.
///
/// # Errors
/// When the connection or the proxy fails, the deadline passes or the cancel comes.
pub fn open_tunnel(
    settings: &ProxySettings,
    host: &str,
    port: u16,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<TcpStream, NetError> {
    let Some(url) = settings.url.as_ref().filter(|_| !bypassed(&settings.bypass, host, port))
    else {
        return connect(host, port, deadline, cancel);
    };
    let proxy = Proxy::parse(url)?;
    let stream = connect(&proxy.host, proxy.port, deadline, cancel)?;
    let mut tunnel =
        Tunnel { stream, name: format!("{}:{}", proxy.host, proxy.port), deadline, cancel };
    tunnel.send(proxy.request(host, port).expose().as_bytes())?;
    tunnel.receive()?;
    Ok(tunnel.stream)
}

/// Whether a proxy's URL can be used.
///
/// # Errors
/// [`NetError::ProxyUrl`] if it cannot.
pub fn check_proxy(url: &Secret) -> Result<(), NetError> {
    Proxy::parse(url).map(drop)
}

/// Whether `host` is reached directly: the list is `NO_PROXY`'s, entries being `*`, a name (with its
/// sub-domains, a leading dot or `*.` changes nothing), an address, a network (`10.0.0.0/8`), each but `*` and networks
/// also with `:port`.
pub fn bypassed(list: &[String], host: &str, port: u16) -> bool {
    let address = literal(host);
    if host.eq_ignore_ascii_case("localhost") || address.is_some_and(|a| a.is_loopback()) {
        return true;
    }
    list.iter().map(|entry| entry.trim()).any(|entry| match address {
        _ if entry == "*" => true,
        Some(address) => address_matches(entry, address, port),
        None => name_matches(entry, host, port),
    })
}

fn name_matches(entry: &str, host: &str, port: u16) -> bool {
    let (name, only_port) = match entry.rsplit_once(':') {
        Some((name, digits)) => (name, digits.parse::<u16>().ok()),
        None => (entry, None),
    };
    let name = name.strip_prefix('*').unwrap_or(name);
    let name = name.strip_prefix('.').unwrap_or(name).to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let fits = host == name || host.strip_suffix(&name).is_some_and(|head| head.ends_with('.'));
    !name.is_empty() && fits && only_port.is_none_or(|only| only == port)
}

fn address_matches(entry: &str, address: IpAddr, port: u16) -> bool {
    if let Some((network, bits)) = entry.split_once('/') {
        return match (network.parse(), bits.parse()) {
            (Ok(network), Ok(bits)) => in_network(address, network, bits),
            _ => false,
        };
    }
    if let Some(named) = literal(entry) {
        return named == address;
    }
    entry
        .parse::<std::net::SocketAddr>()
        .is_ok_and(|named| named.ip() == address && named.port() == port)
}

fn in_network(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        _ => false,
    }
}

/// A proxy's URL, taken apart.
struct Proxy {
    host: String,
    port: u16,
    /// `user:password` in base64.
    credentials: Option<Secret>,
}

impl Proxy {
    fn parse(url: &Secret) -> Result<Self, NetError> {
        let rest = url.expose().trim();
        let rest = match rest.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(NetError::ProxyUrl),
            // `HTTPS_PROXY=proxy:3128` is common and unambiguous.
            None => rest,
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let (host, port) = split_port(place).ok_or(NetError::ProxyUrl)?;
        let credentials = user.map(basic).transpose()?;
        Ok(Self { host: host.to_owned(), port, credentials })
    }

    fn request(&self, host: &str, port: u16) -> Secret {
        let host = match literal(host) {
            Some(IpAddr::V6(address)) => format!("[{address}]"),
            Some(IpAddr::V4(_)) | None => host.to_owned(),
        };
        let mut head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
        if let Some(credentials) = &self.credentials {
            // Writing to a String cannot fail.
            let _ = write!(head, "Proxy-Authorization: Basic {}\r\n", credentials.expose());
        }
        head.push_str("\r\n");
        Secret::new(head)
    }
}

/// `host:port` or `host` (port 80), the host with brackets if it is IPv6.
fn split_port(place: &str) -> Option<(&str, u16)> {
    let sane = |host: &str| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c))
    };
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (place, 80),
    };
    (sane(host) && port != 0 && (!host.contains([':', '[', ']']) || literal(host).is_some()))
        .then_some((host, port))
}

fn basic(user: &str) -> Result<Secret, NetError> {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let mut plain = percent_decoded(name)?;
    plain.push(b':');
    plain.extend_from_slice(&percent_decoded(password)?);
    Ok(Secret::new(STANDARD.encode(&*plain)))
}

fn percent_decoded(text: &str) -> Result<Zeroizing<Vec<u8>>, NetError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() + 1));
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
            let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
            bytes.push(byte.ok_or(NetError::ProxyUrl)?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    Ok(bytes)
}

/// The conversation with the proxy.
struct Tunnel<'a> {
    stream: TcpStream,
    name: String,
    deadline: Deadline,
    cancel: &'a Cancel,
}

impl Tunnel<'_> {
    fn send(&mut self, mut bytes: &[u8]) -> Result<(), NetError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(self.broken(io::ErrorKind::WriteZero.into())),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(wait_writable(&self.stream, self.deadline, Some(self.cancel)))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
        Ok(())
    }

    /// Reads the response's head and nothing behind it: the client speaks first in a tunnel.
    fn receive(&mut self) -> Result<(), NetError> {
        let mut head = Vec::new();
        let mut chunk = [0; 1024];
        let end = loop {
            if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if head.len() >= MAX_HEAD_BYTES {
                return Err(self.odd("its answer is too long"));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.odd("it closed the connection")),
                Ok(count) => head.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(wait_readable(&self.stream, self.deadline, Some(self.cancel)))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
        };
        match status(&head) {
            Some(200..=299) if head.len() > end => Err(self.odd("it spoke before it was asked")),
            Some(200..=299) => Ok(()),
            Some(status) => Err(NetError::ProxyRefused { proxy: self.name.clone(), status }),
            None => Err(self.odd("it does not speak HTTP")),
        }
    }

    fn wait(&self, waited: io::Result<Waited>) -> Result<(), NetError> {
        match waited.map_err(NetError::System)? {
            Waited::Ready => Ok(()),
            Waited::TimedOut => Err(NetError::ProxyTimeout { proxy: self.name.clone() }),
            Waited::Cancelled => {
                Err(NetError::Cancelled(self.cancel.why().unwrap_or(Why::Requested)))
            }
        }
    }

    fn broken(&self, source: io::Error) -> NetError {
        NetError::ProxyBroken { proxy: self.name.clone(), source }
    }

    fn odd(&self, reason: &'static str) -> NetError {
        NetError::ProxyAnswer { proxy: self.name.clone(), reason }
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    words.next().filter(|digits| digits.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use super::*;

    fn late() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|&entry| entry.to_owned()).collect()
    }

    #[test]
    fn no_proxy_entries() {
        let names = list(&["example.com", ".corp", "*.lan", "one.net:8443"]);
        for (host, port, direct) in [
            ("example.com", 443, true),
            ("EXAMPLE.com", 443, true),
            ("a.b.example.com", 443, true),
            ("notexample.com", 443, false),
            ("db.corp", 443, true),
            ("nas.lan", 443, true),
            ("one.net", 8443, true),
            ("one.net", 443, false),
            ("127.0.0.1", 443, true),
            ("[::1]", 443, true),
            ("localhost", 443, true),
        ] {
            assert_eq!(bypassed(&names, host, port), direct, "{host}:{port}");
        }
        let nets = list(&["10.0.0.0/8", "192.0.2.7", "192.0.2.8:99", "fd00::/8", "0.0.0.0/x"]);
        for (host, direct) in [
            ("10.200.3.4", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("fd12::1", true),
            ("fe80::1", false),
            ("ten.example", false),
        ] {
            assert_eq!(bypassed(&nets, host, 443), direct, "{host}");
        }
        assert!(bypassed(&list(&["*"]), "any.where", 1));
        assert!(!bypassed(&list(&["", "  ", "."]), "any.where", 1));
    }

    #[test]
    fn urls() {
        let proxy = Proxy::parse(&Secret::new("http://us%40er:p%3Aw@proxy.lan:3128/")).unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.lan", 3128));
        assert_eq!(proxy.credentials.unwrap().expose(), STANDARD.encode("us@er:p:w"));
        let proxy = Proxy::parse(&Secret::new("[::1]:8080")).unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("[::1]", 8080));
        assert_eq!(Proxy::parse(&Secret::new("http://[::1]")).unwrap().port, 80);
        for bad in [
            "https://p:1",
            "socks5://p:1",
            "http://",
            "http://p:0",
            "http://p:99999",
            "http://a b:1",
            "http://p:1/x",
            "http://u%zz@p:1",
            "http://a:b:1",
        ] {
            let error = check_proxy(&Secret::new(bad)).unwrap_err();
            assert!(matches!(error, NetError::ProxyUrl), "{bad}: {error}");
            assert!(!error.to_string().contains("zz"), "{error}");
        }
    }

    #[test]
    fn ipv6_is_bracketed_in_the_request() {
        let proxy = Proxy::parse(&Secret::new("p:1")).unwrap();
        let request = proxy.request("::2", 443);
        assert!(request.expose().starts_with("CONNECT [::2]:443 HTTP/1.1\r\nHost: [::2]:443\r\n"));
    }

    /// A proxy that reads one head, answers `answer` and returns what it read.
    fn proxy(answer: &'static [u8]) -> (ProxySettings, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://me:s3cret@{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            // Kept open until the client is done with it.
            let _ = stream.read(&mut [0]);
            String::from_utf8(head).unwrap()
        });
        (ProxySettings { url: Some(Secret::new(url)), bypass: vec![] }, thread)
    }

    #[test]
    fn a_tunnel_is_opened_with_credentials() {
        let (settings, thread) = proxy(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n");
        let cancel = Cancel::new().unwrap();
        let stream = open_tunnel(&settings, "far.example", 443, late(), &cancel).unwrap();
        drop(stream);
        let head = thread.join().unwrap();
        assert!(head.starts_with("CONNECT far.example:443 HTTP/1.1\r\n"), "{head}");
        let expected = format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode("me:s3cret"));
        assert!(head.contains(&expected), "{head}");
    }

    #[test]
    fn refusals_are_told_without_the_password() {
        let answers: [(&[u8], bool, &str); 5] = [
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", false, "407"),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", false, "403"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", true, "502"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", true, "does not speak HTTP"),
            (b"HTTP/1.1 200 OK\r\n\r\nhello", true, "before it was asked"),
        ];
        for (answer, retry, part) in answers {
            let (settings, thread) = proxy(answer);
            let cancel = Cancel::new().unwrap();
            let error = open_tunnel(&settings, "far.example", 443, late(), &cancel).unwrap_err();
            thread.join().unwrap();
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
            assert_eq!(error.retry(), retry, "{error}");
        }
    }

    #[test]
    fn an_endless_head_and_silence_end() {
        static LONG: [u8; 9000] = [b'a'; 9000];
        let (settings, thread) = proxy(&LONG);
        let cancel = Cancel::new().unwrap();
        let error = open_tunnel(&settings, "far.example", 443, late(), &cancel).unwrap_err();
        thread.join().unwrap();
        assert!(error.to_string().contains("too long"), "{error}");

        let (settings, thread) = proxy(b"");
        let soon = Deadline::after(Duration::from_millis(80));
        let error = open_tunnel(&settings, "far.example", 443, soon, &cancel).unwrap_err();
        thread.join().unwrap();
        assert!(matches!(error, NetError::ProxyTimeout { .. }), "{error}");
    }

    #[test]
    fn a_bypassed_host_is_reached_directly() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Secret::new("http://127.0.0.1:1");
        let settings = ProxySettings { url: Some(url), bypass: vec![] };
        let cancel = Cancel::new().unwrap();
        let port = listener.local_addr().unwrap().port();
        open_tunnel(&settings, "127.0.0.1", port, late(), &cancel).unwrap();
    }
}
