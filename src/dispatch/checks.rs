//! Health checks between the configuration and the outbox: which are probed, what came of them, RunHealthCheck.
//!
//! Each batch of results is one write. A result that cannot be stored is given up: the next one comes in a minute.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::{Dispatch, DispatchError, MAX_ID_BYTES, messages};
use crate::host::checks::{CheckResult, Checks};
use crate::model::Check;
use crate::redact::clean;

/// Checks that are listed in a status, those that fail first.
const MAX_SHOWN: usize = 100;

/// The last result of every check that is configured.
pub(super) type LastChecks = BTreeMap<String, CheckResult>;

/// The checks that can be kept, and what is wrong with the rest.
fn usable(checks: &[Check]) -> (Vec<Check>, Vec<String>) {
    let (mut kept, mut complaints, mut ids) = (Vec::new(), Vec::new(), HashSet::new());
    let mut unusable = 0;
    for check in checks {
        if check.id.is_empty() || check.id.len() > MAX_ID_BYTES {
            unusable += 1;
        } else if ids.insert(&check.id) {
            kept.push(check.clone());
        } else {
            unusable += 1;
        }
    }
    if unusable > 0 {
        complaints.push(format!(
            "{unusable} health checks are not run: each one needs an id of its own with {MAX_ID_BYTES} bytes at most"
        ));
    }
    (kept, complaints)
}

impl Dispatch {
    /// Applies the checks of the configuration that is held; the thread exists only while there are any.
    pub(super) fn use_checks(&mut self) -> Vec<String> {
        let (checks, mut complaints) = usable(&self.config.checks);
        let ids: HashSet<&str> = checks.iter().map(|check| check.id.as_str()).collect();
        self.last_checks.retain(|id, _| ids.contains(id.as_str()));
        if checks.is_empty() || self.stopping.is_some() {
            self.checks = None;
            return complaints;
        }
        if self.checks.is_none() {
            match Checks::start(&self.check_means, self.checked.0.clone()) {
                Ok(started) => self.checks = Some(started),
                Err(error) => complaints.push(format!("failed to start the checks: {error}")),
            }
        }
        if let Some(running) = &self.checks {
            running.configure(checks);
        }
        complaints
    }

    /// Ends all probes; what they found so far is queued.
    pub(super) fn stop_checks(&mut self) {
        self.checks = None;
        while let Ok(results) = self.checked.1.try_recv() {
            self.on_checked(results);
        }
    }

    pub(super) fn on_checked(&mut self, mut results: Vec<CheckResult>) {
        // A check that was taken away in the meantime has no result.
        results.retain(|result| self.config.checks.iter().any(|c| c.id == result.check_id));
        let messages = results.iter().map(messages::check_result).collect();
        if let Err(error) = self.commit(Vec::new(), messages) {
            log::warn!("failed to queue {} results of health checks: {error}", results.len());
        }
        for result in results {
            self.metrics.checked(&result);
            self.last_checks.insert(result.check_id.clone(), result);
        }
    }

    /// `Ok(Err(reason))` is a refusal. The wish itself is not kept over a restart.
    pub(super) fn on_run_health_check(
        &mut self,
        id: &str,
    ) -> Result<Result<(), String>, DispatchError> {
        if !self.config.checks.iter().any(|check| check.id == id) {
            let shown: String = clean(id).chars().take(100).collect();
            return Ok(Err(format!("check {shown:?} is not in this agent's configuration")));
        }
        Ok(match &self.checks {
            Some(checks) if checks.run_now(id) => Ok(()),
            Some(_) => Err("too many checks were asked for at once; ask again".to_owned()),
            None => Err("checks do not run at the moment".to_owned()),
        })
    }

    /// The checks for `status`, bounded; those that fail come first.
    pub(super) fn checks_value(&self) -> Value {
        let mut checks: Vec<(&Check, Option<&CheckResult>)> =
            self.config.checks.iter().map(|c| (c, self.last_checks.get(&c.id))).collect();
        checks.sort_by_key(|(check, last)| (last.is_none_or(|last| last.ok), &check.id));
        let failing = self.last_checks.values().filter(|last| !last.ok).count();
        let shown: Vec<Value> = checks
            .iter()
            .take(MAX_SHOWN)
            .map(|(check, last)| {
                json!({
                    "check_id": check.id,
                    "name": check.name,
                    "last_ms": last.map(|last| last.ts_ms),
                    "ok": last.map(|last| last.ok),
                    "latency_ms": last.map(|last| last.latency_ms),
                    "status_code": last.map(|last| last.status_code),
                    "error": last.map(|last| last.error.as_str()),
                })
            })
            .collect();
        json!({"count": checks.len(), "failing": failing, "shown": shown})
    }
}
