//! From a request to a machine that serves.

use super::{handle::Sandbox, membership, stage::Stage};
use crate::{
    journal::Record,
    parts::Parts,
    phases::{Phase, Times},
    problems,
    source::{self, Source},
    states::Lease,
};
use api::{ErrorCode, Problem, boot::Identity, node::CreateSandbox};
use driver::{Machine, NetworkSlot, Prepared, StartSpec};
use jiff::Timestamp;
use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

/// What a driver is given to start a sandbox, however long it waited for its turn.
const LEAST_START: Duration = Duration::from_secs(5);

/// A sandbox that serves and is journaled as such.
pub(super) struct Started {
    pub(super) machine: Arc<dyn Machine>,
    pub(super) slot: Arc<NetworkSlot>,
    /// Keeps its root file system from being removed.
    pub(super) pin: Option<Box<dyn Any + Send + Sync>>,
    /// Keeps the state that it runs on from being removed.
    pub(super) lease: Option<Lease>,
    pub(super) started_at: Timestamp,
    pub(super) deadline: Timestamp,
}

impl Started {
    /// That it runs, for the journal.
    pub(super) fn record(&self, sandbox: &Sandbox) -> Record {
        Record::Running {
            id: sandbox.id().clone(),
            machine: self.machine.record(),
            started_at: self.started_at,
            deadline: self.deadline,
            origin: self.lease.as_ref().map(|lease| lease.key().clone()),
        }
    }
}

/// Why it did not come to that. Nothing is left of it but what is said here.
pub(super) struct Failure {
    pub(super) problem: Problem,
    /// Whether the journal knows that it was started.
    pub(super) journaled: bool,
    /// A machine that could not be taken down at once.
    pub(super) remains: Option<(Arc<dyn Machine>, Arc<NetworkSlot>)>,
}

impl Failure {
    fn before_journal(problem: Problem) -> Self {
        Self {
            problem,
            journaled: false,
            remains: None,
        }
    }

    fn after_journal(problem: Problem) -> Self {
        Self {
            problem,
            journaled: true,
            remains: None,
        }
    }
}

/// Starts a sandbox. Not to be dropped before it is done.
pub(super) async fn start(parts: &Arc<Parts>, sandbox: &Sandbox) -> Result<Started, Failure> {
    let (began, mut times) = (Instant::now(), Times::default());
    let source = async {
        let clock = Instant::now();
        let request = &sandbox.request;
        let (template, given) = (&request.template, sandbox.take_given());
        let found = source::find(
            parts,
            template,
            request.resources,
            given,
            parts.start_deadline,
        );
        let source = found.await.map_err(Failure::before_journal)?;
        times.add(Phase::Image, clock.elapsed());
        Ok(source)
    };
    let source = source.await?;
    let (starting, at) = (sandbox.request.clone(), sandbox.view().started_at);
    let launch = Launch {
        source,
        renew: true,
        wanted_in: Stage::Starting,
        record: |slot| Record::Starting {
            request: starting,
            control_token: sandbox.control_token.clone(),
            slot,
            at,
        },
        timeout: sandbox.request.timeout,
        started_at: None,
    };
    launch.run(parts, sandbox, began, times).await
}

/// Brings a sandbox back that was saved. Not to be dropped before it is done.
pub(super) async fn resume(
    parts: &Arc<Parts>,
    sandbox: &Sandbox,
    lease: Lease,
    timeout: Duration,
) -> Result<Started, Failure> {
    let (began, times) = (Instant::now(), Times::default());
    if let Err(error) = parts.driver.check(lease.state()) {
        return Err(Failure::before_journal(source::refused(parts, &error)));
    }
    let launch = Launch {
        source: Source::once(lease),
        renew: false,
        wanted_in: Stage::Resuming,
        record: |slot| Record::Resuming {
            id: sandbox.id().clone(),
            slot: Some(slot),
        },
        timeout,
        started_at: Some(sandbox.view().started_at),
    };
    launch.run(parts, sandbox, began, times).await
}

/// How a machine is made of a source.
struct Launch<Recording: FnOnce(u32) -> Record> {
    source: Source,
    /// Whether it becomes somebody new.
    renew: bool,
    /// If the sandbox is in another state, somebody ended it meanwhile.
    wanted_in: Stage,
    /// What is written down before anything of it exists, by its slot.
    record: Recording,
    /// Counted from when it serves.
    timeout: Duration,
    /// If it became usable before.
    started_at: Option<Timestamp>,
}

impl<Recording: FnOnce(u32) -> Record> Launch<Recording> {
    async fn run(
        self,
        parts: &Arc<Parts>,
        sandbox: &Sandbox,
        began: Instant,
        mut times: Times,
    ) -> Result<Started, Failure> {
        let creating = parts.pool.begin_create();
        let result = self.steps(parts, sandbox, began, &mut times).await;
        drop(creating);
        times.add(Phase::Total, began.elapsed());
        if let Ok(started) = &result {
            let driver = started.machine.phases();
            parts.phases.record(&times, &driver);
            tracing::debug!(sandbox = %sandbox.id(), driver = ?driver.0, "started: {times}");
        } else {
            membership::detach(parts, sandbox).await;
        }
        result
    }

