//! What is the directory's own: marker, URLs, half-written files. What it shares with other kinds is in
//! `tests/it/storage.rs`.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use super::sign::Method;
use super::*;

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn read(storage: &dyn Storage, at: &ObjectKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    storage.open(at).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn target(url: &Presigned) -> String {
    let url = url.url.expose();
    url[url.find("/objects/").unwrap()..].to_owned()
}

fn put(storage: &Directory, url: &Presigned, body: &[u8]) -> Result<Stored, String> {
    let permit = storage.permit(Method::Put, &target(url), 0).map_err(|e| e.to_string())?;
    let mut put = storage.begin_put(&permit, body.len() as u64).map_err(|e| e.to_string())?;
    put.write_all(body).map_err(|e| e.to_string())?;
    put.commit().map_err(|e| e.to_string())
}

fn directory() -> (tempfile::TempDir, Directory) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Directory::open_or_init(&dir.path().join("new/storage")).unwrap();
    storage.serve_at("127.0.0.1:9".parse().unwrap());
    (dir, storage)
}

fn root(dir: &tempfile::TempDir) -> std::path::PathBuf {
    dir.path().join("new/storage")
}

#[test]
fn artifacts_are_private_and_hashed_on_the_way() {
    let (dir, storage) = directory();
    let url = storage.presign_put(&key("a/x.bky"), 10, u64::MAX).unwrap();
    let stored = put(&storage, &url, b"abc").unwrap();
    assert_eq!(stored.size_bytes, 3);
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(crate::hex::hex(&stored.sha256), abc);
    let mode = |path: &str| root(&dir).join(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a"), mode("a/x.bky")), (0o700, 0o600));
}

#[test]
fn the_marker_is_made_once_and_without_it_nothing_is_written() {
    let (dir, storage) = directory();
    let id = storage.id().to_owned();
    assert_eq!(Directory::open(&root(&dir), Some(&id)).unwrap().id(), id);
    assert_eq!(Directory::open_or_init(&root(&dir)).unwrap().id(), id, "not made anew");
    let other = "0".repeat(32);
    assert!(matches!(
        Directory::open(&root(&dir), Some(&other)),
        Err(StorageError::Another { .. })
    ));

    let at = key("a/x.bky");
    let url = storage.presign_put(&at, 10, u64::MAX).unwrap();
    let permit = storage.permit(Method::Put, &target(&url), 0).unwrap();
    let mut running = storage.begin_put(&permit, 3).unwrap();
    running.write_all(b"abc").unwrap();
    std::fs::remove_file(root(&dir).join(directory::MARKER)).unwrap();
    let gone = |result: Result<(), StorageError>| {
        assert!(matches!(result, Err(StorageError::NotMounted { .. })), "{result:?}");
    };
    gone(running.commit().map(|_| ()));
    gone(storage.check());
    gone(storage.begin_put(&permit, 3).map(|_| ()));
    gone(storage.presign_put(&at, 10, u64::MAX).map(|_| ()));
    gone(storage.write_manifest(&at, b"{}"));
    gone(storage.delete_artifact(&at));
    gone(storage.delete_manifest(&at));
    gone(storage.open(&at).map(|_| ()));
    gone(storage.size(&at).map(|_| ()));
    gone(storage.list().map(|_| ()));
    gone(storage.sweep().map(|_| ()));
    gone(Directory::open(&root(&dir), Some(&id)).map(|_| ()));
    std::fs::write(root(&dir).join(directory::MARKER), "backupy storage 2\nid 00\n").unwrap();
    assert!(matches!(storage.check(), Err(StorageError::Marker { .. })));
    assert!(matches!(Directory::open_or_init(&root(&dir)), Err(StorageError::Marker { .. })));
}

#[test]
fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("dpkg.status.0"), "x").unwrap();
    std::fs::create_dir(dir.path().join("other")).unwrap();
    std::fs::write(dir.path().join("other/file.txt"), "x").unwrap();
    std::fs::write(dir.path().join("other/.x.part.txt"), "x").unwrap();
    let storage = Directory::open_or_init(dir.path()).unwrap();
    assert!(storage.list().unwrap().is_empty());
    assert_eq!(storage.sweep().unwrap(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn an_upload_that_ends_early_leaves_nothing() {
    let (dir, storage) = directory();
    let at = key("a/x.bky");
    let url = storage.presign_put(&at, 10, u64::MAX).unwrap();
    let permit = storage.permit(Method::Put, &target(&url), 0).unwrap();
    let mut short = storage.begin_put(&permit, 5).unwrap();
    short.write_all(b"abc").unwrap();
    assert!(matches!(short.commit(), Err(StorageError::Short { got: 3, announced: 5, .. })));
    let mut long = storage.begin_put(&permit, 2).unwrap();
    assert!(long.write_all(b"abc").is_err());
    drop(long);
    drop(storage.begin_put(&permit, 2).unwrap());
    assert_eq!(std::fs::read_dir(root(&dir).join("a")).unwrap().count(), 0);
    assert!(matches!(storage.begin_put(&permit, 11), Err(StorageError::TooLarge { .. })));
    let wide = storage.presign_put(&at, u64::MAX, u64::MAX).unwrap();
    let wide = storage.permit(Method::Put, &target(&wide), 0).unwrap();
    assert!(matches!(storage.begin_put(&wide, u64::MAX), Err(StorageError::Full { .. })));
}

#[test]
fn a_finished_backup_is_not_written_again() {
    let (_dir, storage) = directory();
    let at = key("a/x.bky");
    let url = storage.presign_put(&at, 10, u64::MAX).unwrap();
    put(&storage, &url, b"abc").unwrap();
    storage.write_manifest(&at, b"{}").unwrap();
    assert!(put(&storage, &url, b"xyz").unwrap_err().contains("finished backup"));
    assert_eq!(read(&storage, &at), b"abc");
}

#[test]
fn a_get_url_reads_and_does_not_write() {
    let (_dir, storage) = directory();
    let at = key("a/x.bky");
    put(&storage, &storage.presign_put(&at, 10, u64::MAX).unwrap(), b"abc").unwrap();
    let url = storage.presign_get(&at, 100).unwrap();
    assert!(storage.permit(Method::Put, &target(&url), 0).is_err());
    let permit = storage.permit(Method::Get, &target(&url), 0).unwrap();
    assert_eq!(storage.begin_get(&permit).unwrap().1, 3);
    assert!(storage.begin_put(&permit, 0).is_err());
    assert!(storage.permit(Method::Get, &target(&url), 100).is_err());
}

#[test]
fn without_a_server_there_are_no_urls() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Directory::open_or_init(dir.path()).unwrap();
    assert!(matches!(storage.presign_put(&key("a/x.bky"), 1, 1), Err(StorageError::NotServed)));
    assert!(matches!(storage.presign_get(&key("a/x.bky"), 1), Err(StorageError::NotServed)));
}

#[test]
fn leftovers_are_swept_and_running_uploads_are_not() {
    let (dir, storage) = directory();
    let url = storage.presign_put(&key("a/x.bky"), 10, u64::MAX).unwrap();
    let permit = storage.permit(Method::Put, &target(&url), 0).unwrap();
    let mut running = storage.begin_put(&permit, 3).unwrap();
    std::fs::write(root(&dir).join("a/.y.bky.0011.part"), "half").unwrap();
    std::fs::write(root(&dir).join("a/.y.bky.json.0022.part"), "half").unwrap();
    assert_eq!(storage.sweep().unwrap(), 2);
    running.write_all(b"abc").unwrap();
    running.commit().unwrap();
    assert_eq!(storage.sweep().unwrap(), 0);
    assert_eq!(read(&storage, &key("a/x.bky")), b"abc");
}
