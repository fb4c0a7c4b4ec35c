//! What a store can do to an upload, against a real socket.

use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::net;
use crate::pipeline::testing::{Play, SECRET, Store, noise, quick, s3_error, status};
use crate::secret::Secret;
use crate::thread::{Why, spawn};

/// More than the kernel's buffers on both sides take.
const LARGE: usize = 24 << 20;

fn sealed(bytes: &[u8]) -> Sealed {
    let sha256 = digest(&SHA256, bytes).as_ref().try_into().unwrap();
    Sealed::claiming(bytes.to_vec(), sha256)
}

fn uploader(timing: Timing) -> Uploader {
    let (tls, proxy) = (TlsSettings::default(), ProxySettings::default());
    Uploader::new(tls, proxy, UrlPolicy::AllowHttp).with_timing(timing)
}

fn put_with(uploader: &Uploader, store: &Store, sealed: &Sealed) -> Result<(), UploadError> {
    let cancel = Cancel::new().unwrap();
    let result = uploader.put(&store.creds(), sealed, None, &cancel, &|_| ());
    if let Err(error) = &result {
        let text = format!("{error} {error:?}");
        assert!(!text.contains(SECRET), "{text}");
    }
    result
}

fn put(store: &Store, bytes: &[u8]) -> Result<(), UploadError> {
    put_with(&uploader(quick()), store, &sealed(bytes))
}

#[test]
fn a_put_as_the_contract_says() {
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    let seen = Mutex::new(Vec::new());
    let progress = |progress: Progress| seen.lock().unwrap().push(progress);
    let cancel = Cancel::new().unwrap();
    let data = noise(300_000, 1);
    uploader(quick()).put(&store.creds(), &sealed(&data), None, &cancel, &progress).unwrap();
    let requests = store.finish();
    assert_eq!(requests.len(), 1);
    let head = requests[0].head.to_ascii_lowercase();
    assert!(head.starts_with(&format!("put /bucket/key?x-amz-signature={SECRET} http/1.1\r\n")));
    assert!(head.contains("\r\ncontent-type: application/octet-stream\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-length: 300000\r\n"), "{head}");
    assert!(!head.contains("transfer-encoding") && !head.contains("expect:"), "{head}");
    assert!(requests[0].body == data);
    let last = *seen.lock().unwrap().last().unwrap();
    assert_eq!((last.percent, last.bytes), (Some(100), 300_000));
}

#[test]
fn any_2xx_is_success_and_its_body_does_not_matter() {
    for answer in [
        status("201 Created"),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz".to_owned(),
        "HTTP/1.0 200 OK\r\n\r\nuntil the end".to_owned(),
    ] {
        let store = Store::plain(vec![Play::Answer(answer.clone())]);
        put(&store, b"data").unwrap_or_else(|error| panic!("{answer}: {error}"));
    }
}

#[test]
fn an_empty_artifact_has_length_zero() {
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    put(&store, b"").unwrap();
    let requests = store.finish();
    assert!(requests[0].head.to_ascii_lowercase().contains("\r\ncontent-length: 0\r\n"));
}

#[test]
fn what_can_pass_is_repeated_with_the_same_bytes() {
    let busy = "HTTP/1.1 429 Too Many\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n".to_owned();
    let timeout = s3_error("400 Bad Request", "RequestTimeout", "slow");
    let troubles = [
        Play::Answer(status("503 Slow Down")),
        Play::Answer(status("500 Oops")),
        Play::Answer(busy),
        Play::Answer(timeout),
        Play::Answer("garbage\r\n\r\n".to_owned()),
        Play::Answer(String::new()),
        Play::ResetAfter(100_000),
        Play::Close,
    ];
    let data = noise(2 << 20, 2);
    for (number, trouble) in troubles.into_iter().enumerate() {
        let store = Store::plain(vec![trouble, Play::Answer(status("200 OK"))]);
        put(&store, &data).unwrap_or_else(|error| panic!("{number}: {error}"));
        let requests = store.finish();
        assert_eq!(requests.len(), 2, "{number}");
        assert!(requests.last().unwrap().body == data, "{number}");
    }
}

