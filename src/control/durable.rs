//! Files that are there as a whole or not at all: written aside, synced, renamed, and the directory synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// End of the name of every file that is not finished.
pub const PART: &str = ".part";

/// Whether an existing file may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It may.
    Replace,
    /// It must stay: [`io::ErrorKind::AlreadyExists`].
    Keep,
}

/// Writes a small file with this mode.
///
/// # Errors
/// Of the file system; then the former file is as it was, and nothing is left beside it.
pub fn write(path: &Path, bytes: &[u8], mode: u32, existing: Existing) -> io::Result<()> {
    let (mut file, aside) = create_aside(path, mode)?;
    let written = file.write_all(bytes).and_then(|()| finish(&file, &aside, path, existing));
    if written.is_err() {
        // The first error is the one that matters.
        let _ = std::fs::remove_file(&aside);
    }
    written
}

/// Makes a new file beside `path`, hidden and with a random name that ends in [`PART`].
///
/// # Errors
/// Of the file system.
pub fn create_aside(path: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.{}{PART}", random_hex(4)?));
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
    Ok((file, aside))
}

/// Syncs the file, gives it its name and syncs the directory.
///
/// # Errors
/// Of the file system; the file may then be there under either name.
pub fn finish(file: &File, aside: &Path, path: &Path, existing: Existing) -> io::Result<()> {
    file.sync_all()?;
    match existing {
        Existing::Replace => std::fs::rename(aside, path)?,
        Existing::Keep => rename_new(aside, path)?,
    }
    sync_parent(path)
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems do not know the flag. The look before the rename is then the best there is.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            std::fs::rename(from, to)
        }
        other => Ok(other?),
    }
}

/// Makes a rename or removal in the directory of `path` survive a power cut.
///
/// # Errors
/// Of the file system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        // A name alone lies in the working directory.
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => sync_dir(Path::new("/")),
    }
}

/// Syncs a directory.
///
/// # Errors
/// Of the file system.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        // Some network and FUSE file systems cannot sync a directory; they order renames themselves.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// So many random bytes as lower-case hex.
///
/// # Errors
/// When the system gives no random numbers.
pub fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(crate::hex::hex(&random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn written_whole_with_its_mode_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, b"one", 0o600, Existing::Keep).unwrap();
        let error = write(&path, b"two", 0o600, Existing::Keep).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write(&path, b"three", 0o600, Existing::Replace).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_name_alone_lies_in_the_working_directory() {
        sync_parent(Path::new("just-a-name")).unwrap();
        sync_parent(Path::new("/")).unwrap();
    }
}
