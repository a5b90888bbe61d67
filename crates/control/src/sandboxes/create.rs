//! Creating a sandbox: no store write, no question to a node but the one that starts it.

use super::{
    Sandboxes,
    request::{Family, Wanted, check},
};
use crate::{
    error::ApiError,
    idempotency::{self, First},
    mesh::Applicant,
    nodes::{Placed, within},
    plane::Plane,
    records::{Build, Product, Template},
    templates::described,
    usage::Reservation,
};
use api::{
    ErrorCode, Problem, SandboxId, TenantId,
    node::{CreateSandbox, EndReason, OnTimeout, SandboxStatus},
    rest::sandbox::{NewSandbox, Sandbox},
};
use jiff::Timestamp;
use rand::Rng;
use sha2::{Digest, Sha256};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long a node may take to start a sandbox.
const START: Duration = Duration::from_secs(60);

/// How many nodes are tried.
const ATTEMPTS: usize = 3;

impl Sandboxes {
    /// Creates a sandbox. `body` is what the caller sent, `key` his idempotency key.
    ///
    /// If he goes away before he is answered, a sandbox without an idempotency key is ended
    /// again: nobody would know of it.
    pub(crate) async fn create(
        &self,
        request: NewSandbox,
        family: Family,
        body: &[u8],
        key: Option<&str>,
    ) -> Result<Sandbox, ApiError> {
        let wanted = check(request, family, self.timeout_max())?;
        let attempt = match key {
            None => None,
            Some(key) => {
                idempotency::check_key(key)?;
                let path: &[u8] = if family == Family::V1 { b"v1:" } else { b"v2:" };
                let fingerprint = Sha256::new()
                    .chain_update(path)
                    .chain_update(body)
                    .finalize();
                let now = Instant::now();
                let idempotency = &self.plane.idempotency;
                match idempotency.begin(&self.tenant, key, fingerprint.into(), now)? {
                    First::No(answer) => return Ok(*answer),
                    First::Yes(attempt) => Some(attempt),
                }
            }
        };
        let (reply, answer) = oneshot::channel();
        let sandboxes = Self::new(self.plane.clone(), self.tenant.clone(), self.admin);
        self.plane.creations.spawn(async move {
            let who = Applicant {
                tenant: &sandboxes.tenant,
                admin: sandboxes.admin,
            };
            let result = start(&sandboxes.plane, who, wanted).await;
            let keep = attempt.is_some();
            let result = result.map(|status| {
                let sandbox = sandboxes.sandbox(&status);
                if let Some(attempt) = attempt {
                    attempt.answered(&sandbox);
                }
                (sandbox, status.id)
            });
            if let Err(Ok((_, id))) = reply.send(result)
                && !keep
            {
                sandboxes.abandon(&id).await;
            }
        });
        match answer.await {
            Ok(result) => result.map(|(sandbox, _)| sandbox),
            Err(_) => Err(Problem::new(
                ErrorCode::Unavailable,
                "Atoll stopped while the sandbox was created",
                "try again when it is back",
            )
            .into()),
        }
    }

    pub(super) async fn abandon(&self, id: &SandboxId) {
        tracing::info!(sandbox = %id, "its creator went away before it was ready");
        let Some(node) = self.plane.nodes.of(id) else {
            return;
        };
        if let Err(problem) = within(START, node.kill(id, EndReason::Killed)).await {
            tracing::warn!(sandbox = %id, %problem, "could not end it");
        }
        self.plane.usage.forget(&self.tenant, id);
    }
}

