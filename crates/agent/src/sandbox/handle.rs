//! A sandbox as everybody but its own task sees it.

use super::stage::{IllegalTransition, Stage};
use crate::{
    journal,
    metrics::Series,
    states::{About, Lease},
};
use api::{
    Problem, SandboxId, Secret,
    node::{
        CreateSandbox, EndReason, MeshPlace, MetricSample, NetworkPolicy, SandboxState,
        SandboxStatus,
    },
    route::Route,
};
use driver::Machine;
use jiff::Timestamp;
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait for one sandbox.
const QUEUE: usize = 32;

/// What can be asked of a sandbox.
pub(crate) enum Request {
    /// End it. The answer comes when nothing of it is left.
    Kill {
        reason: EndReason,
        done: oneshot::Sender<()>,
    },
    /// Move the moment when its time is up.
    SetDeadline {
        deadline: Timestamp,
        done: oneshot::Sender<Result<(), Problem>>,
    },
    /// Replace what it may reach.
    SetNetwork {
        policy: NetworkPolicy,
        done: oneshot::Sender<Result<(), Problem>>,
    },
    /// Save it, or freeze it in place, and release what can be.
    Pause {
        memory: bool,
        done: oneshot::Sender<Result<(), Problem>>,
    },
    /// Bring it back. The answer says whether it was paused.
    Resume {
        timeout: Duration,
        done: oneshot::Sender<Result<bool, Problem>>,
    },
    /// Save it under a name, and let it go on.
    Save {
        to: SaveTo,
        memory: bool,
        done: oneshot::Sender<Result<Saved, Problem>>,
    },
    /// The agent stops, and the sandbox goes on without it.
    Leave { done: oneshot::Sender<()> },
}

impl Request {
    /// Answers that it cannot be done. What wants the sandbox's end is only let go.
    pub(super) fn refuse(self, problem: Problem) {
        // Whoever asked may have gone away.
        match self {
            Self::SetDeadline { done, .. }
            | Self::SetNetwork { done, .. }
            | Self::Pause { done, .. } => drop(done.send(Err(problem))),
            Self::Resume { done, .. } => drop(done.send(Err(problem))),
            Self::Save { done, .. } => drop(done.send(Err(problem))),
            Self::Kill { done, .. } | Self::Leave { done } => drop(done.send(())),
        }
    }
}

/// What a state is saved as.
pub(crate) enum SaveTo {
    /// For the children of a fork.
    Fork,
    /// For sandboxes of a build.
    Build(Box<About>),
}

/// A state that was saved of a sandbox that went on.
pub(crate) struct Saved {
    pub(crate) lease: Lease,
    /// How long the sandbox did nothing else.
    pub(crate) took: Duration,
}

/// The task's end of the queue.
pub(crate) type Inbox = mpsc::Receiver<Request>;

/// What changes in a sandbox's life, as its task last published it.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) state: SandboxState,
    pub(crate) started_at: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) network: NetworkPolicy,
    pub(crate) address: Option<IpAddr>,
    /// Where it is in the mesh; while it is paused, where it will be again.
    pub(crate) mesh: Option<MeshPlace>,
    /// Set while it is paused.
    pub(crate) pause: Option<Pause>,
}

/// How a sandbox is paused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    pub(crate) memory: bool,
    pub(crate) at: Timestamp,
    /// Whether it is only frozen: then it holds all that it held.
    pub(crate) in_place: bool,
}

/// A sandbox that has not ended, or has just.
pub(crate) struct Sandbox {
    pub(crate) request: Arc<CreateSandbox>,
    pub(crate) control_token: Secret,
    view: watch::Sender<View>,
    queue: mpsc::Sender<Request>,
    /// Why it never became usable, for whoever asked for it.
    failure: OnceLock<Problem>,
    /// What it starts from, if that is not what its template says.
    given: Mutex<Option<Lease>>,
    /// Set while it runs, for sampling.
    machine: Mutex<Option<Arc<dyn Machine>>>,
    pub(crate) series: Mutex<Series>,
}

