//! Probes against servers that behave, and servers that do not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::probe::Prober;
use super::*;
use crate::model::{CheckKind, Trust};
use crate::net;

const LIMIT: Duration = Duration::from_secs(30);

fn policy(trust: Trust, allow: Option<&[&str]>) -> HostPolicy {
    HostPolicy {
        allow_checks: allow.map(|list| list.iter().map(|&text| text.to_owned()).collect()),
        ..HostPolicy::new(trust)
    }
}

fn check(kind: CheckKind, target: impl ToString) -> Check {
    Check {
        id: "c".to_owned(),
        name: String::new(),
        kind,
        target: target.to_string(),
        interval_sec: 0,
        timeout_sec: 20,
        expected_status: 0,
    }
}

fn probe_with(policy: &HostPolicy, tls: TlsSettings, check: &Check) -> CheckResult {
    let cancel = Cancel::new().unwrap();
    Prober::new(policy, ProxySettings::default(), tls).probe(check, &cancel).unwrap()
}

fn probe(check: &Check) -> CheckResult {
    probe_with(&policy(Trust::Remote, None), TlsSettings::default(), check)
}

/// Answers each connection, by its path, with what `answer` writes; the thread goes with the test's process.
fn server(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            std::thread::spawn(move || answer(&head(&mut stream), &mut stream));
        }
    });
    address
}

fn head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn say(stream: &mut impl Write, status: &str, more: &str) {
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{more}content-length: 0\r\n\r\n");
}

#[test]
fn status_is_compared_and_a_body_without_end_is_not_read() {
    let address = server(|head, stream| {
        if head.starts_with("GET /endless ") {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        } else {
            say(stream, "503 Busy", "");
        }
    });
    let endless = probe(&check(CheckKind::Http, format!("http://{address}/endless")));
    assert_eq!((endless.ok, endless.status_code, endless.error.as_str()), (true, 200, ""));
    let mut busy = check(CheckKind::Http, format!("http://u:s3cret@{address}/x?token=s3cret"));
    let result = probe(&busy);
    assert_eq!((result.ok, result.status_code), (false, 503));
    assert_eq!(result.error, "answered 503, not 2xx");
    busy.expected_status = 503;
    assert!(probe(&busy).ok);
}

#[test]
fn time_is_up_for_the_mute_and_the_slow() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let slow = server(|_, stream| {
        // A byte at a time, until the client has had enough.
        while stream.write_all(b"H").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    for address in [mute.local_addr().unwrap(), slow] {
        for kind in [CheckKind::Http, CheckKind::Https] {
            let target = format!("{address}/?token=s3cret");
            let result = probe(&Check { timeout_sec: 1, ..check(kind, target) });
            assert!(!result.ok && !result.error.contains("s3cret"), "{result:?}");
            if address != slow {
                assert!(result.error.contains("no answer within 1 s"), "{result:?}");
            }
        }
    }
    assert!(probe(&check(CheckKind::Tcp, mute.local_addr().unwrap())).ok, "it takes connections");
}

#[test]
fn redirects_end_and_keep_to_the_rules() {
    let address = server(|head, stream| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let to = |place: &str| format!("location: {place}\r\n");
        match path {
            "/loop" => say(stream, "302 Found", &to("/loop")),
            "/once" => say(stream, "301 Moved", &to("/good?key=s3cret")),
            "/meta" => say(stream, "302 Found", &to("http://169.254.169.254/latest/s3cret")),
            "/file" => say(stream, "302 Found", &to("file:///etc/passwd")),
            "/else" => say(stream, "302 Found", &to("http://localhost:1/")),
            _ => say(stream, "204 No Content", ""),
        }
    });
    let ask = |path: &str| probe(&check(CheckKind::Http, format!("http://{address}{path}")));
    assert!(ask("/once").ok && ask("/once").status_code == 204);
    assert!(ask("/loop").error.contains("more than 5"));
    assert!(ask("/meta").error.contains("metadata") && !ask("/meta").error.contains("s3cret"));
    assert!(ask("/file").error.contains("nowhere"));
    let found = check(CheckKind::Http, format!("http://{address}/loop"));
    let found = Check { expected_status: 302, ..found };
    assert!(probe(&found).ok, "what is wanted is not followed");
    let listed = policy(Trust::Remote, Some(&["127.0.0.1"]));
    let other = check(CheckKind::Http, format!("http://{address}/once"));
    assert!(probe_with(&listed, TlsSettings::default(), &other).ok);
    let meta = probe_with(&listed, TlsSettings::default(), &check(CheckKind::Tcp, "1.1.1.1:1"));
    assert!(meta.error.contains("BACKUPY_ALLOW_CHECKS"), "{meta:?}");
}