async fn start(
    plane: &Plane,
    who: Applicant<'_>,
    wanted: Wanted,
) -> Result<SandboxStatus, ApiError> {
    let tenant = who.tenant;
    let template = plane
        .catalogue
        .resolve(&wanted.template)
        .filter(|template| template.visible_to(tenant))
        .ok_or_else(|| crate::templates::absent(&wanted.template.name))?;
    let (build, product) = plane.builder.usable(&template, wanted.template.tag())?;
    let resources = wanted.resources(&build.recipe.resources, &plane.limits.resources)?;
    let mesh = wanted.mesh.as_ref().or(build.recipe.mesh.as_ref());
    let limit = plane.limits.sandboxes;
    check_pausing(plane, &wanted, &product)?;
    let reservation = plane.usage.reserve(&plane.nodes, tenant, limit).await?;
    let seed: u64 = rand::rng().random();
    let mut tried = Vec::new();
    let mut refreshed = false;
    loop {
        let placed = match plane.nodes.place(&product.images, &resources, &tried, seed) {
            Ok(placed) => placed,
            Err(refusal) if refreshed => {
                return Err(Problem::new(
                    ErrorCode::OutOfCapacity,
                    format!("No node has room for the sandbox: {refusal}"),
                    "kill sandboxes that are no longer needed, or add a node",
                )
                .into());
            }
            // The picture may be older than what ended since.
            Err(_) => {
                plane.nodes.refresh().await;
                refreshed = true;
                continue;
            }
        };
        let mut request = CreateSandbox {
            resources,
            ..request(plane, tenant, &wanted, &template, &build, &product, &placed)
        };
        let id = request.id.clone();
        if let Some(wanted) = mesh {
            match plane.mesh.invite(who, wanted, &id).await {
                Ok(membership) => request.mesh = Some(membership),
                Err(problem) => {
                    plane.nodes.count(&placed.id, &resources, false);
                    return Err(problem.into());
                }
            }
        }
        match within(START, placed.node.create(request)).await {
            Ok(status) => {
                keep(plane, reservation, &status);
                return Ok(status);
            }
            Err(problem) => {
                if mesh.is_some() {
                    plane.mesh.release(&id).await;
                }
                plane.nodes.count(&placed.id, &resources, false);
                tried.push(placed.id);
                match problem.code {
                    ErrorCode::DeadlineExceeded => {
                        // It may still come up: it must not stay unknown.
                        let _ = within(START, placed.node.kill(&id, EndReason::Killed)).await;
                        return Err(problem.into());
                    }
                    ErrorCode::OutOfCapacity | ErrorCode::Unavailable
                        if tried.len() < ATTEMPTS.min(product.images.len()) => {}
                    _ => return Err(problem.into()),
                }
            }
        }
    }
}

/// Refuses what is to be paused with its memory where no node can: its time would never be up.
fn check_pausing(plane: &Plane, wanted: &Wanted, product: &Product) -> Result<(), Problem> {
    let pauses = wanted.on_timeout == OnTimeout::Pause && wanted.pause_memory;
    let able = |id| plane.nodes.keeps_memory(id);
    if !pauses || product.images.keys().all(able) {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::Unsupported,
        "the node's driver cannot keep the memory of a sandbox that is paused when its time is up",
        "set `autoPauseMemory` to false, which keeps its files, or use a node whose driver is qemu \
         or firecracker",
    ))
}

fn keep(plane: &Plane, reservation: Reservation<'_>, status: &SandboxStatus) {
    reservation.keep(status.id.clone());
    plane
        .starts
        .count(&status.template.template, Timestamp::now());
}

fn request(
    plane: &Plane,
    tenant: &TenantId,
    wanted: &Wanted,
    template: &Arc<Template>,
    build: &Build,
    product: &Product,
    placed: &Placed,
) -> CreateSandbox {
    let id = SandboxId::random(plane.nodes.cluster(), &placed.id, &mut rand::rng());
    let access_token = wanted.secure.then(|| plane.instance.access_token(&id));
    let traffic_token =
        (!wanted.network.allow_public_traffic).then(|| plane.instance.traffic_token(&id));
    CreateSandbox {
        tenant: tenant.clone(),
        template: described(
            &template.id,
            &template.name,
            build,
            product,
            placed.image.clone(),
        ),
        resources: build.recipe.resources,
        environment: wanted.environment.clone(),
        metadata: wanted.metadata.clone(),
        timeout: wanted.timeout,
        on_timeout: wanted.on_timeout,
        auto_resume: wanted.auto_resume,
        pause_memory: wanted.pause_memory,
        network: wanted.network.clone(),
        access_token,
        traffic_token,
        mesh: None,
        id,
    }
}
