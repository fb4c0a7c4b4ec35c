//! For the tests: a store that plays a script, and a driver that is a closure.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::upload::{Timing, Tries};
use crate::drivers::{Context, Driver, DriverError, Dumped, Prepared};
use crate::model::UploadCreds;
use crate::secret::Secret;
use crate::thread::{Never, spawn};

/// What must never appear in an error.
pub(super) const SECRET: &str = "5ec7e7516";

/// What the store does with one connection.
#[derive(Debug, Clone)]
pub(super) enum Play {
    /// Reads everything and answers.
    Answer(String),
    /// Announces that it goes on, reads everything, answers.
    Interim(String),
    /// Reads the head and answers; the connection stays open and nobody reads.
    Early(String),
    /// Reads the head, answers and closes, so that the client is reset.
    EarlyClose(String),
    /// Reads so much of the body and resets.
    ResetAfter(usize),
    /// Reads the head, then announces without end that it goes on.
    Flood,
    /// Reads everything, then announces without end that it goes on.
    FloodAfter,
    /// Sends a head that never ends.
    EndlessHead,
    /// Reads everything and says nothing.
    Mute,
    /// Reads nothing.
    Deaf,
    /// Closes at once.
    Close,
    /// Reads in small pieces, with pauses, and answers.
    Slow(String),
}

/// A response without a body.
pub(super) fn status(line: &str) -> String {
    format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n")
}