#[test]
fn closed_ports_and_bad_targets() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(probe(&check(CheckKind::Tcp, gone)).error.contains("refused"));
    assert!(probe(&check(CheckKind::Http, gone)).error.contains("refused"));
    assert!(probe(&check(CheckKind::Tcp, "nothing")).error.contains("host:port"));
    assert!(probe(&check(CheckKind::Unknown(7), "a:1")).error.contains("TCP only"));
    let metadata = probe(&check(CheckKind::Http, "http://169.254.169.254/"));
    assert!(metadata.error.contains("link-local"), "{metadata:?}");
    // A name with an address of each family, of which one listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(probe(&check(CheckKind::Tcp, format!("localhost:{port}"))).ok);
}

/// An HTTPS server with a certificate of its own that ends in so many days.
fn https(dir: &std::path::Path, days: i32) -> (SocketAddr, TlsSettings) {
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let end = jiff::Timestamp::now().as_second() + i64::from(days) * 86_400 + 3_600;
    let day = jiff::Timestamp::from_second(end).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
    let (month, day_of) = (u8::try_from(day.month()).unwrap(), u8::try_from(day.day()).unwrap());
    params.not_after = rcgen::date_time_ymd(day.year().into(), month, day_of);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    let path = dir.join(format!("ca{days}.pem"));
    std::fs::write(&path, made.pem()).unwrap();
    let config = ServerConfig::builder_with_provider(net::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![made.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(connection, stream.unwrap());
            if !head(&mut stream).is_empty() {
                say(&mut stream, "200 OK", "");
                let _ = stream.flush();
            }
        }
    });
    (address, TlsSettings { ca_file: Some(path), server_pins: Vec::new() })
}

#[test]
fn certificates() {
    let dir = tempfile::tempdir().unwrap();
    let remote = policy(Trust::Remote, None);
    let (fresh, trusted) = https(dir.path(), 60);
    let target = check(CheckKind::Https, format!("https://{fresh}/"));
    let result = probe_with(&remote, trusted, &target);
    assert_eq!((result.ok, result.error.as_str(), result.status_code), (true, "", 200));
    let (ending, trusted) = https(dir.path(), 4);
    let target = check(CheckKind::Https, format!("https://{ending}/"));
    let result = probe_with(&remote, trusted, &target);
    assert!(result.ok && result.error.contains("certificate expires in 3 days"), "{result:?}");
    let result = probe(&target);
    assert!(!result.ok && result.error.contains("failed to start TLS"), "{result:?}");
    let (over, trusted) = https(dir.path(), -3);
    let result = probe_with(&remote, trusted, &check(CheckKind::Https, format!("https://{over}/")));
    assert!(!result.ok && result.error.to_lowercase().contains("expired"), "{result:?}");
}

#[test]
fn results_come_in_batches_and_the_hurried_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let means = Means {
        policy: policy(Trust::Remote, None),
        proxy: ProxySettings::default(),
        tls: TlsSettings::default(),
    };
    let (results, received) = bounded(4);
    let checks = Checks::start(&means, results).unwrap();
    let with = |id: &str| Check {
        id: id.to_owned(),
        interval_sec: 86_400,
        ..check(CheckKind::Tcp, address)
    };
    checks.configure(vec![with("a"), with("b")]);
    let mut found = Vec::new();
    while found.len() < 2 {
        found.extend(received.recv_timeout(LIMIT).unwrap());
    }
    assert!(found.iter().all(|result| result.ok), "{found:?}");
    assert!(checks.run_now("b"));
    let hurried = received.recv_timeout(LIMIT).unwrap();
    assert_eq!((hurried.len(), hurried[0].check_id.as_str()), (1, "b"));
    // A stop does not wait for a mute server.
    let mute = server(|_, stream| {
        let _ = stream.read(&mut [0; 64]);
    });
    let silent = Check { target: mute.to_string(), kind: CheckKind::Https, ..with("m") };
    checks.configure(vec![silent]);
    assert!(checks.run_now("m"));
    let began = Instant::now();
    drop(checks);
    assert!(began.elapsed() < Duration::from_secs(15), "its timeout is 20 s");
}
