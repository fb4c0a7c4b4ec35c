//! The copy of a database that nobody has open: its files as they are, and unchanged since.
//!
//! Consistent because nothing changed between the look before and the look after: size, inode and both times
//! of the database, its WAL and its journal are the same, and were old enough at the first look that a later
//! write had to change them ([`Seen::settles_in`]). Whoever opens the database meanwhile is not hindered by us
//! and, if they write, makes this try void. What a crash left to do (a WAL to check in, a journal to roll
//! back) is done in the copy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags};

use super::check::number;
use super::inspect::{Seen, Stamp, denied, inspect, open};
use super::{SqliteFault, Stop, percent};
use crate::drivers::workfile::{WorkFile, with_suffix};
use crate::drivers::{Context, DriverError, space};
use crate::model::{Progress, Step};

/// Copied between two looks at the cancel.
const PIECE_BYTES: u64 = 4 << 20;

/// Copies the files into `snapshot` and its companions, then makes one file of them.
pub(super) fn copy(
    real: &Path,
    seen: &Seen,
    snapshot: &WorkFile,
    file: File,
    cx: &Context<'_>,
) -> Result<(), Stop> {
    if !seen.settles_in(SystemTime::now()).is_zero() {
        return Err(SqliteFault::Changing.into());
    }
    let total = seen.bytes();
    copy_file(real, &seen.main, file, snapshot.path(), total, cx)?;
    for (suffix, stamp) in [("-wal", seen.wal), ("-journal", seen.journal)] {
        if let Some(stamp) = stamp.filter(|stamp| stamp.bytes > 0) {
            let to = with_suffix(snapshot.path(), suffix);
            let file = create(&to)?;
            copy_file(&with_suffix(real, suffix), &stamp, file, &to, total, cx)?;
        }
    }
    if !inspect(real)?.same_content(seen) {
        return Err(SqliteFault::Changing.into());
    }
    merge(snapshot.path())?;
    Ok(())
}

fn create(path: &Path) -> Result<File, DriverError> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map_err(|source| DriverError::Work { path: path.to_owned(), source })
}

/// Copies one file of the size it had when it was looked at.
fn copy_file(
    from: &Path,
    stamp: &Stamp,
    mut target: File,
    to: &Path,
    total: u64,
    cx: &Context<'_>,
) -> Result<(), Stop> {
    // Gone since it was looked at a moment ago: somebody is at work there.
    let mut source = open(from).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SqliteFault::Changing,
        _ => denied(error),
    })?;
    let (mut done, mut checked) = (0, 0);
    while done < stamp.bytes {
        if let Some(why) = cx.cancel.why() {
            return Err(DriverError::Cancelled(why).into());
        }
        let mut piece = io::Read::take(&mut source, PIECE_BYTES.min(stamp.bytes - done));
        let copied = io::copy(&mut piece, &mut target)
            .map_err(|source| DriverError::Work { path: to.to_owned(), source })?;
        if copied == 0 {
            return Err(SqliteFault::Changing.into());
        }
        done += copied;
        if done >= checked + space::EVERY_BYTES {
            checked = done;
            space::check(cx.work_dir, 0, cx.limits)?;
        }
        let percent = percent(0, done, total);
        (cx.progress)(Progress { step: Step::Dumping, percent, bytes: 0 });
    }
    Ok(())
}

/// Lets SQLite finish in the copy what a crash left, and leaves one file of exactly its pages.
fn merge(snapshot: &Path) -> Result<(), Stop> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(snapshot, flags)?;
    // Thrown away if it fails, so nothing has to be synced. The checkpoint does nothing without a WAL.
    copy.execute_batch("PRAGMA synchronous = OFF")?;
    copy.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let bytes = number(&copy, "PRAGMA page_count")? * number(&copy, "PRAGMA page_size")?;
    copy.close().map_err(|(_, error)| error)?;
    trim(snapshot, bytes)
        .map_err(|source| DriverError::Work { path: snapshot.to_owned(), source })?;
    Ok(())
}

/// A crash while the file grew leaves a tail that is not part of the database.
fn trim(snapshot: &Path, bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(snapshot)?;
    if file.metadata()?.len() > bytes {
        file.set_len(bytes)?;
    }
    Ok(())
}