/// A response with an S3 error.
pub(super) fn s3_error(line: &str, code: &str, message: &str) -> String {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    format!(
        "HTTP/1.1 {line}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What arrived on one connection.
#[derive(Clone, Default)]
pub(super) struct Request {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

/// A store on a loopback port. The last play of its script is repeated.
pub(super) struct Store {
    pub(super) address: SocketAddr,
    tls: bool,
    requests: Arc<Mutex<Vec<Request>>>,
    arrived: Receiver<()>,
    stop: Option<Sender<Never>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Store {
    pub(super) fn plain(script: Vec<Play>) -> Self {
        Self::start(script, None)
    }

    pub(super) fn start(script: Vec<Play>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = bounded(0);
        let (arrive, arrived) = bounded(1000);
        let (seen, secure) = (requests.clone(), tls.is_some());
        let thread = spawn("store", move || {
            let mut handlers = Vec::new();
            for number in 0.. {
                let (stream, _) = listener.accept().unwrap();
                if is_last(&stream, &stopped) {
                    break;
                }
                let play = script[number.min(script.len() - 1)].clone();
                let (tls, stopped, seen, arrive) =
                    (tls.clone(), stopped.clone(), seen.clone(), arrive.clone());
                let handler = move || {
                    // Long enough for any test, short enough to end one that hangs.
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let raw = stream.try_clone().unwrap();
                    let mut conn: Box<dyn Conn> = match tls {
                        Some(config) => {
                            let session = ServerConnection::new(config).unwrap();
                            Box::new(StreamOwned::new(session, stream))
                        }
                        None => Box::new(stream),
                    };
                    let mut request = Request::default();
                    // The client is free to go at any point.
                    let _ = perform(&play, conn.as_mut(), &raw, &mut request, &stopped, &arrive);
                    seen.lock().unwrap().push(request);
                };
                handlers.push(spawn("store-conn", handler).unwrap());
            }
            for handler in handlers {
                handler.join().unwrap();
            }
        });
        let (stop, thread) = (Some(stop), Some(thread.unwrap()));
        Self { address, tls: secure, requests, arrived, stop, thread }
    }

    pub(super) fn creds(&self) -> UploadCreds {
        let scheme = if self.tls { "https" } else { "http" };
        let url = format!("{scheme}://{}/bucket/key?X-Amz-Signature={SECRET}", self.address);
        UploadCreds {
            put_url: Secret::new(url),
            object_key: "key".into(),
            ..UploadCreds::default()
        }
    }

    /// Waits until a request's head has arrived.
    pub(super) fn wait_for_head(&self) {
        self.arrived.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    /// Stops and gives what arrived.
    pub(super) fn finish(mut self) -> Vec<Request> {
        self.stop();
        self.requests.lock().unwrap().clone()
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        // Behind the connections that wait to be accepted, which are still played.
        if let Ok(mut last) = TcpStream::connect(self.address) {
            let _ = last.write_all(LAST);
        }
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the store sends itself to stop.
const LAST: &[u8] = b"!";

fn is_last(stream: &TcpStream, stopped: &Receiver<Never>) -> bool {
    let mut first = [0; 1];
    matches!(stopped.try_recv(), Err(TryRecvError::Disconnected))
        && matches!(stream.peek(&mut first), Ok(1))
        && first == LAST
}

pub(super) trait Conn: Read + Write {}
impl<T: Read + Write> Conn for T {}

fn perform(
    play: &Play,
    conn: &mut dyn Conn,
    raw: &TcpStream,
    request: &mut Request,
    stopped: &Receiver<Never>,
    arrive: &Sender<()>,
) -> io::Result<()> {
    let hold = || drop(stopped.recv());
    if let Play::Close = play {
        return Ok(());
    }
    if let Play::Deaf = play {
        arrive.try_send(()).unwrap();
        hold();
        return Ok(());
    }
    read_head(conn, &mut request.head)?;
    arrive.try_send(()).unwrap();
    match play {
        Play::Answer(answer) => {
            read_body(conn, request, usize::MAX, None)?;
            conn.write_all(answer.as_bytes())?;
        }
        Play::Interim(answer) => {
            conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            conn.flush()?;
            read_body(conn, request, usize::MAX, None)?;
            conn.write_all(answer.as_bytes())?;
        }
        Play::Early(answer) => {
            conn.write_all(answer.as_bytes())?;
            conn.flush()?;
            hold();
        }
        Play::EarlyClose(answer) => conn.write_all(answer.as_bytes())?,
        Play::ResetAfter(bytes) => {
            read_body(conn, request, *bytes, None)?;
            rustix::net::sockopt::set_socket_linger(raw, Some(Duration::ZERO))?;
        }
        Play::Mute => {
            read_body(conn, request, usize::MAX, None)?;
            hold();
        }
        Play::Slow(answer) => {
            read_body(conn, request, usize::MAX, Some(Duration::from_millis(1)))?;
            conn.write_all(answer.as_bytes())?;
        }
        Play::Flood => return flood(conn, "HTTP/1.1 100 Continue\r\n\r\n"),
        Play::FloodAfter => {
            read_body(conn, request, usize::MAX, None)?;
            return flood(conn, "HTTP/1.1 100 Continue\r\n\r\n");
        }
        Play::EndlessHead => {
            conn.write_all(b"HTTP/1.1 100 Continue\r\nX: ")?;
            return flood(conn, "yyyyyyyyyyyyyyyyyyyyyyyyyyy");
        }
        Play::Deaf | Play::Close => {}
    }
    conn.flush()
}

/// Until the client has had enough.
fn flood(conn: &mut dyn Conn, text: &str) -> io::Result<()> {
    let text = text.repeat(1000);
    while conn.write_all(text.as_bytes()).is_ok() {}
    Ok(())
}

pub(super) fn read_head(conn: &mut dyn Conn, head: &mut String) -> io::Result<()> {
    let mut byte = [0; 1];
    while !head.ends_with("\r\n\r\n") {
        conn.read_exact(&mut byte)?;
        head.push(byte[0] as char);
    }
    Ok(())
}

pub(super) fn read_body(
    conn: &mut dyn Conn,
    request: &mut Request,
    at_most: usize,
    pause: Option<Duration>,
) -> io::Result<()> {
    let length: usize = request
        .head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
        .expect("a content-length");
    let mut buffer = vec![0; 16 << 10];
    while request.body.len() < length.min(at_most) {
        let want = buffer.len().min(length - request.body.len());
        let count = conn.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.body.extend_from_slice(&buffer[..count]);
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
    }
    Ok(())
}

/// Short waits, so that nothing in a test takes long.
pub(super) fn quick() -> Timing {
    Timing {
        connect: Duration::from_secs(10),
        stall: Duration::from_secs(10),
        answer: Duration::from_secs(10),
        part_urls: Duration::from_secs(10),
        part_urls_again: Duration::from_secs(1),
        tries: Tries {
            max: 3,
            max_part: 3,
            first_pause: Duration::from_millis(5),
            max_pause: Duration::from_millis(20),
            max_retry_after: Duration::from_millis(50),
        },
    }
}

type Dump = dyn FnMut(&Context<'_>, &mut dyn Write) -> Result<Dumped, DriverError> + Send;
type Prepare = dyn FnMut(&Context<'_>) -> Result<Prepared, DriverError> + Send;

/// A driver made of closures.
pub(super) struct Fake {
    pub(super) prepare: Box<Prepare>,
    pub(super) dump: Box<Dump>,
    pub(super) hurries: bool,
}

impl Fake {
    /// Dumps these bytes.
    pub(super) fn with(data: Vec<u8>) -> Self {
        Self::dumping(move |_, out| {
            out.write_all(&data).map_err(DriverError::Sink)?;
            Ok(Dumped { bytes: data.len() as u64, warnings: vec!["dumped".into()] })
        })
    }

    pub(super) fn dumping(
        dump: impl FnMut(&Context<'_>, &mut dyn Write) -> Result<Dumped, DriverError> + Send + 'static,
    ) -> Self {
        let prepare = |_: &Context<'_>| {
            Ok(Prepared {
                engine_version: "Fake 1.0".into(),
                size_hint_bytes: None,
                warnings: vec!["prepared".into()],
            })
        };
        Self { prepare: Box::new(prepare), dump: Box::new(dump), hurries: false }
    }
}

impl Driver for Fake {
    fn prepare(&mut self, cx: &Context<'_>) -> Result<Prepared, DriverError> {
        (self.prepare)(cx)
    }

    fn dump(&mut self, cx: &Context<'_>, out: &mut dyn Write) -> Result<Dumped, DriverError> {
        (self.dump)(cx, out)
    }

    fn hurries(&self) -> bool {
        self.hurries
    }
}

/// Bytes that no compressor makes smaller; the same for the same seed.
pub(super) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}
