//! One request to a webhook, a bot or a ping's address: over the transport of uploads, so that proxy, trust roots,
//! deadlines and the cancel are the same. A redirect is not followed, and of an answer little is read.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ureq::http::{Method, Uri};

use super::Tools;
use super::error::DeliverError;
use crate::clock::Deadline;
use crate::config::TlsSettings;
use crate::pipeline::UrlPolicy;
use crate::pipeline::upload::{Answer, Ask, Caller, Timing, Tries};
use crate::secret::Secret;

/// Longest URL.
const URL_MAX: usize = 4096;
/// Most that is read of an answer.
const ANSWER_MAX: u64 = 64 << 10;
/// A whole try.
const TIMEOUT: Duration = Duration::from_secs(40);

/// A request with a body.
pub(super) struct Post<'a> {
    pub url: &'a Secret,
    pub insecure_http: bool,
    pub ca_file: Option<&'a Path>,
    pub headers: Vec<(Cow<'static, str>, String)>,
    pub body: &'a [u8],
}

/// The host of a URL that messages may go to.
///
/// # Errors
/// What is wrong with it, in words that follow "the URL"; it is not repeated.
pub fn check_url(url: &str, insecure_http: bool) -> Result<String, &'static str> {
    if url.len() > URL_MAX {
        return Err("is longer than 4 KiB");
    }
    let uri: Uri = url.parse().map_err(|_| "is malformed")?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("is not \"https://HOST/…\"");
    };
    if authority.as_str().contains('@') {
        return Err("has a user in it; use a header instead");
    }
    let host = authority.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.is_empty() {
        return Err("has no host");
    }
    match scheme {
        "https" => {}
        "http" if insecure_http || is_loopback(bare) => {}
        "http" => {
            return Err(
                "is plain http to another machine; whoever is on the way could read it (insecure_http = true allows it)",
            );
        }
        _ => return Err("is neither https nor http"),
    }
    Ok(host.to_owned())
}

/// Whether a host is this machine.
pub(in crate::control) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn timing() -> Timing {
    let usual = Timing::default();
    Timing {
        connect: Duration::from_secs(15),
        stall: Duration::from_secs(15),
        answer: Duration::from_secs(20),
        // The queue repeats, so that the pauses are the same for every kind of channel.
        tries: Tries { max: 1, ..usual.tries },
        ..usual
    }
}

impl Post<'_> {
    /// Sends it; the answer to a success is not read.
    ///
    /// # Errors
    /// When there is no answer, or no good one.
    pub(super) fn send(self, tools: &Tools<'_>) -> Result<(), DeliverError> {
        let host = self.host()?;
        let opened = self.caller(tools).open(&mut || self.ask(), Deadline::after(TIMEOUT));
        match opened.map_err(|fault| DeliverError::http(&host, fault))? {
            Ok(_) => Ok(()),
            Err(answer) => Err(self.refused(&host, &answer)),
        }
    }

    /// Sends it and gives the beginning of the answer, whatever it says.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn answer(&self, tools: &Tools<'_>) -> Result<(String, Answer), DeliverError> {
        let host = self.host()?;
        let asked =
            self.caller(tools).ask(&mut || self.ask(), ANSWER_MAX, Deadline::after(TIMEOUT));
        let answer = asked.map_err(|fault| DeliverError::http(&host, fault))?;
        Ok((host, answer))
    }

    fn host(&self) -> Result<String, DeliverError> {
        check_url(self.url.expose(), self.insecure_http)
            .map_err(|why| DeliverError::Setting(format!("the URL {why}")))
    }

    fn refused(&self, host: &str, answer: &Answer) -> DeliverError {
        let mut secrets = vec![self.url.expose().split_once("://").map_or("", |(_, rest)| rest)];
        secrets.extend(self.headers.iter().map(|(_, value)| value.as_str()));
        let said = String::from_utf8_lossy(&answer.body);
        DeliverError::refused(host, answer.head.status, &said, &secrets)
    }

    fn ask(&self) -> Ask<'_> {
        Ask {
            method: Method::POST,
            url: self.url.clone(),
            headers: self.headers.clone(),
            body: Some(self.body),
        }
    }

    fn caller(&self, tools: &Tools<'_>) -> Caller {
        let tls =
            TlsSettings { ca_file: self.ca_file.map(Path::to_owned), ..TlsSettings::default() };
        let (proxy, stop) = (tools.proxy.clone(), tools.stop.clone());
        Caller::new(tls, proxy, UrlPolicy::AllowHttp, timing(), stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_can_read_on_the_way() {
        assert_eq!(check_url("https://hooks.example/x?y", false), Ok("hooks.example".into()));
        for url in ["http://127.0.0.1:80/x", "http://localhost/x", "http://[::1]:9/x"] {
            assert!(check_url(url, false).is_ok(), "{url}");
        }
        for url in [
            "http://hooks.example/x",
            "http://localhost.example/x",
            "http://127.0.0.1.example/x",
            "https://u:p@hooks.example/x",
            "ftp://hooks.example/x",
            "hooks.example/x",
            "https:///x",
            "https://a b/",
            "",
        ] {
            let error = check_url(url, false).unwrap_err();
            assert!(!error.contains("hooks.example"), "{url}");
        }
        assert!(check_url("http://hooks.example/x", true).is_ok());
        assert!(check_url(&format!("https://h/{}", "x".repeat(URL_MAX)), true).is_err());
    }
}
