//! PostgreSQL through `pg_dump --format=custom`.
//!
//! `prepare` finds the tools, logs in with `psql` where there is one (version, size; every reason not to get
//! in shows here, before anything is uploaded) and chooses the newest `pg_dump` that is not older than the
//! server. `dump` runs it; the version that ends up in the report is the one in the dump's own head.
//!
//! The password is in a passfile for the time of one program, the rest in an escaped connection string.
//! From a control plane elsewhere, the host's addresses are looked up and judged here and handed to libpq
//! as they are, and a server that has not proven itself by a certificate is never sent a password in the
//! clear (libpq 16 and later; older ones do not know the setting), since whoever names the host could
//! otherwise read the host's secrets with a server of their own.

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

pub(super) use self::conninfo::admit_ca;
use self::conninfo::{Conninfo, Place};
use super::exec::{self, ExecError, Tool};
use super::marks::StartMark;
use super::passfile::PassFile;
use super::tools::{self, Version};
use super::{Context, Driver, DriverError, Dumped, Prepared, address, secrets};
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

/// The driver of one PostgreSQL database.
pub(super) struct Postgres {
    info: Conninfo,
    password_ref: Secret,
    /// Chosen by `prepare`.
    tool: Option<PathBuf>,
    size_bytes: Option<u64>,
    version: Option<String>,
}

/// What one program needs to log in; the passfile lives as long as this.
struct Login {
    conninfo: String,
    password: Secret,
    _passfile: Option<PassFile>,
    env: Vec<(&'static str, OsString)>,
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
            info: Conninfo::new(connection)?,
            password_ref: connection.password_ref.clone(),
            tool: None,
            size_bytes: None,
            version: None,
        })
    }

    fn login(&self, cx: &Context<'_>) -> Result<Login, DriverError> {
        let mut info = self.info.clone();
        if let Some(ca) = &mut info.ca_file {
            *ca = admit_ca(ca, cx.policy)?;
        }
        let addresses = self.addresses(cx)?;
        let password = secrets::resolve(&self.password_ref, cx.policy)?;
        let passfile = match password.is_empty() {
            true => None,
            false => Some(PassFile::write(&password, cx)?),
        };
        let conninfo = info.render(&addresses, passfile.as_ref().map(PassFile::path));
        let mut env = Vec::new();
        if cx.policy.trust == Trust::Remote && !info.verifies_server() {
            env.push(("PGREQUIREAUTH", "!password".into()));
        }
        if password.is_empty() {
            // None at all, rather than that of the account that the agent runs under.
            env.push(("PGPASSFILE", cx.work_dir.join("no-passfile").into()));
        }
        Ok(Login { conninfo, password, _passfile: passfile, env })
    }

    /// The addresses that a control plane's host name stands for; empty where libpq may look it up itself.
    fn addresses(&self, cx: &Context<'_>) -> Result<Vec<IpAddr>, DriverError> {
        match (&self.info.place, cx.policy.trust) {
            (Place::Tcp { host, port }, Trust::Remote) => address::allowed(host, *port, cx.cancel),
            (Place::Tcp { .. } | Place::Socket { .. }, _) => Ok(Vec::new()),
        }
    }

    /// Asks the server, if there is a `psql` to do it with.
    fn ask(&self, pg_dump: &Path, cx: &Context<'_>) -> Result<Option<Facts>, DriverError> {
        let beside = pg_dump.with_file_name("psql");
        let psql = if beside.is_file() {
            Some(beside)
        } else {
            tools::candidates("psql", cx.policy.pg_bin_dir.as_deref()).into_iter().next()
        };
        let Some(psql) = psql else { return Ok(None) };
        let login = self.login(cx)?;
        let args = ["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--quiet"];
        let mut args: Vec<OsString> = args.iter().map(OsString::from).collect();
        args.extend(["--field-separator=|".into(), format!("--command={QUERY}").into()]);
        args.push(format!("--dbname={}", login.conninfo).into());
        let tool = login.tool("psql", &psql, args);
        match exec::capture(&tool, ANSWER_BYTES, cx.limits.stuck_timeout.min(SHORT * 4), cx.cancel)
        {
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

/// The newest dump tool on this host.
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
    let answer = exec::capture(&tool, ANSWER_BYTES, SHORT, cx.cancel)?;
    Version::parse(&answer).ok_or(DriverError::Mark { tool: "pg_dump".to_owned() })
}

impl Driver for Postgres {
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
        let (tool, tool_version) = newest_tool(cx)?;
        let facts = self.ask(&tool, cx)?;
        let mut prepared = Prepared::default();
        if let Some(facts) = facts {
            if !tool_version.can_dump(facts.version) {
                let fault = PostgresFault::newer(facts.version, tool_version);
                return Err(DriverError::Postgres(fault));
            }
            prepared.engine_version = format!("PostgreSQL {}", facts.version);
            prepared.size_hint_bytes = Some(facts.size_bytes);
            self.size_bytes = Some(facts.size_bytes);
        } else {
            // What cannot be asked can at least be refused before the dump.
            drop(self.login(cx)?);
        }
        self.tool = Some(tool);
        Ok(prepared)
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        let program = match &self.tool {
            Some(program) => program.clone(),
            None => newest_tool(cx)?.0,
        };
        let login = self.login(cx)?;
        let tool = login.tool("pg_dump", &program, dump_args(&login, cx.limits.stuck_timeout));
        let mut flow = Flow::new(self.size_bytes, cx, out);
        let ended = exec::run(&tool, cx.limits.stuck_timeout, cx.cancel, &mut |c| flow.pass(c));
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

/// `-Z0`: what follows compresses. The lock timeout comes before our own, for its words are clearer.
fn dump_args(login: &Login, stuck: Duration) -> Vec<OsString> {
    let lock_ms = (stuck.as_millis() * 9 / 10).max(1);
    vec![
        "--format=custom".into(),
        "-Z0".into(),
        "--no-password".into(),
        format!("--lock-wait-timeout={lock_ms}").into(),
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
