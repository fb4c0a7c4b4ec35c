//! URLs that the directory kind signs for itself: `http://127.0.0.1:PORT/objects/KEY?expires=…&max=…&sig=…`.
//!
//! `sig` is HMAC-SHA256 over method, key, expiry and size limit. The key is random per process, or derived from a
//! secret that outlives it ([`Signer::from_secret`]), so that a run that a restart interrupts can use the URL it has.

use std::fmt;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;

use super::{ObjectKey, Presigned};
use crate::secret::Secret;

/// Path under which objects are served.
pub const PATH: &str = "/objects/";

/// What a URL permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Writing.
    Put,
    /// Reading.
    Get,
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Put => "PUT",
            Self::Get => "GET",
        }
    }
}

/// A request that carried a good signature. Only [`Signer::check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    method: Method,
    key: ObjectKey,
    max_bytes: u64,
}

impl Permit {
    /// What is permitted.
    pub fn method(&self) -> Method {
        self.method
    }

    /// On which object.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Largest body of a PUT.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }
}

/// Why a request is refused: HTTP 403 in every case, so that nothing can be learnt by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Not one of our URLs.
    Form,
    /// Its time is over.
    Expired,
    /// The signature is not ours, or for something else.
    Signature,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "this is not a presigned URL",
            Self::Expired => "the presigned URL has expired",
            Self::Signature => "the signature of the presigned URL is wrong",
        })
    }
}

impl std::error::Error for Denied {}

/// Signs and checks, under one random key.
pub struct Signer(hmac::Key);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(***)")
    }
}

impl Signer {
    /// A signer with a new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new() -> std::io::Result<Self> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map(Self)
            .map_err(|_| std::io::Error::other("the system gives no random numbers"))
    }

    /// A signer whose URLs outlive the process: its key is derived from a secret that does.
    pub fn from_secret(secret: &Secret) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        let derived = hmac::sign(&root, b"backupy presigned urls v1");
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// A URL for the server at `addr`.
    pub fn sign(
        &self,
        addr: SocketAddr,
        method: Method,
        key: &ObjectKey,
        max_bytes: u64,
        expires_at_ms: u64,
    ) -> Presigned {
        let signature =
            hmac::sign(&self.0, message(method, key, max_bytes, expires_at_ms).as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature);
        let url = format!(
            "http://{addr}{PATH}{key}?expires={expires_at_ms}&max={max_bytes}&sig={signature}"
        );
        Presigned { url: Secret::new(url), expires_at_ms }
    }

    /// Checks a request: its method, and its target as it stands in the request line (path and query).
    ///
    /// # Errors
    /// See [`Denied`].
    pub fn check(&self, method: Method, target: &str, now_ms: u64) -> Result<Permit, Denied> {
        let (path, query) = target.split_once('?').ok_or(Denied::Form)?;
        let key = path.strip_prefix(PATH).ok_or(Denied::Form)?;
        let key = ObjectKey::parse(key).map_err(|_| Denied::Form)?;
        // Exactly our own three parts in our own order: there is nothing else to be lenient for.
        let mut parts = query.split('&');
        let mut part = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=');
        let (Some(expires), Some(max), Some(sig)) = (part("expires"), part("max"), part("sig"))
        else {
            return Err(Denied::Form);
        };
        if parts.next().is_some() {
            return Err(Denied::Form);
        }
        let expires_at_ms = number(expires)?;
        let max_bytes = number(max)?;
        let sig = URL_SAFE_NO_PAD.decode(sig).map_err(|_| Denied::Form)?;
        let message = message(method, &key, max_bytes, expires_at_ms);
        hmac::verify(&self.0, message.as_bytes(), &sig).map_err(|_| Denied::Signature)?;
        if now_ms >= expires_at_ms {
            return Err(Denied::Expired);
        }
        Ok(Permit { method, key, max_bytes })
    }
}

fn message(method: Method, key: &ObjectKey, max_bytes: u64, expires_at_ms: u64) -> String {
    format!("backupy url v1\n{}\n{key}\n{max_bytes}\n{expires_at_ms}", method.as_str())
}

/// Digits only: one way to write each number.
fn number(text: &str) -> Result<u64, Denied> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Denied::Form);
    }
    text.parse().map_err(|_| Denied::Form)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &Presigned) -> String {
        url.url.expose().strip_prefix("http://127.0.0.1:9").unwrap().to_owned()
    }

    #[test]
    fn the_same_secret_signs_the_same_in_another_process() {
        let addr: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let key = ObjectKey::parse("a/b.bky").unwrap();
        let signer = Signer::from_secret(&Secret::new("one"));
        let url = target(&signer.sign(addr, Method::Put, &key, 100, 5000));
        let again = Signer::from_secret(&Secret::new("one"));
        assert!(again.check(Method::Put, &url, 0).is_ok());
        let other = Signer::from_secret(&Secret::new("two"));
        assert_eq!(other.check(Method::Put, &url, 0), Err(Denied::Signature));
    }

    #[test]
    fn a_url_is_good_for_exactly_what_it_was_signed_for() {
        let signer = Signer::new().unwrap();
        let addr: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let key = ObjectKey::parse("a/b.bky").unwrap();
        let good = target(&signer.sign(addr, Method::Put, &key, 100, 5000));
        let permit = signer.check(Method::Put, &good, 4999).unwrap();
        assert_eq!((permit.method(), permit.key(), permit.max_bytes()), (Method::Put, &key, 100));
        assert_eq!(signer.check(Method::Put, &good, 5000), Err(Denied::Expired));
        assert_eq!(signer.check(Method::Get, &good, 0), Err(Denied::Signature));
        assert_eq!(Signer::new().unwrap().check(Method::Put, &good, 0), Err(Denied::Signature));
        for (from, to) in [("a/b", "a/c"), ("=100", "=101"), ("5000", "5001"), ("sig=", "sig=AA")] {
            let denied = signer.check(Method::Put, &good.replace(from, to), 0).unwrap_err();
            assert!(matches!(denied, Denied::Signature | Denied::Form), "{from}");
        }
        for (from, to) in [
            ("/objects/a/", "/objects/../"),
            ("/objects", ""),
            ("?", "&"),
            ("=100", "=+100"),
            ("max", "Max"),
            ("&sig", "&x=1&sig"),
        ] {
            assert_eq!(
                signer.check(Method::Put, &good.replace(from, to), 0),
                Err(Denied::Form),
                "{from}"
            );
        }
        assert_eq!(signer.check(Method::Put, &(good + "&x=1"), 0), Err(Denied::Form));
    }
}
