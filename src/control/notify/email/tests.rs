//! By claim: what a good server gets, that nothing goes out in the clear, and that no server can hold the sender up.

use super::testing::{MailServer, Manners};
use super::*;
use crate::config::{HostPolicy, ProxySettings};
use crate::control::notify::{Failure, Means};
use crate::model::Trust;
use crate::thread::{Cancel, Why};

const LONG: Duration = Duration::from_secs(30);

fn message() -> Message {
    let what = Failure {
        name: "shop".into(),
        run_id: "r1".into(),
        status: "failed".into(),
        error: "no space left".into(),
    };
    Message {
        id: "1-a".into(),
        at_ms: 1_700_000_000_000,
        host: "web1".into(),
        what,
        only: Vec::new(),
    }
}

fn to(server: &MailServer) -> Email {
    Email {
        to: vec!["ops@example.org".into(), "boss@example.org".into()],
        from: "backupy@example.org".into(),
        host: "127.0.0.1".into(),
        port: server.port,
        implicit_tls: false,
        insecure: false,
        user: "us er".into(),
        password: Secret::new("hunter2hunter2"),
    }
}

fn send_within(email: &Email, ca_file: Option<&Path>, timeout: Duration) -> Result<(), SmtpError> {
    send_message(email, &message(), ca_file, timeout)
}

fn send_message(
    email: &Email,
    message: &Message,
    ca_file: Option<&Path>,
    timeout: Duration,
) -> Result<(), SmtpError> {
    let means = Means { proxy: ProxySettings::default(), policy: HostPolicy::new(Trust::Local) };
    let stop = Cancel::new().unwrap();
    let tools = Tools::new(&means, &stop);
    let deadline = Deadline::after(timeout);
    session(email, ca_file, &email.password, message, &tools, deadline)
}

fn send(email: &Email, server: &MailServer) -> Result<(), SmtpError> {
    send_within(email, Some(&server.ca_file), LONG)
}

fn starttls() -> Manners {
    Manners {
        starttls: true,
        offers: vec!["AUTH PLAIN LOGIN", "SIZE 100000"],
        ..Manners::default()
    }
}

#[test]
fn by_starttls_and_plain() {
    let dir = tempfile::tempdir().unwrap();
    let server = MailServer::start(dir.path(), starttls());
    send(&to(&server), &server).unwrap();
    let heard = &server.heard(1)[0];
    assert_eq!(heard.clear, ["EHLO [127.0.0.1]", "STARTTLS"], "no more in the clear");
    let login = STANDARD.encode("\0us er\0hunter2hunter2");
    assert_eq!(
        heard.lines,
        [
            "EHLO [127.0.0.1]".to_owned(),
            format!("AUTH PLAIN {login}"),
            "MAIL FROM:<backupy@example.org>".to_owned(),
            "RCPT TO:<ops@example.org>".to_owned(),
            "RCPT TO:<boss@example.org>".to_owned(),
            "DATA".to_owned(),
            "QUIT".to_owned(),
        ]
    );
    assert!(heard.mail.contains("\r\nTo: ops@example.org, boss@example.org\r\n"), "{}", heard.mail);
    assert!(heard.mail.contains("\r\nSubject: backup shop failed on web1\r\n"), "{}", heard.mail);
    assert!(heard.mail.contains("\r\n\r\nbackup shop failed"), "{}", heard.mail);
}

#[test]
fn tls_from_the_start_and_login() {
    let dir = tempfile::tempdir().unwrap();
    let manners = Manners { implicit: true, offers: vec!["AUTH LOGIN"], ..Manners::default() };
    let server = MailServer::start(dir.path(), manners);
    send(&Email { implicit_tls: true, ..to(&server) }, &server).unwrap();
    let heard = &server.heard(1)[0];
    assert!(heard.clear.is_empty());
    let login = [STANDARD.encode("us er"), STANDARD.encode("hunter2hunter2")];
    assert_eq!(heard.lines[1..4], ["AUTH LOGIN".to_owned(), login[0].clone(), login[1].clone()]);
}

#[test]
fn in_the_clear_only_where_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let manners = Manners { offers: vec!["AUTH PLAIN"], ..Manners::default() };
    let server = MailServer::start(dir.path(), manners);
    let error = send(&to(&server), &server).unwrap_err();
    assert!(matches!(error, SmtpError::NoTls) && !error.retry(), "{error}");
    assert_eq!(server.heard(1)[0].lines, ["EHLO [127.0.0.1]"]);
    let local = Email { insecure: true, user: String::new(), ..to(&server) };
    send(&local, &server).unwrap();
    assert_eq!(server.heard(2)[1].lines[1], "MAIL FROM:<backupy@example.org>");
}

#[test]
fn what_was_slipped_in_before_tls_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let slipped = "220 go on\r\n250-mail.example\r\n250 AUTH PLAIN\r\n";
    let manners = Manners { instead: vec![("STARTTLS", slipped)], ..starttls() };
    let server = MailServer::start(dir.path(), manners);
    let error = send(&to(&server), &server).unwrap_err();
    // Where it comes in a second packet, it is no TLS.
    assert!(matches!(error, SmtpError::Injected | SmtpError::Tls(_)), "{error}");
}

#[test]
fn a_server_that_is_not_trusted_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = MailServer::start(dir.path(), starttls());
    let error = send_within(&to(&server), None, LONG).unwrap_err();
    assert!(matches!(error, SmtpError::Tls(_)) && error.retry(), "the clock may be wrong: {error}");
    assert!(server.heard(1)[0].lines.iter().all(|line| !line.starts_with("AUTH")));
    let another = Email { host: "localhost".into(), ..to(&server) };
    let error = send(&another, &server).unwrap_err();
    assert!(matches!(error, SmtpError::Tls(_)), "another name: {error}");
}

