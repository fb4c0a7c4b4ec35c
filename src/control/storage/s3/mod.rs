//! A bucket of an S3-compatible service as a storage.
//!
//! ```text
//! PREFIX/.backupy-storage                              the marker: "backupy storage 1", and an id
//! PREFIX/shop/20261123T030000Z-RUN-1.bky               an artifact
//! PREFIX/shop/20261123T030000Z-RUN-1.bky.json          its manifest
//! PREFIX/.backupy-probe-…                              written, read and removed at the start
//! ```
//! Every request goes to a presigned URL: the agent's uploads go straight to the service, and the control plane
//! never holds their bytes. So the hash of an artifact is the agent's word here, its size the service's; what is
//! restored or verified is hashed again.
//!
//! The marker plays the part that it plays in a [`Directory`](super::Directory). A bucket that is known but out of
//! reach is no reason not to start: until its marker was seen nothing is written or removed.
//!
//! | what | how |
//! |---|---|
//! | read, write, remove | `GET`, `PUT`, `DELETE` of one object |
//! | size | `HEAD`; a 404 counts only with the marker in its place |
//! | list | `ListObjectsV2`, a page of 1,000 after the other |
//! | a request | 90 s with all its tries; 5xx, 429, resets and timeouts are repeated with growing pauses |

mod client;
mod download;
mod error;
mod judge;
mod list;
mod multipart;
mod settings;
mod signing;
#[cfg(test)]
mod tests;
mod xml;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusty_s3::Method;

use super::{
    Listed, MANIFEST, MANIFEST_MAX, ObjectKey, Presigned, Reach, Storage, StorageError, marker,
};
use crate::control::durable::random_hex;
use crate::pipeline::upload::Timing;
use crate::thread::Why;
use client::{Client, Request};
use download::Stream;
pub use error::{Doing, S3Error, S3Fault};
pub use settings::{REGION, Raw, S3Settings};

/// Objects under the prefix beyond which it is taken for somebody else's.
const OBJECTS_MAX: usize = 2_000_000;

/// A look at the marker with all its tries: a scheduler may be waiting.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Beginning of a probe's name.
const PROBE: &str = ".backupy-probe-";

/// The storage. Clones are the same one.
#[derive(Debug, Clone)]
pub struct S3 {
    client: Arc<Client>,
    id: Arc<str>,
    /// Whether its marker was there, with our id in it.
    seen: Arc<AtomicBool>,
}

impl S3 {
    /// Opens the storage. `known_id` is the one in the catalogue.
    ///
    /// # Errors
    /// When it cannot be reached, is not a storage, or another one.
    pub fn open(
        settings: &S3Settings,
        reach: &Reach,
        known_id: Option<&str>,
    ) -> Result<Self, StorageError> {
        let storage = Self::start(settings, reach, client::timing())?;
        storage.open_as(known_id)
    }

    /// Opens the storage, or makes one of the bucket: for the very first start, when the catalogue knows of none.
    ///
    /// # Errors
    /// As [`S3::open`], or when it cannot be made.
    pub fn open_or_init(settings: &S3Settings, reach: &Reach) -> Result<Self, StorageError> {
        let storage = Self::start(settings, reach, client::timing())?;
        storage.init()?;
        storage.open_as(None)
    }

