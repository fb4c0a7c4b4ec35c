//! Discovery against daemons whose containers come and go, and against those that lie, hang and restart.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::report::{Database, DockerState, Place};
use super::*;
use crate::clock::Deadline;
use crate::docker::testing::{self, Daemon, LONG, VERSION, answer, hangs, ok};

const SECRET: &str = "s3cret-value";
const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

fn settings(socket: &Path) -> Settings {
    Settings {
        enabled: true,
        docker_socket: socket.to_owned(),
        paths: Vec::new(),
        state_dir: "/nonexistent".into(),
    }
}

fn listed(id: &str, name: &str, image: &str) -> String {
    format!(
        r#"{{"Id":"{id}","Names":["/{name}"],"Image":"{image}","HostConfig":{{"NetworkMode":"none"}}}}"#
    )
}

fn described(image: &str) -> String {
    format!(
        r#"{{"Config":{{"Image":"{image}","Env":["POSTGRES_PASSWORD={SECRET}","OTHER={SECRET}"]}}}}"#
    )
}

fn names(report: &Report) -> Vec<String> {
    let name = |database: &Database| match &database.place {
        Place::Container(container) => Some(container.listed.name.clone()),
        Place::Service(_) | Place::File(_) => None,
    };
    report.databases.iter().filter_map(name).collect()
}

/// What a look finds with a daemon that answers the list and everything else so.
fn look(
    list: impl Fn(&mut UnixStream) + Send + Sync + 'static,
    other: impl Fn(&mut UnixStream) + Send + Sync + 'static,
) -> Arc<Report> {
    let daemon = Daemon::serving(move |request, stream| match path(request) {
        "/version" => send(stream, &ok(VERSION)),
        "/v1.41/containers/json" => list(stream),
        _ => other(stream),
    });
    Finder::new(settings(&daemon.socket())).look_now(&Cancel::new().unwrap())
}

/// The client may have hung up: that is its own business.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

fn path(request: &str) -> &str {
    request.split(' ').nth(1).unwrap().split('?').next().unwrap()
}

