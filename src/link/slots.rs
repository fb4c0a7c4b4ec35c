//! What is overwritten rather than queued: progress of runs and the discovery report.
//!
//! A step of a run goes out at once and none is skipped (there are few of them). Within a step only the
//! newest percentage counts, and `link-beat` lets it out at most once per interval. The discovery report is
//! kept and sent once in every session, because the next one may be an hour away; so is a run's request for part
//! URLs until it is answered. The number of runs that
//! report is bounded by their admission, and by [`MAX_RUNS`] here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::wire::{AgentMessage, Container, JobUpdate, PartUrlsRequest};

/// Runs with progress; a further one's progress is not shown.
const MAX_RUNS: usize = 1024;

/// Steps of one run that wait; beyond that the oldest is dropped.
const MAX_STEPS: usize = 8;

/// Latest-value slots. Clones share them.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    ready: (Sender<()>, Receiver<()>),
    percent: (Sender<()>, Receiver<()>),
}

#[derive(Debug, Default)]
struct State {
    runs: BTreeMap<String, Run>,
    discovery: Option<Vec<Container>>,
    discovery_due: bool,
    /// By run, and whether this session has not seen it yet.
    part_urls: BTreeMap<String, (PartUrlsRequest, bool)>,
}

#[derive(Debug, Default)]
struct Run {
    last: Option<JobUpdate>,
    steps: VecDeque<JobUpdate>,
    percent: Option<JobUpdate>,
    percent_released: bool,
}

