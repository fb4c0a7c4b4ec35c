//! What an open store costs while nothing happens. `BACKUPY_TEST_IDLE_SEC=30` looks longer, and
//! `BACKUPY_TEST_PAIRS=10000` writes more before.

use std::fs;
use std::time::Duration;

use super::*;

fn status(field: &str, task: &Path) -> u64 {
    let text = fs::read_to_string(task.join("status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Context switches of the engine's threads, and how many there are.
fn switches() -> (u64, usize) {
    let tasks: Vec<_> = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| task.unwrap().path())
        .filter(|task| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("fjall"))
        })
        .collect();
    let sum =
        tasks.iter().map(|t| status("voluntary_ctxt", t) + status("nonvoluntary_ctxt", t)).sum();
    (sum, tasks.len())
}

fn rss_kib() -> u64 {
    status("VmRSS", Path::new("/proc/self"))
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

const CHILD: &str = "BACKUPY_TEST_FOOTPRINT_CHILD";

/// In a process of its own, where no other test's threads are counted.
#[test]
fn an_idle_store_sleeps_and_is_small() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::footprint::child", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    println!("{text}");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    assert!(text.contains("2 workers"), "it looked at the right threads");
}

#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let idle = setting("BACKUPY_TEST_IDLE_SEC", 2);
    let pairs = setting("BACKUPY_TEST_PAIRS", 300);
    let dir = tempfile::tempdir().unwrap();
    let before = rss_kib();
    let store = open(dir.path()).unwrap();
    let opened = rss_kib();
    let fresh = store.disk_bytes();
    let mut most = 0;
    for i in 0..pairs {
        put(&store, Space::Outbox, &i.to_be_bytes(), &[7; 600]).unwrap();
        let mut batch = store.batch();
        batch.delete(Space::Outbox, i.to_be_bytes());
        store.commit(batch).unwrap();
        if i % 50 == 0 {
            most = most.max(store.disk_bytes());
        }
    }
    let busy = rss_kib();
    // Not for ordering: merges that are still under way count as work, not as idling.
    std::thread::sleep(Duration::from_millis(500));
    let ((start, workers), after) = (switches(), store.disk_bytes());
    std::thread::sleep(Duration::from_secs(idle));
    let (end, _) = switches();
    println!(
        "rss KiB: {before} before, {opened} open, {busy} busy; disk KiB: {} fresh, {} busy, {} after; \
         {} switches of {workers} workers in {idle} s",
        fresh >> 10,
        most >> 10,
        after >> 10,
        end - start
    );
    assert_eq!(end - start, 0, "nothing happens, so nobody wakes up");
    assert!(fresh < 3 << 20 && most < 8 << 20 && after < 8 << 20);
}
