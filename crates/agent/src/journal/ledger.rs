//! What the journal's records add up to.

use super::record::Record;
use crate::{
    sandbox::{IllegalTransition, Stage},
    states::StateKey,
};
use api::{
    SandboxId, Secret,
    node::{CreateSandbox, EndReason, NetworkPolicy, SandboxState, SandboxStatus},
};
use driver::MachineRecord;
use jiff::Timestamp;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// Ended sandboxes are remembered for this long.
pub(crate) const HISTORY_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The most ended sandboxes that are remembered.
pub(crate) const HISTORY_COUNT: usize = 10_000;

/// A record that cannot follow those before it.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum IllegalRecord {
    /// The sandbox is in a state from which this cannot happen.
    #[error("sandbox {id}: {source}")]
    Transition {
        id: SandboxId,
        #[source]
        source: IllegalTransition,
    },
    /// The journal does not speak of this sandbox before.
    #[error("sandbox {0} was never started")]
    Unknown(SandboxId),
    /// The journal speaks of this sandbox already.
    #[error("sandbox {0} was started twice")]
    Twice(SandboxId),
}

/// A pause, from when it began until the sandbox runs again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rest {
    /// `Pausing`, `Paused` or `Resuming`.
    pub(crate) stage: Stage,
    /// None if it is frozen in place.
    pub(crate) state: Option<StateKey>,
    pub(crate) memory: bool,
    pub(crate) at: Timestamp,
    /// Where it is being brought back.
    pub(crate) slot: Option<u32>,
}

/// A sandbox that has not ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Live {
    pub(crate) request: Arc<CreateSandbox>,
    pub(crate) control_token: Secret,
    pub(crate) slot: u32,
    /// Set once it runs.
    pub(crate) machine: Option<MachineRecord>,
    pub(crate) started_at: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) network: NetworkPolicy,
    /// The state whose files it runs on.
    pub(crate) origin: Option<StateKey>,
    /// Set unless it runs.
    pub(crate) rest: Option<Rest>,
    /// Set once it is being ended.
    pub(crate) stopping: Option<EndReason>,
}

impl Live {
    pub(crate) fn stage(&self) -> Stage {
        match (&self.stopping, &self.rest, &self.machine) {
            (Some(_), _, _) => Stage::Stopping,
            (None, Some(rest), _) => rest.stage,
            (None, None, Some(_)) => Stage::Running,
            (None, None, None) => Stage::Starting,
        }
    }

    /// How it is remembered once it has ended: without secrets.
    pub(crate) fn past(&self, reason: EndReason, at: Timestamp) -> SandboxStatus {
        let state = SandboxState::Ended { reason, at };
        let mut status = status(&self.request, state, self.started_at, self.deadline);
        status.network = self.network.clone();
        status.template.environment.clear();
        status
    }
}

/// A sandbox's status from what was asked for and what became of it.
pub(crate) fn status(
    request: &CreateSandbox,
    state: SandboxState,
    started_at: Timestamp,
    deadline: Timestamp,
) -> SandboxStatus {
    SandboxStatus {
        id: request.id.clone(),
        tenant: request.tenant.clone(),
        template: request.template.clone(),
        resources: request.resources,
        metadata: request.metadata.clone(),
        state,
        started_at,
        deadline,
        on_timeout: request.on_timeout,
        auto_resume: request.auto_resume,
        network: request.network.clone(),
        secure: request.access_token.is_some(),
        address: None,
        paused_with_memory: None,
        paused_at: None,
        mesh: None,
    }
}

/// All that the journal knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ledger {
    /// Sandboxes that have not ended.
    pub(crate) live: HashMap<SandboxId, Live>,
    /// Sandboxes that have.
    pub(crate) past: HashMap<SandboxId, Arc<SandboxStatus>>,
    /// Slots that hold a prepared sandbox.
    pub(crate) reserved: BTreeSet<u32>,
}

