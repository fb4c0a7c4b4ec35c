//! Runs: what they are ([`state`]), where they are kept ([`table`]), how one is carried out ([`worker`]).

pub mod state;
pub mod table;
pub mod worker;
