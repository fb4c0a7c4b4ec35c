//! MongoDB through `mongodump --archive`.
//!
//! `prepare` finds the tool and resolves the login; nobody is asked anything, as the tools have no way to. `dump` runs
//! the tool and walks the archive as it streams ([`archive`]): it begins as one, every length in it is possible,
//! every namespace that was begun was closed, it ends by `ff ff ff ff`. The version in the report is the server's, from
//! the archive's header.
//!
//! Password or URI are in a configuration file of mode 0600 for the time of one program ([`config`]); what stands in
//! argv is host, port, user and database ([`target`]). mongodump writes about its progress every few seconds whether it
//! gets on or not, so only its output counts against `BACKUPY_STUCK_TIMEOUT`.
//!
//! **In a container** it is the same with the tool of its image; an empty host means its `localhost`.
//!
//! **From a control plane elsewhere** the addresses of every host that is named are judged first. A host without TLS is
//! then given to the tool as the address that was judged. One with TLS has to keep its name, and so do the hosts of a
//! URI: the tool looks them up again, and members of a replica set it learns from the server. A password reaches none of
//! them in the clear, since only SCRAM is allowed there. In a container a host is `localhost` or an address, for other
//! names nobody here could judge.
//!
//! **What a dump is**: each collection as of its own moment. Writes in between are in one collection and not yet in
//! another; `--oplog`, which would make it one moment, works for whole replica sets only and is not used.
//!
//! **How this was proven**: MongoDB and its tools are in no registry that the tests may use. Command line, streaming,
//! secrecy, cancel and each failure run against a stand-in of a few lines that writes an archive put together by the
//! published format and says what the real tools say; the checksum is compared with the published check value. Against
//! a real server nothing was run. In a container the same stand-in runs, packed into an image of a real Docker daemon.

pub(super) mod archive;
mod bson;
mod config;
mod fault;
pub(super) mod load;
mod target;
mod uri;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;

pub use archive::Damage;
pub use fault::MongoFault;

use self::archive::Walker;
use self::target::{Place, Tls, Where, address_uri};
use super::exec::Tool;
use super::site::{SecretFile, Site};
use super::{Context, Driver, DriverError, Dumped, Prepared, address, secrets, tools};
use crate::config::HostPolicy;
use crate::model::{Connection, Progress, Step, Trust};
use crate::secret::Secret;

const TOOL: &str = "mongodump";

/// The driver of one MongoDB database, or of all of a server's.
pub(super) struct MongoDb {
    site: Site,
    target: Where,
    password_ref: Secret,
    version: String,
}

/// What one program needs to log in; the configuration file lives as long as this.
struct Login {
    args: Vec<OsString>,
    secrets: Vec<Secret>,
    config: Option<SecretFile>,
}

/// Whether `mongodump` is on this host.
pub(super) fn is_here(policy: &HostPolicy) -> bool {
    !tools::candidates(TOOL, policy.mongo_bin_dir.as_deref()).is_empty()
}

impl MongoDb {
    /// A driver for the target's database.
    pub(super) fn new(connection: &Connection, policy: &HostPolicy) -> Result<Self, DriverError> {
        let site = Site::of(connection)?;
        let target = Where::new(connection, policy.trust)?;
        let password_ref = connection.password_ref.clone();
        Ok(Self { site, target, password_ref, version: String::new() })
    }

    /// What the tool has to be told; `database` is the one that it shall take, empty = all.
    fn login(&self, database: &str, cx: &Context<'_>) -> Result<Login, DriverError> {
        let addresses = self.addresses(cx)?;
        let password = self.password(cx)?;
        let mut args = Vec::new();
        let uri = match &self.target.place {
            Place::Uri(uri) => Some(uri.clone()),
            Place::Host { host, port, tls, ca_file } => {
                tls_args(*tls, ca_file, cx.policy, &mut args)?;
                // A certificate is for the name.
                let pinned =
                    addresses.iter().min_by_key(|a| a.is_ipv6()).filter(|_| *tls == Tls::Off);
                match pinned.copied().or_else(|| host.parse().ok()) {
                    Some(address @ IpAddr::V6(_)) => Some(address_uri(address, *port)),
                    Some(IpAddr::V4(address)) => {
                        args.extend(self.options(&address.to_string(), *port, database));
                        None
                    }
                    None => {
                        args.extend(self.options(host, *port, database));
                        None
                    }
                }
            }
        };
        let mut encoded = String::new();
        uri::encode(&mut encoded, password.expose());
        let mut secrets = vec![password.clone(), Secret::new(encoded)];
        let config = match &uri {
            Some(uri) => {
                let uri = self.target.uri(uri, &password, database);
                secrets.push(uri.clone());
                Some(config::content("uri", &uri))
            }
            None if password.is_empty() => None,
            None => Some(config::content("password", &password)),
        };
        let config = config
            .map(|content| self.site.secret_file("mongo-config", &content, cx))
            .transpose()?;
        if let Some(config) = &config {
            args.push(option("config", config.path().as_os_str()));
        }
        Ok(Login { args, secrets, config })
    }

    fn options(&self, host: &str, port: u16, database: &str) -> Vec<OsString> {
        let mut args = vec![option("host", host), option("port", port.to_string())];
        if !self.target.user().is_empty() {
            args.push(option("username", self.target.user()));
            args.push(option("authenticationDatabase", "admin"));
        }
        if !database.is_empty() {
            args.push(option("db", database));
        }
        args
    }