    /// A storage that is known, without asking for it: nothing is written to it until its marker was seen.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn known(settings: &S3Settings, reach: &Reach, id: &str) -> Result<Self, StorageError> {
        let mut storage = Self::start(settings, reach, client::timing())?;
        storage.id = id.into();
        Ok(storage)
    }

    fn start(settings: &S3Settings, reach: &Reach, timing: Timing) -> Result<Self, StorageError> {
        let client = Arc::new(Client::new(settings, reach, timing)?);
        Ok(Self { client, id: "".into(), seen: Arc::default() })
    }

    fn open_as(mut self, known_id: Option<&str>) -> Result<Self, StorageError> {
        let id = self.marker()?;
        if known_id.is_some_and(|known| known != id) {
            return Err(self.client.error(Doing::Read, S3Fault::Another).into());
        }
        self.id = id.into();
        self.seen.store(true, Ordering::Relaxed);
        Ok(self)
    }

    /// Puts a marker there, if there is none.
    fn init(&self) -> Result<(), StorageError> {
        match self.marker() {
            Err(S3Error { fault: S3Fault::NoMarker, .. }) => {}
            other => return other.map(drop).map_err(Into::into),
        }
        let text = marker::fresh().map_err(|error| self.setting(&error))?;
        // Where this is not understood, the marker that was written last is everybody's.
        let headers = [("if-none-match", "*")];
        let request = Request {
            body: Some(text.as_bytes()),
            headers: &headers,
            ..Request::new(Doing::Write, Method::Put, marker::MARKER)
        };
        match self.client.ask(&request) {
            // Somebody else was faster.
            Err(S3Error { fault: S3Fault::Refused { status: 412, .. }, .. }) => Ok(()),
            // A service that does not know the header.
            Err(S3Error { fault: S3Fault::Refused { status: 501, .. }, .. }) => {
                self.written(self.client.ask(&Request { headers: &[], ..request }))
            }
            other => self.written(other),
        }
    }

    fn setting(&self, error: &std::io::Error) -> S3Error {
        self.client.error(Doing::Write, S3Fault::Setting(error.to_string()))
    }

    /// The id in the marker.
    fn marker(&self) -> Result<String, S3Error> {
        let request = Request {
            most: marker::MAX,
            timeout: LOOK_TIMEOUT,
            ..Request::new(Doing::Read, Method::Get, marker::MARKER)
        };
        let fault = match self.client.ask(&request)? {
            None => S3Fault::NoMarker,
            Some(answer) => match std::str::from_utf8(&answer.body).ok().and_then(marker::id) {
                Some(id) => return Ok(id.to_owned()),
                None => S3Fault::Marker,
            },
        };
        self.client.note(Doing::Read, Err(fault))
    }

    /// Looks at the marker, unless it was seen since the start.
    fn seen(&self) -> Result<(), StorageError> {
        if self.seen.load(Ordering::Relaxed) { Ok(()) } else { self.check() }
    }

    pub(super) fn another(&self) -> StorageError {
        self.client.error(Doing::Read, S3Fault::Another).into()
    }

    /// Ends every wait, now and later.
    pub fn stop(&self) {
        self.client.cancel().cancel(Why::Shutdown);
    }

    /// What was wrong the last time, if anything was.
    pub fn trouble(&self) -> Option<String> {
        match self.client.trouble() {
            None if !self.seen.load(Ordering::Relaxed) => {
                Some("the bucket was not reached since the start".to_owned())
            }
            trouble => trouble,
        }
    }

    /// Whether it should be looked for: it was out of reach the last time, or not seen since the start.
    pub fn is_away(&self) -> bool {
        self.client.is_away() || !self.seen.load(Ordering::Relaxed)
    }

    /// Writes an object, reads it back and removes it, and lists: everything that will be needed some day.
    ///
    /// # Errors
    /// What is missing.
    pub fn probe(&self) -> Result<(), StorageError> {
        self.seen()?;
        let name = random_hex(8).map_err(|error| self.setting(&error))?;
        let name = format!("{PROBE}{name}");
        let body = format!("backupy writes, reads and removes this\n{name}\n");
        self.put(&name, body.as_bytes())?;
        let back = self.get(Doing::Read, &name, 4096);
        let removed = self.remove(&name);
        if back?.as_deref() != Some(body.as_bytes()) {
            return Ok(self.client.note(Doing::Read, Err(S3Fault::NotKept))?);
        }
        removed?;
        self.page(None, 1)?;
        self.uploads(None).map(drop)
    }

    fn put(&self, object: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let request =
            Request { body: Some(bytes), ..Request::new(Doing::Write, Method::Put, object) };
        self.written(self.client.ask(&request))
    }

    fn written<T>(&self, answer: Result<Option<T>, S3Error>) -> Result<(), StorageError> {
        match answer? {
            Some(_) => Ok(()),
            // Nothing can be missing for a PUT but the bucket.
            None => Ok(self.client.note(Doing::Write, Err(S3Fault::NoBucket))?),
        }
    }

    fn get(&self, doing: Doing, object: &str, most: u64) -> Result<Option<Vec<u8>>, S3Error> {
        let request = Request { most, ..Request::new(doing, Method::Get, object) };
        Ok(self.client.ask(&request)?.map(|answer| answer.body))
    }

    fn remove(&self, object: &str) -> Result<(), StorageError> {
        self.seen()?;
        // One that is not there is no error.
        self.client.ask(&Request::new(Doing::Remove, Method::Delete, object))?;
        Ok(())
    }

    /// An emptied or foreign bucket must not read as a lost backup.
    fn missing(&self, key: &ObjectKey) -> StorageError {
        match self.check() {
            Ok(()) => StorageError::NotFound { key: key.clone() },
            Err(error) => error,
        }
    }

    fn page(&self, token: Option<&str>, keys: usize) -> Result<list::Page, StorageError> {
        let keys = keys.to_string();
        let prefix = self.client.prefix();
        let mut query = vec![("list-type", "2"), ("max-keys", keys.as_str()), ("prefix", prefix)];
        query.extend(token.map(|token| ("continuation-token", token)));
        let request = Request {
            object: None,
            query: &query,
            most: list::MAX_ANSWER,
            ..Request::new(Doing::List, Method::Get, "")
        };
        let page = match self.client.ask(&request)? {
            Some(answer) => list::objects(&answer.body).map_err(S3Fault::Nonsense),
            None => Err(S3Fault::NoBucket),
        };
        Ok(self.client.note(Doing::List, page)?)
    }

    /// Calls `each` for every object, with its name below the prefix and its size.
    fn each(&self, each: &mut dyn FnMut(&str, u64)) -> Result<(), StorageError> {
        let nonsense =
            |why| StorageError::from(self.client.error(Doing::List, S3Fault::Nonsense(why)));
        let mut token: Option<String> = None;
        let mut pages = 0;
        loop {
            let page = self.page(token.as_deref(), list::PAGE)?;
            for (key, size) in &page.objects {
                if let Some(name) = key.strip_prefix(self.client.prefix()) {
                    each(name, *size);
                }
            }
            match page.next {
                None => return Ok(()),
                next if next == token => return Err(nonsense("the list does not go on")),
                next => token = next,
            }
            pages += 1;
            // Also for a list whose pages are empty.
            if pages * list::PAGE >= OBJECTS_MAX {
                return Err(nonsense("there are more than 2,000,000 objects under the prefix"));
            }
        }
    }
}

