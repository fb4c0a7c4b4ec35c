//! TCP and TLS: from an address to a stream that is ready for the upgrade.

use std::net::TcpStream;

use rustix::net::sockopt;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::stream::Stream;
use super::{LinkConfig, LinkError, ServerUrl, Transport, tls};
use crate::clock::Deadline;
use crate::net;
use crate::thread::Cancel;

/// Opens the stream the configuration asks for.
pub(super) fn dial(
    config: &LinkConfig,
    deadline: Deadline,
    cancel: &Cancel,
) -> Result<Stream, LinkError> {
    match &config.transport {
        Transport::Loopback(address) if !address.ip().is_loopback() => Err(LinkError::NotLoopback),
        Transport::Loopback(address) => {
            let tcp = net::connect_any("loopback", &[*address], deadline, cancel)?;
            Ok(Stream::plain(sized(tcp, config)?))
        }
        Transport::Remote(url) => {
            // Before the socket is opened: a broken CA file should not cost the server a connection.
            let client = url.is_tls().then(|| tls::client_config(&config.tls)).transpose()?;
            let tcp = net::open_tunnel(&config.proxy, url.host(), url.port(), deadline, cancel)?;
            let tcp = sized(tcp, config)?;
            let Some(client) = client else { return Ok(Stream::plain(tcp)) };
            let connection =
                ClientConnection::new(client, server_name(url)?).map_err(LinkError::Tls)?;
            let mut stream = Stream::tls(connection, tcp);
            stream.shake_hands(deadline, cancel)?;
            Ok(stream)
        }
    }
}

fn sized(tcp: TcpStream, config: &LinkConfig) -> Result<TcpStream, LinkError> {
    if let Some(bytes) = config.send_buffer_bytes {
        sockopt::set_socket_send_buffer_size(&tcp, bytes)
            .map_err(|error| LinkError::System(error.into()))?;
    }
    Ok(tcp)
}

fn server_name(url: &ServerUrl) -> Result<ServerName<'static>, LinkError> {
    let bare = url.host().trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|_| LinkError::HostName)
}