    async fn steps(
        self,
        parts: &Arc<Parts>,
        sandbox: &Sandbox,
        began: Instant,
        times: &mut Times,
    ) -> Result<Started, Failure> {
        let request = &*sandbox.request;
        let deadline = self.source.deadline(parts, parts.start_deadline);
        let left = || deadline.saturating_sub(began.elapsed());

        let clock = Instant::now();
        let turn = tokio::time::timeout(left(), parts.starts.acquire()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Failure::before_journal(Problem::new(
                ErrorCode::Unavailable,
                "too many sandboxes are starting on this node",
                "try again in a moment",
            )));
        };
        times.add(Phase::Queue, clock.elapsed());

        let clock = Instant::now();
        let claimed = parts
            .pool
            .claim(&self.source, request.resources, left())
            .await
            .map_err(Failure::before_journal)?;
        let slot = claimed.prepared.slot().clone();
        times.add(Phase::Claim, clock.elapsed());

        if sandbox.stage() != self.wanted_in {
            parts.pool.put_back(claimed).await;
            return Err(Failure::before_journal(ended_early(sandbox)));
        }

        // Written down before anything of it exists, and closed off from what it may not reach
        // before anything of it runs.
        let clock = Instant::now();
        if let Err(error) = parts.journal.append((self.record)(slot.number)).await {
            parts.pool.put_back(claimed).await;
            return Err(Failure::before_journal(error.problem()));
        }
        times.add(Phase::Journal, clock.elapsed());

        // A new slot is open, so only closing it is work.
        let network = sandbox.view().network;
        if !network.internet {
            let clock = Instant::now();
            if let Err(problem) = parts.network.set_internet(slot.number, false).await {
                parts.pool.discard(claimed).await;
                return Err(Failure::after_journal(problem));
            }
            times.add(Phase::Network, clock.elapsed());
        }

        // Joining may have to wait for others, and must not take anybody's turn meanwhile.
        let turn = request.mesh.is_none().then_some(turn);
        let attached = match membership::attach(parts, sandbox, &slot).await {
            Ok(attached) => attached,
            Err(problem) => {
                parts.pool.discard(claimed).await;
                return Err(Failure::after_journal(problem));
            }
        };

        let clock = Instant::now();
        let spec = StartSpec {
            origin: self.source.origin,
            resources: request.resources,
            identity: identity(sandbox, parts.guest_port),
            host_name: request.id.to_string(),
            name_servers: match &attached {
                Some(attached) => vec![attached.name_server],
                None => parts.network.name_servers(),
            },
            search: attached.map(|attached| attached.domain),
            deadline: left().max(LEAST_START),
            renew: self.renew,
        };
        let machine = run(parts, claimed.prepared, spec, &slot).await?;
        drop(turn);
        times.add(Phase::Start, clock.elapsed());

        let clock = Instant::now();
        let now = Timestamp::now();
        let started = Started {
            machine,
            slot,
            pin: self.source.pin,
            lease: self.source.lease,
            started_at: self.started_at.unwrap_or(now),
            deadline: crate::clock::after(now, self.timeout),
        };
        if let Err(error) = parts.journal.append(started.record(sandbox)).await {
            return Err(Failure {
                problem: error.problem(),
                journaled: true,
                remains: Some((started.machine, started.slot)),
            });
        }
        times.add(Phase::Journal, clock.elapsed());
        Ok(started)
    }
}

async fn run(
    parts: &Parts,
    prepared: Box<dyn Prepared>,
    spec: StartSpec,
    slot: &Arc<NetworkSlot>,
) -> Result<Arc<dyn Machine>, Failure> {
    match prepared.start(spec).await {
        Ok(machine) => Ok(Arc::from(machine)),
        Err(error) => {
            // The driver left nothing; what remains is the slot.
            parts.network.release(slot.clone()).await;
            Err(Failure::after_journal(problems::from_driver(&error)))
        }
    }
}

fn identity(sandbox: &Sandbox, port: u16) -> Identity {
    let CreateSandbox {
        id,
        template,
        environment,
        access_token,
        ..
    } = &*sandbox.request;
    let mut variables = template.environment.clone();
    variables.extend(
        environment
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    Identity {
        sandbox: id.clone(),
        template: template.template.clone(),
        access_token: access_token.clone(),
        control_token: sandbox.control_token.clone(),
        environment: variables,
        default_user: template.user.clone(),
        working_directory: template.working_directory.clone(),
        start_command: template.start_command.clone(),
        port,
    }
}

/// What whoever asked for a sandbox gets if somebody ended it before it was usable.
pub(super) fn ended_early(sandbox: &Sandbox) -> Problem {
    Problem::new(
        ErrorCode::Conflict,
        format!("sandbox {} was ended while it started", sandbox.id()),
        "create another one",
    )
}
