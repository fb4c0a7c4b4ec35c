//! One suite over every kind of storage: a directory, SeaweedFS, `rclone serve s3`. And what real servers say when
//! something is wrong.

use std::io::{Read as _, Write as _};

use backupy::clock::{Deadline, unix_ms};
use backupy::config::{Flags, HostConfig, ProxySettings, TlsSettings};
use backupy::control::storage::s3::{S3Error, S3Fault, S3Settings};
use backupy::control::storage::sign::Method;
use backupy::control::storage::{
    Directory, Listed, MANIFEST_MAX, ObjectKey, Presigned, Reach, S3, Storage, StorageError,
};
use backupy::model::Trust;
use backupy::pipeline::UrlPolicy;
use backupy::pipeline::upload::{Answer, Ask, Caller, Timing};
use backupy::secret::Secret;
use backupy::thread::Cancel;
use rusty_s3::signing::sign;

use crate::rig::LONG;
use crate::support_s3::{ACCESS_KEY, Kind, READER_KEY, READER_SECRET, S3Server, SECRET_KEY};

const BUCKET: &str = "backups";

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn read(storage: &dyn Storage, at: &ObjectKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    storage.open(at).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn in_an_hour() -> u64 {
    unix_ms() + 3_600_000
}

/// Uploads to a URL as an agent would.
type Upload<'a> = dyn Fn(&Presigned, &[u8]) -> Result<(), String> + 'a;

/// What every storage must do, whatever its kind.
fn conforms(storage: &dyn Storage, put: &Upload<'_>) {
    storage.check().unwrap();
    assert_eq!(storage.trouble(), None);
    assert!(storage.list().unwrap().is_empty());
    let (one, two) = (key("a/one.bky"), key("b.c/two.bky"));

    assert!(matches!(storage.open(&one), Err(StorageError::NotFound { .. })));
    assert!(matches!(storage.read_manifest(&one), Err(StorageError::NotFound { .. })));
    assert_eq!(storage.size(&one).unwrap(), None);
    storage.delete_artifact(&one).unwrap();
    storage.delete_manifest(&one).unwrap();

    let body: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let url = storage.presign_put(&one, 1 << 20, in_an_hour()).unwrap();
    if storage.hashes_uploads() {
        assert!(put(&url, &vec![0; (1 << 20) + 1]).is_err(), "beyond the limit");
    }
    assert_eq!(storage.size(&one).unwrap(), None);
    put(&url, &body).unwrap();
    assert!(read(storage, &one) == body);
    assert_eq!(storage.size(&one).unwrap(), Some(300_000));
    put(&url, b"again").unwrap();
    assert_eq!(read(storage, &one), b"again", "an upload whose answer was lost is repeated");

    assert_eq!(
        storage.list().unwrap(),
        [Listed { key: one.clone(), size_bytes: Some(5), manifest: false }]
    );
    storage.write_manifest(&one, b"{}").unwrap();
    storage.write_manifest(&one, b"{1}").unwrap();
    assert_eq!(storage.read_manifest(&one).unwrap(), b"{1}");
    let large = vec![b' '; usize::try_from(MANIFEST_MAX).unwrap() + 1];
    assert!(matches!(
        storage.write_manifest(&one, &large),
        Err(StorageError::ManifestTooLarge { .. })
    ));

    let url = storage.presign_put(&two, 10, in_an_hour()).unwrap();
    put(&url, b"").unwrap();
    assert_eq!(storage.size(&two).unwrap(), Some(0));
    assert_eq!(read(storage, &two), b"");
    let listed = storage.list().unwrap();
    assert_eq!(
        listed.iter().map(|l| l.key.as_str()).collect::<Vec<_>>(),
        ["a/one.bky", "b.c/two.bky"]
    );
    assert_eq!(listed.iter().map(|l| l.manifest).collect::<Vec<_>>(), [true, false]);

    storage.delete_artifact(&one).unwrap();
    assert_eq!(
        storage.list().unwrap()[0],
        Listed { key: one.clone(), size_bytes: None, manifest: true }
    );
    storage.delete_manifest(&one).unwrap();
    storage.delete_manifest(&one).unwrap();
    storage.delete_artifact(&one).unwrap();
    storage.delete_artifact(&two).unwrap();
    assert!(storage.list().unwrap().is_empty());
    storage.check().unwrap();
}

#[test]
fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Directory::open_or_init(&dir.path().join("new/storage")).unwrap();
    storage.serve_at("127.0.0.1:9".parse().unwrap());
    conforms(&storage, &|url, body| {
        let url = url.url.expose();
        let target = &url[url.find("/objects/").unwrap()..];
        let permit = storage.permit(Method::Put, target, 0).map_err(|e| e.to_string())?;
        let mut put = storage.begin_put(&permit, body.len() as u64).map_err(|e| e.to_string())?;
        put.write_all(body).map_err(|e| e.to_string())?;
        put.commit().map(|_| ()).map_err(|e| e.to_string())
    });
}

