//! An update by somebody at the host: from a file or a URL into a slot, then an order for the process that runs, or for the
//! next start.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid, geteuid};

use super::arrival::Arrival;
use super::error::UpdateError;
use super::order::{Order, judge};
use super::plan::outranks;
use super::slots::Versions;
use super::{check, download, inspect, signature, version};
use crate::config::{ProxySettings, TlsSettings, UpdateKey};
use crate::pipeline::UrlPolicy;
use crate::pipeline::upload::{Caller, Timing};
use crate::secret::Secret;
use crate::store;
use crate::thread::Cancel;

/// Where a program comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file of this host.
    File(PathBuf),
    /// `https://…`
    Url(Secret),
}

/// What somebody asks for.
#[derive(Debug)]
pub struct Request<'a> {
    /// The program.
    pub source: Source,
    /// Its signature; `None` = beside it, with `.sig` behind its name.
    pub signature: Option<&'a Path>,
    /// Its hash, if that is to be checked too.
    pub sha256: Option<&'a str>,
    /// Whether it may be older, or tried again.
    pub force: bool,
    /// Whose signature counts.
    pub key: &'a UpdateKey,
}

/// Puts the program into its slot of `state_dir` and says what to order. Where root calls it for the state directory of
/// another user, the calling thread is that user from then on.
///
/// # Errors
/// See [`UpdateError`]; nothing is left of it then.
pub fn stage(
    state_dir: &Path,
    request: &Request<'_>,
    tls: TlsSettings,
    proxy: ProxySettings,
    cancel: &Cancel,
) -> Result<Order, UpdateError> {
    let policy = UrlPolicy::HttpsOnly;
    let caller = Caller::new(tls, proxy, policy, Timing::default(), cancel.clone());
    let der =
        signature::decode(&read_signature(request, &caller)?).ok_or(UpdateError::Signature)?;
    let file = match &request.source {
        Source::File(path) => {
            Some(File::open(path).map_err(|error| UpdateError::io("read", path, error))?)
        }
        Source::Url(_) => None,
    };
    become_owner(state_dir).map_err(|e| UpdateError::io("act as the owner of", state_dir, e))?;
    let mut arrival = Versions::of(state_dir).arrival("by-hand")?;
    match (&request.source, file) {
        (Source::Url(url), _) => download::fetch(&caller, url, &mut arrival)?,
        (Source::File(path), Some(file)) => copy(path, file, &mut arrival)?,
        (Source::File(_), None) => {}
    }
    let sha256 = request.sha256.map_or_else(|| arrival.sha256(), str::to_ascii_lowercase);
    let program = arrival.prove(&sha256, &der, request.key)?;
    inspect::check_machine(&program)?;
    let version = version::bare(&inspect::version_of(&program, cancel)?).to_owned();
    let order = Order::read(&version, None, &sha256, &der, request.force);
    let order = order.map_err(|_| UpdateError::Mute("its version is none", None))?;
    check(&program, &order.version, cancel)?;
    arrival.keep(&sha256, request.key)?;
    Ok(order)
}

/// Whoever owns the directory may replace everything in it at any moment, by links, too: root would run, write and give
/// away what they lead to. So root puts its rights down for good, real and saved ids included. New threads and programs
/// have those of this thread.
fn become_owner(state_dir: &Path) -> io::Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let owner = fs::metadata(state_dir)?;
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    if !geteuid().is_root() || uid.is_root() {
        return Ok(());
    }
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Has the next start try it, where nobody runs.
///
/// # Errors
/// The reason why not.
pub fn order_for_next_start(
    state_dir: &Path,
    order: &Order,
    installed: &str,
) -> Result<(), String> {
    if store::is_in_use(state_dir) {
        return Err("a process runs that does not answer; stop it first".to_owned());
    }
    let versions = Versions::of(state_dir);
    let mut state = versions.load().map_err(|error| error.to_string())?;
    let current = state.current.as_ref().filter(|slot| outranks(slot, installed));
    let running = current.map_or(installed, |slot| &slot.version).to_owned();
    judge(order, &running, &state)?;
    state.propose(order.slot(installed), &running);
    versions.save(&state).map_err(|error| error.to_string())
}

fn read_signature(request: &Request<'_>, caller: &Caller) -> Result<Vec<u8>, UpdateError> {
    let beside = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".sig");
        PathBuf::from(name)
    };
    let path = match (request.signature, &request.source) {
        (Some(path), _) => path.to_owned(),
        (None, Source::File(path)) => beside(path),
        (None, Source::Url(url)) => {
            // Before the query, if there is one.
            let text = url.expose();
            let end = text.find('?').unwrap_or(text.len());
            let (path, query) = text.split_at(end);
            let url = Secret::new(format!("{path}.sig{query}"));
            return download::fetch_small(caller, &url, signature::MAX_BYTES);
        }
    };
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(signature::MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| UpdateError::io("read", &path, error))?;
    Ok(bytes)
}

fn copy(path: &Path, mut file: File, arrival: &mut Arrival) -> Result<(), UpdateError> {
    let failed = |error| UpdateError::io("read", path, error);
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => return Ok(()),
            n => arrival.write(piece.get(..n).unwrap_or_default())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::chown;

    /// Needs root; for anybody else it is that nothing changes.
    #[test]
    fn root_becomes_the_owner_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let before = fs::metadata(dir.path()).unwrap().uid();
        let is_root = geteuid().is_root();
        if is_root {
            chown(dir.path(), Some(12345), Some(12346)).unwrap();
        }
        let path = dir.path().to_owned();
        // Rights belong to a thread; this one ends with the test.
        let made = std::thread::spawn(move || {
            become_owner(&path).unwrap();
            let made = path.join("made");
            fs::write(&made, b"").unwrap();
            if is_root {
                use rustix::thread::set_thread_res_uid;
                let root = Uid::ROOT;
                set_thread_res_uid(root, root, root).unwrap_err();
                chown(&made, Some(0), Some(0)).unwrap_err();
            }
            let made = fs::metadata(&made).unwrap();
            (made.uid(), made.gid())
        });
        let (uid, gid) = made.join().unwrap();
        if is_root {
            assert_eq!((uid, gid), (12345, 12346));
        } else {
            assert_eq!(uid, before);
        }
    }
}
