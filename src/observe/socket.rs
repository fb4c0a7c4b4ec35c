//! The status socket: `<state dir>/backupy.sock`, mode 0600, for `status`, `backup` and friends.
//!
//! One request per connection: a JSON object on one line; the answer is any number of JSON objects, a
//! line each, until the connection closes. Whoever may open the socket (our own user and root) may ask.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use crate::thread::{self, Cancel};

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "backupy.sock";

/// Longest request, in bytes.
pub const MAX_REQUEST_BYTES: u64 = 1 << 20;

/// Longest line of an answer: the largest record of the store, with room for how JSON writes it.
pub const MAX_LINE_BYTES: u64 = 128 << 20;

/// Connections that are served at the same time; more are told to come back.
const MAX_CONNECTIONS: usize = 16;

/// How long a client may take to send its one line, or to take one of ours.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends one line of the answer; an error means that the client has gone.
pub type Reply<'a> = &'a mut dyn FnMut(&Value) -> io::Result<()>;

/// Answers one request.
pub type Handler = Arc<dyn Fn(&Value, Reply<'_>) -> io::Result<()> + Send + Sync>;

/// The listening socket and its thread; dropping it stops and joins it.
#[derive(Debug)]
pub struct StatusSocket {
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl StatusSocket {
    /// Listens in `state_dir`, which the caller holds the lock of, so that an old socket is a leftover.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(state_dir: &Path, handler: Handler) -> io::Result<Self> {
        let path = state_dir.join(SOCKET_NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = with_short_path(state_dir, |path| UnixListener::bind(path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let stop = Cancel::new()?;
        let seen = stop.clone();
        let thread =
            thread::spawn_vital("status", move || accept_loop(&listener, &handler, &seen))?;
        Ok(Self { stop, thread: Some(thread), path })
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        self.stop.cancel(thread::Why::Shutdown);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the status thread panicked");
        }
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

/// Connects to the process that runs on `state_dir`; `None` when nobody does.
///
/// # Errors
/// When the socket is there but cannot be used (permissions, too many connections).
pub fn connect(state_dir: &Path) -> io::Result<Option<UnixStream>> {
    match with_short_path(state_dir, |path| UnixStream::connect(path)) {
        Ok(stream) => Ok(Some(stream)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Sends `request` and hands every line of the answer to `each`. Lines may be `timeout` apart.
/// Returns false when nobody runs on `state_dir`.
///
/// # Errors
/// When the connection breaks, a line is no JSON or too long, or nothing comes for `timeout`.
pub fn ask(
    state_dir: &Path,
    request: &Value,
    timeout: Option<Duration>,
    each: &mut dyn FnMut(Value),
) -> io::Result<bool> {
    let Some(mut stream) = connect(state_dir)? else { return Ok(false) };
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    stream.set_read_timeout(timeout)?;
    write_line(&mut stream, request)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let n = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(true);
        }
        each(serde_json::from_slice(&line)?);
    }
}

fn accept_loop(listener: &UnixListener, handler: &Handler, stop: &Cancel) {
    let active = Arc::new(AtomicUsize::new(0));
    let mut threads: Vec<Conn> = Vec::new();
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                log::error!("failed to wait on the status socket: {error}");
                break;
            }
        }
        if stop.is_cancelled() {
            break;
        }
        threads.retain(|conn| !conn.thread.is_finished());
        match listener.accept() {
            Ok((stream, _)) => serve_on_thread(stream, handler, stop, &active, &mut threads),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors: waiting a moment is all that can be done.
                log::warn!("failed to accept on the status socket: {error}");
                stop.sleep(Duration::from_secs(1));
            }
        }
    }
    for conn in threads {
        // One that only holds the line must not hold the stop up; gone already is as good.
        let _ = conn.stream.shutdown(Shutdown::Both);
        if conn.thread.join().is_err() {
            log::error!("a status connection panicked");
        }
    }
}

fn serve_on_thread(
    stream: UnixStream,
    handler: &Handler,
    stop: &Cancel,
    active: &Arc<AtomicUsize>,
    threads: &mut Vec<Conn>,
) {
    if active.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
        active.fetch_sub(1, Ordering::AcqRel);
        let busy = json!({"error": "too many connections to the status socket; try again"});
        if let Err(error) = serve_line(stream, &busy) {
            log::debug!("failed to turn a status connection away: {error}");
        }
        return;
    }
    let (handler, active, stop) = (Arc::clone(handler), Arc::clone(active), stop.clone());
    let served = Served { stream, active };
    let own = match served.stream.try_clone() {
        Ok(own) => own,
        Err(error) => return log::warn!("failed to serve a status connection: {error}"),
    };
    let spawned = thread::spawn("status-conn", move || {
        if let Err(error) = serve(&served.stream, &handler, &stop) {
            log::debug!("status connection ended: {error}");
        }
    });
    match spawned {
        Ok(thread) => threads.push(Conn { stream: own, thread }),
        Err(error) => log::warn!("failed to start a status thread: {error}"),
    }
}

/// A connection that is served.
struct Conn {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

/// A connection on its thread. At the end, also that of a panic, the client sees it close, although the
/// listener still holds a descriptor of it, and its place is free again.
struct Served {
    stream: UnixStream,
    active: Arc<AtomicUsize>,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.active.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve_line(mut stream: UnixStream, line: &Value) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    write_line(&mut stream, line)
}

fn serve(stream: &UnixStream, handler: &Handler, stop: &Cancel) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REQUEST_BYTES)).read_until(b'\n', &mut line)?;
    let mut out = stream;
    let request: Value = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            return write_line(&mut out, &json!({"error": format!("bad request: {error}")}));
        }
    };
    handler(&request, &mut |value| {
        if stop.is_cancelled() {
            return Err(io::Error::other("the process is stopping"));
        }
        write_line(&mut out, value)
    })
}

