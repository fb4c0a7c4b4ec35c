//! Hooks that succeed, fail, hang and are refused, without a database.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::model::Compression;
use crate::runs::state::Stored;
use crate::secret::SecretBytes;
use crate::thread::spawn;

const LONG: Duration = Duration::from_secs(60);

struct Rig {
    dir: tempfile::TempDir,
    run: Run,
    job: Job,
    cancel: Cancel,
    hurry: Cancel,
    deadline: Option<Deadline>,
}

impl Rig {
    /// `LOG` in the commands stands for the path of [`Rig::log`].
    fn new(pre: &[&str], post: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log").display().to_string();
        let list = |list: &[&str]| list.iter().map(|text| text.replace("LOG", &log)).collect();
        let job = Job { pre_hooks: list(pre), post_hooks: list(post), ..Job::default() };
        let run =
            Run::accept("r1".into(), "shop".into(), false, None, SecretBytes::new([7; 32]), 0);
        let (cancel, hurry) = (Cancel::new().unwrap(), Cancel::new().unwrap());
        Self { dir, run, job, cancel, hurry, deadline: None }
    }

    fn hooks(&self, timeout: Duration) -> Hooks<'_> {
        let (cancel, hurry, deadline) = (&self.cancel, &self.hurry, self.deadline);
        Hooks::new(&self.run, &self.job, timeout, Stops { cancel, hurry, deadline })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Cancels `token` once the commands have written something.
    fn cancel_when_written(&self, token: &Cancel, why: Why) -> std::thread::JoinHandle<()> {
        let (token, path) = (token.clone(), self.path());
        spawn("canceller", move || {
            let deadline = Deadline::after(LONG);
            while !path.exists() && !deadline.passed() {
                std::thread::sleep(Duration::from_millis(5));
            }
            token.cancel(why);
        })
        .unwrap()
    }
}

fn stored() -> AttemptOutcome {
    AttemptOutcome::Stored(Stored {
        object_key: "o".into(),
        size_bytes: 4711,
        sha256: String::new(),
        duration_ms: 1,
        compression: Compression::Zstd,
        engine_version: String::new(),
    })
}

fn failed() -> AttemptOutcome {
    AttemptOutcome::Failed { error: "e".into(), retry: true }
}

const TELL: &str =
    "echo $BACKUPY_JOB_ID $BACKUPY_RUN_ID $BACKUPY_STATUS $BACKUPY_SIZE_BYTES >> LOG";

#[test]
fn each_in_its_order_with_what_it_is_told() {
    for (outcome, told) in [
        (stored(), "shop r1 success 4711"),
        (failed(), "shop r1 failed 0"),
        (AttemptOutcome::Stopped(Why::Timeout), "shop r1 failed 0"),
        (AttemptOutcome::Stopped(Why::Requested), "shop r1 cancelled 0"),
    ] {
        let rig = Rig::new(&["echo first >> LOG", TELL], &[TELL, "echo last >> LOG"]);
        let mut hooks = rig.hooks(LONG);
        hooks.before().unwrap();
        assert_eq!(rig.log(), "first\nshop r1 running 0\n");
        assert_eq!(hooks.after(&outcome), Vec::<String>::new());
        assert_eq!(rig.log(), format!("first\nshop r1 running 0\n{told}\nlast\n"));
    }
}

#[test]
fn a_failing_pre_hook_stops_the_rest_and_post_hooks_hear_of_it() {
    let rig = Rig::new(&["echo 1 >> LOG", "echo no lock >&2; exit 3", "echo 3 >> LOG"], &[TELL]);
    let mut hooks = rig.hooks(LONG);
    let outcome = hooks.before().unwrap_err();
    let AttemptOutcome::Failed { error, retry } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(error, "pre-hook 2 failed with exit code 3: no lock; the database was not touched");
    assert!(!retry);
    let warnings = hooks.after(&outcome);
    assert_eq!(warnings, ["pre-hook 2 said on stderr: no lock"]);
    assert_eq!(rig.log(), "1\nshop r1 failed 0\n");
}

#[test]
fn only_exit_code_75_asks_for_another_attempt() {
    for (code, again) in [(1, false), (74, false), (75, true)] {
        let rig = Rig::new(&[&format!("exit {code}")], &[]);
        let outcome = rig.hooks(LONG).before().unwrap_err();
        assert!(
            matches!(&outcome, AttemptOutcome::Failed { retry, .. } if *retry == again),
            "{outcome:?}"
        );
    }
}

