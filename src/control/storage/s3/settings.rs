//! Where a bucket is: from the file of `up`, or as one text.
//!
//! ```text
//! s3://BUCKET/PREFIX?region=eu-west-1&endpoint=https://s3.example.com&path_style=true
//! ```
//! The text never holds a key, only a reference to one (`access_key=env:NAME`, `secret_key=file:/path`); without it
//! they come from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if it is set, `AWS_SESSION_TOKEN`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ureq::http::Uri;

use crate::pipeline::UrlPolicy;
use crate::secret::Secret;

/// Region unless another is named.
pub const REGION: &str = "us-east-1";
const SCHEME: &str = "s3://";
const WORD_MAX: usize = 255;

/// A bucket, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// `https://HOST[:PORT]`.
    pub endpoint: String,
    /// The bucket's name.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// Empty, or a path that ends with `/`.
    pub prefix: String,
    /// Whether the bucket stands in the path and not in the host.
    pub path_style: bool,
    /// Plain HTTP to another machine is wanted.
    pub insecure_http: bool,
    /// A trust root of its own, PEM.
    pub ca_file: Option<PathBuf>,
    /// Reference to the access key's id.
    pub access_key: Secret,
    /// Reference to the secret key.
    pub secret_key: Secret,
    /// Reference to the token of temporary keys.
    pub session_token: Option<Secret>,
}

/// What the file or the text says, not yet checked.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    /// See [`S3Settings`], as the others.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// The region.
    pub region: Option<String>,
    /// The prefix.
    pub prefix: Option<String>,
    /// The style.
    pub path_style: Option<bool>,
    /// Whether plain HTTP is wanted.
    pub insecure_http: bool,
    /// The trust root.
    pub ca_file: Option<PathBuf>,
    /// The access key.
    pub access_key: Secret,
    /// The secret key.
    pub secret_key: Secret,
    /// The token.
    pub session_token: Option<Secret>,
}

