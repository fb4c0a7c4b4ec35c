//! Opening a directory: look, lock, look again, open, prove that it is ours.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Mutex, RwLock};

use super::check::{self, Found};
use super::engine::{Engine, EngineError, Op};
use super::files::{self, Ballast, Lock, Marker};
use super::inner::{COMPACT_BYTES, Inner, Writer};
use super::seal::{self, Sealer, StoreKey, UnwrapError};
use super::{Space, StoreError, StoreKeys};

/// Layout of marker and records.
const SCHEMA: u32 = 1;

const KEY_RECORD: &[u8] = b"store/key";
const IDENTITY_RECORD: &[u8] = b"store/identity";

/// What the store knows about itself, sealed like everything else.
#[derive(serde::Serialize, serde::Deserialize)]
struct Identity {
    schema: u32,
    store_id: String,
}

/// Whether an older layout may be brought up to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrations {
    /// Yes.
    Allowed,
    /// Not yet: the version that wrote it may come back. Whoever changes [`SCHEMA`] has to work with the layout before it
    /// as it is, because a new version is on trial in this way.
    Deferred,
}

/// Whether the store in `dir`, if there is one, has a layout that this version knows. Opens nothing; where that
/// cannot be told, opening it will say.
pub fn is_readable_by_this_version(dir: &Path) -> bool {
    !matches!(Marker::load(dir), Ok(Some(marker)) if marker.schema > SCHEMA)
}

/// See [`super::Store::open_as`].
pub fn open(
    dir: &Path,
    spaces: &[Space],
    keys: &StoreKeys,
    migrations: Migrations,
) -> Result<Inner, StoreError> {
    files::prepare_dir(dir)?;
    let lock = Lock::acquire(dir)?;
    let marker = Marker::load(dir)?;
    if let Some(marker) = marker.as_ref().filter(|marker| marker.schema > SCHEMA) {
        return Err(StoreError::TooNew { dir: dir.to_owned(), found: marker.schema });
    }
    let spaces = with_meta(spaces);
    if check::before_open(dir, marker.as_ref())? == Found::Nothing {
        create(dir, &spaces, keys)?;
    }
    check::mark_open(dir)?;
    let mut ballast = Ballast::new(dir);
    let engine = open_engine(dir, &spaces, &mut ballast)?;
    let (marker, sealer) = match prove(dir, &engine, keys, marker, migrations) {
        Ok(proved) => proved,
        Err(e) => {
            if engine.close() {
                check::mark_clean(dir);
            }
            return Err(e);
        }
    };
    ballast.restore();
    let journal_bytes = check::journal_files(&dir.join(files::DATABASE))?
        .iter()
        .map(|(_, path)| files::disk_bytes(path))
        .sum();
    Ok(Inner {
        dir: dir.to_owned(),
        spaces,
        marker,
        sealer,
        engine: RwLock::new(Some(engine)),
        writer: Mutex::new(Writer {
            lock: Some(lock),
            ballast,
            journal_bytes,
            compact_at: COMPACT_BYTES,
        }),
    })
}

fn with_meta(spaces: &[Space]) -> Vec<Space> {
    let mut all = vec![Space::Meta];
    for &space in spaces {
        if !all.contains(&space) {
            all.push(space);
        }
    }
    all
}

fn open_engine(dir: &Path, spaces: &[Space], ballast: &mut Ballast) -> Result<Engine, StoreError> {
    let path = dir.join(files::DATABASE);
    let opened = match Engine::open(&path, spaces) {
        Err(EngineError::Full) if ballast.give_up() => Engine::open(&path, spaces),
        opened => opened,
    };
    opened.map_err(|e| error(dir, e))
}

/// Makes a new database, aside and then at once, so that one that is there is always one that was finished.
fn create(dir: &Path, spaces: &[Space], keys: &StoreKeys) -> Result<(), StoreError> {
    let aside = dir.join(files::DATABASE_ASIDE);
    let path = dir.join(files::DATABASE);
    let unusable = |e| StoreError::writing(dir, &path, "create", e);
    // What a crash left of an earlier attempt; nobody was ever told that it held anything.
    match fs::remove_dir_all(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unusable(e)),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&aside).map_err(unusable)?;
    let engine = Engine::open(&aside, spaces).map_err(|e| error(dir, e))?;
    let introduced = introduce(dir, &engine, keys);
    if !engine.close() {
        return Err(error(dir, EngineError::Failed("it did not close in time".to_owned())));
    }
    introduced?;
    fs::rename(&aside, &path).and_then(|()| files::sync_dir(dir)).map_err(unusable)
}

/// Gives a new database its key and its name.
fn introduce(dir: &Path, engine: &Engine, keys: &StoreKeys) -> Result<(), StoreError> {
    let key = StoreKey::generate().map_err(|_| random(dir))?;
    let mut id = [0u8; 16];
    seal::fill(&mut id).map_err(|_| random(dir))?;
    let identity = Identity { schema: SCHEMA, store_id: crate::hex::hex(&id) };
    let identity = serde_json::to_vec(&identity).unwrap_or_default();
    let sealer = key.sealer().map_err(|_| random(dir))?;
    let identity =
        sealer.seal(Space::Meta.name(), IDENTITY_RECORD, &identity).map_err(|_| random(dir))?;
    let wrapped = key.wrap(&keys.current).map_err(|_| random(dir))?;
    put(dir, engine, vec![(KEY_RECORD, wrapped), (IDENTITY_RECORD, identity)])
}

