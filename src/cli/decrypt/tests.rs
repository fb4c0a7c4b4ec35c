//! The command as a library call: what ends up at `--out`, and what never does.

use std::os::unix::fs::PermissionsExt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::artifact::{END_MARKER, FRAME_BYTES, HEAD_BYTES, Sealer};
use crate::hex::hex;

const KEY: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

fn sealed(plain: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(&DataKey::from_bytes(&KEY).unwrap()).unwrap();
    let mut artifact = Vec::new();
    for chunk in plain.chunks(FRAME_BYTES) {
        let mut frame = [&[0; HEAD_BYTES], chunk].concat();
        sealer.seal(&mut frame).unwrap();
        artifact.extend_from_slice(&frame);
    }
    artifact.extend_from_slice(&END_MARKER);
    artifact
}

fn token(sha256: Option<&[u8]>, lives_sec: i64) -> String {
    let exp = i64::try_from(unix_ms() / 1000).unwrap() + lives_sec;
    let claims = json!({
        "iss": "backupy-server", "aud": "backupy-decrypt", "sub": "s", "iat": 1, "exp": exp,
        "run_id": "r", "company_id": "c", "dek": STANDARD.encode(KEY), "alg": "AES-256-GCM",
        "format_version": 1,
        "sha256": sha256.map(|bytes| hex(digest(&SHA256, bytes).as_ref())),
    });
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{}".into()), part(claims.to_string()), part("sig".into()))
}

/// A directory with an artifact `in`, a token file and a key file.
struct Bench {
    dir: TempDir,
}

struct Ran {
    exit: Exit,
    stdout: Vec<u8>,
    stderr: String,
}

