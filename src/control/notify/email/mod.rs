//! E-mail over SMTP (RFC 5321), with TLS from the start (`smtps://`, port 465) or by STARTTLS (`smtp://`, port 587).
//!
//! ```text
//! [TLS] greeting → EHLO → [STARTTLS → TLS → EHLO] → [AUTH] → MAIL → RCPT … → DATA → the mail → QUIT
//! ```
//! Nothing but EHLO and STARTTLS is ever sent in the clear, unless the file says `insecure` and the server is on this
//! machine. The server may say anything: lines, answers and the whole session are bounded.
//!
//! A client of our own and not `lettre`: that one opens its sockets itself (no proxy, no stop in its waits), and brings
//! `url`, `nom`, `mime` and a second `base64` for the one form of mail that is sent here.

mod error;
mod mail;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::error::hide;
use super::event::Message;
use super::{DeliverError, Tools};
use crate::clock::Deadline;
use crate::net;
use crate::secret::Secret;
use stream::Stream;

pub use error::SmtpError;
pub(in crate::control) use mail::is_address;

/// A whole session.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The step in which a server may repeat what it was sent: of its words nothing is kept but the code.
const LOGIN: &str = "logging in";
/// Lines of one answer.
const LINES_MAX: usize = 100;

/// A mail server, and who writes to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email {
    /// Recipients; at least one.
    pub to: Vec<String>,
    /// The sender.
    pub from: String,
    /// The server's name, as its certificate has it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether TLS comes before the first word.
    pub implicit_tls: bool,
    /// No TLS at all; only to this machine.
    pub insecure: bool,
    /// The login; empty = none.
    pub user: String,
    /// Reference to its password.
    pub password: Secret,
}

pub(super) fn deliver(
    email: &Email,
    ca_file: Option<&Path>,
    message: &Message,
    tools: &Tools<'_>,
) -> Result<(), DeliverError> {
    let password = tools.secret(&email.password)?;
    let deadline = Deadline::after(TIMEOUT);
    match session(email, ca_file, &password, message, tools, deadline) {
        Ok(()) => Ok(()),
        Err(SmtpError::Stopped) => Err(DeliverError::Stopped),
        Err(SmtpError::Net(net::NetError::Cancelled(_))) => Err(DeliverError::Stopped),
        Err(error) => Err(DeliverError::Smtp { host: email.host.clone(), error }),
    }
}

fn session(
    email: &Email,
    ca_file: Option<&Path>,
    password: &Secret,
    message: &Message,
    tools: &Tools<'_>,
    deadline: Deadline,
) -> Result<(), SmtpError> {
    let wanted = |to: &&String| message.only.is_empty() || message.only.contains(to);
    let to: Vec<&String> = email.to.iter().filter(wanted).collect();
    if to.is_empty() {
        // Whoever still had to get it is not in the file any more.
        return Ok(());
    }
    let (host, port) = (email.host.as_str(), email.port);
    let socket =
        net::open_tunnel(tools.proxy, host, port, deadline, tools.stop).map_err(SmtpError::Net)?;
    let mut server = Server { stream: Stream::new(socket, deadline, tools.stop), password };
    if email.implicit_tls {
        server.stream.start_tls(host, ca_file)?;
    }
    server.expect("waiting for its greeting", &[220])?;
    let mut offers = server.hello()?;
    if !server.stream.is_tls() && !email.insecure {
        if !offers.iter().any(|offer| offer == "STARTTLS") {
            return Err(SmtpError::NoTls);
        }
        server.ask("STARTTLS", "starting TLS", &[220])?;
        server.stream.start_tls(host, ca_file)?;
        // What was said in the clear does not count.
        offers = server.hello()?;
    }
    if !email.user.is_empty() {
        server.log_in(&email.user, &offers)?;
    }
    server.ask(&format!("MAIL FROM:<{}>", email.from), "naming the sender", &[250])?;
    let (refused, later) = server.recipients(&to)?;
    server.ask("DATA", "sending the mail", &[354])?;
    let mail = mail::compose(message, &email.from, &email.to);
    server.stream.send(mail::stuffed(&mail).as_bytes(), "sending the mail")?;
    server.expect("waiting for the mail to be taken", &[250])?;
    // It has the mail; how it says goodbye does not matter.
    let _ = server.ask("QUIT", "leaving", &[221]);
    if refused.is_empty() { Ok(()) } else { Err(SmtpError::Recipients { refused, later }) }
}

/// The server as the dialogue sees it.
struct Server<'a> {
    stream: Stream,
    password: &'a Secret,
}