impl Storage for S3 {
    fn id(&self) -> &str {
        &self.id
    }

    fn check(&self) -> Result<(), StorageError> {
        if self.marker()? != *self.id {
            self.seen.store(false, Ordering::Relaxed);
            return Ok(self.client.note(Doing::Read, Err(S3Fault::Another))?);
        }
        self.seen.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        S3::trouble(self)
    }

    fn hashes_uploads(&self) -> bool {
        false
    }

    /// S3 has no URL with a limit: `max_bytes` is not enforced.
    fn presign_put(
        &self,
        key: &ObjectKey,
        _: u64,
        expires_at_ms: u64,
    ) -> Result<Presigned, StorageError> {
        self.seen()?;
        Ok(self.client.presign(Method::Put, key.as_str(), &[], expires_at_ms))
    }

    fn presign_get(&self, key: &ObjectKey, expires_at_ms: u64) -> Result<Presigned, StorageError> {
        Ok(self.client.presign(Method::Get, key.as_str(), &[], expires_at_ms))
    }

    fn open(&self, key: &ObjectKey) -> Result<Box<dyn Read + Send>, StorageError> {
        match Stream::open(&self.client, key.to_string())? {
            Some(stream) => Ok(Box::new(stream)),
            None => Err(self.missing(key)),
        }
    }

    fn size(&self, key: &ObjectKey) -> Result<Option<u64>, StorageError> {
        let answer =
            match self.client.ask(&Request::new(Doing::Measure, Method::Head, key.as_str())) {
                // The answer to HEAD has no body that would say why; the marker's has.
                Err(error) if !error.fault.is_away() => {
                    self.marker()?;
                    return Err(error.into());
                }
                other => other?,
            };
        let Some(answer) = answer else {
            self.check()?;
            return Ok(None);
        };
        match answer.head.length() {
            Some(length) => Ok(Some(length)),
            None => {
                let fault = S3Fault::Nonsense("the object has no length");
                Err(self.client.error(Doing::Measure, fault).into())
            }
        }
    }

    fn write_manifest(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), StorageError> {
        if bytes.len() as u64 > MANIFEST_MAX {
            return Err(StorageError::ManifestTooLarge { key: key.clone() });
        }
        self.seen()?;
        self.put(&manifest(key), bytes)
    }

    fn read_manifest(&self, key: &ObjectKey) -> Result<Vec<u8>, StorageError> {
        match self.get(Doing::Read, &manifest(key), MANIFEST_MAX)? {
            Some(bytes) => Ok(bytes),
            None => Err(self.missing(key)),
        }
    }

    fn delete_manifest(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.remove(&manifest(key))
    }

    fn delete_artifact(&self, key: &ObjectKey) -> Result<(), StorageError> {
        self.remove(key.as_str())
    }

    fn list(&self) -> Result<Vec<Listed>, StorageError> {
        self.check()?;
        let mut found: BTreeMap<ObjectKey, (Option<u64>, bool)> = BTreeMap::new();
        self.each(&mut |name, size| {
            let (artifact, manifest) = match name.strip_suffix(MANIFEST) {
                Some(artifact) => (artifact, true),
                None => (name, false),
            };
            let Ok(key) = ObjectKey::parse(artifact) else { return };
            let entry = found.entry(key).or_default();
            if manifest { entry.1 = true } else { entry.0 = Some(size) }
        })?;
        let listed = |(key, (size_bytes, manifest))| Listed { key, size_bytes, manifest };
        Ok(found.into_iter().map(listed).collect())
    }
}

fn manifest(key: &ObjectKey) -> String {
    format!("{key}{MANIFEST}")
}
