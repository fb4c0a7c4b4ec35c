//! `kill -9` at random moments: what was acknowledged is there, and every batch is there as a whole or not at all.
//!
//! The child is this very test binary, told by the environment to write until it is killed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const CHILD_DIR: &str = "BACKUPY_TEST_CRASH_DIR";
const KEPT: u64 = 20;

/// One record of batch `n`.
fn record(n: u64, i: u64) -> (Vec<u8>, Vec<u8>) {
    let mut key = n.to_be_bytes().to_vec();
    key.push(u8::try_from(i).unwrap());
    // Large enough that the journal is emptied every few dozen batches, and killed while it is.
    (key, vec![u8::try_from((n + i) % 251).unwrap(); 4000 + usize::try_from(n % 4000).unwrap()])
}

fn records(n: u64) -> u64 {
    1 + n % 5
}

fn space(i: u64) -> Space {
    [Space::Runs, Space::Outbox, Space::Config][usize::try_from(i % 3).unwrap()]
}

#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = open(Path::new(&dir)).unwrap();
    let mut n = get(&store, Space::Meta, b"n")
        .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
    let mut out = std::io::stdout();
    loop {
        n += 1;
        let mut batch = store.batch();
        for i in 0..records(n) {
            let (key, value) = record(n, i);
            batch.put(space(i), key, value);
        }
        if let Some(old) = n.checked_sub(KEPT) {
            (0..records(old)).for_each(|i| batch.delete(space(i), record(old, i).0));
        }
        batch.put(Space::Meta, *b"n", n.to_be_bytes());
        store.commit(batch).unwrap();
        writeln!(out, "done {n}").unwrap();
        out.flush().unwrap();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the child for a while; the newest batch that it saw acknowledged.
fn run_child(dir: &Path, acks: u64, then: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::crash::child", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Killed)
        .unwrap();
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let (mut last, mut seen) = (0, 0);
    let mut look = |line: String| {
        if let Some(n) = line.rsplit_once("done ").and_then(|(_, n)| n.parse().ok()) {
            last = n;
            seen += 1;
        }
        seen
    };
    while look(lines.next().expect("the child ended by itself").unwrap()) < acks {}
    let kill_at = Instant::now() + then;
    while Instant::now() < kill_at {
        std::hint::spin_loop();
    }
    child.0.kill().unwrap();
    // What it had already said counts as acknowledged.
    for line in lines {
        look(line.unwrap());
    }
    last
}

#[test]
fn nothing_acknowledged_is_lost_and_batches_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = 0x2545_f491_4f6c_dd1du64;
    let mut most = 0;
    for round in 0..25 {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let acked = run_child(dir.path(), 1 + dice % 90, Duration::from_micros(dice % 3000));
        let store = open(dir.path()).unwrap();
        let n = get(&store, Space::Meta, b"n")
            .map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
        assert!(n == acked || n == acked + 1, "round {round}: acknowledged {acked}, found {n}");
        let mut expected: Vec<_> = (1..=n)
            .filter(|m| m + KEPT > n)
            .flat_map(|m| (0..records(m)).map(move |i| (space(i), record(m, i))))
            .collect();
        let mut found: Vec<_> = [Space::Runs, Space::Outbox, Space::Config]
            .into_iter()
            .flat_map(|space| all(&store, space).into_iter().map(move |record| (space, record)))
            .collect();
        expected.sort();
        found.sort();
        assert!(
            found == expected,
            "round {round}: {} records, not {}",
            found.len(),
            expected.len()
        );
        most = most.max(store.disk_bytes());
        // Every other time the directory is left as the kill left it, but for what opening it did.
        if dice.is_multiple_of(2) {
            store.close().unwrap();
        }
    }
    assert!(most < 8 << 20, "{most}");
}
