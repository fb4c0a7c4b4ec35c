//! Environment and flags → [`Config`], once, at the edge.
//!
//! Everything below gets values from here and reads no environment of its own (the one exception is a
//! password reference `env:NAME`, which is read when it is used). All problems are reported together;
//! none of them repeats a value that may be secret.

mod parse;
mod reader;
mod update;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::Trust;
use crate::secret::Secret;

pub use parse::{parse_listen, parse_rate, parse_size};
use reader::Reader;
pub use update::{UpdateKey, UpdateSettings};

/// Where state lives unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/backupy";

/// Where Docker listens unless told otherwise.
pub const DEFAULT_DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Where Prometheus finds the agent unless told otherwise.
pub const DEFAULT_METRICS_LISTEN: &str = "127.0.0.1:9090";

/// Lowest limit of an upload, in bytes per second: below it a single request would outlive every server's patience.
pub const MIN_RATE: u64 = 16 << 10;

/// No hook may take longer, whatever is configured.
const MAX_HOOK_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// More threads than this only cost memory: 8 MiB each.
const MAX_COMPRESS_THREADS: u32 = 16;

/// Everything `backupy run` was told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The control plane as given; `link` knows the rules for it.
    pub server_url: String,
    /// The agent's key.
    pub agent_key: Secret,
    /// The key before the last rotation.
    pub previous_key: Option<Secret>,
    /// Where state lives.
    pub state_dir: PathBuf,
    /// Least level that is logged.
    pub log_level: log::LevelFilter,
    /// Whether `ws://` and `http://` are allowed.
    pub allow_insecure: bool,
    /// Trust roots and pins.
    pub tls: TlsSettings,
    /// Forward proxy.
    pub proxy: ProxySettings,
    /// How far a control plane may reach on this host.
    pub policy: HostPolicy,
    /// Sizes and times of the pipeline.
    pub limits: PipelineLimits,
    /// How long running backups may go on after the first signal.
    pub stop_grace: Duration,
    /// Updates of the program itself.
    pub update: UpdateSettings,
    /// Where Prometheus may ask; `None` = nowhere (`BACKUPY_METRICS_LISTEN_ADDR`).
    pub metrics_listen: Option<SocketAddr>,
}

/// Trust roots and pins for TLS.
#[derive(Debug, Clone, Default)]
pub struct TlsSettings {
    /// An extra trust root, PEM (`BACKUPY_CA_FILE`).
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of the leaf's SPKI; empty = not pinned (`BACKUPY_SERVER_PIN`). For the control plane only.
    pub server_pins: Vec<[u8; 32]>,
}

/// A forward proxy for TLS and HTTP connections (`HTTPS_PROXY`, `NO_PROXY`).
#[derive(Debug, Clone, Default)]
pub struct ProxySettings {
    /// `http://[user:password@]host:port`, already checked; `None` = direct.
    pub url: Option<Secret>,
    /// Host names and suffixes that are reached directly (`NO_PROXY`'s comma-separated list; `*` = all).
    pub bypass: Vec<String>,
}

/// How far this host lets a control plane reach, and where tools are.
#[derive(Debug, Clone)]
pub struct HostPolicy {
    /// Who writes the configuration.
    pub trust: Trust,
    /// The only directory whose files a remote `file:` reference may name (`BACKUPY_SECRETS_DIR`).
    pub secrets_dir: Option<PathBuf>,
    /// SQLite files (or directories of such) that a remote control plane may name; `None` = any
    /// (`BACKUPY_ALLOW_PATHS`, colon-separated).
    pub allow_paths: Option<Vec<PathBuf>>,
    /// Containers it may name; `None` = any (`BACKUPY_ALLOW_CONTAINERS`, comma-separated).
    pub allow_containers: Option<Vec<String>>,
    /// Hosts (or host:port) that its checks may reach; `None` = any but link-local and metadata
    /// addresses (`BACKUPY_ALLOW_CHECKS`, comma-separated).
    pub allow_checks: Option<Vec<String>>,
    /// Whether hooks of a remote control plane run (`BACKUPY_ALLOW_HOOKS`, default false).
    pub allow_hooks: bool,
    /// Directory with the PostgreSQL tools, before PATH (`BACKUPY_PG_BIN_DIR`).
    pub pg_bin_dir: Option<PathBuf>,
    /// Directory with MySQL's or MariaDB's tools, before PATH (`BACKUPY_MYSQL_BIN_DIR`).
    pub mysql_bin_dir: Option<PathBuf>,
    /// Where the Docker daemon listens (`BACKUPY_DOCKER_SOCKET`).
    pub docker_socket: PathBuf,
    /// Directory with MongoDB's tools, before PATH (`BACKUPY_MONGO_BIN_DIR`).
    pub mongo_bin_dir: Option<PathBuf>,
    /// Whether databases on this host are looked for (`BACKUPY_DISABLE_DISCOVERY` = no).
    pub discover: bool,
    /// Where SQLite files may be (`BACKUPY_DISCOVER_PATHS`, colon-separated).
    pub discover_paths: Vec<PathBuf>,
}

