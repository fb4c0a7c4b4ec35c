//! The multipart extension as plain values: credentials, the request for more part URLs, and its answer.

use super::proto;
use crate::model::{Multipart, PartUrl, UploadCreds};
use crate::secret::Secret;

/// A running upload needs URLs for more parts. Not a result: it is asked again while they are needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartUrlsRequest {
    /// The run.
    pub run_id: String,
    /// The upload, as its credentials call it.
    pub upload_id: String,
    /// The first part that has no URL.
    pub first_part: u32,
    /// How many from there on.
    pub count: u32,
}

/// URLs for more parts, or why there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartUrls {
    /// The run.
    pub run_id: String,
    /// The upload they belong to.
    pub upload_id: String,
    /// The URLs.
    pub parts: Vec<PartUrl>,
    /// Why there are none; empty = there are.
    pub error: String,
}

impl PartUrlsRequest {
    pub(super) fn into_proto(self) -> proto::PartUrlsRequest {
        let Self { run_id, upload_id, first_part, count } = self;
        proto::PartUrlsRequest { run_id, upload_id, first_part, count }
    }

    pub(super) fn from_proto(m: proto::PartUrlsRequest) -> Self {
        let proto::PartUrlsRequest { run_id, upload_id, first_part, count } = m;
        Self { run_id, upload_id, first_part, count }
    }
}

impl PartUrls {
    pub(super) fn into_proto(self) -> proto::PartUrls {
        proto::PartUrls {
            run_id: self.run_id,
            upload_id: self.upload_id,
            parts: parts_into_proto(self.parts),
            error: self.error,
        }
    }

    pub(super) fn from_proto(m: proto::PartUrls) -> Self {
        Self {
            run_id: m.run_id,
            upload_id: m.upload_id,
            parts: parts_from_proto(m.parts),
            error: m.error,
        }
    }
}

pub(super) fn creds_into_proto(creds: UploadCreds) -> proto::S3UploadCreds {
    proto::S3UploadCreds {
        presigned_put_url: creds.put_url.expose().to_owned(),
        expires_at_ms: creds.expires_at_ms,
        final_s3_key: creds.object_key,
        multipart: creds.multipart.map(|multipart| proto::MultipartUpload {
            upload_id: multipart.upload_id,
            part_size_bytes: multipart.part_size_bytes,
            parts: parts_into_proto(multipart.parts),
            complete_url: multipart.complete_url.expose().to_owned(),
            abort_url: multipart.abort_url.expose().to_owned(),
            expires_at_ms: multipart.expires_at_ms,
        }),
    }
}

pub(super) fn creds_from_proto(creds: proto::S3UploadCreds) -> UploadCreds {
    UploadCreds {
        put_url: Secret::new(creds.presigned_put_url),
        expires_at_ms: creds.expires_at_ms,
        object_key: creds.final_s3_key,
        multipart: creds.multipart.map(|multipart| Multipart {
            upload_id: multipart.upload_id,
            part_size_bytes: multipart.part_size_bytes,
            parts: parts_from_proto(multipart.parts),
            complete_url: Secret::new(multipart.complete_url),
            abort_url: Secret::new(multipart.abort_url),
            expires_at_ms: multipart.expires_at_ms,
        }),
    }
}

fn parts_into_proto(parts: Vec<PartUrl>) -> Vec<proto::PartUrl> {
    let one = |part: PartUrl| proto::PartUrl {
        part_number: part.number,
        url: part.url.expose().to_owned(),
    };
    parts.into_iter().map(one).collect()
}

fn parts_from_proto(parts: Vec<proto::PartUrl>) -> Vec<PartUrl> {
    let one =
        |part: proto::PartUrl| PartUrl { number: part.part_number, url: Secret::new(part.url) };
    parts.into_iter().map(one).collect()
}
