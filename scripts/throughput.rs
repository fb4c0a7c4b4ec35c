//! The measuring half of `scripts/bench`: one dump through the real pipeline, from the file to a sink on this host.
//!
//! ```text
//! throughput generate FILE BYTES     SQL-like text, the same for the same number of bytes
//! throughput pipeline FILE           compress, seal, hash, upload; prints seconds, bytes and peak memory
//! ```
//! The sink is a thread of this process that reads a PUT and throws it away. The dump comes from a driver that reads
//! the file, so that nothing but the pipeline is measured.

#![expect(clippy::print_stdout, reason = "what it measures is what it prints")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use backupy::artifact::DataKey;
use backupy::config::{HostConfig, ProxySettings, TlsSettings, process_env};
use backupy::drivers::{Context, Driver, DriverError, Dumped, Prepared};
use backupy::model::{Compression, Trust, UploadCreds};
use backupy::pipeline::{self, Order, Uploader, UrlPolicy};
use backupy::secret::Secret;
use backupy::thread::Cancel;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["generate", file, bytes] => generate(Path::new(file), bytes.parse()?),
        ["pipeline", file] => pipeline(Path::new(file)),
        _ => Err("expected: generate FILE BYTES | pipeline FILE".into()),
    }
}

/// Rows as a dump tool writes them: keys that count up, names from a small vocabulary, numbers, times, some hex.
fn generate(file: &Path, bytes: u64) -> Result<()> {
    const WORDS: [&str; 32] = [
        "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty",
        "knoll", "lagoon", "maple", "north", "ocean", "pebble", "quartz", "raven", "stone",
        "tundra", "umber", "valley", "willow", "yarrow", "zephyr", "harbor", "meadow", "canyon",
        "prairie", "summit", "thicket", "marsh",
    ];
    let mut out = BufWriter::with_capacity(1 << 20, File::create(file)?);
    let (mut written, mut row, mut random) = (0u64, 0u64, 0x9e37_79b9_7f4a_7c15_u64);
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    while written < bytes {
        row += 1;
        let word = |n: u64| WORDS[(n % 32) as usize];
        let (a, b, c) = (next(), next(), next());
        let line = format!(
            "INSERT INTO `orders` VALUES ({row},'{} {}','{}.{}@example.org',{}.{:02},'2026-{:02}-{:02} {:02}:{:02}:{:02}',\
             {},'{:08x}','{} {} {} {}');\n",
            word(a),
            word(a >> 5),
            word(a >> 10),
            word(a >> 15),
            a >> 44,
            (a >> 20) % 100,
            (b % 12) + 1,
            (b >> 4) % 28 + 1,
            (b >> 9) % 24,
            (b >> 14) % 60,
            (b >> 20) % 60,
            (b >> 26) % 5,
            b >> 32,
            word(c),
            word(c >> 5),
            word(c >> 10),
            word(c >> 15),
        );
        let take = line.len().min(usize::try_from(bytes - written)?);
        out.write_all(&line.as_bytes()[..take])?;
        written += take as u64;
    }
    out.flush()?;
    Ok(())
}

fn pipeline(file: &Path) -> Result<()> {
    let sink = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/sink", sink.local_addr()?);
    let served = std::thread::spawn(move || sink.accept().map(|(peer, _)| swallow(peer)));
    let state_dir = std::env::temp_dir().join(format!("backupy-bench-{}", std::process::id()));
    // The limits of an agent on this host, as its variables say.
    let host = HostConfig::load(&process_env, &backupy::config::Flags::default(), Trust::Local)?;
    let uploader =
        Uploader::new(TlsSettings::default(), ProxySettings::default(), UrlPolicy::AllowHttp);
    let cancel = Cancel::new()?;
    let began = Instant::now();
    let outcome = pipeline::back_up(Order {
        driver: Box::new(FromFile(file.to_owned())),
        compression: Compression::Zstd,
        key: Some(DataKey::from_bytes(&[7; 32])?),
        creds: &|| UploadCreds {
            put_url: Secret::new(&url),
            expires_at_ms: 0,
            object_key: "sink".to_owned(),
            ..UploadCreds::default()
        },
        places: None,
        upload: &uploader,
        policy: &host.policy,
        limits: &host.limits,
        state_dir: &state_dir,
        deadline: None,
        cancel: &cancel,
        progress: &|_| (),
    });
    let seconds = began.elapsed().as_secs_f64();
    fs::remove_dir_all(&state_dir)?;
    let outcome = outcome?;
    let received = served.join().map_err(|_| "the sink panicked")???;
    if received != outcome.size_bytes {
        return Err(format!("the sink has {received} of {} bytes", outcome.size_bytes).into());
    }
    println!("{seconds:.3} {} {}", outcome.size_bytes, peak_kib()?);
    Ok(())
}

/// Reads one PUT, answers, and returns the length of its body.
fn swallow(peer: TcpStream) -> Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 20, peer);
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        line.clear();
    }
    let received = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    Ok(received)
}

/// Peak resident memory of this process, in KiB.
fn peak_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Dumps a file as it is.
struct FromFile(PathBuf);

impl Driver for FromFile {
    fn prepare(&mut self, _: &Context<'_>) -> std::result::Result<Prepared, DriverError> {
        Ok(Prepared::default())
    }

    fn dump(
        &mut self,
        _: &Context<'_>,
        out: &mut dyn Write,
    ) -> std::result::Result<Dumped, DriverError> {
        let copied = File::open(&self.0).and_then(|mut file| {
            let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0u64);
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(bytes),
                    n => {
                        out.write_all(&buffer[..n])?;
                        bytes += n as u64;
                    }
                }
            }
        });
        copied.map(|bytes| Dumped { bytes, warnings: Vec::new() }).map_err(DriverError::Sink)
    }
}
