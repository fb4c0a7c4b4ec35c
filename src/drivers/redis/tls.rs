//! TLS to a Redis server: never without a certificate whose name and chain were checked.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::fault::RedisFault;
use super::place::Tls;
use crate::clock::Deadline;
use crate::drivers::cafile;
use crate::drivers::{Context, DriverError};
use crate::model::Trust;
use crate::net::{self, Waited, wait_readable, wait_writable};
use crate::thread::Why;

/// A connection that agreed on TLS.
pub(super) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Agrees on TLS with the server.
///
/// # Errors
/// Permanent ones where it is about certificates or the protocol.
pub(super) fn agree(
    stream: TcpStream,
    host: &str,
    wanted: &Tls,
    deadline: Deadline,
    cx: &Context<'_>,
) -> Result<TlsStream, DriverError> {
    let fault = |reason: String| DriverError::from(RedisFault::Tls(reason));
    let ca_file =
        wanted.ca_file.as_deref().map(|file| cafile::admit(file, cx.policy)).transpose()?;
    let roots = match (&ca_file, cx.policy.trust) {
        (Some(file), Trust::Remote) => net::only_root(file),
        (file, Trust::Remote | Trust::Local) => net::root_store(file.as_deref()),
    };
    let roots = roots.map_err(|error| fault(error.to_string()))?;
    let config = ClientConfig::builder_with_provider(net::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| fault(format!("{host} is no name that a certificate could have")))?;
    let connection =
        ClientConnection::new(Arc::new(config), name).map_err(|error| fault(error.to_string()))?;
    let mut tls = StreamOwned::new(connection, stream);
    while tls.conn.is_handshaking() {
        match tls.conn.complete_io(&mut tls.sock) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&tls, host, deadline, cx)?;
            }
            // The alert says why; if it does not get through, the server sees a closed connection.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(fault(error.to_string()));
            }
            Err(source) => {
                return Err(RedisFault::Lost { received: 0, source: Some(source) }.into());
            }
        }
    }
    Ok(tls)
}

fn wait(
    tls: &TlsStream,
    host: &str,
    deadline: Deadline,
    cx: &Context<'_>,
) -> Result<(), DriverError> {
    let waited = if tls.conn.wants_write() {
        wait_writable(&tls.sock, deadline, Some(cx.cancel))
    } else {
        wait_readable(&tls.sock, deadline, Some(cx.cancel))
    };
    match waited {
        Ok(Waited::Ready) => Ok(()),
        Ok(Waited::TimedOut) => {
            // A Redis port without TLS says nothing at all to this.
            let reason = "no answer to TLS, which that port may not have".to_owned();
            Err(RedisFault::Unreachable { place: host.to_owned(), reason }.into())
        }
        Ok(Waited::Cancelled) => {
            Err(DriverError::Cancelled(cx.cancel.why().unwrap_or(Why::Requested)))
        }
        Err(source) => Err(RedisFault::Lost { received: 0, source: Some(source) }.into()),
    }
}