#[test]
fn tries_are_bounded() {
    let store = Store::plain(vec![Play::Answer(s3_error("503 Slow Down", "SlowDown", "x"))]);
    let error = put(&store, b"data").unwrap_err();
    assert!(error.retry());
    assert_eq!(error.tries(), 3);
    let text = error.to_string();
    assert!(text.contains("3 tries") && text.contains("503 SlowDown"), "{text}");
    assert_eq!(store.finish().len(), 3);
}

#[test]
fn a_refusal_is_final_and_says_why() {
    for (line, code, shown) in [
        ("403 Forbidden", "SignatureDoesNotMatch", "403 SignatureDoesNotMatch"),
        ("404 Not Found", "NoSuchBucket", "404 NoSuchBucket"),
        ("400 Bad Request", "EntityTooLarge", "400 EntityTooLarge"),
    ] {
        let message = format!("see /key?X-Amz-Signature={SECRET}");
        let store = Store::plain(vec![Play::Answer(s3_error(line, code, &message))]);
        let error = put(&store, b"data").unwrap_err();
        assert!(!error.retry());
        let text = error.to_string();
        assert!(text.contains(shown) && text.contains("/bucket/key"), "{text}");
        assert_eq!(store.finish().len(), 1);
    }
    let expired = s3_error("403 Forbidden", "AccessDenied", "Request has expired");
    let store = Store::plain(vec![Play::Answer(expired)]);
    let error = put(&store, b"data").unwrap_err();
    assert!(matches!(error.fault, Fault::Expired) && !error.retry(), "{error}");
}

#[test]
fn a_refusal_before_the_body_was_sent_is_heard() {
    let answer = s3_error("403 Forbidden", "AccessDenied", "no");
    let data = noise(LARGE, 3);
    for play in [Play::Early(answer.clone()), Play::EarlyClose(answer)] {
        let store = Store::plain(vec![play]);
        let error = put(&store, &data).unwrap_err();
        assert!(error.to_string().contains("403 AccessDenied"), "{error}");
        assert_eq!(error.tries(), 1);
    }
}

#[test]
fn an_early_success_is_none() {
    let data = noise(LARGE, 4);
    let store = Store::plain(vec![Play::Early(status("200 OK"))]);
    let error = put(&store, &data).unwrap_err();
    assert!(matches!(error.fault, Fault::EarlyAnswer { status: 200 }), "{error}");
    assert_eq!(error.tries(), 3);
    let script = vec![Play::Early(status("200 OK")), Play::Answer(status("200 OK"))];
    put(&Store::plain(script), &data).unwrap();
}

#[test]
fn interim_answers_are_passed_over() {
    let store = Store::plain(vec![Play::Interim(status("200 OK"))]);
    let data = noise(LARGE, 5);
    put(&store, &data).unwrap();
    assert!(store.finish()[0].body == data);
}

#[test]
fn a_slow_reader_gets_everything() {
    let store = Store::plain(vec![Play::Slow(status("200 OK"))]);
    let data = noise(4 << 20, 6);
    put(&store, &data).unwrap();
    assert!(store.finish()[0].body == data);
}

#[test]
fn redirects_are_not_followed() {
    let other = Store::plain(vec![Play::Answer(status("200 OK"))]);
    for code in [301, 302, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {code} Moved\r\nLocation: http://{}/k?X={SECRET}\r\nContent-Length: 0\r\n\r\n",
            other.address
        );
        let store = Store::plain(vec![Play::Answer(answer)]);
        let error = put(&store, b"data").unwrap_err();
        assert!(!error.retry());
        assert!(error.to_string().contains("regional endpoint"), "{error}");
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
    }
    assert_eq!(other.finish().len(), 0);
}

