//! Runs: what they are ([`state`]) and where they are kept ([`table`]).

pub mod state;
pub mod table;
