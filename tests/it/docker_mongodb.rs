//! MongoDB's `mongodump` in a container of a real Docker daemon: a stand-in there, and what it was told.

use std::time::{Duration, Instant};

use backupy::drivers::{DriverError, ExecError, MongoFault};
use backupy::model::{Connection, Engine, Target, Trust, Way};
use backupy::secret::Secret;
use backupy::thread::Why;

use crate::docker::{Then, died, failure, nothing_is_seen, rig};
use crate::rig::{LONG, target};
use crate::support_docker::{Dockerd, left_out};
use crate::support_docker_images::{mongo_behaves, run_mongo_stand_in};

const ARCHIVE: &[u8] = include_bytes!("../fixtures/mongo.archive");
const PASSWORD: &str = "p:s@%/ \"quoted\" \\s3cret";
const GOOD: &str = "cat \"$here/archive\"";
/// Is not done for a while.
const HOLDS: &str = "cat \"$here/archive\"; sleep 60";

fn inside(host: &str) -> Connection {
    Connection {
        host: host.into(),
        username: "backup".into(),
        password_ref: Secret::new(PASSWORD),
        container: "db".into(),
        way: Way::DockerExec,
        ..Connection::default()
    }
}

fn mongo(connection: Connection) -> Target {
    target(Engine::MongoDb, connection)
}

fn noted(docker: &Dockerd, name: &str) -> String {
    docker.docker(&["exec", "db", "cat", &format!("/usr/local/bin/{name}")])
}

#[test]
fn mongodb_in_a_container() {
    if left_out() {
        return;
    }
    let docker = Dockerd::start();
    run_mongo_stand_in(&docker, "db");
    mongo_behaves(&docker, "db", GOOD);
    what_it_is_told(&docker);
    what_the_host_does_not_allow(&docker);
    what_goes_wrong(&docker);
}

fn what_it_is_told(docker: &Dockerd) {
    let config = "--config=/proc/self/fd/3";
    let login = "--username=backup\n--authenticationDatabase=admin";
    let password = r#"password: "p:s@%/ \"quoted\" \\s3cret""#;
    let encoded = "p%3As%40%25%2F%20%22quoted%22%20%5Cs3cret";
    let uri = format!(r#"uri: "mongodb://backup:{encoded}@127.0.0.1:1/shop?authSource=admin""#);
    for (connection, argv, content) in [
        (
            inside(""),
            format!("--archive\n--host=localhost\n--port=27017\n{login}\n{config}"),
            password,
        ),
        (
            Connection { database: "shop".into(), port: 1, ..inside("127.0.0.1") },
            format!("--archive\n--host=127.0.0.1\n--port=1\n{login}\n--db=shop\n{config}"),
            password,
        ),
        (
            Connection { database: "shop".into(), ..inside("mongodb://127.0.0.1:1") },
            format!("--archive\n{config}"),
            &uri,
        ),
    ] {
        for trust in [Trust::Local, Trust::Remote] {
            let mut rig = rig(docker);
            rig.policy.trust = trust;
            rig.policy.allow_containers = Some(vec!["db".into()]);
            rig.policy.mongo_bin_dir = Some(rig.path("nothing"));
            let mut out = Vec::new();
            let (_, dumped, version) = rig.run_into(&mongo(connection.clone()), &mut out).unwrap();
            assert!(out == ARCHIVE && dumped.bytes == ARCHIVE.len() as u64);
            assert_eq!(version.as_deref(), Some("MongoDB 6.0.5"));
            assert_eq!(noted(docker, "argv"), argv);
            assert_eq!(noted(docker, "config"), content);
            assert!(!noted(docker, "environment").contains("s3cret"));
        }
    }
}

fn what_the_host_does_not_allow(docker: &Dockerd) {
    let mut rig = rig(docker);
    rig.policy.trust = Trust::Remote;
    for host in ["169.254.169.254", "mongo", "mongodb://mongo/", "mongodb+srv://c0.example.net/"] {
        let (error, text) = failure(&rig, &mongo(inside(host)));
        assert!(matches!(error, DriverError::NotAllowed { .. }) && !error.retry(), "{text}");
    }
    rig.policy.allow_containers = Some(vec!["other".into()]);
    let (error, text) = failure(&rig, &mongo(inside("")));
    assert!(matches!(error, DriverError::NotAllowed { .. }), "{text}");
    assert!(text.contains("BACKUPY_ALLOW_CONTAINERS"), "{text}");
}

fn what_goes_wrong(docker: &Dockerd) {
    let mut rig = rig(docker);
    let auth = format!("printf '%s\\n' 'Failed: auth error: {PASSWORD}' >&2; exit 1");
    mongo_behaves(docker, "db", &auth);
    let (error, text) = failure(&rig, &mongo(inside("")));
    assert!(matches!(error, DriverError::Mongo(MongoFault::Password(_))), "{text}");
    assert!(!error.retry());

    mongo_behaves(docker, "db", "echo 'Failed: connection closed' >&2; exit 1");
    let (error, text) = failure(&rig, &mongo(inside("")));
    assert!(matches!(error, DriverError::Mongo(MongoFault::Lost(_))) && error.retry(), "{text}");

    // It says that it is done, and is not.
    mongo_behaves(docker, "db", "cat \"$here/archive\"; printf x");
    let (error, text) = failure(&rig, &mongo(inside("")));
    assert!(matches!(error, DriverError::Mongo(MongoFault::Archive(_))), "{text}");

    // Words are no sign of life.
    rig.limits.stuck_timeout = Duration::from_secs(3);
    mongo_behaves(docker, "db", "while :; do echo progress >&2; sleep 0.1; done");
    let (error, text) = failure(&rig, &mongo(inside("")));
    assert!(matches!(error, DriverError::Exec(ExecError::Stuck { .. })) && error.retry(), "{text}");
    docker.wait_until("db", "sh", false);
    rig.limits.stuck_timeout = LONG;

    mongo_behaves(docker, "db", HOLDS);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| rig.run(&mongo(inside(""))));
        let deadline = Instant::now() + LONG;
        let waits = || docker.processes("db").iter().any(|words| words == &["sleep", "60"]);
        while !waits() {
            assert!(Instant::now() < deadline, "the tool is at work");
        }
        let program = "/bin/sh\0/usr/local/bin/mongodump";
        nothing_is_seen(docker, program, "--config=/proc/self/fd/3", "none");
        rig.cancel.cancel(Why::Requested);
        let error = run.join().unwrap().unwrap_err();
        assert!(matches!(error, DriverError::Cancelled(Why::Requested)), "{error}");
    });
    docker.wait_until("db", "sh", false);

    let rig = self::rig(docker);
    let kill = || drop(docker.docker(&["kill", "db"]));
    let mut then = Then::new(&kill);
    // With its first byte.
    then.taken = 100_000;
    let error = rig.run_into(&mongo(inside("")), &mut then).unwrap_err();
    died(docker, "db", &error);
}
