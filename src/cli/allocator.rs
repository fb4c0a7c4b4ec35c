//! Keeps a daemon small on glibc, whose allocator otherwise holds on to what a backup used.
//!
//! glibc raises its mmap threshold to the size of the largest block that was ever freed, so that after the
//! first backup the pipeline's buffers live in heaps that are never given back: 15–24 MiB of idle memory
//! instead of 8. Its documented variables (mallopt(3)) fix the threshold and bound the number of heaps,
//! but are read before `main`, so the daemon starts itself once more with them. Same pid, same arguments.
//! musl needs none of this.

/// The variables, and what they are set to.
#[cfg(target_env = "gnu")]
const SETTINGS: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "32768"),
    ("MALLOC_TRIM_THRESHOLD_", "32768"),
    ("MALLOC_ARENA_MAX", "1"),
];

/// Replaces this process by itself with the settings, unless somebody has chosen some already. Returns
/// where that is not needed or not possible; the daemon then works all the same.
#[cfg(target_env = "gnu")]
pub(super) fn tame() {
    use std::os::unix::process::CommandExt as _;

    if SETTINGS.iter().any(|(name, _)| std::env::var_os(name).is_some()) {
        return;
    }
    // Not /proc/self/exe, which would be the name in `ps`.
    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let error = command.args(args).envs(SETTINGS).exec();
    log::debug!("failed to start again with a tamed allocator: {error}");
}

/// musl's allocator gives back what is free.
#[cfg(not(target_env = "gnu"))]
pub(super) fn tame() {}
