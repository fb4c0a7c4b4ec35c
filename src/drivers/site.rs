//! Where a target's tools run: on this host, or inside the database's own container. A driver says which tool,
//! with which arguments and which secret file; the site carries it out.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use super::container::{Inside, SECRET_PATH};
use super::exec::{self, ExecError, Tool};
use super::tail::Said;
use super::workfile::WorkFile;
use super::{Context, DriverError};
use crate::model::{Connection, Way};
use crate::secret::Secret;

/// Where tools run.
#[derive(Debug, Clone)]
pub(super) enum Site {
    /// As children of the agent.
    Host,
    /// As commands in a container.
    Container(Inside),
}

/// A file that holds a secret for one tool, and lives as long as this.
#[derive(Debug)]
pub(super) enum SecretFile {
    /// A file in the work directory.
    Host(WorkFile),
    /// What the tool will find under [`SECRET_PATH`].
    Container(Secret),
}

impl SecretFile {
    /// The path to tell the tool.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Host(work) => work.path(),
            Self::Container(_) => Path::new(SECRET_PATH),
        }
    }
}

impl Site {
    /// The site that a target's way in asks for.
    pub(super) fn of(connection: &Connection) -> Result<Self, DriverError> {
        if connection.way != Way::DockerExec {
            return Ok(Self::Host);
        }
        if !connection.tls_ca_file.is_empty() {
            return Err(DriverError::Setting {
                field: "TLS CA file",
                problem: "is a file of this host, which a tool inside a container does not see; leave it empty"
                    .to_owned(),
            });
        }
        Inside::of(connection).map(Self::Container)
    }

    /// Where tools are looked for, for a message; `here` is the answer for this host.
    pub(super) fn places(&self, here: impl FnOnce() -> String) -> String {
        match self {
            Self::Host => here(),
            Self::Container(inside) => format!("the container {}", inside.reference()),
        }
    }

    /// A file of lines with mode 0600, for [`Site::run`]; in a container it has no name.
    pub(super) fn secret_file(
        &self,
        purpose: &str,
        text: &Secret,
        cx: &Context<'_>,
    ) -> Result<SecretFile, DriverError> {
        if matches!(self, Self::Container(_)) {
            return Ok(SecretFile::Container(text.clone()));
        }
        let (work, mut file) = WorkFile::create(cx.work_dir, purpose)?;
        file.write_all(text.expose().as_bytes())
            .map_err(|source| DriverError::Work { path: work.path().to_owned(), source })?;
        Ok(SecretFile::Host(work))
    }

    /// As [`exec::run`]. `secret` is the file that the arguments name, if they name one.
    ///
    /// # Errors
    /// Every end but exit code 0; nothing of the tool is left by then.
    pub(super) fn run(
        &self,
        tool: &Tool<'_>,
        secret: Option<&SecretFile>,
        stuck: Duration,
        cx: &Context<'_>,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Said, ExecError> {
        match self {
            Self::Host => exec::run(tool, stuck, cx.cancel, sink),
            Self::Container(inside) => inside.run(tool, handed(secret), stuck, cx, sink),
        }
    }

    /// As [`exec::run_by_output`].
    ///
    /// # Errors
    /// As [`Site::run`].
    pub(super) fn run_by_output(
        &self,
        tool: &Tool<'_>,
        secret: Option<&SecretFile>,
        stuck: Duration,
        cx: &Context<'_>,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Said, ExecError> {
        match self {
            Self::Host => exec::run_by_output(tool, stuck, cx.cancel, sink),
            Self::Container(inside) => inside.run_by_output(tool, handed(secret), stuck, cx, sink),
        }
    }

    /// As [`exec::capture`].
    ///
    /// # Errors
    /// As [`Site::run`]; more than `limit` bytes are an error too.
    pub(super) fn capture(
        &self,
        tool: &Tool<'_>,
        secret: Option<&SecretFile>,
        limit: usize,
        timeout: Duration,
        cx: &Context<'_>,
    ) -> Result<String, ExecError> {
        exec::capture_with(limit, |sink| self.run(tool, secret, timeout, cx, sink))
    }
}

/// What goes through stdin; a file of the host is found by its name.
fn handed(secret: Option<&SecretFile>) -> Option<&Secret> {
    match secret {
        Some(SecretFile::Container(text)) => Some(text),
        Some(SecretFile::Host(_)) | None => None,
    }
}
