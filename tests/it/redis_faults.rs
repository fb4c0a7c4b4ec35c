//! The replication protocol against a server that says whatever a test wants: cut, slow, wrong, endless, hostile.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use backupy::drivers::{DriverError, Dumped, Prepared, RdbFault, RedisFault};
use backupy::model::Connection;
use backupy::secret::Secret;
use backupy::thread::Why;
use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::redis::{at, redis};
use crate::rig::{Failing, LONG, Rig};

const MARK: &str = "13848549cf93eeb5576897c0eecf8ae8aed67549";

/// What the server does after a command.
#[derive(Clone)]
enum Do {
    Say(Vec<u8>),
    /// Each in a write of its own.
    Pieces(Vec<Vec<u8>>),
    SayAndClose(Vec<u8>),
    /// Nothing, until the other side goes.
    Hang,
}

fn say(text: &str) -> Do {
    Do::Say(text.as_bytes().to_vec())
}

type Script = dyn Fn(&[String]) -> Do + Send + Sync;

/// A server on a thread, one connection after the other.
struct Fake {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    /// Told when an answer to PSYNC or SYNC was taken whole.
    sent: Receiver<()>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn start(greeting: Option<&'static str>, script: Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (told, sent) = unbounded();
        let (log, ended) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                match greeting {
                    // What the other side does with it is its own affair.
                    Some(text) => drop((&stream).write_all(text.as_bytes())),
                    None => serve(stream, &*script, &log, &told),
                }
            }
        });
        Self { port, heard, sent, stop, thread: Some(thread) }
    }

    /// A server that answers the usual, and `script` where that says something.
    fn with(script: impl Fn(&[String]) -> Option<Do> + Send + Sync + 'static) -> Self {
        Self::start(
            None,
            Arc::new(move |words| {
                script(words).unwrap_or_else(|| match words[0].as_str() {
                    "PING" => say("+PONG\r\n"),
                    "AUTH" | "REPLCONF" => say("+OK\r\n"),
                    "INFO" => say("$24\r\nredis_version:7.0.15\r\n\r\n\r\n"),
                    _ => say("-ERR unknown command\r\n"),
                })
            }),
        )
    }

    /// A server that answers PSYNC like this.
    fn psync(answer: Do) -> Self {
        Self::with(move |words| (words[0] == "PSYNC").then(|| answer.clone()))
    }

    fn run(&self, rig: &Rig) -> Result<(Vec<u8>, Prepared, Dumped), DriverError> {
        rig.run(&redis(at(self.port)))
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

fn serve(stream: TcpStream, script: &Script, heard: &Mutex<Vec<String>>, told: &Sender<()>) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream);
    while let Some(words) = command(&mut lines) {
        heard.lock().unwrap().push(words.join(" "));
        let taken = match script(&words) {
            Do::Say(bytes) => out.write_all(&bytes),
            Do::Pieces(pieces) => pieces.iter().try_for_each(|piece| out.write_all(piece)),
            Do::SayAndClose(bytes) => {
                let _ = out.write_all(&bytes);
                return;
            }
            Do::Hang => Ok(()),
        };
        if taken.is_ok() && words[0].ends_with("SYNC") {
            let _ = told.send(());
        }
    }
}

fn command(lines: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut number = |kind: char| {
        let mut line = String::new();
        lines.read_line(&mut line).ok()?;
        line.trim_end().strip_prefix(kind)?.parse::<usize>().ok()
    };
    let count = number('*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        lines.read_line(&mut line).ok()?;
        let length = line.trim_end().strip_prefix('$')?.parse::<usize>().ok()?;
        let mut word = vec![0; length + 2];
        lines.read_exact(&mut word).ok()?;
        words.push(String::from_utf8_lossy(&word[..length]).into_owned());
    }
    Some(words)
}

fn crc64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x95ac_9329_ac4b_c9b5 } else { crc >> 1 }
        })
    })
}

