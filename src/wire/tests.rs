//! The numbers on the wire, round trips, and tolerance for what another version may send.

use super::*;
use crate::model::{AgentConfig, Engine, Job, RetryPolicy, Target, UploadCreds, Way};
use crate::secret::{Secret, SecretBytes};

fn completed() -> AgentMessage {
    AgentMessage::BackupCompleted(BackupCompleted {
        job_id: "job".into(),
        run_id: "run".into(),
        s3_key: "a/b".into(),
        size_bytes: 7,
        sha256: "00".into(),
        duration_ms: 9,
        encrypted_dek: SecretBytes::new([1, 2, 3]),
        compression: "zstd".into(),
        db_engine_version: "SQLite 3".into(),
        ..Default::default()
    })
}

#[test]
fn payload_numbers_are_those_of_the_contract() {
    let first_key = |bytes: Vec<u8>| {
        // Key of the one length-delimited payload: (number << 3 | 2) as a varint.
        let mut key = 0u64;
        for (i, byte) in bytes.iter().enumerate() {
            key |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                break;
            }
        }
        key >> 3
    };
    let agent = |m| first_key(encode_agent(Header::default(), m));
    let server = |m| first_key(encode_server(Header::default(), m));
    assert_eq!(agent(AgentMessage::Register(Register::default())), 10);
    assert_eq!(agent(AgentMessage::Heartbeat(Heartbeat::default())), 11);
    assert_eq!(agent(AgentMessage::Discovery(vec![])), 12);
    assert_eq!(agent(completed()), 14);
    assert_eq!(agent(AgentMessage::HealthResult(HealthResult::default())), 15);
    assert_eq!(agent(AgentMessage::Ack(Ack::ok("x"))), 18);
    assert_eq!(server(ServerMessage::RegisterAck(RegisterAck::default())), 50);
    assert_eq!(server(ServerMessage::ConfigUpdate(None)), 51);
    assert_eq!(server(ServerMessage::RunBackup(RunBackup::default())), 52);
    assert_eq!(server(ServerMessage::CancelJob { job_id: "j".into() }), 53);
    assert_eq!(server(ServerMessage::RunHealthCheck { check_id: "c".into() }), 54);
    assert_eq!(server(ServerMessage::SelfUpdate(SelfUpdate::default())), 56);
    assert_eq!(server(ServerMessage::Ping { ts_ms: 1 }), 57);
}

#[test]
fn a_stamped_entry_is_the_entry_with_its_header() {
    let stored =
        encode_agent(Header { correlation_id: "c-1".into(), ..Header::default() }, completed());
    let (header, message) = decode_agent(&stamp(&stored, 42, 1_000, 7)).unwrap();
    assert_eq!(header, Header { seq: 42, ts_ms: 1_000, correlation_id: "c-1".into(), entry_id: 7 });
    assert_eq!(message, completed());
}

#[test]
fn a_configuration_survives_the_round_trip() {
    let config = AgentConfig {
        version: 3,
        targets: vec![Target {
            id: "t".into(),
            engine: Engine::Unknown(99),
            display_name: "T".into(),
            connection: crate::model::Connection {
                host: "h".into(),
                port: 5432,
                password_ref: Secret::new("env:X"),
                way: Way::UnixSocket,
                tls_mode: "require".into(),
                ..Default::default()
            },
        }],
        jobs: vec![Job {
            id: "j".into(),
            target_id: "t".into(),
            retry: RetryPolicy { max_attempts: 3, backoff_sec: vec![1, 2] },
            upload_bytes_per_sec: 1 << 40,
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_eq!(config_from_bytes(&config_to_bytes(&config)).unwrap(), config);
}

#[test]
fn foreign_payloads_are_tolerated_and_garbage_is_an_error() {
    // Field 99, length-delimited, 2 bytes: a payload of some later version.
    let unknown = [0x9a, 0x06, 0x02, 0xff, 0xff];
    assert_eq!(decode_server(&unknown).unwrap().1, ServerMessage::Unknown);
    assert_eq!(decode_server(&[]).unwrap().1, ServerMessage::Unknown);
    assert!(decode_server(&[0xff; 16]).is_err());
}

#[test]
fn only_accepted_seq_acks_confirm() {
    assert_eq!(Ack::ok("seq-17").confirmed_seq(), Some(17));
    assert_eq!(Ack::refused("seq-17", "no").confirmed_seq(), None);
    assert_eq!(Ack::ok("seq-").confirmed_seq(), None);
    assert_eq!(Ack::ok("17").confirmed_seq(), None);
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let run = RunBackup {
        upload_creds: Some(UploadCreds {
            put_url: Secret::new("https://h/o?X-Amz-Signature=abc"),
            expires_at_ms: 0,
            object_key: "o".into(),
        }),
        encrypted_dek: SecretBytes::new([7; 32]),
        ..Default::default()
    };
    let shown = format!("{run:?}");
    assert!(!shown.contains("Amz") && !shown.contains("7, 7"), "{shown}");
}
