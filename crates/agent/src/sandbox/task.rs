//! The task that owns a sandbox's state. The module above draws what it does.
//!
//! Here is how it runs and ends; pausing and what follows is in `rest.rs`.

use super::{
    handle::{EndedSandbox, Inbox, Request, Sandbox, SaveTo, Saved},
    membership,
    rest::{Resting, WhilePaused},
    stage::{Stage, not_running},
    start::{Failure, Started, ended_early, start},
};
use crate::{
    admission::Reservation,
    journal::{self, Record},
    metrics::KEPT_AFTER_END,
    parts::Parts,
    states::{ForkName, Lease, StateKey},
};
use api::{
    Problem,
    node::{EndReason, NetworkPolicy, OnTimeout, SandboxState},
};
use driver::{Exit, Machine, NetworkSlot, SaveOptions};
use jiff::Timestamp;
use std::{any::Any, collections::VecDeque, net::IpAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// The pause after a failed attempt to take a machine down doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The same, between attempts to pause a sandbox whose time is up. It lives on meanwhile: what it
/// holds must not be lost.
const PAUSE_RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Timers are never set further ahead than this.
const TIMER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Requests that may wait while the task does something that takes long.
const DEFERRED_MAX: usize = 32;

/// The step of saving in which a sandbox that goes on does not move.
const STANDING_STILL: &str = "save: it stands still";

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

/// A sandbox of an earlier run that goes on.
pub(crate) struct Adopted {
    pub(crate) pin: Option<Box<dyn Any + Send + Sync>>,
    pub(crate) started_at: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) network: NetworkPolicy,
    /// What there is of it.
    pub(crate) found: AdoptedAs,
}

/// What was found of a sandbox of an earlier run.
pub(crate) enum AdoptedAs {
    /// Its machine; also where it is frozen in place.
    Machine {
        machine: Arc<dyn Machine>,
        slot: Arc<NetworkSlot>,
        /// The state that it runs on.
        lease: Option<Lease>,
        /// Set if it is frozen.
        frozen_at: Option<Timestamp>,
    },
    /// The state that it was saved in.
    State {
        lease: Lease,
        memory: bool,
        at: Timestamp,
    },
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
        pin,
        started_at,
        deadline,
        network,
        found,
    } = adopted;
    sandbox.change(|view| {
        view.network = network;
        view.started_at = started_at;
        view.deadline = deadline;
    });
    let mut task = Task::new(parts, sandbox, inbox, reservation);
    let place = match found {
        AdoptedAs::Machine {
            machine,
            slot,
            lease,
            frozen_at,
        } => {
            let started = Started {
                machine,
                slot,
                pin,
                lease,
                started_at,
                deadline,
            };
            task.publish(&started);
            match frozen_at {
                None => Place::Running(started),
                Some(at) => task.find_paused(Resting::frozen(started, at)),
            }
        }
        AdoptedAs::State { lease, memory, at } => {
            let resting = Resting {
                what: WhilePaused::Saved { lease, pin },
                memory,
                at,
            };
            task.enter(SandboxState::Running);
            task.find_paused(resting)
        }
    };
    parts.tasks.spawn(async move {
        membership::recall(&task.parts, &task.sandbox).await;
        if let Place::Running(started) = &place {
            membership::attach_again(&task.parts, &task.sandbox, &started.slot).await;
        }
        task.live(place).await;
    });
}

pub(super) struct Task {
    pub(super) parts: Arc<Parts>,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) inbox: Inbox,
    pub(super) reservation: Reservation,
    /// Answered when nothing is left.
    pub(super) killers: Vec<oneshot::Sender<()>>,
    /// Answered when this task is done, whatever becomes of the sandbox.
    pub(super) leavers: Vec<oneshot::Sender<()>>,
    /// Came while the task did something else.
    pub(super) deferred: VecDeque<Request>,
    /// Somebody wanted its end while the task did something else.
    pub(super) wanted_end: Option<EndReason>,
    /// Pausing it when its time was up has failed: when to try again, and the pause after that.
    put_off: Option<(Instant, Duration)>,
}

/// Where a sandbox is in its life, with what it holds there.
pub(super) enum Place {
    Running(Started),
    Paused(Resting),
}