impl Sandbox {
    /// A sandbox that is about to start.
    pub(crate) fn new(
        request: Arc<CreateSandbox>,
        control_token: Secret,
        at: Timestamp,
    ) -> (Arc<Self>, Inbox) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let view = View {
            state: SandboxState::Starting,
            started_at: at,
            deadline: crate::clock::after(at, request.timeout),
            network: request.network.clone(),
            address: None,
            mesh: None,
            pause: None,
        };
        let sandbox = Arc::new(Self {
            request,
            control_token,
            view: watch::Sender::new(view),
            queue,
            failure: OnceLock::new(),
            given: Mutex::new(None),
            machine: Mutex::new(None),
            series: Mutex::default(),
        });
        (sandbox, inbox)
    }

    pub(crate) fn id(&self) -> &SandboxId {
        &self.request.id
    }

    /// The state as it was last published.
    pub(crate) fn stage(&self) -> Stage {
        Stage::of(&self.view.borrow().state)
    }

    pub(crate) fn state(&self) -> SandboxState {
        self.view.borrow().state.clone()
    }

    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    pub(crate) fn status(&self) -> SandboxStatus {
        let view = self.view();
        let mut status = journal::status(&self.request, view.state, view.started_at, view.deadline);
        status.network = view.network;
        status.address = view.address;
        status.mesh = view.mesh;
        status.paused_with_memory = view.pause.map(|pause| pause.memory);
        status.paused_at = view.pause.map(|pause| pause.at);
        status
    }

    /// Where its traffic goes; `None` unless it runs.
    pub(crate) fn route(&self) -> Option<Route> {
        let view = self.view.borrow();
        let address = view
            .address
            .filter(|_| view.state == SandboxState::Running)?;
        Some(Route {
            address,
            traffic_token: self.token_of_ports(&view.network),
            mask_request_host: view.network.mask_request_host.clone(),
            access_token: self.request.access_token.clone(),
        })
    }

    /// The token that opens its ports, running or not; `None` if they are open to all.
    pub(crate) fn traffic_token(&self) -> Option<Secret> {
        self.token_of_ports(&self.view.borrow().network)
    }

    fn token_of_ports(&self, network: &NetworkPolicy) -> Option<Secret> {
        let guarded = !network.allow_public_traffic;
        self.request.traffic_token.clone().filter(|_| guarded)
    }

    /// Publishes another state. Only the sandbox's task calls this and the next.
    pub(crate) fn enter(&self, next: SandboxState) -> Result<(), IllegalTransition> {
        let mut outcome = Ok(());
        self.view.send_if_modified(|view| {
            outcome = Stage::of(&view.state).check(Stage::of(&next));
            if outcome.is_ok() {
                view.state = next;
            }
            outcome.is_ok()
        });
        outcome
    }

    /// Publishes what else changed.
    pub(crate) fn change(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(change);
    }

    /// Says what it starts from.
    pub(crate) fn give(&self, lease: Lease) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
    }

    /// What it was told to start from.
    pub(crate) fn take_given(&self) -> Option<Lease> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.take()
    }

    /// Whether it holds a slot and processes of the machine, or may at any moment.
    pub(crate) fn is_on_the_machine(&self) -> bool {
        let view = self.view.borrow();
        let saved = view.pause.is_some_and(|pause| !pause.in_place);
        !(saved && view.state == SandboxState::Paused)
    }

    pub(crate) fn set_machine(&self, machine: Option<Arc<dyn Machine>>) {
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = machine;
    }

    pub(crate) fn machine(&self) -> Option<Arc<dyn Machine>> {
        self.machine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_failure(&self, problem: Problem) {
        // The first failure is the cause of all others.
        let _ = self.failure.set(problem);
    }

    pub(crate) fn failure(&self) -> Option<&Problem> {
        self.failure.get()
    }

    /// Returns once the sandbox has left a state like this.
    pub(crate) async fn while_in(&self, stages: &[Stage]) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self
            .view
            .subscribe()
            .wait_for(|view| !stages.contains(&Stage::of(&view.state)))
            .await;
    }

    /// Sends a request to the task. False if the task has ended.
    pub(crate) async fn send(&self, request: Request) -> bool {
        self.queue.send(request).await.is_ok()
    }

    pub(crate) fn samples(&self) -> Vec<MetricSample> {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.samples(&self.request.resources)
    }
}

/// A sandbox that has ended, without its secrets.
pub(crate) struct EndedSandbox {
    pub(crate) status: Arc<SandboxStatus>,
    /// Its last samples.
    pub(crate) samples: Box<[MetricSample]>,
}