/// A whole RDB around `body`.
fn rdb(body: &[u8]) -> Vec<u8> {
    let mut rdb = b"REDIS0010\xfa\x09redis-ver\x067.0.14".to_vec();
    rdb.extend_from_slice(body);
    rdb.push(0xff);
    let sum = crc64(&rdb);
    rdb.extend_from_slice(&sum.to_le_bytes());
    rdb
}

fn from_disk(rdb: &[u8]) -> Vec<u8> {
    [format!("+FULLRESYNC {MARK} 0\r\n${}\r\n", rdb.len()).as_bytes(), rdb].concat()
}

fn diskless(rdb: &[u8]) -> Vec<u8> {
    let head = format!("+FULLRESYNC {MARK} 0\r\n$EOF:{MARK}\r\n");
    [head.as_bytes(), rdb, MARK.as_bytes()].concat()
}

fn fault(result: Result<(Vec<u8>, Prepared, Dumped), DriverError>) -> RedisFault {
    match result {
        Err(DriverError::Redis(fault)) => fault,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("a dump"),
    }
}

#[test]
fn both_framings_with_the_stream_behind_them() {
    let rdb = rdb(&MARK.as_bytes()[..39]);
    for stream in [from_disk(&rdb), diskless(&rdb)] {
        let follows = [&stream[..], b"*1\r\n$4\r\nPING\r\n"].concat();
        for answer in [Do::Say(stream.clone()), Do::Say(follows), Do::SayAndClose(stream.clone())] {
            let server = Fake::psync(answer);
            let (dump, prepared, dumped) = server.run(&Rig::new()).unwrap();
            assert_eq!(dump, rdb);
            assert_eq!(prepared.engine_version, "Redis 7.0.15");
            assert_eq!(dumped.warnings, Vec::<String>::new());
        }
    }
}

#[test]
fn the_conversation() {
    let server = Fake::psync(Do::Say(diskless(&rdb(b""))));
    let connection = Connection {
        username: "backup".into(),
        password_ref: Secret::new("p w"),
        ..at(server.port)
    };
    let mut out = Vec::new();
    let (_, _, version) = Rig::new().run_into(&redis(connection), &mut out).unwrap();
    assert_eq!(version.unwrap(), "Redis 7.0.14", "the dump knows best");
    let login = ["PING", "AUTH backup p w", "PING"];
    let asked = ["INFO server", "INFO memory"];
    let options = ["REPLCONF version 255.255.255", "REPLCONF rdb-only 1", "REPLCONF capa eof"];
    assert_eq!(server.heard(), [&login[..], &asked, &login, &options, &["PSYNC ? -1"]].concat());
}

#[test]
fn cut_at_every_byte() {
    let rdb = rdb(b"\xfe\x00\x00\x01k\x01v");
    for stream in [from_disk(&rdb), diskless(&rdb)] {
        let length = Arc::new(Mutex::new(0));
        let (cut, whole) = (Arc::clone(&length), stream.clone());
        let server = Fake::with(move |words| {
            let cut = *cut.lock().unwrap();
            (words[0] == "PSYNC").then(|| Do::SayAndClose(whole[..cut].to_vec()))
        });
        for cut in 0..stream.len() {
            *length.lock().unwrap() = cut;
            let mut out = Vec::new();
            let error = Rig::new().run_into(&redis(at(server.port)), &mut out).unwrap_err();
            assert!(matches!(error, DriverError::Redis(RedisFault::Lost { .. })), "{cut}: {error}");
            assert!(error.retry() && out.is_empty(), "{cut}");
        }
    }
}

#[test]
fn in_pieces_and_after_a_long_fork() {
    let rdb = rdb(b"some content");
    for stream in [from_disk(&rdb), diskless(&rdb)] {
        let mut pieces = vec![b"\n".to_vec(); 5];
        let announcement = stream.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        pieces.extend(stream[..announcement].chunks(1).map(<[u8]>::to_vec));
        pieces.extend([b"\n".to_vec(), b"\n\r\n".to_vec()]);
        pieces.extend(stream[announcement..].chunks(1).map(<[u8]>::to_vec));
        let server = Fake::psync(Do::Pieces(pieces));
        assert_eq!(server.run(&Rig::new()).unwrap().0, rdb);
    }
}

