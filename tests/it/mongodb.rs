//! MongoDB: command lines, secrets and failures against a stand-in, and a recorded archive there and back.
//!
//! MongoDB itself is in no registry that the tests may use; `fixtures/mongo_archive.py` says where the archive is from.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backupy::drivers::{Context, DriverError, ExecError, MongoFault, load};
use backupy::model::{Connection, Engine, Target};
use backupy::secret::Secret;
use backupy::thread::{Why, spawn};

use crate::rig::{Failing, Rig, target};

const ARCHIVE: &[u8] = include_bytes!("../fixtures/mongo.archive");
const PASSWORD: &str = "p:s@%/ \"quoted\" \\hunter2";

/// A rig whose tools are stand-ins that do what `behaviour` says; `$here` is their directory.
fn rig(behaviour: &str) -> Rig {
    let mut rig = Rig::new();
    prepare(&mut rig, behaviour);
    rig
}

fn prepare(rig: &mut Rig, behaviour: &str) {
    let bin = rig.path("bin");
    fs::create_dir(&bin).unwrap();
    let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mongo-tool");
    for name in ["mongodump", "mongorestore"] {
        fs::copy(stand_in, bin.join(name)).unwrap();
    }
    fs::write(bin.join("archive"), ARCHIVE).unwrap();
    fs::write(bin.join("behaviour"), behaviour).unwrap();
    rig.policy.mongo_bin_dir = Some(bin);
}

fn good() -> Rig {
    rig("cat \"$here/archive\"")
}

fn noted(rig: &Rig, name: &str) -> String {
    fs::read_to_string(rig.path("bin").join(name)).unwrap_or_default()
}

/// The options that the tool was given, without the path of the configuration file.
fn options(rig: &Rig) -> Vec<String> {
    let words = noted(rig, "argv");
    let shown = words.lines().map(|word| match word.split_once("config=") {
        Some((dashes, path)) => {
            assert!(path.starts_with(rig.work_dir().to_str().unwrap()), "{path}");
            format!("{dashes}config=")
        }
        None => word.to_owned(),
    });
    shown.collect()
}

fn login(host: &str) -> Connection {
    Connection {
        host: host.into(),
        username: "backup".into(),
        password_ref: Secret::new(PASSWORD),
        ..Connection::default()
    }
}

fn mongo(connection: Connection) -> Target {
    target(Engine::MongoDb, connection)
}

fn no_secret(rig: &Rig) {
    for name in ["argv", "environment"] {
        let text = noted(rig, name);
        assert!(!text.is_empty() && !text.contains("hunter2"), "{name}: {text}");
    }
    assert_eq!(noted(rig, "mode"), "600\n");
}

#[test]
fn a_host_and_a_port() {
    let rig = good();
    let target = mongo(Connection { port: 27018, database: "shop".into(), ..login("db.internal") });
    let mut out = Vec::new();
    let (_, dumped, version) = rig.run_into(&target, &mut out).unwrap();
    assert!(out == ARCHIVE && dumped.bytes == ARCHIVE.len() as u64);
    assert_eq!(version.as_deref(), Some("MongoDB 6.0.5"));
    assert_eq!(
        options(&rig),
        [
            "--archive",
            "--host=db.internal",
            "--port=27018",
            "--username=backup",
            "--authenticationDatabase=admin",
            "--db=shop",
            "--config="
        ]
    );
    assert_eq!(noted(&rig, "config"), "password: \"p:s@%/ \\\"quoted\\\" \\\\hunter2\"\n");
    no_secret(&rig);
}

#[test]
fn nobody_logs_in_and_everything_is_dumped() {
    let rig = good();
    rig.run(&mongo(Connection::default())).unwrap();
    assert_eq!(options(&rig), ["--archive", "--host=localhost", "--port=27017"]);
}

#[test]
fn a_uri_with_the_targets_login() {
    let encoded = "p%3As%40%25%2F%20%22quoted%22%20%5Chunter2";
    for (host, database, written) in [
        (
            "mongodb://a:1,b/?replicaSet=rs0",
            "shop",
            "backup:PW@a:1,b/shop?replicaSet=rs0&authSource=admin",
        ),
        ("mongodb://a/own?tls=true", "", "backup:PW@a/own?tls=true&authSource=own"),
        (
            "mongodb+srv://c0.example.net/?authSource=x",
            "",
            "backup:PW@c0.example.net/?authSource=x",
        ),
    ] {
        let rig = good();
        rig.run(&mongo(Connection { database: database.into(), ..login(host) })).unwrap();
        assert_eq!(options(&rig), ["--archive", "--config="]);
        let scheme = host.split_once("//").unwrap().0;
        let uri = written.replace("PW", encoded);
        assert_eq!(noted(&rig, "config"), format!("uri: \"{scheme}//{uri}\"\n"));
        no_secret(&rig);
    }
}

