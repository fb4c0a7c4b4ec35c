//! All databases of a PostgreSQL server with its roles and tablespaces, or these alone (its globals), as the SQL text
//! of `pg_dumpall`.
//!
//! The tool takes one database after the other: each is consistent in itself, but as of its own moment.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::exec::Tool;
use super::super::load::{Inspected, Table};
use super::super::site::{SecretFile, Site};
use super::super::sqltext::{self, Flow, Format};
use super::super::{Context, DriverError, Dumped, tools};
use super::conninfo::{Conninfo, Scope};
use super::{Login, MAX_WARNINGS, PostgresFault, fault, lock_timeout};

pub(super) const TOOL: &str = "pg_dumpall";
const TABLES_MAX: usize = 100_000;
/// Where roles' passwords are, which only a superuser may read.
const ROLES: &str = "pg_authid";
const BANNER: &str = "-- PostgreSQL database cluster dump";

static FORMAT: Format = Format { banners: &[BANNER], ended };

fn ended(tail: &str) -> bool {
    tail.trim_end_matches('\n').ends_with("\n--\n-- PostgreSQL database cluster dump complete\n--")
        && tail.ends_with('\n')
}

/// The size of all of them together.
pub(super) const QUERY: &str = "SELECT pg_catalog.current_setting('server_version'), \
                                pg_catalog.sum(pg_catalog.pg_database_size(oid)) \
                                FROM pg_catalog.pg_database WHERE datallowconn";

/// The tool that belongs to this `pg_dump`, which it calls itself.
pub(super) fn tool(pg_dump: &Path, cx: &Context<'_>) -> Result<PathBuf, DriverError> {
    let beside = pg_dump.with_file_name(TOOL);
    if beside.is_file() {
        return Ok(beside);
    }
    let configured = cx.policy.pg_bin_dir.as_deref();
    tools::candidates(TOOL, configured).into_iter().next().ok_or_else(|| {
        DriverError::Postgres(PostgresFault::NoTool { places: tools::places(configured) })
    })
}

/// Dumps what the tool's arguments say.
pub(super) fn dump(
    site: &Site,
    tool: &Tool<'_>,
    passfile: Option<&SecretFile>,
    size_bytes: Option<u64>,
    cx: &Context<'_>,
    out: &mut dyn Write,
) -> Result<Dumped, DriverError> {
    let mut flow = Flow::new(&FORMAT, size_bytes, cx, out);
    let stuck = cx.limits.stuck_timeout;
    let ended = site.run(tool, passfile, stuck, cx, &mut |c| flow.pass(c));
    flow.begins_as_a_dump(TOOL)?;
    let said = ended.map_err(|error| match fault::explain(error) {
        // It was there when the tool made its list.
        DriverError::Postgres(PostgresFault::NoDatabase(said)) if flow.bytes > 0 => {
            DriverError::Postgres(PostgresFault::Conflict(said))
        }
        DriverError::Postgres(PostgresFault::Permission(said)) if said.has_any(&[ROLES]) => {
            DriverError::Postgres(PostgresFault::Roles(said))
        }
        other => other,
    })?;
    flow.is_whole(TOOL)?;
    Ok(Dumped { bytes: flow.bytes, warnings: said.lines().take(MAX_WARNINGS).collect() })
}

/// What the tool is told.
pub(super) fn args(info: &Conninfo, login: &Login, stuck: Duration) -> Vec<OsString> {
    let mut args = vec![
        "--no-password".into(),
        lock_timeout(stuck),
        format!("--dbname={}", login.conninfo).into(),
    ];
    if info.scope == Scope::Globals {
        args.push("--globals-only".into());
        // Otherwise it logs in to `postgres`, which this user may have no right to.
        args.push(format!("--database={}", info.login_database()).into());
    }
    args
}

/// Whether a file is such a dump.
pub(super) fn is_one(dump: &Path) -> Result<bool, DriverError> {
    Ok(sqltext::head(dump)?.lines().any(|line| line == BANNER))
}

/// Reads the whole of it, without a server.
pub(super) fn inspect(dump: &Path, cx: &Context<'_>) -> Result<Inspected, DriverError> {
    let mut database = String::new();
    let mut tables = Vec::new();
    let (mut roles, mut spaces) = (0, 0);
    sqltext::scan(&FORMAT, dump, cx.cancel, &mut |line| {
        // Behind the first of these stand the databases, whose rows may look like anything.
        if let Some(name) = line.strip_prefix("\\connect ") {
            database = connected(name);
        } else if database.is_empty() && line.starts_with("CREATE ROLE ") {
            roles += 1;
        } else if database.is_empty() && line.starts_with("CREATE TABLESPACE ") {
            spaces += 1;
        } else if let Some(name) = table(line)
            && tables.len() < TABLES_MAX
        {
            tables.push(Table { name: format!("{database}.{name}"), rows: None });
        }
    })?;
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    let note = if database.is_empty() {
        format!("globals only: {roles} roles and {spaces} tablespaces, no database")
    } else {
        "only the text was read: beginning, end and the names of the tables; loading it into a server proves more".to_owned()
    };
    Ok(Inspected { tables, warnings: vec![note] })
}

/// `shop`, or `-reuse-previous=on "dbname='a b'"`; what has quotes in it is shown as it stands.
fn connected(text: &str) -> String {
    let quoted =
        text.strip_prefix("-reuse-previous=on \"dbname='").and_then(|t| t.strip_suffix("'\""));
    quoted.unwrap_or(text).to_owned()
}

/// `-- Name: orders; Type: TABLE; Schema: public; Owner: postgres` → `public.orders`.
fn table(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("-- Name: ")?.split_once("; Type: TABLE; Schema: ")?;
    let (schema, _) = rest.split_once("; Owner: ")?;
    Some(format!("{schema}.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_marks() {
        let whole = "\\unrestrict x\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n";
        assert!(ended(whole));
        for bad in [
            "",
            whole.trim_end(),
            &whole.replace(" cluster", ""),
            &format!("{whole}SELECT 1;\n"),
            "x'-- PostgreSQL database cluster dump complete\n--\n",
        ] {
            assert!(!ended(bad), "{bad:?}");
        }
    }

    #[test]
    fn names() {
        let line = "-- Name: orders; Type: TABLE; Schema: public; Owner: postgres";
        assert_eq!(table(line).as_deref(), Some("public.orders"));
        assert_eq!(table("-- Name: orders; Type: TABLE DATA; Schema: public; Owner: x"), None);
        assert_eq!(connected("shop"), "shop");
        assert_eq!(connected("-reuse-previous=on \"dbname='a b'\""), "a b");
    }
}
