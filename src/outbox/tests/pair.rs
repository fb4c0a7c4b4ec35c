//! Pair.
