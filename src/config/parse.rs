//! The forms of single values: keys, sizes, durations, pins, proxies, lists.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// `bkpy_(live|test)_` + 32 letters and digits.
pub(super) fn is_agent_key(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("bkpy_live_").or_else(|| text.strip_prefix("bkpy_test_"))
    else {
        return false;
    };
    rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The key in a file, without the line end around it.
pub(super) fn read_key_file(path: &Path) -> Result<String, String> {
    const MAX_BYTES: u64 = 4096;
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_BYTES {
        return Err(format!("it has {size} bytes; a key file holds one line"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    Ok(text.trim().to_owned())
}

/// Bytes with a unit: `1048576`, `512KiB`, `256MiB`, `2GiB`; `K`, `M`, `G` mean the same.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Bytes per second with a unit: `2MiB/s`, `512KiB`; `0` = no limit. At least [`MIN_RATE`](super::MIN_RATE).
pub fn parse_rate(text: &str) -> Option<u64> {
    let text = text.trim();
    let rate = parse_size(text.strip_suffix("/s").unwrap_or(text))?;
    (rate == 0 || rate >= super::MIN_RATE).then_some(rate)
}

/// Where to listen: `127.0.0.1:9090`, `[::1]:9090`, `localhost:9090`; `off` or empty = nowhere.
///
/// # Errors
/// The expected form.
pub fn parse_listen(text: &str) -> Result<Option<SocketAddr>, &'static str> {
    let text = text.trim();
    if text.is_empty() || text == "off" {
        return Ok(None);
    }
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    local.as_deref().unwrap_or(text).parse().map(Some).map_err(
        |_| "ADDRESS:PORT such as 127.0.0.1:9090 (0.0.0.0:9090 for all interfaces), or off",
    )
}

/// Comma-separated base64 SHA-256 hashes.
pub(super) fn pins(text: &str) -> Option<Vec<[u8; 32]>> {
    let pins: Option<Vec<[u8; 32]>> = split_list(text, ',')
        .iter()
        .map(|pin| {
            let pin = pin.strip_prefix("sha256/").unwrap_or(pin);
            BASE64_STANDARD.decode(pin).ok()?.try_into().ok()
        })
        .collect();
    pins.filter(|pins| !pins.is_empty())
}

/// Checks `http://[user:password@]host:port`; the error never repeats the text.
pub(super) fn proxy_url(text: &str) -> Result<String, &'static str> {
    const FORM: &str = "must be http://[USER:PASSWORD@]HOST:PORT";
    let text = text.trim_end_matches('/');
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => {
            return Err(
                "must be http://[USER:PASSWORD@]HOST:PORT; other schemes are not supported",
            );
        }
        None => text,
    };
    let host_port = rest.rsplit_once('@').map_or(rest, |(_, host_port)| host_port);
    let (host, port) = host_port.rsplit_once(':').ok_or(FORM)?;
    let port_is_good = port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_is_good = !host.is_empty() && !host.contains(['/', '?', '#', ' ']);
    if !port_is_good || !host_is_good || rest.chars().any(char::is_control) {
        return Err(FORM);
    }
    Ok(format!("http://{rest}"))
}

/// Items between separators, trimmed, empty ones left out.
pub(super) fn split_list(text: &str, separator: char) -> Vec<String> {
    text.split(separator)
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("17"), Some(17));
        assert_eq!(parse_size("2 MiB"), Some(2 << 20));
        assert_eq!(parse_size("1g"), Some(1 << 30));
        for bad in ["", "MiB", "1.5G", "-1", "99999999999T", "1 parsec"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn agent_keys() {
        assert!(is_agent_key("bkpy_live_0123456789abcdefghijABCDEFGHIJ00"));
        assert!(!is_agent_key("bkpy_live_0123456789abcdefghijABCDEFGHIJ0"));
        assert!(!is_agent_key("bkpy_prod_0123456789abcdefghijABCDEFGHIJ00"));
        assert!(!is_agent_key("bkpy_live_0123456789abcdefghijABCDEFGHIJ0\n"));
    }

    #[test]
    fn proxies() {
        assert_eq!(proxy_url("proxy:3128").unwrap(), "http://proxy:3128");
        assert_eq!(proxy_url("http://u:p@proxy:3128/").unwrap(), "http://u:p@proxy:3128");
        for bad in ["https://proxy:1", "http://proxy", "http://:80", "http://proxy:0"] {
            assert!(proxy_url(bad).is_err(), "{bad}");
        }
    }
}