impl HostPolicy {
    /// As on a host where nothing was set.
    pub fn new(trust: Trust) -> Self {
        Self {
            trust,
            secrets_dir: None,
            allow_paths: None,
            allow_containers: None,
            allow_checks: None,
            allow_hooks: false,
            pg_bin_dir: None,
            mysql_bin_dir: None,
            mongo_bin_dir: None,
            docker_socket: PathBuf::from(DEFAULT_DOCKER_SOCKET),
            discover: true,
            discover_paths: Vec::new(),
        }
    }
}

/// The sizes and times of the pipeline; every field has a documented variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineLimits {
    /// Sealed bytes kept in memory before a spool file is used (`BACKUPY_SPOOL_MEMORY`, default 8 MiB).
    pub memory_bytes: usize,
    /// Below this much free space a run fails (`BACKUPY_MIN_FREE`, default 256 MiB) …
    pub min_free_bytes: u64,
    /// … or below this share of the file system in percent, whichever is more (`BACKUPY_MIN_FREE_PERCENT`, 5).
    pub min_free_percent: u8,
    /// A dump tool that is silent for so long is stuck (`BACKUPY_STUCK_TIMEOUT`, default 10 min).
    pub stuck_timeout: Duration,
    /// One hook may take so long (`BACKUPY_HOOK_TIMEOUT`, default 5 min, at most 15 min).
    pub hook_timeout: Duration,
    /// Priority of dump, compression and upload, 0 (as everybody) to 19 (`BACKUPY_NICE`, default 10).
    pub nice: u8,
    /// Threads that compress one run's dump (`BACKUPY_COMPRESS_THREADS`, default 2), never more than cores.
    pub compress_threads: u32,
    /// Bytes per second for all uploads together (`BACKUPY_UPLOAD_LIMIT`, default 0 = as fast as it goes).
    pub upload_bytes_per_sec: u64,
}

impl Default for PipelineLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 8 << 20,
            min_free_bytes: 256 << 20,
            min_free_percent: 5,
            stuck_timeout: Duration::from_secs(600),
            hook_timeout: Duration::from_secs(300),
            nice: 10,
            compress_threads: cores().min(2),
            upload_bytes_per_sec: 0,
        }
    }
}

/// Cores that this process may use.
fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// Flags that override the environment; secrets have none.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--server-url`
    pub server_url: Option<String>,
    /// `--agent-key-file`
    pub agent_key_file: Option<String>,
    /// `--state-dir`
    pub state_dir: Option<String>,
    /// `--log-level`
    pub log_level: Option<String>,
    /// `--allow-insecure`
    pub allow_insecure: bool,
    /// `--ca-file`
    pub ca_file: Option<String>,
    /// `--server-pin`
    pub server_pin: Option<String>,
    /// `--secrets-dir`
    pub secrets_dir: Option<String>,
}

/// What is wrong with the environment or the flags, a line each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// One problem.
    pub fn one(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()] }
    }

    /// The lines.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// What only other modules can judge, so that their problems are reported together with the rest.
pub struct Checks<'a> {
    /// Whether this is a control plane's URL, given whether plain text is allowed.
    pub server_url: &'a dyn Fn(&str, bool) -> Result<(), String>,
    /// Whether this file holds trust roots.
    pub ca_file: &'a dyn Fn(&Path) -> Result<(), String>,
}

