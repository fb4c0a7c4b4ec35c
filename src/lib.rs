//! `backupy`: the always-on backup agent and its control plane, in one library and one binary.
//!
//! # The way of the data
//! ```text
//! socket → link → wire → dispatch → runs → pipeline(driver → compress → seal → upload)
//!   ↑                                                                        │
//!   └──────────── link ← outbox ← (state of the run and its report, one batch) ┘
//! ```
//! One direction, no way back inside it: [`link`] knows nothing of jobs, [`pipeline`] nothing of the wire.
//! `backupy up` is the same agent with the control plane (the module `control`) on a loopback port of its
//! own process.
//!
//! # Threads
//! No async runtime: blocking threads, crossbeam channels, every wait with a deadline or a token.
//!
//! | thread | owns | blocks in | woken by |
//! |---|---|---|---|
//! | main | the reconnect loop ([`link::run`]) | session end, backoff | channels |
//! | `link-read` | decoding | `poll(2)` until the idle deadline | data, wake fd |
//! | `link-write` | encoding, order on the wire | `select!` | urgent slot, slots, outbox, stop |
//! | `link-beat` | heartbeat and progress cadence | `select!` | interval, percentages, stop |
//! | `dispatch` | the run table, admission, timers | `select!` | link, reports, queries, stop |
//! | `run-N` | one attempt, with scoped stage threads | pipes, HTTP, bounded channels | its cancel token |
//! | `checks` | when each health check is due; only while there are any | `select!` | orders, ends of probes, timer, stop |
//! | `probe-N` | one probe, 32 at most | look-up, `poll(2)` | the check's deadline, its cancel token |
//! | `discover` | which databases there are on this host | `poll(2)` on Docker's events, pauses | events, the hour, stop |
//! | `give-up` | one upload in parts that nobody completes | HTTP | its cancel token |
//! | `update` | a new version of this program, until it is in its slot or refused | HTTP, its answer | its cancel token |
//! | `status` | the status socket; a thread for each connection | `poll(2)` | a client, stop |
//! | `supervise` | what the service manager hears; only where one listens | `select!` | changes, the watchdog's half interval, stop |
//! | `metrics` | the port of the metrics; a thread for each connection | `poll(2)` | a client, stop |
//! | `signals` | SIGTERM, SIGINT, SIGHUP | signal-hook | the system |
//! | `launcher` | the signals of a process that is no agent: it watches a version on trial | signal-hook | the system |
//!
//! Whoever spawns joins. A panicking run fails its run; any other vital thread that panics ends the
//! process with code 70, because everything that counts is on disk and a supervisor starts it again.
//!
//! # Layers
//! Imports go down only, and a test (`tests/tidy.rs`) holds it:
//!
//! `main, cli → agent, control → dispatch → link, observe → outbox → wire → runs, host → pipeline →
//! drivers → artifact → store, docker → net → config, signals → model, thread → secret, redact, calendar,
//! clock, pulse, wake, exit`
//!
//! `wire` is used by outbox, link, dispatch, agent and control only: its plain values stand for the
//! generated types, which never leave it.

pub mod agent;
pub mod artifact;
pub mod calendar;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "control")]
pub mod control;
pub mod dispatch;
pub mod docker;
pub mod drivers;
pub mod exit;
pub mod hex;
pub mod host;
pub mod link;
pub mod model;
pub mod net;
pub mod observe;
pub mod outbox;
pub mod pipeline;
pub mod pulse;
pub mod redact;
pub mod runs;
pub mod secret;
pub mod signals;
pub mod store;
pub mod thread;
pub mod wake;
pub mod wire;
