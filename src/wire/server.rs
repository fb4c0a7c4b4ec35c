//! Server → agent messages and the configuration they carry, as plain values.

use prost::Message as _;

use super::multipart::{PartUrls, creds_from_proto, creds_into_proto};
use super::{Ack, WireError, proto};
use crate::model::{
    Advanced, AgentConfig, Check, CheckKind, Connection, Engine, Job, Maintenance, RetryPolicy,
    Target, UploadCreds, Way,
};
use crate::secret::{Secret, SecretBytes};
use proto::envelope::Payload;

/// What a server may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage {
    /// Answer to Register.
    RegisterAck(RegisterAck),
    /// A new configuration; `None` when the message was empty.
    ConfigUpdate(Option<AgentConfig>),
    /// Back up now.
    RunBackup(RunBackup),
    /// Stop the runs of a job.
    CancelJob {
        /// The job.
        job_id: String,
    },
    /// Run one health check now.
    RunHealthCheck {
        /// The check.
        check_id: String,
    },
    /// Replace the binary.
    SelfUpdate(SelfUpdate),
    /// Answer with an Ack.
    Ping {
        /// Sender's Unix milliseconds.
        ts_ms: u64,
    },
    /// A confirmation of storage.
    Ack(Ack),
    /// URLs for more parts of a multipart upload.
    PartUrls(PartUrls),
    /// No payload, or one of another version.
    Unknown,
}

/// Answer to Register.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegisterAck {
    /// Names the session.
    pub session_id: String,
    /// The configuration to hold, if the server has one.
    pub config: Option<AgentConfig>,
    /// 0 = 30.
    pub heartbeat_interval_sec: u32,
    /// The server's clock, RFC 3339.
    pub server_time_iso: String,
    /// Whether the server confirms storage.
    pub durable_acks: bool,
}

/// Back up now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunBackup {
    /// The job.
    pub job_id: String,
    /// Names this run for ever.
    pub run_id: String,
    /// Whether a person asked; such a run ignores the maintenance window.
    pub manual_trigger: bool,
    /// Where the artifact goes; `None` or an empty URL fails the run.
    pub upload_creds: Option<UploadCreds>,
    /// The data key, 32 bytes; empty = none.
    pub encrypted_dek: SecretBytes,
}

/// Replace the binary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelfUpdate {
    /// What the new binary must call itself.
    pub target_version: String,
    /// Where it is.
    pub binary_url: Secret,
    /// Its hash, hex.
    pub sha256: String,
    /// ECDSA P-256 signature as `cosign sign-blob` makes.
    pub cosign_signature: Vec<u8>,
    /// Whether it may be older.
    pub force: bool,
}

/// The configuration as bytes for the store.
pub fn config_to_bytes(config: &AgentConfig) -> Vec<u8> {
    config_into_proto(config.clone()).encode_to_vec()
}

/// Reads what [`config_to_bytes`] wrote.
///
/// # Errors
/// When the bytes are not an AgentConfig.
pub fn config_from_bytes(bytes: &[u8]) -> Result<AgentConfig, WireError> {
    proto::AgentConfig::decode(bytes).map(config_from_proto).map_err(WireError::Decode)
}

impl ServerMessage {
    pub(super) fn into_payload(self) -> Option<Payload> {
        Some(match self {
            Self::RegisterAck(m) => Payload::RegisterAck(proto::RegisterAck {
                session_id: m.session_id,
                config: m.config.map(config_into_proto),
                heartbeat_interval_sec: m.heartbeat_interval_sec,
                server_time_iso: m.server_time_iso,
                durable_acks: m.durable_acks,
            }),
            Self::ConfigUpdate(config) => {
                Payload::ConfigUpdate(proto::ConfigUpdate { config: config.map(config_into_proto) })
            }
            Self::RunBackup(m) => Payload::RunBackup(proto::RunBackup {
                job_id: m.job_id,
                run_id: m.run_id,
                manual_trigger: m.manual_trigger,
                upload_creds: m.upload_creds.map(creds_into_proto),
                encrypted_dek: m.encrypted_dek.expose().to_vec(),
            }),
            Self::CancelJob { job_id } => Payload::CancelJob(proto::CancelJob { job_id }),
            Self::RunHealthCheck { check_id } => {
                Payload::RunHealthCheck(proto::RunHealthCheck { check_id })
            }
            Self::SelfUpdate(m) => Payload::SelfUpdate(proto::SelfUpdate {
                target_version: m.target_version,
                binary_url: m.binary_url.expose().to_owned(),
                sha256: m.sha256,
                cosign_signature: m.cosign_signature,
                force: m.force,
            }),
            Self::Ping { ts_ms } => Payload::Ping(proto::Ping { ts_ms }),
            Self::Ack(m) => Payload::Ack(m.into_proto()),
            Self::PartUrls(m) => Payload::PartUrls(m.into_proto()),
            Self::Unknown => return None,
        })
    }

