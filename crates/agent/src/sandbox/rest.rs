//! Pausing a sandbox, what it answers while it is paused, and bringing it back.
//!
//! A driver that saves memory writes the sandbox into a state of its own and the machine is taken
//! down; so does any driver that saves the disk alone. A driver that cannot save memory freezes the
//! machine in place instead: that holds all that it held, and does not outlive the host.

use super::{
    handle::{Pause, Request},
    membership,
    stage::Stage,
    start::{self, Started},
    task::{Next, Place, Remains, Task},
};
use crate::{
    journal::Record,
    problems,
    states::{Lease, StateKey},
};
use api::{
    ErrorCode, Problem,
    node::{EndReason, SandboxState},
};
use driver::SaveOptions;
use jiff::Timestamp;
use std::{any::Any, time::Duration};
use tokio::sync::oneshot;

/// A paused sandbox.
pub(super) struct Resting {
    pub(super) what: WhilePaused,
    pub(super) memory: bool,
    pub(super) at: Timestamp,
}

/// What there is of a paused sandbox.
pub(super) enum WhilePaused {
    /// All of it, frozen.
    Frozen(Box<Started>),
    /// Its state on the disk.
    Saved {
        lease: Lease,
        /// Keeps its root file system from being removed.
        pin: Option<Box<dyn Any + Send + Sync>>,
    },
}

impl Resting {
    pub(super) fn frozen(started: Started, at: Timestamp) -> Self {
        Self {
            what: WhilePaused::Frozen(Box::new(started)),
            memory: true,
            at,
        }
    }
}

impl From<Resting> for Remains {
    fn from(resting: Resting) -> Self {
        match resting.what {
            WhilePaused::Frozen(started) => (*started).into(),
            WhilePaused::Saved { lease, pin } => Self {
                machine: None,
                leases: vec![lease],
                pin,
            },
        }
    }
}

type Done<Answer> = oneshot::Sender<Result<Answer, Problem>>;

impl Task {
    /// Pauses it. On failure it runs on.
    pub(super) async fn pause(
        &mut self,
        started: Started,
        memory: bool,
        done: Option<Done<()>>,
    ) -> Next {
        match self.try_pause(started, memory).await {
            Ok(next) => {
                if let Some(done) = done {
                    let paused = matches!(next, Next::Go(Place::Paused(_)) | Next::Leave);
                    let _ = done.send(if paused { Ok(()) } else { Err(self.refusal()) });
                }
                next
            }
            Err(failed) => {
                let (started, problem) = *failed;
                let wanted_end = self.wanted_end.take();
                if wanted_end.is_none() {
                    if self.sandbox.stage() == Stage::Pausing {
                        self.journal(started.record(&self.sandbox)).await;
                    }
                    self.publish(&started);
                }
                match done {
                    Some(done) => drop(done.send(Err(problem))),
                    None => self.put_off_pausing(&problem),
                }
                match wanted_end {
                    Some(reason) => Next::End(started.into(), reason),
                    None => Next::Go(Place::Running(started)),
                }
            }
        }
    }