#[test]
fn sync_where_psync_is_not_to_be_had() {
    let rdb = rdb(b"");
    let plain = diskless(&rdb).split_off(format!("+FULLRESYNC {MARK} 0\r\n").len());
    for no in ["-ERR unknown command 'PSYNC'\r\n", "-NOPERM no permissions to run 'psync'\r\n"] {
        let plain = plain.clone();
        let server = Fake::with(move |words| match words[0].as_str() {
            "PSYNC" => Some(say(no)),
            "SYNC" => Some(Do::Say([b"\n", &plain[..]].concat())),
            "REPLCONF" => Some(say("-ERR Unrecognized REPLCONF option\r\n")),
            _ => None,
        });
        assert_eq!(server.run(&Rig::new()).unwrap().0, rdb);
        // The fake one knows no SYNC by itself.
        let server = Fake::psync(say(no));
        let found = fault(server.run(&Rig::new()));
        assert!(matches!(found, RedisFault::NoSync(_) | RedisFault::Permission(_)), "{found}");
        assert_eq!(matches!(found, RedisFault::Permission(_)), no.starts_with("-NOPERM"));
        assert!(!found.retry() && server.heard().contains(&"SYNC".to_owned()));
    }
}

#[test]
fn what_a_server_may_refuse_and_when() {
    type Is = fn(&RedisFault) -> bool;
    let cases: [(&str, &str, Is, bool); 9] = [
        ("PING", "-LOADING loading the dataset", |f| matches!(f, RedisFault::Loading(_)), true),
        ("PSYNC", "-LOADING loading the dataset", |f| matches!(f, RedisFault::Loading(_)), true),
        ("PSYNC", "-NOMASTERLINK Can't SYNC", |f| matches!(f, RedisFault::NoMaster(_)), true),
        ("PING", "-ERR max number of clients reached", |f| matches!(f, RedisFault::Busy(_)), true),
        (
            "PING",
            "-NOAUTH Authentication required.",
            |f| matches!(f, RedisFault::Password(_)),
            false,
        ),
        (
            "PING",
            "-DENIED Redis is running in protected mode",
            |f| matches!(f, RedisFault::Protected(_)),
            false,
        ),
        (
            "PSYNC",
            "+FULLRESYNC x 0\r\n-ERR BGSAVE failed, replication can't continue",
            |f| matches!(f, RedisFault::Busy(_)),
            true,
        ),
        ("PSYNC", "+CONTINUE", |f| matches!(f, RedisFault::NotRedis { .. }), false),
        ("PSYNC", "-ERR something new", |f| matches!(f, RedisFault::Refused(_)), false),
    ];
    for (command, answer, is, retry) in cases {
        let server =
            Fake::with(move |words| (words[0] == command).then(|| say(&format!("{answer}\r\n"))));
        let found = fault(server.run(&Rig::new()));
        assert!(is(&found), "{answer}: {found:?}");
        assert_eq!(found.retry(), retry, "{answer}");
    }
}

#[test]
fn logins() {
    let server = Fake::with(|words| match (words[0].as_str(), words.len()) {
        ("AUTH", 3) => Some(say("-ERR wrong number of arguments for 'auth' command\r\n")),
        ("AUTH", 2) => Some(say("-ERR Client sent AUTH, but no password is set\r\n")),
        ("PSYNC", _) => Some(Do::Say(from_disk(&rdb(b"")))),
        _ => None,
    });
    let run = |user: &str| {
        let (username, password_ref) = (user.into(), Secret::new("hunter2"));
        Rig::new().run(&redis(Connection { username, password_ref, ..at(server.port) }))
    };
    assert!(matches!(fault(run("backup")), RedisFault::NoUsers));
    assert!(run("default").unwrap().1.warnings[0].contains("asks for none"));
}

