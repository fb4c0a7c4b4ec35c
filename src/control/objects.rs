//! `PUT` and `GET /objects/<key>`: what the storage's own presigned URLs lead to.
//!
//! The signature is looked at before anything else, and a 2xx is only said once the artifact is synced and
//! has its name. A body that is cut, too short or too long leaves nothing behind.

use std::io::Write;

use super::http::{Conn, HttpError, Request, Status};
use super::plane::Plane;
use super::storage::sign::{Method, Permit};
use super::storage::{Directory, Put, StorageError};
use crate::clock::unix_ms;

/// One read of the body.
const CHUNK: usize = 256 << 10;

/// Takes an artifact.
///
/// # Errors
/// An answer to a request that is refused, or the connection's end.
pub fn put(plane: &Plane, request: &Request, conn: &mut Conn) -> Result<(), HttpError> {
    let permit = permit(plane, Method::Put, request)?;
    let length = request
        .content_length()
        .ok_or(HttpError::Bad(Status::LENGTH_REQUIRED, "a Content-Length is needed"))?;
    if !plane.books().expects(permit.key()) {
        return Err(HttpError::Bad(Status::CONFLICT, "the run of this object is over"));
    }
    let put = directory(plane)?.begin_put(&permit, length).map_err(|e| refuse(&e))?;
    let mut body = conn.body(length)?;
    let put = receive(put, &mut |buffer| body.next(buffer))?;
    body.finish()?;
    // It may have ended while its bytes came; what it left would be known to nobody.
    if !plane.books().expects(permit.key()) {
        return Err(HttpError::Bad(Status::CONFLICT, "the run of this object is over"));
    }
    let stored = put.commit().map_err(|error| refuse(&error))?;
    match plane.books().uploaded(permit.key(), stored) {
        Ok(true) => conn.respond(Status::CREATED, "stored"),
        Ok(false) => Err(HttpError::Bad(Status::CONFLICT, "the run of this object is over")),
        Err(error) => {
            log::error!("failed to note the upload of {}: {error}", permit.key());
            Err(HttpError::Bad(Status::UNAVAILABLE, "the catalogue cannot be written"))
        }
    }
}

/// Gives an artifact.
///
/// # Errors
/// As [`put`].
pub fn get(plane: &Plane, request: &Request, conn: &mut Conn) -> Result<(), HttpError> {
    let permit = permit(plane, Method::Get, request)?;
    let (mut file, length) =
        directory(plane)?.begin_get(&permit).map_err(|error| refuse(&error))?;
    conn.respond_with(length, &mut file)
}

/// Only a directory is served here; another storage serves itself.
fn directory(plane: &Plane) -> Result<&Directory, HttpError> {
    let nothing = HttpError::Bad(Status::NOT_FOUND, "there is nothing here");
    plane.books().storage().directory().ok_or(nothing)
}

fn permit(plane: &Plane, method: Method, request: &Request) -> Result<Permit, HttpError> {
    let target = format!("{}?{}", request.path, request.query.expose());
    directory(plane)?.permit(method, &target, unix_ms()).map_err(|denied| {
        log::warn!("refused a request for {}: {denied}", request.path);
        HttpError::Bad(Status::FORBIDDEN, "this URL is not, or no longer, good for that")
    })
}

fn receive(
    mut put: Put,
    next: &mut dyn FnMut(&mut [u8]) -> Result<usize, HttpError>,
) -> Result<Put, HttpError> {
    let mut buffer = vec![0u8; CHUNK];
    loop {
        let n = next(&mut buffer)?;
        if n == 0 {
            return Ok(put);
        }
        put.write_all(&buffer[..n]).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                log::error!("an upload failed: the storage is full");
                HttpError::Bad(Status::NO_STORAGE, "the storage is full")
            }
            _ => {
                log::error!("an upload failed: {error}");
                HttpError::Bad(Status::UNAVAILABLE, "the storage cannot be written")
            }
        })?;
    }
}

/// The answer for what the storage said; people find its words in the log.
fn refuse(error: &StorageError) -> HttpError {
    log::warn!("an object was refused: {error}");
    match error {
        StorageError::Full { .. } => HttpError::Bad(Status::NO_STORAGE, "the storage is full"),
        StorageError::TooLarge { .. } => {
            HttpError::Bad(Status::TOO_LARGE, "this is more than the URL is good for")
        }
        StorageError::Finished { .. } => {
            HttpError::Bad(Status::CONFLICT, "the object belongs to a finished backup")
        }
        StorageError::NotFound { .. } => HttpError::Bad(Status::NOT_FOUND, "no such object"),
        StorageError::Short { .. } => HttpError::Bad(Status::BAD_REQUEST, "the body is too short"),
        StorageError::Io { error, .. }
            if matches!(
                error.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ) =>
        {
            HttpError::Bad(Status::NO_STORAGE, "the storage is full")
        }
        _ => HttpError::Bad(Status::UNAVAILABLE, "the storage cannot be used"),
    }
}
