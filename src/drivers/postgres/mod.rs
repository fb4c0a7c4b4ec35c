//! PostgreSQL through `pg_dump --format=custom`, or through `pg_dumpall` ([`cluster`]): all its databases, or its
//! roles and tablespaces alone.
//!
//! `prepare` finds the tools, logs in with `psql` where there is one (version, size; every reason not to get
//! in shows here, before anything is uploaded) and chooses the newest `pg_dump` that is not older than the
//! server. `dump` runs it; the version that ends up in the report is the one in the dump's own head.
//!
//! In a container it is the same with the tools of its image, over its own socket unless the target says otherwise.
//!
//! The password is in a passfile for the time of one program, the rest in an escaped connection string.
//! From a control plane elsewhere, the host's addresses are looked up and judged here and handed to libpq
//! as they are, and a server that has not proven itself by a certificate is never sent a password in the
//! clear (libpq 16 and later; older ones do not know the setting), since whoever names the host could
//! otherwise read the host's secrets with a server of their own.

mod cluster;
mod conninfo;
mod fault;
mod header;
pub(super) mod load;

use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use fault::PostgresFault;

use self::conninfo::{Conninfo, Place, Scope};
use super::exec::{ExecError, Tool};
use super::marks::StartMark;
use super::site::{SecretFile, Site};
use super::tools::{self, Version};
use super::{Context, Driver, DriverError, Dumped, Prepared, address, cafile, passfile, secrets};
use crate::model::{Connection, Progress, Step, Trust};
use crate::secret::Secret;

/// The beginning of pg_dump's custom format.
const MAGIC: &[u8] = b"PGDMP";
/// For `--version` and for a query of one row.
const SHORT: Duration = Duration::from_secs(30);
const ANSWER_BYTES: usize = 4096;
/// Warnings of the tool that are passed on.
const MAX_WARNINGS: usize = 5;

const QUERY: &str = "SELECT pg_catalog.current_setting('server_version'), \
                     pg_catalog.pg_database_size(pg_catalog.current_database())";

/// The driver of one PostgreSQL database, of all of a server's, or of its globals.
pub(super) struct Postgres {
    site: Site,
    info: Conninfo,
    password_ref: Secret,
    /// Chosen by `prepare`.
    tools: Option<Tools>,
    size_bytes: Option<u64>,
    version: Option<String>,
}

/// What one program needs to log in; the passfile lives as long as this.
struct Login {
    conninfo: String,
    password: Secret,
    passfile: Option<SecretFile>,
    env: Vec<(&'static str, OsString)>,
}

/// The programs at a site.
#[derive(Clone)]
struct Tools {
    pg_dump: PathBuf,
    /// `None` in a container, where it is the server's own.
    version: Option<Version>,
    psql: Option<PathBuf>,
}

/// What the server says about itself and the database.
struct Facts {
    version: Version,
    size_bytes: u64,
}

impl Postgres {
    /// A driver for the target's database.
    pub(super) fn new(connection: &Connection) -> Result<Self, DriverError> {
        Ok(Self {
            site: Site::of(connection)?,
            info: Conninfo::new(connection)?,
            password_ref: connection.password_ref.clone(),
            tools: None,
            size_bytes: None,
            version: None,
        })
    }

    fn login(&self, cx: &Context<'_>) -> Result<Login, DriverError> {
        let mut info = self.info.clone();
        if let Some(ca) = &mut info.ca_file {
            *ca = cafile::admit(ca, cx.policy)?;
        }
        let addresses = self.addresses(cx)?;
        let password = secrets::resolve(&self.password_ref, cx.policy)?;
        let passfile = match password.is_empty() {
            true => None,
            false => Some(passfile::write(&password, &self.site, cx)?),
        };
        let conninfo = info.render(&addresses, passfile.as_ref().map(SecretFile::path));
        let mut env = Vec::new();
        if cx.policy.trust == Trust::Remote && !info.verifies_server() {
            env.push(("PGREQUIREAUTH", "!password".into()));
        }
        if password.is_empty() {
            // None at all, rather than that of the account that the agent runs under.
            env.push(("PGPASSFILE", cx.work_dir.join("no-passfile").into()));
        }
        Ok(Login { conninfo, password, passfile, env })
    }

    /// The addresses that a control plane's host name stands for; empty where libpq may look it up itself.
    fn addresses(&self, cx: &Context<'_>) -> Result<Vec<IpAddr>, DriverError> {
        let (Place::Tcp { host, port }, Trust::Remote) = (&self.info.place, cx.policy.trust) else {
            return Ok(Vec::new());
        };
        match self.site {
            Site::Host => address::allowed(host, *port, cx.cancel),
            Site::Container(_) => address::allowed_inside(host),
        }
    }

