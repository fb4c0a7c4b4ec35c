//! Where the RDB waits until it may go on: the server must not wait for whoever compresses and uploads.
//!
//! While a server sends its RDB, a fork of it lives and every page that is written to is kept twice. So all of the
//! RDB is read as fast as it comes before any of it is passed on: the first
//! [`PipelineLimits::memory_bytes`](crate::config::PipelineLimits) into memory, all of it into one file once there
//! is more. The file is in the work directory, 0600, has no name any more when the first byte is written, and
//! the free space is looked at before and while it grows.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use crate::drivers::{Context, DriverError, space, workfile};

/// Passed on at once, and the pause between two looks at the cancel.
const STEP_BYTES: usize = 256 << 10;

/// An RDB on its way in.
pub(super) struct Hold<'a> {
    memory: Vec<u8>,
    file: Option<File>,
    bytes: u64,
    /// Up to where the free space was looked at.
    checked: u64,
    cx: &'a Context<'a>,
}

impl<'a> Hold<'a> {
    /// Nothing yet; `expected` bytes are announced.
    ///
    /// # Errors
    /// When so many bytes cannot be held.
    pub(super) fn new(expected: Option<u64>, cx: &'a Context<'a>) -> Result<Self, DriverError> {
        let mut hold = Self { memory: Vec::new(), file: None, bytes: 0, checked: 0, cx };
        if let Some(expected) = expected
            && expected > cx.limits.memory_bytes as u64
        {
            workfile::ensure(cx.work_dir)?;
            space::check(cx.work_dir, expected, cx.limits)?;
            hold.file = Some(workfile::unnamed(cx.work_dir, "rdb")?);
        }
        Ok(hold)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When the disk does not.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Result<(), DriverError> {
        self.bytes += bytes.len() as u64;
        if self.file.is_none() && self.bytes > self.cx.limits.memory_bytes as u64 {
            workfile::ensure(self.cx.work_dir)?;
            space::check(self.cx.work_dir, self.bytes, self.cx.limits)?;
            let mut file = workfile::unnamed(self.cx.work_dir, "rdb")?;
            file.write_all(&self.memory).map_err(|source| self.broken(source))?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else {
            self.memory.extend_from_slice(bytes);
            return Ok(());
        };
        let written = file.write_all(bytes);
        written.map_err(|source| self.broken(source))?;
        if self.bytes >= self.checked + space::EVERY_BYTES {
            self.checked = self.bytes;
            space::check(self.cx.work_dir, 0, self.cx.limits)?;
        }
        Ok(())
    }

    /// Writes all of it to `out`.
    ///
    /// # Errors
    /// Those of `out` as [`DriverError::Sink`], the cancel, and a file that cannot be read back.
    pub(super) fn pass_on(mut self, out: &mut dyn Write) -> Result<u64, DriverError> {
        for chunk in self.memory.chunks(STEP_BYTES) {
            self.pass(chunk, out)?;
        }
        let mut passed = self.memory.len() as u64;
        if let Some(mut file) = self.file.take() {
            let copied = self.copy(&mut file, out);
            workfile::release(file);
            passed += copied?;
        }
        if passed == self.bytes {
            return Ok(passed);
        }
        Err(self.broken(io::ErrorKind::UnexpectedEof.into()))
    }

    fn copy(&self, file: &mut File, out: &mut dyn Write) -> Result<u64, DriverError> {
        file.rewind().map_err(|source| self.broken(source))?;
        let (mut buffer, mut passed) = (vec![0; STEP_BYTES], 0);
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => return Ok(passed),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(error)),
            };
            self.pass(&buffer[..count], out)?;
            passed += count as u64;
        }
    }

    fn pass(&self, chunk: &[u8], out: &mut dyn Write) -> Result<(), DriverError> {
        let cancelled = || self.cx.cancel.why().map(DriverError::Cancelled);
        if let Some(cancelled) = cancelled() {
            return Err(cancelled);
        }
        out.write_all(chunk).map_err(|error| cancelled().unwrap_or(DriverError::Sink(error)))
    }

    fn broken(&self, source: io::Error) -> DriverError {
        DriverError::Work { path: self.cx.work_dir.to_owned(), source }
    }
}

/// A dump that failed leaves a file whose space is given back aside, too.
impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            workfile::release(file);
        }
    }
}
