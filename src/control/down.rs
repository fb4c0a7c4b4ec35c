//! What people were told of an `up` that cannot start, so that a supervisor that starts it again every few seconds does
//! not tell them as often: the same error once an hour. It owns one small file, `down`, in the state directory, or, where
//! that cannot be used, one in `/run` or the temporary directory. No place at all means that people are told each time.
//!
//! What stands in the file is believed only if it is this user's, so that nobody else can make `up` fall silent.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use rustix::process::geteuid;

use super::durable::{self, Existing};
use crate::hex::hex;

/// For so long the same is not told again.
const HUSH_MS: u64 = 3_600_000;
/// The same if nobody could be reached.
const UNHEARD_MS: u64 = 300_000;
/// More is no file of ours.
const SIZE_MAX: u64 = 256;

/// The file, wherever it is.
#[derive(Debug)]
pub struct DownNote {
    state_dir: PathBuf,
    elsewhere: Vec<PathBuf>,
}

/// What stands in it.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// Of the error.
    hash: String,
    until_ms: u64,
    /// Whether anybody heard it.
    heard: bool,
}

impl DownNote {
    /// The note about the `up` of this state directory.
    pub fn of(state_dir: &Path) -> Self {
        let places = [Path::new("/run"), &std::env::temp_dir()];
        Self::among(state_dir, &places)
    }

    fn among(state_dir: &Path, places: &[&Path]) -> Self {
        let name = format!("backupy-down-{}", short(&state_dir.to_string_lossy()));
        let elsewhere = places.iter().map(|place| place.join(&name)).collect();
        Self { state_dir: state_dir.to_owned(), elsewhere }
    }

    /// Whether this error was told a short while ago.
    pub fn hushes(&self, error: &str, now_ms: u64) -> bool {
        let hash = short(error);
        self.told().iter().any(|told| {
            // A time that is too far ahead was written by a wrong clock.
            told.hash == hash && now_ms < told.until_ms && told.until_ms <= now_ms + HUSH_MS
        })
    }

    /// Notes that this error was told, and whether anybody heard it.
    pub fn leave(&self, error: &str, heard: bool, now_ms: u64) {
        let until_ms = now_ms + if heard { HUSH_MS } else { UNHEARD_MS };
        let heard = if heard { "heard" } else { "unheard" };
        let text = format!("{} {until_ms} {heard}\n", short(error));
        let own = Some(self.own()).filter(|_| self.is_private());
        for path in own.iter().chain(&self.elsewhere) {
            if durable::write(path, text.as_bytes(), 0o600, Existing::Replace).is_ok() {
                return;
            }
        }
        log::warn!("failed to note that this was told; it will be told again at the next start");
    }

    /// Whether anybody heard of an `up` that is down.
    pub fn was_heard(&self) -> bool {
        self.told().iter().any(|told| told.heard)
    }

    /// It runs: removes the note.
    pub fn remove(&self) {
        for path in self.paths() {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("failed to remove {}: {error}", path.display());
            }
        }
    }

    fn own(&self) -> PathBuf {
        self.state_dir.join("down")
    }

    fn paths(&self) -> Vec<PathBuf> {
        [self.own()]
            .into_iter()
            .chain(self.elsewhere.clone())
            .filter(|path| is_ours(path))
            .collect()
    }

    /// A directory that is open to others may become the state directory once it is empty, and must not be filled.
    fn is_private(&self) -> bool {
        let ours =
            |meta: fs::Metadata| meta.mode() & 0o077 == 0 && meta.uid() == geteuid().as_raw();
        fs::metadata(&self.state_dir).is_ok_and(ours)
    }

    fn told(&self) -> Vec<Told> {
        let read = |path: PathBuf| fs::read_to_string(path).ok().and_then(|text| parse(&text));
        self.paths().into_iter().filter_map(read).collect()
    }
}

fn is_ours(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| {
        meta.is_file() && meta.len() <= SIZE_MAX && meta.uid() == geteuid().as_raw()
    })
}

fn parse(text: &str) -> Option<Told> {
    let mut words = text.split_whitespace();
    let (hash, until_ms) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
    Some(Told { hash, until_ms, heard: words.next()? == "heard" })
}

fn short(text: &str) -> String {
    hex(&digest(&SHA256, text.as_bytes()).as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn the_same_error_is_told_once_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let note = DownNote::among(dir.path(), &[]);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!note.hushes("no key", NOW) && !note.was_heard());
        note.leave("no key", true, NOW);
        assert!(note.hushes("no key", NOW) && note.hushes("no key", NOW + HUSH_MS - 1));
        assert!(!note.hushes("no key", NOW + HUSH_MS), "an hour later");
        assert!(!note.hushes("no key", NOW - 1), "the clock was set back");
        assert!(!note.hushes("no disk", NOW), "another error");
        assert!(note.was_heard());
        note.leave("no key", false, NOW);
        assert!(note.hushes("no key", NOW) && !note.hushes("no key", NOW + UNHEARD_MS));
        assert!(!note.was_heard());
        note.remove();
        assert!(!note.hushes("no key", NOW));
        assert_eq!(names(dir.path()), 0);
    }

    #[test]
    fn it_finds_another_place_and_tells_where_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (open, other) = (dir.path().join("open"), dir.path().join("run"));
        for path in [&open, &other] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for state_dir in [open.clone(), dir.path().join("missing")] {
            let note = DownNote::among(&state_dir, &[&dir.path().join("nowhere"), &other]);
            note.leave("no key", true, NOW);
            assert!(note.hushes("no key", NOW));
            assert_eq!((names(&open), names(&other)), (0, 1), "nothing in what is not ours alone");
            note.remove();
            let lost = DownNote::among(&state_dir, &[]);
            lost.leave("no key", true, NOW);
            assert!(!lost.hushes("no key", NOW));
        }
    }

    #[test]
    fn what_is_no_note_hushes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let note = DownNote::among(dir.path(), &[]);
        let hash = short("no key");
        for text in [String::new(), hash.clone(), format!("{hash} x heard"), "\0\u{fffd}".into()] {
            fs::write(dir.path().join("down"), &text).unwrap();
            assert!(!note.hushes("no key", NOW), "{text:?}");
        }
        let target = dir.path().join("target");
        fs::write(&target, format!("{hash} {} heard\n", NOW + 5)).unwrap();
        fs::remove_file(dir.path().join("down")).unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("down")).unwrap();
        assert!(!note.hushes("no key", NOW), "a link of somebody's");
    }
}