impl Slots {
    /// Nothing in them.
    pub fn new() -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), ready: bounded(1), percent: bounded(1) }))
    }

    /// Replaces the progress of a run; a new step or status is kept beside what waits.
    pub fn put_progress(&self, run_id: &str, update: JobUpdate) {
        let mut state = self.lock();
        if !state.runs.contains_key(run_id) && state.runs.len() >= MAX_RUNS {
            return;
        }
        let run = state.runs.entry(run_id.to_owned()).or_default();
        let same_step = run.last.as_ref().is_some_and(|last| {
            last.status == update.status && last.current_step == update.current_step
        });
        run.last = Some(update.clone());
        if same_step {
            run.percent = Some(update);
            drop(state);
            let _ = self.0.percent.0.try_send(());
        } else {
            run.percent = None;
            if run.steps.len() >= MAX_STEPS {
                run.steps.pop_front();
            }
            run.steps.push_back(update);
            drop(state);
            self.wake();
        }
    }

    /// Forgets a run: its result is on its way, and nothing may come after that.
    pub fn clear_progress(&self, run_id: &str) {
        let mut state = self.lock();
        state.runs.remove(run_id);
        state.part_urls.remove(run_id);
    }

    /// Replaces what a run asks for; goes out at once.
    pub fn put_part_urls_request(&self, request: PartUrlsRequest) {
        let mut state = self.lock();
        if !state.part_urls.contains_key(&request.run_id) && state.part_urls.len() >= MAX_RUNS {
            return;
        }
        state.part_urls.insert(request.run_id.clone(), (request, true));
        drop(state);
        self.wake();
    }

    /// The run needs nothing for now.
    pub fn clear_part_urls_request(&self, run_id: &str) {
        self.lock().part_urls.remove(run_id);
    }

    /// Replaces the discovery report.
    pub fn put_discovery(&self, containers: Vec<Container>) {
        let mut state = self.lock();
        state.discovery = Some(containers);
        state.discovery_due = true;
        drop(state);
        self.wake();
    }

    /// A new session: it has seen nothing yet.
    pub(crate) fn begin_session(&self) {
        let mut state = self.lock();
        state.discovery_due = state.discovery.is_some();
        for (_, due) in state.part_urls.values_mut() {
            *due = true;
        }
    }

    /// There may be something for [`Slots::take`].
    pub(super) fn ready(&self) -> &Receiver<()> {
        &self.0.ready.1
    }

    /// There is a percentage for [`Slots::release`].
    pub(super) fn percent(&self) -> &Receiver<()> {
        &self.0.percent.1
    }

    /// Lets the percentages out.
    pub(super) fn release(&self) {
        for run in self.lock().runs.values_mut() {
            run.percent_released = run.percent.is_some();
        }
        self.wake();
    }

    /// What may go out now, at most `room` messages; the rest stays for the next call.
    pub(crate) fn take(&self, room: usize) -> Vec<AgentMessage> {
        let mut state = self.lock();
        let mut out = Vec::new();
        for (request, due) in state.part_urls.values_mut() {
            if *due && out.len() < room {
                *due = false;
                out.push(AgentMessage::PartUrlsRequest(request.clone()));
            }
        }
        if state.discovery_due && out.len() < room {
            state.discovery_due = false;
            out.extend(state.discovery.clone().map(AgentMessage::Discovery));
        }
        for run in state.runs.values_mut() {
            while out.len() < room
                && let Some(update) = run.next()
            {
                out.push(AgentMessage::JobUpdate(update));
            }
        }
        out
    }

    fn wake(&self) {
        // Full: a wake-up is under way already.
        let _ = self.0.ready.0.try_send(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    fn next(&mut self) -> Option<JobUpdate> {
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        if std::mem::take(&mut self.percent_released) { self.percent.take() } else { None }
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::JobStatus;

    fn update(step: &str, percent: u32) -> JobUpdate {
        JobUpdate {
            job_id: "j".to_owned(),
            run_id: "r".to_owned(),
            status: JobStatus::Running,
            progress_percent: percent,
            current_step: step.to_owned(),
            error_message: String::new(),
        }
    }

    fn taken(slots: &Slots) -> Vec<(String, u32)> {
        let shown = |message| match message {
            AgentMessage::JobUpdate(u) => (u.current_step, u.progress_percent),
            AgentMessage::PartUrlsRequest(r) => (r.run_id, r.first_part),
            AgentMessage::Discovery(c) => ("discovery".to_owned(), c.len() as u32),
            other => panic!("{other:?}"),
        };
        slots.take(100).into_iter().map(shown).collect()
    }

    #[test]
    fn steps_at_once_percentages_when_released() {
        let slots = Slots::new();
        slots.put_progress("r", update("validating", 0));
        slots.put_progress("r", update("dumping", 0));
        slots.put_progress("r", update("dumping", 10));
        slots.put_progress("r", update("dumping", 20));
        let steps = [("validating".to_owned(), 0), ("dumping".to_owned(), 0)];
        assert_eq!(taken(&slots), steps);
        assert!(slots.percent().try_recv().is_ok());
        slots.release();
        assert_eq!(taken(&slots), [("dumping".to_owned(), 20)]);
        slots.release();
        assert!(taken(&slots).is_empty());
    }

    #[test]
    fn a_new_step_replaces_the_old_percentage() {
        let slots = Slots::new();
        slots.put_progress("r", update("dumping", 0));
        slots.put_progress("r", update("dumping", 90));
        slots.put_progress("r", update("uploading", 0));
        slots.release();
        assert_eq!(taken(&slots), [("dumping".to_owned(), 0), ("uploading".to_owned(), 0)]);
    }

    #[test]
    fn nothing_after_clear() {
        let slots = Slots::new();
        slots.put_progress("r", update("dumping", 0));
        slots.clear_progress("r");
        assert!(taken(&slots).is_empty());
    }

    #[test]
    fn bounded() {
        let slots = Slots::new();
        for number in 0..2000 {
            slots.put_progress(&format!("run {number}"), update("dumping", 0));
            slots.put_progress("run 0", update(&format!("step {number}"), 0));
        }
        assert!(slots.lock().runs.len() <= MAX_RUNS);
        assert!(slots.lock().runs.values().all(|run| run.steps.len() <= MAX_STEPS));
        assert_eq!(slots.take(5).len(), 5);
    }

    #[test]
    fn a_request_goes_out_once_per_session_until_it_is_answered() {
        let slots = Slots::new();
        let request = |first_part| {
            let run_id = "r".to_owned();
            PartUrlsRequest { run_id, upload_id: "u".to_owned(), first_part, count: 32 }
        };
        slots.put_part_urls_request(request(9));
        slots.put_part_urls_request(request(41));
        assert_eq!(taken(&slots), [("r".to_owned(), 41)]);
        assert!(taken(&slots).is_empty());
        slots.begin_session();
        assert!(slots.take(0).is_empty());
        assert_eq!(taken(&slots), [("r".to_owned(), 41)]);
        slots.begin_session();
        slots.clear_part_urls_request("r");
        assert!(taken(&slots).is_empty());
        slots.put_part_urls_request(request(73));
        slots.clear_progress("r");
        assert!(taken(&slots).is_empty());
    }

    #[test]
    fn discovery_once_per_session() {
        let slots = Slots::new();
        slots.begin_session();
        assert!(taken(&slots).is_empty());
        slots.put_discovery(vec![]);
        slots.put_discovery(vec![Container::default()]);
        assert_eq!(taken(&slots), [("discovery".to_owned(), 1)]);
        assert!(taken(&slots).is_empty());
        slots.begin_session();
        assert_eq!(taken(&slots), [("discovery".to_owned(), 1)]);
    }
}
