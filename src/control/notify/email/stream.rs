//! The line to a mail server: TCP (through a proxy, where one is set), later TLS; non-blocking, every wait bounded by one
//! deadline and the stop. Lines that come are bounded too.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::error::SmtpError;
use crate::clock::Deadline;
use crate::net::{self, Waited};
use crate::thread::Cancel;

/// Longest line of an answer. RFC 5321 says 512.
const LINE_MAX: usize = 2048;

/// The line.
pub(super) struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What arrived and was not read yet.
    ahead: Vec<u8>,
    deadline: Deadline,
    stop: Cancel,
}

impl Stream {
    pub(super) fn new(socket: TcpStream, deadline: Deadline, stop: &Cancel) -> Self {
        Self { socket, tls: None, ahead: Vec::new(), deadline, stop: stop.clone() }
    }

    /// The address that the server sees, for EHLO.
    pub(super) fn own_address(&self) -> String {
        match self.socket.local_addr() {
            Ok(address) if address.is_ipv6() => format!("[IPv6:{}]", address.ip()),
            Ok(address) => format!("[{}]", address.ip()),
            Err(_) => "[127.0.0.1]".to_owned(),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Starts TLS. What came before it in the clear must have been read.
    pub(super) fn start_tls(&mut self, host: &str, ca: Option<&Path>) -> Result<(), SmtpError> {
        const DOING: &str = "starting TLS";
        if !self.ahead.is_empty() {
            return Err(SmtpError::Injected);
        }
        let mut tls = client(host, ca)?;
        while tls.is_handshaking() || tls.wants_write() {
            let write = tls.wants_write();
            let moved = if write {
                tls.write_tls(&mut self.socket)
            } else {
                tls.read_tls(&mut self.socket)
            };
            match moved {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(SmtpError::Io { doing: DOING, source });
                }
                Ok(_) if write => {}
                Ok(_) => {
                    if let Err(error) = tls.process_new_packets() {
                        // The alert that tells the peer why; whether it arrives does not matter.
                        let _ = tls.write_tls(&mut self.socket);
                        return Err(SmtpError::Tls(error.to_string()));
                    }
                }
                Err(error) if is_later(&error) => self.wait(write, DOING)?,
                Err(source) => return Err(SmtpError::Io { doing: DOING, source }),
            }
            self.alive(DOING)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    pub(super) fn send(&mut self, mut bytes: &[u8], doing: &'static str) -> Result<(), SmtpError> {
        while !bytes.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            self.alive(doing)?;
            let step = match &mut self.tls {
                Some(tls) if tls.wants_write() => tls.write_tls(&mut self.socket).map(|_| 0),
                Some(tls) => tls.writer().write(bytes),
                None => self.socket.write(bytes),
            };
            match step {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_later(&error) => self.wait(true, doing)?,
                Err(source) => return Err(SmtpError::Io { doing, source }),
            }
        }
        Ok(())
    }

    /// The next line, without its end.
    pub(super) fn line(&mut self, doing: &'static str) -> Result<Vec<u8>, SmtpError> {
        loop {
            if let Some(end) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.ahead.drain(..=end).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
            if self.ahead.len() > LINE_MAX {
                return Err(SmtpError::Nonsense { doing });
            }
            self.alive(doing)?;
            let mut chunk = [0; 1024];
            match self.pull(&mut chunk) {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(SmtpError::Io { doing, source });
                }
                Ok(count) => self.ahead.extend_from_slice(&chunk[..count]),
                Err(error) if is_later(&error) => self.wait(false, doing)?,
                Err(source) => return Err(SmtpError::Io { doing, source }),
            }
        }
    }

    fn pull(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(out) };
        loop {
            match tls.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            let count = tls.read_tls(&mut self.socket)?;
            tls.process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if count == 0 {
                return Ok(0);
            }
        }
    }

    fn wait(&self, write: bool, doing: &'static str) -> Result<(), SmtpError> {
        let waited = if write {
            net::wait_writable(&self.socket, self.deadline, Some(&self.stop))
        } else {
            net::wait_readable(&self.socket, self.deadline, Some(&self.stop))
        };
        match waited {
            Ok(Waited::Ready) => self.alive(doing),
            Ok(Waited::TimedOut) => Err(SmtpError::Timeout { doing }),
            Ok(Waited::Cancelled) => Err(SmtpError::Stopped),
            Err(source) => Err(SmtpError::Io { doing, source }),
        }
    }

    /// Also for a server that never stops talking.
    fn alive(&self, doing: &'static str) -> Result<(), SmtpError> {
        if self.stop.is_cancelled() {
            return Err(SmtpError::Stopped);
        }
        if self.deadline.passed() { Err(SmtpError::Timeout { doing }) } else { Ok(()) }
    }
}

fn client(host: &str, ca: Option<&Path>) -> Result<ClientConnection, SmtpError> {
    let fail = |error: &dyn std::fmt::Display| SmtpError::Tls(error.to_string());
    let roots = net::root_store(ca).map_err(|error| fail(&error))?;
    let config = ClientConfig::builder_with_provider(net::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| SmtpError::Tls(format!("{host} is no name that a certificate could have")))?;
    ClientConnection::new(Arc::new(config), name).map_err(|error| fail(&error))
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
