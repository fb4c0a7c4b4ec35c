//! The `backupy` binary: parse, one call per subcommand, exit code.

fn main() {}
