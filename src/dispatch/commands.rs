//! Commands of the control plane: made durable first, acknowledged then, acted on last.

use std::time::Instant;

use super::messages;
use super::results::{Decision, Verdict};
use super::{CONFIG_KEY, Dispatch, DispatchError, MAX_ID_BYTES, MAX_OPEN};
use crate::artifact::DataKey;
use crate::calendar::window::Window;
use crate::clock::unix_ms;
use crate::config::parse_log_level;
use crate::host::discovery::protect;
use crate::link;
use crate::model::{AgentConfig, UploadCreds};
use crate::observe::logging;
use crate::observe::tap::{Line, TOLD};
use crate::outbox::Message;
use crate::redact::clean;
use crate::runs::state::{Outcome, Phase, Run};
use crate::runs::table::Found;
use crate::runs::worker::{Plan, check_delivery, check_size};
use crate::store::{Space, Store};
use crate::wire::{self, Ack, LogLevel, PartUrls, RunBackup, ServerMessage};

/// The configuration held in the store; the empty one at the first start.
pub(super) fn load_config(store: &Store) -> Result<AgentConfig, DispatchError> {
    match store.get(Space::Config, CONFIG_KEY)? {
        None => Ok(AgentConfig::default()),
        Some(bytes) => wire::config_from_bytes(&bytes)
            .map_err(|error| DispatchError::Config(error.to_string())),
    }
}

impl Dispatch {
    pub(super) fn on_link(&mut self, event: link::Event) {
        match event {
            link::Event::Up { session_id, ack } => {
                log::debug!("session {session_id} is up");
                if let Some(config) = ack.config {
                    // What the server says at the handshake counts, even if it is older.
                    self.take_config(config);
                }
                for run in self.table.open() {
                    if run.phase == Phase::Queued {
                        self.slots.put_progress(&run.run_id, messages::standing(run));
                    }
                }
                self.prove_version();
            }
            link::Event::Down { reason } => log::info!("session ended: {reason}"),
            link::Event::Message { header, message } => {
                self.on_command(header.correlation_id, message);
            }
        }
    }

    fn on_command(&mut self, correlation_id: String, message: ServerMessage) {
        let answer = match message {
            ServerMessage::RunBackup(command) => self.on_run_backup(command),
            ServerMessage::CancelJob { job_id } => return self.on_cancel(correlation_id, &job_id),
            ServerMessage::ConfigUpdate(Some(config)) => self.on_config_update(config),
            ServerMessage::ConfigUpdate(None) => {
                Ok(Err("the update carries no configuration".to_owned()))
            }
            ServerMessage::RunHealthCheck { check_id } => self.on_run_health_check(&check_id),
            ServerMessage::PartUrls(urls) => return self.on_part_urls(&urls),
            ServerMessage::SelfUpdate(command) => self.on_self_update(&command),
            // The link answers pings and reads confirmations; a second RegisterAck and payloads of
            // other versions mean nothing here.
            ServerMessage::RegisterAck(_)
            | ServerMessage::Ping { .. }
            | ServerMessage::Ack(_)
            | ServerMessage::Unknown => return,
        };
        match answer {
            Ok(Ok(())) => self.acknowledge(Ack::ok(correlation_id)),
            Ok(Err(reason)) => {
                log::warn!("refused a command: {reason}");
                self.acknowledge(Ack::refused(correlation_id, reason));
            }
            Err(error) => self.not_durable(&error),
        }
    }

    fn acknowledge(&mut self, ack: Ack) {
        let Some(message) = messages::ack(ack) else { return };
        if let Err(error) = self.commit(Vec::new(), vec![message]) {
            log::error!("failed to store an answer; the control plane has to repeat: {error}");
        }
    }

    /// The command could not be stored, so neither can its answer: the control plane repeats a command
    /// that nobody answered.
    fn not_durable(&self, error: &DispatchError) {
        log::error!("failed to store a command, so it is not answered: {error}");
    }

    /// `Ok(Err(reason))` is a refusal.
    fn on_run_backup(&mut self, command: RunBackup) -> Result<Result<(), String>, DispatchError> {
        if command.run_id.is_empty() {
            return Ok(Err("the command has no run_id".to_owned()));
        }
        if command.run_id.len() > MAX_ID_BYTES || command.job_id.len() > MAX_ID_BYTES {
            return Ok(Err(format!("run_id and job_id may have {MAX_ID_BYTES} bytes at most")));
        }
        match self.table.find(&command.run_id)? {
            Found::Unknown => self.accept(command),
            Found::Open(run) => {
                let run = run.clone();
                self.refresh(run, command)
            }
            Found::Finished(run) => self.repeat_result(messages::result(&run)).map(Ok),
            Found::Tombstone(kind) => {
                let answer = messages::tombstone(&command.run_id, &command.job_id, kind);
                self.repeat_result(vec![answer]).map(Ok)
            }
        }
    }