#[test]
fn what_is_refused_and_what_is_only_put_off() {
    for (command, answer, retry) in [
        ("greeting", "554 go away\r\n", false),
        ("greeting", "421 busy\r\n", true),
        ("EHLO", "502 what\r\n", false),
        ("AUTH", "535 no: hunter2hunter2\r\n", false),
        ("AUTH", "454 later\r\n", true),
        ("MAIL", "550 not you\r\n", false),
        ("RCPT", "450 greylisted\r\n", true),
        ("RCPT", "550 nobody\r\n", false),
        ("DATA", "451 later\r\n", true),
        ("the mail", "552 too much\r\n", false),
        ("the mail", "452 full\r\n", true),
        ("the mail", "", true),
        ("DATA", "", true),
        ("EHLO", "hello\r\n", true),
        ("EHLO", "250+x\r\n", true),
        ("DATA", "250 no need\r\n", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let manners = Manners { instead: vec![(command, answer)], ..starttls() };
        let server = MailServer::start(dir.path(), manners);
        let error = send(&to(&server), &server).unwrap_err();
        assert_eq!(error.retry(), retry, "{command} {answer}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn a_server_that_repeats_the_login_gives_nothing_away() {
    let plain = STANDARD.encode("\0us er\0hunter2hunter2");
    let coded = STANDARD.encode("hunter2hunter2");
    for (offer, command, said) in [
        ("AUTH PLAIN", "AUTH", format!("500 unrecognized: AUTH PLAIN {plain}\r\n")),
        ("AUTH LOGIN", &*coded, format!("500-unrecognized:\r\n500 {coded}\r\n")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (command, said): (&'static str, &'static str) =
            (command.to_owned().leak(), said.leak());
        let manners = Manners { instead: vec![(command, said)], offers: vec![offer], ..starttls() };
        let server = MailServer::start(dir.path(), manners);
        let error = send(&to(&server), &server).unwrap_err();
        assert_eq!(error.to_string(), "refused while logging in: 500");
        let shown = format!("{error:?}");
        assert!(!shown.contains(&plain) && !shown.contains(&coded), "{shown}");
    }
}

#[test]
fn the_others_get_it_if_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let instead = vec![("RCPT TO:<boss", "550 retired\r\n")];
    let server = MailServer::start(dir.path(), Manners { instead, ..starttls() });
    let error = send(&to(&server), &server).unwrap_err();
    assert!(error.to_string().contains("boss@example.org (550 retired)"), "{error}");
    assert!(!error.retry(), "the others would get it twice");
    assert!(server.heard(1)[0].mail.contains("Subject: backup shop failed"));
}

#[test]
fn who_is_only_put_off_gets_it_later_and_the_others_once() {
    let dir = tempfile::tempdir().unwrap();
    let instead = vec![("RCPT TO:<boss", "450 greylisted\r\n")];
    let server = MailServer::start(dir.path(), Manners { instead, ..starttls() });
    let error = send(&to(&server), &server).unwrap_err();
    let SmtpError::Recipients { later, .. } = &error else { panic!("{error}") };
    assert_eq!(later, &["boss@example.org"]);
    assert!(error.retry(), "{error}");
    let server = MailServer::start(dir.path(), starttls());
    let rest = Message { only: later.clone(), ..message() };
    send_message(&to(&server), &rest, Some(&server.ca_file), LONG).unwrap();
    let named: Vec<String> = server.heard(1)[0].lines.clone();
    let named: Vec<&String> = named.iter().filter(|line| line.starts_with("RCPT")).collect();
    assert_eq!(named, ["RCPT TO:<boss@example.org>"]);
    // Of several that are refused, one who may be taken later is worth another try.
    let instead = vec![("RCPT TO:<ops", "450 greylisted\r\n"), ("RCPT TO:<boss", "550 no\r\n")];
    let server = MailServer::start(dir.path(), Manners { instead, ..starttls() });
    assert!(send(&to(&server), &server).unwrap_err().retry());
}

#[test]
fn a_server_that_says_too_much_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let line: &'static str = "x".repeat(1 << 20).leak();
    let lines: &'static str = "250-x\r\n".repeat(10_000).leak();
    for (command, answer) in [("greeting", line), ("EHLO", lines), ("EHLO", line)] {
        let manners = Manners { instead: vec![(command, answer)], ..starttls() };
        let server = MailServer::start(dir.path(), manners);
        let error = send(&to(&server), &server).unwrap_err();
        assert!(matches!(error, SmtpError::Nonsense { .. }), "{error}");
    }
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let server = MailServer::start(dir.path(), starttls());
    let email = Email { port, ..to(&server) };
    for implicit_tls in [false, true] {
        let email = Email { implicit_tls, ..email.clone() };
        let error = send_within(&email, None, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, SmtpError::Timeout { .. }) && error.retry(), "{error}");
    }
}

#[test]
fn a_stop_ends_every_wait() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let email = Email {
        to: vec!["ops@example.org".into()],
        from: "b@example.org".into(),
        host: "127.0.0.1".into(),
        port: mute.local_addr().unwrap().port(),
        implicit_tls: false,
        insecure: false,
        user: String::new(),
        password: Secret::default(),
    };
    let means = Means { proxy: ProxySettings::default(), policy: HostPolicy::new(Trust::Local) };
    let stop = Cancel::new().unwrap();
    let stopper = stop.clone();
    let thread = std::thread::spawn(move || {
        let accepted = mute.accept().unwrap();
        stopper.cancel(Why::Shutdown);
        accepted
    });
    let result = deliver(&email, None, &message(), &Tools::new(&means, &stop));
    assert!(matches!(result, Err(DeliverError::Stopped)), "{result:?}");
    thread.join().unwrap();
}
