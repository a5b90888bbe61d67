//! The task that owns a sandbox's state. The module above draws what it does.

use super::{
    handle::{EndedSandbox, Inbox, Request, Sandbox},
    stage::{Stage, not_running},
    start::{Failure, Started, ended_early, start},
};
use crate::{
    admission::Reservation,
    journal::{self, Record},
    metrics::KEPT_AFTER_END,
    parts::Parts,
};
use api::{
    Problem,
    node::{EndReason, NetworkPolicy, SandboxState},
};
use driver::{Exit, Machine, NetworkSlot};
use jiff::Timestamp;
use std::{any::Any, net::IpAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// The pause after a failed attempt to take a machine down doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Timers are never set further ahead than this.
const TIMER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Starts a sandbox that is in the registry already.
pub(crate) fn spawn_new(
    parts: &Arc<Parts>,
    sandbox: Arc<Sandbox>,
    inbox: Inbox,
    reservation: Reservation,
) {
    let task = Task::new(parts, sandbox, inbox, reservation);
    parts.tasks.spawn(task.start());
}

/// A machine that was found running.
pub(crate) struct Adopted {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) slot: Arc<NetworkSlot>,
    pub(crate) pin: Option<Box<dyn Any + Send + Sync>>,
    pub(crate) started_at: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) network: NetworkPolicy,
}

/// Goes on with a sandbox that ran before this program started.
pub(crate) fn spawn_adopted(
    parts: &Arc<Parts>,
    sandbox: Arc<Sandbox>,
    inbox: Inbox,
    reservation: Reservation,
    adopted: Adopted,
) {
    let Adopted {
        machine,
        slot,
        pin,
        started_at,
        deadline,
        network,
    } = adopted;
    sandbox.change(|view| view.network = network);
    let task = Task::new(parts, sandbox, inbox, reservation);
    let started = Started {
        machine,
        slot,
        pin,
        started_at,
        deadline,
    };
    task.publish(&started);
    parts.tasks.spawn(task.run(started));
}

struct Task {
    parts: Arc<Parts>,
    sandbox: Arc<Sandbox>,
    inbox: Inbox,
    reservation: Reservation,
    /// Answered when nothing is left.
    killers: Vec<oneshot::Sender<()>>,
    /// Answered when this task is done, whatever becomes of the sandbox.
    leavers: Vec<oneshot::Sender<()>>,
}

/// Why a running sandbox does not go on under this task.
enum Turn {
    End(EndReason),
    Leave,
}

impl Task {
    fn new(
        parts: &Arc<Parts>,
        sandbox: Arc<Sandbox>,
        inbox: Inbox,
        reservation: Reservation,
    ) -> Self {
        let (killers, leavers) = (Vec::new(), Vec::new());
        Self {
            parts: parts.clone(),
            sandbox,
            inbox,
            reservation,
            killers,
            leavers,
        }
    }

    /// Does `work` to its end, and meanwhile takes requests that need no running sandbox.
    async fn attend<Output>(&mut self, work: impl Future<Output = Output>) -> Output {
        let mut work = pin!(work);
        loop {
            let request = tokio::select! {
                biased;
                output = &mut work => return output,
                Some(request) = self.inbox.recv() => request,
            };
            match request {
                Request::Kill { reason, done } => {
                    self.killers.push(done);
                    if self.sandbox.stage() == Stage::Starting {
                        self.enter(SandboxState::Stopping { reason });
                    }
                }
                Request::SetDeadline { done, .. } | Request::SetNetwork { done, .. } => {
                    let _ = done.send(Err(self.refusal()));
                }
                Request::Leave { done } => self.leavers.push(done),
            }
        }
    }

    fn refusal(&self) -> Problem {
        not_running(self.sandbox.id(), self.sandbox.stage())
    }

    fn enter(&self, state: SandboxState) {
        if let Err(error) = self.sandbox.enter(state) {
            tracing::error!(sandbox = %self.sandbox.id(), "{error}");
        }
    }

    fn publish(&self, started: &Started) {
        self.sandbox.set_machine(Some(started.machine.clone()));
        self.sandbox.change(|view| {
            view.started_at = started.started_at;
            view.deadline = started.deadline;
            view.address = Some(IpAddr::V4(started.slot.address));
        });
        self.enter(SandboxState::Running);
    }