#[test]
fn a_store_that_takes_nothing_or_says_nothing() {
    let short = Duration::from_millis(80);
    let impatient = Timing { stall: short, answer: short, ..quick() };
    let once = Timing { tries: Tries { max: 1, ..quick().tries }, ..impatient };
    let store = Store::plain(vec![Play::Deaf]);
    let error = put_with(&uploader(once), &store, &sealed(&noise(LARGE, 7))).unwrap_err();
    assert!(matches!(error.fault, Fault::Stalled { .. }) && error.retry(), "{error}");
    let store = Store::plain(vec![Play::Mute, Play::Answer(status("200 OK"))]);
    let error = put_with(&uploader(once), &store, &sealed(b"data")).unwrap_err();
    assert!(matches!(error.fault, Fault::NoAnswer { .. }) && error.retry(), "{error}");
    put(&store, b"data").unwrap();
}

#[test]
fn nobody_listens() {
    let address = {
        let store = Store::plain(vec![Play::Close]);
        let address = store.address;
        drop(store);
        address
    };
    let creds = UploadCreds {
        put_url: Secret::new(format!("http://{address}/k?X={SECRET}")),
        expires_at_ms: 0,
        object_key: String::new(),
        ..UploadCreds::default()
    };
    let cancel = Cancel::new().unwrap();
    let error = uploader(quick()).put(&creds, &sealed(b"x"), None, &cancel, &|_| ()).unwrap_err();
    assert!(matches!(error.fault, Fault::Net(_)) && error.retry(), "{error}");
    assert_eq!(error.tries(), 3);
    assert!(!error.to_string().contains(SECRET));
}

#[test]
fn a_cancel_ends_every_wait() {
    let data = noise(LARGE, 8);
    let busy = Play::Answer(status("503 Slow Down"));
    let pausing = Timing {
        tries: Tries {
            first_pause: Duration::from_secs(60),
            max_pause: Duration::from_secs(60),
            ..quick().tries
        },
        ..quick()
    };
    for (play, timing) in [(Play::Mute, quick()), (Play::Deaf, quick()), (busy, pausing)] {
        let store = Store::plain(vec![play]);
        let cancel = Cancel::new().unwrap();
        let (token, creds) = (cancel.clone(), store.creds());
        let artifact = sealed(&data);
        let upload =
            spawn("upload", move || uploader(timing).put(&creds, &artifact, None, &token, &|_| ()))
                .unwrap();
        store.wait_for_head();
        cancel.cancel(Why::Requested);
        let started = Instant::now();
        let error = upload.join().unwrap().unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        assert!(matches!(error.fault, Fault::Cancelled(Why::Requested)), "{error}");
        assert!(!error.retry());
    }
}

#[test]
fn an_expired_url_is_not_tried() {
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    let creds = UploadCreds { expires_at_ms: 1, ..store.creds() };
    let cancel = Cancel::new().unwrap();
    let error = uploader(quick()).put(&creds, &sealed(b"x"), None, &cancel, &|_| ()).unwrap_err();
    assert!(matches!(error.fault, Fault::Expired) && !error.retry(), "{error}");
    assert!(!error.to_string().contains(SECRET));
    assert_eq!(store.finish().len(), 0);
}

#[test]
fn tries_end_where_the_url_or_the_run_does() {
    let slow = Timing {
        tries: Tries {
            first_pause: Duration::from_secs(60),
            max_pause: Duration::from_secs(60),
            ..quick().tries
        },
        ..quick()
    };
    let cancel = Cancel::new().unwrap();
    let store = Store::plain(vec![Play::Answer(status("503 Slow Down"))]);
    let creds = UploadCreds { expires_at_ms: unix_ms() + 30_000, ..store.creds() };
    let error = uploader(slow).put(&creds, &sealed(b"x"), None, &cancel, &|_| ()).unwrap_err();
    assert_eq!(error.tries(), 1);
    let deadline = Some(Deadline::after(Duration::from_secs(30)));
    let creds = store.creds();
    let error = uploader(slow).put(&creds, &sealed(b"x"), deadline, &cancel, &|_| ()).unwrap_err();
    assert_eq!(error.tries(), 1);
}

