//! A scripted service manager on a socket of the test's own.

use std::os::linux::net::SocketAddrExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::{Sender, bounded};

use super::*;
use crate::thread::Why;

const LONG: Duration = Duration::from_secs(30);

fn env<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
}

fn listen(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn next(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("a message in time");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

struct Rig {
    socket: UnixDatagram,
    supervisor: Supervisor,
    alive: Arc<AtomicBool>,
    hands_over: Arc<AtomicBool>,
    changed: Sender<()>,
    line: Arc<std::sync::Mutex<String>>,
    stop: Cancel,
    over: Cancel,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn start(watchdog_ms: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = listen(&path);
        let usec = watchdog_ms.map(|ms| (ms * 1000).to_string());
        let mut pairs = vec![("NOTIFY_SOCKET", path.to_str().unwrap())];
        pairs.extend(usec.as_deref().map(|usec| ("WATCHDOG_USEC", usec)));
        let supervisor = Supervisor::from_env(&env(&pairs));
        let alive = Arc::new(AtomicBool::new(true));
        let hands_over = Arc::new(AtomicBool::new(false));
        let over_to = hands_over.clone();
        let line: Arc<std::sync::Mutex<String>> = Arc::default();
        let (changed, changes) = bounded(1);
        let (stop, over) = (Cancel::new().unwrap(), Cancel::new().unwrap());
        let (seen, said) = (alive.clone(), Arc::clone(&line));
        let vitals = Vitals {
            changed: changes,
            status: Box::new(move || said.lock().unwrap().clone()),
            alive: Box::new(move |_| match seen.load(Ordering::SeqCst) {
                true => Ok(()),
                false => Err("dispatch is wedged".into()),
            }),
            stop_within: Duration::from_secs(100),
            hands_over: Box::new(move || over_to.load(Ordering::SeqCst)),
        };
        let thread = supervisor.watch(vitals, stop.clone(), over.clone()).unwrap();
        Self { socket, supervisor, alive, hands_over, changed, line, stop, over, thread, _dir: dir }
    }

    fn say(&self, text: &str) {
        *self.line.lock().unwrap() = text.to_owned();
        self.changed.send(()).unwrap();
    }

    /// After a stop.
    fn end(mut self) -> UnixDatagram {
        self.over.cancel(Why::Shutdown);
        self.thread.take().unwrap().join().unwrap();
        self.socket
    }
}

#[test]
fn ready_status_reload_and_stop_in_order() {
    let rig = Rig::start(None);
    assert_eq!(next(&rig.socket), "READY=1\nSTATUS=\nWATCHDOG=1");
    rig.say("connected\nREADY=0");
    assert_eq!(next(&rig.socket), "STATUS=connected READY=0", "one line, whatever it holds");
    rig.supervisor.reloading(|| ());
    let first = next(&rig.socket);
    assert!(first.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{first}");
    assert_eq!(next(&rig.socket), "READY=1");
    rig.stop.cancel(Why::Shutdown);
    assert_eq!(next(&rig.socket), "STOPPING=1\nEXTEND_TIMEOUT_USEC=145000000");
    rig.supervisor.reloading(|| ());
    rig.say("draining");
    assert_eq!(next(&rig.socket), "STATUS=draining", "a stop is not taken back by READY=1");
    let socket = rig.end();
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 16]).is_err(), "nothing more");
}

#[test]
fn a_stop_that_makes_room_for_another_version_is_none_for_the_manager() {
    let rig = Rig::start(None);
    assert!(next(&rig.socket).starts_with("READY=1"));
    rig.hands_over.store(true, Ordering::SeqCst);
    rig.stop.cancel(Why::Shutdown);
    assert_eq!(next(&rig.socket), "STATUS=making room for another version\nWATCHDOG=1");
    let socket = rig.end();
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 16]).is_err(), "nothing more, and no STOPPING=1");
}

#[test]
fn a_watchdog_is_fed_only_while_everything_is_alive() {
    let rig = Rig::start(Some(400));
    assert!(next(&rig.socket).starts_with("READY=1"));
    for _ in 0..3 {
        assert_eq!(next(&rig.socket), "WATCHDOG=1");
    }
    rig.alive.store(false, Ordering::SeqCst);
    rig.socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    // One may have been under way.
    let hungry = (0..3).any(|_| rig.socket.recv(&mut [0; 64]).is_err());
    assert!(hungry, "fed although something is wedged");
    rig.alive.store(true, Ordering::SeqCst);
    rig.socket.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(next(&rig.socket), "WATCHDOG=1", "and again once it moves");
    // Whatever comes first, the stop is told.
    rig.stop.cancel(Why::Shutdown);
    let socket = rig.end();
    while !next(&socket).starts_with("STOPPING=1") {}
}