#[test]
fn post_hooks_fail_alone() {
    let rig = Rig::new(&[], &["echo out; exit 4", "kill -9 $$", "echo 3 >> LOG"]);
    let mut hooks = rig.hooks(LONG);
    hooks.before().unwrap();
    let warnings = hooks.after(&stored());
    assert_eq!(
        warnings,
        [
            "post-hook 1 said on stdout: out",
            "post-hook 1 failed with exit code 4: out",
            "post-hook 2 was ended by signal 9"
        ]
    );
    assert_eq!(rig.log(), "3\n");
}

#[test]
fn nothing_began_so_nothing_is_undone() {
    let rig = Rig::new(&["echo 1 >> LOG"], &["echo 2 >> LOG"]);
    rig.cancel.cancel(Why::Requested);
    let mut hooks = rig.hooks(LONG);
    let outcome = hooks.before().unwrap_err();
    assert_eq!(outcome, AttemptOutcome::Stopped(Why::Requested));
    hooks.after(&outcome);
    assert_eq!(rig.log(), "");
}

#[test]
fn a_cancel_ends_a_pre_hook_and_post_hooks_run() {
    let rig = Rig::new(&["echo 1 >> LOG; exec sleep 600", "echo 2 >> LOG"], &[TELL]);
    let canceller = rig.cancel_when_written(&rig.cancel, Why::Requested);
    let mut hooks = rig.hooks(LONG);
    let outcome = hooks.before().unwrap_err();
    assert_eq!(outcome, AttemptOutcome::Stopped(Why::Requested));
    hooks.after(&outcome);
    assert_eq!(rig.log(), "1\nshop r1 cancelled 0\n");
    canceller.join().unwrap();
}

#[test]
fn a_cancel_ends_the_post_hook_that_runs_and_not_the_next() {
    let rig = Rig::new(&[], &["echo 1 >> LOG; exec sleep 600", TELL]);
    let canceller = rig.cancel_when_written(&rig.cancel, Why::Requested);
    let mut hooks = rig.hooks(LONG);
    hooks.before().unwrap();
    let warnings = hooks.after(&stored());
    assert_eq!(warnings, ["post-hook 1 was ended before it was done"]);
    assert_eq!(rig.log(), "1\nshop r1 success 4711\n", "the outcome is what it was");
    canceller.join().unwrap();
}

#[test]
fn a_process_in_a_hurry_ends_post_hooks_that_no_cancel_can_end_any_more() {
    let rig = Rig::new(&[], &["echo 1 >> LOG; exec sleep 600", TELL]);
    let mut hooks = rig.hooks(LONG);
    hooks.before().unwrap();
    rig.cancel.cancel(Why::Requested);
    let canceller = rig.cancel_when_written(&rig.hurry, Why::Shutdown);
    let warnings = hooks.after(&AttemptOutcome::Stopped(Why::Requested));
    assert_eq!(
        warnings,
        [
            "post-hook 1 was ended before it was done",
            "post-hook 2 did not run: no time was left for it"
        ]
    );
    canceller.join().unwrap();
}

#[test]
fn a_hook_has_its_time() {
    let rig = Rig::new(&["echo so far; exec sleep 600"], &["exec sleep 600", "echo 2 >> LOG"]);
    let mut hooks = rig.hooks(Duration::from_secs(4));
    let outcome = hooks.before().unwrap_err();
    let AttemptOutcome::Failed { error, retry } = &outcome else { panic!("{outcome:?}") };
    assert!(error.starts_with("pre-hook 1 did not end within 4 s and was ended"), "{error}");
    assert!(!retry);
    let warnings = hooks.after(&outcome);
    assert_eq!(warnings[0], "pre-hook 1 said on stdout: so far");
    assert!(warnings[1].starts_with("post-hook 1 did not end within"), "{warnings:?}");
    assert_eq!(rig.log(), "2\n");
}

