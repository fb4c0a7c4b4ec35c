//! A `mongodb://` or `mongodb+srv://` URI, taken apart and put together again.
//!
//! `scheme://[user[:password]@]host[:port][,host[:port]…][/database][?option=value[&…]]`, the parts percent-encoded.
//! What cannot be taken apart is refused, so that what is put together means what was checked. Nothing here shows a
//! part of the URI in an error: it may carry a password.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use crate::secret::Secret;

/// Hosts in one URI; a replica set has 50 members at the most.
const MAX_HOSTS: usize = 50;

/// A URI's parts, decoded but for the options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uri {
    pub(super) srv: bool,
    pub(super) user: String,
    pub(super) password: Secret,
    /// Name or address without brackets, and port.
    pub(super) hosts: Vec<(String, Option<u16>)>,
    pub(super) database: String,
    /// As they stand in the URI.
    pub(super) options: Vec<(String, String)>,
}

impl Uri {
    /// Whether a host is such a URI.
    pub(super) fn is_one(text: &str) -> bool {
        text.starts_with("mongodb://") || text.starts_with("mongodb+srv://")
    }

    /// Takes it apart.
    ///
    /// # Errors
    /// What is wrong, to stand behind "host".
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (srv, rest) =
            match (text.strip_prefix("mongodb://"), text.strip_prefix("mongodb+srv://")) {
                (Some(rest), _) => (false, rest),
                (_, Some(rest)) => (true, rest),
                _ => return Err("is not a mongodb:// URI"),
            };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, places) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let hosts = places.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
        if hosts.len() > MAX_HOSTS {
            return Err("names too many hosts");
        }
        if srv && (hosts.len() != 1 || hosts.iter().any(|(_, port)| port.is_some())) {
            return Err("is a mongodb+srv:// URI, which names one host and no port");
        }
        let options = query.split('&').filter(|pair| !pair.is_empty()).map(option);
        Ok(Self {
            srv,
            user: decode(user)?,
            password: Secret::new(decode(password)?),
            hosts,
            database: decode(database)?,
            options: options.collect::<Result<_, _>>()?,
        })
    }

    /// The value of an option as it stands, whatever the case of its name.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        let found = self.options.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// All of it again, the password included.
    pub(super) fn render(&self) -> Secret {
        let mut text =
            Zeroizing::new(String::with_capacity(1024 + 3 * self.password.expose().len()));
        text.push_str(if self.srv { "mongodb+srv://" } else { "mongodb://" });
        if !self.user.is_empty() {
            encode(&mut text, &self.user);
            if !self.password.is_empty() {
                text.push(':');
                encode(&mut text, self.password.expose());
            }
            text.push('@');
        }
        for (number, (host, port)) in self.hosts.iter().enumerate() {
            text.push_str(if number == 0 { "" } else { "," });
            if host.contains(':') {
                let _ = write!(text, "[{host}]");
            } else {
                text.push_str(host);
            }
            if let Some(port) = port {
                let _ = write!(text, ":{port}");
            }
        }
        text.push('/');
        encode(&mut text, &self.database);
        for (number, (name, value)) in self.options.iter().enumerate() {
            let _ = write!(text, "{}{name}={value}", if number == 0 { '?' } else { '&' });
        }
        Secret::new(text.as_str())
    }
}

fn host(place: &str) -> Result<(String, Option<u16>), &'static str> {
    const BAD: &str = "names a host that is neither a name nor an address";
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(BAD)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
            (address, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(BAD)?) })
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || host.starts_with('-') || !host.chars().all(plain) {
        return Err(BAD);
    }
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
            Ok(0) | Err(_) => return Err("names a port that is not between 1 and 65535"),
            Ok(port) => Some(port),
        },
        Some(_) => return Err("names a port that is not between 1 and 65535"),
    };
    Ok((host.to_owned(), port))
}

fn option(pair: &str) -> Result<(String, String), &'static str> {
    let (name, value) = pair.split_once('=').ok_or("has an option without a value")?;
    let plain = |c: char| c.is_ascii_graphic() && !"\"#&<>?[]`{|}".contains(c);
    if name.is_empty()
        || !name.chars().all(|c| c.is_ascii_alphanumeric())
        || !value.chars().all(plain)
    {
        return Err("has an option that is not percent-encoded");
    }
    decode(value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Percent-decodes; control characters are refused in any form.
fn decode(text: &str) -> Result<String, &'static str> {
    const BAD: &str = "has a bad percent escape";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or(BAD)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(BAD);
        }
        let digits = std::str::from_utf8(digits).map_err(|_| BAD)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| BAD)?);
        rest = tail;
    }
    let text = String::from_utf8(bytes).map_err(|_| BAD)?;
    if text.chars().any(char::is_control) { Err(BAD) } else { Ok(text) }
}

/// Percent-encodes everything but letters, digits and `-._~`.
pub(super) fn encode(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in [
            "mongodb://localhost/",
            "mongodb://a:27018,b,[::1]:27019/shop?replicaSet=rs0&tls=true",
            "mongodb+srv://ba%40ck:p%3As%2F@cluster0.example.net/?authSource=admin",
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!(uri.render().expose(), text);
        }
        let uri = Uri::parse("mongodb://u@x:p%3As@h/sh%C3%B6p?AuthSource=a").unwrap();
        assert_eq!((uri.user.as_str(), uri.password.expose()), ("u@x", "p:s"));
        assert_eq!(uri.database, "shöp");
        assert_eq!(uri.option("authsource"), Some("a"));
        assert_eq!(Uri::parse("mongodb://h").unwrap().render().expose(), "mongodb://h/");
    }

    #[test]
    fn what_is_not_one_is_refused_without_being_shown() {
        for bad in [
            "http://u:hunter2@h/",
            "mongodb://u:hunter2@/",
            "mongodb://u:hunter2@h,/",
            "mongodb://u:hunter2@-h/",
            "mongodb://u:hunter2@h:0/",
            "mongodb://u:hunter2@h:70000/",
            "mongodb://u:hunter2@h:+1/",
            "mongodb://u:hunter2@%2Ftmp%2Fmongodb-27017.sock/",
            "mongodb://u:hunter2@[::1/",
            "mongodb://u:hunter2@h/?tls",
            "mongodb://u:hunter2@h/?a b=c",
            "mongodb://u:hunter2@h/?a=b c",
            "mongodb://u:hunter2%@h/",
            "mongodb://u:hunter2%0A@h/",
            "mongodb+srv://u:hunter2@a,b/",
            "mongodb+srv://u:hunter2@a:27017/",
        ] {
            let error = Uri::parse(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let many = format!("mongodb://{}", vec!["h"; 51].join(","));
        Uri::parse(&many).unwrap_err();
    }
}
