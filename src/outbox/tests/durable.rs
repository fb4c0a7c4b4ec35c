//! The outbox over a real store: order, restarts, both ways of confirming, bounds, numbers.

use super::*;
use crate::wire::decode_agent;

fn outbox(dir: &Path, limits: OutboxLimits) -> Outbox {
    Outbox::open(store(dir), limits).unwrap()
}

fn publish(outbox: &Outbox, messages: Vec<Message>) {
    outbox.publish(crate::store::Batch::new(), messages).unwrap();
}

/// Sends all there is, numbering from `seq`; returns what was sent as a word for each.
fn drain(session: &Session, seq: &mut u64) -> Vec<String> {
    let mut words = Vec::new();
    while let Some(out) = session.next().unwrap() {
        *seq += 1;
        session.sent(out.entry_id, *seq);
        words.push(word(&out.stored));
    }
    words
}

fn word(stored: &[u8]) -> String {
    match decode_agent(stored).unwrap().1 {
        AgentMessage::JobUpdate(m) => format!("end {}", m.run_id),
        AgentMessage::BackupCompleted(m) => format!("completed {}", m.run_id),
        AgentMessage::Log(m) => m.message,
        AgentMessage::HealthResult(m) => m.check_id,
        AgentMessage::Ack(m) => format!("ack {}", m.correlation_id),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_publish_is_one_batch_with_the_callers_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let outbox = Outbox::open(store.clone(), OutboxLimits::default()).unwrap();
    assert!(outbox.ready().is_empty());
    let mut batch = store.batch();
    batch.put(Space::Runs, *b"r1", *b"done");
    outbox.publish(batch, vec![completed("r1"), terminal("r1")]).unwrap();
    assert_eq!(outbox.ready().len(), 1, "the writer is woken");
    assert_eq!((outbox.depth(), outbox.undelivered_results()), (2, 1));
    assert_eq!(outbox.last_entry_id(), 2);

    let big = line(&"x".repeat(MAX_STORED_BYTES));
    let mut batch = store.batch();
    batch.put(Space::Runs, *b"r2", *b"done");
    let refused = outbox.publish(batch, vec![terminal("r2"), big]).unwrap_err();
    assert!(matches!(refused, OutboxError::TooLarge { .. }));
    assert_eq!(store.get(Space::Runs, b"r2").unwrap(), None, "all or nothing");
    assert_eq!(outbox.depth(), 2);
}

#[test]
fn with_durable_acks_entries_go_once_they_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = outbox(dir.path(), OutboxLimits::default());
    publish(&outbox, vec![completed("r1"), terminal("r1"), line("a")]);
    let session = outbox.begin_session(true);
    let mut seq = 100;
    assert_eq!(drain(&session, &mut seq), ["completed r1", "end r1", "a"]);
    assert_eq!(session.ping_due(), None, "no pings where storage is confirmed");
    session.acked(100);
    assert_eq!(outbox.depth(), 3, "nothing that was sent is confirmed by that");
    session.acked(102);
    assert_eq!((outbox.depth(), outbox.undelivered_results()), (1, 0));
    assert!(!session.settled());
    session.pong(1);
    assert_eq!(outbox.depth(), 1, "a pong proves nothing here");
    session.acked(9999);
    assert_eq!(outbox.depth(), 0);
    assert!(session.settled());
    assert_eq!(outbox.last_entry_id(), 3);
}

#[test]
fn unconfirmed_entries_are_sent_again_in_order_after_a_reconnect_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut seq = 0;
    {
        let outbox = outbox(dir.path(), OutboxLimits::default());
        publish(&outbox, vec![line("a"), line("b"), line("c")]);
        let first = outbox.begin_session(true);
        assert_eq!(drain(&first, &mut seq), ["a", "b", "c"]);
        first.acked(1);
        let second = outbox.begin_session(true);
        assert_eq!(drain(&second, &mut seq), ["b", "c"]);
        first.acked(1000);
        assert_eq!(first.next().unwrap(), None);
        assert_eq!(outbox.depth(), 2, "an old session has no say");
        second.acked(4);
    }
    let outbox = outbox(dir.path(), OutboxLimits::default());
    assert_eq!((outbox.depth(), outbox.last_entry_id()), (1, 3));
    publish(&outbox, vec![line("d")]);
    assert_eq!(outbox.last_entry_id(), 4);
    let third = outbox.begin_session(true);
    assert_eq!(drain(&third, &mut seq), ["c", "d"]);
}

#[test]
fn ids_are_never_given_twice_not_even_when_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    {
        let outbox = outbox(dir.path(), OutboxLimits::default());
        publish(&outbox, vec![line("a"), line("b")]);
        let session = outbox.begin_session(true);
        drain(&session, &mut 0);
        session.acked(2);
        assert_eq!(outbox.depth(), 0);
    }
    let outbox = outbox(dir.path(), OutboxLimits::default());
    assert_eq!(outbox.last_entry_id(), 2);
    publish(&outbox, vec![line("c")]);
    let session = outbox.begin_session(true);
    assert_eq!(session.next().unwrap().unwrap().entry_id, 3);
}

