//! Multipart uploads as the control plane sees them: it creates them, signs what the agent needs for the parts and
//! their end, and gives up those that nobody owns any more.

use rusty_s3::Method;

use super::client::Request;
use super::error::{Doing, S3Error, S3Fault};
use super::list::{self, MAX_ANSWER, PAGE};
use super::{OBJECTS_MAX, S3};
use crate::control::storage::{ObjectKey, Storage as _, StorageError};
use crate::model::PartUrl;
use crate::secret::Secret;

/// Longest name of an upload, bytes.
const MAX_ID: usize = 2 << 10;

impl S3 {
    /// Creates an upload; its id. `None` where the service knows no uploads in parts.
    ///
    /// # Errors
    /// When it cannot be reached, or refuses for another reason.
    pub fn create_upload(&self, key: &ObjectKey) -> Result<Option<String>, StorageError> {
        self.seen()?;
        let request = Request {
            query: &[("uploads", "")],
            body: Some(b""),
            ..Request::new(Doing::Begin, Method::Post, key.as_str())
        };
        let answer = match self.client.ask(&request) {
            Err(error) if is_unknown(&error) => return Ok(None),
            other => other?,
        };
        let id = match answer {
            Some(answer) => list::upload_id(&answer.body).map_err(S3Fault::Nonsense),
            None => Err(S3Fault::NoBucket),
        };
        let id = id.and_then(|id| match id.len() {
            1..=MAX_ID => Ok(id),
            _ => Err(S3Fault::Nonsense("the upload has no usable id")),
        });
        Ok(Some(self.client.note(Doing::Begin, id)?))
    }

    /// URLs for `count` parts from `first` on.
    pub fn part_urls(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        first: u32,
        count: u32,
        until_ms: u64,
    ) -> Vec<PartUrl> {
        let one = |number: u32| {
            let text = number.to_string();
            let query = [("partNumber", text.as_str()), ("uploadId", upload_id)];
            let url = self.client.presign(Method::Put, key.as_str(), &query, until_ms).url;
            PartUrl { number, url }
        };
        (first..first.saturating_add(count)).map(one).collect()
    }

    /// The URLs to complete an upload (POST) and to give it up (DELETE).
    pub fn end_urls(&self, key: &ObjectKey, upload_id: &str, until_ms: u64) -> (Secret, Secret) {
        let query = [("uploadId", upload_id)];
        let url = |method| self.client.presign(method, key.as_str(), &query, until_ms).url;
        (url(Method::Post), url(Method::Delete))
    }

    /// Gives up every upload of an artifact below the prefix that `is_owned` does not know; how many there were. Where
    /// the service knows no uploads in parts, there are none.
    ///
    /// # Errors
    /// When it cannot be reached, or refuses.
    pub fn abort_uploads(
        &self,
        is_owned: &dyn Fn(&ObjectKey, &str) -> bool,
    ) -> Result<usize, StorageError> {
        self.check()?;
        let (mut aborted, mut failed) = (0, None);
        let mut next: Option<(String, String)> = None;
        for _ in 0..OBJECTS_MAX / PAGE {
            let Some(page) = self.uploads(next.as_ref())? else { return Ok(0) };
            for (name, upload_id) in &page.uploads {
                let name = name.strip_prefix(self.client.prefix());
                let Some(Ok(key)) = name.map(ObjectKey::parse) else { continue };
                if !is_owned(&key, upload_id) {
                    match self.abort_upload(&key, upload_id) {
                        Ok(()) => aborted += 1,
                        Err(error) if self.client.is_away() => return Err(error),
                        // One that cannot be given up must not keep the others.
                        Err(error) => failed = Some(error),
                    }
                }
            }
            if page.next.is_none() || page.next == next {
                break;
            }
            next = page.next;
        }
        failed.map_or(Ok(aborted), Err)
    }

    fn abort_upload(&self, key: &ObjectKey, upload_id: &str) -> Result<(), StorageError> {
        let request = Request {
            query: &[("uploadId", upload_id)],
            ..Request::new(Doing::Abort, Method::Delete, key.as_str())
        };
        match self.client.ask(&request) {
            // Somebody else did.
            Err(S3Error { fault: S3Fault::Refused { status: 404, .. }, .. }) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    pub(super) fn uploads(
        &self,
        from: Option<&(String, String)>,
    ) -> Result<Option<list::Uploads>, StorageError> {
        let most = PAGE.to_string();
        let mut query =
            vec![("uploads", ""), ("max-uploads", most.as_str()), ("prefix", self.client.prefix())];
        if let Some((key, upload_id)) = from {
            query.extend([("key-marker", key.as_str()), ("upload-id-marker", upload_id.as_str())]);
        }
        let request = Request {
            object: None,
            query: &query,
            most: MAX_ANSWER,
            ..Request::new(Doing::Uploads, Method::Get, "")
        };
        let page = match self.client.ask(&request) {
            Err(error) if is_unknown(&error) || has_no_list(&error) => {
                self.client.note(Doing::Uploads, Ok(()))?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
            Ok(Some(answer)) => list::uploads(&answer.body).map_err(S3Fault::Nonsense),
            Ok(None) => Err(S3Fault::NoBucket),
        };
        Ok(Some(self.client.note(Doing::Uploads, page)?))
    }
}

/// Whether the service says that it has no such thing.
fn is_unknown(error: &S3Error) -> bool {
    matches!(error.fault, S3Fault::Refused { status: 405 | 501, .. })
}

/// Whether the service takes uploads in parts but does not list them (rclone's answer).
fn has_no_list(error: &S3Error) -> bool {
    matches!(&error.fault, S3Fault::Refused { status: 404, code, .. } if code == "NoSuchUpload")
}