/// A setting that is wrong: its key, and why.
pub type Wrong = (&'static str, String);

impl Raw {
    /// Checks everything and fills in what is missing.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(self) -> Result<S3Settings, Vec<Wrong>> {
        let mut wrong: Vec<Wrong> = Vec::new();
        let mut note = |key, why: &str| wrong.push((key, format!("`{key}` {why}")));
        let region = self.region.unwrap_or_else(|| REGION.to_owned());
        if !is_word(&region, "-_") {
            note("region", "is a word such as \"eu-west-1\"");
        }
        if !is_word(&self.bucket, "-_.") {
            note("bucket", "is a name of letters, digits, '-', '.' and '_'");
        }
        let prefix = match self.prefix.as_deref().map(prefix) {
            None => String::new(),
            Some(Some(prefix)) => prefix,
            Some(None) => {
                note(
                    "prefix",
                    "is a path of letters, digits, '-', '.' and '_', such as \"backups/web1\"",
                );
                String::new()
            }
        };
        let named = self.endpoint.is_some();
        let endpoint =
            self.endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let endpoint = match check_endpoint(&endpoint, self.insecure_http) {
            Ok(endpoint) => endpoint,
            Err(why) => {
                note("endpoint", &why);
                String::new()
            }
        };
        for (key, reference) in
            [("access_key", Some(&self.access_key)), ("secret_key", Some(&self.secret_key))]
        {
            if let Some(Err(why)) = reference.map(check_reference) {
                note(key, why);
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        // A name with a dot fits no certificate of the service.
        let path_style = self.path_style.unwrap_or(named || self.bucket.contains('.'));
        Ok(S3Settings {
            endpoint,
            bucket: self.bucket,
            region,
            prefix,
            path_style,
            insecure_http: self.insecure_http,
            ca_file: self.ca_file,
            access_key: self.access_key,
            secret_key: self.secret_key,
            session_token: self.session_token,
        })
    }
}

impl S3Settings {
    /// Whether a text means a bucket.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads the text form; `env` tells whether there is a session token.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).ok_or("does not begin with s3://")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let mut raw = Raw {
            bucket: bucket.to_owned(),
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
            access_key: Secret::new("env:AWS_ACCESS_KEY_ID"),
            secret_key: Secret::new("env:AWS_SECRET_ACCESS_KEY"),
            ..Raw::default()
        };
        let mut own_keys = false;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or("has a parameter without a value")?;
            let value = decode(value).ok_or("has a broken %-escape")?;
            let flag = || match value.as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(format!("has a {key} that is neither true nor false")),
            };
            match key {
                "endpoint" => raw.endpoint = Some(value),
                "region" => raw.region = Some(value),
                "path_style" => raw.path_style = Some(flag()?),
                "insecure_http" => raw.insecure_http = flag()?,
                "ca_file" => raw.ca_file = Some(value.into()),
                "access_key" | "secret_key" => {
                    if !value.starts_with("env:") && !value.starts_with("file:") {
                        return Err(format!(
                            "must not hold a key: {key} is env:NAME or file:/path here"
                        ));
                    }
                    own_keys = true;
                    let to =
                        if key == "access_key" { &mut raw.access_key } else { &mut raw.secret_key };
                    *to = Secret::new(value);
                }
                _ => {
                    return Err(
                        "has an unknown parameter; known are endpoint, region, path_style, insecure_http, \
                         ca_file, access_key and secret_key"
                            .to_owned(),
                    );
                }
            }
        }
        let token = "AWS_SESSION_TOKEN";
        if !own_keys && env(token).is_some_and(|token| !token.is_empty()) {
            raw.session_token = Some(Secret::new(format!("env:{token}")));
        }
        raw.check()
            .map_err(|wrong| wrong.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; "))
    }

    /// The text form. A key that is written out in the file is not in it.
    pub fn to_text(&self) -> String {
        let mut text = format!("{SCHEME}{}", self.bucket);
        if !self.prefix.is_empty() {
            text.push('/');
            text.push_str(self.prefix.trim_end_matches('/'));
        }
        let mut pairs = vec![
            ("endpoint", self.endpoint.clone()),
            ("region", self.region.clone()),
            ("path_style", self.path_style.to_string()),
        ];
        if self.insecure_http {
            pairs.push(("insecure_http", "true".to_owned()));
        }
        if let Some(file) = &self.ca_file {
            pairs.push(("ca_file", file.display().to_string()));
        }
        let keys = [("access_key", &self.access_key), ("secret_key", &self.secret_key)];
        for (key, reference) in keys {
            let text = reference.expose();
            if text.starts_with("env:") || text.starts_with("file:") {
                pairs.push((key, text.to_owned()));
            }
        }
        for (number, (key, value)) in pairs.iter().enumerate() {
            text.push(if number == 0 { '?' } else { '&' });
            text.push_str(key);
            text.push('=');
            encode(value, &mut text);
        }
        text
    }

    /// Which URLs lead there.
    pub fn policy(&self) -> UrlPolicy {
        let Some(rest) = self.endpoint.strip_prefix("http://") else { return UrlPolicy::HttpsOnly };
        let with_port = if rest.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']')) {
            rest.to_owned()
        } else {
            format!("{rest}:80")
        };
        match with_port.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => UrlPolicy::Loopback(address),
            _ => UrlPolicy::AllowHttp,
        }
    }
}

impl fmt::Display for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{} at {}", self.bucket, self.prefix, self.endpoint)
    }
}

fn is_word(text: &str, also: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    text.len() <= WORD_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(fits)
}

/// A prefix without detours, ending with `/`; empty stays empty.
fn prefix(text: &str) -> Option<String> {
    let inner = text.trim_matches('/');
    if inner.is_empty() {
        return Some(String::new());
    }
    let fits = inner.len() <= WORD_MAX && inner.split('/').all(|part| is_word(part, "-_."));
    fits.then(|| format!("{inner}/"))
}

