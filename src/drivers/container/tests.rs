//! Tools in containers of a daemon that says what it is told to: good runs, and every lie about one.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::config::PipelineLimits;
use crate::docker::testing::{Act, Daemon, answer, frame, ok, says};
use crate::thread::{Cancel, Why};

const VERSION: &str = r#"{"ApiVersion":"1.41"}"#;
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UPGRADED: &[u8] = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
const SECRET: &str = "*:*:*:*:hunter2";

fn container(state: &str) -> String {
    format!(r#"{{"Id":"{ID}","Name":"/db","State":{{{state}}}}}"#)
}

fn running() -> String {
    container(r#""Status":"running","Running":true"#)
}

/// The other side of a command: the script, as a test wants it to be.
struct Script<'a> {
    stream: &'a mut UnixStream,
    token: String,
}

impl Script<'_> {
    fn out(&mut self, text: &str) {
        let _ = self.stream.write_all(&frame(1, text.as_bytes()));
    }

    fn err(&mut self, text: &str) {
        let _ = self.stream.write_all(&frame(2, text.as_bytes()));
    }

    fn ready(&mut self) {
        let word = format!("backupy:{}:ready:7:4711\n", self.token);
        self.err(&word);
    }

    fn trailer(&mut self, code: u8) {
        let line = format!("backupy:{}:{code:03}\n", self.token);
        self.out(&line);
    }

    /// The lines of stdin up to the token.
    fn told(&mut self) -> Vec<String> {
        let lines = BufReader::new(&mut *self.stream).lines().map(Result::unwrap);
        lines.take_while(|line| *line != self.token).collect()
    }

    /// The whole conversation of a good run, but for its output.
    fn good(&mut self, body: impl FnOnce(&mut Self), code: u8) {
        self.ready();
        assert_eq!(self.told(), [SECRET]);
        body(self);
        self.trailer(code);
        assert_eq!(self.told(), Vec::<String>::new());
    }
}

