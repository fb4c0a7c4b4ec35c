//! The rules for presigned URLs, and what of one may be shown.

use std::net::IpAddr;

use ureq::http::Uri;

use super::{Fault, UrlPolicy};
use crate::secret::Secret;

/// Most of a path that is shown.
const SHOWN_PATH: usize = 200;

/// Where an upload goes. No `Debug`: the URI's query is a secret.
pub(super) struct Destination {
    pub(super) uri: Uri,
    /// Scheme, host and path, for messages.
    pub(super) shown: String,
    pub(super) tls: bool,
    /// Never through a proxy.
    pub(super) direct: bool,
}

impl Destination {
    pub(super) fn parse(url: &Secret, policy: UrlPolicy) -> Result<Self, Fault> {
        let bad = |problem| Err(Fault::Url { problem });
        if url.is_empty() {
            return bad("is missing");
        }
        // Its error could repeat the URL.
        let Ok(uri) = url.expose().parse::<Uri>() else { return bad("is malformed") };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return bad("has no scheme or no host");
        };
        if authority.as_str().contains('@') {
            return bad("has a user in it, which no presigned URL has");
        }
        if authority.host().is_empty() || authority.host() == "[]" {
            return bad("has no host");
        }
        let loopback = match policy {
            UrlPolicy::Loopback(address) => {
                let ip = bare_host(authority.host()).parse::<IpAddr>();
                ip == Ok(address.ip()) && authority.port_u16().unwrap_or(80) == address.port()
            }
            UrlPolicy::HttpsOnly | UrlPolicy::AllowHttp => false,
        };
        let tls = match scheme {
            "https" => true,
            "http" if loopback || policy == UrlPolicy::AllowHttp => false,
            "http" => return bad("is not https, and http is not allowed here"),
            _ => return bad("is neither https nor http"),
        };
        let path: String =
            uri.path().chars().filter(|c| !c.is_control()).take(SHOWN_PATH).collect();
        let shown = format!("{scheme}://{authority}{path}");
        Ok(Self { shown, tls, direct: loopback && !tls, uri })
    }
}

/// A host without the brackets of an IPv6 address.
pub(super) fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, policy: UrlPolicy) -> Result<Destination, Fault> {
        Destination::parse(&Secret::new(url), policy)
    }

    #[test]
    fn schemes_follow_the_policy() {
        let loopback = UrlPolicy::Loopback("127.0.0.1:8080".parse().unwrap());
        let cases = [
            ("https://s3.example/b/k?X-Amz-Signature=1", UrlPolicy::HttpsOnly, true),
            ("http://s3.example/b/k", UrlPolicy::HttpsOnly, false),
            ("http://s3.example/b/k", UrlPolicy::AllowHttp, true),
            ("https://s3.example/b/k", loopback, true),
            ("http://127.0.0.1:8080/k?sig=1", loopback, true),
            ("http://127.0.0.1:8081/k", loopback, false),
            ("http://127.0.0.1/k", loopback, false),
            ("http://localhost:8080/k", loopback, false),
            ("http://127.0.0.1.evil.example:8080/k", loopback, false),
            ("ftp://s3.example/b/k", UrlPolicy::AllowHttp, false),
            ("file:///etc/passwd", UrlPolicy::AllowHttp, false),
            ("/b/k", UrlPolicy::AllowHttp, false),
            ("", UrlPolicy::AllowHttp, false),
            ("https://", UrlPolicy::AllowHttp, false),
            ("https://s3.example/a b", UrlPolicy::AllowHttp, false),
            ("https://user:word@s3.example/k", UrlPolicy::AllowHttp, false),
            ("https://s3.example\r\nx: y/k", UrlPolicy::AllowHttp, false),
        ];
        for (url, policy, allowed) in cases {
            let result = parse(url, policy);
            assert_eq!(result.is_ok(), allowed, "{url} {policy}");
            if let Err(fault) = result {
                assert!(!fault.retry());
                assert!(!fault.to_string().contains("word"), "{fault}");
            }
        }
        let six = UrlPolicy::Loopback("[::1]:8080".parse().unwrap());
        assert!(parse("http://[::1]:8080/k", six).unwrap().direct);
    }

    #[test]
    fn the_query_is_not_shown() {
        let found =
            parse("https://h.example:444/bucket/key?X-Amz-Signature=5ec7e7", UrlPolicy::HttpsOnly);
        assert_eq!(found.unwrap().shown, "https://h.example:444/bucket/key");
    }
}
