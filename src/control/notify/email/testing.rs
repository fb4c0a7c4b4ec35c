//! A mail server for tests: it speaks SMTP, keeps what it heard, and misbehaves on request.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::net;

/// How it behaves.
#[derive(Clone, Default)]
pub struct Manners {
    /// TLS before the first word.
    pub implicit: bool,
    /// What it offers after EHLO, beside STARTTLS; `250-` and line ends are added.
    pub offers: Vec<&'static str>,
    /// Whether it offers STARTTLS while there is no TLS.
    pub starttls: bool,
    /// Answers to commands that begin so, instead of the usual ones; an empty answer closes the connection.
    pub instead: Vec<(&'static str, &'static str)>,
}

/// What one connection said.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// The commands before TLS, if it began later.
    pub clear: Vec<String>,
    /// The commands, in the clear or not.
    pub lines: Vec<String>,
    /// The mail, with its dots undone.
    pub mail: String,
}

pub struct MailServer {
    pub port: u16,
    pub ca_file: PathBuf,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl MailServer {
    /// Its thread goes with the test's process.
    pub fn start(dir: &Path, manners: Manners) -> Self {
        let (config, ca_file) = certificate(dir);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let kept = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut heard = Heard::default();
                serve(stream.unwrap(), &config, &manners, &mut heard);
                kept.lock().unwrap().push(heard);
            }
        });
        Self { port, ca_file, heard }
    }

    /// What the connections said, once `count` of them have ended.
    pub fn heard(&self, count: usize) -> Vec<Heard> {
        let deadline = crate::clock::Deadline::after(std::time::Duration::from_secs(20));
        loop {
            let heard = self.heard.lock().unwrap().clone();
            if heard.len() >= count {
                return heard;
            }
            assert!(!deadline.passed(), "{} connections ended", heard.len());
            crate::control::moment();
        }
    }
}

/// A certificate for 127.0.0.1 that is its own authority.
pub fn certificate(dir: &Path) -> (Arc<ServerConfig>, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let path = dir.join("ca.pem");
    std::fs::write(&path, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(net::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), path)
}

trait Line: Read + Write {}
impl<T: Read + Write> Line for T {}

fn serve(stream: TcpStream, tls: &Arc<ServerConfig>, manners: &Manners, heard: &mut Heard) {
    let secure =
        |stream: TcpStream| StreamOwned::new(ServerConnection::new(tls.clone()).unwrap(), stream);
    if manners.implicit {
        let mut line = secure(stream);
        dialogue(&mut line, true, true, manners, heard);
        return;
    }
    let mut clear = stream.try_clone().unwrap();
    if dialogue(&mut clear, false, true, manners, heard) {
        heard.clear = std::mem::take(&mut heard.lines);
        dialogue(&mut secure(stream), true, false, manners, heard);
    }
}

/// Returns true when TLS is to begin.
fn dialogue(
    line: &mut dyn Line,
    secured: bool,
    greets: bool,
    manners: &Manners,
    heard: &mut Heard,
) -> bool {
    let instead = |command: &str| {
        manners.instead.iter().find(|(begin, _)| command.starts_with(begin)).map(|(_, say)| *say)
    };
    if greets {
        let greeting = instead("greeting").unwrap_or("220 ready\r\n");
        if line.write_all(greeting.as_bytes()).is_err() || greeting.is_empty() {
            return false;
        }
    }
    while let Some(command) = read_line(line) {
        heard.lines.push(command.clone());
        let usual = match command.split(' ').next().unwrap_or_default() {
            "EHLO" => {
                let mut offers = manners.offers.clone();
                if manners.starttls && !secured {
                    offers.push("STARTTLS");
                }
                let lines: Vec<String> =
                    offers.iter().map(|offer| format!("250-{offer}\r\n")).collect();
                format!("250-mail.example\r\n{}250 HELP\r\n", lines.concat())
            }
            "STARTTLS" => "220 go on\r\n".to_owned(),
            "AUTH" if command.ends_with("LOGIN") => "334 VXNlcm5hbWU6\r\n".to_owned(),
            "AUTH" => "235 welcome\r\n".to_owned(),
            "MAIL" | "RCPT" => "250 ok\r\n".to_owned(),
            "DATA" => "354 go on\r\n".to_owned(),
            "QUIT" => "221 bye\r\n".to_owned(),
            // The two answers to AUTH LOGIN.
            _ if heard.lines.len() >= 2
                && heard.lines.iter().rev().nth(1).unwrap() == "AUTH LOGIN" =>
            {
                "334 UGFzc3dvcmQ6\r\n".to_owned()
            }
            _ => "235 welcome\r\n".to_owned(),
        };
        let answer = instead(&command).map_or(usual, str::to_owned);
        if answer.is_empty() || line.write_all(answer.as_bytes()).is_err() {
            return false;
        }
        if command == "STARTTLS" && answer.starts_with("220") {
            return true;
        }
        if command == "DATA" && answer.starts_with("354") {
            loop {
                let Some(text) = read_line(line) else { return false };
                if text == "." {
                    break;
                }
                heard.mail.push_str(text.strip_prefix('.').unwrap_or(&text));
                heard.mail.push_str("\r\n");
            }
            let answer = instead("the mail").unwrap_or("250 queued\r\n");
            if answer.is_empty() || line.write_all(answer.as_bytes()).is_err() {
                return false;
            }
        }
    }
    false
}

/// One line, byte by byte, so that nothing of what comes after it is taken.
fn read_line(line: &mut dyn Line) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while line.read(&mut byte).is_ok_and(|count| count == 1) {
        if byte[0] == b'\n' {
            assert_eq!(bytes.pop(), Some(b'\r'), "a bare line feed");
            return Some(String::from_utf8(bytes).unwrap());
        }
        bytes.push(byte[0]);
    }
    None
}
