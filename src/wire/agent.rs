//! Agent → server messages as plain values.

use std::collections::HashMap;

use super::multipart::PartUrlsRequest;
use super::{Ack, proto};
use proto::envelope::Payload;

/// What an agent may say.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentMessage {
    /// First message of a session.
    Register(Register),
    /// Sign of life.
    Heartbeat(Heartbeat),
    /// Databases found on the host.
    Discovery(Vec<Container>),
    /// State or progress of a run.
    JobUpdate(JobUpdate),
    /// An artifact is stored.
    BackupCompleted(BackupCompleted),
    /// One health check's result.
    HealthResult(HealthResult),
    /// A line for the control plane's log.
    Log(LogEvent),
    /// State or progress of a restore.
    RestoreUpdate(RestoreUpdate),
    /// Answer to a command.
    Ack(Ack),
    /// A running upload needs URLs for more parts.
    PartUrlsRequest(PartUrlsRequest),
    /// No payload, or one of another version.
    Unknown,
}

/// First message of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Register {
    /// Version of the agent.
    pub agent_version: String,
    /// Name of the host.
    pub hostname: String,
    /// `linux`.
    pub os: String,
    /// Go's names: `amd64`, `arm64`, `arm`.
    pub arch: String,
    /// Docker's version, empty without Docker.
    pub docker_version: String,
    /// What this agent can do.
    pub capabilities: Vec<String>,
    /// Version of the configuration it holds.
    pub last_known_config_version: u64,
    /// Names the agent's outbox for ever.
    pub store_id: String,
}

/// Sign of life.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heartbeat {
    /// Version of the configuration it holds.
    pub config_version: u64,
    /// The host, measured.
    pub metrics: AgentMetrics,
    /// Jobs that are running.
    pub active_job_ids: Vec<String>,
}

/// The host, measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AgentMetrics {
    /// 0–100 over all cores, since the last heartbeat.
    pub cpu_percent: f32,
    /// Memory that is not available.
    pub mem_used_bytes: u64,
    /// Memory.
    pub mem_total_bytes: u64,
    /// Of the state directory's file system.
    pub disk_used_bytes: u64,
    /// Of the state directory's file system.
    pub disk_total_bytes: u64,
    /// Entries that wait in the outbox.
    pub queue_depth: u32,
}

/// A container that holds a database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// Its id; empty for a service of the host.
    pub container_id: String,
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// `postgresql`, `mysql`, `mariadb`, `mongodb`, `redis`.
    pub detected_db_type: String,
    /// Networks it is in.
    pub networks: Vec<String>,
    /// Names of connection variables that are set.
    pub env_hints: Vec<String>,
    /// Its ports.
    pub ports: Vec<PortBinding>,
}

/// A port of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortBinding {
    /// Inside.
    pub container_port: u32,
    /// Outside; 0 = not published.
    pub host_port: u32,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// States of a job on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// 0, or a number of another version.
    Unspecified,
    /// Waiting.
    Queued,
    /// Under way.
    Running,
    /// Ended well.
    Success,
    /// Ended badly.
    Failed,
    /// Ended on request.
    Cancelled,
}

/// State or progress of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobUpdate {
    /// The job.
    pub job_id: String,
    /// The run.
    pub run_id: String,
    /// Its state.
    pub status: JobStatus,
    /// 0–100.
    pub progress_percent: u32,
    /// `validating`, `dumping`, `uploading`, `verifying`.
    pub current_step: String,
    /// Why it failed.
    pub error_message: String,
}

/// An artifact is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupCompleted {
    /// The job.
    pub job_id: String,
    /// The run.
    pub run_id: String,
    /// Where it is.
    pub s3_key: String,
    /// Its size.
    pub size_bytes: u64,
    /// Lower-case hex over the bytes uploaded.
    pub sha256: String,
    /// From the first attempt's start to the end.
    pub duration_ms: u64,
    /// Id of the key that wraps the data key, if there is one.
    pub dek_kms_id: String,
    /// As received.
    pub encrypted_dek: crate::secret::SecretBytes,
    /// `zstd`, `gzip`, `none`.
    pub compression: String,
    /// `PostgreSQL 16.2`.
    pub db_engine_version: String,
}

