//! Presigned URLs for one bucket. The signing itself is `rusty-s3`'s.

use std::fmt;

use jiff::Timestamp;
use rusty_s3::signing::sign;
use rusty_s3::{Bucket, Method, UrlStyle};

use super::settings::S3Settings;
use crate::config::HostPolicy;
use crate::control::storage::Presigned;
use crate::drivers::secrets::resolve;
use crate::secret::Secret;

/// A signature lives at most seven days.
const MAX_SECONDS: u64 = 7 * 86_400;

/// Bucket and keys.
pub(super) struct Signing {
    bucket: Bucket,
    access_key: Secret,
    secret_key: Secret,
    session_token: Option<Secret>,
}

impl Signing {
    /// Follows the references to the keys.
    pub(super) fn new(settings: &S3Settings, policy: &HostPolicy) -> Result<Self, String> {
        let style = if settings.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let endpoint = settings.endpoint.parse().map_err(|_| "`endpoint` is no URL".to_owned())?;
        let (name, region) = (settings.bucket.clone(), settings.region.clone());
        let bucket = Bucket::new(endpoint, style, name, region).map_err(|_| {
            "bucket and endpoint make no host name; set path_style = true".to_owned()
        })?;
        let key = |name: &str, reference: &Secret| {
            let key = resolve(reference, policy).map_err(|error| format!("`{name}`: {error}"))?;
            let key = Secret::new(key.expose().trim());
            if key.is_empty() || !key.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("`{name}` is empty or has letters that no key has"));
            }
            Ok(key)
        };
        let session_token = settings.session_token.as_ref();
        Ok(Self {
            bucket,
            access_key: key("access_key", &settings.access_key)?,
            secret_key: key("secret_key", &settings.secret_key)?,
            session_token: session_token.map(|token| key("session_token", token)).transpose()?,
        })
    }

    /// A URL for an object, or (without one) for the bucket itself, good until about `until_ms`.
    pub(super) fn presign(
        &self,
        method: Method,
        object: Option<&str>,
        query: &[(&str, &str)],
        now_ms: u64,
        until_ms: u64,
    ) -> Presigned {
        let url = match object {
            Some(object) => self.bucket.object_url(object),
            None => self.bucket.base_url().clone(),
        };
        let now_s = now_ms / 1000;
        let seconds = (until_ms / 1000).saturating_sub(now_s).clamp(1, MAX_SECONDS);
        let date = i64::try_from(now_s).ok().and_then(|s| Timestamp::from_second(s).ok());
        let mut query = query.to_vec();
        query.sort_unstable();
        let url = sign(
            &date.unwrap_or(Timestamp::MAX),
            method,
            url,
            self.access_key.expose(),
            self.secret_key.expose(),
            self.session_token.as_ref().map(Secret::expose),
            self.bucket.region(),
            seconds,
            query.into_iter(),
            std::iter::empty(),
        );
        Presigned { url: Secret::new(url), expires_at_ms: (now_s + seconds) * 1000 }
    }
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signing")
    }
}
