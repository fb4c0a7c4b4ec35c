//! What an answer other than 2xx means for whoever runs the bucket. Pure.

use super::error::S3Fault;
use super::xml::walk;

/// Signatures are good for so long after the time in them; stores allow about as much.
const SKEW_MS: u64 = 5 * 60_000;
/// Longest code, region or host that is taken from an answer.
const MAX_WORD: usize = 100;

/// The parts of a refusal that matter.
#[derive(Debug, Default, Clone)]
pub(super) struct Refusal<'a> {
    /// HTTP status.
    pub status: u16,
    /// The body; empty for HEAD.
    pub body: &'a [u8],
    /// `Date`.
    pub date: Option<&'a str>,
    /// `x-amz-bucket-region`.
    pub region: Option<&'a str>,
    /// `Location`.
    pub location: Option<&'a str>,
}

/// What a refusal says in S3's own XML, as far as it is harmless to repeat.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    code: String,
    message: String,
    region: String,
    endpoint: String,
}

/// The fault that a refusal stands for.
pub(super) fn fault(refusal: &Refusal<'_>, now_ms: u64) -> S3Fault {
    let said = read(refusal.body);
    let code = said.code.as_str();
    let status = refusal.status;
    let there_ms = refusal.date.and_then(date_ms).unwrap_or(0);
    let skew = S3Fault::Skew { here_ms: now_ms, there_ms };
    // A signature of this very moment is refused: a clock that is far off explains it, whatever the code.
    if matches!(status, 400 | 401 | 403)
        && there_ms != 0
        && there_ms.abs_diff(now_ms) > SKEW_MS
        && !matches!(code, "InvalidAccessKeyId" | "NoSuchBucket")
    {
        return skew;
    }
    let region = if said.region.is_empty() {
        refusal.region.map(word).unwrap_or_default()
    } else {
        said.region.clone()
    };
    match code {
        "RequestTimeTooSkewed" | "RequestExpired" | "ExpiredPresignedUrlRequest" => skew,
        "AccessDenied" if is_about_time(&said.message) => skew,
        "InvalidAccessKeyId" => S3Fault::UnknownKey,
        "SignatureDoesNotMatch" => S3Fault::WrongSecret,
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => S3Fault::Token,
        "NoSuchBucket" => S3Fault::NoBucket,
        "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError"
            if !region.is_empty() =>
        {
            S3Fault::Region { right: region }
        }
        "PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException"
            if !region.is_empty() =>
        {
            S3Fault::Region { right: region }
        }
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => S3Fault::Denied,
        _ => match status {
            300..=399 if !region.is_empty() => S3Fault::Region { right: region },
            300..=399 => {
                let host = match said.endpoint.as_str() {
                    "" => refusal.location.map(host_of).unwrap_or_default(),
                    endpoint => endpoint.to_owned(),
                };
                S3Fault::Elsewhere { host }
            }
            401 | 403 if code.is_empty() => S3Fault::Denied,
            501 | 505 => S3Fault::Refused { status, code: said.code },
            408 | 409 | 425 | 429 | 500..=599 => S3Fault::Busy { status, code: said.code },
            400 if code == "RequestTimeout" => S3Fault::Busy { status, code: said.code },
            _ => S3Fault::Refused { status, code: said.code },
        },
    }
}

/// Whether a 404 says that an object is missing, and not the bucket.
pub(super) fn is_missing_object(status: u16, body: &[u8]) -> bool {
    status == 404 && matches!(read(body).code.as_str(), "" | "NoSuchKey" | "NotFound")
}

fn is_about_time(message: &str) -> bool {
    message.contains("expired")
        || message.contains("not yet valid")
        || message.contains("not valid yet")
}

fn read(body: &[u8]) -> Said {
    let mut said = Said::default();
    // A body that breaks off or is no XML says as much as it says.
    let _ = walk(body, &mut |leaf| match leaf.path {
        "Error/Code" => said.code = word(leaf.text),
        "Error/Message" => said.message = leaf.text.chars().take(500).collect(),
        "Error/Region" => said.region = word(leaf.text),
        "Error/Endpoint" => said.endpoint = word(leaf.text),
        _ => {}
    });
    said
}

