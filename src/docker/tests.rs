//! The client against daemons that answer in every shape, lie, hang, or are not there.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::testing::{Act, Daemon, LONG, VERSION, answer, frame, hangs, ok, patient, says};
use super::*;
use crate::thread::Why;

const CONTAINER: &str = r#"{"Id":"abc123","Name":"/db","State":{"Status":"running","Running":true,"Paused":false,"Restarting":false},"Config":{}}"#;

fn soon() -> Bounds<'static> {
    Bounds { deadline: Deadline::after(Duration::from_millis(100)), cancel: None }
}

fn connect(daemon: &Daemon) -> Docker {
    Docker::connect(&daemon.socket(), patient()).unwrap()
}

fn container() -> Container {
    Container { id: "abc123".into(), name: "db".into(), state: ContainerState::Running }
}

/// An inspect that is answered by exactly these bytes.
fn inspect(bytes: &[u8]) -> Result<Container, DockerError> {
    let daemon = Daemon::saying(&[bytes]);
    connect(&daemon).inspect("db", patient())
}

fn chunked(body: &str, size: usize) -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for piece in body.as_bytes().chunks(size) {
        bytes.extend(format!("{:x};ext=1\r\n", piece.len()).into_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn the_oldest_api_that_both_speak() {
    for (versions, path) in [
        (VERSION, "/v1.41/"),
        (r#"{"Version":"29.1","ApiVersion":"1.52","MinAPIVersion":"1.44"}"#, "/v1.44/"),
        (r#"{"ApiVersion":"1.45"}"#, "/v1.41/"),
    ] {
        let daemon = Daemon::acting(vec![says(ok(versions)), says(ok(CONTAINER))]);
        connect(&daemon).inspect("db", patient()).unwrap();
        let requests = daemon.requests();
        assert!(requests[1].contains(path), "{requests:?}");
    }
    for (versions, word) in [
        (r#"{"ApiVersion":"1.40"}"#, "1.41"),
        (r#"{"ApiVersion":"new"}"#, "names no API version"),
        ("{}", "makes no sense"),
        ("[", "makes no sense"),
    ] {
        let daemon = Daemon::acting(vec![says(ok(versions))]);
        let error = Docker::connect(&daemon.socket(), patient()).unwrap_err();
        assert!(error.to_string().contains(word) && !error.retry(), "{error}");
    }
}

#[test]
fn bodies_in_every_shape() {
    for size in [1, 7, 1000] {
        assert_eq!(inspect(&chunked(CONTAINER, size)).unwrap(), container());
    }
    let to_the_end = format!("HTTP/1.1 200 OK\r\n\r\n{CONTAINER}").into_bytes();
    assert_eq!(inspect(&to_the_end).unwrap(), container());
    assert_eq!(inspect(&ok(CONTAINER)).unwrap(), container());
}

#[test]
fn an_answer_byte_by_byte() {
    let act: Act = Box::new(|stream, _| {
        for byte in chunked(CONTAINER, 5) {
            // The client does not wait for what follows the last chunk.
            let _ = stream.write_all(&[byte]);
            std::thread::yield_now();
        }
    });
    let daemon = Daemon::acting(vec![says(ok(VERSION)), act]);
    assert_eq!(connect(&daemon).inspect("db", patient()).unwrap(), container());
}

#[test]
fn answers_that_end_too_early() {
    let whole = ok(CONTAINER);
    let pieces = chunked(CONTAINER, 50);
    for bytes in [&whole[..], &pieces[..]] {
        for end in [0, 5, 20, bytes.len() - 30, bytes.len() - 3] {
            let error = inspect(&bytes[..end]).unwrap_err();
            assert!(matches!(error, DockerError::Broken { .. }) && error.retry(), "{end}: {error}");
        }
    }
}

#[test]
fn answers_that_are_none() {
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 100_000]].concat();
    let many = ["HTTP/1.1 200 OK\r\n", &"A: b\r\n".repeat(200), "\r\n"].concat();
    let huge = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n";
    let sized = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n";
    let longer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}{}\r\n0\r\n\r\n";
    let line = ["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &"1".repeat(500)].concat();
    for bytes in [
        &endless[..],
        many.as_bytes(),
        b"220 smtp ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        huge.as_bytes(),
        sized.as_bytes(),
        longer.as_bytes(),
        line.as_bytes(),
        &ok("{\"Id\":7}"),
        &ok(&CONTAINER.replace("abc123", "../../etc")),
    ] {
        let error = inspect(bytes).unwrap_err();
        assert!(matches!(error, DockerError::Answer { .. }) && !error.retry(), "{error}");
    }
    let act: Act = Box::new(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b' '; 65_536]).is_ok() {}
    });
    let daemon = Daemon::acting(vec![says(ok(VERSION)), act]);
    let error = connect(&daemon).inspect("db", patient()).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn what_the_daemon_says_no_to() {
    let error = inspect(&answer(404, r#"{"message":"No such container: db"}"#)).unwrap_err();
    assert!(matches!(error, DockerError::NoContainer { .. }), "{error}");
    let error = inspect(&answer(500, "{\"message\":\"out of\\nluck\"}")).unwrap_err();
    assert!(error.to_string().ends_with("out of luck") && error.retry(), "{error}");
    let error = inspect(&answer(403, &"no\u{1b}".repeat(1000))).unwrap_err();
    assert!(error.to_string().len() < 500 && !error.retry(), "{error}");
    let paused = answer(409, r#"{"message":"Container db is paused"}"#);
    let daemon = Daemon::saying(&[&paused]);
    let error = connect(&daemon).exec_create(&container(), &["sh"], patient()).unwrap_err();
    assert!(error.to_string().contains("is paused") && error.retry(), "{error}");
    let daemon = Daemon::saying(&[&answer(404, "{}"), &answer(404, "{}"), &answer(409, "{}")]);
    let docker = connect(&daemon);
    let error = docker.exec_create(&container(), &["sh"], patient()).unwrap_err();
    assert!(matches!(error, DockerError::NoContainer { .. }), "{error}");
    assert!(matches!(docker.exec_start("e1", patient()), Err(DockerError::NoExec)));
    assert!(matches!(docker.exec_inspect("e1", patient()), Err(DockerError::NoExec)));
}

#[test]
fn states_and_exit_codes() {
    let stopped = |word: &str| ContainerState::Stopped(word.into());
    for (from, to, state) in [
        ("\"Paused\":false", "\"Paused\":true", ContainerState::Paused),
        ("\"Restarting\":false", "\"Restarting\":true", ContainerState::Restarting),
        ("g\",\"Running\":true", "g\",\"Running\":false", stopped("running")),
        ("running\",\"Running\":true", "exited\",\"Running\":false", stopped("exited")),
    ] {
        assert_eq!(inspect(&ok(&CONTAINER.replace(from, to))).unwrap().state, state);
    }
    for (body, running, exit_code) in [
        (r#"{"Running":true,"ExitCode":null}"#, true, None),
        (r#"{"Running":true,"ExitCode":0}"#, true, None),
        (r#"{"Running":false,"ExitCode":0}"#, false, Some(0)),
        (r#"{"Running":false,"ExitCode":137,"Pid":7}"#, false, Some(137)),
        (r#"{"Running":false}"#, false, None),
    ] {
        let daemon = Daemon::saying(&[&ok(body)]);
        let found = connect(&daemon).exec_inspect("e1", patient()).unwrap();
        assert_eq!(found, ExecState { running, exit_code });
    }
}

#[test]
fn words_of_others_never_become_a_path() {
    let daemon = Daemon::saying(&[]);
    let docker = connect(&daemon);
    for bad in ["", "../x", "a/b", "a?b", "a b", "-a", "a\r\nX: y", &"a".repeat(256)] {
        docker.inspect(bad, patient()).unwrap_err();
    }
    assert_eq!(daemon.requests().len(), 1);
}

#[test]
fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let error = Docker::connect(&socket, patient()).unwrap_err();
    assert!(error.to_string().contains("BACKUPY_DOCKER_SOCKET") && error.retry(), "{error}");
    drop(UnixListener::bind(&socket).unwrap());
    let error = Docker::connect(&socket, patient()).unwrap_err();
    assert!(error.to_string().contains("check that Docker runs") && error.retry(), "{error}");
    let long = dir.path().join("x".repeat(200));
    Docker::connect(&long, patient()).unwrap_err();
}

#[test]
fn a_daemon_that_hangs() {
    let daemon = Daemon::acting(vec![hangs()]);
    let error = Docker::connect(&daemon.socket(), soon()).unwrap_err();
    assert!(matches!(error, DockerError::Timeout { .. }) && error.retry(), "{error}");
    // Connections that are never accepted.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting: Vec<_> = (0..3)
        .map(|_| {
            let flags = rustix::net::SocketFlags::NONBLOCK;
            let family = rustix::net::AddressFamily::UNIX;
            let stream = rustix::net::SocketType::STREAM;
            let fd = rustix::net::socket_with(family, stream, flags, None).unwrap();
            let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
            let _ = rustix::net::connect(&fd, &address);
            fd
        })
        .collect();
    let error = Docker::connect(&socket, soon()).unwrap_err();
    assert!(matches!(error, DockerError::Timeout { .. }), "{error}");
    let cancel = Cancel::new().unwrap();
    cancel.cancel(Why::Shutdown);
    let bounds = Bounds { deadline: Deadline::after(LONG), cancel: Some(&cancel) };
    let error = Docker::connect(&socket, bounds).unwrap_err();
    assert!(matches!(error, DockerError::Cancelled(Why::Shutdown)), "{error}");
}

#[test]
fn a_cancel_ends_a_wait() {
    let cancel = Cancel::new().unwrap();
    let other = cancel.clone();
    let act: Act = Box::new(move |stream, _| {
        other.cancel(Why::Requested);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let daemon = Daemon::acting(vec![act]);
    let bounds = Bounds { deadline: Deadline::after(LONG), cancel: Some(&cancel) };
    let error = Docker::connect(&daemon.socket(), bounds).unwrap_err();
    assert!(matches!(error, DockerError::Cancelled(Why::Requested)), "{error}");
}

const UPGRADED: &[u8] = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";

/// Both streams of a command to their end.
fn drain(attached: &mut Attached) -> Result<(Vec<u8>, Vec<u8>), DockerError> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(output) = attached.next(patient())? {
        match output {
            Output::Stdout(bytes) => out.extend_from_slice(bytes),
            Output::Stderr(bytes) => err.extend_from_slice(bytes),
        }
    }
    Ok((out, err))
}

fn start(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), DockerError> {
    let daemon = Daemon::saying(&[bytes]);
    drain(&mut connect(&daemon).exec_start("e1", patient())?)
}

#[test]
fn a_command_is_prepared_started_and_talked_to() {
    let act: Act = Box::new(|stream, _| {
        stream.write_all(UPGRADED).unwrap();
        let mut input = [0; 5];
        stream.read_exact(&mut input).unwrap();
        stream.write_all(&frame(1, &input)).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        stream.write_all(&frame(2, &rest)).unwrap();
    });
    let created = answer(201, r#"{"Id":"e1"}"#);
    let daemon = Daemon::acting(vec![says(ok(VERSION)), says(created), act]);
    let docker = connect(&daemon);
    let exec = docker.exec_create(&container(), &["sh", "-c", "x \"y\""], patient()).unwrap();
    let mut attached = docker.exec_start(&exec, patient()).unwrap();
    attached.write(b"hello", patient()).unwrap();
    assert_eq!(attached.next(patient()).unwrap(), Some(Output::Stdout(b"hello")));
    attached.write(b"bye", patient()).unwrap();
    attached.close_stdin().unwrap();
    assert_eq!(drain(&mut attached).unwrap(), (vec![], b"bye".to_vec()));
    let requests = daemon.requests();
    assert!(requests[1].starts_with("POST /v1.41/containers/abc123/exec HTTP/1.1"));
    assert!(requests[1].contains(r#""Cmd":["sh","-c","x \"y\""]"#), "{}", requests[1]);
    assert!(requests[2].starts_with("POST /v1.41/exec/e1/start"));
    assert!(requests[2].contains("Upgrade: tcp"));
}

#[test]
fn streams_that_come_with_the_head_or_without_an_upgrade() {
    let frames = [frame(1, &[7; 100_000]), frame(2, b"note"), frame(1, b"end")].concat();
    let expected = ([vec![7; 100_000], b"end".to_vec()].concat(), b"note".to_vec());
    for head in [UPGRADED, b"HTTP/1.1 200 OK\r\n\r\n"] {
        assert_eq!(start(&[head, &frames[..]].concat()).unwrap(), expected);
    }
}

#[test]
fn streams_that_are_cut_or_garbage() {
    for (rest, answer) in [
        (&frame(1, b"hello")[..7], false),
        (&frame(1, b"hello")[..10], false),
        (&b"PGDMP garbage"[..], true),
        (&frame(9, b"x")[..], true),
        (&frame(3, b"the daemon is sorry")[..], true),
    ] {
        let error = start(&[UPGRADED, rest].concat()).unwrap_err();
        assert_eq!(matches!(error, DockerError::Answer { .. }), answer, "{error}");
        assert_eq!(matches!(error, DockerError::Broken { .. }), !answer, "{error}");
    }
    for refusal in [answer(500, r#"{"message":"no"}"#), answer(409, "{}"), answer(200, "{}")] {
        let error = start(&refusal).unwrap_err();
        assert!(matches!(error, DockerError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_stream_that_falls_silent() {
    let act: Act = Box::new(|stream, _| {
        stream.write_all(UPGRADED).unwrap();
        stream.write_all(&frame(1, b"hello")[..9]).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let daemon = Daemon::acting(vec![says(ok(VERSION)), act]);
    let mut attached = connect(&daemon).exec_start("e1", patient()).unwrap();
    assert_eq!(attached.next(patient()).unwrap(), Some(Output::Stdout(b"h")));
    let error = attached.next(soon()).unwrap_err();
    assert!(matches!(error, DockerError::Timeout { .. }), "{error}");
}
