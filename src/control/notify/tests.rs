//! The notifier as a whole, over servers that behave and servers that do not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::telegram::Telegram;
use super::webhook::{TEMPLATE, Webhook};
use super::*;
use crate::config::HostPolicy;
use crate::model::Trust;
use crate::store::{Store, StoreKeys};

const PATIENCE: Duration = Duration::from_secs(20);

fn means() -> Means {
    Means { proxy: ProxySettings::default(), policy: HostPolicy::new(Trust::Local) }
}

fn failure(name: &str) -> Failure {
    Failure {
        name: name.into(),
        run_id: "r1".into(),
        status: "failed".into(),
        error: "no space left".into(),
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::after(PATIENCE);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(!deadline.passed(), "{what}");
        crate::control::moment();
    }
}

/// An HTTP server that keeps head and body of each request and answers what `answer` says; `None` says nothing at all.
/// Its threads go with the test's process.
struct Web {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<(String, String)>>>,
}

impl Web {
    fn start(answer: impl Fn(usize) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let kept = heard.clone();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = request(&mut stream);
                let answer = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(request);
                    answer(kept.len())
                };
                match answer {
                    Some(answer) => {
                        let _ = stream.write_all(answer.as_bytes());
                    }
                    None => silent.push(stream),
                }
            }
        });
        Self { address, heard }
    }

    fn ok() -> Self {
        Self::start(|_| Some(status("200 OK", "")))
    }

    fn heard(&self) -> Vec<(String, String)> {
        self.heard.lock().unwrap().clone()
    }

    fn channel(&self, name: &str) -> Channel {
        let hook = Webhook {
            url: Secret::new(format!("http://{}/services/T0SECRET", self.address)),
            template: TEMPLATE.into(),
            headers: vec![("X-Auth".into(), Secret::new("hunter2hunter2"))],
            insecure_http: false,
        };
        let (name, topics) = (name.to_owned(), Topic::ALL.to_vec());
        Channel { name, topics, ca_file: None, way: Way::Webhook(hook) }
    }
}