    pub(super) fn from_payload(payload: Option<Payload>) -> Self {
        match payload {
            Some(Payload::RegisterAck(m)) => Self::RegisterAck(RegisterAck {
                session_id: m.session_id,
                config: m.config.map(config_from_proto),
                heartbeat_interval_sec: m.heartbeat_interval_sec,
                server_time_iso: m.server_time_iso,
                durable_acks: m.durable_acks,
            }),
            Some(Payload::ConfigUpdate(m)) => Self::ConfigUpdate(m.config.map(config_from_proto)),
            Some(Payload::RunBackup(m)) => Self::RunBackup(RunBackup {
                job_id: m.job_id,
                run_id: m.run_id,
                manual_trigger: m.manual_trigger,
                upload_creds: m.upload_creds.map(creds_from_proto),
                encrypted_dek: SecretBytes::new(m.encrypted_dek),
            }),
            Some(Payload::CancelJob(m)) => Self::CancelJob { job_id: m.job_id },
            Some(Payload::RunHealthCheck(m)) => Self::RunHealthCheck { check_id: m.check_id },
            Some(Payload::SelfUpdate(m)) => Self::SelfUpdate(SelfUpdate {
                target_version: m.target_version,
                binary_url: Secret::new(m.binary_url),
                sha256: m.sha256,
                cosign_signature: m.cosign_signature,
                force: m.force,
            }),
            Some(Payload::Ping(m)) => Self::Ping { ts_ms: m.ts_ms },
            Some(Payload::Ack(m)) => Self::Ack(Ack::from_proto(m)),
            Some(Payload::PartUrls(m)) => Self::PartUrls(PartUrls::from_proto(m)),
            Some(
                Payload::Register(_)
                | Payload::Heartbeat(_)
                | Payload::Discovery(_)
                | Payload::JobUpdate(_)
                | Payload::BackupCompleted(_)
                | Payload::HealthResult(_)
                | Payload::Log(_)
                | Payload::RestoreUpdate(_)
                | Payload::PartUrlsRequest(_),
            )
            | None => Self::Unknown,
        }
    }
}

fn config_into_proto(config: AgentConfig) -> proto::AgentConfig {
    proto::AgentConfig {
        version: config.version,
        targets: config.targets.into_iter().map(target_into_proto).collect(),
        jobs: config.jobs.into_iter().map(job_into_proto).collect(),
        health_checks: config.checks.into_iter().map(check_into_proto).collect(),
        maintenance: config.maintenance.map(|window| proto::MaintenanceWindow {
            start_utc: window.start_utc,
            end_utc: window.end_utc,
        }),
        advanced: Some(proto::AdvancedSettings {
            max_parallel_jobs: config.advanced.max_parallel_jobs,
            log_level: config.advanced.log_level,
            auto_update_enabled: config.advanced.auto_update_enabled,
        }),
    }
}

fn config_from_proto(config: proto::AgentConfig) -> AgentConfig {
    AgentConfig {
        version: config.version,
        targets: config.targets.into_iter().map(target_from_proto).collect(),
        jobs: config.jobs.into_iter().map(job_from_proto).collect(),
        checks: config.health_checks.into_iter().map(check_from_proto).collect(),
        maintenance: config
            .maintenance
            .map(|window| Maintenance { start_utc: window.start_utc, end_utc: window.end_utc }),
        advanced: config.advanced.map_or_else(Advanced::default, |advanced| Advanced {
            max_parallel_jobs: advanced.max_parallel_jobs,
            log_level: advanced.log_level,
            auto_update_enabled: advanced.auto_update_enabled,
        }),
    }
}

fn target_into_proto(target: Target) -> proto::Target {
    let connection = target.connection;
    proto::Target {
        id: target.id,
        r#type: engine_number(target.engine),
        display_name: target.display_name,
        connection: Some(proto::ConnectionConfig {
            host: connection.host,
            port: connection.port,
            database: connection.database,
            username: connection.username,
            password_secret_ref: connection.password_ref.expose().to_owned(),
            container_id: connection.container,
            strategy: way_number(connection.way),
            tls_mode: connection.tls_mode,
            tls_ca_file: connection.tls_ca_file,
            globals_only: connection.globals_only,
        }),
    }
}

