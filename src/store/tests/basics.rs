//! Reading back, keys, locks, permissions, footprint.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
fn what_was_committed_is_read_back_after_a_close_and_after_a_drop() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let id = store.id().to_owned();
    assert_eq!(id.len(), 32);
    let mut batch = store.batch();
    batch.put(Space::Runs, *b"r1", *b"one");
    batch.put(Space::Outbox, *b"r1", *b"two");
    batch.put(Space::Outbox, *b"gone", *b"x");
    batch.delete(Space::Outbox, *b"gone");
    store.commit(batch).unwrap();
    store.close().unwrap();

    let store = open(dir.path()).unwrap();
    assert_eq!(store.id(), id);
    assert_eq!(get(&store, Space::Runs, b"r1").unwrap(), b"one");
    assert_eq!(all(&store, Space::Outbox), [(b"r1".to_vec(), b"two".to_vec())]);
    put(&store, Space::Runs, b"r1", b"three").unwrap();
    drop(store);
    let store = open(dir.path()).unwrap();
    assert_eq!(get(&store, Space::Runs, b"r1").unwrap(), b"three");
    assert_eq!(get(&store, Space::Runs, b"r2"), None);
}

#[test]
fn a_scan_is_in_order_over_many_pages_and_may_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let mut batch = store.batch();
    for i in 0..1000u32 {
        batch.put(Space::Runs, i.to_be_bytes(), vec![7; 3000]);
    }
    store.commit(batch).unwrap();
    let mut next = 10u32;
    store
        .scan(Space::Runs, &next.to_be_bytes(), &mut |key, value| {
            assert_eq!(key, next.to_be_bytes());
            assert_eq!(value.len(), 3000);
            let mut batch = store.batch();
            batch.delete(Space::Runs, key);
            if next.is_multiple_of(100) {
                store.commit(batch).unwrap();
            }
            next += 1;
            if next == 900 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(next, 900);
    assert_eq!(all(&store, Space::Runs).len(), 992);
}

#[test]
fn a_second_opening_is_refused_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { pid, .. } if pid == std::process::id()));
    assert!(error.to_string().contains(&std::process::id().to_string()));
    assert!(set_aside(dir.path(), 1).is_err(), "reset asks for the lock as well");
    store.close().unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn a_closed_store_says_so_to_its_clones() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let clone = store.clone();
    store.close().unwrap();
    assert!(matches!(put(&clone, Space::Runs, b"r", b""), Err(StoreError::Closed)));
    assert!(matches!(clone.get(Space::Runs, b"r"), Err(StoreError::Closed)));
}

#[test]
fn another_key_is_refused_and_the_previous_one_moves_the_store_to_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let spaces = [Space::Runs];
    let store = Store::open(dir.path(), &spaces, &keys("old")).unwrap();
    put(&store, Space::Runs, b"r", b"v").unwrap();
    store.close().unwrap();

    let refused = Store::open(dir.path(), &spaces, &keys("new")).unwrap_err();
    assert!(matches!(refused, StoreError::WrongKey { .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains(&dir.path().display().to_string()));
    assert!(text.contains("BACKUPY_AGENT_KEY_PREVIOUS") && text.contains("reset"));
    let neither = StoreKeys { current: Secret::new("x"), previous: Some(Secret::new("y")) };
    let refused = Store::open(dir.path(), &spaces, &neither).unwrap_err();
    assert!(matches!(refused, StoreError::WrongKey { .. }), "{refused}");

    let rotating = StoreKeys { current: Secret::new("new"), previous: Some(Secret::new("old")) };
    let store = Store::open(dir.path(), &spaces, &rotating).unwrap();
    assert_eq!(get(&store, Space::Runs, b"r").unwrap(), b"v");
    store.close().unwrap();
    let store = Store::open(dir.path(), &spaces, &keys("new")).unwrap();
    assert_eq!(get(&store, Space::Runs, b"r").unwrap(), b"v");
    store.close().unwrap();
    let old = Store::open(dir.path(), &spaces, &keys("old")).unwrap_err();
    assert!(matches!(old, StoreError::WrongKey { .. }));
}

#[test]
fn spaces_may_be_added_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), &[Space::Runs], &keys("k")).unwrap();
    put(&store, Space::Runs, b"r", b"v").unwrap();
    assert!(matches!(
        put(&store, Space::Outbox, b"o", b"v"),
        Err(StoreError::Refused { space: Space::Outbox, .. })
    ));
    store.close().unwrap();
    let store = Store::open(dir.path(), &[Space::Outbox], &keys("k")).unwrap();
    put(&store, Space::Outbox, b"o", b"v").unwrap();
    // More than the journal keeps before it is emptied; the records of the others must not go with it.
    for i in 0..64u8 {
        put(&store, Space::Outbox, &[b'x', i], &[i; 60_000]).unwrap();
    }
    store.close().unwrap();
    let store = Store::open(dir.path(), &Space::ALL, &keys("k")).unwrap();
    assert_eq!(get(&store, Space::Runs, b"r").unwrap(), b"v");
    assert_eq!(get(&store, Space::Outbox, b"o").unwrap(), b"v");
}