    /// A new run: durable, then in the high-water file, then acknowledged by the caller.
    fn accept(&mut self, command: RunBackup) -> Result<Result<(), String>, DispatchError> {
        if self.table.open_count() + self.outbox.undelivered_results() >= MAX_OPEN {
            return Ok(Err(format!(
                "{MAX_OPEN} runs are open or undelivered; no more are accepted before some end"
            )));
        }
        let now_ms = unix_ms();
        let run = Run::accept(
            command.run_id,
            command.job_id,
            command.manual_trigger,
            command.upload_creds,
            command.encrypted_dek,
            now_ms,
        );
        // Whoever knows none of this host's jobs has no business to make it send requests.
        let known = self.config.jobs.iter().any(|job| job.id == run.job_id);
        let upload = run.creds.clone().filter(|_| known);
        let refusal = match self.config.jobs.iter().find(|job| job.id == run.job_id) {
            None => Some(format!("job {:?} is not in this agent's configuration", run.job_id)),
            Some(job) => Plan::new(&run, job).err(),
        };
        if let Some(error) = refusal {
            // It may repeat what the configuration says, which has no bound but the message's.
            let error = clean(&error);
            // Accepted and ended in one step: the result says why.
            log::warn!("run {} of job {} failed: {error}", run.run_id, run.job_id);
            let run = run.end(Outcome::Failed { error }, now_ms);
            let messages = messages::result(&run);
            let run_id = run.run_id.clone();
            self.commit(vec![run], messages)?;
            self.give_up(&run_id, upload);
            return Ok(Ok(()));
        }
        log::info!("run {} of job {} accepted", run.run_id, run.job_id);
        let (run_id, standing) = (run.run_id.clone(), messages::standing(&run));
        self.commit(vec![run], Vec::new())?;
        self.save_highwater()?;
        self.slots.put_progress(&run_id, standing);
        Ok(Ok(()))
    }

    /// A repeat of an unfinished run brings new upload credentials; never another key to an attempt
    /// under way.
    fn refresh(
        &mut self,
        mut run: Run,
        command: RunBackup,
    ) -> Result<Result<(), String>, DispatchError> {
        if self.is_unsaved(&run.run_id) {
            return Ok(Ok(()));
        }
        let key_bytes = command.encrypted_dek.expose();
        if !key_bytes.is_empty()
            && let Err(error) = DataKey::from_bytes(key_bytes)
        {
            return Ok(Err(error.to_string()));
        }
        let creds = command.upload_creds.filter(UploadCreds::lead_somewhere);
        if let Some(creds) = &creds {
            if let Err(error) = check_size(creds) {
                return Ok(Err(error));
            }
            run.creds = Some(creds.clone());
        }
        if run.phase == Phase::Queued && !command.encrypted_dek.is_empty() {
            run.data_key = command.encrypted_dek;
        }
        let run_id = run.run_id.clone();
        self.commit(vec![run], Vec::new())?;
        if let (Some(creds), Some(running)) = (creds, self.running.get(&run_id))
            && running.creds.set(creds)
        {
            self.slots.clear_part_urls_request(&run_id);
        }
        // The first command may have failed at just that, and this one is about to be acknowledged.
        if self.highwater_stale {
            self.save_highwater()?;
        }
        Ok(Ok(()))
    }

    /// URLs for an attempt under way. Whatever they answer, if nobody waits for them they mean nothing.
    fn on_part_urls(&mut self, urls: &PartUrls) {
        let Some(running) = self.running.get(&urls.run_id) else { return };
        let result = check_delivery(&urls.parts);
        let error = result.as_ref().map_or_else(String::as_str, |()| &urls.error);
        if running.creds.deliver(&urls.upload_id, &urls.parts, error) {
            self.slots.clear_part_urls_request(&urls.run_id);
        }
    }

    /// Sends a result once more, unless so many wait already that this would only fill the queue.
    fn repeat_result(
        &mut self,
        messages: Vec<crate::outbox::Message>,
    ) -> Result<(), DispatchError> {
        if self.outbox.undelivered_results() >= MAX_OPEN {
            return Ok(());
        }
        self.commit(Vec::new(), messages)
    }

