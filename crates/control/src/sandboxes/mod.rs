//! The sandboxes of one tenant.
//!
//! [`request`] checks what a caller asks for, [`create`] carries it out,
//! [`api::rest::listing`] filters, orders and pages, [`state`] pauses and forks, [`show`] writes a sandbox the way clients read it.

mod create;
pub(crate) mod request;
pub(crate) mod show;
mod state;

use crate::{
    error::{not_found, shorten},
    nodes::ask,
    plane::Plane,
    usage::{is_live, takes_a_place},
};
use api::{
    ErrorCode, Problem, Resources, SandboxId, Secret, TenantId,
    node::{EndReason, LogLine, MetricSample, NetworkPolicy, Node, SandboxStatus},
    rest::listing::is_paused,
};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// The sandboxes of one tenant: those of others are not there.
pub(crate) struct Sandboxes {
    plane: Arc<Plane>,
    tenant: TenantId,
    /// Whether an administrator asks.
    admin: bool,
}

/// A sandbox of the tenant with the node that it lives on.
pub(crate) struct Found {
    pub(crate) node: Arc<dyn Node>,
    pub(crate) status: SandboxStatus,
}

fn absent(id: &str) -> Problem {
    not_found(format!(
        "Sandbox \"{}\" doesn't exist or you don't have access to it",
        shorten(id)
    ))
}

impl Sandboxes {
    pub(crate) fn new(plane: Arc<Plane>, tenant: TenantId, admin: bool) -> Self {
        Self {
            plane,
            tenant,
            admin,
        }
    }

    /// One sandbox that lives or has ended in the last day. The text is what the caller sent: an
    /// id, maybe with a `-` and an obsolete client id after it.
    pub(crate) async fn find_any(&self, text: &str) -> Result<Found, Problem> {
        let id = text.split('-').next().unwrap_or_default();
        let id: SandboxId = id.parse().map_err(|_| absent(text))?;
        let node = self.plane.nodes.of(&id).ok_or_else(|| absent(text))?;
        match ask(node.get(&id)).await? {
            Some(status) if status.tenant == self.tenant => Ok(Found { node, status }),
            _ => Err(absent(text)),
        }
    }

    /// One sandbox that lives.
    pub(crate) async fn find(&self, text: &str) -> Result<Found, Problem> {
        let found = self.find_any(text).await?;
        if is_live(&found.status) {
            Ok(found)
        } else {
            Err(absent(text))
        }
    }

    /// All sandboxes, those that ended in the last day included.
    pub(crate) async fn all(&self) -> Result<Vec<Arc<SandboxStatus>>, Problem> {
        let mut all = self.plane.nodes.sandboxes().await?;
        all.retain(|status| status.tenant == self.tenant);
        Ok(all)
    }

    /// Ends a sandbox.
    pub(crate) async fn kill(&self, text: &str) -> Result<(), Problem> {
        let Found { node, status } = self.find(text).await?;
        let ended = ask(node.kill(&status.id, EndReason::Killed)).await?;
        self.plane.usage.forget(&self.tenant, &status.id);
        if !ended {
            return Err(absent(text));
        }
        if takes_a_place(&status) {
            let nodes = &self.plane.nodes;
            nodes.count(&status.id.node(), &status.resources, false);
        }
        Ok(())
    }

    /// Sets the moment when a sandbox's time is up. It has none while it is paused.
    pub(crate) async fn set_timeout(
        &self,
        text: &str,
        timeout: Duration,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let Found { node, status } = self.find(text).await?;
        if is_paused(&status) {
            return Err(paused(&status));
        }
        ask(node.set_deadline(&status.id, later(now, timeout)))
            .await
            .map(drop)
    }

    /// Replaces what a sandbox may reach.
    pub(crate) async fn set_internet(&self, text: &str, internet: bool) -> Result<(), Problem> {
        let Found { node, status } = self.find(text).await?;
        let policy = NetworkPolicy {
            internet,
            ..status.network
        };
        ask(node.set_network(&status.id, policy)).await
    }

    /// What a sandbox used between two moments, also after its end.
    pub(crate) async fn metrics(
        &self,
        text: &str,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<Vec<MetricSample>, Problem> {
        let Found { node, status } = self.find_any(text).await?;
        ask(node.metrics(&status.id, from, to)).await
    }

    /// What a sandbox logged, also after its end.
    pub(crate) async fn logs(
        &self,
        text: &str,
        from: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<LogLine>, Problem> {
        let Found { node, status } = self.find_any(text).await?;
        ask(node.logs(&status.id, from, limit)).await
    }

    /// The token that opens a sandbox's guest, if one does.
    pub(crate) fn access_token(&self, status: &SandboxStatus) -> Option<Secret> {
        status
            .secure
            .then(|| self.plane.instance.access_token(&status.id))
    }

    /// The token that opens its ports, if one does.
    pub(crate) fn traffic_token(&self, status: &SandboxStatus) -> Option<Secret> {
        (!status.network.allow_public_traffic)
            .then(|| self.plane.instance.traffic_token(&status.id))
    }

    /// The domain that clients are told.
    pub(crate) fn domain(&self) -> Option<String> {
        self.plane.domain.clone()
    }

    /// The longest life of a sandbox.
    pub(crate) fn timeout_max(&self) -> Duration {
        self.plane.limits.timeout
    }
}

/// A moment some time after another.
fn later(now: Timestamp, by: Duration) -> Timestamp {
    let by = jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX);
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Amounts as clients read them.
pub(crate) fn sizes(resources: &Resources) -> (u32, u64, u64) {
    (
        resources.vcpus,
        resources.memory.as_mebibytes(),
        resources.disk.as_mebibytes(),
    )
}

/// What changing the time of a paused sandbox answers.
fn paused(status: &SandboxStatus) -> Problem {
    Problem::new(
        ErrorCode::Conflict,
        format!("Sandbox {} is paused: its time does not count", status.id),
        "connect to it with the time that it is to live",
    )
}

/// What resuming a sandbox that runs answers.
pub(crate) fn not_paused(status: &SandboxStatus) -> Problem {
    Problem::new(
        ErrorCode::Conflict,
        format!("Sandbox {} is not paused: it runs", status.id),
        "use it as it is",
    )
}