#[test]
fn not_ready_before_everything_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = listen(&path);
    let pairs = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "800000")];
    let supervisor = Supervisor::from_env(&env(&pairs));
    let (_changed, changes) = bounded(1);
    let looks = std::sync::atomic::AtomicU32::new(0);
    let (told, seen) = bounded(8);
    let vitals = Vitals {
        changed: changes,
        status: Box::new(|| "fine".into()),
        alive: Box::new(move |_| {
            let look = looks.fetch_add(1, Ordering::SeqCst);
            // The message of a ready service must come after this.
            let _ = told.try_send(look);
            if look < 2 { Err("the store opens".into()) } else { Ok(()) }
        }),
        stop_within: Duration::ZERO,
        hands_over: Box::new(|| false),
    };
    let over = Cancel::new().unwrap();
    let thread = supervisor.watch(vitals, Cancel::new().unwrap(), over.clone()).unwrap().unwrap();
    assert_eq!(next(&socket), "READY=1\nSTATUS=fine\nWATCHDOG=1\nWATCHDOG_USEC=800000");
    assert!(seen.len() >= 3);
    over.cancel(Why::Shutdown);
    thread.join().unwrap();
}

#[test]
fn before_ready_only_patience_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = listen(&path);
    let supervisor = Supervisor::from_env(&env(&[("NOTIFY_SOCKET", path.to_str().unwrap())]));
    let mut reloaded = false;
    supervisor.reloading(|| reloaded = true);
    assert!(reloaded);
    supervisor.starting("waiting for the bucket", Duration::from_secs(60));
    assert_eq!(next(&socket), "STATUS=waiting for the bucket\nEXTEND_TIMEOUT_USEC=60000000");
}

#[test]
fn a_start_that_takes_over_has_the_patience_of_the_watchdog() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = listen(&path);
    for (interval, while_starting) in [("2000000", 60_000_000), ("90000000", 90_000_000)] {
        let pairs = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", interval)];
        Supervisor::from_env(&env(&pairs)).starting("slowly", Duration::from_secs(60));
        let expected =
            format!("STATUS=slowly\nEXTEND_TIMEOUT_USEC=60000000\nWATCHDOG_USEC={while_starting}");
        assert_eq!(next(&socket), expected);
    }
}

#[test]
fn an_abstract_address_and_ones_that_are_none() {
    let name = format!("backupy-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let named = format!("@{name}");
    let supervisor = Supervisor::from_env(&env(&[("NOTIFY_SOCKET", &named)]));
    supervisor.starting("", Duration::from_secs(1));
    assert!(next(&socket).starts_with("STATUS=\n"));
    let long = format!("/{}", "x".repeat(200));
    for wrong in ["", "vsock:2:1234", "relative", &long] {
        assert!(Supervisor::from_env(&env(&[("NOTIFY_SOCKET", wrong)])).0.is_none(), "{wrong}");
    }
    // Nobody there: a warning, nothing else.
    let gone = Supervisor::from_env(&env(&[("NOTIFY_SOCKET", "@nobody-listens-here")]));
    gone.starting("", Duration::ZERO);
}

#[test]
fn whose_watchdog_it_is() {
    let of = |pairs: &[(&str, &str)]| watchdog(&env(pairs), 42);
    let second = Some(Duration::from_secs(1));
    assert_eq!(of(&[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "42")]), second);
    assert_eq!(of(&[("WATCHDOG_USEC", "1000000")]), second, "the pid may be left out");
    for none in [
        &[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "43")][..],
        &[("WATCHDOG_USEC", "0")],
        &[("WATCHDOG_USEC", "soon")],
        &[("WATCHDOG_PID", "42")],
        &[],
    ] {
        assert_eq!(of(none), None, "{none:?}");
    }
    let long = "ä".repeat(400);
    assert!(one_line(&long).len() <= STATUS_MAX && one_line("a\tb\u{7}") == "a b ");
}
