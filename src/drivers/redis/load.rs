//! A Redis dump on its way back: inspected here, loaded by the server itself when it starts.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use super::rdb::Watch;
use super::walk::{self, Lost};
use super::{RedisFault, rdb};
use crate::drivers::load::{Inspected, Table};
use crate::drivers::{Context, DriverError};
use crate::thread::Why;

const STEP_BYTES: usize = 256 << 10;

/// Compares marks and checksum, and counts the keys where that can be done.
pub(in crate::drivers) fn inspect(dump: &Path, cx: &Context<'_>) -> Result<Inspected, DriverError> {
    let broken = |source| DriverError::Work { path: dump.to_owned(), source };
    let mut file = File::open(dump).map_err(broken)?;
    let (whole, bytes) = judge(&mut file, dump, cx)?;
    file.rewind().map_err(broken)?;
    let mut inspected = Inspected::default();
    if !whole.checked {
        inspected
            .warnings
            .push("the dump has no checksum: only its beginning and end were compared".to_owned());
    }
    match walk::count(file, bytes, &|| cx.cancel.is_cancelled()) {
        Ok(counted) => {
            let database = |(number, keys)| Table { name: format!("db{number}"), rows: Some(keys) };
            inspected.tables.extend(counted.keys.into_iter().map(database));
            if counted.libraries > 0 {
                let name = "function libraries".to_owned();
                inspected.tables.push(Table { name, rows: Some(counted.libraries) });
            }
        }
        Err(Lost::Stopped) => return Err(cancelled(cx)),
        Err(Lost::Io(source)) => return Err(broken(source)),
        Err(Lost::Unknown(kind)) => inspected.warnings.push(format!(
            "the keys were not counted: the dump holds a type ({kind}) that this version does not know"
        )),
        Err(Lost::Astray) => inspected
            .warnings
            .push("the keys were not counted: the dump is written in a way that this version does not know".to_owned()),
    }
    Ok(inspected)
}

fn judge(file: &mut File, dump: &Path, cx: &Context<'_>) -> Result<(rdb::Whole, u64), DriverError> {
    let mut watch = Watch::default();
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        if cx.cancel.is_cancelled() {
            return Err(cancelled(cx));
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => watch.feed(&buffer[..count]).map_err(RedisFault::Rdb)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(DriverError::Work { path: dump.to_owned(), source }),
        }
    }
    let bytes = watch.bytes();
    Ok((watch.finish().map_err(RedisFault::Rdb)?, bytes))
}

fn cancelled(cx: &Context<'_>) -> DriverError {
    DriverError::Cancelled(cx.cancel.why().unwrap_or(Why::Requested))
}

/// Always refused, with the way to do it: the server reads an RDB only when it starts.
pub(in crate::drivers) fn load() -> Result<(), DriverError> {
    Err(RedisFault::NoLoader.into())
}