#[test]
fn with_pongs_a_result_goes_twice_and_everything_else_once() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = outbox(dir.path(), OutboxLimits::default());
    publish(&outbox, vec![completed("r1"), terminal("r1"), line("a")]);
    let mut seq = 0;
    let first = outbox.begin_session(false);
    assert_eq!(drain(&first, &mut seq).len(), 3);
    assert_eq!(first.ping_due(), Some(1));
    assert_eq!(first.ping_due(), None, "one ping covers all that was sent");
    first.acked(1000);
    first.pong(2);
    assert_eq!(outbox.depth(), 3, "neither an ack nor a pong to a ping that was never sent");
    first.pong(1);
    assert_eq!((outbox.depth(), outbox.undelivered_results()), (0, 0));
    assert!(first.settled());
    assert_eq!(drain(&first, &mut seq), [""; 0], "not again in this session");

    let second = outbox.begin_session(false);
    assert_eq!(drain(&second, &mut seq), ["completed r1", "end r1"]);
    assert_eq!(second.ping_due(), Some(1));
    let third = outbox.begin_session(false);
    assert_eq!(drain(&third, &mut seq), ["completed r1", "end r1"], "the second time was cut off");
    assert_eq!(third.ping_due(), Some(1));
    third.pong(1);
    let fourth = outbox.begin_session(false);
    assert_eq!(drain(&fourth, &mut seq), [""; 0]);
}

#[test]
fn that_a_result_was_received_once_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut seq = 0;
    {
        let outbox = outbox(dir.path(), OutboxLimits::default());
        publish(&outbox, vec![terminal("r1"), terminal("r2")]);
        let session = outbox.begin_session(false);
        let out = session.next().unwrap().unwrap();
        session.sent(out.entry_id, 1);
        let counter = session.ping_due().unwrap();
        session.pong(counter);
    }
    {
        let outbox = outbox(dir.path(), OutboxLimits::default());
        assert_eq!((outbox.depth(), outbox.undelivered_results()), (1, 1));
        let session = outbox.begin_session(false);
        assert_eq!(drain(&session, &mut seq), ["end r1", "end r2"]);
        let counter = session.ping_due().unwrap();
        session.pong(counter);
    }
    let store = store(dir.path());
    let outbox = Outbox::open(store.clone(), OutboxLimits::default()).unwrap();
    let session = outbox.begin_session(false);
    assert_eq!(drain(&session, &mut seq), ["end r2"]);
    let counter = session.ping_due().unwrap();
    session.pong(counter);
    let mut left = 0;
    store
        .scan(Space::Outbox, &[], &mut |_, _| {
            left += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(left, 0, "marks go with their entries");
}

#[test]
fn results_that_wait_for_another_session_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let limits = OutboxLimits { repeats: 3, ..OutboxLimits::default() };
    let outbox = outbox(dir.path(), limits);
    let session = outbox.begin_session(false);
    let mut seq = 0;
    for i in 0..10 {
        publish(&outbox, vec![terminal(&format!("r{i}"))]);
        drain(&session, &mut seq);
        let counter = session.ping_due().unwrap();
        session.pong(counter);
        assert_eq!(outbox.undelivered_results(), 0);
    }
    let next = outbox.begin_session(false);
    assert_eq!(drain(&next, &mut seq), ["end r7", "end r8", "end r9"]);
}

#[test]
fn in_flight_is_bounded_in_entries_and_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let limits = OutboxLimits { in_flight: 3, in_flight_bytes: 500, ..OutboxLimits::default() };
    let outbox = outbox(dir.path(), limits);
    publish(&outbox, (0..5).map(|i| line(&i.to_string())).collect());
    publish(&outbox, vec![line(&"x".repeat(1000)), line("last")]);
    let session = outbox.begin_session(true);
    let mut seq = 0;
    assert_eq!(drain(&session, &mut seq), ["0", "1", "2"]);
    while outbox.ready().try_recv().is_ok() {}
    session.acked(2);
    assert_eq!(outbox.ready().len(), 1, "room wakes the writer");
    assert_eq!(drain(&session, &mut seq), ["3", "4"]);
    session.acked(4);
    assert_eq!(drain(&session, &mut seq), [""; 0], "the large one waits until nothing else flies");
    session.acked(5);
    assert_eq!(drain(&session, &mut seq).len(), 1, "and then goes all the same");
    session.acked(6);
    assert_eq!(drain(&session, &mut seq), ["last"]);
}