/// One health check's result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthResult {
    /// The check.
    pub check_id: String,
    /// When, Unix milliseconds.
    pub ts_ms: u64,
    /// Whether it passed.
    pub ok: bool,
    /// How long it took.
    pub latency_ms: u32,
    /// Why it failed, or a note.
    pub error: String,
    /// HTTP status; 0 without one.
    pub status_code: u32,
}

/// Levels of a [`LogEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Every step.
    Trace,
    /// For developers.
    Debug,
    /// For the curious.
    Info,
    /// Look at it some day.
    Warn,
    /// Look at it now.
    Error,
}

/// A line for the control plane's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEvent {
    /// When, Unix milliseconds.
    pub ts_ms: u64,
    /// How bad.
    pub level: LogLevel,
    /// Of which job, if any.
    pub job_id: String,
    /// The text.
    pub message: String,
    /// More, as names and values.
    pub fields: Vec<(String, String)>,
}

/// State or progress of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreUpdate {
    /// The restore.
    pub restore_id: String,
    /// Its state.
    pub status: JobStatus,
    /// 0–100.
    pub progress_percent: u32,
    /// What it is doing.
    pub current_step: String,
    /// Why it failed.
    pub error_message: String,
}

impl AgentMessage {
    pub(super) fn into_payload(self) -> Option<Payload> {
        Some(match self {
            Self::Register(m) => Payload::Register(m.into_proto()),
            Self::Heartbeat(m) => Payload::Heartbeat(m.into_proto()),
            Self::Discovery(containers) => Payload::Discovery(proto::DiscoveryReport {
                containers: containers.into_iter().map(Container::into_proto).collect(),
            }),
            Self::JobUpdate(m) => Payload::JobUpdate(m.into_proto()),
            Self::BackupCompleted(m) => Payload::BackupCompleted(m.into_proto()),
            Self::HealthResult(m) => Payload::HealthResult(m.into_proto()),
            Self::Log(m) => Payload::Log(m.into_proto()),
            Self::RestoreUpdate(m) => Payload::RestoreUpdate(m.into_proto()),
            Self::Ack(m) => Payload::Ack(m.into_proto()),
            Self::PartUrlsRequest(m) => Payload::PartUrlsRequest(m.into_proto()),
            Self::Unknown => return None,
        })
    }

    pub(super) fn from_payload(payload: Option<Payload>) -> Self {
        match payload {
            Some(Payload::Register(m)) => Self::Register(Register::from_proto(m)),
            Some(Payload::Heartbeat(m)) => Self::Heartbeat(Heartbeat::from_proto(m)),
            Some(Payload::Discovery(m)) => {
                Self::Discovery(m.containers.into_iter().map(Container::from_proto).collect())
            }
            Some(Payload::JobUpdate(m)) => Self::JobUpdate(JobUpdate::from_proto(m)),
            Some(Payload::BackupCompleted(m)) => {
                Self::BackupCompleted(BackupCompleted::from_proto(m))
            }
            Some(Payload::HealthResult(m)) => Self::HealthResult(HealthResult::from_proto(m)),
            Some(Payload::Log(m)) => Self::Log(LogEvent::from_proto(m)),
            Some(Payload::RestoreUpdate(m)) => Self::RestoreUpdate(RestoreUpdate::from_proto(m)),
            Some(Payload::Ack(m)) => Self::Ack(Ack::from_proto(m)),
            Some(Payload::PartUrlsRequest(m)) => {
                Self::PartUrlsRequest(PartUrlsRequest::from_proto(m))
            }
            Some(
                Payload::RegisterAck(_)
                | Payload::ConfigUpdate(_)
                | Payload::RunBackup(_)
                | Payload::CancelJob(_)
                | Payload::RunHealthCheck(_)
                | Payload::SelfUpdate(_)
                | Payload::Ping(_)
                | Payload::PartUrls(_),
            )
            | None => Self::Unknown,
        }
    }
}

