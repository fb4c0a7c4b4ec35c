//! The link against servers of this process: real sockets, real TLS, a server that does what a test says.

mod flow;
mod handshake;
mod hostile;
mod support;
mod trouble;
mod wire;
