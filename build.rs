//! Compiles `proto/` to Rust with protox, so that no protoc has to be installed, and notes the commit.

use std::path::{Path, PathBuf};
use std::{env, error::Error, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-env-changed=BACKUPY_BUILD_COMMIT");
    let files = protox::compile(["backup/v1/envelope.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    config.out_dir(PathBuf::from(env::var("OUT_DIR")?));
    // Byte fields hold keys: none of the generated types may print itself.
    config.skip_debug(["."]);
    config.compile_fds(files)?;
    note_commit();
    Ok(())
}

/// The commit of a release build, unless `BACKUPY_BUILD_COMMIT` names it already. Not of others: every commit would
/// build everything again. Without git, or outside of its own repository, none is known.
fn note_commit() {
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if env::var_os("BACKUPY_BUILD_COMMIT").is_some() || !release {
        return;
    }
    // Sources unpacked inside of somebody else's repository have a prefix there.
    if git(&["rev-parse", "--show-prefix"]).as_deref() != Some("") {
        return;
    }
    for path in ["logs/HEAD", "HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", path])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo:rustc-env=BACKUPY_BUILD_COMMIT={commit}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = output.status.success().then(|| String::from_utf8(output.stdout).ok())??;
    Some(text.trim().to_owned())
}
