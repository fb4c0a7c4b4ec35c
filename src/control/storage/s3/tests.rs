//! What a store can do to the control plane's requests, against a scripted server on a real socket. How real servers
//! behave is in `tests/it/storage.rs`.

use std::io::{BufRead as _, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::config::{Flags, HostConfig};
use crate::model::Trust;
use crate::pipeline::upload::Tries;
use crate::secret::Secret;
use crate::thread::{Cancel, spawn};

const ID: &str = "00112233445566778899aabbccddeeff";
const SECRET: &str = "5ec7e75ec7e75ec7e7";

/// Plays an answer on a connection; gets the request's number and head.
type Play = dyn Fn(usize, &str, &mut TcpStream) + Send + Sync;

/// A server that reads a request (its body too), plays and hangs up.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(play: impl Fn(usize, &str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let (seen, stopped) = (heads.clone(), stop.clone());
        let play: Arc<Play> = Arc::new(play);
        let number = Arc::new(AtomicUsize::new(0));
        let thread = spawn("scripted", move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (seen, play, number) = (seen.clone(), play.clone(), number.clone());
                let serve = move || {
                    let mut stream = stream;
                    let number = number.fetch_add(1, Ordering::Relaxed);
                    let Some(head) = read_request(&stream) else { return };
                    seen.lock().unwrap().push(head.clone());
                    play(number, &head, &mut stream);
                    let _ = stream.shutdown(Shutdown::Write);
                };
                connections.push(spawn("scripted-conn", serve).unwrap());
            }
            connections.into_iter().for_each(|connection| connection.join().unwrap());
        });
        Self { address, heads, stop, thread: Some(thread.unwrap()) }
    }

    /// The first lines, without the query.
    fn asked(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().map(|head| head.split('?').next().unwrap().to_owned()).collect()
    }

    fn storage(&self) -> S3 {
        let reach = reach();
        let mut storage = S3::start(&self.settings(), &reach, quick()).unwrap();
        storage.id = ID.into();
        storage
    }

    fn settings(&self) -> S3Settings {
        let text = format!("s3://bucket/pre?endpoint=http://{}", self.address);
        let settings = S3Settings::parse(&text, &|_| None).unwrap();
        let (access_key, secret_key) = (Secret::new("AK"), Secret::new(SECRET));
        S3Settings { access_key, secret_key, ..settings }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// The head; the body is read and forgotten.
fn read_request(stream: &TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    std::io::copy(&mut reader.take(length.unwrap_or(0)), &mut std::io::sink()).ok()?;
    Some(head)
}

fn reach() -> Reach {
    let host = HostConfig::load(&|_| None, &Flags::default(), Trust::Local).unwrap();
    Reach { proxy: host.proxy, policy: host.policy, cancel: Cancel::new().unwrap() }
}

fn quick() -> Timing {
    let tries = Tries {
        max: 3,
        first_pause: Duration::from_millis(1),
        max_pause: Duration::from_millis(2),
        max_retry_after: Duration::from_millis(5),
        ..Timing::default().tries
    };
    let wait = Duration::from_secs(10);
    Timing { connect: wait, stall: wait, answer: wait, tries, ..Timing::default() }
}

fn say(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let _ = stream.write_all(answer.as_bytes());
}

fn marker_text() -> String {
    format!("backupy storage 1\nid {ID}\n")
}

/// Answers for the marker; everything else is the closure's.
fn with_marker(
    play: impl Fn(usize, &str, &mut TcpStream) + Send + Sync + 'static,
) -> impl Fn(usize, &str, &mut TcpStream) + Send + Sync + 'static {
    move |number, head, stream| {
        if head.starts_with("GET /bucket/pre/.backupy-storage?") {
            say(stream, "200 OK", "", &marker_text());
        } else {
            play(number, head, stream);
        }
    }
}

fn key() -> ObjectKey {
    ObjectKey::parse("a/one.bky").unwrap()
}

fn page(inner: &str) -> String {
    format!("<ListBucketResult>{inner}</ListBucketResult>")
}

