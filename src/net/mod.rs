//! TCP connections that end when they should: look-up, connect and proxy, each with a deadline and a cancel.
//!
//! Every stream that leaves here is non-blocking, with Nagle off; whoever uses it waits with
//! [`wait_readable`] and [`wait_writable`]. Of TLS it knows where the trust roots are, and how one HTTP exchange goes over
//! it ([`Line`]). The other direction, a small server, is [`http`].

mod connect;
mod error;
pub mod http;
mod line;
mod notify;
mod proxy;
mod resolve;
mod roots;
mod wait;

pub use connect::{connect, connect_any};
pub use error::NetError;
pub use line::{Line, LineError, Phase, Talk, Terms, agent};
pub use notify::notify_address;
pub use proxy::{bypassed, check_proxy, open_tunnel};
pub use resolve::{resolve, resolve_sparing};
pub use roots::{only_root, provider, root_store};
pub use wait::{Waited, wait_any, wait_readable, wait_writable};