    async fn try_pause(
        &mut self,
        started: Started,
        memory: bool,
    ) -> Result<Next, Box<(Started, Problem)>> {
        let parts = self.parts.clone();
        let in_place = memory && !parts.driver.capabilities().memory_snapshot;
        if !in_place && let Err(problem) = parts.admission.has_room_for_a_state() {
            return Err(Box::new((started, problem)));
        }
        let at = Timestamp::now();
        let id = self.sandbox.id().clone();
        let key = (!in_place).then(|| StateKey::Paused {
            sandbox: id.clone(),
            count: parts.states.next_count(&id),
        });
        let pausing = Record::Pausing {
            id: id.clone(),
            state: key.clone(),
            memory,
            at,
        };
        if let Err(error) = parts.journal.append(pausing).await {
            return Err(Box::new((started, error.problem())));
        }
        self.enter(SandboxState::Pausing);
        let machine = started.machine.clone();
        let Some(key) = key else {
            if let Err(error) = self.attend(machine.freeze()).await {
                return Err(Box::new((started, problems::from_driver(&error))));
            }
            if let Some(reason) = self.wanted_end.take() {
                return Ok(Next::End(started.into(), reason));
            }
            membership::detach(&parts, &self.sandbox).await;
            self.journal(Record::Paused { id }).await;
            return Ok(Next::Go(self.find_paused(Resting::frozen(started, at))));
        };
        let options = SaveOptions {
            memory,
            goes_on: false,
            lasts: true,
        };
        let directory = parts.states.directory(&key);
        let state = match self.attend(machine.save(&directory, options)).await {
            Ok(state) => state,
            Err(error) => return Err(Box::new((started, problems::from_driver(&error)))),
        };
        drop(machine);
        let lease = parts.states.add(key, state, None, None);
        if let Some(reason) = self.wanted_end.take() {
            let mut remains = Remains::from(started);
            remains.leases.push(lease);
            return Ok(Next::End(remains, reason));
        }
        // From here on it is paused, whatever happens: the machine stands still for good.
        self.journal(Record::Paused { id }).await;
        let Started {
            machine,
            slot,
            pin,
            lease: before,
            ..
        } = started;
        self.sandbox.set_machine(None);
        membership::detach(&parts, &self.sandbox).await;
        self.release(machine, slot).await;
        // What it ran on goes, unless the new state lies on it.
        drop(before);
        let resting = Resting {
            what: WhilePaused::Saved { lease, pin },
            memory,
            at,
        };
        if let Some(reason) = self.wanted_end.take() {
            return Ok(Next::End(resting.into(), reason));
        }
        Ok(Next::Go(self.find_paused(resting)))
    }

    /// Publishes that it is paused.
    pub(super) fn find_paused(&mut self, resting: Resting) -> Place {
        let in_place = matches!(resting.what, WhilePaused::Frozen(_));
        if !in_place {
            self.reservation.rest();
        }
        self.sandbox.change(|view| {
            view.pause = Some(Pause {
                memory: resting.memory,
                at: resting.at,
                in_place,
            });
            if !in_place {
                view.address = None;
            }
        });
        if self.sandbox.stage() == Stage::Running {
            // It was found like this by a new agent.
            self.enter(SandboxState::Pausing);
        }
        self.enter(SandboxState::Paused);
        Place::Paused(resting)
    }

    /// Answers until it is to be brought back or ends.
    pub(super) async fn rest(&mut self, resting: Resting) -> Next {
        loop {
            if let Some(reason) = self.wanted_end.take() {
                return Next::End(resting.into(), reason);
            }
            if !self.leavers.is_empty() {
                return Next::Leave;
            }
            let request = match (self.deferred.pop_front(), &resting.what) {
                (Some(request), _) => request,
                (None, WhilePaused::Saved { .. }) => match self.inbox.recv().await {
                    Some(request) => request,
                    // Cannot be: the sandbox itself holds the other end.
                    None => return Next::Leave,
                },
                (None, WhilePaused::Frozen(started)) => {
                    let machine = started.machine.clone();
                    tokio::select! {
                        biased;
                        exit = machine.wait() => {
                            return Next::End(resting.into(), super::task::ended_by(exit));
                        }
                        Some(request) = self.inbox.recv() => request,
                    }
                }
            };
            let saved = matches!(resting.what, WhilePaused::Saved { .. });
            match request {
                // It outlives the agent, and even the machine.
                Request::Kill {
                    reason: EndReason::NodeStopped,
                    done,
                } if saved => self.leavers.push(done),
                Request::Kill { reason, done } => {
                    self.killers.push(done);
                    return Next::End(resting.into(), reason);
                }
                Request::Leave { done } => self.leavers.push(done),
                Request::Resume { timeout, done } => {
                    return self.resume(resting, timeout, done).await;
                }
                Request::SetNetwork { policy, done } => {
                    let slot = match &resting.what {
                        WhilePaused::Frozen(started) => Some(started.slot.clone()),
                        WhilePaused::Saved { .. } => None,
                    };
                    let _ = done.send(self.set_network(slot.as_deref(), policy).await);
                }
                Request::Pause { done, .. } => {
                    let _ = done.send(Err(Problem::new(
                        ErrorCode::Conflict,
                        format!("sandbox {} is paused already", self.sandbox.id()),
                        "resume it first if it is to be paused in another way",
                    )));
                }
                request @ (Request::SetDeadline { .. } | Request::Save { .. }) => {
                    request.refuse(self.refusal());
                }
            }
        }
    }