fn target_from_proto(target: proto::Target) -> Target {
    let connection = target.connection.unwrap_or_default();
    Target {
        id: target.id,
        engine: engine_from_number(target.r#type),
        display_name: target.display_name,
        connection: Connection {
            host: connection.host,
            port: connection.port,
            database: connection.database,
            username: connection.username,
            password_ref: Secret::new(connection.password_secret_ref),
            container: connection.container_id,
            way: way_from_number(connection.strategy),
            tls_mode: connection.tls_mode,
            tls_ca_file: connection.tls_ca_file,
            globals_only: connection.globals_only,
        },
    }
}

fn engine_number(engine: Engine) -> i32 {
    match engine {
        Engine::PostgreSql => proto::DbType::Postgresql.into(),
        Engine::MySql => proto::DbType::Mysql.into(),
        Engine::MariaDb => proto::DbType::Mariadb.into(),
        Engine::MongoDb => proto::DbType::Mongodb.into(),
        Engine::Redis => proto::DbType::Redis.into(),
        Engine::Sqlite => proto::DbType::Sqlite.into(),
        Engine::Unknown(number) => number,
    }
}

fn engine_from_number(number: i32) -> Engine {
    match proto::DbType::try_from(number) {
        Ok(proto::DbType::Postgresql) => Engine::PostgreSql,
        Ok(proto::DbType::Mysql) => Engine::MySql,
        Ok(proto::DbType::Mariadb) => Engine::MariaDb,
        Ok(proto::DbType::Mongodb) => Engine::MongoDb,
        Ok(proto::DbType::Redis) => Engine::Redis,
        Ok(proto::DbType::Sqlite) => Engine::Sqlite,
        Ok(proto::DbType::DbUnspecified) | Err(_) => Engine::Unknown(number),
    }
}

fn way_number(way: Way) -> i32 {
    match way {
        Way::Tcp => proto::ConnectionStrategy::Tcp.into(),
        Way::DockerExec => proto::ConnectionStrategy::DockerExec.into(),
        Way::UnixSocket => proto::ConnectionStrategy::UnixSocket.into(),
        Way::Unknown(number) => number,
    }
}

fn way_from_number(number: i32) -> Way {
    match proto::ConnectionStrategy::try_from(number) {
        Ok(proto::ConnectionStrategy::Tcp) => Way::Tcp,
        Ok(proto::ConnectionStrategy::DockerExec) => Way::DockerExec,
        Ok(proto::ConnectionStrategy::UnixSocket) => Way::UnixSocket,
        Err(_) => Way::Unknown(number),
    }
}

fn job_into_proto(job: Job) -> proto::BackupJobSpec {
    proto::BackupJobSpec {
        id: job.id,
        target_id: job.target_id,
        cron: job.cron,
        retention_days: job.retention_days,
        compression: job.compression,
        encryption_enabled: job.encryption_enabled,
        pre_hooks: job.pre_hooks,
        post_hooks: job.post_hooks,
        upload_bytes_per_sec: job.upload_bytes_per_sec,
        retry: Some(proto::RetryPolicy {
            max_attempts: job.retry.max_attempts,
            backoff_seconds: job.retry.backoff_sec,
        }),
        timeout_sec: job.timeout_sec,
    }
}

fn job_from_proto(job: proto::BackupJobSpec) -> Job {
    Job {
        id: job.id,
        target_id: job.target_id,
        cron: job.cron,
        retention_days: job.retention_days,
        compression: job.compression,
        encryption_enabled: job.encryption_enabled,
        pre_hooks: job.pre_hooks,
        post_hooks: job.post_hooks,
        upload_bytes_per_sec: job.upload_bytes_per_sec,
        retry: job.retry.map_or_else(RetryPolicy::default, |retry| RetryPolicy {
            max_attempts: retry.max_attempts,
            backoff_sec: retry.backoff_seconds,
        }),
        timeout_sec: job.timeout_sec,
    }
}

fn check_into_proto(check: Check) -> proto::HealthCheckSpec {
    proto::HealthCheckSpec {
        id: check.id,
        name: check.name,
        r#type: match check.kind {
            CheckKind::Http => proto::CheckType::Http.into(),
            CheckKind::Https => proto::CheckType::Https.into(),
            CheckKind::Tcp => proto::CheckType::TcpCheck.into(),
            CheckKind::Unknown(number) => number,
        },
        target: check.target,
        interval_sec: check.interval_sec,
        timeout_sec: check.timeout_sec,
        expected_status: check.expected_status,
    }
}

fn check_from_proto(check: proto::HealthCheckSpec) -> Check {
    Check {
        id: check.id,
        name: check.name,
        kind: match proto::CheckType::try_from(check.r#type) {
            Ok(proto::CheckType::Http) => CheckKind::Http,
            Ok(proto::CheckType::Https) => CheckKind::Https,
            Ok(proto::CheckType::TcpCheck) => CheckKind::Tcp,
            Err(_) => CheckKind::Unknown(check.r#type),
        },
        target: check.target,
        interval_sec: check.interval_sec,
        timeout_sec: check.timeout_sec,
        expected_status: check.expected_status,
    }
}
