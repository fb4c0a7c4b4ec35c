//! A daemon for tests that says what it is told to, one connection after the other.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::Bounds;
use crate::clock::Deadline;

/// Longer than any test should take.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const VERSION: &str =
    r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#;

/// What the daemon does with one connection, once it has read the request; it sees all requests so far.
pub(crate) type Act = Box<dyn FnOnce(&mut UnixStream, &[String]) + Send>;

pub(crate) struct Daemon {
    dir: TempDir,
    requests: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// One act for each connection, one after the other; then nobody listens any more.
    pub(crate) fn acting(acts: Vec<Act>) -> Self {
        Self::start(acts, false)
    }

    /// As [`Daemon::acting`], without waiting for the end of one act before the next.
    pub(crate) fn acting_at_once(acts: Vec<Act>) -> Self {
        Self::start(acts, true)
    }

    /// Answers whatever is asked, each connection on a thread of its own.
    pub(crate) fn serving(answer: impl Fn(&str, &mut UnixStream) + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("docker.sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            let mut others = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(LONG)).unwrap();
                let request = read_request(&mut stream);
                if request.is_empty() {
                    break;
                }
                seen.lock().unwrap().push(request.clone());
                let answer = answer.clone();
                others.push(std::thread::spawn(move || answer(&request, &mut stream)));
            }
            others.into_iter().for_each(|other| other.join().unwrap());
        });
        Self { dir, requests, thread: Some(thread) }
    }

    fn start(acts: Vec<Act>, at_once: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("docker.sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let thread = std::thread::spawn(move || {
            let mut others = Vec::new();
            for act in acts {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(LONG)).unwrap();
                let request = read_request(&mut stream);
                // A connection without a request is a test's way to stop waiting.
                if request.is_empty() {
                    break;
                }
                let requests = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(request);
                    seen.clone()
                };
                if at_once {
                    others.push(std::thread::spawn(move || act(&mut stream, &requests)));
                } else {
                    act(&mut stream, &requests);
                }
            }
            others.into_iter().for_each(|other| other.join().unwrap());
        });
        Self { dir, requests, thread: Some(thread) }
    }

    /// Answers that are sent as they are, after the version.
    pub(crate) fn saying(answers: &[&[u8]]) -> Self {
        let mut acts = vec![says(ok(VERSION))];
        acts.extend(answers.iter().map(|answer| says(answer.to_vec())));
        Self::acting(acts)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// What it was asked so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Wakes an accept that nobody came to.
        let _ = UnixStream::connect(self.socket());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

pub(crate) fn says(answer: Vec<u8>) -> Act {
    Box::new(move |stream, _| {
        // The client may have hung up: that is its own business.
        let _ = stream.write_all(&answer);
    })
}

/// Says nothing until the client has hung up.
pub(crate) fn hangs() -> Act {
    Box::new(|stream, _| {
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

pub(crate) fn answer(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

pub(crate) fn ok(body: &str) -> Vec<u8> {
    answer(200, body)
}

pub(crate) fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![stream, 0, 0, 0];
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn patient() -> Bounds<'static> {
    Bounds { deadline: Deadline::after(LONG), cancel: None }
}

/// Head and body, by the length it claims.
fn read_request(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap() == 0 {
            return String::new();
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}