/// What comes after a place.
pub(super) enum Next {
    Go(Place),
    /// The agent stops; the sandbox goes on as it is.
    Leave,
    /// It ends.
    End(Remains, EndReason),
}

/// What is to be taken down at the end.
#[derive(Default)]
pub(super) struct Remains {
    pub(super) machine: Option<(Arc<dyn Machine>, Arc<NetworkSlot>)>,
    /// The state that it ran on, and the one that it was saved in.
    pub(super) leases: Vec<Lease>,
    pub(super) pin: Option<Box<dyn Any + Send + Sync>>,
}

impl From<Started> for Remains {
    fn from(started: Started) -> Self {
        Self {
            machine: Some((started.machine, started.slot)),
            leases: started.lease.into_iter().collect(),
            pin: started.pin,
        }
    }
}

/// Why a running sandbox does not go on under this task.
enum Turn {
    End(EndReason),
    Leave,
    Pause {
        memory: bool,
        /// None if its time was up.
        done: Option<oneshot::Sender<Result<(), Problem>>>,
    },
}

impl Task {
    fn new(
        parts: &Arc<Parts>,
        sandbox: Arc<Sandbox>,
        inbox: Inbox,
        reservation: Reservation,
    ) -> Self {
        Self {
            parts: parts.clone(),
            sandbox,
            inbox,
            reservation,
            killers: Vec::new(),
            leavers: Vec::new(),
            deferred: VecDeque::new(),
            wanted_end: None,
            put_off: None,
        }
    }

    /// Goes from place to place until the sandbox ends or is left.
    async fn live(mut self, mut place: Place) {
        loop {
            let next = match place {
                Place::Running(started) => self.run(started).await,
                Place::Paused(resting) => self.rest(resting).await,
            };
            place = match next {
                Next::Go(place) => place,
                Next::Leave => return self.leave(),
                Next::End(remains, reason) => return self.end(remains, reason).await,
            };
        }
    }

    /// Does `work` to its end, and meanwhile takes requests: those that want the sandbox's end
    /// count at once, those that can wait do, and the rest is refused.
    pub(super) async fn attend<Output>(&mut self, work: impl Future<Output = Output>) -> Output {
        let mut work = pin!(work);
        loop {
            let request = tokio::select! {
                biased;
                output = &mut work => return output,
                Some(request) = self.inbox.recv() => request,
            };
            let stage = self.sandbox.stage();
            let waits = match &request {
                Request::Resume { .. } => {
                    matches!(stage, Stage::Running | Stage::Pausing | Stage::Resuming)
                }
                _ => stage == Stage::Running,
            };
            match request {
                // What is being saved when the agent stops is kept, and not ended.
                Request::Kill {
                    reason: EndReason::NodeStopped,
                    done,
                } if stage == Stage::Pausing => self.leavers.push(done),
                Request::Kill { reason, done } => {
                    self.killers.push(done);
                    if self.wanted_end.is_none() {
                        self.wanted_end = Some(reason.clone());
                    }
                    let unsettled =
                        matches!(stage, Stage::Starting | Stage::Pausing | Stage::Resuming);
                    if unsettled {
                        self.enter(SandboxState::Stopping { reason });
                    }
                }
                Request::Leave { done } => self.leavers.push(done),
                request if waits && self.deferred.len() < DEFERRED_MAX => {
                    self.deferred.push_back(request);
                }
                request => request.refuse(self.refusal()),
            }
        }
    }

    pub(super) fn refusal(&self) -> Problem {
        not_running(self.sandbox.id(), self.sandbox.stage())
    }

    pub(super) fn enter(&self, state: SandboxState) {
        if let Err(error) = self.sandbox.enter(state) {
            tracing::error!(sandbox = %self.sandbox.id(), "{error}");
        }
    }

    pub(super) fn publish(&self, started: &Started) {
        self.sandbox.set_machine(Some(started.machine.clone()));
        self.sandbox.change(|view| {
            view.started_at = started.started_at;
            view.deadline = started.deadline;
            view.address = Some(IpAddr::V4(started.slot.address));
            view.pause = None;
        });
        if self.sandbox.stage() != Stage::Running {
            self.enter(SandboxState::Running);
        }
    }