#[test]
fn not_whole() {
    let good = rdb(b"\xfe\x00\x00\x01k\x01v");
    let mut damaged = good.clone();
    damaged[20] ^= 1;
    let mut open = good.clone();
    let end = open.len() - 9;
    open[end] = 0;
    let cases = [
        (damaged, RdbFault::Checksum, true),
        (open, RdbFault::NoEnd, true),
        (good[..12].to_vec(), RdbFault::Short { bytes: 12 }, true),
        (Vec::new(), RdbFault::Short { bytes: 0 }, true),
        ([b"x", &good[..]].concat(), RdbFault::NotRdb, false),
    ];
    for (rdb, expected, retry) in cases {
        for stream in [from_disk(&rdb), diskless(&rdb)] {
            let server = Fake::psync(Do::Say(stream));
            let mut out = Vec::new();
            let error = Rig::new().run_into(&redis(at(server.port)), &mut out).unwrap_err();
            assert!(
                matches!(error, DriverError::Redis(RedisFault::Rdb(f)) if f == expected),
                "{error}"
            );
            assert!(error.retry() == retry && out.is_empty(), "{error}");
        }
    }
    let mut unchecked = good;
    let end = unchecked.len() - 8;
    unchecked[end..].fill(0);
    let server = Fake::psync(Do::Say(diskless(&unchecked)));
    let (dump, _, dumped) = server.run(&Rig::new()).unwrap();
    assert!(dump == unchecked && dumped.warnings[0].contains("no checksum"));
}

#[test]
fn more_than_there_is_room_for() {
    let server = Fake::psync(say("+FULLRESYNC x 0\r\n$4611686018427387904\r\n"));
    let error = server.run(&Rig::new()).unwrap_err();
    assert!(matches!(error, DriverError::Space { .. }) && !error.retry(), "{error}");
    let server = Fake::psync(say("+FULLRESYNC x 0\r\n$99999999999999999999\r\n"));
    assert!(matches!(fault(server.run(&Rig::new())), RedisFault::NotRedis { .. }));
    let mut rig = Rig::new();
    rig.limits.memory_bytes = 64 << 10;
    rig.limits.min_free_bytes = u64::MAX;
    let stream = diskless(&rdb(&vec![0; 1 << 20]));
    let error = Fake::psync(Do::Say(stream)).run(&rig).unwrap_err();
    assert!(matches!(error, DriverError::Space { .. }) && !error.retry(), "{error}");
}

#[test]
fn endless_talk() {
    let cases = [
        ("PING", vec![b'+'; 1 << 20]),
        ("INFO", b"$99999999\r\n".to_vec()),
        ("INFO", b"$-1\r\n".to_vec()),
        ("PING", b":1\r\n".to_vec()),
        ("PING", b"\r\n".to_vec()),
        ("PSYNC", vec![b'\n'; 90_000]),
        ("PSYNC", vec![b'$'; 1 << 20]),
    ];
    for (command, answer) in cases {
        let shown = String::from_utf8_lossy(&answer[..2]).into_owned();
        let server =
            Fake::with(move |words| (words[0] == command).then(|| Do::Say(answer.clone())));
        let found = fault(server.run(&Rig::new()));
        assert!(matches!(found, RedisFault::NotRedis { .. }), "{command} {shown:?}: {found}");
        assert!(!found.retry());
    }
}

#[test]
fn somebody_else_is_not_told_the_password() {
    let server = Fake::start(Some("220 mail.example ESMTP\r\n"), Arc::new(|_| Do::Hang));
    let login = Connection { password_ref: Secret::new("hunter2"), ..at(server.port) };
    assert!(matches!(fault(Rig::new().run(&redis(login.clone()))), RedisFault::NotRedis { .. }));
    let encrypted = Connection { tls_mode: "require".into(), ..login.clone() };
    let found = fault(Rig::new().run(&redis(encrypted)));
    assert!(matches!(found, RedisFault::Tls(_)) && !found.retry(), "{found}");
    let server = Fake::with(|_| Some(say("HTTP/1.1 400 Bad Request\r\n\r\n")));
    let login = Connection { port: server.port.into(), ..login };
    assert!(matches!(fault(Rig::new().run(&redis(login))), RedisFault::NotRedis { .. }));
    assert_eq!(server.heard(), ["PING"]);
}

