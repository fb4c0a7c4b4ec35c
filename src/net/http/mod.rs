//! A small, strict, blocking HTTP/1.1 server: one thread per connection, one request per connection.
//!
//! It owns the listener, the connection threads and the limits (size and number of headers, time for head
//! and body, number of connections); it never looks at a path: that is the handler's. Every answer closes
//! its connection, so there is no pipelining and no left-over state to confuse two requests.
//!
//! Nothing here polls: a thread sleeps in `poll(2)` on its socket and on the stop token.

mod conn;
mod head;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use conn::{Body, Conn, HttpError};
pub use head::{Method, Request, Status};

use super::{Waited, wait_readable};
use crate::clock::Deadline;
use crate::thread::{Cancel, Why, spawn, spawn_vital};

/// What a server puts up with.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Request line and headers together.
    pub head_bytes: usize,
    /// Headers.
    pub headers: usize,
    /// From the connection to the end of the head.
    pub head_timeout: Duration,
    /// A body that brings no byte for so long is given up; so is a peer that takes none.
    pub stall_timeout: Duration,
    /// A connection with its answer may take so long, however steadily it creeps.
    pub connection_timeout: Duration,
    /// Connections at once; one more is answered 503.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 << 10,
            headers: 64,
            head_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            connection_timeout: Duration::MAX,
            connections: 64,
        }
    }
}

/// Answers one request. An error it returns means that the connection is beyond an answer.
pub type Handler = Arc<dyn Fn(Request, &mut Conn) -> Result<(), HttpError> + Send + Sync>;

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: Cancel,
    accept: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a loopback port and answers with `handler`: on `port` if it is given and free, else on
    /// any, so that URLs outlive a restart where they can.
    ///
    /// # Errors
    /// When there is no port, descriptor or thread left.
    pub fn start(limits: Limits, port: Option<u16>, handler: Handler) -> io::Result<Self> {
        let preferred = port.and_then(|port| TcpListener::bind(("127.0.0.1", port)).ok());
        let listener = match preferred {
            Some(listener) => listener,
            None => TcpListener::bind(("127.0.0.1", 0))?,
        };
        Self::on(listener, ["http-accept", "http-conn"], limits, handler)
    }

    /// Answers on this listener with `handler`; `names` are those of the accepting thread and of the connections'.
    ///
    /// # Errors
    /// When there is no descriptor or thread left.
    pub fn on(
        listener: TcpListener,
        names: [&'static str; 2],
        limits: Limits,
        handler: Handler,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let stop = Cancel::new()?;
        let [name, conn_name] = names;
        let (open, full) = (Vec::new(), false);
        let acceptor =
            Acceptor { listener, conn_name, limits, handler, stop: stop.clone(), open, full };
        let accept = spawn_vital(name, move || acceptor.run())?;
        Ok(Self { addr, stop, accept: Some(accept) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends every connection and waits for their threads.
    pub fn stop(&mut self) {
        self.stop.cancel(Why::Shutdown);
        if let Some(accept) = self.accept.take()
            && accept.join().is_err()
        {
            log::error!("the HTTP server's accept thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Acceptor {
    listener: TcpListener,
    conn_name: &'static str,
    limits: Limits,
    handler: Handler,
    stop: Cancel,
    open: Vec<JoinHandle<()>>,
    /// Whether it was said that no more fit.
    full: bool,
}

impl Acceptor {
    /// How long to wait after an accept that failed (out of descriptors), so as not to spin.
    const PAUSE: Duration = Duration::from_millis(250);
    /// For the request of a refused connection to arrive. Others wait meanwhile, so it is short.
    const LINGER: Duration = Duration::from_millis(20);

    fn run(mut self) {
        let forever = Deadline::after(Duration::MAX);
        loop {
            match wait_readable(&self.listener, forever, Some(&self.stop)) {
                Ok(Waited::Ready) => self.accept(),
                Ok(Waited::TimedOut) => {}
                Ok(Waited::Cancelled) => break,
                Err(error) => {
                    log::error!("failed to wait for connections: {error}");
                    self.stop.sleep(Self::PAUSE);
                }
            }
        }
        self.stop.cancel(Why::Shutdown);
        self.open.into_iter().for_each(join);
    }

    fn accept(&mut self) {
        self.reap();
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                log::warn!("failed to accept a connection: {error}");
                self.stop.sleep(Self::PAUSE);
                return;
            }
        };
        let mut conn = match Conn::new(stream, self.stop.clone(), &self.limits) {
            Ok(conn) => conn,
            Err(error) => return log::warn!("failed to prepare a connection: {error}"),
        };
        if self.open.len() >= self.limits.connections {
            if !std::mem::replace(&mut self.full, true) {
                log::warn!("refused a connection: {} are open", self.open.len());
            }
            // A fresh socket takes these few bytes without blocking; if not, the peer sees the close.
            if conn.respond(Status::UNAVAILABLE, "too many connections").is_ok() {
                conn.close_within(Self::LINGER);
            }
            return;
        }
        self.full = false;
        let handler = self.handler.clone();
        match spawn(self.conn_name, move || serve(conn, &handler)) {
            Ok(thread) => self.open.push(thread),
            Err(error) => log::error!("failed to start a connection's thread: {error}"),
        }
    }

    fn reap(&mut self) {
        let (ended, open) =
            std::mem::take(&mut self.open).into_iter().partition(JoinHandle::is_finished);
        self.open = open;
        Vec::into_iter(ended).for_each(join);
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        log::error!("a connection's thread panicked");
    }
}

fn serve(mut conn: Conn, handler: &Handler) {
    let outcome = match conn.read_head() {
        Ok(request) => handler(request, &mut conn),
        Err(HttpError::Bad(status, why)) => conn.respond(status, why),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => conn.close(),
        Err(HttpError::Bad(status, why)) => {
            if conn.respond(status, why).is_ok() {
                conn.close();
            }
        }
        Err(HttpError::Stopped) => {}
        Err(error) => log::debug!("a connection ended early: {error}"),
    }
}

#[cfg(test)]
mod tests;