/// Reads one environment variable; a parameter so that tests need not touch the process's own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment. What is not UTF-8 is replaced rather than taken for absent: a list of what is
/// allowed must not become "everything".
pub fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Every problem found, each naming its variable and the expected form.
    pub fn load(env: Env<'_>, flags: &Flags, checks: &Checks<'_>) -> Result<Self, ConfigError> {
        let mut reader = Reader { env, problems: Vec::new() };
        let allow_insecure = reader.flag("BACKUPY_DEV_ALLOW_INSECURE") || flags.allow_insecure;
        let server_url = reader.server_url(flags);
        if !server_url.is_empty()
            && let Err(why) = (checks.server_url)(&server_url, allow_insecure)
        {
            reader.problem(format!("BACKUPY_SERVER_URL: {why}"));
        }
        let agent_key = reader.agent_key(flags);
        let host = HostConfig::read(&mut reader, flags, Trust::Remote);
        let previous_key = reader.previous_key();
        let tls = TlsSettings {
            ca_file: reader.path("BACKUPY_CA_FILE", flags.ca_file.as_deref()),
            server_pins: reader.pins(flags.server_pin.as_deref()),
        };
        if let Some(path) = &tls.ca_file
            && let Err(why) = (checks.ca_file)(path)
        {
            reader.problem(format!("BACKUPY_CA_FILE: {why}"));
        }
        reader.finish(Self {
            server_url,
            agent_key,
            previous_key,
            state_dir: host.state_dir,
            log_level: host.log_level,
            allow_insecure,
            tls,
            proxy: host.proxy,
            policy: host.policy,
            limits: host.limits,
            stop_grace: host.stop_grace,
            update: host.update,
            metrics_listen: host.metrics_listen,
        })
    }
}

/// The agent's key and the one before it, for commands that open a stopped agent's store.
///
/// # Errors
/// As [`Config::load`].
pub fn store_keys(env: Env<'_>) -> Result<(Secret, Option<Secret>), ConfigError> {
    let mut reader = Reader { env, problems: Vec::new() };
    let keys = (reader.agent_key(&Flags::default()), reader.previous_key());
    reader.finish(keys)
}

/// The part of the settings that does not concern a control plane elsewhere; `up` uses it alone.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where state lives.
    pub state_dir: PathBuf,
    /// Least level that is logged.
    pub log_level: log::LevelFilter,
    /// Forward proxy.
    pub proxy: ProxySettings,
    /// How far a control plane may reach on this host.
    pub policy: HostPolicy,
    /// Sizes and times of the pipeline.
    pub limits: PipelineLimits,
    /// How long running backups may go on after the first signal.
    pub stop_grace: Duration,
    /// Updates of the program itself.
    pub update: UpdateSettings,
    /// Where Prometheus may ask; `None` = nowhere (`BACKUPY_METRICS_LISTEN_ADDR`).
    pub metrics_listen: Option<SocketAddr>,
}

impl HostConfig {
    /// Reads and checks it for a given author of the configuration.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(env: Env<'_>, flags: &Flags, trust: Trust) -> Result<Self, ConfigError> {
        let mut reader = Reader { env, problems: Vec::new() };
        let host = Self::read(&mut reader, flags, trust);
        reader.finish(host)
    }

    fn read(reader: &mut Reader<'_>, flags: &Flags, trust: Trust) -> Self {
        let defaults = PipelineLimits::default();
        Self {
            state_dir: reader
                .path("BACKUPY_STATE_DIR", flags.state_dir.as_deref())
                .unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR)),
            log_level: reader.log_level(flags.log_level.as_deref()),
            proxy: reader.proxy(),
            policy: HostPolicy {
                trust,
                secrets_dir: reader.path("BACKUPY_SECRETS_DIR", flags.secrets_dir.as_deref()),
                allow_paths: reader
                    .list("BACKUPY_ALLOW_PATHS", ':')
                    .map(|paths| paths.into_iter().map(PathBuf::from).collect()),
                allow_containers: reader.list("BACKUPY_ALLOW_CONTAINERS", ','),
                allow_checks: reader.list("BACKUPY_ALLOW_CHECKS", ','),
                allow_hooks: reader.flag("BACKUPY_ALLOW_HOOKS"),
                pg_bin_dir: reader.path("BACKUPY_PG_BIN_DIR", None),
                mysql_bin_dir: reader.path("BACKUPY_MYSQL_BIN_DIR", None),
                docker_socket: reader
                    .path("BACKUPY_DOCKER_SOCKET", None)
                    .unwrap_or_else(|| PathBuf::from(DEFAULT_DOCKER_SOCKET)),
                mongo_bin_dir: reader.path("BACKUPY_MONGO_BIN_DIR", None),
                discover: !reader.flag("BACKUPY_DISABLE_DISCOVERY"),
                discover_paths: reader.paths("BACKUPY_DISCOVER_PATHS"),
            },
            limits: PipelineLimits {
                memory_bytes: reader.memory_bytes(defaults.memory_bytes),
                min_free_bytes: reader.size("BACKUPY_MIN_FREE").unwrap_or(defaults.min_free_bytes),
                min_free_percent: reader
                    .number("BACKUPY_MIN_FREE_PERCENT", 0..=99)
                    .unwrap_or(defaults.min_free_percent),
                stuck_timeout: reader
                    .duration("BACKUPY_STUCK_TIMEOUT")
                    .unwrap_or(defaults.stuck_timeout),
                hook_timeout: reader.hook_timeout().unwrap_or(defaults.hook_timeout),
                nice: reader.number("BACKUPY_NICE", 0..=19).unwrap_or(defaults.nice),
                compress_threads: reader
                    .number("BACKUPY_COMPRESS_THREADS", 1..=MAX_COMPRESS_THREADS)
                    .map_or(defaults.compress_threads, |threads| threads.min(cores())),
                upload_bytes_per_sec: reader.rate("BACKUPY_UPLOAD_LIMIT"),
            },
            stop_grace: reader.duration("BACKUPY_STOP_GRACE").unwrap_or(Duration::from_secs(8)),
            update: UpdateSettings::read(reader),
            metrics_listen: reader.metrics_listen(),
        }
    }
}