fn fault<T: std::fmt::Debug>(result: Result<T, StorageError>) -> S3Fault {
    let error = result.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains(SECRET) && !text.contains("Signature="), "{text}");
    match error {
        StorageError::S3(error) => error.fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_storm_of_503_passes_and_a_longer_one_is_said() {
    let server = Server::start(with_marker(|_, head, stream| match head.starts_with("PUT") {
        true => say(stream, "200 OK", "", ""),
        false => say(
            stream,
            "503 Slow Down",
            "Retry-After: 0\r\n",
            "<Error><Code>SlowDown</Code></Error>",
        ),
    }));
    let storage = server.storage();
    storage.write_manifest(&key(), b"{}").unwrap();
    assert_eq!(storage.trouble(), None);
    let wrong = fault(storage.read_manifest(&key()));
    assert!(
        matches!(&wrong, S3Fault::Busy { status: 503, code } if code == "SlowDown"),
        "{wrong:?}"
    );
    assert!(storage.is_away() && storage.trouble().unwrap().contains("503 SlowDown"));
    assert_eq!(server.asked().len(), 2 + 3, "three tries");
    storage.check().unwrap();
    assert!(!storage.is_away(), "what answers is there again");

    let server = Server::start(|number, _, stream| match number {
        0 => say(stream, "503 Slow Down", "", ""),
        1 => drop(stream.shutdown(Shutdown::Both)),
        _ => say(stream, "200 OK", "", &marker_text()),
    });
    server.storage().check().unwrap();
}

#[test]
fn a_page_after_the_other_and_foreign_objects_are_not_ours() {
    let server = Server::start(with_marker(|_, head, stream| {
        let body = if head.contains("continuation-token=t%2F2") {
            "<IsTruncated>false</IsTruncated><Contents><Key>pre/b/two.bky.json</Key><Size>2</Size></Contents>\
             <Contents><Key>pre/notes.txt</Key><Size>2</Size></Contents>\
             <Contents><Key>other/a/x.bky</Key><Size>2</Size></Contents>"
        } else {
            "<IsTruncated>true</IsTruncated><NextContinuationToken>t/2</NextContinuationToken>\
             <Contents><Key>pre/a/one.bky</Key><Size>7</Size></Contents>"
        };
        assert!(head.contains("list-type=2&max-keys=1000&prefix=pre%2F"), "{head}");
        say(stream, "200 OK", "", &page(body));
    }));
    let listed = server.storage().list().unwrap();
    let shown: Vec<_> = listed.iter().map(|l| (l.key.as_str(), l.size_bytes, l.manifest)).collect();
    assert_eq!(shown, [("a/one.bky", Some(7), false), ("b/two.bky", None, true)]);
}

#[test]
fn what_is_no_list_is_never_an_empty_storage() {
    for body in [
        String::new(),
        "<html><body>welcome</body></html>".to_owned(),
        page("<IsTruncated>false</IsTruncated>").replace("</ListBucketResult>", ""),
        page("<IsTruncated>true</IsTruncated>"),
        "{}".to_owned(),
    ] {
        let answer = body.clone();
        let server =
            Server::start(with_marker(move |_, _, stream| say(stream, "200 OK", "", &answer)));
        let wrong = fault(server.storage().list());
        assert!(matches!(wrong, S3Fault::Nonsense(_)), "{body}: {wrong:?}");
    }
    // The same token for ever.
    let body =
        page("<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>");
    let server = Server::start(with_marker(move |_, _, stream| say(stream, "200 OK", "", &body)));
    assert!(matches!(fault(server.storage().list()), S3Fault::Nonsense(_)));
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn an_answer_without_end_is_cut_off() {
    let server = Server::start(with_marker(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<ListBucketResult>");
        let more = "<Contents>".repeat(10_000);
        while stream.write_all(more.as_bytes()).is_ok() {}
    }));
    let storage = server.storage();
    assert!(matches!(fault(storage.list()), S3Fault::Nonsense(_)));
    assert_eq!(server.asked().len(), 2, "it is not asked for again");
    assert!(matches!(fault(storage.read_manifest(&key())), S3Fault::Nonsense(_)));
}

#[test]
fn an_answer_that_breaks_off_is_asked_for_again() {
    let server = Server::start(with_marker(|number, _, stream| match number {
        0 => drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")),
        _ => say(stream, "200 OK", "", "{}"),
    }));
    assert_eq!(server.storage().read_manifest(&key()).unwrap(), b"{}");
}

#[test]
fn a_half_open_store_is_given_up() {
    let server = Server::start(|_, _, stream| {
        // Until the client hangs up.
        let _ = std::io::copy(&mut &*stream, &mut std::io::sink());
    });
    let timing = Timing { answer: Duration::from_millis(50), ..quick() };
    let mut storage = S3::start(&server.settings(), &reach(), timing).unwrap();
    storage.id = ID.into();
    let wrong = fault(storage.check());
    assert!(matches!(&wrong, S3Fault::Unreachable(fault) if fault.retry()), "{wrong:?}");
    assert!(wrong.is_away());
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn a_stop_ends_the_wait() {
    let server = Server::start(|_, _, stream| {
        let _ = std::io::copy(&mut &*stream, &mut std::io::sink());
    });
    let (reach, slow) = (reach(), Duration::from_secs(60));
    let timing = Timing { answer: slow, stall: slow, ..quick() };
    let storage = S3::start(&server.settings(), &reach, timing).unwrap();
    let stopper = storage.clone();
    let begun = Instant::now();
    let waiting = spawn("waiting", move || storage.check()).unwrap();
    while server.asked().is_empty() {
        crate::control::moment();
    }
    stopper.stop();
    assert!(waiting.join().unwrap().is_err());
    assert!(begun.elapsed() < slow);
}

fn ranged(length: usize, head: &str, stream: &mut TcpStream, cut_at: Option<usize>) {
    let from: usize = head
        .to_ascii_lowercase()
        .split_once("range: bytes=")
        .and_then(|(_, rest)| rest.split_once('-')?.0.parse().ok())
        .unwrap_or(0);
    let left = length - from;
    let status = if from == 0 { "200 OK" } else { "206 Partial Content" };
    let answer = format!(
        "HTTP/1.1 {status}\r\nETag: \"e\"\r\nContent-Length: {left}\r\n\
         Content-Range: bytes {from}-{}/{length}\r\nConnection: close\r\n\r\n",
        length - 1
    );
    let _ = stream.write_all(answer.as_bytes());
    let bytes: Vec<u8> = (from..length).map(|at| at as u8).collect();
    let end = cut_at.map_or(left, |cut| cut.min(left));
    let _ = stream.write_all(&bytes[..end]);
}

fn fetch(storage: &S3) -> (Vec<u8>, std::io::Result<usize>) {
    let mut stream =
        Stream::open(&storage.client, key().to_string()).unwrap().unwrap().without_pauses();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    (bytes, read)
}

#[test]
fn a_download_that_breaks_off_is_taken_up_where_it_broke() {
    const LENGTH: usize = 1_000_000;
    let server = Server::start(with_marker(|_, head, stream| {
        if head.contains("range: ") || head.contains("Range: ") {
            assert!(head.to_ascii_lowercase().contains("if-match: \"e\""), "{head}");
        }
        ranged(LENGTH, head, stream, Some(300_000));
    }));
    let (bytes, read) = fetch(&server.storage());
    assert_eq!(read.unwrap(), LENGTH);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn a_download_that_cannot_be_taken_up_is_an_error() {
    for (number, play) in [
        // Nothing more comes.
        |head: &str, stream: &mut TcpStream| {
            let cut = if head.to_ascii_lowercase().contains("range: ") { 0 } else { 500 };
            ranged(1000, head, stream, Some(cut));
        },
        // From the beginning again.
        |_: &str, stream: &mut TcpStream| ranged(1000, "", stream, Some(500)),
        // Another object by now.
        |head: &str, stream: &mut TcpStream| match head.to_ascii_lowercase().contains("range: ") {
            true => say(stream, "412 Precondition Failed", "", ""),
            false => ranged(1000, head, stream, Some(500)),
        },
        // Gone by now.
        |head: &str, stream: &mut TcpStream| match head.to_ascii_lowercase().contains("range: ") {
            true => say(stream, "404 Not Found", "", "<Error><Code>NoSuchKey</Code></Error>"),
            false => ranged(1000, head, stream, Some(500)),
        },
        // Another length.
        |head: &str, stream: &mut TcpStream| match head.to_ascii_lowercase().contains("range: ") {
            true => ranged(2000, head, stream, None),
            false => ranged(1000, head, stream, Some(500)),
        },
    ]
    .into_iter()
    .enumerate()
    {
        let server = Server::start(with_marker(move |_, head, stream| play(head, stream)));
        let (bytes, read) = fetch(&server.storage());
        assert!(read.is_err(), "{number}");
        assert_eq!(bytes.len(), 500, "{number}");
    }
}

#[test]
fn a_missing_object_counts_only_with_the_marker_in_its_place() {
    let missing = |_: usize, _: &str, stream: &mut TcpStream| {
        say(stream, "404 Not Found", "", "<Error><Code>NoSuchKey</Code></Error>");
    };
    let server = Server::start(with_marker(missing));
    let storage = server.storage();
    assert_eq!(storage.size(&key()).unwrap(), None);
    assert!(matches!(storage.open(&key()).map(drop), Err(StorageError::NotFound { .. })));
    assert!(matches!(storage.read_manifest(&key()), Err(StorageError::NotFound { .. })));
    storage.delete_artifact(&key()).unwrap();
    let server = Server::start(missing);
    let storage = server.storage();
    assert!(matches!(fault(storage.size(&key())), S3Fault::NoMarker));
    assert!(matches!(fault(storage.open(&key()).map(drop)), S3Fault::NoMarker));
    for result in [
        storage.read_manifest(&key()).map(drop),
        storage.write_manifest(&key(), b"{}"),
        storage.delete_artifact(&key()),
        storage.delete_manifest(&key()),
        storage.presign_put(&key(), 1, u64::MAX).map(drop),
        storage.list().map(drop),
        storage.probe(),
    ] {
        assert!(matches!(fault(result), S3Fault::NoMarker));
    }
    assert!(server.asked().iter().all(|line| !line.starts_with("PUT") && !line.starts_with("DEL")));
}

#[test]
fn another_marker_is_another_storage() {
    let server = Server::start(|_, _, stream| {
        say(stream, "200 OK", "", &marker_text().replace("00", "11"));
    });
    assert!(matches!(fault(server.storage().check()), S3Fault::Another));
    assert!(matches!(fault(server.storage().write_manifest(&key(), b"")), S3Fault::Another));
    let server =
        Server::start(|_, _, stream| say(stream, "200 OK", "", "backupy storage 2\nid 0\n"));
    assert!(matches!(fault(server.storage().check()), S3Fault::Marker));
}

#[test]
fn a_probe_names_what_is_missing() {
    for (method, permission) in
        [("PUT", "s3:PutObject"), ("DELETE", "s3:DeleteObject"), ("GET /bucket/?", "s3:ListBucket")]
    {
        let server = Server::start(with_marker(move |_, head, stream| {
            if head.starts_with(method) {
                let body =
                    "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
                say(stream, "403 Forbidden", "", body);
            } else if head.starts_with("GET") {
                // What was written: the name is in the path.
                let name = head.split(['/', '?']).nth(3).unwrap();
                say(
                    stream,
                    "200 OK",
                    "",
                    &format!("backupy writes, reads and removes this\n{name}\n"),
                );
            } else {
                say(stream, "200 OK", "", "");
            }
        }));
        let error = server.storage().probe().unwrap_err();
        assert!(error.to_string().contains(permission), "{method}: {error}");
        assert!(!error.retry() && !error.is_away());
    }
    let server = Server::start(with_marker(|_, _, stream| say(stream, "200 OK", "", "other")));
    assert!(matches!(fault(server.storage().probe()), S3Fault::NotKept));
}

#[test]
fn every_url_is_signed_anew_and_only_the_agents_live_long() {
    let server = Server::start(with_marker(|_, _, stream| say(stream, "200 OK", "", "")));
    let storage = server.storage();
    let until_ms = crate::clock::unix_ms() + 3_600_000;
    let url = storage.presign_put(&key(), 1, until_ms).unwrap();
    assert!(url.expires_at_ms <= until_ms && url.expires_at_ms > until_ms - 5000);
    let text = url.url.expose();
    assert!(text.starts_with(&format!("http://{}/bucket/pre/a/one.bky?X-Amz-", server.address)));
    assert!(text.contains("X-Amz-Signature=") && !text.contains(SECRET));
    assert!(!format!("{url:?}").contains("X-Amz"));
    let week = storage.presign_get(&key(), u64::MAX).unwrap();
    assert!(week.url.expose().contains("X-Amz-Expires=604800&"));
}

/// Answers the marker on one TLS connection after the other, until one fails; the settings that reach it.
fn tls_server(dir: &std::path::Path, connections: usize) -> (S3Settings, JoinHandle<()>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let ca_file = dir.join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(crate::net::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!("s3://bucket/pre?endpoint=https://{}", listener.local_addr().unwrap());
    let thread = spawn("scripted-tls", move || {
        for _ in 0..connections {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            let (mut head, mut byte) = (Vec::new(), [0; 1]);
            // A client that does not trust us hangs up.
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let body = marker_text();
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            let _ = stream.flush();
        }
    });
    let settings = S3Settings {
        ca_file: Some(ca_file),
        access_key: Secret::new("AK"),
        secret_key: Secret::new(SECRET),
        ..S3Settings::parse(&text, &|_| None).unwrap()
    };
    (settings, thread.unwrap())
}

#[test]
fn over_tls_with_a_trust_root_of_its_own_and_not_without() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, server) = tls_server(dir.path(), 3);
    let open = |settings: &S3Settings| {
        S3::start(settings, &reach(), quick()).and_then(|storage| storage.open_as(Some(ID)))
    };
    open(&settings).unwrap().check().unwrap();
    let wrong = fault(open(&S3Settings { ca_file: None, ..settings.clone() }).map(drop));
    assert!(matches!(&wrong, S3Fault::Unreachable(fault) if !fault.retry()), "{wrong:?}");
    assert!(!wrong.is_away(), "a certificate does not become right by waiting");
    server.join().unwrap();
    let missing = S3Settings { ca_file: Some(dir.path().join("none.pem")), ..settings };
    assert!(matches!(fault(open(&missing).map(drop)), S3Fault::Unreachable(_)));
}