fn status(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn request(stream: &mut impl Read) -> (String, String) {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

fn catalogue(dir: &Path) -> Catalogue {
    let keys = StoreKeys { current: Secret::new("bkpy_test_key"), previous: None };
    let spaces = crate::control::catalogue::SPACES;
    Catalogue::new(Store::open(dir, &spaces, &keys).unwrap())
}

#[test]
fn everybody_is_told_at_once_and_a_mute_server_holds_up_nobody() {
    let (mute, good) = (Web::start(|_| None), Web::ok());
    let channels = vec![mute.channel("mute"), good.channel("good")];
    let notifier = Notifier::start(channels, means(), None).unwrap();
    for name in ["a", "b", "c"] {
        notifier.tell(failure(name));
    }
    until("the good one hears all", || (good.heard().len() == 3).then_some(()));
    let (head, body) = &good.heard()[0];
    assert!(head.starts_with("post /services/t0secret http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nx-auth: hunter2hunter2\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
    let said: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&said["name"], &said["status"]), (&"a".into(), &"failed".into()));
    let (values, problems) = notifier.status();
    assert_eq!((&values[0]["waiting"], values[1]["waiting"].as_u64()), (&3.into(), Some(0)));
    assert!(problems.is_empty(), "still trying: {problems:?}");
    // The stop does not wait for the mute one.
    let started = std::time::Instant::now();
    drop(notifier);
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_failed_try_is_a_problem_until_one_arrives_and_gives_nothing_away() {
    let quote = "Cannot POST /services/T0SECRET with hunter2hunter2";
    let web = Web::start(move |count| {
        Some(if count == 1 { status("404 Not Found", quote) } else { status("204 No Content", "") })
    });
    let notifier = Notifier::start(vec![web.channel("ops")], means(), None).unwrap();
    notifier.tell(failure("a"));
    let (values, problems) =
        until("a problem", || Some(notifier.status()).filter(|(_, problems)| !problems.is_empty()));
    assert!(
        problems[0].starts_with("notifications through ops do not arrive: 127.0.0.1 answered 404")
    );
    let shown = format!("{values:?} {problems:?} {notifier:?}");
    assert!(!shown.contains("T0SECRET") && !shown.contains("hunter2"), "{shown}");
    until("given up", || (notifier.status().0[0]["lost"] == 1).then_some(()));
    notifier.tell(failure("b"));
    until("well again", || notifier.status().1.is_empty().then_some(()));
    assert_eq!(notifier.status().0[0]["last_error_ms"].as_u64().map(|ms| ms > 0), Some(true));
}

#[test]
fn what_waits_at_a_stop_is_told_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let kept = catalogue(dir.path());
    let web = Web::start(|count| {
        Some(if count == 1 { status("503 Busy", "") } else { status("200 OK", "") })
    });
    let channels = || vec![web.channel("ops")];
    let notifier = Notifier::start(channels(), means(), Some(kept.clone())).unwrap();
    notifier.tell(failure("a"));
    notifier.tell(Failure { status: "recovered".into(), ..failure("a") });
    until("the first try", || (web.heard().len() == 1).then_some(()));
    notifier.stop(PATIENCE, None);
    drop(notifier);
    assert_eq!(kept.kept_messages().unwrap().len(), 2);
    let next = Notifier::start(channels(), means(), Some(kept.clone())).unwrap();
    until("both arrive", || (web.heard().len() == 3).then_some(()));
    let said: Vec<bool> =
        web.heard().iter().map(|(_, body)| body.contains("\"recovered\"")).collect();
    assert_eq!(said, [false, false, true], "in order");
    until("nothing is kept", || kept.kept_messages().unwrap().is_empty().then_some(()));
    drop(next);
    // Of a channel that has gone, nothing stays either.
    kept.keep_message("ops", &message(failure("a"), 0)).unwrap();
    drop(Notifier::start(Vec::new(), means(), Some(kept.clone())).unwrap());
    assert!(kept.kept_messages().unwrap().is_empty());
}

#[test]
fn another_file_changes_channels_and_keeps_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let kept = catalogue(dir.path());
    let (old, new) = (Web::start(|_| Some(status("503 Busy", ""))), Web::ok());
    let stays = Web::start(|count| {
        Some(if count == 1 { status("503 Busy", "") } else { status("200 OK", "") })
    });
    let channels = vec![old.channel("webhook"), stays.channel("webhook-2"), old.channel("moved")];
    let notifier = Notifier::start(channels, means(), Some(kept.clone())).unwrap();
    notifier.tell(failure("a"));
    until("all tried", || (old.heard().len() + stays.heard().len() == 3).then_some(()));
    // The first section is gone, so that the second one has its name; the third leads elsewhere.
    notifier.set_channels(vec![stays.channel("webhook"), new.channel("moved")]);
    let waiting: Vec<String> =
        kept.kept_messages().unwrap().into_iter().map(|(channel, _)| channel).collect();
    assert_eq!(waiting, ["webhook"], "what waited for the others is forgotten");
    notifier.tell(failure("b"));
    until("the new one hears the new", || {
        new.heard().iter().any(|(_, body)| body.contains("backup b failed")).then_some(())
    });
    until("the one that stays hears both", || (stays.heard().len() == 3).then_some(()));
    assert!(stays.heard()[1].1.contains("backup a failed"));
    assert!(!new.heard().iter().any(|(_, body)| body.contains("backup a failed")));
    until("nothing is kept", || kept.kept_messages().unwrap().is_empty().then_some(()));
}

#[test]
fn two_channels_exchange_their_names_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let kept = catalogue(dir.path());
    let (one, two) = (Web::start(|_| None), Web::start(|_| None));
    let channels = vec![one.channel("webhook"), two.channel("webhook-2")];
    let notifier = Notifier::start(channels, means(), Some(kept.clone())).unwrap();
    notifier.tell(failure("a"));
    notifier.set_channels(vec![two.channel("webhook"), one.channel("webhook-2")]);
    let waiting: Vec<String> =
        kept.kept_messages().unwrap().into_iter().map(|(channel, _)| channel).collect();
    assert_eq!(waiting, ["webhook-2", "webhook"], "in the order of their keys");
}

#[test]
fn pings_say_start_success_and_failure() {
    let web = Web::ok();
    let urls = [("shop", "u1"), ("app", "u2?create=1")];
    let urls = urls.map(|(name, path)| {
        (name.to_owned(), Secret::new(format!("http://{}/{path}", web.address)))
    });
    let channel = Channel {
        name: "pings".into(),
        topics: Vec::new(),
        ca_file: None,
        way: Way::Pings(urls.into()),
    };
    let notifier = Notifier::start(vec![channel.clone()], means(), None).unwrap();
    let say = |name: &str, status: &str, count: usize| {
        notifier.tell(Failure { status: status.into(), ..failure(name) });
        until("a ping", || (web.heard().len() == count).then_some(()));
        let (head, body) = web.heard().pop().unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body)
    };
    assert_eq!(say("shop", "started", 1), ("/u1/start".into(), String::new()));
    assert_eq!(say("shop", "succeeded", 2).0, "/u1");
    let failed = say("app", "failed", 3);
    assert_eq!(failed, ("/u2/fail?create=1".into(), "no space left (run r1)".into()));
    notifier.tell(failure("other"));
    notifier.tell(Failure { status: "recovered".into(), ..failure("shop") });
    test(&channel, &means(), &Cancel::new().unwrap()).unwrap();
    let heard: Vec<String> =
        web.heard()[3..].iter().map(|(head, _)| head.split(' ').nth(1).unwrap().into()).collect();
    assert_eq!(heard, ["/u2/log?create=1", "/u1/log"], "the test, and nobody else's");
}