impl Server<'_> {
    /// What it offers, in capitals.
    fn hello(&mut self) -> Result<Vec<String>, SmtpError> {
        let line = format!("EHLO {}", self.stream.own_address());
        let lines = self.ask(&line, "greeting it", &[250])?;
        Ok(lines.iter().skip(1).map(|line| line.trim().to_ascii_uppercase()).collect())
    }

    fn log_in(&mut self, user: &str, offers: &[String]) -> Result<(), SmtpError> {
        let offered = |way: &str| {
            let ways = offers.iter().filter_map(|offer| {
                offer.strip_prefix("AUTH ").or_else(|| offer.strip_prefix("AUTH="))
            });
            ways.flat_map(str::split_whitespace).any(|word| word == way)
        };
        let coded = |text: &str| Zeroizing::new(STANDARD.encode(text));
        if offered("PLAIN") {
            let login = Zeroizing::new(format!("\0{user}\0{}", self.password.expose()));
            let line = Zeroizing::new(format!("AUTH PLAIN {}", *coded(&login)));
            self.ask(&line, LOGIN, &[235])?;
        } else if offered("LOGIN") {
            self.ask("AUTH LOGIN", LOGIN, &[334])?;
            self.ask(&coded(user), LOGIN, &[334])?;
            self.ask(&coded(self.password.expose()), LOGIN, &[235])?;
        } else {
            return Err(SmtpError::NoAuth);
        }
        Ok(())
    }

    /// Names the recipients; who was refused, if others were not, and who of them may be taken later.
    fn recipients(&mut self, to: &[&String]) -> Result<(String, Vec<String>), SmtpError> {
        const DOING: &str = "naming the recipient";
        let (mut refused, mut later, mut taken) = (String::new(), Vec::new(), 0);
        let mut worst: Option<SmtpError> = None;
        for address in to {
            match self.ask(&format!("RCPT TO:<{address}>"), DOING, &[250, 251]) {
                Ok(_) => taken += 1,
                Err(SmtpError::Refused { doing, code, said }) => {
                    let comma = if refused.is_empty() { "" } else { ", " };
                    refused.push_str(&format!("{comma}{address} ({code} {said})"));
                    let error = SmtpError::Refused { doing, code, said };
                    if error.retry() {
                        later.push((*address).clone());
                    }
                    // If nobody was taken, one who may be is worth another try.
                    if worst.is_none() || error.retry() {
                        worst = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        match worst {
            Some(error) if taken == 0 => Err(error),
            _ => Ok((refused, later)),
        }
    }

    /// Sends a command and takes the answer with one of these codes.
    fn ask(
        &mut self,
        line: &str,
        doing: &'static str,
        codes: &[u16],
    ) -> Result<Vec<String>, SmtpError> {
        let line = Zeroizing::new(format!("{line}\r\n"));
        self.stream.send(line.as_bytes(), doing)?;
        self.expect(doing, codes)
    }

    /// The lines of an answer with one of these codes.
    fn expect(&mut self, doing: &'static str, codes: &[u16]) -> Result<Vec<String>, SmtpError> {
        let mut lines = Vec::new();
        let code = loop {
            let line = self.stream.line(doing)?;
            let (code, more, text) = reply(&line).ok_or(SmtpError::Nonsense { doing })?;
            lines.push(text);
            if !more {
                break code;
            }
            if lines.len() >= LINES_MAX {
                return Err(SmtpError::Nonsense { doing });
            }
        };
        if codes.contains(&code) {
            return Ok(lines);
        }
        // A success where another one was wanted is no success.
        if code < 400 {
            return Err(SmtpError::Nonsense { doing });
        }
        let said = if doing == LOGIN {
            String::new()
        } else {
            let coded = Zeroizing::new(STANDARD.encode(self.password.expose()));
            hide(&lines.join(" "), &[self.password.expose(), &coded])
        };
        Err(SmtpError::Refused { doing, code, said })
    }
}

/// `250-text` → the code, whether more lines follow, and the text.
fn reply(line: &[u8]) -> Option<(u16, bool, String)> {
    let (digits, rest) = line.split_at_checked(3)?;
    let fits = (b'2'..=b'5').contains(&digits[0]) && digits.iter().all(u8::is_ascii_digit);
    if !fits {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let (more, text) = match rest.split_first() {
        None => (false, &b""[..]),
        Some((b' ', text)) => (false, text),
        Some((b'-', text)) => (true, text),
        Some(_) => return None,
    };
    Some((code, more, String::from_utf8_lossy(text).into_owned()))
}
