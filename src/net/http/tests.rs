//! Raw bytes against a real listener: limits, strictness, and answers that survive the close.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::*;

fn limits() -> Limits {
    Limits {
        head_timeout: Duration::from_millis(300),
        stall_timeout: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// PUT answers with the body's length and sum, GET /big with a megabyte, anything else with its path.
fn server(limits: Limits) -> Server {
    let handler: Handler =
        Arc::new(|request, conn| match (request.method, request.path.as_str()) {
            (Method::Put, _) => {
                let Some(length) = request.content_length() else {
                    return Err(HttpError::Bad(Status::LENGTH_REQUIRED, "length"));
                };
                let (mut n, mut sum, mut buffer) = (0u64, 0u64, [0u8; 1000]);
                let mut body = conn.body(length)?;
                loop {
                    let got = body.next(&mut buffer)?;
                    if got == 0 {
                        break;
                    }
                    n += got as u64;
                    sum += buffer[..got].iter().map(|b| u64::from(*b)).sum::<u64>();
                }
                body.finish()?;
                conn.respond(Status::CREATED, &format!("{n} {sum}"))
            }
            (Method::Get, "/big") => conn.respond_with(1 << 20, &mut std::io::repeat(b'x')),
            (Method::Get, "/huge") => conn.respond_with(1 << 30, &mut std::io::repeat(b'x')),
            (Method::Get, "/short") => conn.respond_with(100, &mut &b"only this"[..]),
            (Method::Get, "/refuse") => Err(HttpError::Bad(Status::FORBIDDEN, "no")),
            _ => conn.respond(Status::OK, &request.path),
        });
    Server::start(limits, None, handler).unwrap()
}

fn ask(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may have answered and stopped reading by then.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[track_caller]
fn refused(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
}

#[test]
fn a_plain_request_is_answered_and_closed() {
    let server = server(limits());
    let answer = ask(&server, b"GET /hello?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    refused(&answer, 200);
    assert!(
        answer.contains("Connection: close") && answer.ends_with("\r\n\r\n/hello\n"),
        "{answer}"
    );
}

#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let server = server(limits());
    for (request, status) in [
        (&b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"[..], 505),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400),
        (b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\na", 400),
        (b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"PUT /a HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: \xff\xfe\r\n\r\n", 400),
    ] {
        let answer = ask(&server, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{} → {answer}",
            String::from_utf8_lossy(request)
        );
    }
}

#[test]
fn the_head_is_bounded_in_size_number_and_time() {
    let server = server(limits());
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(17 << 10));
    refused(&ask(&server, long.as_bytes()), 431);
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(70));
    refused(&ask(&server, many.as_bytes()), 431);
    refused(&ask(&server, b"GET / HTTP/1.1\r\nHost:"), 408);
}

#[test]
fn a_body_is_read_exactly() {
    let server = server(limits());
    let head = "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n";
    assert!(ask(&server, format!("{head}abc").as_bytes()).ends_with("\r\n\r\n3 294\n"));
    refused(&ask(&server, format!("{head}abcd").as_bytes()), 400);
    assert_eq!(ask(&server, format!("{head}ab").as_bytes()), "", "a short body gets no answer");
}

#[test]
fn a_client_that_expects_to_be_asked_is_asked() {
    let server = server(limits());
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream
        .write_all(
            b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    let mut go = [0u8; 25];
    stream.read_exact(&mut go).unwrap();
    assert_eq!(&go, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"a").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    refused(&answer, 201);
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server = server(limits());
    let mut request =
        b"GET /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".to_vec();
    request.resize(1_000_000, b'x');
    refused(&ask(&server, &request), 403);
}

#[test]
fn a_long_answer_is_whole_and_a_failed_one_is_cut() {
    let server = server(limits());
    let big = ask(&server, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(big.split_once("\r\n\r\n").unwrap().1.len(), 1 << 20);
    let short = ask(&server, b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(short.contains("Content-Length: 100\r\n") && short.ends_with("only this"), "{short}");
}

#[test]
fn one_connection_too_many_is_told_so() {
    let patient = Limits { head_timeout: Duration::from_secs(30), connections: 2, ..limits() };
    let server = server(patient);
    let _held: Vec<_> = (0..2).map(|_| TcpStream::connect(server.addr()).unwrap()).collect();
    refused(&ask(&server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 503);
}

#[test]
fn a_connection_that_creeps_is_cut() {
    let stall_timeout = Duration::from_secs(600);
    let connection_timeout = Duration::from_millis(300);
    let hasty = Limits { stall_timeout, connection_timeout, connections: 1, ..limits() };
    let server = server(hasty);
    let mut held = TcpStream::connect(server.addr()).unwrap();
    held.write_all(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    held.read_exact(&mut [0u8; 1]).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !ask(&server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 ") {
        assert!(std::time::Instant::now() < deadline, "its place never came free");
    }
}

#[test]
fn a_stop_ends_connections_that_wait() {
    let patient = Limits { head_timeout: Duration::from_secs(600), ..limits() };
    let mut server = server(patient);
    let mut waiting = TcpStream::connect(server.addr()).unwrap();
    waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    server.stop();
    let mut nothing = Vec::new();
    // Closed or reset, but not left hanging.
    assert!(matches!(waiting.read_to_end(&mut nothing), Ok(0) | Err(_)));
    assert!(TcpStream::connect(server.addr()).is_err(), "the port is free again");
}
