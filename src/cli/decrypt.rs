//! `backupy decrypt`: an artifact and its token or key → the dump. Offline, no agent needed.
//!
//! A file is written aside (mode 0600, `.NAME.XXXXXXXX.part` in the same directory), synced, and given
//! its name only once everything verified, so that nothing wrong ever stands at `--out`. To standard
//! output the bytes go as they are opened: only exit code 0 says that they are the whole dump.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use argh::{ArgsInfo, FromArgs};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use zeroize::Zeroizing;

use crate::artifact::{
    DataKey, DecryptError, Decrypted, KeyFileError, Options, Token, TokenError, decrypt,
};
use crate::clock::unix_ms;
use crate::exit::Exit;

/// Largest token or key file that is read.
const MAX_SECRET_FILE: u64 = 64 << 10;
const REDRAW: Duration = Duration::from_millis(250);

/// Turn an artifact back into the dump it was made from, offline.
///
/// The frames, the end marker, the compressed stream and (with a token that has it) the SHA-256 of the
/// whole artifact are verified. Without a token or key the artifact must have been stored unencrypted.
#[derive(FromArgs, ArgsInfo, Debug, Default)]
#[argh(subcommand, name = "decrypt")]
pub struct DecryptArgs {
    /// file with the decryption token (`-` = standard input)
    #[argh(option, arg_name = "FILE")]
    pub token_file: Option<String>,
    /// the decryption token itself; every user of this machine can read it in the process list while
    /// this runs, so prefer --token-file
    #[argh(option)]
    pub token: Option<String>,
    /// file with the data key: 32 raw bytes, 64 hex digits, or base64 (`-` = standard input)
    #[argh(option, arg_name = "FILE")]
    pub key_file: Option<String>,
    /// the artifact (`-` = standard input)
    #[argh(option, long = "in", arg_name = "FILE")]
    pub input: String,
    /// where the dump goes. A file appears only when everything verified. With `-` (standard output)
    /// bytes leave before that: use them only if the exit code is 0
    #[argh(option, long = "out", arg_name = "FILE")]
    pub output: String,
    /// leave the dump compressed
    #[argh(switch)]
    pub skip_decompress: bool,
    /// do not compare the artifact with the SHA-256 in the token
    #[argh(switch)]
    pub no_verify_sha256: bool,
    /// replace an existing file at --out
    #[argh(switch)]
    pub force: bool,
}

/// Runs the command on the process's own standard streams.
pub fn run(args: &DecryptArgs) -> Exit {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    let stderr = io::stderr();
    let progress = stderr.is_terminal();
    let mut streams =
        Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr.lock(), progress };
    run_with(args, &mut streams)
}

/// The standard streams, handed in.
pub struct Streams<'a> {
    /// Where `-` reads from.
    pub stdin: &'a mut dyn Read,
    /// Where `-` writes to.
    pub stdout: &'a mut dyn Write,
    /// Messages and progress.
    pub stderr: &'a mut dyn Write,
    /// Whether progress is shown.
    pub progress: bool,
}

/// Runs the command on streams of the caller's.
pub fn run_with(args: &DecryptArgs, streams: &mut Streams<'_>) -> Exit {
    let result = execute(args, streams);
    // Nobody is left to tell when standard error is closed.
    match result {
        Ok(done) => {
            let _ = writeln!(streams.stderr, "{}", summary(args, &done));
            Exit::Ok
        }
        Err(error) => {
            let _ = writeln!(streams.stderr, "backupy decrypt: {error}");
            error.exit()
        }
    }
}

fn summary(args: &DecryptArgs, done: &Decrypted) -> String {
    let sha256 = crate::hex::hex(&done.sha256);
    let output = if args.output == "-" { "standard output" } else { &args.output };
    let kept = if args.skip_decompress { ", left compressed" } else { "" };
    format!(
        "{output}: {} bytes (from {} bytes of artifact, {}{kept}, sha256 {sha256})",
        done.bytes_out,
        done.bytes_in,
        done.compression.as_str()
    )
}