#[test]
fn a_uri_with_its_own_login() {
    let rig = good();
    let host = "mongodb://backup:hunter2@h/".to_owned();
    rig.run(&mongo(Connection { host, ..Connection::default() })).unwrap();
    assert_eq!(noted(&rig, "config"), "uri: \"mongodb://backup:hunter2@h/?authSource=admin\"\n");
    no_secret(&rig);
}

#[test]
fn tls_of_a_host() {
    let rig = good();
    let ca = rig.path("ca.pem");
    fs::write(&ca, "").unwrap();
    let tls_ca_file = ca.to_str().unwrap().to_owned();
    rig.run(&mongo(Connection { tls_ca_file, ..Connection::default() })).unwrap();
    let argv = options(&rig);
    assert_eq!(argv[1..3], ["--ssl".to_owned(), format!("--sslCAFile={}", ca.display())]);
    let gone = mongo(Connection { tls_ca_file: "/no/such.pem".into(), ..Connection::default() });
    assert!(matches!(rig.run(&gone), Err(DriverError::Setting { .. })));
}

#[test]
fn from_elsewhere_every_host_is_judged_and_a_bare_one_pinned() {
    let remote = || {
        let mut rig = Rig::remote();
        prepare(&mut rig, "cat \"$here/archive\"");
        rig
    };
    for host in [
        "169.254.169.254",
        "fd00:ec2::254",
        "mongodb://127.0.0.1,169.254.169.254/",
        "mongodb://[fe80::1]/",
    ] {
        let rig = remote();
        let error = rig.run(&mongo(login(host))).unwrap_err();
        assert!(matches!(error, DriverError::NotAllowed { .. }), "{host}: {error}");
        assert_eq!(noted(&rig, "argv"), "", "the tool never ran");
    }
    let rig = remote();
    rig.run(&mongo(login("localhost"))).unwrap();
    assert!(options(&rig).contains(&"--host=127.0.0.1".to_owned()), "{:?}", options(&rig));
    let rig = remote();
    rig.run(&mongo(Connection { port: 7, host: "::1".into(), ..Connection::default() })).unwrap();
    assert_eq!(noted(&rig, "config"), "uri: \"mongodb://[::1]:7/?directConnection=true\"\n");
    let rig = remote();
    rig.run(&mongo(login("mongodb+srv://cluster0.example.net/"))).unwrap();
    assert!(rig.run(&mongo(login("mongodb+srv://cluster0.example.net/?tls=false"))).is_err());
}

#[test]
fn words_never_become_options() {
    let rig = good();
    for bad in [
        Connection { host: "--out=/tmp/x".into(), ..Connection::default() },
        Connection { database: "--out=x".into(), ..Connection::default() },
        Connection { database: "a b".into(), ..Connection::default() },
        Connection { username: "-u".into(), ..login("h") },
        Connection { username: "a\nb".into(), ..login("h") },
        login("mongodb://h/?a=b c"),
        login("h\0"),
    ] {
        let error = rig.run(&mongo(bad)).unwrap_err();
        assert!(matches!(error, DriverError::Setting { .. }), "{error}");
    }
    assert_eq!(noted(&rig, "argv"), "", "the tool never ran");
}

#[test]
fn half_a_login_is_refused_before_the_tool_asks_for_the_rest() {
    let rig = good();
    for bad in [
        Connection { password_ref: Secret::default(), ..login("h") },
        Connection { username: String::new(), ..login("h") },
        Connection { host: "mongodb://u@h/".into(), ..Connection::default() },
    ] {
        assert!(matches!(rig.run(&mongo(bad)), Err(DriverError::Setting { .. })));
    }
    assert_eq!(noted(&rig, "argv"), "");
}

#[test]
fn the_tool_is_missing() {
    let mut rig = Rig::new();
    rig.policy.mongo_bin_dir = Some(rig.path("nothing-here"));
    let error = rig.run(&mongo(login("h"))).unwrap_err();
    assert!(matches!(error, DriverError::Mongo(MongoFault::NoTool { .. })) && !error.retry());
    assert!(error.to_string().contains("BACKUPY_MONGO_BIN_DIR"), "{error}");
}

