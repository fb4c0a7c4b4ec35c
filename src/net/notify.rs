//! Where a service manager listens, as `NOTIFY_SOCKET` of sd_notify(3) names it.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;

/// The address of a path, or of an abstract name behind `@`.
///
/// # Errors
/// When it is neither, or longer than an address may be.
pub fn notify_address(name: &str) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("neither a path nor an abstract name")),
    }
}