#[test]
fn seaweedfs_conforms() {
    s3_conforms(Kind::SeaweedFs);
}

#[test]
fn rclone_conforms() {
    s3_conforms(Kind::Rclone);
}

fn s3_conforms(kind: Kind) {
    let server = S3Server::start(kind);
    make_bucket(&server);
    let storage = S3::open_or_init(&settings(&server, "/deep/er"), &reach()).unwrap();
    storage.probe().unwrap();
    conforms(&storage, &put);
    in_parts(&storage);
    the_marker_is_made_once(&server, &storage);
    pages(&storage);
}

/// What an agent does with the URLs of an upload in parts, and that what nobody owns goes.
fn in_parts(storage: &S3) {
    let (one, two) = (key("m/one.bky"), key("m/two.bky"));
    let upload = storage.create_upload(&one).unwrap().unwrap();
    let lost = storage.create_upload(&two).unwrap().unwrap();
    let large = vec![b'a'; 5 << 20];
    let urls = storage.part_urls(&one, &upload, 1, 2, in_an_hour());
    let mut body = "<CompleteMultipartUpload>".to_owned();
    for (url, part) in urls.iter().zip([&large[..], b"the rest"]) {
        let answer = ask("PUT", &url.url, part).unwrap();
        assert!(answer.head.is_success(), "part {}: {}", url.number, answer.head.status);
        let etag = answer.head.header("etag").unwrap();
        let number = url.number;
        body += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    body += "</CompleteMultipartUpload>";

    let owned = |at: &ObjectKey, id: &str| *at == one && id == upload;
    assert_eq!(storage.abort_uploads(&owned).unwrap(), 1, "the other one is nobody's");
    assert_eq!(storage.abort_uploads(&owned).unwrap(), 0);
    assert_eq!(storage.size(&one).unwrap(), None, "not before it is complete");

    let (complete, abort) = storage.end_urls(&one, &upload, in_an_hour());
    let answer = ask("POST", &complete, body.as_bytes()).unwrap();
    assert!(answer.head.is_success(), "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(storage.size(&one).unwrap(), Some((5 << 20) + 8));
    assert!(read(storage, &one).ends_with(b"athe rest"));
    // What is complete cannot be given up any more, and what was given up not be completed.
    let _ = ask("DELETE", &abort, b"");
    assert!(storage.size(&one).unwrap().is_some());
    let (complete, _) = storage.end_urls(&two, &lost, in_an_hour());
    let late = ask("POST", &complete, body.as_bytes()).unwrap();
    assert!(!String::from_utf8_lossy(&late.body).contains("UploadResult>"), "{late:?}");
    assert_eq!(storage.size(&two).unwrap(), None);
    storage.delete_artifact(&one).unwrap();
}

fn the_marker_is_made_once(server: &S3Server, storage: &S3) {
    let settings = settings(server, "/deep/er");
    let id = storage.id().to_owned();
    assert_eq!(S3::open_or_init(&settings, &reach()).unwrap().id(), id, "not made anew");
    assert_eq!(S3::open(&settings, &reach(), Some(&id)).unwrap().id(), id);
    let other = "0".repeat(32);
    let error = S3::open(&settings, &reach(), Some(&other)).unwrap_err();
    assert!(matches!(fault(&error), S3Fault::Another), "{error}");
    // Beside it, there is nothing yet.
    let beside = S3Settings { prefix: "deep/".into(), ..settings.clone() };
    let error = S3::open(&beside, &reach(), None).unwrap_err();
    assert!(matches!(fault(&error), S3Fault::NoMarker), "{error}");
    let beside = S3::open_or_init(&beside, &reach()).unwrap();
    assert_ne!(beside.id(), id);
    put(&storage.presign_put(&key("a/x.bky"), 9, in_an_hour()).unwrap(), b"x").unwrap();
    assert!(beside.list().unwrap().is_empty(), "what lies deeper is another storage's");
    storage.delete_artifact(&key("a/x.bky")).unwrap();
}

/// More objects than one page has.
fn pages(storage: &S3) {
    const COUNT: usize = 1010;
    let keys: Vec<_> = (0..COUNT).map(|number| key(&format!("p/{number:04}.bky"))).collect();
    for key in &keys {
        storage.write_manifest(key, b"{}").unwrap();
    }
    let listed: Vec<_> = storage.list().unwrap().into_iter().map(|listed| listed.key).collect();
    assert_eq!(listed.len(), COUNT);
    assert!(listed == keys);
}

fn reach() -> Reach {
    let host = HostConfig::load(&|_| None, &Flags::default(), Trust::Local).unwrap();
    Reach { proxy: host.proxy, policy: host.policy, cancel: Cancel::new().unwrap() }
}

fn settings(server: &S3Server, prefix: &str) -> S3Settings {
    let text = format!("s3://{BUCKET}{prefix}?endpoint={}", server.endpoint());
    let settings = S3Settings::parse(&text, &|_| None).unwrap();
    S3Settings {
        access_key: Secret::new(ACCESS_KEY),
        secret_key: Secret::new(SECRET_KEY),
        ..settings
    }
}

fn ask(method: &str, url: &Secret, body: &[u8]) -> Result<Answer, String> {
    let (tls, proxy) = (TlsSettings::default(), ProxySettings::default());
    let cancel = Cancel::new().unwrap();
    let caller = Caller::new(tls, proxy, UrlPolicy::AllowHttp, Timing::default(), cancel);
    let mut sign = || Ask {
        method: method.parse().unwrap(),
        url: url.clone(),
        headers: Vec::new(),
        body: Some(body),
    };
    caller.ask(&mut sign, 1 << 20, Deadline::after(LONG)).map_err(|error| error.to_string())
}

fn put(url: &Presigned, body: &[u8]) -> Result<(), String> {
    match ask("PUT", &url.url, body)?.head.status {
        200..=299 => Ok(()),
        status => Err(format!("status {status}")),
    }
}

fn make_bucket(server: &S3Server) {
    let url = format!("{}/{BUCKET}", server.endpoint());
    let now = i64::try_from(unix_ms() / 1000).unwrap();
    let url = sign(
        &jiff::Timestamp::from_second(now).unwrap(),
        rusty_s3::Method::Put,
        url.parse().unwrap(),
        ACCESS_KEY,
        SECRET_KEY,
        None,
        "us-east-1",
        300,
        std::iter::empty(),
        std::iter::empty(),
    );
    let presigned = Presigned { url: Secret::new(url), expires_at_ms: 0 };
    put(&presigned, b"").unwrap();
}

fn fault(error: &StorageError) -> &S3Fault {
    let text = format!("{error} {error:?}");
    for secret in [SECRET_KEY, READER_SECRET, "X-Amz"] {
        assert!(!text.contains(secret), "{text}");
    }
    match error {
        StorageError::S3(error) => {
            let S3Error { fault, .. } = &**error;
            fault
        }
        other => panic!("{other:?}"),
    }
}

/// What `up` would say at its start with these settings.
fn refused(settings: &S3Settings) -> StorageError {
    match S3::open_or_init(settings, &reach()) {
        Ok(storage) => storage.probe().unwrap_err(),
        Err(error) => error,
    }
}

fn wrong_settings_are_told_apart(kind: Kind) {
    let server = S3Server::start(kind);
    make_bucket(&server);
    let good = settings(&server, "");
    S3::open_or_init(&good, &reach()).unwrap().probe().unwrap();

    let wrong = S3Settings { access_key: Secret::new("AKNOBODY000000000009"), ..good.clone() };
    let error = refused(&wrong);
    assert!(matches!(fault(&error), S3Fault::UnknownKey), "{error}");
    let wrong = S3Settings { secret_key: Secret::new("another-secret"), ..good.clone() };
    let error = refused(&wrong);
    assert!(matches!(fault(&error), S3Fault::WrongSecret), "{error}");
    let wrong = S3Settings { bucket: "nobodys".into(), ..good.clone() };
    let error = refused(&wrong);
    assert!(matches!(fault(&error), S3Fault::NoBucket), "{error}");
    assert!(!error.retry() && !error.is_away());

    let mut server = server;
    server.stop();
    let error = S3::open(&good, &reach(), None).unwrap_err();
    assert!(matches!(fault(&error), S3Fault::Unreachable(_)), "{error}");
    assert!(error.retry() && error.is_away());
}

#[test]
fn seaweedfs_says_what_is_wrong() {
    wrong_settings_are_told_apart(Kind::SeaweedFs);
}

#[test]
fn rclone_says_what_is_wrong() {
    wrong_settings_are_told_apart(Kind::Rclone);
}

#[test]
fn who_may_only_read_is_told_which_permission_is_missing() {
    let server = S3Server::start(Kind::SeaweedFs);
    make_bucket(&server);
    let owner = settings(&server, "/p");
    S3::open_or_init(&owner, &reach()).unwrap();
    let reader = S3Settings {
        access_key: Secret::new(READER_KEY),
        secret_key: Secret::new(READER_SECRET),
        ..owner
    };
    let storage = S3::open(&reader, &reach(), None).unwrap();
    let error = storage.probe().unwrap_err();
    assert!(matches!(fault(&error), S3Fault::Denied), "{error}");
    assert!(error.to_string().contains("s3:PutObject"), "{error}");
    assert!(storage.trouble().unwrap().contains("s3:PutObject"));
    assert!(storage.list().unwrap().is_empty());
    assert!(storage.trouble().is_some(), "reading well does not mean writing well");
}