    /// Finds the programs: on this host the newest, in a container its own.
    fn find_tools(&self, cx: &Context<'_>) -> Result<Tools, DriverError> {
        let inside = match &self.site {
            Site::Host => return tools_here(cx),
            Site::Container(inside) => inside,
        };
        let mut found = inside.find(&["pg_dump", "psql"], cx)?.into_iter();
        let mut take = |name: &str| found.find(|path| path.ends_with(name));
        let Some(pg_dump) = take("pg_dump") else {
            let places = self.site.places(|| tools::places(cx.policy.pg_bin_dir.as_deref()));
            return Err(DriverError::Postgres(PostgresFault::NoTool { places }));
        };
        Ok(Tools { pg_dump, version: None, psql: take("psql") })
    }

    /// The tool for all databases, which belongs to the `pg_dump` that it calls itself.
    fn cluster_tool(&self, tools: &Tools, cx: &Context<'_>) -> Result<PathBuf, DriverError> {
        let Site::Container(inside) = &self.site else { return cluster::tool(&tools.pg_dump, cx) };
        inside.find(&[cluster::TOOL], cx)?.into_iter().next().ok_or_else(|| {
            let places = self.site.places(|| tools::places(cx.policy.pg_bin_dir.as_deref()));
            DriverError::Postgres(PostgresFault::NoTool { places })
        })
    }

    /// Asks the server, if there is a `psql` to do it with.
    fn ask(&self, tools: &Tools, cx: &Context<'_>) -> Result<Option<Facts>, DriverError> {
        let Some(psql) = &tools.psql else { return Ok(None) };
        let login = self.login(cx)?;
        let args = ["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--quiet"];
        let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let query = match self.info.scope {
            Scope::Database | Scope::Globals => QUERY,
            Scope::All => cluster::QUERY,
        };
        args.extend(["--field-separator=|".into(), format!("--command={query}").into()]);
        args.push(format!("--dbname={}", login.conninfo).into());
        let tool = login.tool("psql", psql, args);
        let (passfile, patience) =
            (login.passfile.as_ref(), cx.limits.stuck_timeout.min(SHORT * 4));
        match self.site.capture(&tool, passfile, ANSWER_BYTES, patience, cx) {
            Ok(answer) => Ok(facts(&answer)),
            // Logged in, but not answered: the dump does not need the answer. 2 is psql's "no connection".
            Err(ExecError::Exit { code, .. }) if code != 2 => Ok(None),
            Err(error) => Err(fault::explain(error)),
        }
    }
}

impl Login {
    fn tool<'a>(&self, name: &'a str, program: &'a Path, args: Vec<OsString>) -> Tool<'a> {
        Tool { name, program, args, env: self.env.clone(), secrets: vec![self.password.clone()] }
    }
}

fn facts(answer: &str) -> Option<Facts> {
    let (version, size) = answer.trim().rsplit_once('|')?;
    Some(Facts { version: Version::parse(version)?, size_bytes: size.parse().ok()? })
}

/// The newest dump tool on this host, and the `psql` beside it or any other.
fn tools_here(cx: &Context<'_>) -> Result<Tools, DriverError> {
    let (pg_dump, version) = newest_tool(cx)?;
    let beside = pg_dump.with_file_name("psql");
    let psql = if beside.is_file() {
        Some(beside)
    } else {
        tools::candidates("psql", cx.policy.pg_bin_dir.as_deref()).into_iter().next()
    };
    Ok(Tools { pg_dump, version: Some(version), psql })
}

fn newest_tool(cx: &Context<'_>) -> Result<(PathBuf, Version), DriverError> {
    let configured = cx.policy.pg_bin_dir.as_deref();
    let mut newest: Option<(PathBuf, Version)> = None;
    let mut broken = None;
    for program in tools::candidates("pg_dump", configured) {
        match tool_version(&program, cx) {
            Ok(version) if newest.as_ref().is_none_or(|(_, best)| version > *best) => {
                newest = Some((program, version));
            }
            Ok(_) => {}
            Err(error @ DriverError::Cancelled(_)) => return Err(error),
            Err(error) => broken = Some(error),
        }
    }
    let places = tools::places(configured);
    newest.ok_or_else(|| broken.unwrap_or(DriverError::Postgres(PostgresFault::NoTool { places })))
}

fn tool_version(program: &Path, cx: &Context<'_>) -> Result<Version, DriverError> {
    let args = vec!["--version".into()];
    let tool = Tool { name: "pg_dump", program, args, env: Vec::new(), secrets: Vec::new() };
    let answer = Site::Host.capture(&tool, None, ANSWER_BYTES, SHORT, cx)?;
    Version::parse(&answer).ok_or(DriverError::Mark { tool: "pg_dump".to_owned() })
}

impl Driver for Postgres {
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
        let tools = self.find_tools(cx)?;
        let facts = self.ask(&tools, cx)?;
        let mut prepared = Prepared::default();
        if let Some(facts) = facts {
            if let Some(version) = tools.version.filter(|version| !version.can_dump(facts.version))
            {
                let fault = PostgresFault::newer(facts.version, version);
                return Err(DriverError::Postgres(fault));
            }
            prepared.engine_version = format!("PostgreSQL {}", facts.version);
            // The database's size says nothing of the few lines that globals are.
            self.size_bytes = Some(facts.size_bytes).filter(|_| self.info.scope != Scope::Globals);
            prepared.size_hint_bytes = self.size_bytes;
        } else {
            // What cannot be asked can at least be refused before the dump.
            drop(self.login(cx)?);
        }
        if self.info.scope != Scope::Database {
            self.cluster_tool(&tools, cx)?;
        }
        self.tools = Some(tools);
        Ok(prepared)
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        let tools = match &self.tools {
            Some(tools) => tools.clone(),
            None => self.find_tools(cx)?,
        };
        let login = self.login(cx)?;
        if self.info.scope != Scope::Database {
            let program = self.cluster_tool(&tools, cx)?;
            let args = cluster::args(&self.info, &login, cx.limits.stuck_timeout);
            let tool = login.tool(cluster::TOOL, &program, args);
            let passfile = login.passfile.as_ref();
            return cluster::dump(&self.site, &tool, passfile, self.size_bytes, cx, out);
        }
        let tool =
            login.tool("pg_dump", &tools.pg_dump, dump_args(&login, cx.limits.stuck_timeout));
        let mut flow = Flow::new(self.size_bytes, cx, out);
        let (passfile, stuck) = (login.passfile.as_ref(), cx.limits.stuck_timeout);
        let ended = self.site.run(&tool, passfile, stuck, cx, &mut |c| flow.pass(c));
        if flow.not_a_dump {
            return Err(DriverError::Mark { tool: "pg_dump".to_owned() });
        }
        let said = ended.map_err(fault::explain)?;
        if !flow.mark.complete() {
            return Err(DriverError::Mark { tool: "pg_dump".to_owned() });
        }
        self.version = header::server_version(&flow.head);
        Ok(Dumped { bytes: flow.bytes, warnings: said.lines().take(MAX_WARNINGS).collect() })
    }

