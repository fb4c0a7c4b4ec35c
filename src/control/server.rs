//! The routes of the embedded control plane's HTTP server.
//!
//! | route | who | what |
//! |---|---|---|
//! | `GET /v1/agents/connect` | an agent's key | the session |
//! | `PUT /objects/<key>?<signature>` | a URL of ours | an artifact into the storage |
//! | `GET /objects/<key>?<signature>` | a URL of ours | an artifact out of it |
//!
//! Everything else is 404. Nothing here logs a query string.

use std::io;
use std::sync::Arc;

use super::connect::{self, Agents};
use super::http::{Conn, HttpError, Limits, Method, Request, Server, Status};
use super::objects;
use super::plane::Plane;
use super::session::{Desk, Timing};
use super::storage::sign;
use crate::wire::CONNECT_PATH;

/// Starts the server for a plane, on `port` if that is free.
///
/// # Errors
/// When there is no port, descriptor or thread left.
pub fn start(
    plane: Plane,
    agents: Agents,
    timing: Timing,
    limits: Limits,
    port: Option<u16>,
) -> io::Result<Server> {
    let desk: Arc<dyn Desk> = Arc::new(plane.clone());
    Server::start(
        limits,
        port,
        Arc::new(move |request, conn| route(&plane, &agents, &desk, timing, &request, conn)),
    )
}

fn route(
    plane: &Plane,
    agents: &Agents,
    desk: &Arc<dyn Desk>,
    timing: Timing,
    request: &Request,
    conn: &mut Conn,
) -> Result<(), HttpError> {
    if request.path == CONNECT_PATH {
        return match request.method {
            Method::Get => connect::connect(request, conn, agents, desk, timing),
            _ => Err(HttpError::Bad(Status::METHOD_NOT_ALLOWED, "connect with GET")),
        };
    }
    if request.path.starts_with(sign::PATH) {
        return match request.method {
            Method::Put => objects::put(plane, request, conn),
            Method::Get => objects::get(plane, request, conn),
            _ => Err(HttpError::Bad(Status::METHOD_NOT_ALLOWED, "objects are PUT or GET")),
        };
    }
    Err(HttpError::Bad(Status::NOT_FOUND, "there is nothing here"))
}
