//! Letting a sandbox in.

use crate::{
    agent::Agent,
    problems,
    sandbox::{Found, Sandbox, Stage, spawn_new},
    states::Lease,
};
use api::{
    Bytes, ErrorCode, Problem, Secret,
    node::{CreateSandbox, SandboxStatus},
};
use driver::DriverKind;
use jiff::Timestamp;
use rand::Rng;
use std::sync::Arc;

/// The most of environment and start command, as JSON: a driver's message to the guest has 256 KiB.
const TOLD_MAX: usize = 224 << 10;

impl Agent {
    /// Checks a request, starts the sandbox, and returns when it is usable. Asking again for the
    /// same sandbox waits for the first answer.
    pub(crate) async fn create_sandbox(
        &self,
        request: CreateSandbox,
    ) -> Result<SandboxStatus, Problem> {
        self.create_from(request, None).await
    }

    /// The same, from another state than its build's if one is given.
    pub(crate) async fn create_from(
        &self,
        request: CreateSandbox,
        given: Option<Lease>,
    ) -> Result<SandboxStatus, Problem> {
        let parts = &self.parts;
        if parts.stopping.is_cancelled() {
            return Err(problems::stopping());
        }
        self.check(&request)?;
        let request = Arc::new(request);
        let id = request.id.clone();
        let mut made = None;
        let taken = parts.registry.insert_new(&id, || {
            let reservation = parts.admission.reserve(&request.resources)?;
            let (sandbox, inbox) = Sandbox::new(request.clone(), random_token(), Timestamp::now());
            if let Some(lease) = given {
                sandbox.give(lease);
            }
            made = Some((sandbox.clone(), inbox, reservation));
            Ok::<_, Problem>(sandbox)
        })?;
        let sandbox = match (taken, made) {
            (None, Some((sandbox, inbox, reservation))) => {
                spawn_new(parts, sandbox.clone(), inbox, reservation);
                sandbox
            }
            (Some(Found::Live(sandbox)), _) if sandbox.request == request => sandbox,
            (Some(Found::Live(_)), _) => {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    format!("sandbox {id} exists already and is another one"),
                    "create it under a new id",
                ));
            }
            (Some(Found::Ended(_)) | None, _) => {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    format!("sandbox {id} has ended"),
                    "create another one under a new id",
                ));
            }
        };
        // A stop that began meanwhile has not seen this sandbox; it must not outlive the agent.
        if parts.stopping.is_cancelled() {
            crate::agent::part_with(sandbox.clone(), self.on_exit).await;
        }
        sandbox.while_in(&[Stage::Starting]).await;
        if sandbox.failure().is_none() && sandbox.stage() != Stage::Running {
            // Ended while it started or right after; wait for the cause.
            sandbox.while_in(&[Stage::Stopping]).await;
        }
        match (sandbox.failure(), sandbox.stage()) {
            (Some(problem), _) => Err(problem.clone()),
            (None, Stage::Running) => Ok(sandbox.status()),
            (None, stage) => Err(Problem::new(
                ErrorCode::Conflict,
                format!("sandbox {id} is {stage} already"),
                "ask for its status to see why",
            )),
        }
    }

    fn check(&self, request: &CreateSandbox) -> Result<(), Problem> {
        let parts = &self.parts;
        let invalid = |cause: String| Problem::new(ErrorCode::InvalidArgument, cause, "");
        if request.id.node() != parts.node {
            return Err(invalid(format!(
                "sandbox {} belongs to node {}, and this is {}",
                request.id,
                request.id.node(),
                parts.node
            )));
        }
        if request.timeout.is_zero() {
            return Err(invalid("a sandbox needs a timeout greater than 0".into()));
        }
        if request.resources.vcpus == 0 || request.resources.memory.0 == 0 {
            return Err(invalid(
                "a sandbox needs at least one processor and some memory".into(),
            ));
        }
        crate::sandbox::check_membership(parts, request.mesh.as_ref())?;
        let told = told_length(request);
        if told > TOLD_MAX {
            return Err(Problem::new(
                ErrorCode::InvalidArgument,
                format!(
                    "environment and start command come to {}, and a sandbox is told {} at most",
                    Bytes(told as u64),
                    Bytes(TOLD_MAX as u64)
                ),
                "pass large values as files, written to the sandbox after it was created",
            ));
        }
        Ok(())
    }
}

/// The bytes that environment and start command take on their way to the guest.
fn told_length(request: &CreateSandbox) -> usize {
    let length = |value: &str| serde_json::to_string(value).map_or(usize::MAX, |text| text.len());
    let template = &request.template;
    template
        .environment
        .iter()
        .chain(&request.environment)
        .map(|(name, value)| length(name).saturating_add(length(value)).saturating_add(2))
        .chain(template.start_command.as_deref().map(length))
        .fold(0, usize::saturating_add)
}

/// A driver as users write it.
pub(crate) fn driver_name(kind: DriverKind) -> &'static str {
    match kind {
        DriverKind::Firecracker => "firecracker",
        DriverKind::Qemu => "qemu",
        DriverKind::Container => "container",
    }
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_token() -> Secret {
    let bits: u128 = rand::rng().random();
    Secret::new(format!("{bits:032x}"))
}