#[test]
fn what_the_tool_says_is_understood_and_holds_no_secret() {
    type Is = fn(&MongoFault) -> bool;
    let cases: [(&str, Is, bool); 4] = [
        (
            "Failed: can't create session: server selection error: auth error: unable to authenticate using mechanism \
             SCRAM-SHA-256: (AuthenticationFailed) Authentication failed for hunter2 p%3As%40%25%2F%20%22quoted%22%20%5Chunter2.",
            |fault| matches!(fault, MongoFault::Password(_)),
            false,
        ),
        (
            "Failed: can't create session: server selection error: dial tcp 127.0.0.1:1: connect: connection refused",
            |fault| matches!(fault, MongoFault::Unreachable(_)),
            true,
        ),
        (
            "Failed: error getting database names: (Unauthorized) not authorized on admin to execute command",
            |fault| matches!(fault, MongoFault::Permission(_)),
            false,
        ),
        (
            "error parsing command line options: unknown option \"config\"",
            |fault| matches!(fault, MongoFault::ToolTooOld(_)),
            false,
        ),
    ];
    for (said, is, retry) in cases {
        let rig = rig(&format!("cat >&2 <<'END'\n{said}\nEND\nexit 1"));
        let error = rig.run(&mongo(login("h"))).unwrap_err();
        assert!(matches!(&error, DriverError::Mongo(fault) if is(fault)), "{error}");
        assert_eq!(error.retry(), retry, "{error}");
        assert!(!error.to_string().contains("quoted"), "{error}");
    }
}

#[test]
fn an_archive_that_is_not_whole_is_no_success_whatever_the_tool_says() {
    let whole = ARCHIVE.len();
    // Behind a segment's end, in a document, behind the last namespace but one.
    let last = ARCHIVE[..whole - 4].windows(4).rposition(|w| w == [0xff; 4]).unwrap() + 4;
    for length in [3, 40, 2_000, last, whole - 4, whole - 1] {
        let rig = rig(&format!("head -c {length} \"$here/archive\""));
        let error = rig.run(&mongo(login("h"))).unwrap_err();
        let fits = match &error {
            DriverError::Mongo(MongoFault::Archive(_)) => true,
            DriverError::Mark { .. } => length == 3,
            _ => false,
        };
        assert!(fits && !error.retry(), "{length}: {error}");
    }
    for wrong in ["echo this is no archive", "true", "gzip -c \"$here/archive\""] {
        let error = rig(wrong).run(&mongo(login("h"))).unwrap_err();
        assert!(matches!(error, DriverError::Mark { .. }), "{wrong}: {error}");
    }
    let error = rig("cat \"$here/archive\"; exit 1").run(&mongo(login("h"))).unwrap_err();
    assert!(matches!(error, DriverError::Exec(ExecError::Exit { code: 1, .. })), "{error}");
}

#[test]
fn killed_in_the_middle() {
    let rig = rig("head -c 3000 \"$here/archive\"; kill -KILL $$");
    let error = rig.run(&mongo(login("h"))).unwrap_err();
    assert!(matches!(error, DriverError::Exec(ExecError::Signal { signal: 9, .. })), "{error}");
    assert!(error.retry());
}

#[test]
fn a_tool_that_reports_progress_without_any_is_stuck() {
    let mut rig = rig(
        "head -c 3000 \"$here/archive\"; while :; do echo 'shop.orders 0%' >&2; sleep 0.1; done",
    );
    rig.limits.stuck_timeout = Duration::from_secs(3);
    let error = rig.run(&mongo(login("h"))).unwrap_err();
    assert!(matches!(error, DriverError::Exec(ExecError::Stuck { .. })), "{error}");
    assert!(error.retry());
}

