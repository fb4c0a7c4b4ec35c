//! The way back: a dump that was restored to a file is inspected, or loaded into a database.
//!
//! Used by the control plane's `verify` and `restore --into` only; the agent never writes to a database.

use std::fs::File;
use std::path::Path;

use super::workfile::WorkFile;
use super::{Context, DriverError, mongodb, mysql, postgres, redis, sqlite};
use crate::model::{Engine, Target, Way};

/// A file for a dump in the work directory, 0600, removed when dropped and swept after a crash.
#[derive(Debug)]
pub struct Scratch(WorkFile);

impl Scratch {
    /// An empty one, open for writing.
    ///
    /// # Errors
    /// When the work directory cannot be used.
    pub fn create(work_dir: &Path) -> Result<(Self, File), DriverError> {
        WorkFile::create(work_dir, "restored").map(|(work, file)| (Self(work), file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// One table in a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name, with the schema where the engine has such.
    pub name: String,
    /// Its rows; `None` where they cannot be counted without the application or a server.
    pub rows: Option<u64>,
}

/// What a dump holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected {
    /// Its tables, by name.
    pub tables: Vec<Table>,
    /// What could not be checked, or is odd.
    pub warnings: Vec<String>,
}

/// Reads the whole dump as its own tools do: SQLite's `integrity_check` and row counts, `pg_restore` to nowhere,
/// the framing and the checksums of a MongoDB archive, Redis' checksum and key counts; SQL text has its marks checked
/// and its tables listed.
///
/// # Errors
/// When it is damaged, or the tool is missing.
pub fn inspect(engine: Engine, dump: &Path, cx: &Context<'_>) -> Result<Inspected, DriverError> {
    match engine {
        Engine::Sqlite => sqlite::load::inspect(dump, cx),
        Engine::PostgreSql => postgres::load::inspect(dump, cx),
        Engine::MySql | Engine::MariaDb => mysql::load::inspect(dump, cx),
        Engine::MongoDb => mongodb::load::inspect(dump, cx),
        Engine::Redis => redis::load::inspect(dump, cx),
        Engine::Unknown(_) => unsupported("checking a dump of", engine),
    }
}

/// Loads the dump into a database; all of it or nothing. Without `replace` what is there already is an error.
///
/// # Errors
/// When it cannot be loaded; the database is then as it was (but MongoDB, which has no transaction for it, and MySQL
/// and MariaDB with `replace`, which cannot undo).
pub fn load(
    target: &Target,
    dump: &Path,
    replace: bool,
    cx: &Context<'_>,
) -> Result<(), DriverError> {
    if target.connection.way == Way::DockerExec {
        return Err(DriverError::Unsupported { what: "loading into a container".to_owned() });
    }
    match target.engine {
        Engine::Sqlite => sqlite::load::load(&target.connection, dump, replace, cx),
        Engine::PostgreSql => postgres::load::load(&target.connection, dump, replace, cx),
        engine @ (Engine::MySql | Engine::MariaDb) => {
            mysql::load::load(engine, &target.connection, dump, replace, cx)
        }
        Engine::MongoDb => mongodb::load::load(&target.connection, dump, replace, cx),
        Engine::Redis => redis::load::load(),
        engine @ Engine::Unknown(_) => unsupported("loading a dump of", engine),
    }
}

fn unsupported<T>(what: &str, engine: Engine) -> Result<T, DriverError> {
    Err(DriverError::Unsupported { what: format!("{what} {engine}") })
}
