//! From a request to a machine that serves.

use super::{handle::Sandbox, stage::Stage};
use crate::{
    journal::Record,
    parts::Parts,
    phases::{Phase, Times},
    problems,
};
use api::{ErrorCode, Problem, boot::Identity, node::CreateSandbox};
use driver::{Machine, NetworkSlot, Origin, Prepared, RootFiles, StartSpec};
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
    pub(super) started_at: Timestamp,
    pub(super) deadline: Timestamp,
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
pub(super) async fn start(parts: &Parts, sandbox: &Sandbox) -> Result<Started, Failure> {
    let began = Instant::now();
    let mut times = Times::default();
    let creating = parts.pool.begin_create();
    let result = start_steps(parts, sandbox, began, &mut times).await;
    drop(creating);
    times.add(Phase::Total, began.elapsed());
    if let Ok(started) = &result {
        let driver = started.machine.phases();
        parts.phases.record(&times, &driver);
        tracing::debug!(sandbox = %sandbox.id(), driver = ?driver.0, "started: {times}");
    }
    result
}

async fn start_steps(
    parts: &Parts,
    sandbox: &Sandbox,
    began: Instant,
    times: &mut Times,
) -> Result<Started, Failure> {
    let request = &*sandbox.request;
    let left = || parts.start_deadline.saturating_sub(began.elapsed());

    let clock = Instant::now();
    let turn = tokio::time::timeout(left(), parts.starts.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        return Err(Failure::before_journal(Problem::new(
            ErrorCode::Unavailable,
            "too many sandboxes are starting on this node",
            "try again in a moment",
        )));
    };
    times.add(Phase::Queue, clock.elapsed());

    let clock = Instant::now();
    let root = parts
        .images
        .root(&request.template.image)
        .await
        .map_err(Failure::before_journal)?;
    times.add(Phase::Image, clock.elapsed());

    let clock = Instant::now();
    let prepared = parts
        .pool
        .claim(left())
        .await
        .map_err(Failure::before_journal)?;
    let slot = prepared.slot().clone();
    times.add(Phase::Claim, clock.elapsed());

    if sandbox.stage() != Stage::Starting {
        parts.pool.put_back(prepared).await;
        return Err(Failure::before_journal(ended_early(sandbox)));
    }

    // Written down before anything of it exists, and closed off from what it may not reach before
    // anything of it runs.
    let clock = Instant::now();
    let starting = Record::Starting {
        request: sandbox.request.clone(),
        control_token: sandbox.control_token.clone(),
        slot: slot.number,
        at: sandbox.view().started_at,
    };
    if let Err(error) = parts.journal.append(starting).await {
        parts.pool.put_back(prepared).await;
        return Err(Failure::before_journal(error.problem()));
    }
    times.add(Phase::Journal, clock.elapsed());

    // A new slot is open, so only closing it is work.
    if !request.network.internet {
        let clock = Instant::now();
        if let Err(problem) = parts.network.set_internet(slot.number, false).await {
            parts.pool.discard(prepared).await;
            return Err(Failure::after_journal(problem));
        }
        times.add(Phase::Network, clock.elapsed());
    }

    let clock = Instant::now();
    let spec = StartSpec {
        origin: Origin::Fresh(RootFiles {
            layers: root.layers,
            disk: None,
        }),
        resources: request.resources,
        identity: identity(sandbox, parts.guest_port),
        host_name: request.id.to_string(),
        name_servers: parts.network.name_servers(),
        deadline: left().max(LEAST_START),
    };
    let machine = run(parts, prepared, spec, &slot).await?;
    times.add(Phase::Start, clock.elapsed());

    let clock = Instant::now();
    let started_at = Timestamp::now();
    let deadline = crate::clock::after(started_at, request.timeout);
    let running = Record::Running {
        id: request.id.clone(),
        machine: machine.record(),
        started_at,
        deadline,
    };
    if let Err(error) = parts.journal.append(running).await {
        let remains = Some((machine, slot));
        return Err(Failure {
            problem: error.problem(),
            journaled: true,
            remains,
        });
    }
    times.add(Phase::Journal, clock.elapsed());
    Ok(Started {
        machine,
        slot,
        pin: Some(root.pin),
        started_at,
        deadline,
    })
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