impl JobStatus {
    fn into_proto(self) -> proto::JobStatus {
        match self {
            Self::Unspecified => proto::JobStatus::Unspecified,
            Self::Queued => proto::JobStatus::Queued,
            Self::Running => proto::JobStatus::Running,
            Self::Success => proto::JobStatus::Success,
            Self::Failed => proto::JobStatus::Failed,
            Self::Cancelled => proto::JobStatus::Cancelled,
        }
    }

    fn from_number(number: i32) -> Self {
        match proto::JobStatus::try_from(number) {
            Ok(proto::JobStatus::Queued) => Self::Queued,
            Ok(proto::JobStatus::Running) => Self::Running,
            Ok(proto::JobStatus::Success) => Self::Success,
            Ok(proto::JobStatus::Failed) => Self::Failed,
            Ok(proto::JobStatus::Cancelled) => Self::Cancelled,
            Ok(proto::JobStatus::Unspecified) | Err(_) => Self::Unspecified,
        }
    }
}

impl LogLevel {
    fn into_proto(self) -> proto::LogLevel {
        match self {
            Self::Trace => proto::LogLevel::Trace,
            Self::Debug => proto::LogLevel::Debug,
            Self::Info => proto::LogLevel::Info,
            Self::Warn => proto::LogLevel::Warn,
            Self::Error => proto::LogLevel::Error,
        }
    }

    fn from_number(number: i32) -> Self {
        match proto::LogLevel::try_from(number) {
            Ok(proto::LogLevel::Trace) => Self::Trace,
            Ok(proto::LogLevel::Debug) => Self::Debug,
            Ok(proto::LogLevel::Info) => Self::Info,
            Ok(proto::LogLevel::Warn) => Self::Warn,
            // A level of another version is shown rather than hidden.
            Ok(proto::LogLevel::Error) | Err(_) => Self::Error,
        }
    }
}

/// Field-by-field conversion, both ways, for structs whose names and types agree with the generated ones.
macro_rules! same_fields {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl $name {
            fn into_proto(self) -> proto::$name {
                proto::$name { $($field: self.$field),* }
            }

            fn from_proto(m: proto::$name) -> Self {
                Self { $($field: m.$field),* }
            }
        }
    )*};
}

same_fields! {
    Register {
        agent_version, hostname, os, arch, docker_version, capabilities,
        last_known_config_version, store_id,
    }
    AgentMetrics {
        cpu_percent, mem_used_bytes, mem_total_bytes, disk_used_bytes, disk_total_bytes, queue_depth,
    }
    PortBinding { container_port, host_port, protocol }
}

impl HealthResult {
    fn into_proto(self) -> proto::HealthCheckResult {
        let Self { check_id, ts_ms, ok, latency_ms, error, status_code } = self;
        proto::HealthCheckResult { check_id, ts_ms, ok, latency_ms, error, status_code }
    }

    fn from_proto(m: proto::HealthCheckResult) -> Self {
        let proto::HealthCheckResult { check_id, ts_ms, ok, latency_ms, error, status_code } = m;
        Self { check_id, ts_ms, ok, latency_ms, error, status_code }
    }
}

impl Heartbeat {
    fn into_proto(self) -> proto::Heartbeat {
        proto::Heartbeat {
            config_version: self.config_version,
            metrics: Some(self.metrics.into_proto()),
            active_job_ids: self.active_job_ids,
        }
    }

    fn from_proto(m: proto::Heartbeat) -> Self {
        Self {
            config_version: m.config_version,
            metrics: m.metrics.map(AgentMetrics::from_proto).unwrap_or_default(),
            active_job_ids: m.active_job_ids,
        }
    }
}

