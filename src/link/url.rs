//! The control plane's address, checked before anything is dialled.

use std::fmt;

use tungstenite::http::Uri;

use crate::wire::CONNECT_PATH;

/// A server URL that may be dialled: `https` (or `wss`), and `http`/`ws` only where that was allowed.
///
/// `Display` and `Debug` show it without its query string.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    tls: bool,
    host: String,
    port: u16,
    path: String,
    query: Option<String>,
}

/// Why a server URL was refused. The text never contains the URL: it may hold what must not be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlError {
    /// Not a URL.
    Unparsable,
    /// Neither `https` nor `wss`.
    Scheme,
    /// `http` or `ws` without the flag that allows them.
    Insecure,
    /// No host.
    NoHost,
    /// A user or password in it.
    UserInfo,
}

impl ServerUrl {
    /// Checks a configured URL; `allow_insecure` is the insecure-dev flag.
    ///
    /// # Errors
    /// When the URL cannot or must not be dialled.
    pub fn parse(text: &str, allow_insecure: bool) -> Result<Self, UrlError> {
        let uri: Uri = text.trim().parse().map_err(|_| UrlError::Unparsable)?;
        let tls = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("https" | "wss") => true,
            Some("http" | "ws") if allow_insecure => false,
            Some("http" | "ws") => return Err(UrlError::Insecure),
            Some(_) => return Err(UrlError::Scheme),
            None => return Err(UrlError::Unparsable),
        };
        let authority = uri.authority().ok_or(UrlError::NoHost)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        if authority.host().is_empty() {
            return Err(UrlError::NoHost);
        }
        // `host:` and `host:99999` parse as a URI, with no port.
        let after_host = &authority.as_str()[authority.host().len()..];
        let port = match (authority.port_u16(), after_host) {
            (Some(port), _) if port != 0 => port,
            (None, "") => {
                if tls {
                    443
                } else {
                    80
                }
            }
            (_, _) => return Err(UrlError::Unparsable),
        };
        Ok(Self {
            tls,
            host: authority.host().to_owned(),
            port,
            path: endpoint(uri.path()),
            query: uri.query().map(str::to_owned),
        })
    }

    /// Whether it is spoken to through TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host name or address, the latter with brackets if it is IPv6.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What stands in the `Host` header.
    pub fn host_header(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        if self.port == default {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Path and query of the request.
    pub fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }
}

/// The path is a prefix; the endpoint is appended unless it is there already.
fn endpoint(path: &str) -> String {
    let prefix = path.trim_end_matches('/');
    if prefix.ends_with(CONNECT_PATH) {
        prefix.to_owned()
    } else {
        format!("{prefix}{CONNECT_PATH}")
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.host_header(), self.path)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerUrl({self})")
    }
}

impl UrlError {
    /// Whether the same thing may succeed later with nobody changing anything: never.
    pub fn retry(self) -> bool {
        false
    }
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self {
            Self::Unparsable => "it is not a URL",
            Self::Scheme => "its scheme is unknown",
            Self::Insecure => "http and ws need the insecure-dev flag (BACKUPY_DEV_ALLOW_INSECURE)",
            Self::NoHost => "it has no host",
            Self::UserInfo => "it holds a user or password",
        };
        write!(f, "failed to use the server URL: {reason}; it must be https://host[:port][/path]")
    }
}

impl std::error::Error for UrlError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, insecure: bool) -> String {
        ServerUrl::parse(text, insecure).unwrap().to_string()
    }

    #[test]
    fn the_endpoint_is_appended_once() {
        for (text, expected) in [
            ("https://c.example", "wss://c.example/v1/agents/connect"),
            ("https://c.example/", "wss://c.example/v1/agents/connect"),
            ("HTTPS://c.example:8443/base/", "wss://c.example:8443/base/v1/agents/connect"),
            ("wss://c.example/v1/agents/connect", "wss://c.example/v1/agents/connect"),
            ("https://c.example/x/v1/agents/connect/", "wss://c.example/x/v1/agents/connect"),
            ("https://[2001:db8::1]:444", "wss://[2001:db8::1]:444/v1/agents/connect"),
            ("https://c.example:443/a", "wss://c.example/a/v1/agents/connect"),
        ] {
            assert_eq!(shown(text, false), expected);
        }
    }

    #[test]
    fn the_query_is_kept_and_never_shown() {
        let url = ServerUrl::parse("https://c.example/a?token=s3cret", false).unwrap();
        assert_eq!(url.target(), "/a/v1/agents/connect?token=s3cret");
        assert!(!format!("{url} {url:?}").contains("s3cret"));
    }

    #[test]
    fn plain_needs_the_flag() {
        assert_eq!(ServerUrl::parse("http://c.example", false), Err(UrlError::Insecure));
        assert_eq!(ServerUrl::parse("ws://c.example", false), Err(UrlError::Insecure));
        assert_eq!(shown("http://c.example", true), "ws://c.example/v1/agents/connect");
        let url = ServerUrl::parse("ws://c.example:81", true).unwrap();
        assert_eq!(
            (url.is_tls(), url.port(), url.host_header().as_str()),
            (false, 81, "c.example:81")
        );
    }

    #[test]
    fn the_rest_is_refused() {
        for (text, expected) in [
            ("", UrlError::Unparsable),
            ("c.example", UrlError::Unparsable),
            ("/only/path", UrlError::Unparsable),
            ("https://", UrlError::Unparsable),
            ("https:///path", UrlError::Unparsable),
            ("https://c.example:99999", UrlError::Unparsable),
            ("https://c.example:0", UrlError::Unparsable),
            ("https://c.example:", UrlError::Unparsable),
            ("https://a b", UrlError::Unparsable),
            ("ftp://c.example", UrlError::Scheme),
            ("https://me:pw@c.example", UrlError::UserInfo),
        ] {
            let error = ServerUrl::parse(text, true).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("pw"));
        }
    }
}