impl Ledger {
    /// Takes one more record into account. An illegal one changes nothing.
    pub(crate) fn apply(&mut self, record: &Record) -> Result<(), IllegalRecord> {
        match record {
            Record::Reserved { slot } => {
                self.reserved.insert(*slot);
            }
            Record::Released { slot } => {
                self.reserved.remove(slot);
            }
            Record::Starting {
                request,
                control_token,
                slot,
                at,
            } => {
                if self.live.contains_key(&request.id) || self.past.contains_key(&request.id) {
                    return Err(IllegalRecord::Twice(request.id.clone()));
                }
                self.reserved.remove(slot);
                self.live.insert(
                    request.id.clone(),
                    Live {
                        request: request.clone(),
                        control_token: control_token.clone(),
                        slot: *slot,
                        machine: None,
                        started_at: *at,
                        deadline: crate::clock::after(*at, request.timeout),
                        network: request.network.clone(),
                        origin: None,
                        rest: None,
                        stopping: None,
                    },
                );
            }
            Record::Running {
                id,
                machine,
                started_at,
                deadline,
                origin,
            } => {
                let live = self.enter(id, Stage::Running)?;
                live.machine = Some(machine.clone());
                live.slot = machine.slot;
                live.origin = origin.clone();
                live.rest = None;
                live.started_at = *started_at;
                live.deadline = *deadline;
            }
            Record::Pausing {
                id,
                state,
                memory,
                at,
            } => {
                self.enter(id, Stage::Pausing)?.rest = Some(Rest {
                    stage: Stage::Pausing,
                    state: state.clone(),
                    memory: *memory,
                    at: *at,
                    slot: None,
                });
            }
            Record::Paused { id } => {
                if let Some(rest) = &mut self.enter(id, Stage::Paused)?.rest {
                    rest.stage = Stage::Paused;
                    rest.slot = None;
                }
            }
            Record::Resuming { id, slot } => {
                if let Some(rest) = &mut self.enter(id, Stage::Resuming)?.rest {
                    rest.stage = Stage::Resuming;
                    rest.slot = *slot;
                }
                if let Some(slot) = slot {
                    self.reserved.remove(slot);
                }
            }
            Record::Deadline { id, deadline } => self.live(id)?.deadline = *deadline,
            Record::Network { id, policy } => self.live(id)?.network = policy.clone(),
            Record::Stopping { id, reason } => {
                self.enter(id, Stage::Stopping)?.stopping = Some(reason.clone());
            }
            Record::Ended {
                id,
                reason,
                at,
                status,
            } => {
                let live = self.enter(id, Stage::Ended)?;
                let status = status
                    .clone()
                    .unwrap_or_else(|| Arc::new(live.past(reason.clone(), *at)));
                self.live.remove(id);
                self.past.insert(id.clone(), status);
            }
            Record::Past { status } => {
                if self.live.contains_key(&status.id) {
                    return Err(IllegalRecord::Twice(status.id.clone()));
                }
                self.past.insert(status.id.clone(), status.clone());
            }
        }
        Ok(())
    }

    fn live(&mut self, id: &SandboxId) -> Result<&mut Live, IllegalRecord> {
        self.live
            .get_mut(id)
            .ok_or_else(|| IllegalRecord::Unknown(id.clone()))
    }

    fn enter(&mut self, id: &SandboxId, next: Stage) -> Result<&mut Live, IllegalRecord> {
        if self.past.contains_key(id) {
            let source = IllegalTransition {
                from: Stage::Ended,
                to: next,
            };
            return Err(IllegalRecord::Transition {
                id: id.clone(),
                source,
            });
        }
        let live = self.live(id)?;
        live.stage()
            .check(next)
            .map_err(|source| IllegalRecord::Transition {
                id: id.clone(),
                source,
            })?;
        Ok(live)
    }

    /// Forgets sandboxes that ended too long ago, and the oldest of too many.
    pub(crate) fn prune(&mut self, now: Timestamp) {
        self.past
            .retain(|_, status| crate::clock::until(ended_at(status), now) <= HISTORY_TIME);
        if self.past.len() > HISTORY_COUNT {
            let mut by_end: Vec<_> = self
                .past
                .values()
                .map(|status| (ended_at(status), status.id.clone()))
                .collect();
            by_end.sort();
            for (_, id) in &by_end[..by_end.len() - HISTORY_COUNT] {
                self.past.remove(id);
            }
        }
    }

    /// The fewest records that add up to the same.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self
            .past
            .values()
            .map(|status| Record::Past {
                status: status.clone(),
            })
            .collect();
        for (id, live) in &self.live {
            let id = || id.clone();
            records.push(Record::Starting {
                request: live.request.clone(),
                control_token: live.control_token.clone(),
                slot: live.slot,
                at: live.started_at,
            });
            if let Some(machine) = &live.machine {
                records.push(Record::Running {
                    id: id(),
                    machine: machine.clone(),
                    started_at: live.started_at,
                    deadline: live.deadline,
                    origin: live.origin.clone(),
                });
            } else if live.deadline != crate::clock::after(live.started_at, live.request.timeout) {
                records.push(Record::Deadline {
                    id: id(),
                    deadline: live.deadline,
                });
            }
            if live.network != live.request.network {
                records.push(Record::Network {
                    id: id(),
                    policy: live.network.clone(),
                });
            }
            if let Some(rest) = &live.rest {
                records.push(Record::Pausing {
                    id: id(),
                    state: rest.state.clone(),
                    memory: rest.memory,
                    at: rest.at,
                });
                if rest.stage != Stage::Pausing {
                    records.push(Record::Paused { id: id() });
                }
                if rest.stage == Stage::Resuming {
                    records.push(Record::Resuming {
                        id: id(),
                        slot: rest.slot,
                    });
                }
            }
            if let Some(reason) = &live.stopping {
                records.push(Record::Stopping {
                    id: id(),
                    reason: reason.clone(),
                });
            }
        }
        // Last, because a sandbox that starts takes its slot out of them.
        records.extend(
            self.reserved
                .iter()
                .map(|slot| Record::Reserved { slot: *slot }),
        );
        records
    }
}

/// When a sandbox ended.
pub(crate) fn ended_at(status: &SandboxStatus) -> Timestamp {
    match status.state {
        SandboxState::Ended { at, .. } => at,
        _ => status.started_at,
    }
}
