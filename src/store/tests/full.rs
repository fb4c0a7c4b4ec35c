//! A disk that is really full: a small tmpfs of the test's own.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use super::*;

struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let option = format!("size={size},mode=0700");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(dir.path())
            .output();
        match done {
            Ok(done) if done.status.success() => Some(Self { dir }),
            Ok(done) => {
                println!("skipped: no tmpfs: {}", String::from_utf8_lossy(&done.stderr).trim());
                None
            }
            Err(e) => {
                println!("skipped: no mount command: {e}");
                None
            }
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut file = File::create(self.dir.path().join("filler")).unwrap();
        for chunk in [64 << 10, 4096, 1] {
            while file.write_all(&vec![1; chunk]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.dir.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "{}", self.dir.path().display());
    }
}

fn key(i: u32) -> [u8; 4] {
    i.to_be_bytes()
}

#[test]
fn a_full_disk_fails_writes_spares_deletes_and_passes() {
    let Some(disk) = Disk::mount("24m") else { return };
    let store = open(&disk.state()).unwrap();
    assert!(disk.state().join(files::BALLAST).exists());
    for i in 0..100 {
        put(&store, Space::Outbox, &key(i), &vec![1; 5000]).unwrap();
    }
    disk.fill();

    let mut stored = 100;
    let error = loop {
        match put(&store, Space::Outbox, &key(stored), &vec![1; 5000]) {
            Ok(()) => stored += 1,
            Err(e) => break e,
        }
        assert!(stored < 10_000, "the disk never fills up");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.retry() && error.to_string().contains("disk is full"));
    assert!(stored > 100, "the ballast was good for something");
    assert!(!disk.state().join(files::BALLAST).exists());
    assert_eq!(all(&store, Space::Outbox).len(), stored as usize, "nothing is lost by it");

    for i in 0..stored - 10 {
        let mut batch = store.batch();
        batch.delete(Space::Outbox, key(i));
        store.commit(batch).unwrap_or_else(|e| panic!("delete {i} of {stored}: {e}"));
    }
    assert_eq!(all(&store, Space::Outbox).len(), 10, "the queue can drain");

    disk.free();
    for i in 0..200 {
        put(&store, Space::Runs, &key(i), &vec![2; 5000]).unwrap();
    }
    store.close().unwrap();
    let store = open(&disk.state()).unwrap();
    assert!(disk.state().join(files::BALLAST).exists(), "back where there is room");
    assert_eq!(all(&store, Space::Outbox).len(), 10);
    assert_eq!(all(&store, Space::Runs).len(), 200);
}

#[test]
fn a_store_opens_and_drains_on_a_disk_that_is_full_already() {
    let Some(disk) = Disk::mount("24m") else { return };
    let store = open(&disk.state()).unwrap();
    for i in 0..100 {
        put(&store, Space::Outbox, &key(i), &vec![1; 5000]).unwrap();
    }
    store.close().unwrap();
    disk.fill();
    let store = open(&disk.state()).unwrap();
    let mut batch = store.batch();
    (0..99).for_each(|i| batch.delete(Space::Outbox, key(i)));
    store.commit(batch).unwrap();
    assert_eq!(all(&store, Space::Outbox).len(), 1);
    store.close().unwrap();
    let store = open(&disk.state()).unwrap();
    assert_eq!(all(&store, Space::Outbox).len(), 1);
}

#[test]
fn a_new_store_on_a_full_disk_is_refused_and_leaves_a_directory_that_works_later() {
    let Some(disk) = Disk::mount("24m") else { return };
    disk.fill();
    for _ in 0..3 {
        let error = open(&disk.state()).unwrap_err();
        assert!(matches!(error, StoreError::Full { .. } | StoreError::Unusable { .. }), "{error}");
    }
    disk.free();
    let store = open(&disk.state()).unwrap();
    put(&store, Space::Runs, b"r", b"v").unwrap();
}