#[test]
fn changed_bytes_never_become_a_whole_object() {
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    let data = noise(1 << 20, 9);
    let artifact = Sealed::claiming(data.clone(), [0; 32]);
    let error = put_with(&uploader(quick()), &store, &artifact).unwrap_err();
    assert!(matches!(error.fault, Fault::Changed) && error.retry(), "{error}");
    assert_eq!(error.tries(), 1);
    let requests = store.finish();
    assert!(requests[0].body.len() < data.len());
}

#[test]
fn http_is_refused_where_it_is_not_allowed() {
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    let (tls, proxy) = (TlsSettings::default(), ProxySettings::default());
    let strict = Uploader::new(tls.clone(), proxy.clone(), UrlPolicy::HttpsOnly);
    let error = put_with(&strict, &store, &sealed(b"x")).unwrap_err();
    assert!(error.to_string().contains("not https"), "{error}");
    assert!(!error.retry() && strict.check(&store.creds()).is_err());
    let loopback = Uploader::new(tls, proxy, UrlPolicy::Loopback(store.address));
    put_with(&loopback, &store, &sealed(b"x")).unwrap();
    assert_eq!(store.finish().len(), 1);
}

#[test]
fn loopback_uploads_pass_no_proxy() {
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    let proxy = ProxySettings { url: Some(Secret::new("http://127.0.0.1:9")), bypass: Vec::new() };
    let policy = UrlPolicy::Loopback(store.address);
    let uploader = Uploader::new(TlsSettings::default(), proxy, policy).with_timing(quick());
    put_with(&uploader, &store, &sealed(b"x")).unwrap();
}

/// A server certificate for 127.0.0.1 that is its own authority, and the file that makes it trusted.
fn certificate(dir: &std::path::Path) -> (Arc<ServerConfig>, TlsSettings) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let path = dir.join("ca.pem");
    std::fs::File::create(&path).unwrap().write_all(made.cert.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(net::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), TlsSettings { ca_file: Some(path), server_pins: Vec::new() })
}

fn https(tls: TlsSettings) -> Uploader {
    Uploader::new(tls, ProxySettings::default(), UrlPolicy::HttpsOnly).with_timing(quick())
}

#[test]
fn over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tls) = certificate(dir.path());
    let data = noise(LARGE, 10);
    let script = vec![Play::Answer(status("503 Slow Down")), Play::Answer(status("200 OK"))];
    let store = Store::start(script, Some(config.clone()));
    put_with(&https(tls.clone()), &store, &sealed(&data)).unwrap();
    assert!(store.finish()[1].body == data);
    let refusal = s3_error("403 Forbidden", "AccessDenied", "no");
    let store = Store::start(vec![Play::Early(refusal)], Some(config));
    let error = put_with(&https(tls), &store, &sealed(&data)).unwrap_err();
    assert!(error.to_string().contains("403 AccessDenied"), "{error}");
}

#[test]
fn tls_that_cannot_work_is_permanent() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tls) = certificate(dir.path());
    let store = Store::start(vec![Play::Answer(status("200 OK"))], Some(config));
    let error = put_with(&https(TlsSettings::default()), &store, &sealed(b"x")).unwrap_err();
    assert!(matches!(error.fault, Fault::Tls { permanent: true, .. }), "{error}");
    // A server that speaks plain HTTP on the port.
    let store = Store::plain(vec![Play::EarlyClose(status("400 Bad Request"))]);
    let creds = UploadCreds {
        put_url: Secret::new(format!("https://{}/k?X={SECRET}", store.address)),
        expires_at_ms: 0,
        object_key: String::new(),
        ..UploadCreds::default()
    };
    let cancel = Cancel::new().unwrap();
    let quick_to_give_up = Timing { connect: Duration::from_millis(300), ..quick() };
    let uploader = https(tls.clone()).with_timing(quick_to_give_up);
    let error = uploader.put(&creds, &sealed(b"x"), None, &cancel, &|_| ()).unwrap_err();
    assert!(!error.to_string().contains(SECRET), "{error}");
    let missing = TlsSettings { ca_file: Some(dir.path().join("none.pem")), ..tls };
    let error = https(missing).put(&creds, &sealed(b"x"), None, &cancel, &|_| ()).unwrap_err();
    assert!(error.to_string().contains("none.pem") && !error.retry(), "{error}");
}

