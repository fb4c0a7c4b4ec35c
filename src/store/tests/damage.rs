//! One kind of damage after the other: each is an error that names the directory, none is taken for an empty store.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;

/// A closed store with a history: tables, and a journal with three batches behind them.
fn history(dir: &Path) -> String {
    let store = open(dir).unwrap();
    let id = store.id().to_owned();
    for i in 0..40u8 {
        let mut batch = store.batch();
        batch.put(Space::Runs, [b'r', i], vec![i; 60_000]);
        batch.put(Space::Outbox, [b'e', i], *b"entry");
        batch.put(Space::Meta, [b'm', i], *b"meta");
        store.commit(batch).unwrap();
    }
    for i in 0..3u8 {
        put(&store, Space::Runs, &[b's', i], &[i; 5000]).unwrap();
    }
    store.close().unwrap();
    id
}

fn journal(dir: &Path) -> PathBuf {
    let journals = check::journal_files(&dir.join(files::DATABASE)).unwrap();
    journals.last().unwrap().1.clone()
}

#[track_caller]
fn refused(dir: &Path) -> String {
    let before = listing(dir);
    let error = open(dir).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Damaged { .. }), "{text}");
    assert!(!error.retry());
    assert!(text.contains(&dir.display().to_string()), "{text}");
    assert!(text.contains("backupy reset"), "{text}");
    assert_eq!(listing(dir), before, "a refusal changes nothing");
    let again = open(dir).unwrap_err();
    assert!(
        matches!(again, StoreError::Damaged { .. }),
        "and a second one finds the same: {again}"
    );
    text
}

fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.file_name().is_some_and(|name| name != files::LOCK) {
            found.push((path, meta.len()));
        }
    }
    found.sort();
    found
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn a_lost_database_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    fs::remove_dir_all(dir.path().join(files::DATABASE)).unwrap();
    assert!(refused(dir.path()).contains("gone"));
    fs::create_dir(dir.path().join(files::DATABASE)).unwrap();
    assert!(refused(dir.path()).contains("gone"), "emptied");
}

#[test]
fn a_database_that_lost_everything_but_the_high_water_file_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let store_id = history(dir.path());
    highwater::Highwater { store_id, ..Default::default() }.save(dir.path()).unwrap();
    fs::remove_dir_all(dir.path().join(files::DATABASE)).unwrap();
    fs::remove_file(dir.path().join(files::MARKER)).unwrap();
    assert!(refused(dir.path()).contains("high-water"));
}

#[test]
fn another_database_in_its_place_is_noticed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    history(dir.path());
    history(other.path());
    for name in [files::DATABASE, files::CLEAN] {
        let (here, there) = (dir.path().join(name), other.path().join(name));
        if here.is_dir() {
            fs::remove_dir_all(&here).unwrap();
        }
        fs::rename(there, here).unwrap();
    }
    assert!(matches!(
        open(dir.path()),
        Err(StoreError::Damaged { .. } | StoreError::WrongKey { .. })
    ));
}

#[test]
fn a_keyspace_that_lost_its_current_file_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let root = dir.path().join(files::DATABASE).join("keyspaces");
    for number in 0..=5u8 {
        let current = root.join(number.to_string()).join("current");
        let bytes = fs::read(&current).unwrap();
        fs::remove_file(&current).unwrap();
        assert!(refused(dir.path()).contains("current"), "keyspace {number}");
        fs::write(&current, bytes).unwrap();
    }
    let lost = root.join("3");
    let aside = dir.path().join("elsewhere");
    fs::rename(&lost, &aside).unwrap();
    refused(dir.path());
    fs::rename(&aside, &lost).unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn a_lost_version_file_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    fs::remove_file(dir.path().join(files::DATABASE).join("version")).unwrap();
    refused(dir.path());
    fs::remove_file(dir.path().join(files::MARKER)).unwrap();
    assert!(refused(dir.path()).contains("version"), "without the marker as well");
}

