//! Where an attempt's artifact goes: one object and a URL for it, and for an agent that can and a bucket that can, the
//! same in parts. What of that nobody owns any more is given up.

use std::time::Duration;

use super::{Books, Order, lock};
use crate::control::catalogue::{CatalogueError, Run};
use crate::control::plane::error::BooksError;
use crate::control::storage::{ObjectKey, S3, Storage as _};
use crate::model::{Multipart, UploadCreds};
use crate::pipeline::upload::multipart::plan::{DEFAULT_PART_BYTES, MAX_PART_BYTES, MAX_PARTS};
use crate::secret::SecretBytes;
use crate::wire::{PartUrls, PartUrlsRequest};

/// A URL is good for at least so long.
const URL_MIN: Duration = Duration::from_secs(3600);
/// Beyond the run's timeout, for the upload itself.
const URL_MARGIN: Duration = Duration::from_secs(600);
/// And at most so long.
const URL_MAX: Duration = Duration::from_secs(24 * 3600);
/// The URLs that complete an upload or give it up are good for so long, milliseconds; it is given up with its run, so
/// that they may be. No signature of S3's lives longer.
const ENDS_MS: u64 = 7 * 86_400_000;
/// Largest artifact, bytes: more than any PUT.
const ARTIFACT_MAX: u64 = 1 << 44;
/// URLs of parts that come with an order: enough for small backups, and the order stays small.
const FIRST_PARTS: u32 = 4;
/// Most that come on request.
const MORE_PARTS: u32 = 64;
/// A backup may grow by so much before its parts are too small for it.
const GROWTH: u64 = 4;
const LOOK_EVERY_MS: u64 = 3_600_000;

impl Books {
    /// A new object and URLs for it, for the next attempt of an open run; in parts too, if the agent can do that.
    pub(in crate::control::plane) fn order(
        &self,
        run_id: &str,
        timeout: Duration,
        in_parts: bool,
        now_ms: u64,
    ) -> Result<Order, BooksError> {
        let unknown = || CatalogueError::Unknown { run_id: run_id.to_owned() };
        let run = self.catalogue.get(run_id)?.ok_or_else(unknown)?;
        let wrapped = run.key.as_ref().ok_or_else(unknown)?;
        let data_key = lock(&self.master).unwrap(run_id, wrapped)?;
        let attempt = run.attempts.saturating_add(1);
        let key = ObjectKey::new(&run.backup, run_id, attempt, now_ms)
            .map_err(|error| BooksError::Io(std::io::Error::other(error)))?;
        let until_ms = good_until(timeout, now_ms);
        let presigned = self.storage.presign_put(&key, ARTIFACT_MAX, until_ms)?;
        // Until it is written down, an upload looks like one that nobody owns.
        let _uploads = lock(&self.uploads);
        let multipart = match self.storage.s3().filter(|_| in_parts) {
            Some(s3) => self.begin_upload(s3, &run, &key, now_ms, until_ms)?,
            None => None,
        };
        let upload_id = multipart.as_ref().map(|multipart| multipart.upload_id.as_str());
        let until_ms = multipart.as_ref().map_or(until_ms, |multipart| multipart.expires_at_ms);
        self.catalogue.issue(run_id, &key, until_ms, upload_id)?;
        let creds = UploadCreds {
            put_url: presigned.url,
            expires_at_ms: presigned.expires_at_ms,
            object_key: key.to_string(),
            multipart,
        };
        Ok(Order { creds, data_key: SecretBytes::new(data_key.expose()) })
    }

    fn begin_upload(
        &self,
        s3: &S3,
        run: &Run,
        key: &ObjectKey,
        now_ms: u64,
        until_ms: u64,
    ) -> Result<Option<Multipart>, BooksError> {
        let Some(upload_id) = s3.create_upload(key)? else { return Ok(None) };
        let ends_ms = until_ms.max(now_ms.saturating_add(ENDS_MS));
        let last = self.catalogue.newest_good(&run.backup)?;
        let last = last.and_then(|run| run.object).map_or(0, |object| object.size_bytes);
        let (complete_url, abort_url) = s3.end_urls(key, &upload_id, ends_ms);
        Ok(Some(Multipart {
            part_size_bytes: part_bytes(last),
            parts: s3.part_urls(key, &upload_id, 1, FIRST_PARTS, until_ms),
            complete_url,
            abort_url,
            expires_at_ms: ends_ms,
            upload_id,
        }))
    }

    /// Whether an order asks a service elsewhere.
    pub(in crate::control::plane) fn orders_take_time(&self) -> bool {
        self.storage.s3().is_some()
    }

