//! Lists, descriptions and events of daemons that answer in every shape, and of those that lie.

use std::io::Write;

use super::testing::{Daemon, VERSION, answer, hangs, ok, patient, says};
use super::*;
use crate::thread::Why;

const ONE: &str = r#"{"Id":"abc123","Names":["/other/alias","/db"],"Image":"postgres:16","Labels":{"a":"b"},
    "HostConfig":{"NetworkMode":"shop"},"NetworkSettings":{"Networks":{"shop":{"IPAddress":"172.18.0.2","Aliases":null}}},
    "Ports":[{"IP":"0.0.0.0","PrivatePort":5432,"PublicPort":5433,"Type":"tcp"},
             {"IP":"::","PrivatePort":5432,"PublicPort":5433,"Type":"tcp"},{"PrivatePort":80}]}"#;

fn connect(daemon: &Daemon) -> Docker {
    Docker::connect(&daemon.socket(), patient()).unwrap()
}

/// What a list of these bytes is taken for.
fn list(bytes: &[u8]) -> (Result<bool, DockerError>, Vec<Listed>) {
    let daemon = Daemon::saying(&[bytes]);
    let mut found = Vec::new();
    let whole = connect(&daemon).list(patient(), &mut |listed| {
        found.push(listed);
        found.len() < 3
    });
    (whole, found)
}

fn port(container_port: u16, host_port: u16, at: &[&str]) -> Port {
    let host_addresses = at.iter().map(|text| text.parse().unwrap()).collect();
    Port { container_port, host_port, protocol: "tcp".into(), host_addresses }
}

#[test]
fn a_list_is_read() {
    let (whole, found) = list(&ok(&format!("[{ONE}]\n")));
    assert!(whole.unwrap());
    let network = Network { name: "shop".into(), addresses: vec!["172.18.0.2".parse().unwrap()] };
    let expected = Listed {
        id: "abc123".into(),
        name: "db".into(),
        image: "postgres:16".into(),
        network_mode: "shop".into(),
        networks: vec![network],
        ports: vec![port(5432, 5433, &["0.0.0.0", "::"]), port(80, 0, &[])],
    };
    assert_eq!(found, [expected]);
    assert_eq!(list(&ok("[]")).1, []);
}

/// podman leaves out or nulls what Docker does not, and one container that makes no sense is not all of them.
#[test]
fn what_is_missing_is_missing_and_what_is_odd_is_left_out() {
    let sparse = r#"[{"Id":"a1","Names":null,"Image":null,"Ports":null,"NetworkSettings":null},
        {"Id":"../x"},{"Id":7},{},{"Id":"a2","Names":["/x\u001b[2J"],"NetworkSettings":{"Networks":{"n":null}}}]"#;
    let (whole, found) = list(&ok(sparse));
    assert!(whole.unwrap());
    let names: Vec<_> = found.iter().map(|l| (l.id.as_str(), l.name.as_str())).collect();
    assert_eq!(names, [("a1", ""), ("a2", "x[2J")]);
}

#[test]
fn long_lists_end_where_the_caller_has_enough() {
    let many = vec![ONE; 10_000].join(",");
    let (whole, found) = list(&ok(&format!("[{many}]")));
    assert!(!whole.unwrap());
    assert_eq!(found.len(), 3);
}

#[test]
fn no_list_is_an_error() {
    for text in ["{\"a\":", "[{", "<html>", "[1,2]", "nul"] {
        let (whole, _) = list(&ok(text));
        assert!(matches!(whole, Err(DockerError::Answer { .. })), "{text}: {whole:?}");
    }
    let (whole, _) = list(&answer(500, r#"{"message":"no"}"#));
    assert!(matches!(whole, Err(DockerError::Refused { status: 500, .. })), "{whole:?}");
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{}".to_vec();
    assert!(matches!(list(&cut).0, Err(DockerError::Broken { .. })));
}

/// A container that is too large is passed over, and said to be missing; a list without an end is given up.
#[test]
fn huge_containers_and_endless_lists() {
    let huge = format!(r#"[{{"Id":"a","Image":"{}"}},{ONE}]"#, "x".repeat(1 << 20));
    let (whole, found) = list(&ok(&huge));
    assert!(!whole.unwrap());
    assert_eq!(found.len(), 1);
    let daemon = Daemon::acting(vec![
        says(ok(VERSION)),
        Box::new(|stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n[");
            while stream.write_all(&[b' '; 4096]).is_ok() {}
        }),
    ]);
    let deadline = Deadline::after(std::time::Duration::from_millis(300));
    let bounds = Bounds { deadline, cancel: None };
    let ended = connect(&daemon).list(bounds, &mut |_| true);
    assert!(!matches!(ended, Ok(true)), "{ended:?}");
}

#[test]
fn a_description_holds_names_and_no_values() {
    let body = r#"{"Id":"abc","Config":{"Image":"postgres:16","Env":["POSTGRES_PASSWORD=s3cret","PATH=/bin",
        "POSTGRES_USER","POSTGRES_PASSWORD=again","ODD=\"s3cret\""],"ExposedPorts":{"5432/tcp":{},"53/udp":{},"x":{},"80":{}}},
        "NetworkSettings":{"Networks":{"n":{"Aliases":["db","abc"]}}}}"#;
    let daemon = Daemon::saying(&[&ok(body), &answer(404, "{}"), &ok("[]"), &ok("{}")]);
    let docker = connect(&daemon);
    let keep = |name: &str| name.starts_with("POSTGRES_");
    let found = docker.describe("abc", &keep, patient()).unwrap();
    let expected = Description {
        image: "postgres:16".into(),
        variables: vec!["POSTGRES_PASSWORD".into(), "POSTGRES_USER".into()],
        exposed: vec![5432, 80],
        aliases: vec!["db".into(), "abc".into()],
    };
    assert_eq!(found, expected);
    assert!(!format!("{found:?}").contains("s3cret"));
    let gone = docker.describe("abc", &keep, patient());
    assert!(matches!(gone, Err(DockerError::NoContainer { .. })), "{gone:?}");
    let odd = docker.describe("abc", &keep, patient());
    assert!(matches!(odd, Err(DockerError::Answer { .. })), "{odd:?}");
    assert_eq!(docker.describe("abc", &keep, patient()).unwrap(), Description::default());
    assert!(docker.describe("../x", &keep, patient()).is_err());
}

