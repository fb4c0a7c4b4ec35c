//! Compiles `proto/` to Rust with protox, so that no protoc has to be installed.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=BACKUPY_BUILD_COMMIT");
    let files = protox::compile(["backup/v1/envelope.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    config.out_dir(PathBuf::from(env::var("OUT_DIR")?));
    // Byte fields hold keys: none of the generated types may print itself.
    config.skip_debug(["."]);
    config.compile_fds(files)?;
    Ok(())
}