    async fn start(mut self) {
        let (parts, sandbox) = (self.parts.clone(), self.sandbox.clone());
        match self.attend(start(&parts, &sandbox)).await {
            Ok(started) => {
                if let SandboxState::Stopping { reason } = self.sandbox.state() {
                    self.sandbox.set_failure(ended_early(&self.sandbox));
                    self.take_down(started.machine, started.slot, reason, Timestamp::now())
                        .await;
                } else {
                    self.publish(&started);
                    if self.leavers.is_empty() {
                        self.run(started).await;
                    } else {
                        self.leave();
                    }
                }
            }
            Err(failure) => self.fail(failure).await,
        }
    }

    async fn fail(self, failure: Failure) {
        let id = self.sandbox.id().clone();
        let at = Timestamp::now();
        let reason = match self.sandbox.state() {
            SandboxState::Stopping { reason } => reason,
            _ => EndReason::FailedToStart(failure.problem.cause.clone()),
        };
        if !failure.journaled {
            // Nothing of it ever existed, so there is nothing to remember: whoever asked is told,
            // and may ask again.
            self.sandbox.set_failure(failure.problem);
            self.parts.registry.remove(&id);
            drop(self.reservation);
            if let Err(error) = self.sandbox.enter(SandboxState::Ended { reason, at }) {
                tracing::error!(sandbox = %id, "{error}");
            }
            return;
        }
        tracing::warn!(sandbox = %id, "did not start: {}", failure.problem.cause);
        self.sandbox.set_failure(failure.problem);
        match failure.remains {
            Some((machine, slot)) => {
                if self.sandbox.stage() == Stage::Starting {
                    self.enter(SandboxState::Stopping {
                        reason: reason.clone(),
                    });
                }
                self.take_down(machine, slot, reason, at).await;
            }
            None => self.finish(reason, at).await,
        }
    }

    async fn run(mut self, started: Started) {
        let Started {
            machine,
            slot,
            pin,
            deadline,
            ..
        } = started;
        let following = self.follow_logs(&slot);
        let turn = self.serve(&machine, &slot, deadline).await;
        following.cancel();
        self.sandbox.set_machine(None);
        match turn {
            Turn::Leave => self.leave(),
            Turn::End(reason) => {
                let at = Timestamp::now();
                self.enter(SandboxState::Stopping {
                    reason: reason.clone(),
                });
                let stopping = Record::Stopping {
                    id: self.sandbox.id().clone(),
                    reason: reason.clone(),
                };
                let parts = self.parts.clone();
                if let Err(error) = self.attend(parts.journal.append(stopping)).await {
                    tracing::warn!(sandbox = %self.sandbox.id(), "cannot journal its end: {error}");
                }
                self.take_down(machine, slot, reason, at).await;
                drop(pin);
            }
        }
    }

    fn follow_logs(&self, slot: &NetworkSlot) -> CancellationToken {
        let cancel = self.parts.background.child_token();
        let address = (slot.address, self.parts.guest_port).into();
        let follower = self.parts.logs.follow(
            self.sandbox.id().clone(),
            address,
            self.sandbox.control_token.clone(),
            cancel.clone(),
        );
        self.parts.tasks.spawn(follower);
        cancel
    }

    /// Serves requests until the sandbox ends or is left.
    async fn serve(
        &mut self,
        machine: &Arc<dyn Machine>,
        slot: &NetworkSlot,
        deadline: Timestamp,
    ) -> Turn {
        let mut exit = pin!(machine.wait());
        let mut deadline = deadline;
        let mut timer = pin!(sleep_until(timer_for(deadline)));
        loop {
            let request = tokio::select! {
                biased;
                exit = &mut exit => {
                    return Turn::End(match exit {
                        Exit::OutOfMemory => EndReason::OutOfMemory,
                        Exit::Ended(text) => EndReason::Crashed(text),
                    });
                }
                () = &mut timer => {
                    if Timestamp::now() >= deadline {
                        return Turn::End(EndReason::TimedOut);
                    }
                    timer.as_mut().reset(timer_for(deadline));
                    continue;
                }
                Some(request) = self.inbox.recv() => request,
            };
            match request {
                Request::Kill { reason, done } => {
                    self.killers.push(done);
                    return Turn::End(reason);
                }
                Request::Leave { done } => {
                    self.leavers.push(done);
                    return Turn::Leave;
                }
                Request::SetDeadline {
                    deadline: next,
                    done,
                } => {
                    let record = Record::Deadline {
                        id: self.sandbox.id().clone(),
                        deadline: next,
                    };
                    let result = self.parts.journal.append(record).await;
                    if result.is_ok() {
                        deadline = next;
                        timer.as_mut().reset(timer_for(deadline));
                        self.sandbox.change(|view| view.deadline = next);
                    }
                    let _ = done.send(result.map_err(|error| error.problem()));
                }
                Request::SetNetwork { policy, done } => {
                    let _ = done.send(self.set_network(slot, policy).await);
                }
            }
        }
    }