fn execute(args: &DecryptArgs, streams: &mut Streams<'_>) -> Result<Decrypted, CliError> {
    check_usage(args)?;
    let (key, sha256) = load_key(args, streams.stdin)?;
    let expected_sha256 = sha256.filter(|_| !args.no_verify_sha256);
    let options = Options { skip_decompress: args.skip_decompress, expected_sha256 };
    let Streams { stdin, stdout, stderr, progress } = streams;
    let mut file;
    let (input, total): (&mut dyn Read, _) = if args.input == "-" {
        (&mut **stdin, None)
    } else {
        let read = |error| CliError::Read("the artifact", args.input.clone(), error);
        file = File::open(&args.input).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        (&mut file, meta.is_file().then_some(meta.len()))
    };
    let mut input = Watched::new(input, total, progress.then_some(&mut **stderr));
    if args.output == "-" {
        let done = decrypt(&mut input, key.as_ref(), *stdout, options);
        input.clear();
        return done.map_err(CliError::Decrypt);
    }
    let mut part = Part::create(Path::new(&args.output), args.force)?;
    let done = decrypt(&mut input, key.as_ref(), &mut part.file, options);
    input.clear();
    let done = done.map_err(CliError::Decrypt)?;
    part.publish(args.force)?;
    Ok(done)
}

fn check_usage(args: &DecryptArgs) -> Result<(), CliError> {
    let sources = [&args.token_file, &args.token, &args.key_file];
    if sources.iter().filter(|source| source.is_some()).count() > 1 {
        return Err(CliError::Usage("give only one of --token-file, --token and --key-file"));
    }
    let secret_from_stdin =
        [&args.token_file, &args.key_file].iter().any(|file| file.as_deref() == Some("-"));
    if secret_from_stdin && args.input == "-" {
        return Err(CliError::Usage(
            "the artifact and its token or key cannot both come from standard input",
        ));
    }
    if args.output.is_empty() || args.input.is_empty() {
        return Err(CliError::Usage("--in and --out need a file name or `-`"));
    }
    Ok(())
}

/// The key and, from a token, the artifact's hash.
fn load_key(
    args: &DecryptArgs,
    stdin: &mut dyn Read,
) -> Result<(Option<DataKey>, Option<[u8; 32]>), CliError> {
    if let Some(file) = &args.key_file {
        let bytes = read_secret("the key file", file, stdin)?;
        return Ok((Some(DataKey::from_file_bytes(&bytes).map_err(CliError::Key)?), None));
    }
    let from_file;
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.as_bytes(),
        (None, Some(file)) => {
            from_file = read_secret("the token file", file, stdin)?;
            &from_file
        }
        (None, None) => return Ok((None, None)),
    };
    let text = std::str::from_utf8(text)
        .map_err(|_| CliError::Token(TokenError::Malformed("it is not text")))?;
    let token = Token::parse(text, unix_ms()).map_err(CliError::Token)?;
    Ok((Some(token.key), token.sha256))
}

fn read_secret(
    what: &'static str,
    path: &str,
    stdin: &mut dyn Read,
) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let fail = |error| CliError::Read(what, path.to_owned(), error);
    let mut bytes = Zeroizing::new(Vec::new());
    let count = if path == "-" {
        stdin.take(MAX_SECRET_FILE + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(MAX_SECRET_FILE + 1).read_to_end(&mut bytes))
    };
    if count.map_err(fail)? as u64 > MAX_SECRET_FILE {
        return Err(fail(io::Error::other("it is too large to be one")));
    }
    Ok(bytes)
}

/// A file that is written aside and removed again unless it is published.
struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Part {
    fn create(out: &Path, force: bool) -> Result<Self, CliError> {
        let fail = |error| CliError::Write(out.to_owned(), error);
        let target = match fs::metadata(out) {
            Ok(meta) if !meta.is_file() => return Err(CliError::NotAFile(out.to_owned())),
            Ok(_) if !force => return Err(CliError::Exists(out.to_owned())),
            // Behind a symbolic link, the file it points to is the one to replace.
            Ok(_) => fs::canonicalize(out).map_err(fail)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => out.to_owned(),
            Err(error) => return Err(fail(error)),
        };
        let name = target
            .file_name()
            .ok_or_else(|| CliError::NotAFile(out.to_owned()))?
            .to_string_lossy()
            // A name may have 255 bytes, and this one gets longer.
            .chars()
            .take(40)
            .collect::<String>();
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| fail(error.into()))?;
        let path =
            target.with_file_name(format!(".{name}.{:08x}.part", u32::from_ne_bytes(random)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        Ok(Self { file: file.map_err(fail)?, path, target, published: false })
    }

    fn publish(mut self, force: bool) -> Result<(), CliError> {
        let fail = |error| CliError::Write(self.target.clone(), error);
        self.file.sync_all().map_err(fail)?;
        if force {
            fs::rename(&self.path, &self.target).map_err(fail)?;
        } else {
            rename_new(&self.path, &self.target).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => CliError::Exists(self.target.clone()),
                _ => fail(error),
            })?;
        }
        self.published = true;
        let dir = self.target.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).map_err(fail)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Renames without replacing what somebody put there in the meantime.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // File systems that know no such flag (NFS, some FUSE): a second name is as exclusive.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        Err(error) => Err(error.into()),
    }
}

