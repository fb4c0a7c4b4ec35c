//! Until when a certificate is valid: the one field of it that rustls does not tell.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// The time after which an X.509 certificate (DER) is not valid, Unix seconds; `None` if that cannot be read.
pub(super) fn not_after(der: &[u8]) -> Option<i64> {
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    // An optional [0] version, then serial number, signature algorithm, issuer.
    let before_validity = if rest.first() == Some(&0xa0) { 4 } else { 3 };
    for _ in 0..before_validity {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (_, _, end) = element(validity)?;
    let (tag, text, _) = element(end)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// Tag, content, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], mut rest) = der.split_first_chunk()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        length = digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    Some((tag, content, after))
}

/// UTCTime has two digits for the year, GeneralizedTime four (RFC 5280).
fn time(tag: u8, text: &str) -> Option<i64> {
    let text = match tag {
        0x17 if text < "50" => format!("20{text}"),
        0x17 => format!("19{text}"),
        0x18 => text.to_owned(),
        _ => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate() {
        for (year, expected) in [(2031, 1_927_843_200), (2061, 2_874_614_400)] {
            let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 2, 3);
            let key = rcgen::KeyPair::generate().unwrap();
            let der = params.self_signed(&key).unwrap();
            assert_eq!(not_after(der.der()), Some(expected));
            // Cut or damaged, it is nothing, and no panic.
            for at in 0..der.der().len() {
                let mut bent = der.der().to_vec();
                bent[at] = 0xff;
                let _ = not_after(&bent);
                let _ = not_after(&der.der()[..at]);
            }
        }
    }
}