/// Reads a level's name as the wire and the environment write it.
pub fn parse_log_level(text: &str) -> Option<log::LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "trace" => Some(log::LevelFilter::Trace),
        "debug" => Some(log::LevelFilter::Debug),
        "info" => Some(log::LevelFilter::Info),
        "warn" | "warning" => Some(log::LevelFilter::Warn),
        "error" => Some(log::LevelFilter::Error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "bkpy_test_0123456789abcdefghijABCDEFGHIJ00";

    const CHECKS: Checks<'_> = Checks {
        server_url: &|url, _| if url.starts_with("https://") { Ok(()) } else { Err("bad".into()) },
        ca_file: &|_| Err("unreadable".into()),
    };

    fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env = |name: &str| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Config::load(&env, &Flags::default(), &CHECKS)
    }

    #[test]
    fn what_others_judge_is_reported_with_the_rest() {
        let error = load(&[
            ("BACKUPY_SERVER_URL", "ftp://x"),
            ("BACKUPY_AGENT_KEY", "x"),
            ("BACKUPY_CA_FILE", "/no/such.pem"),
        ])
        .unwrap_err();
        assert_eq!(error.problems().len(), 3, "{error}");
    }

    #[test]
    fn where_databases_are_looked_for() {
        let key = ("BACKUPY_AGENT_KEY", KEY);
        let with = |more: &[(&'static str, &'static str)]| {
            load(&[&[("BACKUPY_SERVER_URL", "https://x"), key], more].concat())
        };
        let policy = with(&[]).unwrap().policy;
        assert!(policy.discover && policy.discover_paths.is_empty());
        let more =
            [("BACKUPY_DISABLE_DISCOVERY", "true"), ("BACKUPY_DISCOVER_PATHS", "/srv: /a b:")];
        let policy = with(&more).unwrap().policy;
        assert!(!policy.discover);
        assert_eq!(policy.discover_paths, [PathBuf::from("/srv"), PathBuf::from("/a b")]);
        let error = with(&[("BACKUPY_DISCOVER_PATHS", "/srv:app")]).unwrap_err();
        assert!(error.to_string().contains("\"app\""), "{error}");
    }

    #[test]
    fn the_older_names_work_and_the_newer_win() {
        let config =
            load(&[("BACKUP_SERVER_URL", "https://old"), ("BACKUP_AGENT_KEY", KEY)]).unwrap();
        assert_eq!(config.server_url, "https://old");
        assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
        let config = load(&[
            ("BACKUPY_SERVER_URL", "https://new"),
            ("BACKUP_SERVER_URL", "https://old"),
            ("BACKUPY_AGENT_KEY", KEY),
        ])
        .unwrap();
        assert_eq!(config.server_url, "https://new");
    }

    #[test]
    fn every_problem_is_named_and_no_secret_is_echoed() {
        let error = load(&[
            ("BACKUPY_AGENT_KEY", "hunter2hunter2"),
            ("BACKUPY_STATE_DIR", "relative"),
            ("BACKUPY_LOG_LEVEL", "loud"),
            ("BACKUPY_SERVER_PIN", "nope"),
            ("BACKUPY_MIN_FREE", "lots"),
            ("BACKUPY_MIN_FREE_PERCENT", "100"),
            ("BACKUPY_NICE", "20"),
            ("BACKUPY_COMPRESS_THREADS", "0"),
            ("BACKUPY_UPLOAD_LIMIT", "10KiB/s"),
            ("BACKUPY_HOOK_TIMEOUT", "16m"),
            ("BACKUPY_ALLOW_HOOKS", "perhaps"),
            ("BACKUPY_DEV_ALLOW_INSECURE", "maybe"),
            ("BACKUPY_METRICS_LISTEN_ADDR", ":9090"),
            ("HTTPS_PROXY", "socks5://user:hunter2@proxy"),
        ])
        .unwrap_err();
        let text = error.to_string();
        for name in [
            "BACKUPY_SERVER_URL",
            "BACKUPY_AGENT_KEY",
            "BACKUPY_STATE_DIR",
            "BACKUPY_LOG_LEVEL",
            "BACKUPY_SERVER_PIN",
            "BACKUPY_MIN_FREE",
            "BACKUPY_MIN_FREE_PERCENT",
            "BACKUPY_NICE",
            "BACKUPY_COMPRESS_THREADS",
            "BACKUPY_UPLOAD_LIMIT",
            "BACKUPY_HOOK_TIMEOUT",
            "BACKUPY_ALLOW_HOOKS",
            "BACKUPY_DEV_ALLOW_INSECURE",
            "BACKUPY_METRICS_LISTEN_ADDR",
            "HTTPS_PROXY",
        ] {
            assert!(text.contains(name), "{name} missing in:\n{text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn kindness_is_the_default_and_can_be_set() {
        let base = [("BACKUPY_SERVER_URL", "https://h"), ("BACKUPY_AGENT_KEY", KEY)];
        let limits = load(&base).unwrap().limits;
        assert_eq!((limits.nice, limits.upload_bytes_per_sec), (10, 0));
        assert!((1..=2).contains(&limits.compress_threads));
        let mut with = base.to_vec();
        with.extend([
            ("BACKUPY_NICE", "0"),
            ("BACKUPY_COMPRESS_THREADS", "16"),
            ("BACKUPY_UPLOAD_LIMIT", "2MiB/s"),
        ]);
        let limits = load(&with).unwrap().limits;
        assert_eq!((limits.nice, limits.upload_bytes_per_sec), (0, 2 << 20));
        assert_eq!(limits.compress_threads, cores().min(16), "never more than cores");
    }

    #[test]
    fn an_empty_allow_list_allows_nothing() {
        let base = [("BACKUPY_SERVER_URL", "https://h"), ("BACKUPY_AGENT_KEY", KEY)];
        assert_eq!(load(&base).unwrap().policy.allow_paths, None);
        let mut with = base.to_vec();
        with.push(("BACKUPY_ALLOW_PATHS", ""));
        assert_eq!(load(&with).unwrap().policy.allow_paths, Some(vec![]));
    }

    #[test]
    fn metrics_have_a_default_and_an_empty_value_turns_them_off() {
        let base = [("BACKUPY_SERVER_URL", "https://h"), ("BACKUPY_AGENT_KEY", KEY)];
        let with = |value| {
            let mut pairs = base.to_vec();
            pairs.extend([("BACKUPY_METRICS_LISTEN_ADDR", value)]);
            load(&pairs).unwrap().metrics_listen.map(|addr| addr.to_string())
        };
        let default = load(&base).unwrap().metrics_listen.map(|addr| addr.to_string());
        assert_eq!(default.as_deref(), Some(DEFAULT_METRICS_LISTEN));
        assert_eq!((with(""), with("  ")), (None, None));
        assert_eq!(with("[::1]:99").as_deref(), Some("[::1]:99"));
        assert_eq!(with("localhost:0").as_deref(), Some("127.0.0.1:0"));
    }

    #[test]
    fn flags_win_over_the_environment() {
        let env = |name: &str| (name == "BACKUPY_AGENT_KEY").then(|| KEY.to_owned());
        let flags = Flags {
            server_url: Some("https://flag".into()),
            state_dir: Some("/s".into()),
            allow_insecure: true,
            ..Flags::default()
        };
        let config = Config::load(&env, &flags, &CHECKS).unwrap();
        assert_eq!(config.server_url, "https://flag");
        assert_eq!(config.state_dir, Path::new("/s"));
        assert!(config.allow_insecure);
    }
}