#[test]
fn a_cancel_ends_it() {
    let rig = rig("head -c 3000 \"$here/archive\"; echo $$ > \"$here/pid\"; exec sleep 600");
    let (cancel, pid) = (rig.cancel.clone(), rig.path("bin/pid"));
    let canceller = spawn("canceller", move || {
        while fs::read_to_string(&pid).unwrap_or_default().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        cancel.cancel(Why::Requested);
    });
    let error = rig.run(&mongo(login("h"))).unwrap_err();
    assert!(matches!(error, DriverError::Cancelled(Why::Requested)), "{error}");
    canceller.unwrap().join().unwrap();
    let pid = noted(&rig, "pid");
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn a_sink_that_fails_ends_it() {
    let rig = good();
    let error = rig.run_into(&mongo(login("h")), &mut Failing(100)).unwrap_err();
    assert!(matches!(error, DriverError::Sink(_)), "{error}");
}

fn inspect(rig: &Rig, dump: &Path) -> Result<load::Inspected, DriverError> {
    with_context(rig, |cx| load::inspect(Engine::MongoDb, dump, cx))
}

fn with_context<T>(rig: &Rig, run: impl FnOnce(&Context<'_>) -> T) -> T {
    let work_dir = rig.work_dir();
    let (cancel, policy, limits) = (&rig.cancel, &rig.policy, &rig.limits);
    let result = run(&Context { cancel, policy, limits, work_dir: &work_dir, progress: &|_| {} });
    assert_eq!(rig.leftovers(), Vec::<PathBuf>::new());
    result
}

#[test]
fn the_recorded_archive_is_read_to_its_end() {
    let rig = good();
    let dump = rig.path("dump");
    fs::write(&dump, ARCHIVE).unwrap();
    let inspected = inspect(&rig, &dump).unwrap();
    let tables: Vec<_> =
        inspected.tables.iter().map(|t| (t.name.as_str(), t.rows.unwrap())).collect();
    assert_eq!(tables, [("shop.empty", 0), ("shop.orders", 30), ("shop.users", 5)]);
    assert_eq!(inspected.warnings, Vec::<String>::new());
    // A single bit of a document.
    let mut bytes = ARCHIVE.to_vec();
    let at = bytes.windows(3).position(|window| window == [10, 11, 12]).unwrap();
    bytes[at] ^= 1;
    fs::write(&dump, bytes).unwrap();
    let error = inspect(&rig, &dump).unwrap_err();
    assert!(error.to_string().contains("checksum of shop.orders"), "{error}");
    fs::write(&dump, &ARCHIVE[..ARCHIVE.len() - 4]).unwrap();
    assert!(inspect(&rig, &dump).is_err());
}

fn load_into(rig: &Rig, target: &Target, replace: bool) -> Result<(), DriverError> {
    let dump = rig.path("dump");
    fs::write(&dump, ARCHIVE).unwrap();
    with_context(rig, |cx| load::load(target, &dump, replace, cx))
}

const LOADED: &str =
    "echo '35 document(s) restored successfully. 0 document(s) failed to restore.' >&2";

#[test]
fn an_archive_is_loaded() {
    let rig = rig(LOADED);
    let archive = format!("--archive={}", rig.path("dump").display());
    let into = |database: &str| mongo(Connection { database: database.into(), ..login("h") });
    let login = [
        "--host=h",
        "--port=27017",
        "--username=backup",
        "--authenticationDatabase=admin",
        "--config=",
    ];
    load_into(&rig, &into("copy"), true).unwrap();
    let names = [archive.as_str(), "--nsFrom=shop.*", "--nsTo=copy.*", "--drop"];
    assert_eq!(options(&rig), [&names[..], &login].concat());
    no_secret(&rig);
    load_into(&rig, &into("shop"), false).unwrap();
    let names =
        [archive.as_str(), "--nsInclude=shop.*", "--stopOnError", "--maintainInsertionOrder"];
    assert_eq!(options(&rig), [&names[..], &login].concat());
    load_into(&rig, &mongo(self::login("mongodb://h/copy")), true).unwrap();
    assert_eq!(options(&rig)[1..], ["--nsFrom=shop.*", "--nsTo=copy.*", "--drop", "--config="]);
    assert!(
        noted(&rig, "config").contains("@h/?authSource=copy"),
        "no database in the way of the patterns"
    );
}

#[test]
fn what_was_not_loaded_is_an_error() {
    let partly = rig(&LOADED.replace("0 doc", "7 doc"));
    let error = load_into(&partly, &mongo(login("h")), true).unwrap_err();
    assert!(matches!(error, DriverError::Mongo(MongoFault::NotLoaded(_))), "{error}");
    let there =
        rig("echo 'Failed: shop.orders: error restoring: (E11000) duplicate key' >&2; exit 1");
    let error = load_into(&there, &mongo(login("h")), false).unwrap_err();
    assert!(error.to_string().contains("E11000"), "{error}");
}
