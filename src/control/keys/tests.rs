//! By claim: what is kept, what is refused, and that no message shows a key.

use std::fs;

use super::*;

const FRESH: Fresh = Fresh { storage_empty: true, catalogue_empty: true };
const NOW: u64 = 1_795_430_400_000;

struct Place {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    storage: std::path::PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("storage");
    fs::create_dir(&storage).unwrap();
    Place { path: dir.path().join("master.key"), storage, _dir: dir }
}

fn create(place: &Place) -> MasterKey {
    MasterKey::create(&place.path, Some(&place.storage), FRESH, NOW).unwrap()
}

#[test]
fn a_new_key_is_private_and_comes_back() {
    let place = place();
    let key = create(&place);
    assert_eq!(place.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(MasterKey::load(&place.path, Some(&place.storage)).unwrap(), key);
    assert_eq!((key.id().len(), key.created_ms()), (16, NOW));
    let again = MasterKey::create(&place.path, None, FRESH, NOW).unwrap_err();
    assert!(matches!(again, KeyError::Io { .. }), "{again}");
}

/// The id is what Python's hashlib says of the same bytes.
#[test]
fn the_form_is_fixed() {
    let text = "# a comment\n\nbackupy-master-key 1\n\
        key 346107268f46d059 2026-11-23T10:00:00Z AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
    let key = MasterKey::from_text(text).unwrap();
    assert_eq!(key.id(), "346107268f46d059");
    assert!(key.to_text().expose().ends_with(text.split_once("\n\n").unwrap().1));
}

#[test]
fn no_new_key_where_there_are_backups() {
    let place = place();
    for (storage_empty, catalogue_empty) in [(false, true), (true, false), (false, false)] {
        let fresh = Fresh { storage_empty, catalogue_empty };
        let error = MasterKey::create(&place.path, None, fresh, NOW).unwrap_err();
        assert!(
            matches!(error, KeyError::NotFresh { .. }) && error.to_string().contains("key import")
        );
        let error = MasterKey::load_or_create(&place.path, None, || Ok(fresh), NOW).unwrap_err();
        assert!(matches!(error, KeyError::NotFresh { .. }));
    }
    assert!(!place.path.exists());
    assert!(MasterKey::load_or_create(&place.path, None, || Ok(FRESH), NOW).unwrap().1);
    assert!(!MasterKey::load_or_create(&place.path, None, || unreachable!(), NOW).unwrap().1);
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let place = place();
    create(&place);
    for mode in [0o640, 0o604, 0o620, 0o666] {
        fs::set_permissions(&place.path, fs::Permissions::from_mode(mode)).unwrap();
        let error = MasterKey::load(&place.path, None).unwrap_err();
        assert!(
            matches!(error, KeyError::Readable { .. }) && error.to_string().contains("chmod 600")
        );
    }
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o400)).unwrap();
    assert!(MasterKey::load(&place.path, None).is_ok());
    assert!(matches!(MasterKey::load(&place.storage, None), Err(KeyError::NotAFile { .. })));
}

#[test]
fn a_key_inside_the_storage_is_refused_links_included() {
    let place = place();
    let inside = place.storage.join("master.key");
    let error = MasterKey::create(&inside, Some(&place.storage), FRESH, NOW).unwrap_err();
    assert!(matches!(error, KeyError::InsideStorage { .. }));
    MasterKey::create(&inside, None, FRESH, NOW).unwrap();
    std::os::unix::fs::symlink(&inside, &place.path).unwrap();
    let error = MasterKey::load(&place.path, Some(&place.storage)).unwrap_err();
    assert!(matches!(error, KeyError::InsideStorage { .. }));
    let alias = place.path.with_file_name("alias");
    std::os::unix::fs::symlink(&place.storage, &alias).unwrap();
    let error = MasterKey::load(&alias.join("master.key"), Some(&place.storage)).unwrap_err();
    assert!(matches!(error, KeyError::InsideStorage { .. }));
}