/// Finds the store key, and compares what the store says about itself with the marker.
fn prove(
    dir: &Path,
    engine: &Engine,
    keys: &StoreKeys,
    marker: Option<Marker>,
    migrations: Migrations,
) -> Result<(Marker, Sealer), StoreError> {
    let record = engine.get(Space::Meta, KEY_RECORD).map_err(|e| error(dir, e))?;
    let record = record.ok_or_else(|| StoreError::damaged(dir, "the record of its key is gone"))?;
    let sealer = unwrap(dir, engine, &record, keys)?;
    let identity = identity(dir, engine, &sealer)?;
    if identity.schema > SCHEMA {
        return Err(StoreError::TooNew { dir: dir.to_owned(), found: identity.schema });
    }
    if marker.as_ref().is_some_and(|marker| marker.store_id != identity.store_id) {
        return Err(StoreError::damaged(
            dir,
            format!("the database is not the one that {} describes", files::MARKER),
        ));
    }
    let mut wanted = Marker {
        schema: migrate(identity.schema, migrations),
        store_id: identity.store_id,
        spaces: marker.as_ref().map(|marker| marker.spaces.clone()).unwrap_or_default(),
    };
    wanted.spaces.extend(engine.numbers().map(|(space, n)| (space.name().to_owned(), n)));
    if marker.as_ref() != Some(&wanted) {
        wanted.save(dir)?;
    }
    Ok((wanted, sealer))
}

/// The layout that the store has from now on. There is none before [`SCHEMA`] yet: the step from one to the next belongs
/// here, in one durable batch with the identity.
fn migrate(found: u32, migrations: Migrations) -> u32 {
    match migrations {
        Migrations::Allowed => SCHEMA,
        Migrations::Deferred => found,
    }
}

fn unwrap(
    dir: &Path,
    engine: &Engine,
    record: &[u8],
    keys: &StoreKeys,
) -> Result<Sealer, StoreError> {
    let damaged = || StoreError::damaged(dir, "the record of its key is not what was written");
    let key = match StoreKey::unwrap(record, &keys.current) {
        Ok(key) => key,
        Err(UnwrapError::Damaged) => return Err(damaged()),
        Err(UnwrapError::WrongKey) => {
            let wrong = || StoreError::WrongKey { dir: dir.to_owned() };
            let previous = keys.previous.as_ref().ok_or_else(wrong)?;
            let key = StoreKey::unwrap(record, previous).map_err(|_| wrong())?;
            let record = key.wrap(&keys.current).map_err(|_| random(dir))?;
            put(dir, engine, vec![(KEY_RECORD, record)])?;
            log::info!("the state in {} belongs to the new agent key now", dir.display());
            key
        }
    };
    key.sealer().map_err(|_| random(dir))
}

/// The key of a store of which nothing else may be right.
pub fn find_sealer(engine: &Engine, keys: &StoreKeys) -> Option<Sealer> {
    let record = engine.get(Space::Meta, KEY_RECORD).ok()??;
    let keys = [Some(&keys.current), keys.previous.as_ref()];
    let mut found =
        keys.into_iter().flatten().filter_map(|key| StoreKey::unwrap(&record, key).ok());
    found.next()?.sealer().ok()
}

fn identity(dir: &Path, engine: &Engine, sealer: &Sealer) -> Result<Identity, StoreError> {
    let damaged = || StoreError::damaged(dir, "the record of its identity is gone or changed");
    let record = engine.get(Space::Meta, IDENTITY_RECORD).map_err(|e| error(dir, e))?;
    let record = record.ok_or_else(damaged)?;
    let bytes = sealer.open(Space::Meta.name(), IDENTITY_RECORD, &record).ok_or_else(damaged)?;
    serde_json::from_slice(&bytes).map_err(|_| damaged())
}

fn put(dir: &Path, engine: &Engine, records: Vec<(&[u8], Vec<u8>)>) -> Result<(), StoreError> {
    let ops: Vec<_> =
        records.into_iter().map(|(key, value)| Op::Put(Space::Meta, key.to_vec(), value)).collect();
    engine.commit(&ops).map_err(|e| error(dir, e))
}

fn random(dir: &Path) -> StoreError {
    StoreError::Failed { dir: dir.to_owned(), what: "the system gave no random numbers".to_owned() }
}

/// The engine's error as the store's.
pub fn error(dir: &Path, error: EngineError) -> StoreError {
    match error {
        EngineError::Full => StoreError::Full { dir: dir.to_owned() },
        EngineError::Locked => StoreError::Locked { dir: dir.to_owned(), pid: 0 },
        EngineError::Damaged(what) => StoreError::damaged(dir, what),
        EngineError::Failed(what) => StoreError::Failed { dir: dir.to_owned(), what },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_on_trial_leaves_the_layout_and_a_newer_one_is_not_read() {
        assert_eq!(migrate(SCHEMA - 1, Migrations::Deferred), SCHEMA - 1);
        assert_eq!(migrate(SCHEMA - 1, Migrations::Allowed), SCHEMA);
        let dir = tempfile::tempdir().unwrap();
        assert!(is_readable_by_this_version(dir.path()));
        let marker = |schema| Marker { schema, store_id: "s".into(), spaces: Default::default() };
        marker(SCHEMA).save(dir.path()).unwrap();
        assert!(is_readable_by_this_version(dir.path()));
        marker(SCHEMA + 1).save(dir.path()).unwrap();
        assert!(!is_readable_by_this_version(dir.path()));
    }
}