#[test]
fn when_full_the_least_important_and_oldest_go_first_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let limits = OutboxLimits { entries: 6, ..OutboxLimits::default() };
    let box_ = outbox(dir.path(), limits);
    publish(&box_, vec![health("h1"), line("l1"), ack("a1"), terminal("r1"), line("l2")]);
    publish(&box_, vec![health("h2")]);
    publish(&box_, vec![terminal("r2")]);
    assert_eq!(box_.dropped(), Dropped { logs: 1, ..Dropped::default() });
    publish(&box_, vec![health("h3"), terminal("r3")]);
    assert_eq!(box_.dropped(), Dropped { logs: 2, health: 1, acks: 0 });
    publish(&box_, vec![line("l3")]);
    assert_eq!(box_.dropped(), Dropped { logs: 3, health: 1, acks: 0 }, "itself the least");
    let session = box_.begin_session(true);
    let mut seq = 0;
    assert_eq!(drain(&session, &mut seq), ["ack a1", "end r1", "h2", "end r2", "h3", "end r3"]);
    publish(&box_, (4..9).map(|i| terminal(&format!("r{i}"))).collect());
    assert_eq!(box_.dropped(), Dropped { logs: 3, health: 3, acks: 1 });
    assert_eq!(box_.undelivered_results(), 8, "results never");
    publish(&box_, vec![ack("a2"), terminal("r9"), health("h4")]);
    assert_eq!(box_.dropped(), Dropped { logs: 3, health: 4, acks: 2 });
    session.acked(seq);
    assert_eq!(drain(&session, &mut seq).len(), 6, "what was dropped in flight confirms nothing");
    drop((box_, session));
    let again = outbox(dir.path(), limits);
    assert_eq!(again.dropped(), Dropped { logs: 3, health: 4, acks: 2 }, "the count is durable");
    assert_eq!(again.undelivered_results(), 6);
}

#[test]
fn the_bound_holds_in_bytes_too() {
    let dir = tempfile::tempdir().unwrap();
    let limits = OutboxLimits { bytes: 10_000, ..OutboxLimits::default() };
    let outbox = outbox(dir.path(), limits);
    for i in 0..50 {
        publish(&outbox, vec![line(&format!("{i} {}", "x".repeat(900)))]);
    }
    assert!((9..=10).contains(&outbox.depth()), "{}", outbox.depth());
    let session = outbox.begin_session(true);
    let words = drain(&session, &mut 0);
    assert!(words.last().unwrap().starts_with("49 ") && words[0].as_str() > "39");
}

#[test]
fn a_store_that_fails_costs_repeats_and_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = store(dir.path());
        let outbox = Outbox::open(store.clone(), OutboxLimits::default()).unwrap();
        publish(&outbox, vec![line("a"), terminal("r1")]);
        let session = outbox.begin_session(true);
        assert_eq!(drain(&session, &mut 0).len(), 2);
        store.close().unwrap();
        let refused = outbox.publish(crate::store::Batch::new(), vec![line("b")]).unwrap_err();
        assert!(matches!(refused, OutboxError::Store(StoreError::Closed)) && !refused.retry());
        assert_eq!(outbox.depth(), 2, "what was not stored does not wait");
        session.acked(2);
        assert_eq!(outbox.depth(), 0);
        let id = outbox.last_entry_id();
        assert_eq!(id, 3, "an id that was given to a failed write is not given again");
    }
    let outbox = outbox(dir.path(), OutboxLimits::default());
    let session = outbox.begin_session(true);
    assert_eq!(drain(&session, &mut 0), ["a", "end r1"]);
}

#[test]
fn entries_that_make_no_sense_are_an_error_at_the_start_and_stop_nobody_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let outbox = Outbox::open(store.clone(), OutboxLimits::default()).unwrap();
    publish(&outbox, vec![line("a"), line("b"), line("c")]);
    let mut batch = store.batch();
    let mut key = vec![b'e'];
    key.extend(2u64.to_be_bytes());
    batch.put(Space::Outbox, key, *b"nonsense");
    store.commit(batch).unwrap();
    let session = outbox.begin_session(true);
    assert_eq!(drain(&session, &mut 0), ["a", "c"]);
    let error = Outbox::open(store, OutboxLimits::default()).err().unwrap();
    assert!(matches!(error, OutboxError::Entry { entry_id: 2 }), "{error}");
}

#[test]
fn seq_only_rises_over_restarts_and_clocks_that_are_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let now = 1_800_000_000_000u64;
    let mut last = 0;
    for now_ms in [now, now - 86_400_000, 0, now + 1, now] {
        let store = store(dir.path());
        let counter = SeqCounter::open(store.clone(), now_ms).unwrap();
        for _ in 0..70_000 {
            let seq = counter.next();
            assert!(seq > last && seq > now_ms << 20, "{seq} after {last}");
            last = seq;
        }
        // No close: what was set aside must do.
        drop(counter);
        drop(store);
    }
}