#[test]
fn pre_hooks_have_the_runs_time_and_leave_some_of_their_budget() {
    let mut rig = Rig::new(&["exec sleep 600"], &[TELL]);
    rig.deadline = Some(Deadline::after(Duration::from_millis(200)));
    let mut hooks = rig.hooks(LONG);
    assert_eq!(hooks.before().unwrap_err(), AttemptOutcome::Stopped(Why::Timeout));
    // As if they had run for so long.
    hooks.used = BUDGET - RESERVE;
    assert!(matches!(hooks.before().unwrap_err(), AttemptOutcome::Stopped(Why::Timeout)));
    hooks.after(&AttemptOutcome::Stopped(Why::Timeout));
    assert_eq!(rig.log(), "shop r1 failed 0\n");
    rig.deadline = None;
    let mut hooks = rig.hooks(LONG);
    hooks.used = BUDGET - RESERVE;
    let outcome = hooks.before().unwrap_err();
    assert!(matches!(outcome, AttemptOutcome::Failed { retry: false, .. }), "{outcome:?}");
    hooks.used = BUDGET;
    let warnings = hooks.after(&outcome);
    assert_eq!(warnings.last().unwrap(), "post-hook 1 did not run: no time was left for it");
}

#[test]
fn the_environment_is_the_few_that_are_passed() {
    let rig = Rig::new(&["/usr/bin/env > LOG"], &[]);
    rig.hooks(LONG).before().unwrap();
    assert!(rig.log().contains("BACKUPY_RUN_ID=r1"));
    for line in rig.log().lines() {
        let (name, _) = line.split_once('=').unwrap();
        let ours = ["BACKUPY_JOB_ID", "BACKUPY_RUN_ID", "BACKUPY_STATUS", "BACKUPY_SIZE_BYTES"];
        let shells = ["PWD", "SHLVL", "_", "OLDPWD"];
        let known = PASSED.iter().chain(&ours).chain(&shells).any(|known| *known == name);
        assert!(known, "{line}");
    }
}

#[test]
fn a_flood_is_told_in_bounded_pieces_without_what_looks_like_a_secret() {
    let flood = "head -c 100000000 /dev/zero | tr '\\0' y; echo; echo password=hunter2; exit 1";
    let rig = Rig::new(&[flood], &[]);
    let mut hooks = rig.hooks(LONG);
    let outcome = hooks.before().unwrap_err();
    let warnings = hooks.after(&outcome);
    assert_eq!(warnings.len(), 3, "8 KiB in pieces");
    let all = warnings.concat();
    assert!(all.len() < 9_000 && all.len() > 8_000, "{}", all.len());
    assert!(all.contains("password=***") && !all.contains("hunter2"));
    let AttemptOutcome::Failed { error, .. } = outcome else { panic!("it failed") };
    assert!(error.len() < 1_000 && !error.contains("hunter2"), "{error}");
}

#[test]
fn from_elsewhere_only_where_the_host_allows_it() {
    let policy = |trust, allow_hooks| HostPolicy {
        trust,
        allow_hooks,
        secrets_dir: None,
        allow_paths: None,
        allow_containers: None,
        allow_checks: None,
        pg_bin_dir: None,
        mongo_bin_dir: None,
    };
    let remote = policy(Trust::Remote, false);
    for job in [Rig::new(&["true"], &[]).job, Rig::new(&[], &["true"]).job] {
        let error = check(&job, &remote).unwrap_err();
        assert!(error.contains("BACKUPY_ALLOW_HOOKS=true"), "{error}");
        check(&job, &policy(Trust::Remote, true)).unwrap();
        check(&job, &policy(Trust::Local, false)).unwrap();
    }
    check(&Job::default(), &remote).unwrap();
    assert!(!allowed(&remote));
}

#[test]
fn lists_and_commands_have_bounds() {
    let list = |count: usize, size: usize| vec!["x".repeat(size); count];
    check_list("pre", &list(MAX_HOOKS, MAX_COMMAND_BYTES)).unwrap();
    let error = check_list("post", &list(MAX_HOOKS + 1, 1)).unwrap_err();
    assert!(error.contains("17 post-hooks"), "{error}");
    let error = check_list("pre", &list(1, MAX_COMMAND_BYTES + 1)).unwrap_err();
    assert!(error.contains("pre-hook 1 has 4097 bytes"), "{error}");
    for bad in ["", " \n", "a\0b"] {
        check_list("pre", &[bad.to_owned()]).unwrap_err();
    }
}

#[test]
fn pieces_keep_every_line() {
    let text: String = (0..2_000).map(|n| format!("line {n} ö\n")).collect();
    let cut = pieces(&text);
    assert!(cut.iter().all(|piece| piece.len() <= PIECE_BYTES), "{cut:?}");
    assert_eq!(cut.concat(), text.trim());
    assert!(pieces(" \n").is_empty());
}