    /// URLs for more parts of an open run's upload.
    pub(in crate::control::plane) fn more_parts(
        &self,
        request: &PartUrlsRequest,
        timeout: Duration,
        now_ms: u64,
    ) -> Result<PartUrls, BooksError> {
        let PartUrlsRequest { run_id, upload_id, first_part, count } = request;
        let mut answer = PartUrls {
            run_id: run_id.clone(),
            upload_id: upload_id.clone(),
            ..PartUrls::default()
        };
        let found = self.catalogue.upload_of(run_id, upload_id)?;
        match (found, self.storage.s3()) {
            (Some((key, _)), Some(s3)) if (1..=MAX_PARTS).contains(first_part) => {
                let count = (*count).clamp(1, MORE_PARTS).min(MAX_PARTS + 1 - first_part);
                let until_ms = good_until(timeout, now_ms);
                answer.parts = s3.part_urls(&key, upload_id, *first_part, count, until_ms);
            }
            (Some(_), Some(_)) => answer.error = format!("there is no part {first_part}"),
            _ => answer.error = "no open run has such an upload".to_owned(),
        }
        Ok(answer)
    }

    /// Gives up the uploads in parts that no open run owns: at the start, after a run and every hour. Returns when to
    /// look again.
    pub(in crate::control::plane) fn give_up_uploads(&self, now_ms: u64) -> u64 {
        // What is away is looked for elsewhere, and this is done once it is back.
        let Some(s3) = self.storage.s3().filter(|s3| !s3.is_away()) else { return u64::MAX };
        {
            let mut clock = lock(&self.clock);
            if now_ms < clock.uploads_at_ms && clock.uploads_at_ms <= now_ms + LOOK_EVERY_MS {
                return clock.uploads_at_ms;
            }
            clock.uploads_at_ms = now_ms + LOOK_EVERY_MS;
        }
        let is_owned = |key: &ObjectKey, upload_id: &str| {
            let _uploads = lock(&self.uploads);
            match self.catalogue.upload(key).map(|upload| upload.and_then(|up| up.upload_id)) {
                Ok(Some(known)) => known == upload_id,
                // Of a run that this catalogue does not know: another `up`, which it is not ours to disturb.
                Ok(None) => {
                    !key.run_id().is_some_and(|id| matches!(self.catalogue.get(id), Ok(Some(_))))
                }
                // What is not known is left alone.
                Err(_) => true,
            }
        };
        match s3.abort_uploads(&is_owned) {
            Ok(0) => {}
            Ok(count) => log::info!("gave up {count} uploads that belonged to no open run"),
            Err(error) => log::warn!("{error}; unfinished uploads are looked for again in an hour"),
        }
        now_ms + LOOK_EVERY_MS
    }
}

fn good_until(timeout: Duration, now_ms: u64) -> u64 {
    let good_for = timeout.saturating_add(URL_MARGIN).clamp(URL_MIN, URL_MAX);
    now_ms.saturating_add(u64::try_from(good_for.as_millis()).unwrap_or(u64::MAX))
}

/// The size of parts for a backup whose last artifact had `last` bytes (0 = there is none): whole MiB, and all parts
/// together hold several times as much.
fn part_bytes(last: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    let needed = last.saturating_mul(GROWTH).div_ceil(MAX_PARTS.into());
    needed.div_ceil(MIB).saturating_mul(MIB).clamp(DEFAULT_PART_BYTES, MAX_PART_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_with_the_backup() {
        const GIB: u64 = 1 << 30;
        assert_eq!(part_bytes(0), DEFAULT_PART_BYTES);
        assert_eq!(part_bytes(19 * GIB), DEFAULT_PART_BYTES);
        assert_eq!(part_bytes(100 * GIB), 41 << 20);
        assert_eq!(part_bytes(u64::MAX), MAX_PART_BYTES);
        for last in [0, 1, GIB, 20 * GIB, 100 * GIB, 150 * GIB] {
            let room = part_bytes(last) * u64::from(MAX_PARTS);
            assert!(room >= last * GROWTH && part_bytes(last).is_multiple_of(1 << 20), "{last}");
        }
    }

    #[test]
    fn urls_outlive_the_run_but_not_a_day() {
        let hour = 3_600_000;
        assert_eq!(good_until(Duration::from_secs(1), 5), 5 + hour);
        assert_eq!(good_until(Duration::from_secs(7200), 0), 2 * hour + 600_000);
        assert_eq!(good_until(Duration::MAX, 0), 24 * hour);
    }
}
