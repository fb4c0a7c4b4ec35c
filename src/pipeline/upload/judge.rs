//! What an answer other than 2xx means. Pure.

use std::time::Duration;

use ureq::http::Uri;

use super::Fault;

/// Most of an error's body that is looked at.
pub(super) const MAX_BODY: u64 = 16 << 10;
/// Longest error code that is shown.
const MAX_CODE: usize = 64;

/// The fault that a status and its body (S3's XML, most often) stand for.
pub(super) fn refusal(
    status: u16,
    body: &str,
    location: Option<&str>,
    retry_after: Option<Duration>,
) -> Fault {
    let code = code(body);
    match status {
        300..=399 => Fault::Redirected { status, host: location.map(host_of).unwrap_or_default() },
        // The store waited too long for our bytes: slow is not wrong.
        400 if code == "RequestTimeout" => Fault::Busy { status, code, retry_after },
        400 | 401 | 403 if is_expiry(&code, body) => Fault::Expired,
        // 409: another operation on the same key is still going on.
        408 | 409 | 425 | 429 => Fault::Busy { status, code, retry_after },
        501 | 505 => Fault::Refused { status, code },
        500..=599 => Fault::Busy { status, code, retry_after },
        _ => Fault::Refused { status, code },
    }
}

/// The fault behind an `<Error>` in the body of a 2xx. S3 had sent its status before it knew.
pub(super) fn hidden_refusal(status: u16, body: &str) -> Fault {
    let code = code(body);
    match code.as_str() {
        "" | "InternalError" | "SlowDown" | "ServiceUnavailable" | "RequestTimeout"
        | "OperationAborted" => Fault::Busy { status, code, retry_after: None },
        _ => Fault::Refused { status, code },
    }
}

/// S3 says AccessDenied for an expired URL, and only its text tells which.
fn is_expiry(code: &str, body: &str) -> bool {
    matches!(code, "ExpiredToken" | "ExpiredPresignedUrlRequest" | "RequestExpired")
        || body.contains("Request has expired")
}

/// What stands in `<Code>`, if it looks like a code.
fn code(body: &str) -> String {
    let inner = body
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"))
        .map_or("", |(code, _)| code.trim());
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if inner.len() <= MAX_CODE && inner.chars().all(harmless) {
        inner.to_owned()
    } else {
        String::new()
    }
}

/// Only the host: the rest of a Location may be as secret as the URL was.
fn host_of(location: &str) -> String {
    location.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xml(code: &str, message: &str) -> String {
        format!("<?xml?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
    }

    #[test]
    fn what_can_pass_and_what_cannot() {
        for status in [408, 409, 425, 429, 500, 502, 503, 504, 507, 599] {
            assert!(refusal(status, "", None, None).retry(), "{status}");
        }
        for status in [300, 301, 307, 308, 400, 401, 403, 404, 405, 410, 411, 412, 413, 501] {
            assert!(!refusal(status, "", None, None).retry(), "{status}");
        }
        assert!(refusal(400, &xml("RequestTimeout", "x"), None, None).retry());
    }

    #[test]
    fn expiry_is_told_from_other_refusals() {
        let expired = refusal(403, &xml("AccessDenied", "Request has expired"), None, None);
        assert!(matches!(expired, Fault::Expired));
        assert!(matches!(refusal(400, &xml("ExpiredToken", "x"), None, None), Fault::Expired));
        let denied = refusal(403, &xml("AccessDenied", "Access Denied"), None, None);
        assert!(denied.to_string().contains("403 AccessDenied"), "{denied}");
    }

    #[test]
    fn only_a_harmless_code_is_shown() {
        let long = "A".repeat(65);
        for bad in ["a b", "x?sig=1", "\u{1b}[2J", "<b>", &long] {
            assert_eq!(code(&xml(bad, "m")), "", "{bad}");
        }
        assert_eq!(code("<Code>NoSuchBucket</Code>"), "NoSuchBucket");
        assert_eq!(code("<Code>cut"), "");
    }

    #[test]
    fn a_redirect_shows_the_host_only() {
        let fault =
            refusal(307, "", Some("https://b.s3-eu.example/k?X-Amz-Signature=5ec7e7"), None);
        let text = fault.to_string();
        assert!(text.contains("b.s3-eu.example") && !text.contains("5ec7e7"), "{text}");
        assert!(matches!(refusal(307, "", None, None), Fault::Redirected { .. }));
    }

    #[test]
    fn retry_after_is_kept() {
        let pause = Some(Duration::from_secs(7));
        assert_eq!(refusal(503, "", None, pause).retry_after(), pause);
    }
}