fn script(body: impl FnOnce(&mut Script<'_>) + Send + 'static) -> Act {
    Box::new(move |stream, requests| {
        stream.write_all(UPGRADED).unwrap();
        let create = requests.iter().rfind(|request| request.contains("\"Cmd\"")).unwrap();
        let token = create.split("\"backupy\",\"").nth(1).unwrap().split('"').next().unwrap();
        let token = token.to_owned();
        body(&mut Script { stream, token });
    })
}

/// A daemon with one container and one command in it.
fn daemon(conversation: Act, after: &[&str]) -> Daemon {
    let created = answer(201, r#"{"Id":"e1"}"#);
    let mut acts = vec![says(ok(VERSION)), says(ok(&running())), says(created), conversation];
    acts.extend(after.iter().map(|body| says(ok(body))));
    Daemon::acting(acts)
}

struct Rig {
    policy: HostPolicy,
    cancel: Cancel,
    stuck: Duration,
}

impl Rig {
    fn new(daemon: &Daemon) -> Self {
        let policy = HostPolicy { docker_socket: daemon.socket(), ..HostPolicy::new(Trust::Local) };
        Self { policy, cancel: Cancel::new().unwrap(), stuck: Duration::from_secs(60) }
    }

    fn run(&self) -> (Result<Said, ExecError>, Vec<u8>) {
        let mut out = Vec::new();
        let result = self.run_with(&mut |chunk| {
            out.extend_from_slice(chunk);
            Ok(())
        });
        (result, out)
    }

    fn run_with(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<Said, ExecError> {
        self.run_as(false, sink)
    }

    fn run_as(
        &self,
        chatty: bool,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Said, ExecError> {
        let cx = Context {
            cancel: &self.cancel,
            policy: &self.policy,
            limits: &PipelineLimits::default(),
            work_dir: Path::new("/nonexistent"),
            progress: &|_| {},
        };
        let tool = Tool {
            name: "pg_dump",
            program: Path::new("/usr/bin/pg_dump"),
            args: vec!["--dbname=$(reboot) 'x'".into()],
            env: vec![("PGREQUIREAUTH", "!password".into())],
            secrets: vec![Secret::new("hunter2")],
        };
        let inside = Inside::new("db").unwrap();
        let secret = Secret::new(SECRET);
        match chatty {
            true => inside.run_by_output(&tool, Some(&secret), self.stuck, &cx, sink),
            false => inside.run(&tool, Some(&secret), self.stuck, &cx, sink),
        }
    }
}

fn run(daemon: &Daemon) -> (Result<Said, ExecError>, Vec<u8>) {
    Rig::new(daemon).run()
}

fn fault(daemon: &Daemon) -> ContainerFault {
    match run(daemon).0.unwrap_err() {
        ExecError::Container(fault) => fault,
        other => panic!("{other:?}"),
    }
}

const ENDED: &str = r#"{"Running":false,"ExitCode":0}"#;

#[test]
fn a_good_run() {
    let act = script(|script| {
        script.good(
            |script| {
                script.out("PGDMP");
                script.err("a note\n");
                script.out(&"x".repeat(100_000));
            },
            0,
        );
        script.err("last words\n");
    });
    let busy = r#"{"Running":true,"ExitCode":null}"#;
    let daemon = daemon(act, &[busy, busy, ENDED]);
    let (result, out) = run(&daemon);
    assert_eq!(result.unwrap().brief(), "a note; last words");
    assert_eq!(out, format!("PGDMP{}", "x".repeat(100_000)).into_bytes());
    let requests = daemon.requests();
    assert!(requests.iter().all(|request| !request.contains("hunter2")), "{requests:?}");
    let words =
        r#""file","10","PGREQUIREAUTH=!password","/usr/bin/pg_dump","--dbname=$(reboot) 'x'"]"#;
    assert!(requests[2].contains(words), "{}", requests[2]);
    assert!(!requests[2].contains("\"Env\""));
}

#[test]
fn the_tools_own_failures() {
    let act = script(|script| script.good(|script| script.err("no: hunter2\n"), 3));
    let daemon_3 = daemon(act, &[r#"{"Running":false,"ExitCode":3}"#]);
    let error = run(&daemon_3).0.unwrap_err();
    assert_eq!(error.to_string(), "pg_dump failed with exit code 3: no: ***");
    let act = script(|script| script.good(|script| script.out("PGDMP"), 137));
    let daemon_137 = daemon(act, &[r#"{"Running":false,"ExitCode":137}"#]);
    let error = run(&daemon_137).0.unwrap_err();
    assert!(error.to_string().contains("signal 9") && error.retry(), "{error}");
}

#[test]
fn exit_code_0_without_the_end_mark_is_no_success() {
    for end in ["", "backupy:00000000000000000000000000000000:000\n"] {
        let act = script(move |script| {
            script.ready();
            script.told();
            script.out("PGDMP and more");
            script.out(end);
        });
        let daemon = daemon(act, &[ENDED, &running()]);
        let fault = fault(&daemon);
        assert!(matches!(fault, ContainerFault::Lost { code: Some(0), .. }), "{fault}");
        assert!(fault.retry());
    }
    let act = script(|script| {
        script.ready();
        script.told();
        script.trailer(0);
        script.told();
        script.out("and more");
    });
    let fault = fault(&daemon(act, &[ENDED, &running()]));
    assert!(matches!(fault, ContainerFault::Lost { .. }), "{fault}");
}

#[test]
fn the_end_mark_without_dockers_exit_code_is_no_success() {
    for (state, code) in [
        (r#"{"Running":false,"ExitCode":null}"#, None),
        (r#"{"Running":false}"#, None),
        (r#"{"Running":false,"ExitCode":137}"#, Some(137)),
        (r#"{"Running":false,"ExitCode":-1}"#, Some(-1)),
    ] {
        let act = script(|script| script.good(|script| script.out("PGDMP"), 0));
        let fault = fault(&daemon(act, &[state, &running()]));
        assert!(
            matches!(fault, ContainerFault::Code { own: 0, code: c, .. } if c == code),
            "{fault}"
        );
    }
    let act = script(|script| script.good(|script| script.out("PGDMP"), 0));
    let created = answer(201, r#"{"Id":"e1"}"#);
    let lost = says(answer(404, r#"{"message":"No such exec instance"}"#));
    let gone = says(ok(&container(r#""Status":"exited","Running":false"#)));
    let acts = vec![says(ok(VERSION)), says(ok(&running())), says(created), act, lost, gone];
    let text = fault(&Daemon::acting(acts)).to_string();
    assert_eq!(text, "the container db does not run (exited); start it");
}

#[test]
fn no_shell() {
    for words in [
        "OCI runtime exec failed: exec failed: unable to start container process: exec: \"sh\": executable file not found in $PATH: unknown\r\n",
        "crun: executable file `sh` not found in $PATH: No such file or directory",
    ] {
        let daemon = daemon(script(move |script| script.out(words)), &[]);
        let fault = fault(&daemon);
        assert!(matches!(fault, ContainerFault::NoShell { .. }) && !fault.retry(), "{fault}");
        assert!(fault.to_string().contains("no shell (sh)"), "{fault}");
    }
}

#[test]
fn what_is_not_the_script() {
    let noise = daemon(
        script(|script| script.out(&"PGDMP".repeat(10_000))),
        &[r#"{"Running":false,"ExitCode":1}"#, &running()],
    );
    let found = fault(&noise);
    assert!(matches!(found, ContainerFault::Lost { code: Some(1), .. }), "{found}");
    let act = script(|script| {
        let word = format!("backupy:{}:place\n", script.token);
        script.err(&word);
    });
    let found = fault(&daemon(act, &[]));
    assert!(found.to_string().contains("no writable directory") && !found.retry(), "{found}");
    let act = script(|script| {
        script.ready();
        script.told();
        let _ = script.stream.write_all(b"garbage!");
    });
    let found = fault(&daemon(act, &[&running()]));
    assert!(found.to_string().contains("frames"), "{found}");
}

#[test]
fn containers_that_do_not_run() {
    for (state, words) in [
        (r#""Status":"exited","Running":false"#, "does not run (exited)"),
        (r#""Status":"paused","Running":true,"Paused":true"#, "is paused; unpause it"),
        (r#""Status":"restarting","Running":true,"Restarting":true"#, "is being restarted"),
    ] {
        let daemon = Daemon::acting(vec![says(ok(VERSION)), says(ok(&container(state)))]);
        let fault = fault(&daemon);
        assert!(fault.to_string().contains(words) && fault.retry(), "{fault}");
    }
}

#[test]
fn a_silent_tool_is_ended_and_a_paused_container_named() {
    let silent = || {
        script(|script| {
            script.ready();
            script.told();
            // Until its input ends, as the script.
            let _ = script.stream.read_to_end(&mut Vec::new());
        })
    };
    let paused = container(r#""Status":"paused","Running":true,"Paused":true"#);
    let busy = daemon(silent(), &[&running()]);
    let mut rig = Rig::new(&busy);
    rig.stuck = Duration::from_millis(50);
    let error = rig.run().0.unwrap_err();
    assert!(matches!(error, ExecError::Stuck { .. }), "{error}");
    let frozen = daemon(silent(), &[&paused]);
    let mut rig = Rig::new(&frozen);
    rig.stuck = Duration::from_millis(50);
    let error = rig.run().0.unwrap_err();
    assert!(error.to_string().contains("is paused"), "{error}");
}

#[test]
fn a_tool_that_only_talks_is_stuck_where_its_output_counts() {
    let talks = script(|script| {
        script.ready();
        script.told();
        script.out("x");
        // Until its input ends, as the script.
        script.stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        while script.stream.read(&mut [0]).is_err() {
            script.err("progress 0%\n");
        }
    });
    let daemon = daemon(talks, &[&running()]);
    let mut rig = Rig::new(&daemon);
    rig.stuck = Duration::from_millis(300);
    let mut out = Vec::new();
    let result = rig.run_as(true, &mut |chunk| {
        out.extend_from_slice(chunk);
        Ok(())
    });
    let error = result.unwrap_err();
    assert!(matches!(error, ExecError::Stuck { .. }) && error.retry(), "{error}");
    assert!(out.is_empty(), "what may be the end mark's beginning is held back");
}

#[test]
fn a_tool_that_does_not_end_is_killed_by_a_second_command() {
    let deaf: Act = script(|script| {
        script.ready();
        script.told();
        script.out(&"PGDMP".repeat(100));
        // Longer than the agent waits: until it hangs up altogether.
        while script.stream.write_all(&frame(2, b"still here\n")).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let created = || says(answer(201, r#"{"Id":"e1"}"#));
    let killer: Act = Box::new(|stream, _| stream.write_all(UPGRADED).unwrap());
    let acts = vec![says(ok(VERSION)), says(ok(&running())), created(), deaf, created(), killer];
    // One connection at a time would wait for the deaf one.
    let daemon = Daemon::acting_at_once(acts);
    let rig = Rig::new(&daemon);
    let result = rig.run_with(&mut |_| {
        rig.cancel.cancel(Why::Requested);
        Ok(())
    });
    assert!(matches!(result, Err(ExecError::Cancelled(Why::Requested))));
    let requests = daemon.requests();
    assert!(requests[4].contains("kill -KILL") && requests[4].contains(r#""7","4711"]"#));
}

#[test]
fn a_failing_sink_ends_the_run() {
    let act = script(|script| {
        script.ready();
        script.told();
        script.out(&"x".repeat(1000));
        let _ = script.stream.read_to_end(&mut Vec::new());
    });
    let daemon = daemon(act, &[]);
    let result = Rig::new(&daemon).run_with(&mut |_| Err(io::Error::other("full")));
    assert!(matches!(result, Err(ExecError::Sink(_))));
}

#[test]
fn what_a_control_plane_may_name() {
    let found = Container { id: ID.into(), name: "db".into(), state: ContainerState::Running };
    let may = |trust, list: Option<&[&str]>| {
        let daemon = Daemon::acting(Vec::new());
        let mut policy = Rig::new(&daemon).policy;
        policy.trust = trust;
        policy.allow_containers = list.map(|l| l.iter().map(|s| (*s).to_owned()).collect());
        allowed(&found, &policy)
    };
    for good in [None, Some(&["x", "db"][..]), Some(&["/db"]), Some(&[&ID[..12]]), Some(&[ID])] {
        assert!(may(Trust::Remote, good), "{good:?}");
    }
    for bad in [&[][..], &["d"], &["dbx"], &[""], &[&ID[..11]], &["0"]] {
        assert!(!may(Trust::Remote, Some(bad)), "{bad:?}");
        assert!(may(Trust::Local, Some(bad)), "{bad:?}");
    }
}

#[test]
fn names_of_containers() {
    for good in ["db", "/db", "shop-db_1.x", ID] {
        Inside::new(good).unwrap();
    }
    for bad in ["", "/", "-it", "a/b", "a b", "$(x)", "a?b", "../x"] {
        assert!(Inside::new(bad).is_none(), "{bad}");
    }
}
