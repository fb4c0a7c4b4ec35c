//! A directory on this host as a storage.
//!
//! ```text
//! ROOT/.backupy-storage                              the marker: "backupy storage 1", and an id
//! ROOT/shop/20261123T030000Z-RUN-1.bky               an artifact
//! ROOT/shop/20261123T030000Z-RUN-1.bky.json          its manifest
//! ROOT/shop/.20261123T030000Z-RUN-1.bky.a1b2.part    one that is being written
//! ```
//! Before anything is written or removed the marker is read: without it the disk is not mounted, and `/` must
//! not be filled in its place. The marker is made once, when the catalogue has never known a storage. Foreign
//! files in the directory are left alone and not looked at.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::sign::{Method, Permit, Signer};
use super::{
    Listed, MANIFEST, MANIFEST_MAX, ObjectKey, Presigned, Put, Storage, StorageError, marker,
};
use crate::control::durable::{self, Existing, PART};

pub use super::marker::MARKER;

/// So much stays free on the storage's disk.
const RESERVE_BYTES: u64 = 32 << 20;

/// The storage. Clones share the signing key.
#[derive(Debug, Clone)]
pub struct Directory {
    root: Arc<Root>,
    signer: Arc<Signer>,
    served_at: Arc<OnceLock<SocketAddr>>,
}

/// The directory itself with the id that its marker must have.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    id: String,
}

impl Directory {
    /// Opens the storage. `known_id` is the one in the catalogue.
    ///
    /// # Errors
    /// When it is not there, not a storage, or another one.
    pub fn open(path: &Path, known_id: Option<&str>) -> Result<Self, StorageError> {
        let id = read_marker(path)?;
        if known_id.is_some_and(|known| known != id) {
            return Err(StorageError::Another { root: path.to_owned() });
        }
        let signer = Signer::new().map_err(|error| io_error(path, error))?;
        Ok(Self {
            root: Arc::new(Root { path: path.to_owned(), id }),
            signer: Arc::new(signer),
            served_at: Arc::default(),
        })
    }

    /// Opens the storage, or makes one of the directory (which it creates, too): for the very first start, when
    /// the catalogue knows of none.
    ///
    /// # Errors
    /// As [`Directory::open`], or when it cannot be made.
    pub fn open_or_init(path: &Path) -> Result<Self, StorageError> {
        match Self::open(path, None) {
            Err(StorageError::NotMounted { .. }) => {
                init(path).map_err(|error| io_error(path, error))?;
                Self::open(path, None)
            }
            other => other,
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.root.path
    }

    /// Signs URLs so that they outlive this process; to be set before the first one is issued.
    #[must_use]
    pub fn signed_with(mut self, signer: Signer) -> Self {
        self.signer = Arc::new(signer);
        self
    }

    /// Where the loopback server answers for this storage; only the first call counts.
    pub fn serve_at(&self, addr: SocketAddr) {
        let _ = self.served_at.set(addr);
    }

    /// Checks a request for one of our URLs; see [`Signer::check`].
    ///
    /// # Errors
    /// When it is not signed for this.
    pub fn permit(
        &self,
        method: Method,
        target: &str,
        now_ms: u64,
    ) -> Result<Permit, super::sign::Denied> {
        self.signer.check(method, target, now_ms)
    }

    /// Begins an upload of exactly `length` bytes.
    ///
    /// # Errors
    /// When that is more than permitted or than there is room for, or the object belongs to a finished backup.
    pub fn begin_put(&self, permit: &Permit, length: u64) -> Result<Put, StorageError> {
        let key = permit.key().clone();
        if permit.method() != Method::Put || length > permit.max_bytes() {
            return Err(StorageError::TooLarge { key });
        }
        self.root.check()?;
        if self.root.manifest(&key).exists() {
            return Err(StorageError::Finished { key });
        }
        self.root.room_for(length)?;
        self.root.make_dir(&key)?;
        Put::begin(Arc::clone(&self.root), key, length)
    }

    /// Begins a download.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn begin_get(&self, permit: &Permit) -> Result<(File, u64), StorageError> {
        self.root.open_artifact(permit.key())
    }

