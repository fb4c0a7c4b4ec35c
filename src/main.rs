//! The `backupy` binary: parse, one call per subcommand, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    backupy::cli::main().into()
}