fn check_endpoint(text: &str, insecure_http: bool) -> Result<String, String> {
    let form = "is a URL such as \"https://s3.example.com\"";
    let uri: Uri = text.parse().map_err(|_| form.to_owned())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(form.to_owned());
    };
    if authority.as_str().contains('@') {
        return Err("has a user in it; keys stand in `access_key` and `secret_key`".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(
            "has a path; it is only scheme, host and port (see `bucket` and `prefix`)".into()
        );
    }
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if bare.is_empty() || !bare.chars().all(|c| c.is_ascii_alphanumeric() || "-.:_".contains(c)) {
        return Err(form.to_owned());
    }
    let local = host.eq_ignore_ascii_case("localhost");
    let loopback = local || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match scheme {
        "https" => {}
        "http" if loopback || insecure_http => {}
        "http" => {
            return Err("is not https: backups are sealed, but the signatures could be read and used on the \
                 way; if that must be, say insecure_http = true"
                .to_owned());
        }
        _ => return Err(form.to_owned()),
    }
    // One address, so that both sides mean the same when only that may be reached by http.
    let host =
        if local && scheme == "http" { Ipv4Addr::LOCALHOST.to_string() } else { host.to_owned() };
    Ok(match authority.port_u16() {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

/// Whether a reference can be followed; a literal always can.
fn check_reference(reference: &Secret) -> Result<(), &'static str> {
    let text = reference.expose();
    if let Some(name) = text.strip_prefix("env:") {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.chars().all(fits) || !name.starts_with(|c: char| !c.is_ascii_digit()) {
            return Err("needs the name of an environment variable after env:");
        }
    } else if let Some(path) = text.strip_prefix("file:")
        && !path.starts_with('/')
    {
        return Err("needs an absolute path after file:");
    }
    Ok(())
}

fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<S3Settings, String> {
        S3Settings::parse(text, &|_| None)
    }

    #[test]
    fn a_bucket_of_amazon_needs_its_name_only() {
        let aws = parse("s3://shop-backups").unwrap();
        assert_eq!(aws.endpoint, "https://s3.us-east-1.amazonaws.com");
        assert_eq!((aws.prefix.as_str(), aws.path_style), ("", false));
        assert_eq!(aws.access_key.expose(), "env:AWS_ACCESS_KEY_ID");
        assert_eq!(aws.policy(), UrlPolicy::HttpsOnly);
        let eu = parse("s3://b.c/web/1/?region=eu-west-1").unwrap();
        assert_eq!(eu.endpoint, "https://s3.eu-west-1.amazonaws.com");
        assert_eq!(
            (eu.prefix.as_str(), eu.path_style),
            ("web/1/", true),
            "dots fit no certificate"
        );
        let token = S3Settings::parse("s3://b", &|name| {
            (name == "AWS_SESSION_TOKEN").then(|| "t".to_owned())
        });
        assert!(token.unwrap().session_token.is_some());
    }

    #[test]
    fn the_text_form_comes_back_as_it_was_and_holds_no_key() {
        let text = "s3://b/p?endpoint=https%3A%2F%2Fs3.example.com:9000&region=x&path_style=false\
                    &ca_file=/etc/ca%26.pem&access_key=env:A&secret_key=file:/s%20t";
        let settings = parse(text).unwrap();
        assert_eq!(settings.secret_key.expose(), "file:/s t");
        assert_eq!(parse(&settings.to_text()).unwrap(), settings);
        let literal = S3Settings { secret_key: Secret::new("5ec7e7"), ..settings };
        assert!(!literal.to_text().contains("5ec7e7"));
        assert_eq!(
            parse(&literal.to_text()).unwrap().secret_key.expose(),
            "env:AWS_SECRET_ACCESS_KEY"
        );
        assert!(!format!("{literal:?} {literal}").contains("5ec7e7"));
    }

    #[test]
    fn http_is_for_this_machine_or_for_those_who_insist() {
        for (endpoint, policy) in [
            ("http://127.0.0.1:9000", UrlPolicy::Loopback("127.0.0.1:9000".parse().unwrap())),
            ("http://localhost:9000/", UrlPolicy::Loopback("127.0.0.1:9000".parse().unwrap())),
            ("http://[::1]", UrlPolicy::Loopback("[::1]:80".parse().unwrap())),
            ("https://127.0.0.1:9000", UrlPolicy::HttpsOnly),
        ] {
            let settings = parse(&format!("s3://b?endpoint={endpoint}")).unwrap();
            assert_eq!(settings.policy(), policy, "{endpoint}");
        }
        let lan = "s3://b?endpoint=http://minio.lan:9000";
        assert!(parse(lan).unwrap_err().contains("insecure_http"));
        let settings = parse(&format!("{lan}&insecure_http=true")).unwrap();
        assert_eq!(settings.policy(), UrlPolicy::AllowHttp);
    }

    #[test]
    fn what_is_wrong_is_said_without_repeating_keys() {
        for (text, words) in [
            ("s3://", "`bucket`"),
            ("s3://b/../c", "`prefix`"),
            ("s3://b/a//c", "`prefix`"),
            ("s3://b?endpoint=ftp://x", "`endpoint`"),
            ("s3://b?endpoint=https://u:5ec7e7@x", "has a user"),
            ("s3://b?endpoint=https://x/5ec7e7", "has a path"),
            ("s3://b?region=a/b", "`region`"),
            ("s3://b?path_style=1", "path_style"),
            ("s3://b?secret_key=5ec7e7", "must not hold a key"),
            ("s3://b?secret=5ec7e7", "unknown parameter"),
            ("s3://b?region=%zz", "escape"),
            ("s3://b?access_key=env:9x", "`access_key`"),
            ("s3://b?access_key=file:x", "`access_key`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words) && !error.contains("5ec7e7"), "{text}: {error}");
        }
    }
}