fn write_line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// A socket's path is limited to 107 bytes; through `/proc/self/fd` any directory will do.
fn with_short_path<T>(
    state_dir: &Path,
    use_path: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    const LONGEST: usize = 107;
    let path = state_dir.join(SOCKET_NAME);
    if path.as_os_str().len() <= LONGEST {
        return use_path(&path);
    }
    let dir = fs::File::open(state_dir)?;
    use_path(&PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> Handler {
        Arc::new(|request, reply| {
            reply(&json!({"you": request}))?;
            reply(&json!({"done": true}))
        })
    }

    fn answers(dir: &Path, request: &Value) -> Vec<Value> {
        let mut lines = Vec::new();
        let timeout = Some(Duration::from_secs(20));
        assert!(ask(dir, request, timeout, &mut |line| lines.push(line)).unwrap());
        lines
    }

    #[test]
    fn answers_line_by_line_and_only_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let socket = StatusSocket::start(dir.path(), echo()).unwrap();
        let mode = fs::metadata(dir.path().join(SOCKET_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let lines = answers(dir.path(), &json!({"cmd": "status"}));
        assert_eq!(lines, [json!({"you": {"cmd": "status"}}), json!({"done": true})]);
        drop(socket);
        assert!(!ask(dir.path(), &json!({}), None, &mut |_| ()).unwrap(), "nobody runs");
    }

    #[test]
    fn a_leftover_socket_is_replaced_and_a_long_path_works() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        for state_dir in [dir.path(), &deep] {
            drop(with_short_path(state_dir, |path| UnixListener::bind(path)).unwrap());
            assert!(connect(state_dir).unwrap().is_none(), "a dead socket is nobody");
            let _socket = StatusSocket::start(state_dir, echo()).unwrap();
            assert_eq!(answers(state_dir, &json!(1)).len(), 2);
        }
    }

    #[test]
    fn a_silent_client_does_not_hold_the_stop_up() {
        let dir = tempfile::tempdir().unwrap();
        let (asked, seen) = crossbeam_channel::bounded(1);
        let handler: Handler = Arc::new(move |_, _| {
            asked.send(()).unwrap();
            Ok(())
        });
        let socket = StatusSocket::start(dir.path(), handler).unwrap();
        let mut silent = connect(dir.path()).unwrap().unwrap();
        silent.write_all(b"{").unwrap();
        // Served after the silent one was accepted.
        answers(dir.path(), &json!({}));
        seen.recv().unwrap();
        let start = std::time::Instant::now();
        drop(socket);
        assert!(start.elapsed() < IO_TIMEOUT / 2, "{:?}", start.elapsed());
    }

    #[test]
    fn a_panicking_handler_gives_its_place_back() {
        let dir = tempfile::tempdir().unwrap();
        let handler: Handler = Arc::new(|request, reply| {
            assert!(request != &json!("panic"), "on request");
            reply(&json!(1))
        });
        let _socket = StatusSocket::start(dir.path(), handler).unwrap();
        for _ in 0..2 * MAX_CONNECTIONS {
            assert!(answers(dir.path(), &json!("panic")).iter().all(|line| line != &json!(1)));
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while answers(dir.path(), &json!(0)) != [json!(1)] {
            assert!(std::time::Instant::now() < deadline, "no place is left");
        }
    }

    #[test]
    fn garbage_gets_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = StatusSocket::start(dir.path(), echo()).unwrap();
        let mut stream = connect(dir.path()).unwrap().unwrap();
        stream.write_all(b"}{\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("bad request"), "{answer}");
    }
}
