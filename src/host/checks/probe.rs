//! One probe: TCP connect, or HTTP until the head of the answer. Bodies are not read.
//!
//! Redirects are followed where a 2xx is wanted (or nothing in particular): at most five, each one looked up and
//! judged like the check itself. HTTPS goes through `HTTPS_PROXY` where one is set; the rest is direct.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use rustls::client::Resumption;

use super::CheckResult;
use super::fault::Fault;
use super::line::{Connector, Notes, Way};
use super::rules::{Place, Rules};
use super::schedule::timeout_sec;
use crate::clock::{Deadline, unix_ms};
use crate::config::{HostPolicy, ProxySettings, TlsSettings};
use crate::model::{Check, CheckKind};
use crate::net;
use crate::redact::clean;
use crate::thread::Cancel;

const MAX_REDIRECTS: u32 = 5;
const USER_AGENT: &str = concat!("backupy/", env!("CARGO_PKG_VERSION"), " (health check)");
/// Most of an error's text that a result carries, in characters.
const MAX_ERROR: usize = 500;
/// A certificate that ends sooner is worth a note.
const EXPIRY_NOTE: i64 = 14 * 86_400;
/// Look-ups of checks at the same time.
const LOOKUPS: usize = 4;
/// After so long the trust roots are read again.
const ROOTS_AGE: Duration = Duration::from_secs(3_600);

/// What all probes share.
pub(super) struct Prober {
    rules: Rules,
    proxy: ProxySettings,
    tls: TlsSettings,
    lookups: (crossbeam_channel::Sender<()>, crossbeam_channel::Receiver<()>),
    roots: Mutex<Option<(Instant, Arc<ClientConfig>)>>,
}

/// What an HTTP answer, or a connect, tells.
struct Answer {
    status: u16,
    latency: Duration,
    valid_until: Option<i64>,
}

impl Prober {
    pub fn new(policy: &HostPolicy, proxy: ProxySettings, tls: TlsSettings) -> Self {
        Self {
            rules: Rules::new(policy),
            proxy,
            tls,
            lookups: crossbeam_channel::bounded(LOOKUPS),
            roots: Mutex::new(None),
        }
    }

    /// Probes once; `None` when it was stopped before it could tell.
    pub fn probe(&self, check: &Check, cancel: &Cancel) -> Option<CheckResult> {
        let began = Instant::now();
        let timeout = Duration::from_secs(timeout_sec(check).into());
        let way = Way {
            rules: self.rules.clone(),
            proxy: self.proxy.clone(),
            timeout,
            deadline: Deadline::after(timeout),
            cancel: cancel.clone(),
            lookups: self.lookups.clone(),
        };
        let ts_ms = unix_ms();
        let result =
            Place::parse(check.kind, &check.target).and_then(|place| self.ask(check, place, &way));
        let (status, latency, error) = match result {
            Ok(Answer { status, latency, valid_until }) => {
                let fault = wrong_status(check, status).map(|fault| fault.to_string());
                let note = valid_until.and_then(|end| expiry_note(end, ts_ms));
                (status, latency, fault.map(|text| (false, text)).or(note.map(|text| (true, text))))
            }
            Err(Fault::Cancelled) => return None,
            Err(fault) => (0, began.elapsed(), Some((false, fault.to_string()))),
        };
        let (ok, error) = error.unwrap_or((true, String::new()));
        Some(CheckResult {
            check_id: check.id.clone(),
            ts_ms,
            ok,
            latency_ms: u32::try_from(latency.as_millis()).unwrap_or(u32::MAX),
            error: clean(&error).chars().take(MAX_ERROR).collect(),
            status_code: status.into(),
        })
    }

    fn ask(&self, check: &Check, mut place: Place, way: &Way) -> Result<Answer, Fault> {
        if check.kind == CheckKind::Tcp {
            let (_, started) = way.connect(&place)?;
            return Ok(Answer { status: 0, latency: started.elapsed(), valid_until: None });
        }
        let follows = matches!(check.expected_status, 0 | 200..=299);
        let mut latency = Duration::ZERO;
        let mut first_end = None;
        for hop in 0.. {
            let (answer, location) = self.get(&place, way)?;
            latency += answer.latency;
            // The soonest end of all the certificates on the way.
            first_end = first_end.into_iter().chain(answer.valid_until).min();
            let moved = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            let Some(location) = location.filter(|_| follows && moved) else {
                return Ok(Answer { status: answer.status, latency, valid_until: first_end });
            };
            if hop == MAX_REDIRECTS {
                break;
            }
            place = place.follow(&location)?;
        }
        Err(Fault::Redirects)
    }

    /// One GET until the head of its answer, and where that leads.
    fn get(&self, place: &Place, way: &Way) -> Result<(Answer, Option<String>), Fault> {
        let notes = Arc::new(Mutex::new(Notes::default()));
        let tls = if place.tls { Some(self.client_config()?) } else { None };
        let talk = Arc::new(net::Talk::default());
        let connector = Connector {
            way: way.clone(),
            place: place.clone(),
            tls,
            notes: notes.clone(),
            talk: talk.clone(),
        };
        let uri = place.uri.clone().ok_or(Fault::Target("is no URL"))?;
        let mut request = net::agent(connector, USER_AGENT).get(uri).header("accept", "*/*");
        if let Some(user) = &place.user {
            request = request.header("authorization", format!("Basic {}", STANDARD.encode(user)));
        }
        let answer = request.call();
        let ended = Instant::now();
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match answer {
            Ok(answer) => answer,
            Err(_) => {
                let ended = || talk.take_error().map(|error| way.ended(error));
                return Err(notes.fault.take().or_else(ended).unwrap_or(Fault::NoHttp));
            }
        };
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
        let latency = notes.started.map_or(Duration::ZERO, |started| ended - started);
        let status = answer.status().as_u16();
        let valid_until = notes.valid_until;
        Ok((Answer { status, latency, valid_until }, location.map(str::to_owned)))
    }

    fn client_config(&self) -> Result<Arc<ClientConfig>, Fault> {
        let mut kept = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = kept.as_ref().filter(|(read, _)| read.elapsed() < ROOTS_AGE) {
            return Ok(config.clone());
        }
        let fail = |error: &dyn std::fmt::Display| Fault::Tls(error.to_string());
        let roots = net::root_store(self.tls.ca_file.as_deref()).map_err(|error| fail(&error))?;
        let mut config = ClientConfig::builder_with_provider(net::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session does not look at the certificate again.
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        *kept = Some((Instant::now(), config.clone()));
        Ok(config)
    }
}

fn wrong_status(check: &Check, status: u16) -> Option<Fault> {
    let fits = match check.expected_status {
        _ if check.kind == CheckKind::Tcp => true,
        0 => (200..300).contains(&status),
        expected => expected == u32::from(status),
    };
    (!fits).then_some(Fault::Status { expected: check.expected_status, got: status })
}

fn expiry_note(end_sec: i64, now_ms: u64) -> Option<String> {
    let left = end_sec - i64::try_from(now_ms / 1_000).ok()?;
    (left < EXPIRY_NOTE).then(|| match left / 86_400 {
        0 => "note: the certificate expires within a day".to_owned(),
        days => format!("note: the certificate expires in {days} days"),
    })
}