#[test]
fn a_lost_journal_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let journal = journal(dir.path());
    let bytes = fs::read(&journal).unwrap();
    fs::remove_file(&journal).unwrap();
    assert!(refused(dir.path()).contains("journal"));
    fs::write(&journal, b"").unwrap();
    refused(dir.path());
    fs::write(&journal, &bytes[..bytes.len() / 2]).unwrap();
    refused(dir.path());
    fs::write(&journal, &bytes).unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(all(&store, Space::Runs).len(), 43);
}

#[test]
fn every_changed_byte_of_the_journal_is_noticed_after_a_clean_close() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let journal = journal(dir.path());
    let bytes = fs::read(&journal).unwrap();
    let Ok(journal::Verdict::Whole { end }) = journal::check(&journal) else { panic!() };
    for at in (0..end).step_by(487).chain([0, 1, 4, end - 1, end - 12]) {
        let old = bytes[usize::try_from(at).unwrap()];
        overwrite(&journal, at, &[old ^ 0x20]);
        refused(dir.path());
        overwrite(&journal, at, &[old]);
    }
    overwrite(&journal, 4096, &[0; 4096]);
    refused(dir.path());
    overwrite(&journal, 4096, &bytes[4096..8192]);
    open(dir.path()).unwrap();
}

#[test]
fn damage_in_the_middle_is_noticed_after_a_crash_and_a_torn_end_is_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    // As after a kill: nothing says how the journal ended.
    fs::remove_file(dir.path().join(files::CLEAN)).unwrap();
    let journal = journal(dir.path());
    let bytes = fs::read(&journal).unwrap();
    overwrite(&journal, 100, &[0xff; 16]);
    refused(dir.path());
    fs::write(&journal, &bytes[..bytes.len() - 7]).unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(all(&store, Space::Runs).len(), 42, "only the batch that was not whole is gone");
    put(&store, Space::Runs, b"t", b"goes on").unwrap();
    store.close().unwrap();
    assert_eq!(all(&open(dir.path()).unwrap(), Space::Runs).len(), 43);
}

/// Sectors reach a card in any order: the last batch can have its end and lack its middle.
#[test]
fn a_hole_in_the_last_batch_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    fs::remove_file(dir.path().join(files::CLEAN)).unwrap();
    let journal = journal(dir.path());
    let Ok(journal::Verdict::Whole { end }) = journal::check(&journal) else { panic!() };
    overwrite(&journal, end - 2000, &[0; 512]);
    let store = open(dir.path()).unwrap();
    assert_eq!(all(&store, Space::Runs).len(), 42, "only the batch that was not whole is gone");
    put(&store, Space::Runs, b"t", b"goes on").unwrap();
    store.close().unwrap();
    assert_eq!(all(&open(dir.path()).unwrap(), Space::Runs).len(), 43);
}

#[test]
fn a_huge_length_in_the_journal_does_not_end_the_process() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    fs::remove_file(dir.path().join(files::CLEAN)).unwrap();
    let journal = journal(dir.path());
    // Both lengths of the first item of the first batch.
    overwrite(&journal, 13 + 13, &[0xff; 8]);
    refused(dir.path());
}

#[test]
fn changed_tables_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let mut tables: Vec<PathBuf> = listing(dir.path())
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| path.parent().is_some_and(|dir| dir.ends_with("tables")))
        .collect();
    tables.retain(|path| fs::metadata(path).unwrap().len() > 100_000);
    assert!(!tables.is_empty(), "the history is long enough for tables");
    let table = &tables[0];
    let bytes = fs::read(table).unwrap();
    for at in [200, bytes.len() / 2, bytes.len() - 300] {
        overwrite(table, at as u64, &[bytes[at] ^ 1]);
        let read = open(dir.path())
            .and_then(|store| store.scan(Space::Runs, &[], &mut |_, _| ControlFlow::Continue(())));
        let error = read.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "byte {at}: {error}");
        overwrite(table, at as u64, &[bytes[at]]);
    }
    fs::rename(table, dir.path().join("elsewhere")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn a_changed_or_foreign_marker_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let id = history(dir.path());
    let path = dir.path().join(files::MARKER);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    refused(dir.path());
    fs::write(&path, text.replace(&id, "00000000000000000000000000000000")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    fs::write(&path, text.replace("\"schema\": 1", "\"schema\": 7")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 7, .. }), "{error}");
    fs::remove_file(&path).unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(store.id(), id, "a marker alone can be made again");
    assert!(path.exists());
}