    /// Ends the waiting runs of the job and marks the running ones in one step with the Ack, then stops
    /// those.
    fn on_cancel(&mut self, correlation_id: String, job_id: &str) {
        let now_ms = unix_ms();
        let mut runs = Vec::new();
        let mut messages = Vec::new();
        for run in self.table.open().filter(|run| run.job_id == job_id) {
            if self.is_unsaved(&run.run_id) {
                // Its end is decided already.
            } else if self.running.contains_key(&run.run_id) {
                runs.push(Run { cancel_requested: true, ..run.clone() });
            } else {
                let ended = run.clone().end(Outcome::Cancelled, now_ms);
                messages.extend(messages::result(&ended));
                runs.push(ended);
            }
        }
        log::info!("cancel of job {job_id}: {} runs", runs.len());
        let ended: Vec<String> =
            runs.iter().filter(|run| run.ended().is_some()).map(|run| run.run_id.clone()).collect();
        messages.extend(messages::ack(Ack::ok(correlation_id)));
        if let Err(error) = self.commit(runs, messages) {
            // Perhaps it is on the disk all the same, so these runs must not end in another way.
            for run_id in ended {
                let verdict = Verdict::End(Outcome::Cancelled);
                self.settle_later(Decision { run_id, verdict, warnings: Vec::new() });
            }
            return self.not_durable(&error);
        }
        for run_id in ended {
            self.forget(&run_id);
        }
        for running in self.running.values_mut().filter(|running| running.job_id == job_id) {
            running.cancel();
        }
        self.highwater_or_log();
    }

    fn on_config_update(
        &mut self,
        config: AgentConfig,
    ) -> Result<Result<(), String>, DispatchError> {
        if config.version < self.config.version {
            return Ok(Err(format!(
                "version {} is older than version {}, which is held",
                config.version, self.config.version
            )));
        }
        self.store_config(&config)?;
        self.use_config(config);
        Ok(Ok(()))
    }

    fn take_config(&mut self, config: AgentConfig) {
        if config == self.config {
            return;
        }
        if let Err(error) = self.store_config(&config) {
            log::error!(
                "failed to store configuration {}; it is used, but lost at a restart: {error}",
                config.version
            );
        }
        self.use_config(config);
    }

    fn store_config(&self, config: &AgentConfig) -> Result<(), DispatchError> {
        let mut batch = self.store.batch();
        batch.put(Space::Config, CONFIG_KEY.to_vec(), wire::config_to_bytes(config));
        Ok(self.store.commit(batch)?)
    }

    /// Applies a configuration; what in it cannot be used is said, and the rest is used.
    pub(super) fn use_config(&mut self, config: AgentConfig) {
        let mut complaints = Vec::new();
        self.window = config.maintenance.as_ref().and_then(|window| {
            if window.start_utc.is_empty() && window.end_utc.is_empty() {
                return None;
            }
            Window::parse(&window.start_utc, &window.end_utc)
                .map_err(|error| {
                    complaints.push(format!("maintenance window: {error}; no window is kept"));
                })
                .ok()
        });
        let level = match config.advanced.log_level.as_str() {
            "" => self.log_level,
            text => parse_log_level(text).unwrap_or_else(|| {
                complaints.push(format!("unknown log level {text:?}"));
                self.log_level
            }),
        };
        logging::set_level(level);
        if config.version != self.config.version {
            log::info!(
                "configuration {} with {} targets, {} jobs and {} health checks",
                config.version,
                config.targets.len(),
                config.jobs.len(),
                config.checks.len()
            );
        }
        let same_checks = config.checks == self.config.checks;
        self.config = config;
        self.shared.set_backups(protect::backups(&self.config));
        self.metrics.configure(&self.config, self.table.last_results());
        self.share();
        if !same_checks {
            complaints.extend(self.use_checks());
        }
        for complaint in complaints {
            self.tell(LogLevel::Warn, "", &complaint);
        }
    }

    /// Says something in the log here and in the control plane's.
    pub(super) fn tell(&mut self, level: LogLevel, job_id: &str, text: &str) {
        match level {
            LogLevel::Error => log::error!(target: TOLD, "{text}"),
            LogLevel::Warn => log::warn!(target: TOLD, "{text}"),
            LogLevel::Info | LogLevel::Debug | LogLevel::Trace => {
                log::info!(target: TOLD, "{text}")
            }
        }
        self.queue_log(messages::log_event(level, job_id, text));
    }

    /// A line of the log, which has been printed.
    pub(super) fn on_log(&mut self, line: &Line) {
        let level = if line.level == log::Level::Error { LogLevel::Error } else { LogLevel::Warn };
        self.queue_log(messages::log_event(level, "", &line.text));
    }

    fn queue_log(&mut self, message: Message) {
        if let Err(error) = self.commit(Vec::new(), vec![message]) {
            // Of no use to anybody elsewhere: it would fail the same way.
            log::warn!(target: TOLD, "failed to queue a log event: {error}");
        }
    }

    /// Drops what memory holds about a run that has ended.
    pub(super) fn forget(&mut self, run_id: &str) {
        self.pauses.remove(run_id);
        self.slots.clear_progress(run_id);
    }

    pub(super) fn highwater_or_log(&mut self) {
        if let Err(error) = self.save_highwater() {
            log::error!("failed to write the high-water file: {error}");
        }
    }

    pub(super) fn pause_until(&mut self, run_id: &str, until: Instant) {
        self.pauses.insert(run_id.to_owned(), until);
    }
}
