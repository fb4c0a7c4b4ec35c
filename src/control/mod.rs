//! The embedded control plane: what `backupy up` adds to the agent.
//!
//! ```text
//! file ──▶ schedule ──▶ (session: RunBackup) ──▶ agent ──▶ PUT ──▶ storage
//!   │         ▲                                                      │
//!   └▶ keep ──┤              catalogue ◀── commit ◀── manifest ◀─────┘
//!             └── catalogue     │
//!                               └──▶ restore, verify (also offline: storage + master key only)
//! ```
//!
//! The storage is the truth about what can be restored, the catalogue about what happened; `commit` is the one
//! place that changes both, in the order that a crash cannot spoil.

pub mod catalogue;
pub mod checks;
pub mod commit;
pub mod durable;
pub mod file;
pub mod keep;
pub mod keys;
pub mod manifest;
pub mod restore;
pub mod schedule;
pub mod storage;
pub mod verify;

pub mod connect;
pub mod down;
pub mod embedded;
pub mod local;
pub mod notify;
pub mod objects;
pub mod plane;
pub mod scheduler;
pub mod server;
pub mod session;
pub mod view;
pub mod watch;

pub use crate::net::http;

/// Between two looks of a test at something that tells nobody when it happens, such as a file.
#[cfg(test)]
pub(crate) fn moment() {
    let nobody = crossbeam_channel::never::<()>();
    assert!(nobody.recv_timeout(std::time::Duration::from_millis(10)).is_err());
}