#[test]
fn events_are_news_noise_or_the_end() {
    let event = |action: &str| format!(r#"{{"Type":"container","Action":"{action}","id":"x"}}"#);
    let other = [
        r#"{"Type":"image","Action":"start"}"#.to_owned(),
        event("exec_create: /bin/sh"),
        event("health_status: healthy"),
        r#"{"Action":7}"#.to_owned(),
    ];
    let told = format!("{}\n{}\n{}", other.join("\n"), event("die"), other.join("\n"));
    let podman = r#"{"status":"died","Type":"container","id":"x"}"#;
    let noise = other.join("\n").repeat(2_000);
    let stream = |text: &str| format!("HTTP/1.1 200 OK\r\n\r\n{text}").into_bytes();
    let daemon = Daemon::saying(&[
        &stream(&told),
        &stream(podman),
        &stream(&noise),
        &stream("<html>"),
        &answer(400, "{}"),
    ]);
    let docker = connect(&daemon);
    let mut events = docker.events(patient()).unwrap();
    assert_eq!(events.next(patient()).unwrap(), News::Containers);
    assert_eq!(events.next(patient()).unwrap(), News::Ended);
    assert_eq!(events.next(patient()).unwrap(), News::Ended);
    let mut events = docker.events(patient()).unwrap();
    assert_eq!(events.next(patient()).unwrap(), News::Containers);
    let mut events = docker.events(patient()).unwrap();
    assert_eq!(events.next(patient()).unwrap(), News::Noise);
    // The daemon is not done with it.
    drop(events);
    let mut events = docker.events(patient()).unwrap();
    assert!(matches!(events.next(patient()), Err(DockerError::Answer { .. })));
    assert!(matches!(docker.events(patient()), Err(DockerError::Refused { .. })));
    let asked = daemon.requests()[1].clone();
    assert!(asked.contains("/v1.41/events?filters=%7B%22type%22"), "{asked}");
}

/// A stream goes on where a deadline cut it, within a chunk and within an event.
#[test]
fn a_wait_for_events_ends_with_its_deadline_or_the_stop() {
    let (go, gone) = crossbeam_channel::bounded::<()>(0);
    let daemon = Daemon::acting(vec![
        says(ok(VERSION)),
        Box::new(move |stream, _| {
            let head =
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n31\r\n{\"Type\":\"cont";
            stream.write_all(head.as_bytes()).unwrap();
            gone.recv().unwrap();
            stream.write_all(b"ainer\",\"Action\":\"start\",\"id\":\"abcd\"}\r\n").unwrap();
            hangs()(stream, &[]);
        }),
    ]);
    let stop = Cancel::new().unwrap();
    let docker = connect(&daemon);
    let within = |time| Bounds { deadline: Deadline::after(time), cancel: Some(&stop) };
    let mut events = docker.events(within(testing::LONG)).unwrap();
    let short = std::time::Duration::from_millis(100);
    assert_eq!(events.next(within(short)).unwrap(), News::Nothing);
    go.send(()).unwrap();
    assert_eq!(events.next(within(testing::LONG)).unwrap(), News::Containers);
    stop.cancel(Why::Shutdown);
    let ended = events.next(within(testing::LONG));
    assert!(matches!(ended, Err(DockerError::Cancelled(_))), "{ended:?}");
}
