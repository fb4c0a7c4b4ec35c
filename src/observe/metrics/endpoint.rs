//! Where Prometheus asks: `GET /metrics`, and `GET /healthz` for supervisors that speak HTTP; nothing else.
//!
//! There is no login, so nothing here may be a secret: names of jobs and checks, counts and times. A few connections at
//! once, each with its deadlines; more are turned away.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::text::MEDIA_TYPE;
use crate::net::http::{Conn, HttpError, Limits, Method, Request, Server, Status};

/// Makes the page of a scrape.
pub type Page = Box<dyn Fn() -> String + Send + Sync>;

/// Says what keeps the process from being alive; empty if it is.
pub type Health = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// Starts to answer at `addr`; dropping the server stops and joins it.
///
/// # Errors
/// When the address cannot be listened at, or the system refuses a thread or a descriptor.
pub fn start(addr: SocketAddr, page: Page, health: Health) -> io::Result<Server> {
    let limits = Limits {
        head_bytes: 8 << 10,
        headers: 32,
        head_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(5),
        connection_timeout: Duration::from_secs(15),
        connections: 4,
    };
    let answer = move |request: Request, conn: &mut Conn| answer(&request, conn, &page, &health);
    Server::on(TcpListener::bind(addr)?, ["metrics", "metrics-conn"], limits, Arc::new(answer))
}

fn answer(
    request: &Request,
    conn: &mut Conn,
    page: &Page,
    health: &Health,
) -> Result<(), HttpError> {
    match (request.method, request.path.as_str()) {
        (Method::Get, "/metrics") => conn.respond_as(Status::OK, MEDIA_TYPE, &page()),
        (Method::Get, "/healthz") => {
            let problems = health();
            let status = if problems.is_empty() { Status::OK } else { Status::UNAVAILABLE };
            let words = if problems.is_empty() { "ok".to_owned() } else { problems.join("\n") };
            conn.respond(status, &words)
        }
        (_, "/metrics" | "/healthz") => {
            conn.respond(Status::METHOD_NOT_ALLOWED, "only GET is answered here")
        }
        _ => conn.respond(Status::NOT_FOUND, "there are /metrics and /healthz"),
    }
}