#[test]
fn reserved_and_oversized_records_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for (space, key, value) in [
        (Space::Meta, b"store/key".to_vec(), vec![]),
        (Space::Runs, vec![], vec![]),
        (Space::Runs, vec![0; MAX_KEY_BYTES + 1], vec![]),
        (Space::Runs, vec![1], vec![0; MAX_VALUE_BYTES + 1]),
    ] {
        let mut batch = store.batch();
        batch.put(Space::Runs, *b"with it", *b"");
        batch.put(space, key, value);
        assert!(matches!(store.commit(batch), Err(StoreError::Refused { .. })));
    }
    assert_eq!(get(&store, Space::Runs, b"with it"), None);
    assert_eq!(all(&store, Space::Meta), [], "the store's own records are not shown");
    assert_eq!(
        put(&store, Space::Runs, b"big", &vec![5; MAX_VALUE_BYTES]).map_err(|e| e.to_string()),
        Ok(())
    );
}

#[test]
fn the_directory_is_private_and_no_value_lies_in_it_in_the_clear() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("deep/state");
    let store = open(&dir).unwrap();
    let secret = b"correct horse battery staple";
    put(&store, Space::Config, b"c", secret).unwrap();
    store.close().unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    let mut files = vec![dir.clone()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let bytes = fs::read(&path).unwrap();
            for needle in [secret.as_slice(), b"bkpy_test_a"] {
                let found = bytes.windows(needle.len()).any(|window| window == needle);
                assert!(!found, "{}", path.display());
            }
        }
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    open(&dir).unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700, "made private again");
}

#[test]
fn a_place_that_is_not_ours_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(open(&file), Err(StoreError::NotOurs { .. })));
    let shared = root.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let used = root.path().join("used");
    fs::create_dir(&used).unwrap();
    fs::set_permissions(&used, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(used.join("somebody's"), "data").unwrap();
    let refused = open(&used).unwrap_err();
    assert!(matches!(refused, StoreError::NotOurs { .. }), "{refused}");
    assert_eq!(fs::metadata(&used).unwrap().mode() & 0o777, 0o755, "left as it was");
    fs::set_permissions(&used, fs::Permissions::from_mode(0o700)).unwrap();
    open(&used).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(matches!(open(&shared), Err(StoreError::NotOurs { .. })));
    assert_eq!(fs::metadata(&shared).unwrap().mode() & 0o7777, 0o1777, "left as it was");
}

#[test]
fn a_directory_stays_small_however_much_goes_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let fresh = store.disk_bytes();
    let mut most = 0;
    for i in 0..60u64 {
        let mut batch = store.batch();
        for j in 0..100u64 {
            batch.put(Space::Outbox, (i * 100 + j).to_be_bytes(), vec![3; 2000]);
        }
        store.commit(batch).unwrap();
        let mut batch = store.batch();
        for j in 0..100u64 {
            batch.delete(Space::Outbox, (i * 100 + j).to_be_bytes());
        }
        store.commit(batch).unwrap();
        most = most.max(store.disk_bytes());
    }
    assert!(fresh < 4 << 20, "{fresh}");
    assert!(most < 8 << 20, "12 MB went through and left {most}");
    put(&store, Space::Runs, b"r", b"still here").unwrap();
    store.close().unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(all(&store, Space::Outbox), []);
    assert_eq!(get(&store, Space::Runs, b"r").unwrap(), b"still here");
}

#[test]
fn the_records_can_be_shown_with_and_without_their_values() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Space::Runs, b"r1", br#"{"state":"done"}"#).unwrap();
    put(&store, Space::Outbox, &[0, 1], &[0xff, b'a']).unwrap();
    let show = |secrets| {
        let mut lines = Vec::new();
        store
            .walk(&mut |record| {
                lines.push(record.to_json(secrets).to_string());
                ControlFlow::Continue(())
            })
            .unwrap();
        lines
    };
    assert_eq!(
        show(true),
        [
            r#"{"key":"r1","size_bytes":16,"space":"runs","value":{"state":"done"}}"#,
            r#"{"key":"\\x00\\x01","size_bytes":2,"space":"outbox","value":"\\xffa"}"#,
        ]
    );
    assert!(!show(false).concat().contains("value"));
}

#[test]
fn reset_moves_the_state_aside_and_deletes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("state");
    let store = open(&dir).unwrap();
    let id = store.id().to_owned();
    put(&store, Space::Runs, b"r", b"v").unwrap();
    highwater::Highwater { store_id: id.clone(), ..Default::default() }.save(&dir).unwrap();
    store.close().unwrap();
    fs::write(dir.join("master.key"), b"not the store's").unwrap();

    let aside = set_aside(&dir, 1234).unwrap();
    assert_eq!(aside, root.path().join("state.damaged-1234"));
    assert!(dir.join("master.key").exists());
    let store = open(&dir).unwrap();
    assert_ne!(store.id(), id);
    assert_eq!(get(&store, Space::Runs, b"r"), None);
    let old = open(&aside).unwrap();
    assert_eq!((old.id(), get(&old, Space::Runs, b"r").unwrap()), (id.as_str(), b"v".to_vec()));
}

#[test]
fn a_directory_in_use_is_told_from_a_free_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!super::super::is_in_use(dir.path()));
    let lock = super::super::files::Lock::acquire(dir.path()).unwrap();
    assert!(super::super::is_in_use(dir.path()));
    drop(lock);
    assert!(!super::super::is_in_use(dir.path()));
}