    /// Removes what a crash left half-written; returns how many files. For the start, before uploads begin.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sweep(&self) -> Result<usize, StorageError> {
        self.root.check()?;
        let mut swept = 0;
        for dir in self.root.backup_dirs()? {
            for (name, path) in entries(&dir)? {
                if name.starts_with('.') && name.ends_with(PART) && is_orphan(&path) {
                    std::fs::remove_file(&path).map_err(|error| io_error(&path, error))?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }
}

impl Storage for Directory {
    fn id(&self) -> &str {
        &self.root.id
    }

    fn check(&self) -> Result<(), StorageError> {
        self.root.check()
    }

    fn trouble(&self) -> Option<String> {
        self.root.check().err().map(|error| error.to_string())
    }

    fn hashes_uploads(&self) -> bool {
        true
    }

    fn presign_put(
        &self,
        key: &ObjectKey,
        max_bytes: u64,
        expires_at_ms: u64,
    ) -> Result<Presigned, StorageError> {
        self.root.check()?;
        let addr = *self.served_at.get().ok_or(StorageError::NotServed)?;
        Ok(self.signer.sign(addr, Method::Put, key, max_bytes, expires_at_ms))
    }

    fn presign_get(&self, key: &ObjectKey, expires_at_ms: u64) -> Result<Presigned, StorageError> {
        let addr = *self.served_at.get().ok_or(StorageError::NotServed)?;
        Ok(self.signer.sign(addr, Method::Get, key, 0, expires_at_ms))
    }

    fn open(&self, key: &ObjectKey) -> Result<Box<dyn Read + Send>, StorageError> {
        Ok(Box::new(self.root.open_artifact(key)?.0))
    }

    fn size(&self, key: &ObjectKey) -> Result<Option<u64>, StorageError> {
        let path = self.root.artifact(key);
        match path.symlink_metadata() {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.root.check()?;
                Ok(None)
            }
            Err(error) => Err(io_error(&path, error)),
        }
    }

    fn write_manifest(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), StorageError> {
        if bytes.len() as u64 > MANIFEST_MAX {
            return Err(StorageError::ManifestTooLarge { key: key.clone() });
        }
        self.root.check()?;
        let path = self.root.manifest(key);
        durable::write(&path, bytes, 0o600, Existing::Replace)
            .map_err(|error| io_error(&path, error))
    }

    fn read_manifest(&self, key: &ObjectKey) -> Result<Vec<u8>, StorageError> {
        let path = self.root.manifest(key);
        let file = self.root.open_file(&path, key)?;
        let mut bytes = Vec::new();
        file.take(MANIFEST_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| io_error(&path, error))?;
        if bytes.len() as u64 > MANIFEST_MAX {
            return Err(StorageError::ManifestTooLarge { key: key.clone() });
        }
        Ok(bytes)
    }

    fn delete_manifest(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.root.delete(&self.root.manifest(key))
    }

    fn delete_artifact(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.root.delete(&self.root.artifact(key))
    }

    fn list(&self) -> Result<Vec<Listed>, StorageError> {
        self.root.check()?;
        let mut found: BTreeMap<ObjectKey, (Option<u64>, bool)> = BTreeMap::new();
        for dir in self.root.backup_dirs()? {
            let backup = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for (name, path) in entries(&dir)? {
                let (file, manifest) = match name.strip_suffix(MANIFEST) {
                    Some(file) => (file, true),
                    None => (name.as_str(), false),
                };
                let Ok(key) = ObjectKey::parse(&format!("{backup}/{file}")) else { continue };
                let metadata = path.symlink_metadata().map_err(|error| io_error(&path, error))?;
                if metadata.is_file() {
                    let entry = found.entry(key).or_default();
                    if manifest { entry.1 = true } else { entry.0 = Some(metadata.len()) }
                }
            }
        }
        let listed = |(key, (size_bytes, manifest))| Listed { key, size_bytes, manifest };
        Ok(found.into_iter().map(listed).collect())
    }
}

impl Root {
    pub(super) fn check(&self) -> Result<(), StorageError> {
        if read_marker(&self.path)? == self.id {
            Ok(())
        } else {
            Err(StorageError::Another { root: self.path.clone() })
        }
    }