impl Bench {
    fn new(artifact: &[u8]) -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(bench.path("in"), artifact).unwrap();
        fs::write(bench.path("key"), KEY).unwrap();
        bench.write_token(&token(Some(artifact), 60));
        bench
    }

    fn write_token(&self, token: &str) {
        fs::write(self.path("token"), format!("{token}\n")).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn args(&self) -> DecryptArgs {
        DecryptArgs {
            token_file: Some(self.path("token")),
            input: self.path("in"),
            output: self.path("out"),
            ..DecryptArgs::default()
        }
    }

    fn run_stdin(&self, args: &DecryptArgs, stdin: &[u8]) -> Ran {
        let (mut stdout, mut stderr, mut stdin) = (Vec::new(), Vec::new(), stdin);
        let exit = run_with(
            args,
            &mut Streams {
                stdin: &mut stdin,
                stdout: &mut stdout,
                stderr: &mut stderr,
                progress: false,
            },
        );
        Ran { exit, stdout, stderr: String::from_utf8(stderr).unwrap() }
    }

    fn run(&self, args: &DecryptArgs) -> Ran {
        self.run_stdin(args, b"")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Fails, says `message`, and leaves no file behind.
    fn assert_refused(&self, args: &DecryptArgs, exit: Exit, message: &str) {
        let ran = self.run(args);
        assert_eq!(ran.exit, exit, "{}", ran.stderr);
        assert!(ran.stderr.contains(message), "{} lacks {message}", ran.stderr);
        assert_eq!(self.names(), ["in", "key", "token"], "{}", ran.stderr);
        assert!(!ran.stderr.contains(&STANDARD.encode(KEY)));
    }
}

fn packed() -> Vec<u8> {
    zstd::encode_all(&b"the dump"[..], 3).unwrap()
}

#[test]
fn every_source_of_the_key_opens_it() {
    let artifact = sealed(&packed());
    let bench = Bench::new(&artifact);
    let none = DecryptArgs { token_file: None, ..bench.args() };
    let ways = [
        bench.args(),
        DecryptArgs { token: Some(token(None, 60)), ..none },
        DecryptArgs { token_file: None, key_file: Some(bench.path("key")), ..bench.args() },
    ];
    for args in ways {
        let ran = bench.run(&args);
        assert_eq!(ran.exit, Exit::Ok, "{}", ran.stderr);
        assert_eq!(fs::read(bench.path("out")).unwrap(), b"the dump");
        assert_eq!(fs::metadata(bench.path("out")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(ran.stderr.contains(&hex(digest(&SHA256, &artifact).as_ref())), "{}", ran.stderr);
        assert_eq!(bench.names(), ["in", "key", "out", "token"]);
        fs::remove_file(bench.path("out")).unwrap();
    }
}

#[test]
fn standard_streams() {
    let artifact = sealed(&packed());
    let bench = Bench::new(&artifact);
    let args = DecryptArgs { input: "-".into(), output: "-".into(), ..bench.args() };
    let ran = bench.run_stdin(&args, &artifact);
    assert_eq!((ran.exit, ran.stdout.as_slice()), (Exit::Ok, &b"the dump"[..]));
    // The token from standard input, the artifact from its file.
    let args = DecryptArgs { token_file: Some("-".into()), output: "-".into(), ..bench.args() };
    let ran = bench.run_stdin(&args, token(None, 60).as_bytes());
    assert_eq!((ran.exit, ran.stdout.as_slice()), (Exit::Ok, &b"the dump"[..]));
    let args = DecryptArgs { input: "-".into(), ..args };
    assert_eq!(bench.run(&args).exit, Exit::Usage);
}

#[test]
fn to_standard_output_the_exit_code_tells() {
    let mut artifact = sealed(&packed());
    artifact.push(0);
    let bench = Bench::new(&artifact);
    let ran = bench.run(&DecryptArgs { output: "-".into(), ..bench.args() });
    assert_eq!(ran.exit, Exit::Failed);
}

#[test]
fn skip_decompress_leaves_it_compressed() {
    let bench = Bench::new(&sealed(&packed()));
    let ran = bench.run(&DecryptArgs { skip_decompress: true, ..bench.args() });
    assert_eq!(ran.exit, Exit::Ok);
    assert!(ran.stderr.contains("left compressed"));
    assert_eq!(fs::read(bench.path("out")).unwrap(), packed());
}

#[test]
fn the_tokens_hash_is_verified_unless_told_otherwise() {
    let bench = Bench::new(&sealed(&packed()));
    bench.write_token(&token(Some(b"another artifact"), 60));
    bench.assert_refused(&bench.args(), Exit::Failed, "not the one that was uploaded");
    let ran = bench.run(&DecryptArgs { no_verify_sha256: true, ..bench.args() });
    assert_eq!(ran.exit, Exit::Ok, "{}", ran.stderr);
}

#[test]
fn bad_artifacts_leave_nothing() {
    let good = sealed(&packed());
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    let cases: [(Vec<u8>, &str); 6] = [
        (flipped, "failed to open the first frame"),
        (good[..good.len() - 1].to_vec(), "truncated"),
        ([good.as_slice(), b"\n"].concat(), "bytes follow"),
        (b"garbage, not an artifact".to_vec(), "not an encrypted artifact"),
        (vec![0, 0x20, 0, 0, 1, 2, 3], "not an encrypted artifact"),
        (Vec::new(), "truncated"),
    ];
    for (artifact, message) in cases {
        let bench = Bench::new(&artifact);
        bench.assert_refused(&bench.args(), Exit::Failed, message);
    }
}

#[test]
fn bad_tokens_and_keys_leave_nothing() {
    let artifact = sealed(&packed());
    let bench = Bench::new(&artifact);
    bench.write_token(&token(None, -10));
    bench.assert_refused(&bench.args(), Exit::Failed, "expired");
    bench.write_token("hello");
    bench.assert_refused(&bench.args(), Exit::Failed, "malformed");
    fs::write(bench.path("token"), [0xff, 0xfe]).unwrap();
    bench.assert_refused(&bench.args(), Exit::Failed, "not text");
    fs::write(bench.path("token"), vec![b'a'; 1 << 20]).unwrap();
    bench.assert_refused(&bench.args(), Exit::Failed, "too large");
    let with_key =
        DecryptArgs { token_file: None, key_file: Some(bench.path("key")), ..bench.args() };
    fs::write(bench.path("key"), [1; 32]).unwrap();
    bench.assert_refused(&with_key, Exit::Failed, "key is not this artifact's");
    fs::write(bench.path("key"), [1; 31]).unwrap();
    bench.assert_refused(&with_key, Exit::Failed, "holds no key");
    let missing = DecryptArgs { key_file: Some(bench.path("nowhere")), ..with_key };
    bench.assert_refused(&missing, Exit::Failed, "nowhere");
    let two = DecryptArgs { token: Some(token(None, 60)), ..bench.args() };
    bench.assert_refused(&two, Exit::Usage, "only one of");
}

#[test]
fn an_existing_file_is_kept_unless_forced() {
    let bench = Bench::new(&sealed(&packed()));
    fs::write(bench.path("out"), "precious").unwrap();
    let ran = bench.run(&bench.args());
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(fs::read(bench.path("out")).unwrap(), b"precious");
    // Even with --force a bad artifact replaces nothing.
    let force = DecryptArgs { force: true, ..bench.args() };
    let good = fs::read(bench.path("in")).unwrap();
    fs::write(bench.path("in"), &good[..9]).unwrap();
    assert_eq!(bench.run(&force).exit, Exit::Failed);
    assert_eq!(fs::read(bench.path("out")).unwrap(), b"precious");
    fs::write(bench.path("in"), good).unwrap();
    assert_eq!(bench.run(&force).exit, Exit::Ok);
    assert_eq!(fs::read(bench.path("out")).unwrap(), b"the dump");
    assert_eq!(bench.names(), ["in", "key", "out", "token"]);
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut part = Part::create(&out, false).unwrap();
    part.file.write_all(b"dump").unwrap();
    fs::write(&out, "precious").unwrap();
    assert!(matches!(part.publish(false), Err(CliError::Exists(_))));
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn force_writes_through_a_symbolic_link() {
    let bench = Bench::new(&sealed(&packed()));
    fs::write(bench.path("real"), "old").unwrap();
    std::os::unix::fs::symlink(bench.path("real"), bench.path("out")).unwrap();
    let ran = bench.run(&DecryptArgs { force: true, ..bench.args() });
    assert_eq!(ran.exit, Exit::Ok, "{}", ran.stderr);
    assert_eq!(fs::read(bench.path("real")).unwrap(), b"the dump");
    assert!(fs::symlink_metadata(bench.path("out")).unwrap().is_symlink());
}

#[test]
fn devices_and_directories_are_not_replaced() {
    let bench = Bench::new(&sealed(&packed()));
    for output in ["/dev/null".to_owned(), bench.path("")] {
        let args = DecryptArgs { output, force: true, ..bench.args() };
        bench.assert_refused(&args, Exit::Usage, "not a regular file");
    }
    let output = bench.path("no/such/dir/out");
    bench.assert_refused(&DecryptArgs { output, ..bench.args() }, Exit::Failed, "failed to write");
}

#[test]
fn an_unencrypted_artifact_needs_no_key() {
    let bench = Bench::new(&packed());
    let args = DecryptArgs { token_file: None, ..bench.args() };
    assert_eq!(bench.run(&args).exit, Exit::Ok);
    assert_eq!(fs::read(bench.path("out")).unwrap(), b"the dump");
}

#[test]
fn an_encrypted_one_without_a_key_says_what_is_needed() {
    let bench = Bench::new(&sealed(&packed()));
    let args = DecryptArgs { token_file: None, ..bench.args() };
    bench.assert_refused(&args, Exit::Usage, "--token-file");
}

#[test]
fn progress_is_drawn_and_cleared() {
    assert_eq!(
        progress_line(50 << 20, Some(200 << 20), Duration::from_secs(2)),
        " 25 %  50 of 200 MiB  25 MiB/s"
    );
    assert_eq!(progress_line(5 << 20, None, Duration::ZERO), "5 MiB  5000 MiB/s");
    assert!(progress_line(9, Some(3), Duration::ZERO).starts_with("100 %"));
    let bench = Bench::new(&sealed(&packed()));
    let mut terminal = Vec::new();
    let mut streams = Streams {
        stdin: &mut io::empty(),
        stdout: &mut io::sink(),
        stderr: &mut terminal,
        progress: true,
    };
    assert_eq!(run_with(&bench.args(), &mut streams), Exit::Ok);
    let text = String::from_utf8(terminal).unwrap();
    assert!(text.contains(" %  0 of 0 MiB") && text.contains("\r\x1b[K"), "{text:?}");
}

#[test]
fn the_command_line_is_as_documented() {
    let args = DecryptArgs::from_args(
        &["decrypt"],
        &["--token", "t", "--in", "a", "--out", "b", "--skip-decompress", "--no-verify-sha256"],
    )
    .unwrap();
    assert_eq!((args.token.as_deref(), args.input.as_str()), (Some("t"), "a"));
    assert!(args.skip_decompress && args.no_verify_sha256 && !args.force);
}