    fn dumped_version(&self) -> Option<String> {
        self.version.as_ref().map(|version| format!("PostgreSQL {version}"))
    }
}

/// A lock's timeout comes before our own, for the tool's words are clearer.
fn lock_timeout(stuck: Duration) -> OsString {
    format!("--lock-wait-timeout={}", (stuck.as_millis() * 9 / 10).max(1)).into()
}

/// `-Z0`: what follows compresses.
fn dump_args(login: &Login, stuck: Duration) -> Vec<OsString> {
    vec![
        "--format=custom".into(),
        "-Z0".into(),
        "--no-password".into(),
        lock_timeout(stuck),
        format!("--dbname={}", login.conninfo).into(),
    ]
}

/// The dump on its way: mark, head, count, progress.
struct Flow<'a> {
    mark: StartMark,
    not_a_dump: bool,
    head: Vec<u8>,
    bytes: u64,
    size_bytes: Option<u64>,
    cx: &'a Context<'a>,
    out: &'a mut dyn Write,
}

impl<'a> Flow<'a> {
    fn new(size_bytes: Option<u64>, cx: &'a Context<'a>, out: &'a mut dyn Write) -> Self {
        let mark = StartMark::new(MAGIC);
        Self { mark, not_a_dump: false, head: Vec::new(), bytes: 0, size_bytes, cx, out }
    }

    fn pass(&mut self, chunk: &[u8]) -> std::io::Result<()> {
        if !self.mark.feed(chunk) {
            self.not_a_dump = true;
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let wanted = header::HEAD_BYTES.saturating_sub(self.head.len()).min(chunk.len());
        self.head.extend_from_slice(chunk.get(..wanted).unwrap_or_default());
        self.out.write_all(chunk)?;
        self.bytes += chunk.len() as u64;
        // The database's size counts indexes, which are not dumped, and not the dump's own words: an estimate.
        let percent = self.size_bytes.and_then(|size| {
            let share = (u128::from(self.bytes) * 100).checked_div(u128::from(size))?;
            u8::try_from(share.min(99)).ok()
        });
        let bytes = self.bytes;
        (self.cx.progress)(Progress { step: Step::Dumping, percent, bytes });
        Ok(())
    }
}