    fn password(&self, cx: &Context<'_>) -> Result<Secret, DriverError> {
        let wrong =
            |field, problem: &str| Err(DriverError::Setting { field, problem: problem.to_owned() });
        let mut password = secrets::resolve(&self.password_ref, cx.policy)?;
        if password.is_empty() {
            password = self.target.own_password();
        }
        if password.is_empty() && self.target.needs_password() {
            return wrong("password", "is missing beside a user, and the tool would ask for it");
        }
        if !password.is_empty() && self.target.user().is_empty() {
            return wrong("username", "is missing beside a password");
        }
        Ok(password)
    }

    /// The addresses of a control plane's hosts, judged; empty where the tool may look them up itself.
    fn addresses(&self, cx: &Context<'_>) -> Result<Vec<IpAddr>, DriverError> {
        let mut found = Vec::new();
        if cx.policy.trust == Trust::Remote {
            for (host, port) in self.target.hosts() {
                found.extend(match self.site {
                    Site::Host => address::allowed(host, port, cx.cancel)?,
                    Site::Container(_) => address::allowed_inside(host)?,
                });
            }
        }
        Ok(found)
    }
}

/// `--name=value`: a value that begins with a dash stays a value.
fn option(name: &str, value: impl Into<OsString>) -> OsString {
    let mut option = OsString::from(format!("--{name}="));
    option.push(value.into());
    option
}

fn tls_args(
    tls: Tls,
    ca_file: &str,
    policy: &HostPolicy,
    args: &mut Vec<OsString>,
) -> Result<(), DriverError> {
    let flags: &[&str] = match tls {
        Tls::Off => return Ok(()),
        Tls::Any => &["--ssl", "--sslAllowInvalidCertificates", "--sslAllowInvalidHostnames"],
        Tls::Chain => &["--ssl", "--sslAllowInvalidHostnames"],
        Tls::Full => &["--ssl"],
    };
    args.extend(flags.iter().map(OsString::from));
    if ca_file.is_empty() {
        return Ok(());
    }
    let mut path = PathBuf::from(ca_file);
    if policy.trust == Trust::Remote {
        path = secrets::inside_secrets_dir(&path, policy).map_err(|_| DriverError::NotAllowed {
            what: "a TLS CA file outside BACKUPY_SECRETS_DIR".to_owned(),
        })?;
    }
    if !path.is_file() {
        let problem = "is not a file that the agent can read".to_owned();
        return Err(DriverError::Setting { field: "TLS CA file", problem });
    }
    args.push(option("sslCAFile", path));
    Ok(())
}

/// The tool on this host or in the container; the first of that name: versions matter little, as newer tools dump older servers.
fn find(tool: &'static str, site: &Site, cx: &Context<'_>) -> Result<PathBuf, DriverError> {
    let configured = cx.policy.mongo_bin_dir.as_deref();
    let found = match site {
        Site::Host => tools::candidates(tool, configured),
        Site::Container(inside) => inside.find(&[tool], cx)?,
    };
    let places = || match configured {
        Some(dir) => format!("{} (BACKUPY_MONGO_BIN_DIR)", dir.display()),
        None => "PATH, /opt/mongodb-database-tools*/bin and the like".to_owned(),
    };
    found
        .into_iter()
        .next()
        .ok_or_else(|| DriverError::Mongo(MongoFault::NoTool { tool, places: site.places(places) }))
}

impl Driver for MongoDb {
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
        find(TOOL, &self.site, cx)?;
        // What is wrong with the login shows here, before anything else is done.
        drop(self.login(&self.target.database, cx)?);
        Ok(Prepared::default())
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        let program = find(TOOL, &self.site, cx)?;
        let Login { args, secrets, config } = self.login(&self.target.database, cx)?;
        // No compression of its own: what follows compresses.
        let args = [vec!["--archive".into()], args].concat();
        let tool = Tool { name: TOOL, program: &program, args, env: Vec::new(), secrets };
        let mut flow = Flow { walker: Walker::new(false), damage: None, bytes: 0, cx, out };
        let stuck = cx.limits.stuck_timeout;
        let pass = &mut |chunk: &[u8]| flow.pass(chunk);
        let ended = self.site.run_by_output(&tool, config.as_ref(), stuck, cx, pass);
        if let Some(damage) = flow.damage {
            return Err(damaged(damage));
        }
        ended.map_err(fault::explain)?;
        flow.walker.finish().map_err(damaged)?;
        flow.walker.server_version().clone_into(&mut self.version);
        Ok(Dumped { bytes: flow.bytes, warnings: Vec::new() })
    }

    fn dumped_version(&self) -> Option<String> {
        let known = self.version.starts_with(|c: char| c.is_ascii_digit());
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-+~".contains(c);
        let version: String = self.version.chars().take_while(|c| plain(*c)).take(64).collect();
        known.then(|| format!("MongoDB {version}"))
    }
}

fn damaged(damage: Damage) -> DriverError {
    match damage {
        Damage::Start => DriverError::Mark { tool: TOOL.to_owned() },
        other => DriverError::Mongo(MongoFault::Archive(other)),
    }
}

/// The archive on its way: walked, counted.
struct Flow<'a> {
    walker: Walker,
    damage: Option<Damage>,
    bytes: u64,
    cx: &'a Context<'a>,
    out: &'a mut dyn Write,
}

impl Flow<'_> {
    fn pass(&mut self, chunk: &[u8]) -> io::Result<()> {
        if let Err(damage) = self.walker.feed(chunk, &mut |_| {}) {
            self.damage = Some(damage);
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.out.write_all(chunk)?;
        self.bytes += chunk.len() as u64;
        let bytes = self.bytes;
        (self.cx.progress)(Progress { step: Step::Dumping, percent: None, bytes });
        Ok(())
    }
}