#[test]
fn silence_and_cancel() {
    for command in ["PING", "PSYNC"] {
        let server = Fake::with(move |words| (words[0] == command).then_some(Do::Hang));
        let mut rig = Rig::new();
        rig.limits.stuck_timeout = Duration::from_millis(300);
        let found = fault(server.run(&rig));
        assert!(matches!(found, RedisFault::Silent(_)) && found.retry(), "{found}");
        let rig = Rig::new();
        let error = std::thread::scope(|scope| {
            let run = scope.spawn(|| server.run(&rig));
            while server.heard().iter().filter(|words| words.starts_with(command)).count() < 2 {
                assert!(!run.is_finished());
                std::thread::yield_now();
            }
            rig.cancel.cancel(Why::Timeout);
            run.join().unwrap().unwrap_err()
        });
        assert_eq!(error.cancelled(), Some(Why::Timeout));
    }
}

#[test]
fn nobody_there() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let found = fault(Rig::new().run(&redis(at(gone))));
    assert!(matches!(found, RedisFault::Unreachable { .. }) && found.retry(), "{found}");
    let rig = Rig::new();
    let way = backupy::model::Way::UnixSocket;
    for host in [rig.path("missing.sock"), rig.dir.path().to_owned()] {
        let host = host.to_str().unwrap().to_owned();
        let found = fault(rig.run(&redis(Connection { host, way, ..Connection::default() })));
        assert!(matches!(found, RedisFault::Unreachable { .. }) && found.retry(), "{found}");
    }
    let host = format!("/{}", "x".repeat(200));
    let error = rig.run(&redis(Connection { host, way, ..Connection::default() })).unwrap_err();
    assert!(matches!(error, DriverError::Setting { field: "host", .. }), "{error}");
}

#[test]
fn what_a_control_plane_may_not_name() {
    let mut rig = Rig::remote();
    std::fs::create_dir(rig.path("secrets")).unwrap();
    rig.policy.secrets_dir = Some(rig.path("secrets"));
    let file = rig.path("secrets/redis");
    std::fs::write(&file, "word").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let reference = format!("file:{}", file.display());
    for (host, password) in
        [("169.254.169.254", "hunter2"), ("8.8.8.8", &reference), ("::ffff:8.8.8.8", &reference)]
    {
        let password_ref = Secret::new(password);
        let connection = Connection { host: host.into(), password_ref, ..Connection::default() };
        let error = rig.run(&redis(connection)).unwrap_err();
        let refused = matches!(error, DriverError::NotAllowed { .. });
        assert!(refused && !error.retry(), "{host}: {error}");
    }
}

/// A sink that waits until the server has sent everything.
struct Patient<'a>(&'a Receiver<()>, Vec<u8>);

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.1.is_empty() {
            self.0.recv_timeout(LONG).map_err(std::io::Error::other)?;
        }
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// More than all the buffers between the two, and a sink that takes nothing before the server is rid of it.
#[test]
fn a_sink_that_waits_does_not_hold_the_server_up() {
    let rdb = rdb(&vec![b'x'; 48 << 20]);
    for stream in [from_disk(&rdb), diskless(&rdb)] {
        let server = Fake::psync(Do::Say(stream));
        let mut rig = Rig::new();
        rig.limits.memory_bytes = 1 << 20;
        let mut sink = Patient(&server.sent, Vec::new());
        rig.run_into(&redis(at(server.port)), &mut sink).unwrap();
        assert!(sink.1 == rdb);
    }
}

#[test]
fn a_sink_that_fails() {
    let rdb = rdb(&vec![b'x'; 1 << 20]);
    for memory in [64 << 10, 8 << 20] {
        let server = Fake::psync(Do::Say(diskless(&rdb)));
        let mut rig = Rig::new();
        rig.limits.memory_bytes = memory;
        let error = rig.run_into(&redis(at(server.port)), &mut Failing(300_000)).unwrap_err();
        assert!(matches!(error, DriverError::Sink(_)), "{error}");
    }
}
