//! The marker at a storage's root: `backupy storage 1`, and an id that names this very storage for ever.

use std::io;

use crate::control::durable::random_hex;

/// Its name.
pub const MARKER: &str = ".backupy-storage";
/// It is never longer, bytes.
pub(super) const MAX: u64 = 200;

const HEAD: &str = "backupy storage 1\nid ";

/// A new one.
pub(super) fn fresh() -> io::Result<String> {
    Ok(format!("{HEAD}{}\n", random_hex(16)?))
}

/// The id in it; `None` if it is damaged or of another version.
pub(super) fn id(text: &str) -> Option<&str> {
    let id = text.strip_prefix(HEAD)?.strip_suffix('\n')?;
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}