#[test]
fn databases_by_image_or_by_port_and_no_value_of_anything() {
    let all = [
        listed("a1", "shop", "postgres:16"),
        listed("a2", "by-port", "acme/own"),
        listed("a3", "exporter", "prom/mysqld-exporter"),
        listed("a4", "moved", "sha256:0123456789abcdef"),
        listed("a5", "web", "nginx"),
    ];
    let list = ok(&format!("[{}]", all.join(",")));
    let daemon = Daemon::serving(move |request, stream| {
        let body = match path(request) {
            "/version" => ok(VERSION),
            "/v1.41/containers/json" => list.clone(),
            "/v1.41/containers/a2/json" => {
                ok(r#"{"Config":{"Image":"acme/own","ExposedPorts":{"3306/tcp":{}}}}"#)
            }
            "/v1.41/containers/a4/json" => ok(&described("redis:6")),
            "/v1.41/containers/a5/json" => ok(&described("nginx")),
            _ => ok(&described("postgres:16")),
        };
        send(stream, &body);
    });
    let finder = Finder::new(settings(&daemon.socket()));
    let report = finder.look_now(&Cancel::new().unwrap());
    assert_eq!(names(&report), ["by-port", "moved", "shop"]);
    let engines: Vec<_> = report.databases[..3].iter().map(|d| report::word(d.engine)).collect();
    assert_eq!(engines, ["mysql", "redis", "postgresql"]);
    let shown = view::whole(&report, Some(&[])).to_string();
    assert!(shown.contains("POSTGRES_PASSWORD"), "{shown}");
    for text in [shown, view::summary(&report, &[]).to_string(), format!("{report:?} {finder:?}")] {
        assert!(!text.contains(SECRET), "{text}");
    }
    // An exporter is never asked, and what is known only by a look at everything: aliases may be new.
    let asked = daemon.requests().len();
    assert_eq!(asked, 2 + 4);
    finder.look_now(&Cancel::new().unwrap());
    assert_eq!(daemon.requests().len(), 2 * asked);
    let (cancel, bounds) = (Cancel::new().unwrap(), testing::patient());
    let docker = crate::docker::Docker::connect(&daemon.socket(), bounds).unwrap();
    lock(&finder.0.looker).look(Ok(&docker), pace::Scope::Containers, &cancel);
    assert_eq!(daemon.requests().len(), 2 * asked + 2);
}

#[test]
fn ten_thousand_containers() {
    let one = |n: usize| listed(&format!("a{n}"), &format!("db{n:05}"), "postgres");
    let all: Vec<String> = (0..10_000).map(one).collect();
    let list = ok(&format!("[{}]", all.join(",")));
    let asked = Arc::new(AtomicU32::new(0));
    let seen = asked.clone();
    let report = look(
        move |stream| send(stream, &list),
        move |stream| {
            seen.fetch_add(1, Ordering::SeqCst);
            send(stream, &answer(500, "{}"));
        },
    );
    assert_eq!(names(&report).len(), report::MAX_CONTAINERS);
    assert!(report.notes.iter().any(|note| note.contains("more containers")), "{report:?}");
    assert!(asked.load(Ordering::SeqCst) < 5, "a daemon that fails is not asked a thousand times");
}

#[test]
fn nonsense_is_no_container() {
    for list in ["<html>", "[{\"Id\":", "[[[[", "{\"message\":1}", "[{\"Id\":\"../../x\"}]"] {
        let report = look(move |stream| send(stream, &ok(list)), |stream| send(stream, b"?"));
        assert_eq!(names(&report), Vec::<String>::new(), "{list}");
    }
    // Depth is bounded, too.
    let deep = format!("[{{\"Id\":{}", "{\"a\":".repeat(20_000));
    look(move |stream| send(stream, &ok(&deep)), |stream| send(stream, b"?"));
}

#[test]
fn a_list_without_an_end_and_one_that_never_begins() {
    let one = listed("a1", "shop", "postgres");
    let endless = look(
        move |stream| {
            send(stream, STREAM);
            while stream.write_all(format!("{one},").as_bytes()).is_ok() {}
        },
        |stream| send(stream, &ok("{}")),
    );
    assert!(endless.databases.len() <= report::MAX_CONTAINERS + report::MAX_SERVICES);
    let mute = look(|stream| hangs()(stream, &[]), |_| {});
    assert!(matches!(&mute.docker, DockerState::Away { absent: false, .. }), "{mute:?}");
}

#[test]
fn what_cannot_be_looked_into_is_judged_by_the_list() {
    let all = ["a1", "a2", "a3", "a4"].map(|id| listed(id, id, "postgres"));
    let list = ok(&format!("[{}]", all.join(",")));
    let report = look(move |stream| send(stream, &list), |stream| hangs()(stream, &[]));
    assert_eq!(names(&report), ["a1", "a2", "a3", "a4"]);
}

#[test]
fn no_daemon_is_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let finder = Finder::new(settings(&dir.path().join("none.sock")));
    let report = finder.look_now(&Cancel::new().unwrap());
    assert!(matches!(report.docker, DockerState::Away { absent: true, .. }));
    assert_eq!(finder.latest().as_deref(), Some(&*report));
}

/// A daemon whose containers and events the test controls.
struct Stage {
    daemon: Daemon,
    containers: Arc<Mutex<Vec<&'static str>>>,
    /// One for each stream of events: what it is to say, until it is dropped.
    streams: Receiver<Sender<Vec<u8>>>,
    reports: Receiver<Vec<String>>,
    discovery: Option<Discovery>,
}

impl Stage {
    fn start() -> Self {
        let containers = Arc::new(Mutex::new(vec!["first"]));
        let (listing, (opened, streams)) = (containers.clone(), unbounded());
        let daemon = Daemon::serving(move |request, stream| match path(request) {
            "/version" => send(stream, &ok(VERSION)),
            "/v1.41/containers/json" => {
                let all = listing
                    .lock()
                    .unwrap()
                    .iter()
                    .map(|name| listed(name, name, "postgres"))
                    .collect::<Vec<_>>();
                send(stream, &ok(&format!("[{}]", all.join(","))));
            }
            "/v1.41/events" => {
                let (say, said) = unbounded::<Vec<u8>>();
                send(stream, STREAM);
                let _ = opened.send(say);
                for bytes in said {
                    send(stream, &bytes);
                }
            }
            _ => send(stream, &ok(&described("postgres"))),
        });
        let finder = Finder::new(settings(&daemon.socket()));
        let (tell, reports) = unbounded();
        let on_report: OnReport = Box::new(move |report| tell.send(names(report)).unwrap());
        let discovery = Some(Discovery::start(&finder, on_report).unwrap());
        Self { daemon, containers, streams, reports, discovery }
    }

