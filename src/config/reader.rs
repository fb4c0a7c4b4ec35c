//! Reads single variables and flags, and collects what is wrong with them.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    ConfigError, DEFAULT_METRICS_LISTEN, Env, Flags, MAX_HOOK_TIMEOUT, MIN_RATE, ProxySettings,
    parse, parse_listen, parse_log_level, parse_rate, parse_size,
};
use crate::calendar::duration;
use crate::secret::Secret;

/// Collects problems while the variables are read.
pub(super) struct Reader<'a> {
    pub(super) env: Env<'a>,
    pub(super) problems: Vec<String>,
}

impl Reader<'_> {
    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }

    pub(super) fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// A variable that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.env)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// A variable under its name or the older one.
    pub(super) fn get_either(&self, name: &str, older: &str) -> Option<String> {
        self.get(name).or_else(|| self.get(older))
    }

    pub(super) fn server_url(&mut self, flags: &Flags) -> String {
        let url = flags
            .server_url
            .clone()
            .or_else(|| self.get_either("BACKUPY_SERVER_URL", "BACKUP_SERVER_URL"));
        url.unwrap_or_else(|| {
            self.problem("BACKUPY_SERVER_URL is not set: expected https://HOST[:PORT][/PATH]");
            String::new()
        })
    }

    pub(super) fn agent_key(&mut self, flags: &Flags) -> Secret {
        let direct = self.get_either("BACKUPY_AGENT_KEY", "BACKUP_AGENT_KEY");
        // The flag is meant for this start; the variable may be the machine's.
        let direct = direct.filter(|_| flags.agent_key_file.is_none());
        let file = flags.agent_key_file.clone().or_else(|| self.get("BACKUPY_AGENT_KEY_FILE"));
        let (name, text) = match (direct, file) {
            (Some(key), _) => ("BACKUPY_AGENT_KEY", key),
            (None, Some(path)) => match parse::read_key_file(Path::new(&path)) {
                Ok(key) => ("the file of BACKUPY_AGENT_KEY_FILE", key),
                Err(why) => {
                    self.problem(format!("failed to read BACKUPY_AGENT_KEY_FILE {path}: {why}"));
                    return Secret::default();
                }
            },
            (None, None) => {
                self.problem(
                    "neither BACKUPY_AGENT_KEY nor BACKUPY_AGENT_KEY_FILE is set: expected the \
                     key that the control plane issued for this agent",
                );
                return Secret::default();
            }
        };
        self.checked_key(name, &text)
    }

    pub(super) fn previous_key(&mut self) -> Option<Secret> {
        let text = self.get("BACKUPY_AGENT_KEY_PREVIOUS")?;
        Some(self.checked_key("BACKUPY_AGENT_KEY_PREVIOUS", &text))
    }

    pub(super) fn checked_key(&mut self, name: &str, text: &str) -> Secret {
        if !parse::is_agent_key(text) {
            self.problem(format!(
                "{name} is not an agent key: expected bkpy_live_ or bkpy_test_ followed by 32 \
                 letters and digits"
            ));
        }
        Secret::new(text)
    }

    pub(super) fn path(&mut self, name: &str, flag: Option<&str>) -> Option<PathBuf> {
        let text = flag.map(str::to_owned).or_else(|| self.get(name))?;
        let path = PathBuf::from(&text);
        if !path.is_absolute() {
            self.problem(format!("{name} must be an absolute path, not {text:?}"));
        }
        Some(path)
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        match self.get(name).as_deref() {
            None | Some("false" | "0" | "no") => false,
            Some("true" | "1" | "yes") => true,
            Some(_) => {
                self.problem(format!("{name} must be true or false"));
                false
            }
        }
    }

    pub(super) fn log_level(&mut self, flag: Option<&str>) -> log::LevelFilter {
        let Some(text) = flag.map(str::to_owned).or_else(|| self.get("BACKUPY_LOG_LEVEL")) else {
            return log::LevelFilter::Info;
        };
        parse_log_level(&text).unwrap_or_else(|| {
            self.problem(format!(
                "BACKUPY_LOG_LEVEL must be trace, debug, info, warn or error, not {text:?}"
            ));
            log::LevelFilter::Info
        })
    }

    pub(super) fn pins(&mut self, flag: Option<&str>) -> Vec<[u8; 32]> {
        let Some(text) = flag.map(str::to_owned).or_else(|| self.get("BACKUPY_SERVER_PIN")) else {
            return Vec::new();
        };
        parse::pins(&text).unwrap_or_else(|| {
            self.problem(
                "BACKUPY_SERVER_PIN must be one or more comma-separated base64 SHA-256 hashes (44 \
                 characters each) of a certificate's public key",
            );
            Vec::new()
        })
    }

    pub(super) fn proxy(&mut self) -> ProxySettings {
        let url = self.get_either("HTTPS_PROXY", "https_proxy").and_then(|text| {
            parse::proxy_url(&text)
                .map_err(|why| self.problem(format!("HTTPS_PROXY {why}")))
                .ok()
                .map(Secret::new)
        });
        let bypass = self
            .get_either("NO_PROXY", "no_proxy")
            .map(|text| parse::split_list(&text, ','))
            .unwrap_or_default();
        ProxySettings { url, bypass }
    }

    pub(super) fn list(&mut self, name: &str, separator: char) -> Option<Vec<String>> {
        // Set but empty means: nothing is allowed.
        (self.env)(name).map(|text| parse::split_list(&text, separator))
    }

    /// Absolute paths between colons.
    pub(super) fn paths(&mut self, name: &str) -> Vec<PathBuf> {
        let paths = self.list(name, ':').unwrap_or_default();
        for path in paths.iter().filter(|path| !Path::new(path).is_absolute()) {
            self.problem(format!("{name} must hold absolute paths, not {path:?}"));
        }
        paths.into_iter().map(PathBuf::from).collect()
    }

    pub(super) fn metrics_listen(&mut self) -> Option<SocketAddr> {
        const NAME: &str = "BACKUPY_METRICS_LISTEN_ADDR";
        // Set but empty means: off.
        let text = (self.env)(NAME).unwrap_or_else(|| DEFAULT_METRICS_LISTEN.to_owned());
        parse_listen(&text).unwrap_or_else(|form| {
            self.problem(format!("{NAME} must be {form}, not {text:?}"));
            None
        })
    }

    pub(super) fn size(&mut self, name: &str) -> Option<u64> {
        let text = self.get(name)?;
        let size = parse_size(&text);
        if size.is_none() {
            self.problem(format!("{name} must be a size such as 256MiB, not {text:?}"));
        }
        size
    }

    pub(super) fn memory_bytes(&mut self, default: usize) -> usize {
        const RANGE: std::ops::RangeInclusive<u64> = 0..=(256 << 20);
        let Some(size) = self.size("BACKUPY_SPOOL_MEMORY") else { return default };
        if !RANGE.contains(&size) {
            self.problem("BACKUPY_SPOOL_MEMORY must be at most 256MiB");
            return default;
        }
        usize::try_from(size).unwrap_or(default)
    }

    /// A whole number in a range.
    pub(super) fn number<T>(&mut self, name: &str, range: std::ops::RangeInclusive<T>) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + fmt::Display,
    {
        let text = self.get(name)?;
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.problem(format!("{name} must be a number from {least} to {most}, not {text:?}"));
        }
        number
    }

    /// Bytes per second; 0 if it is not set.
    pub(super) fn rate(&mut self, name: &str) -> u64 {
        let Some(text) = self.get(name) else { return 0 };
        parse_rate(&text).unwrap_or_else(|| {
            self.problem(format!(
                "{name} must be a rate such as 2MiB/s, at least {} KiB/s, or 0 for none, not {text:?}",
                MIN_RATE >> 10
            ));
            0
        })
    }

    pub(super) fn hook_timeout(&mut self) -> Option<Duration> {
        let timeout = self.duration("BACKUPY_HOOK_TIMEOUT")?;
        if !(Duration::from_secs(1)..=MAX_HOOK_TIMEOUT).contains(&timeout) {
            self.problem("BACKUPY_HOOK_TIMEOUT must be between 1s and 15m");
        }
        Some(timeout)
    }

    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        let text = self.get(name)?;
        duration::parse(&text)
            .map_err(|error| self.problem(format!("{name} is {text:?}, but {error}")))
            .ok()
    }
}
