//! SQLite files under the paths that the user names: recognised by their first bytes, opened for nothing else.
//!
//! No symbolic link is followed anywhere below a named path, and no other file system entered, so what is found lies
//! in the tree. Everything has a bound: depth, entries, time, files. POSIX takes all of a process's locks on a file
//! away when any of its descriptors is closed, so a file that a backup has open at the moment is not touched: that it
//! is a database is known already.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};

use super::report::MAX_FILES;
use crate::clock::Deadline;
use crate::drivers::sqlite_turn;
use crate::thread::Cancel;

/// Directories below a named path.
const MAX_DEPTH: usize = 12;
/// Entries of all directories together.
const MAX_ENTRIES: u32 = 200_000;
/// For all paths together.
const TIME: Duration = Duration::from_secs(10);
/// A database has at least one page.
const MIN_BYTES: u64 = 512;
const HEADER: &[u8; 16] = b"SQLite format 3\0";

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Real paths, each once.
    pub(super) files: Vec<PathBuf>,
    /// Named paths that are, or lie behind, a link, and where they lead.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    /// What was not looked at, for people.
    pub(super) notes: Vec<String>,
}

/// Walks the named paths; `except` (the agent's own directory) is left out.
pub(super) fn look(paths: &[PathBuf], except: &Path, cancel: &Cancel) -> Found {
    let except = std::fs::canonicalize(except).unwrap_or_else(|_| except.to_owned());
    let mut walk = Walk {
        found: Found::default(),
        entries: 0,
        deadline: Deadline::after(TIME),
        cancel,
        except,
        device: 0,
    };
    for path in paths {
        if let Err(why) = walk.root(path) {
            walk.found.notes.push(format!("{} was not searched: {why}", path.display()));
        }
        if walk.is_over() {
            let text =
                "the search for SQLite files ended early: too many files below the named paths";
            walk.found.notes.push(text.to_owned());
            break;
        }
    }
    walk.found.files.sort();
    walk.found.files.dedup();
    walk.found
}

struct Walk<'a> {
    found: Found,
    entries: u32,
    deadline: Deadline,
    cancel: &'a Cancel,
    except: PathBuf,
    /// The file system that the walk stays on.
    device: u64,
}

impl Walk<'_> {
    /// A named path may itself be a link; what it leads to is the tree.
    fn root(&mut self, path: &Path) -> std::io::Result<()> {
        let real = std::fs::canonicalize(path)?;
        if real != path {
            self.found.links.push((path.to_owned(), real.clone()));
        }
        let meta = statat(CWD, &real, AtFlags::SYMLINK_NOFOLLOW)?;
        self.device = meta.st_dev;
        let (dir, name) = match (real.parent(), real.file_name()) {
            (Some(dir), Some(name)) => (dir, name),
            _ => (Path::new("/"), std::ffi::OsStr::new(".")),
        };
        let dir = openat(CWD, dir, directory(), Mode::empty())?;
        self.entry(&dir, name.as_bytes(), &real, MAX_DEPTH)
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &Path,
        depth: usize,
    ) -> std::io::Result<()> {
        let meta = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if meta.st_dev != self.device {
            return Ok(());
        }
        match FileType::from_raw_mode(meta.st_mode) {
            FileType::Directory if depth > 0 && path != self.except => {
                self.directory(openat(dir, name, directory(), Mode::empty())?, path, depth)
            }
            FileType::RegularFile => {
                let size = u64::try_from(meta.st_size).unwrap_or(0);
                if size >= MIN_BYTES && size.is_multiple_of(MIN_BYTES) {
                    let is_one = match sqlite_turn(meta.st_dev, meta.st_ino) {
                        Some(_turn) => is_database(dir, name),
                        None => true,
                    };
                    if is_one && self.found.files.len() < MAX_FILES {
                        self.found.files.push(path.to_owned());
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn directory(&mut self, dir: OwnedFd, path: &Path, depth: usize) -> std::io::Result<()> {
        let mut names = Dir::read_from(&dir)?;
        while let Some(entry) = names.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            self.entries += 1;
            if self.is_over() {
                break;
            }
            // What has just gone, or may not be read, is not there.
            let own = path.join(std::ffi::OsStr::from_bytes(name));
            let _ = self.entry(&dir, name, &own, depth - 1);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.entries > MAX_ENTRIES
            || self.found.files.len() >= MAX_FILES
            || self.deadline.passed()
            || self.cancel.is_cancelled()
    }
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Whether the first bytes are those of a database. Opening waits for nothing, whatever the file has become.
fn is_database(dir: impl AsFd, name: &[u8]) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(dir, name, flags, Mode::empty()) else { return false };
    let mut header = [0; 100];
    if File::from(file).read_exact(&mut header).is_err() {
        return false;
    }
    let page = u16::from_be_bytes([header[16], header[17]]);
    header.starts_with(HEADER) && (page == 1 || (page >= 512 && page.is_power_of_two()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn database(path: &Path) {
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1);").unwrap();
    }

    fn look_at(paths: &[&Path]) -> Found {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        look(&paths, Path::new("/nowhere"), &Cancel::new().unwrap())
    }

    #[test]
    fn databases_by_their_first_bytes_and_within_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let tree = base.join("tree");
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        fs::create_dir(base.join("out")).unwrap();
        let inside = [tree.join("app.db"), tree.join("deep/er/no-suffix")];
        inside.iter().for_each(|path| database(path));
        database(&base.join("out/secret.db"));
        symlink(base.join("out"), tree.join("link")).unwrap();
        symlink(base.join("out/secret.db"), tree.join("link.db")).unwrap();
        fs::write(tree.join("text.db"), "SQLite format 3".repeat(1024)).unwrap();
        fs::write(tree.join("header.db"), [&HEADER[..], &[9; 496]].concat()).unwrap();
        fs::write(tree.join("empty.db"), "").unwrap();
        rustix::fs::mknodat(CWD, tree.join("fifo.db"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let found = look_at(&[&tree, &tree.join("deep"), &base.join("missing")]);
        assert_eq!(found.files, inside);
        assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
        // A named path may be a link, or a file.
        symlink(&tree, base.join("alias")).unwrap();
        assert_eq!(look_at(&[&base.join("alias")]).files, inside);
        assert_eq!(look_at(&[&inside[0]]).files, inside[..1]);
        let without = look(&[tree], &base.join("tree/deep"), &Cancel::new().unwrap());
        assert_eq!(without.files, inside[..1]);
    }

    /// Closing a descriptor would take the locks of the backup away.
    #[test]
    fn what_a_backup_has_open_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("busy.db");
        fs::write(&path, [0; 512]).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert!(look_at(&[dir.path()]).files.is_empty());
        let turn = sqlite_turn(meta.dev(), meta.ino()).unwrap();
        // Not by its content, which is none.
        assert_eq!(look_at(&[dir.path()]).files, [path]);
        drop(turn);
        assert!(look_at(&[dir.path()]).files.is_empty());
    }

    #[test]
    fn depth_and_count_have_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..MAX_DEPTH + 1 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        database(&deep.join("too-deep.db"));
        database(&deep.parent().unwrap().parent().unwrap().join("ok.db"));
        assert_eq!(look_at(&[dir.path()]).files.len(), 1);
        let many = tempfile::tempdir().unwrap();
        database(&many.path().join("0"));
        for number in 1..MAX_FILES + 10 {
            fs::copy(many.path().join("0"), many.path().join(number.to_string())).unwrap();
        }
        let found = look_at(&[many.path()]);
        assert_eq!((found.files.len(), found.notes.len()), (MAX_FILES, 1));
    }
}