    fn set(&self, names: &[&'static str]) {
        *self.containers.lock().unwrap() = names.to_vec();
    }

    fn wait_for(&self, wanted: &[&str]) {
        let deadline = Deadline::after(LONG);
        while self.reports.recv_timeout(deadline.remaining()).expect("a report") != wanted {}
    }

    fn looks(&self) -> usize {
        let requests = self.daemon.requests();
        requests.iter().filter(|r| path(r) == "/v1.41/containers/json").count()
    }
}

fn event(action: &str) -> Vec<u8> {
    format!("{{\"Type\":\"container\",\"Action\":\"{action}\",\"id\":\"x\"}}\n").into_bytes()
}

#[test]
fn containers_come_and_go() {
    let mut stage = Stage::start();
    let say = stage.streams.recv_timeout(LONG).unwrap();
    stage.wait_for(&["first"]);
    for (action, names) in
        [("start", &["first", "second"][..]), ("die", &["second"]), ("rename", &["renamed"])]
    {
        stage.set(names);
        say.send(event(action)).unwrap();
        stage.wait_for(names);
    }
    // Noise is no news.
    let looks = stage.looks();
    say.send(event("exec_start").repeat(3_000)).unwrap();
    say.send(event("stop")).unwrap();
    stage.wait_for(&["renamed"]);
    assert_eq!(stage.looks(), looks + 1);
    drop(say);
    stage.discovery = None;
}

#[test]
fn a_storm_is_few_looks_and_its_end_is_seen() {
    let mut stage = Stage::start();
    let say = stage.streams.recv_timeout(LONG).unwrap();
    stage.wait_for(&["first"]);
    let began = Instant::now();
    for _ in 0..200 {
        say.send(event("start").repeat(50)).unwrap();
    }
    stage.set(&["last"]);
    say.send(event("die")).unwrap();
    stage.wait_for(&["last"]);
    let most = 2 + began.elapsed().as_secs() / pace::GAP.as_secs();
    assert!(stage.looks() as u64 <= most + 1, "{} looks", stage.looks());
    drop(say);
    stage.discovery = None;
}

#[test]
fn a_daemon_that_restarts_or_talks_nonsense_is_followed_again() {
    let mut stage = Stage::start();
    for (number, last_words) in [&b""[..], b"<html>", b"{\"Type\":"].into_iter().enumerate() {
        let say = stage.streams.recv_timeout(LONG).unwrap();
        stage.wait_for(&[["first", "second", "third"][number]]);
        // Happens while nobody listens.
        stage.set(&[["second", "third", "fourth"][number]]);
        say.send(last_words.to_vec()).unwrap();
    }
    stage.wait_for(&["fourth"]);
    drop(stage.streams.recv_timeout(LONG).unwrap());
    stage.discovery = None;
}

#[test]
fn switched_off_there_is_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let finder = Finder::new(Settings { enabled: false, ..settings(&socket) });
    let discovery = Discovery::start(&finder, Box::new(|_| panic!("nobody asked"))).unwrap();
    assert!(discovery.thread.is_none());
    drop(discovery);
    assert_eq!(finder.latest(), None);
    // A person may look all the same; as nobody looks again, it is not kept to warn for ever.
    finder.look_now(&Cancel::new().unwrap());
    assert_eq!(finder.latest(), None);
}

#[test]
fn what_a_defect_leaves_behind_is_not_believed() {
    let daemon = Daemon::serving(|request, stream| match path(request) {
        "/version" => send(stream, &ok(VERSION)),
        "/v1.41/containers/json" => send(stream, &ok("[]")),
        _ => send(stream, STREAM),
    });
    let finder = Finder::new(settings(&daemon.socket()));
    let mut discovery = Discovery::start(&finder, Box::new(|_| panic!("a defect"))).unwrap();
    discovery.thread.take().unwrap().join().unwrap();
    assert_eq!(finder.latest(), None);
    finder.look_now(&Cancel::new().unwrap());
    assert_eq!(finder.latest(), None);
}
