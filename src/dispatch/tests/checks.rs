//! Health checks from the configuration to the outbox.

use std::net::TcpListener;

use super::rig::Rig;
use crate::model::{AgentConfig, Check, CheckKind};
use crate::wire::ServerMessage;

fn config(targets: &[(&str, String)]) -> AgentConfig {
    let check = |(id, target): &(&str, String)| Check {
        id: (*id).to_owned(),
        name: format!("name of {id}"),
        kind: CheckKind::Tcp,
        target: target.clone(),
        interval_sec: 86_400,
        timeout_sec: 20,
        expected_status: 0,
    };
    AgentConfig { checks: targets.iter().map(check).collect(), ..AgentConfig::default() }
}

#[test]
fn configured_run_and_asked_for() {
    let mut rig = Rig::start(AgentConfig::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap().to_string();
    rig.say("early", ServerMessage::RunHealthCheck { check_id: "a".into() });
    assert!(rig.next().starts_with("refused early: check \"a\" is not in this agent's"));
    rig.configure(config(&[("a", open.clone()), ("a", open), ("bad", "nowhere".into())]), 1);
    let mut lines: Vec<String> = (0..4).map(|_| rig.next()).collect();
    lines.sort();
    assert_eq!(lines[0], "ack config");
    assert_eq!(lines[1], "check a true ");
    assert!(lines[2].starts_with("check bad false ") && lines[2].contains("host:port"));
    assert!(lines[3].starts_with("log 1 health checks are not run"), "{lines:?}");
    let shown = &rig.snapshot()["checks"];
    assert_eq!((&shown["failing"], &shown["shown"][0]["check_id"]), (&1.into(), &"bad".into()));
    rig.say("now", ServerMessage::RunHealthCheck { check_id: "a".into() });
    assert_eq!((rig.next(), rig.next()), ("ack now".into(), "check a true ".into()));
    rig.configure(AgentConfig::default(), 2);
    assert_eq!(rig.next(), "ack config");
    assert!(rig.snapshot()["checks"].is_null());
    rig.say("gone", ServerMessage::RunHealthCheck { check_id: "a".into() });
    assert!(rig.next().starts_with("refused gone"));
    rig.expect_nothing();
}