    async fn set_network(&self, slot: &NetworkSlot, policy: NetworkPolicy) -> Result<(), Problem> {
        let before = self.sandbox.view().network;
        let id = || self.sandbox.id().clone();
        let record = Record::Network {
            id: id(),
            policy: policy.clone(),
        };
        self.parts
            .journal
            .append(record)
            .await
            .map_err(|error| error.problem())?;
        if let Err(problem) = self
            .parts
            .network
            .set_internet(slot.number, policy.internet)
            .await
        {
            let record = Record::Network {
                id: id(),
                policy: before,
            };
            if let Err(error) = self.parts.journal.append(record).await {
                tracing::warn!(sandbox = %id(), "the journal has another policy: {error}");
            }
            return Err(problem);
        }
        self.sandbox.change(|view| view.network = policy);
        Ok(())
    }

    /// Takes the machine down and gives the slot back, for as long as that takes.
    async fn take_down(
        mut self,
        machine: Arc<dyn Machine>,
        slot: Arc<NetworkSlot>,
        reason: EndReason,
        at: Timestamp,
    ) {
        let (parts, id) = (self.parts.clone(), self.sandbox.id().clone());
        self.attend(async move {
            let mut pause = RETRY.0;
            while let Err(error) = machine.destroy().await {
                let error = crate::problems::chain(&error);
                tracing::warn!(sandbox = %id, "cannot take it down, next try in {pause:?}: {error}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
            drop(machine);
            parts.network.release(slot).await;
        })
        .await;
        self.finish(reason, at).await;
    }

    /// Writes down that nothing is left, and tells everybody.
    async fn finish(mut self, reason: EndReason, at: Timestamp) {
        let id = self.sandbox.id().clone();
        let view = self.sandbox.view();
        let state = SandboxState::Ended {
            reason: reason.clone(),
            at,
        };
        let mut status = journal::status(
            &self.sandbox.request,
            state.clone(),
            view.started_at,
            view.deadline,
        );
        status.network = view.network;
        status.template.environment.clear();
        // One memory for the journal and for whoever asks.
        let status = Arc::new(status);
        tracing::debug!(sandbox = %id, ?reason, "ended");
        let record = Record::Ended {
            id: id.clone(),
            reason,
            at,
            status: Some(status.clone()),
        };
        let parts = self.parts.clone();
        if let Err(error) = self.attend(parts.journal.append(record)).await {
            tracing::warn!(sandbox = %id, "cannot journal that it has ended: {error}");
        }
        let samples = self.sandbox.samples();
        let kept = samples.len().saturating_sub(KEPT_AFTER_END);
        let ended = EndedSandbox {
            status,
            samples: samples[kept..].into(),
        };
        drop(self.reservation);
        self.parts.registry.finish(ended);
        if let Err(error) = self.sandbox.enter(state) {
            tracing::error!(sandbox = %id, "{error}");
        }
        for done in self.killers.into_iter().chain(self.leavers) {
            let _ = done.send(());
        }
    }

    /// Lets the sandbox go on without this task.
    fn leave(self) {
        for done in self.leavers {
            let _ = done.send(());
        }
    }
}

/// The timer's moment for a deadline on the wall clock.
fn timer_for(deadline: Timestamp) -> Instant {
    Instant::now() + crate::clock::until(Timestamp::now(), deadline).min(TIMER_MAX)
}