    pub(super) fn artifact(&self, key: &ObjectKey) -> PathBuf {
        self.path.join(key.as_str())
    }

    fn manifest(&self, key: &ObjectKey) -> PathBuf {
        self.path.join(format!("{key}{MANIFEST}"))
    }

    fn room_for(&self, length: u64) -> Result<(), StorageError> {
        let stat =
            rustix::fs::statvfs(&self.path).map_err(|error| io_error(&self.path, error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed = length.saturating_add(RESERVE_BYTES);
        if free < needed {
            return Err(StorageError::Full { root: self.path.clone(), needed, free });
        }
        Ok(())
    }

    fn make_dir(&self, key: &ObjectKey) -> Result<(), StorageError> {
        let dir = self.path.join(key.backup());
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => durable::sync_dir(&self.path).map_err(|error| io_error(&self.path, error)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(io_error(&dir, error)),
        }
    }

    fn open_artifact(&self, key: &ObjectKey) -> Result<(File, u64), StorageError> {
        let path = self.artifact(key);
        let file = self.open_file(&path, key)?;
        let length = file.metadata().map_err(|error| io_error(&path, error))?.len();
        Ok((file, length))
    }

    fn open_file(&self, path: &Path, key: &ObjectKey) -> Result<File, StorageError> {
        File::open(path).map_err(|error| match error.kind() {
            // An unmounted disk must not read as a lost backup.
            io::ErrorKind::NotFound => match self.check() {
                Ok(()) => StorageError::NotFound { key: key.clone() },
                Err(error) => error,
            },
            _ => io_error(path, error),
        })
    }

    fn delete(&self, path: &Path) -> Result<(), StorageError> {
        self.check()?;
        match std::fs::remove_file(path) {
            Ok(()) => durable::sync_parent(path).map_err(|error| io_error(path, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error(path, error)),
        }
    }

    /// The directories that may be a backup's.
    fn backup_dirs(&self) -> Result<Vec<PathBuf>, StorageError> {
        let mut dirs = Vec::new();
        for (name, path) in entries(&self.path)? {
            let ours = ObjectKey::parse(&format!("{name}/x.bky")).is_ok();
            if ours && path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                dirs.push(path);
            }
        }
        Ok(dirs)
    }
}

/// Names and paths in a directory, in no order; names that are not UTF-8 are not ours.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, StorageError> {
    let listing = match std::fs::read_dir(dir) {
        // Every ext file system has it at its root, for root alone. Any other directory that cannot be read
        // may hold backups, and must not count as empty.
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied && dir.ends_with("lost+found") =>
        {
            return Ok(Vec::new());
        }
        other => other.map_err(|error| io_error(dir, error))?,
    };
    let mut entries = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|error| io_error(dir, error))?;
        if let Ok(name) = entry.file_name().into_string() {
            entries.push((name, entry.path()));
        }
    }
    Ok(entries)
}

/// Whether nobody writes this file any more.
fn is_orphan(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    !matches!(rustix::fs::flock(&file, lock), Err(rustix::io::Errno::WOULDBLOCK))
}

fn init(root: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    durable::write(&root.join(MARKER), marker::fresh()?.as_bytes(), 0o600, Existing::Keep)
}

fn read_marker(root: &Path) -> Result<String, StorageError> {
    let path = root.join(MARKER);
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            StorageError::NotMounted { root: root.to_owned() }
        }
        _ => io_error(&path, error),
    })?;
    let mut text = String::new();
    let read = file.take(marker::MAX).read_to_string(&mut text);
    let damaged = || StorageError::Marker { root: root.to_owned() };
    read.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => damaged(),
        _ => io_error(&path, error),
    })?;
    marker::id(&text).map(str::to_owned).ok_or_else(damaged)
}

fn io_error(path: &Path, error: io::Error) -> StorageError {
    StorageError::Io { path: path.to_owned(), error }
}
