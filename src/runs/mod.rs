//! Runs: what they are ([`state`]), where they are kept ([`table`]), how one is carried out ([`worker`]) and what a
//! job has done before and after it ([`hooks`]).

pub mod hooks;
pub mod state;
pub mod table;
pub mod worker;