#[test]
fn strange_things_in_the_engines_directory_are_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let strange = dir.path().join(files::DATABASE).join("keyspaces/lost+found");
    fs::create_dir(&strange).unwrap();
    assert!(refused(dir.path()).contains("lost+found"));
    fs::remove_dir(&strange).unwrap();
    let strange = dir.path().join(files::DATABASE).join("keyspaces/link");
    std::os::unix::fs::symlink("/nowhere", &strange).unwrap();
    assert!(refused(dir.path()).contains("link"));
    fs::remove_file(&strange).unwrap();
    let strange = dir.path().join(files::DATABASE).join("99.jnl");
    fs::create_dir(&strange).unwrap();
    refused(dir.path());
    fs::remove_dir(&strange).unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn swapped_records_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Space::Runs, b"a", b"one").unwrap();
    put(&store, Space::Runs, b"b", b"two").unwrap();
    put(&store, Space::Outbox, b"a", b"three").unwrap();
    {
        let engine = store.0.engine.read().unwrap();
        let engine = engine.as_ref().unwrap();
        let raw = |space, key: &[u8]| engine.get(space, key).unwrap().unwrap();
        let swap = [
            Op::Put(Space::Runs, b"a".to_vec(), raw(Space::Runs, b"b")),
            Op::Put(Space::Outbox, b"a".to_vec(), raw(Space::Runs, b"a")),
        ];
        engine.commit(&swap).unwrap();
    }
    for (space, key) in [(Space::Runs, b"a"), (Space::Outbox, b"a")] {
        let error = store.get(space, key).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(&format!("record `a` of `{space}`")), "{error}");
    }
    let walk = store.walk(&mut |_| ControlFlow::Continue(()));
    assert!(matches!(walk, Err(StoreError::Damaged { .. })));
    assert_eq!(get(&store, Space::Runs, b"b").unwrap(), b"two");
}

#[test]
fn a_lost_key_record_is_not_replaced_by_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Space::Runs, b"a", b"one").unwrap();
    {
        let engine = store.0.engine.read().unwrap();
        let engine = engine.as_ref().unwrap();
        engine.commit(&[Op::Delete(Space::Meta, b"store/key".to_vec())]).unwrap();
    }
    store.close().unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    fs::remove_file(dir.path().join(files::MARKER)).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "without the marker as well: {error}");
}

#[test]
fn what_is_left_of_a_damaged_store_can_be_shown_without_touching_it() {
    let dir = tempfile::tempdir().unwrap();
    history(dir.path());
    let journal = journal(dir.path());
    fs::remove_file(dir.path().join(files::CLEAN)).unwrap();
    overwrite(&journal, 20, &[0xff; 4]);
    refused(dir.path());
    let before = listing(dir.path());
    let show = |keys: &StoreKeys| {
        let (mut whole, mut damaged) = (0, 0);
        salvage(dir.path(), keys, &mut |record| {
            let json = record.to_json(false);
            *(if json["damaged"] == true { &mut damaged } else { &mut whole }) += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        (whole, damaged)
    };
    let (whole, damaged) = show(&keys("bkpy_test_a"));
    // The wrapped key itself is not sealed like the others.
    assert!(whole > 100 && damaged == 1, "{whole} and {damaged}");
    let (whole_with_wrong_key, all) = show(&keys("wrong"));
    assert_eq!((whole_with_wrong_key, all), (0, whole + 1), "keys and sizes at least");
    assert_eq!(listing(dir.path()), before);
    let store = Store::open(&dir.path().join("other"), &Space::AGENT, &keys("k")).unwrap();
    assert!(salvage(store.dir(), &keys("k"), &mut |_| ControlFlow::Break(())).is_err(), "in use");
}
