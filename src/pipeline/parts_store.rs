//! For the tests: a store of one multipart upload that is as strict as S3, and fails as told.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::testing::{Request, SECRET, read_body, read_head, s3_error, status};
use crate::model::{Multipart, PartUrl, UploadCreds};
use crate::secret::Secret;
use crate::thread::{Never, spawn};

pub(super) const MIB: usize = 1 << 20;
/// The least that S3 takes.
pub(super) const PART: usize = 5 * MIB;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum About {
    Part(u32),
    Complete,
    Abort,
}

/// What the store does instead of what it should.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// Reads everything, does nothing and answers this.
    Answer(String),
    /// Reads so much of the body and resets.
    ResetAfter(usize),
    /// Reads everything, does nothing and says nothing.
    Mute,
    /// Does it and closes without an answer.
    Lost,
    /// Does it, closes without an answer, and knows the upload no more.
    LostAndForgotten,
}

#[derive(Default)]
struct State {
    troubles: BTreeMap<About, VecDeque<Trouble>>,
    parts: BTreeMap<u32, Vec<u8>>,
    seen: Vec<About>,
    completed: Vec<String>,
    object: Option<Vec<u8>>,
    gone: bool,
}

pub(super) struct PartStore {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    arrived: Receiver<About>,
    stop: Option<Sender<Never>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl PartStore {
    pub(super) fn start(troubles: Vec<(About, Vec<Trouble>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let troubles = troubles.into_iter().map(|(about, list)| (about, list.into())).collect();
        let state = Arc::new(Mutex::new(State { troubles, ..State::default() }));
        let (stop, stopped) = bounded(0);
        let (arrive, arrived) = bounded(1000);
        let shared = state.clone();
        let thread = spawn("part-store", move || {
            let mut handlers = Vec::new();
            for stream in listener.incoming() {
                if matches!(stopped.try_recv(), Err(TryRecvError::Disconnected)) {
                    break;
                }
                let (state, stopped, arrive) = (shared.clone(), stopped.clone(), arrive.clone());
                let handler = move || {
                    // The client is free to go at any point.
                    let _ = serve(stream.unwrap(), &state, &stopped, &arrive);
                };
                handlers.push(spawn("part-store-conn", handler).unwrap());
            }
            for handler in handlers {
                handler.join().unwrap();
            }
        });
        let (stop, thread) = (Some(stop), Some(thread.unwrap()));
        Self { address, state, arrived, stop, thread }
    }

    fn url(&self, query: &str) -> Secret {
        let address = self.address;
        Secret::new(format!("http://{address}/bucket/key?{query}&X-Amz-Signature={SECRET}"))
    }

    pub(super) fn part_urls(&self, numbers: std::ops::RangeInclusive<u32>) -> Vec<PartUrl> {
        let one =
            |number| PartUrl { number, url: self.url(&format!("partNumber={number}&uploadId=u")) };
        numbers.map(one).collect()
    }

    /// With URLs for so many parts.
    pub(super) fn creds(&self, parts: u32) -> UploadCreds {
        UploadCreds {
            object_key: "key".into(),
            multipart: Some(Multipart {
                upload_id: "u".into(),
                part_size_bytes: PART as u64,
                parts: self.part_urls(1..=parts),
                complete_url: self.url("uploadId=u"),
                abort_url: self.url("uploadId=u"),
                expires_at_ms: 0,
            }),
            ..UploadCreds::default()
        }
    }

    /// Waits for the head of the next request.
    pub(super) fn arrival(&self) -> About {
        self.arrived.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Whether nobody has asked for anything.
    pub(super) fn is_untouched(&self) -> bool {
        self.state.lock().unwrap().seen.is_empty()
    }

    /// How often this was asked for.
    pub(super) fn count(&self, about: About) -> usize {
        self.state.lock().unwrap().seen.iter().filter(|seen| **seen == about).count()
    }

    pub(super) fn object(&self) -> Option<Vec<u8>> {
        self.state.lock().unwrap().object.clone()
    }

    /// The sizes of the parts that it has.
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.state.lock().unwrap().parts.values().map(Vec::len).collect()
    }
}

impl Drop for PartStore {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = TcpStream::connect(self.address);
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || std::thread::panicking());
    }
}