    /// Brings it back. On failure it is paused as before.
    async fn resume(&mut self, resting: Resting, timeout: Duration, done: Done<bool>) -> Next {
        let Resting { what, memory, at } = resting;
        let outcome = match what {
            WhilePaused::Frozen(started) => self.thaw(*started, timeout).await,
            WhilePaused::Saved { lease, pin } => self.restore(lease, pin, timeout).await,
        };
        match outcome {
            Ok(started) => {
                if let Some(reason) = self.wanted_end.take() {
                    let _ = done.send(Err(self.refusal()));
                    return Next::End(started.into(), reason);
                }
                self.publish(&started);
                let _ = done.send(Ok(true));
                Next::Go(Place::Running(started))
            }
            Err(failed) => {
                let (what, problem) = *failed;
                tracing::warn!(sandbox = %self.sandbox.id(), "cannot resume it: {problem}");
                let resting = Resting { what, memory, at };
                let next = match self.wanted_end.take() {
                    Some(reason) => Next::End(resting.into(), reason),
                    None if self.sandbox.stage() == Stage::Resuming => {
                        let id = self.sandbox.id().clone();
                        self.journal(Record::Paused { id }).await;
                        Next::Go(self.find_paused(resting))
                    }
                    None => Next::Go(Place::Paused(resting)),
                };
                let _ = done.send(Err(problem));
                next
            }
        }
    }

    async fn thaw(
        &mut self,
        mut started: Started,
        timeout: Duration,
    ) -> Result<Started, Box<(WhilePaused, Problem)>> {
        let id = self.sandbox.id().clone();
        let resuming = Record::Resuming { id, slot: None };
        let frozen = |started| WhilePaused::Frozen(Box::new(started));
        if let Err(error) = self.parts.journal.append(resuming).await {
            return Err(Box::new((frozen(started), error.problem())));
        }
        self.enter(SandboxState::Resuming);
        let (parts, sandbox) = (self.parts.clone(), self.sandbox.clone());
        let machine = started.machine.clone();
        // First, so that it finds itself where it was.
        let thawing = async {
            membership::attach(&parts, &sandbox, &started.slot).await?;
            let thawed = machine.thaw().await;
            thawed.map_err(|error| problems::from_driver(&error))
        };
        if let Err(problem) = self.attend(thawing).await {
            membership::detach(&parts, &sandbox).await;
            return Err(Box::new((frozen(started), problem)));
        }
        started.deadline = crate::clock::after(Timestamp::now(), timeout);
        self.journal(started.record(&self.sandbox)).await;
        Ok(started)
    }

    async fn restore(
        &mut self,
        lease: Lease,
        pin: Option<Box<dyn Any + Send + Sync>>,
        timeout: Duration,
    ) -> Result<Started, Box<(WhilePaused, Problem)>> {
        if let Err(problem) = self.reservation.wake() {
            return Err(Box::new((WhilePaused::Saved { lease, pin }, problem)));
        }
        self.enter(SandboxState::Resuming);
        let (parts, sandbox) = (self.parts.clone(), self.sandbox.clone());
        let starting = start::resume(&parts, &sandbox, lease.clone(), timeout);
        match self.attend(starting).await {
            Ok(mut started) => {
                started.pin = pin;
                // Its name is free: it stays only for as long as the machine runs on it.
                lease.doom();
                Ok(started)
            }
            Err(failure) => {
                if let Some((machine, slot)) = failure.remains {
                    self.release(machine, slot).await;
                }
                let saved = WhilePaused::Saved { lease, pin };
                Err(Box::new((saved, failure.problem)))
            }
        }
    }

    /// Writes down what has happened already, so that there is no way back.
    async fn journal(&self, record: Record) {
        if let Err(error) = self.parts.journal.append(record).await {
            tracing::error!(sandbox = %self.sandbox.id(), "the journal lags behind: {error}");
        }
    }
}