    async fn start(mut self) {
        let (parts, sandbox) = (self.parts.clone(), self.sandbox.clone());
        match self.attend(start(&parts, &sandbox)).await {
            Ok(started) => {
                if let SandboxState::Stopping { reason } = self.sandbox.state() {
                    self.sandbox.set_failure(ended_early(&self.sandbox));
                    self.end(started.into(), reason).await;
                } else {
                    self.publish(&started);
                    self.live(Place::Running(started)).await;
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
        tracing::warn!(sandbox = %id, "did not start: {}", failure.problem.cause);
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
        membership::release(&self.parts, &self.sandbox).await;
        self.sandbox.set_failure(failure.problem);
        match failure.remains {
            Some(machine) => {
                let remains = Remains {
                    machine: Some(machine),
                    ..Remains::default()
                };
                self.end(remains, reason).await;
            }
            None => self.finish(reason, at).await,
        }
    }

    async fn run(&mut self, started: Started) -> Next {
        let following = self.follow_logs(&started.slot);
        let turn = self.serve(&started).await;
        following.cancel();
        self.sandbox.set_machine(None);
        match turn {
            Turn::Leave => Next::Leave,
            Turn::End(reason) => Next::End(started.into(), reason),
            Turn::Pause { memory, done } => {
                self.sandbox.set_machine(Some(started.machine.clone()));
                self.pause(started, memory, done).await
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

    /// Serves requests until something else is to be done with the sandbox.
    async fn serve(&mut self, started: &Started) -> Turn {
        let machine = started.machine.clone();
        let mut exit = pin!(machine.wait());
        let mut deadline = self.sandbox.view().deadline;
        let mut timer = pin!(sleep_until(self.timer(deadline)));
        loop {
            if let Some(reason) = self.wanted_end.take() {
                return Turn::End(reason);
            }
            if !self.leavers.is_empty() {
                return Turn::Leave;
            }
            let request = match self.deferred.pop_front() {
                Some(request) => request,
                None => tokio::select! {
                    biased;
                    exit = &mut exit => return Turn::End(ended_by(exit)),
                    () = &mut timer => {
                        if Timestamp::now() < deadline || self.timer(deadline) > Instant::now() {
                            timer.as_mut().reset(self.timer(deadline));
                            continue;
                        }
                        let request = &self.sandbox.request;
                        return match request.on_timeout {
                            OnTimeout::Kill => Turn::End(EndReason::TimedOut),
                            OnTimeout::Pause => Turn::Pause {
                                memory: request.pause_memory,
                                done: None,
                            },
                        };
                    }
                    Some(request) = self.inbox.recv() => request,
                },
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
                Request::Pause { memory, done } => {
                    let done = Some(done);
                    return Turn::Pause { memory, done };
                }
                Request::Resume { timeout, done } => {
                    let later = crate::clock::after(Timestamp::now(), timeout);
                    let result = match later > deadline {
                        true => self.set_deadline(later).await,
                        false => Ok(()),
                    };
                    deadline = self.sandbox.view().deadline;
                    timer.as_mut().reset(self.timer(deadline));
                    let _ = done.send(result.map(|()| false));
                }
                Request::Save { to, memory, done } => {
                    let saved = self.save(started, to, memory).await;
                    if let Err(Ok(saved)) = done.send(saved) {
                        // Nobody waits for it any more, so nobody would remove it.
                        saved.lease.doom();
                    }
                }
                Request::SetDeadline {
                    deadline: next,
                    done,
                } => {
                    let result = self.set_deadline(next).await;
                    deadline = self.sandbox.view().deadline;
                    timer.as_mut().reset(self.timer(deadline));
                    let _ = done.send(result);
                }
                Request::SetNetwork { policy, done } => {
                    let _ = done.send(self.set_network(Some(&started.slot), policy).await);
                }
            }
        }
    }

    /// When to look whether its time is up.
    fn timer(&self, deadline: Timestamp) -> Instant {
        let timer = timer_for(deadline);
        self.put_off.map_or(timer, |(at, _)| timer.max(at))
    }

    /// It could not be paused when its time was up: it lives on, and that is tried again.
    pub(super) fn put_off_pausing(&mut self, problem: &Problem) {
        let pause = self.put_off.map_or(PAUSE_RETRY.0, |(_, pause)| pause);
        tracing::error!(
            sandbox = %self.sandbox.id(),
            "its time is up and it cannot be paused, next try in {pause:?}: {problem}"
        );
        self.put_off = Some((Instant::now() + pause, (pause * 2).min(PAUSE_RETRY.1)));
    }

    async fn set_deadline(&self, deadline: Timestamp) -> Result<(), Problem> {
        let record = Record::Deadline {
            id: self.sandbox.id().clone(),
            deadline,
        };
        let written = self.parts.journal.append(record).await;
        written.map_err(|error| error.problem())?;
        self.sandbox.change(|view| view.deadline = deadline);
        Ok(())
    }

    /// Saves it under a name, and lets it go on.
    async fn save(
        &mut self,
        started: &Started,
        to: SaveTo,
        memory: bool,
    ) -> Result<Saved, Problem> {
        let parts = self.parts.clone();
        parts.admission.has_room_for_a_state()?;
        let (key, about) = match to {
            SaveTo::Fork => (StateKey::Fork(ForkName::random()), None),
            SaveTo::Build(about) => (parts.states.announce(&about)?, Some(*about)),
        };
        let clock = std::time::Instant::now();
        let options = SaveOptions {
            memory,
            goes_on: true,
            // What a fork starts from is of no use to the next run.
            lasts: about.is_some(),
        };
        let (directory, machine) = (parts.states.directory(&key), started.machine.clone());
        let saving = async move { machine.save(&directory, options).await };
        let state = self.attend(saving).await.map_err(|error| {
            parts.states.abandon(&key);
            crate::problems::from_driver(&error)
        })?;
        let took = clock.elapsed();
        if let Some(stood_still) = state.stood_still {
            parts.phases.record_step(STANDING_STILL, stood_still);
        }
        let took = state.stood_still.unwrap_or(took);
        let pin = match &about {
            None => None,
            // A build outlives the sandbox, and so must what it lies on.
            Some(about) => parts.images.root(&about.build.image).await.ok(),
        };
        let lease = parts
            .states
            .add(key, state, about, pin.map(|root| root.pin));
        Ok(Saved { lease, took })
    }

    /// Replaces what it may reach; at once if it has a slot.
    pub(super) async fn set_network(
        &self,
        slot: Option<&NetworkSlot>,
        policy: NetworkPolicy,
    ) -> Result<(), Problem> {
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
        if let Some(slot) = slot
            && let Err(problem) = self
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

    /// Takes a machine down and gives its slot back, for as long as that takes.
    pub(super) async fn release(&mut self, machine: Arc<dyn Machine>, slot: Arc<NetworkSlot>) {
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
    }

    /// Ends it: everybody is told first, then all of it is taken down.
    async fn end(mut self, remains: Remains, reason: EndReason) {
        let at = Timestamp::now();
        if self.sandbox.stage() != Stage::Stopping {
            self.enter(SandboxState::Stopping {
                reason: reason.clone(),
            });
        }
        let stopping = Record::Stopping {
            id: self.sandbox.id().clone(),
            reason: reason.clone(),
        };
        let parts = self.parts.clone();
        if let Err(error) = self.attend(parts.journal.append(stopping)).await {
            tracing::warn!(sandbox = %self.sandbox.id(), "cannot journal its end: {error}");
        }
        membership::release(&parts, &self.sandbox).await;
        let Remains {
            machine,
            leases,
            pin,
        } = remains;
        if let Some((machine, slot)) = machine {
            self.release(machine, slot).await;
        }
        for lease in leases {
            // Templates and snapshots stay.
            if matches!(lease.key(), StateKey::Paused { .. }) {
                lease.doom();
            }
        }
        drop(pin);
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
        for request in self.deferred {
            request.refuse(not_running(&id, Stage::Ended));
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

pub(super) fn ended_by(exit: Exit) -> EndReason {
    match exit {
        Exit::OutOfMemory => EndReason::OutOfMemory,
        Exit::Ended(text) => EndReason::Crashed(text),
    }
}