impl Container {
    fn into_proto(self) -> proto::DiscoveredContainer {
        proto::DiscoveredContainer {
            container_id: self.container_id,
            name: self.name,
            image: self.image,
            detected_db_type: self.detected_db_type,
            networks: self.networks,
            env_hints: self.env_hints.into_iter().map(|name| (name, "set".to_owned())).collect(),
            ports: self.ports.into_iter().map(PortBinding::into_proto).collect(),
        }
    }

    fn from_proto(m: proto::DiscoveredContainer) -> Self {
        let mut env_hints: Vec<String> = m.env_hints.into_keys().collect();
        env_hints.sort();
        Self {
            container_id: m.container_id,
            name: m.name,
            image: m.image,
            detected_db_type: m.detected_db_type,
            networks: m.networks,
            env_hints,
            ports: m.ports.into_iter().map(PortBinding::from_proto).collect(),
        }
    }
}

impl JobUpdate {
    fn into_proto(self) -> proto::JobUpdate {
        proto::JobUpdate {
            job_id: self.job_id,
            status: self.status.into_proto().into(),
            progress_percent: self.progress_percent,
            current_step: self.current_step,
            error_message: self.error_message,
            run_id: self.run_id,
        }
    }

    fn from_proto(m: proto::JobUpdate) -> Self {
        Self {
            job_id: m.job_id,
            run_id: m.run_id,
            status: JobStatus::from_number(m.status),
            progress_percent: m.progress_percent,
            current_step: m.current_step,
            error_message: m.error_message,
        }
    }
}

impl BackupCompleted {
    fn into_proto(self) -> proto::BackupCompleted {
        proto::BackupCompleted {
            job_id: self.job_id,
            run_id: self.run_id,
            s3_key: self.s3_key,
            size_bytes: self.size_bytes,
            sha256: self.sha256,
            duration_ms: self.duration_ms,
            dek_kms_id: self.dek_kms_id,
            encrypted_dek: self.encrypted_dek.expose().to_vec(),
            compression: self.compression,
            db_engine_version: self.db_engine_version,
        }
    }

    fn from_proto(m: proto::BackupCompleted) -> Self {
        Self {
            job_id: m.job_id,
            run_id: m.run_id,
            s3_key: m.s3_key,
            size_bytes: m.size_bytes,
            sha256: m.sha256,
            duration_ms: m.duration_ms,
            dek_kms_id: m.dek_kms_id,
            encrypted_dek: crate::secret::SecretBytes::new(m.encrypted_dek),
            compression: m.compression,
            db_engine_version: m.db_engine_version,
        }
    }
}

impl LogEvent {
    fn into_proto(self) -> proto::LogEvent {
        proto::LogEvent {
            ts_ms: self.ts_ms,
            level: self.level.into_proto().into(),
            job_id: self.job_id,
            message: self.message,
            fields: self.fields.into_iter().collect::<HashMap<_, _>>(),
        }
    }

    fn from_proto(m: proto::LogEvent) -> Self {
        let mut fields: Vec<_> = m.fields.into_iter().collect();
        fields.sort();
        Self {
            ts_ms: m.ts_ms,
            level: LogLevel::from_number(m.level),
            job_id: m.job_id,
            message: m.message,
            fields,
        }
    }
}

impl RestoreUpdate {
    fn into_proto(self) -> proto::RestoreUpdate {
        proto::RestoreUpdate {
            restore_id: self.restore_id,
            status: self.status.into_proto().into(),
            progress_percent: self.progress_percent,
            current_step: self.current_step,
            error_message: self.error_message,
        }
    }

    fn from_proto(m: proto::RestoreUpdate) -> Self {
        Self {
            restore_id: m.restore_id,
            status: JobStatus::from_number(m.status),
            progress_percent: m.progress_percent,
            current_step: m.current_step,
            error_message: m.error_message,
        }
    }
}