/// Draws the progress of a reader on a terminal: percentage, where the size is known, and rate.
struct Watched<'a> {
    input: &'a mut dyn Read,
    total: Option<u64>,
    terminal: Option<&'a mut dyn Write>,
    bytes: u64,
    started: Instant,
    drawn: Option<Instant>,
}

impl<'a> Watched<'a> {
    fn new(
        input: &'a mut dyn Read,
        total: Option<u64>,
        terminal: Option<&'a mut dyn Write>,
    ) -> Self {
        Self { input, total, terminal, bytes: 0, started: Instant::now(), drawn: None }
    }

    fn draw(&mut self) {
        let Some(terminal) = &mut self.terminal else { return };
        let now = Instant::now();
        if self.drawn.is_some_and(|drawn| now - drawn < REDRAW) {
            return;
        }
        self.drawn = Some(now);
        let line = progress_line(self.bytes, self.total, now - self.started);
        // A terminal that went away is no reason to stop.
        let _ = write!(terminal, "\r{line}\x1b[K").and_then(|()| terminal.flush());
    }

    fn clear(&mut self) {
        if let (Some(terminal), Some(_)) = (&mut self.terminal, self.drawn) {
            let _ = write!(terminal, "\r\x1b[K").and_then(|()| terminal.flush());
        }
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(out)?;
        self.bytes += count as u64;
        self.draw();
        Ok(count)
    }
}

fn progress_line(bytes: u64, total: Option<u64>, elapsed: Duration) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = mib(bytes.saturating_mul(1000) / millis);
    match total.filter(|total| *total > 0) {
        Some(total) => {
            let percent = (u128::from(bytes) * 100 / u128::from(total)).min(100);
            format!("{percent:3} %  {} of {} MiB  {rate} MiB/s", mib(bytes), mib(total))
        }
        None => format!("{} MiB  {rate} MiB/s", mib(bytes)),
    }
}

/// Why the command did not succeed.
#[derive(Debug)]
enum CliError {
    Usage(&'static str),
    Read(&'static str, String, io::Error),
    Key(KeyFileError),
    Token(TokenError),
    Exists(PathBuf),
    NotAFile(PathBuf),
    Write(PathBuf, io::Error),
    Decrypt(DecryptError),
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            CliError::Usage(_) | CliError::Exists(_) | CliError::NotAFile(_) => Exit::Usage,
            CliError::Decrypt(DecryptError::KeyNeeded) => Exit::Usage,
            CliError::Read(..)
            | CliError::Key(_)
            | CliError::Token(_)
            | CliError::Write(..)
            | CliError::Decrypt(_) => Exit::Failed,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Usage(text) => f.write_str(text),
            CliError::Read(what, path, error) => write!(f, "failed to read {what} {path}: {error}"),
            CliError::Key(error) => error.fmt(f),
            CliError::Token(error) => error.fmt(f),
            CliError::Exists(path) => write!(
                f,
                "{} exists already; choose another name or give --force to replace it",
                path.display()
            ),
            CliError::NotAFile(path) => write!(
                f,
                "{} is not a regular file; to write somewhere else use `--out -`",
                path.display()
            ),
            CliError::Write(path, error) => {
                write!(f, "failed to write {}: {error}", path.display())
            }
            CliError::Decrypt(DecryptError::KeyNeeded) => f.write_str(
                "the artifact is encrypted; give --token-file (a decryption token) or --key-file \
                 (its data key)",
            ),
            CliError::Decrypt(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