#[test]
fn data_keys_open_for_their_run_only() {
    let key = create(&place());
    let data_key = DataKey::generate().unwrap();
    let wrapped = key.wrap("run-1", &data_key).unwrap();
    assert_ne!(wrapped, key.wrap("run-1", &data_key).unwrap(), "a fresh nonce each time");
    assert_eq!(key.unwrap("run-1", &wrapped).unwrap(), data_key);
    assert!(matches!(key.unwrap("run-2", &wrapped), Err(KeyError::Damaged { .. })));
    for index in 0..wrapped.data_key.len() {
        let mut bad = wrapped.clone();
        bad.data_key[index] ^= 1;
        assert!(key.unwrap("run-1", &bad).is_err(), "byte {index}");
    }
    let mut short = wrapped.clone();
    short.data_key.pop();
    assert!(key.unwrap("run-1", &short).is_err());
    let other = create(&place());
    assert!(matches!(other.unwrap("run-1", &wrapped), Err(KeyError::Unknown { .. })));
    let json = serde_json::to_string(&wrapped).unwrap();
    assert_eq!(serde_json::from_str::<Wrapped>(&json).unwrap(), wrapped);
}

#[test]
fn after_a_rotation_the_old_key_still_opens() {
    let place = place();
    let old = create(&place);
    let data_key = DataKey::generate().unwrap();
    let wrapped = old.wrap("run-1", &data_key).unwrap();
    let mac = old.sign_manifest(old.id(), b"manifest").unwrap();
    let new = old.rotate(&place.path, NOW + 1).unwrap();
    assert_eq!(MasterKey::load(&place.path, None).unwrap(), new);
    assert_ne!(new.id(), old.id());
    assert_eq!(new.ids().collect::<Vec<_>>(), [new.id(), old.id()]);
    assert_eq!(new.unwrap("run-1", &wrapped).unwrap(), data_key);
    assert_eq!(new.wrap("run-2", &data_key).unwrap().master_key_id, new.id());
    assert!(new.is_manifest_signed(old.id(), b"manifest", &mac).unwrap());
    assert!(!new.is_manifest_signed(new.id(), b"manifest", &mac).unwrap());
    assert!(!new.is_manifest_signed(old.id(), b"Manifest", &mac).unwrap());
}

#[test]
fn an_import_brings_a_key_back_and_loses_none() {
    let place = place();
    let key = create(&place);
    let exported = key.to_text();
    fs::remove_file(&place.path).unwrap();
    let import = |text: &str| MasterKey::import(text, &place.path, Some(&place.storage));
    assert_eq!(import(exported.expose()).unwrap(), key);
    let rotated = key.rotate(&place.path, NOW).unwrap();
    assert!(matches!(import(exported.expose()), Err(KeyError::WouldLose { .. })));
    assert_eq!(MasterKey::load(&place.path, None).unwrap(), rotated);
    assert_eq!(import(rotated.to_text().expose()).unwrap(), rotated);
}

#[test]
fn what_is_not_a_key_file() {
    let good = create(&place()).to_text();
    let good = good.expose();
    let line = good.lines().last().unwrap();
    let secret = line.rsplit(' ').next().unwrap();
    let swapped: String = [&secret[1..2], &secret[..1], &secret[2..]].concat();
    let cases = [
        String::new(),
        "hello".into(),
        good.replace("backupy-master-key 1", "backupy-master-key 2"),
        good.replace(line, ""),
        good.replace("key ", "kex "),
        good.replace(secret, &secret[..40]),
        good.replace(secret, &swapped),
        format!("{good}\nmore"),
        good.replace(line, &format!("{line} more")),
    ];
    for text in cases.iter().filter(|text| *text != good) {
        let error = MasterKey::from_text(text).unwrap_err();
        assert!(!error.retry() && !error.to_string().contains(&secret[..8]), "{error}");
    }
}

#[test]
fn debug_shows_ids_only() {
    let key = create(&place());
    assert_eq!(format!("{key:?}"), format!("MasterKey([{:?}])", key.id()));
}