/// A text that can be shown: a code, a region, a host. Anything else becomes empty.
fn word(text: &str) -> String {
    let text = text.trim();
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if text.len() <= MAX_WORD && text.chars().all(harmless) {
        text.to_owned()
    } else {
        String::new()
    }
}

/// Only the host: the rest of a Location may be as secret as the URL was.
fn host_of(location: &str) -> String {
    let uri = location.parse::<ureq::http::Uri>().ok();
    uri.and_then(|uri| uri.host().map(word)).unwrap_or_default()
}

fn date_ms(date: &str) -> Option<u64> {
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date.trim()).ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::storage::s3::error::{Doing, S3Error};

    const NOW: u64 = 784_111_777_000;
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn told(status: u16, inner: &str, date: Option<&str>) -> String {
        let body = format!("<?xml version=\"1.0\"?><Error>{inner}</Error>");
        told_of(&Refusal { status, body: body.as_bytes(), date, ..Refusal::default() })
    }

    fn told_of(refusal: &Refusal<'_>) -> String {
        let place = "s3://b/p at https://h".to_owned();
        S3Error { place, doing: Doing::Write, fault: fault(refusal, NOW) }.to_string()
    }

    #[test]
    fn every_refusal_says_what_to_change() {
        for (status, inner, words) in [
            (403, "<Code>InvalidAccessKeyId</Code>", "`access_key`"),
            (403, "<Code>SignatureDoesNotMatch</Code>", "`secret_key`"),
            (404, "<Code>NoSuchBucket</Code>", "no such bucket"),
            (403, "<Code>AccessDenied</Code><Message>Access Denied</Message>", "s3:PutObject"),
            (403, "", "s3:PutObject"),
            (400, "<Code>ExpiredToken</Code>", "session token"),
            (
                400,
                "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>",
                "region = \"eu-west-1\"",
            ),
            (
                301,
                "<Code>PermanentRedirect</Code><Endpoint>b.s3-eu.example</Endpoint>",
                "sends us to b.s3-eu.example",
            ),
            (403, "<Code>RequestTimeTooSkewed</Code>", "this host says 1994-11-06 08:49:37 UTC"),
            (403, "<Code>AccessDenied</Code><Message>Request has expired</Message>", "the clocks"),
            (503, "<Code>SlowDown</Code>", "503 SlowDown"),
            (400, "<Code>a b\u{1b}</Code>", "refuses it: 400"),
        ] {
            let text = told(status, inner, None);
            assert!(text.contains(words), "{status} {inner}: {text}");
            assert!(text.starts_with("failed to write to s3://b/p at https://h: "), "{text}");
        }
    }

    #[test]
    fn both_clocks_are_told_and_a_right_one_is_not_blamed() {
        let denied = "<Code>AccessDenied</Code>";
        let late = "Sun, 06 Nov 1994 08:59:37 GMT";
        let text = told(403, denied, Some(late));
        assert!(text.contains("08:49:37 UTC, the store says 1994-11-06 08:59:37 UTC"), "{text}");
        assert!(told(403, denied, Some(DATE)).contains("s3:PutObject"));
        assert!(told(403, denied, Some("soon")).contains("s3:PutObject"));
        assert!(told(403, "<Code>InvalidAccessKeyId</Code>", Some(late)).contains("access_key"));
    }

    #[test]
    fn a_redirect_shows_the_host_only() {
        let location = Some("https://b.s3-eu.example/k?X-Amz-Signature=5ec7e7");
        let text = told_of(&Refusal { status: 307, location, ..Refusal::default() });
        assert!(text.contains("b.s3-eu.example") && !text.contains("5ec7e7"), "{text}");
        let region = Some("eu-central-1");
        let text = told_of(&Refusal { status: 301, location, region, ..Refusal::default() });
        assert!(text.contains("region = \"eu-central-1\""), "{text}");
    }

    #[test]
    fn a_missing_object_is_not_a_missing_bucket() {
        let xml = |code: &str| format!("<Error><Code>{code}</Code></Error>");
        assert!(is_missing_object(404, xml("NoSuchKey").as_bytes()));
        assert!(is_missing_object(404, b""));
        assert!(!is_missing_object(404, xml("NoSuchBucket").as_bytes()));
        assert!(!is_missing_object(403, b""));
    }
}