fn bot(web: &Web) -> Channel {
    let telegram = Telegram {
        token: Secret::new("123456:ABC-DEF_ghi"),
        chat: "-1001".into(),
        api: format!("http://{}", web.address),
        insecure_http: false,
    };
    let (name, topics) = ("telegram".to_owned(), Topic::ALL.to_vec());
    Channel { name, topics, ca_file: None, way: Way::Telegram(telegram) }
}

#[test]
fn telegram_says_yes_or_why_not() {
    let stop = Cancel::new().unwrap();
    let web = Web::start(|_| Some(status("200 OK", r#"{"ok":true,"result":{}}"#)));
    test(&bot(&web), &means(), &stop).unwrap();
    let (head, body) = &web.heard()[0];
    assert!(head.starts_with("post /bot123456:abc-def_ghi/sendmessage http/1.1\r\n"), "{head}");
    let said: Value = serde_json::from_str(body).unwrap();
    assert_eq!(said["chat_id"], "-1001");
    assert!(said["text"].as_str().unwrap().contains("notify-test"), "{said}");
    let refusal =
        r#"{"ok":false,"error_code":400,"description":"chat not found for 123456:ABC-DEF_ghi"}"#;
    for (line, body, shown, retry) in [
        ("400 Bad Request", refusal, "answered 400: chat not found", false),
        ("200 OK", refusal, "answered 400: chat not found", false),
        ("200 OK", "<html>", "no answer of Telegram", false),
        ("429 Too Many", "{}", "answered 429", true),
        ("302 Found", "", "points elsewhere", false),
    ] {
        let web = Web::start(move |_| Some(status(line, body)));
        let error = test(&bot(&web), &means(), &stop).unwrap_err();
        assert!(error.to_string().contains(shown), "{error}");
        assert_eq!(error.retry(), retry, "{error}");
        assert!(!format!("{error} {error:?}").contains("ABC-DEF"), "{error:?}");
    }
}

#[test]
fn answers_that_are_none_end_soon_and_are_tried_again() {
    let stop = Cancel::new().unwrap();
    for answer in ["", "HTTP/1.1 200 OK\r\n", "hello\r\n\r\n", "\0\0\0\0"] {
        let web = Web::start(move |_| Some(answer.to_owned()));
        let error = test(&web.channel("ops"), &means(), &stop).unwrap_err();
        assert!(error.retry(), "{answer:?}: {error}");
        assert!(!format!("{error} {error:?}").contains("T0SECRET"), "{error:?}");
    }
    let endless = format!("HTTP/1.1 500 No\r\n\r\n{}", "x".repeat(8 << 20));
    let web = Web::start(move |_| Some(endless.clone()));
    let error = test(&web.channel("ops"), &means(), &stop).unwrap_err();
    assert!(error.to_string().len() < 400, "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Web { address: gone, heard: Arc::default() };
    let error = test(&nobody.channel("ops"), &means(), &stop).unwrap_err();
    assert!(error.retry() && error.to_string().contains("refused"), "{error}");
}

#[test]
fn a_secret_is_looked_up_for_each_try() {
    let dir = tempfile::tempdir().unwrap();
    let web = Web::ok();
    let file = dir.path().join("url");
    let mut channel = web.channel("ops");
    let Way::Webhook(hook) = &mut channel.way else { unreachable!() };
    hook.url = Secret::new(format!("file:{}", file.display()));
    let stop = Cancel::new().unwrap();
    let error = test(&channel, &means(), &stop).unwrap_err();
    assert!(error.retry() && error.to_string().contains("url"), "{error}");
    for (content, works) in [
        (format!("http://{}/x\n", web.address), true),
        ("http://hooks.example/x".to_owned(), false),
    ] {
        std::fs::write(&file, content).unwrap();
        assert_eq!(test(&channel, &means(), &stop).is_ok(), works);
    }
}

#[test]
fn a_command_that_hangs_does_not_hold_up_the_stop() {
    let hook = OnFailure { command: "sleep 1000".into(), hidden: Vec::new() };
    let way = Way::Command(hook, PATIENCE * 10);
    let channel = Channel { name: "on_failure".into(), topics: Vec::new(), ca_file: None, way };
    let notifier = Notifier::start(vec![channel], means(), None).unwrap();
    notifier.tell(failure("a"));
    let started = std::time::Instant::now();
    notifier.stop(Duration::from_millis(50), None);
    assert!(started.elapsed() < PATIENCE * 5);
}