fn serve(
    mut stream: TcpStream,
    state: &Mutex<State>,
    stopped: &Receiver<Never>,
    arrive: &Sender<About>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut request = Request::default();
    read_head(&mut stream, &mut request.head)?;
    let about = about(&request.head);
    let trouble = {
        let mut state = state.lock().unwrap();
        state.seen.push(about);
        state.troubles.get_mut(&about).and_then(VecDeque::pop_front)
    };
    arrive.try_send(about).unwrap();
    if let Some(Trouble::ResetAfter(bytes)) = trouble {
        read_body(&mut stream, &mut request, bytes, None)?;
        return rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))
            .map_err(Into::into);
    }
    if about != About::Abort {
        read_body(&mut stream, &mut request, usize::MAX, None)?;
    }
    let answer = match trouble {
        Some(Trouble::Answer(answer)) => answer,
        Some(Trouble::Mute) => {
            drop(stopped.recv());
            return Ok(());
        }
        Some(Trouble::Lost | Trouble::LostAndForgotten) => {
            let mut state = state.lock().unwrap();
            state.perform(about, request.body);
            state.gone |= matches!(trouble, Some(Trouble::LostAndForgotten));
            return Ok(());
        }
        Some(Trouble::ResetAfter(_)) | None => state.lock().unwrap().perform(about, request.body),
    };
    stream.write_all(answer.as_bytes())
}

fn about(head: &str) -> About {
    assert!(head.contains(SECRET), "{head}");
    let number = head.split_once("partNumber=").and_then(|(_, rest)| rest.split('&').next());
    match (head.split(' ').next(), number) {
        (Some("PUT"), Some(number)) => About::Part(number.parse().unwrap()),
        (Some("POST"), None) => About::Complete,
        (Some("DELETE"), None) => About::Abort,
        _ => panic!("{head}"),
    }
}

fn etag(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("\"{}\"", crate::hex::hex(&hash.as_ref()[..16]))
}

impl State {
    fn perform(&mut self, about: About, body: Vec<u8>) -> String {
        if self.gone {
            return s3_error("404 Not Found", "NoSuchUpload", "gone");
        }
        match about {
            About::Part(number) => {
                let etag = etag(&body);
                self.parts.insert(number, body);
                format!("HTTP/1.1 200 OK\r\nETag: {etag}\r\nContent-Length: 0\r\n\r\n")
            }
            About::Complete => self.complete(&String::from_utf8(body).unwrap()),
            About::Abort => {
                self.gone = true;
                status("204 No Content")
            }
        }
    }

    fn complete(&mut self, xml: &str) -> String {
        let inner = xml
            .strip_prefix("<CompleteMultipartUpload>")
            .and_then(|xml| xml.strip_suffix("</CompleteMultipartUpload>"))
            .unwrap();
        let listed: Vec<(u32, String)> = inner
            .split_inclusive("</Part>")
            .map(|part| {
                let part = part.strip_prefix("<Part><PartNumber>").unwrap();
                let (number, rest) = part.split_once("</PartNumber><ETag>").unwrap();
                let etag = rest.strip_suffix("</ETag></Part>").unwrap();
                (number.parse().unwrap(), etag.to_owned())
            })
            .collect();
        let mut object = Vec::new();
        for (at, (number, tag)) in listed.iter().enumerate() {
            let Some(part) = self.parts.get(number).filter(|part| etag(part) == *tag) else {
                return s3_error("400 Bad Request", "InvalidPart", "no such part");
            };
            if *number as usize != at + 1 {
                return s3_error("400 Bad Request", "InvalidPartOrder", "order");
            }
            if part.len() < PART && at + 1 < listed.len() {
                return s3_error("400 Bad Request", "EntityTooSmall", "size");
            }
            object.extend_from_slice(part);
        }
        if self.completed.iter().any(|before| before != xml) || listed.is_empty() {
            return s3_error("404 Not Found", "NoSuchUpload", "completed otherwise");
        }
        self.completed.push(xml.to_owned());
        self.object = Some(object);
        result()
    }
}

/// S3 keeps the line alive before it knows how it went.
pub(super) fn result() -> String {
    chunked("<CompleteMultipartUploadResult><Key>key</Key></CompleteMultipartUploadResult>")
}

/// A 200 whose body comes late.
pub(super) fn chunked(body: &str) -> String {
    let size = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n \r\n{size:x}\r\n{body}\r\n0\r\n\r\n"
    )
}
