//! All processes that were started here and are still known.

use super::output::Process;
use crate::logs::Logs;
use api::envd::{
    connect::{Code, ConnectError},
    process::{EndEvent, ProcessInfo, ProcessSelector},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

/// Processes that may run at once.
const RUNNING_LIMIT: usize = 1024;
/// Ended processes that are remembered, and for how long.
const ENDED_LIMIT: usize = 64;
/// How long an ended process is remembered.
const RETENTION: Duration = Duration::from_secs(300);
/// Unseen output that one process may keep, and all together.
const OUTPUT_LIMIT: usize = 1 << 20;
const ALL_OUTPUT_LIMIT: usize = 16 << 20;
/// However many there are, each may keep this much.
const OUTPUT_FLOOR: usize = 16 << 10;

/// The table.
#[derive(Debug)]
pub struct Table {
    running: RefCell<BTreeMap<u32, Rc<Process>>>,
    /// With the moment when each is to be forgotten, the earliest first.
    ended: RefCell<VecDeque<(Instant, Rc<Process>)>>,
    /// Whether the task that forgets them runs.
    forgetting: Cell<bool>,
    bound: Rc<Cell<usize>>,
    logs: Rc<Logs>,
    /// Woken when a process leaves those that run.
    retired: tokio::sync::Notify,
}

impl Table {
    /// An empty table.
    pub fn new(logs: Rc<Logs>) -> Self {
        let bound = Rc::new(Cell::new(OUTPUT_LIMIT));
        Self {
            running: RefCell::default(),
            ended: RefCell::default(),
            forgetting: Cell::new(false),
            bound,
            logs,
            retired: tokio::sync::Notify::new(),
        }
    }

    /// The log.
    pub fn logs(&self) -> &Rc<Logs> {
        &self.logs
    }

    /// How much unseen output each process may keep: less, the more there are.
    pub fn bound(&self) -> &Rc<Cell<usize>> {
        &self.bound
    }

    /// Whether one more may be started.
    pub fn admit(&self) -> Result<(), ConnectError> {
        if self.running.borrow().len() < RUNNING_LIMIT {
            return Ok(());
        }
        Err(ConnectError::new(
            Code::ResourceExhausted,
            format!("{RUNNING_LIMIT} processes run already; end some of them first"),
        ))
    }

    /// Adds a process that was just spawned.
    pub fn insert(&self, process: Rc<Process>) {
        // The number may have been another's that has ended.
        self.ended
            .borrow_mut()
            .retain(|(_, old)| old.pid != process.pid);
        self.running.borrow_mut().insert(process.pid, process);
        self.share();
    }

    /// To be called for each child that was reaped.
    pub fn exited(&self, pid: u32, end: EndEvent) {
        // Orphans are not in the table: they are only let go.
        if let Some(process) = self.running.borrow().get(&pid) {
            process.exit.replace(Some(end));
            process.exited.notify_one();
        }
    }

    /// Returns when a process is not among those that run any more.
    pub async fn wait_for(&self, process: &Rc<Process>) {
        loop {
            let retired = self.retired.notified();
            let runs = self.running.borrow().get(&process.pid).cloned();
            if !runs.is_some_and(|known| Rc::ptr_eq(&known, process)) {
                return;
            }
            retired.await;
        }
    }

    /// Moves a process to those that have ended.
    pub fn retire(self: &Rc<Self>, process: &Rc<Process>) {
        let mut running = self.running.borrow_mut();
        // Its number may be another's by now.
        if running
            .get(&process.pid)
            .is_some_and(|known| Rc::ptr_eq(known, process))
        {
            running.remove(&process.pid);
        }
        drop(running);
        self.retired.notify_waiters();
        let mut ended = self.ended.borrow_mut();
        ended.push_back((Instant::now() + RETENTION, Rc::clone(process)));
        while ended.len() > ENDED_LIMIT {
            ended.pop_front();
        }
        drop(ended);
        self.share();
        if !self.forgetting.replace(true) {
            tokio::task::spawn_local(Rc::clone(self).forget());
        }
    }

    /// Forgets ended processes when it is time, until there are none.
    async fn forget(self: Rc<Self>) {
        loop {
            let next = self.ended.borrow().front().map(|(moment, _)| *moment);
            let Some(moment) = next else {
                self.forgetting.set(false);
                return;
            };
            tokio::time::sleep_until(moment.into()).await;
            let now = Instant::now();
            self.ended.borrow_mut().retain(|(moment, _)| *moment > now);
            self.share();
        }
    }

    /// Forgets all that ended, and what those that run have printed.
    pub fn forget_output(&self) {
        self.ended.take();
        for process in self.running.borrow().values() {
            process.forget_output();
        }
        self.share();
    }

    fn share(&self) {
        let known = self.running.borrow().len() + self.ended.borrow().len();
        let share = ALL_OUTPUT_LIMIT / known.max(1);
        self.bound.set(share.clamp(OUTPUT_FLOOR, OUTPUT_LIMIT));
    }

    /// A process that runs.
    pub fn find(&self, selector: &ProcessSelector) -> Result<Rc<Process>, ConnectError> {
        self.look_up(selector, false)
    }

    /// A process that runs or ended a while ago.
    pub fn find_any(&self, selector: &ProcessSelector) -> Result<Rc<Process>, ConnectError> {
        self.look_up(selector, true)
    }

    fn look_up(
        &self,
        selector: &ProcessSelector,
        also_ended: bool,
    ) -> Result<Rc<Process>, ConnectError> {
        let running = self.running.borrow();
        let ended = self.ended.borrow();
        let old = ended.iter().rev().map(|(_, process)| process);
        let old = old.filter(|_| also_ended);
        match (selector.pid, &selector.tag) {
            (Some(pid), _) => {
                let mut candidates = running.get(&pid).into_iter().chain(old);
                let found = candidates.find(|process| process.pid == pid).cloned();
                found.ok_or_else(|| {
                    ConnectError::not_found(format!("process with pid {pid} not found"))
                })
            }
            (None, Some(tag)) => {
                let mut candidates = running.values().chain(old);
                let found = candidates
                    .find(|process| process.tag.as_ref() == Some(tag))
                    .cloned();
                found.ok_or_else(|| {
                    ConnectError::not_found(format!("process with tag {tag} not found"))
                })
            }
            (None, None) => Err(ConnectError::new(
                Code::Unimplemented,
                "the selector names no process",
            )),
        }
    }

    /// Those that run.
    pub fn list(&self) -> Vec<ProcessInfo> {
        let running = self.running.borrow();
        let info = |process: &Rc<Process>| ProcessInfo {
            config: process.config.clone(),
            pid: process.pid,
            tag: process.tag.clone(),
        };
        running.values().map(info).collect()
    }
}
