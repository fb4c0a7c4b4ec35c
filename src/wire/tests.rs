//! The numbers on the wire, round trips, and tolerance for what another version may send.

use super::*;
use crate::model::{
    AgentConfig, Engine, Job, Multipart, PartUrl, RetryPolicy, Target, UploadCreds, Way,
};
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
    assert_eq!(agent(AgentMessage::PartUrlsRequest(PartUrlsRequest::default())), 101);
    assert_eq!(server(ServerMessage::PartUrls(PartUrls::default())), 150);
}

fn multipart() -> Multipart {
    let part = |number| PartUrl {
        number,
        url: Secret::new(format!("https://h/o?partNumber={number}&Amz")),
    };
    Multipart {
        upload_id: "u".into(),
        part_size_bytes: 8 << 20,
        parts: vec![part(1), part(2)],
        complete_url: Secret::new("https://h/o?c&Amz"),
        abort_url: Secret::new("https://h/o?a&Amz"),
        expires_at_ms: 5,
    }
}

#[test]
fn a_multipart_upload_survives_the_round_trip_and_shows_no_secret() {
    let creds = UploadCreds { multipart: Some(multipart()), ..UploadCreds::default() };
    let run = RunBackup { upload_creds: Some(creds), ..RunBackup::default() };
    let answer = PartUrls {
        run_id: "r".into(),
        upload_id: "u".into(),
        parts: multipart().parts,
        error: "e".into(),
    };
    for message in [ServerMessage::RunBackup(run), ServerMessage::PartUrls(answer)] {
        assert!(!format!("{message:?}").contains("Amz"), "{message:?}");
        let bytes = encode_server(Header::default(), message.clone());
        assert_eq!(decode_server(&bytes).unwrap().1, message);
    }
    let request = AgentMessage::PartUrlsRequest(PartUrlsRequest {
        run_id: "r".into(),
        upload_id: "u".into(),
        first_part: 3,
        count: 4,
    });
    let bytes = encode_agent(Header::default(), request.clone());
    assert_eq!(decode_agent(&bytes).unwrap().1, request);
}

#[test]
fn the_numbers_of_a_multipart_upload() {
    let creds = UploadCreds { multipart: Some(multipart()), ..UploadCreds::default() };
    let run = RunBackup { upload_creds: Some(creds), ..RunBackup::default() };
    let bytes = encode_server(Header::default(), ServerMessage::RunBackup(run));
    let url = |text: &[u8], field: u8| [&[field << 3 | 2, text.len() as u8], text].concat();
    let part = |number: u8| {
        let text = format!("https://h/o?partNumber={number}&Amz");
        let inside = [vec![1 << 3, number], url(text.as_bytes(), 2)].concat();
        url(&inside, 3)
    };
    let expected = [
        url(b"u", 1),
        vec![2 << 3, 0x80, 0x80, 0x80, 0x04],
        part(1),
        part(2),
        url(b"https://h/o?c&Amz", 4),
        url(b"https://h/o?a&Amz", 5),
        vec![6 << 3, 5],
    ]
    .concat();
    // Key of field 100 and one byte of length.
    let at = bytes.windows(2).position(|two| two == [0xa2, 0x06]).unwrap();
    assert_eq!(bytes[at + 3..], expected);
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
                globals_only: true,
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
            ..UploadCreds::default()
        }),
        encrypted_dek: SecretBytes::new([7; 32]),
        ..Default::default()
    };
    let shown = format!("{run:?}");
    assert!(!shown.contains("Amz") && !shown.contains("7, 7"), "{shown}");
}