#[test]
fn a_cancel_ends_a_mute_handshake() {
    let store = Store::plain(vec![Play::Deaf]);
    let creds = UploadCreds {
        put_url: Secret::new(format!("https://{}/k?X={SECRET}", store.address)),
        expires_at_ms: 0,
        object_key: String::new(),
        ..UploadCreds::default()
    };
    let cancel = Cancel::new().unwrap();
    let token = cancel.clone();
    let upload = spawn("upload", move || {
        https(TlsSettings::default()).put(&creds, &sealed(b"x"), None, &token, &|_| ())
    })
    .unwrap();
    store.wait_for_head();
    cancel.cancel(Why::Shutdown);
    let started = Instant::now();
    let error = upload.join().unwrap().unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(matches!(error.fault, Fault::Cancelled(Why::Shutdown)), "{error}");
}

#[test]
fn a_store_that_answers_without_end_is_left() {
    for (play, size) in [(Play::Flood, LARGE), (Play::EndlessHead, LARGE), (Play::FloodAfter, 1000)]
    {
        let store = Store::plain(vec![play.clone()]);
        let once = Timing { tries: Tries { max: 1, ..quick().tries }, ..quick() };
        let started = Instant::now();
        let error = put_with(&uploader(once), &store, &sealed(&noise(size, 2))).unwrap_err();
        assert!(error.retry(), "{error}");
        assert!(started.elapsed() < Duration::from_secs(15), "{play:?} {error}");
    }
}

#[test]
fn a_control_plane_cannot_send_us_to_metadata_services() {
    let cancel = Cancel::new().unwrap();
    let proxied = ProxySettings { url: Some(Secret::new("http://127.0.0.1:9")), bypass: vec![] };
    for host in ["169.254.169.254", "2852039166", "[fe80::1]", "[::ffff:169.254.169.254]"] {
        for proxy in [ProxySettings::default(), proxied.clone()] {
            if proxy.url.is_some() && host.starts_with("28") {
                // A name as any other: the proxy looks it up.
                continue;
            }
            let creds = UploadCreds {
                put_url: Secret::new(format!("http://{host}/latest/x")),
                expires_at_ms: 0,
                object_key: String::new(),
                ..UploadCreds::default()
            };
            let uploader = Uploader::new(TlsSettings::default(), proxy, UrlPolicy::AllowHttp);
            let error = uploader.put(&creds, &sealed(b"x"), None, &cancel, &|_| ()).unwrap_err();
            assert!(error.to_string().contains("link-local") && !error.retry(), "{host}: {error}");
        }
    }
}

#[test]
fn a_limited_upload_waits_and_a_cancel_ends_the_wait() {
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    let data = sealed(&noise(1 << 20, 4));
    let cancel = Cancel::new().unwrap();
    // Without the cancel it would take a year.
    let slow = uploader(quick()).limited(1);
    let progress = |progress: Progress| {
        if progress.bytes > 0 {
            cancel.cancel(Why::Requested);
        }
    };
    let began = Instant::now();
    let error = slow.put(&store.creds(), &data, None, &cancel, &progress).unwrap_err();
    assert!(error.to_string().contains("cancel"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
    let quick_enough = uploader(quick()).limited(1 << 40).limited(0);
    let store = Store::plain(vec![Play::Answer(status("200 OK"))]);
    put_with(&quick_enough, &store, &data).unwrap();
}
