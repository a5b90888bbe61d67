//! Pausing, resuming and forking.

use super::{Found, Sandboxes, later, list::is_paused};
use crate::{
    error::invalid,
    nodes::{ask, within},
};
use api::{
    Problem, SandboxId,
    node::{ForkChild, SandboxState, SandboxStatus},
};
use jiff::Timestamp;
use std::time::Duration;

/// How long a node may take to save or to bring back a sandbox.
const PATIENCE: Duration = Duration::from_secs(300);

/// The most children of one fork.
const MOST_CHILDREN: i64 = 100;

/// A sandbox that somebody connects to.
pub(crate) struct Connected {
    pub(crate) status: SandboxStatus,
    /// Whether it was paused before.
    pub(crate) resumed: bool,
}

impl Sandboxes {
    /// Pauses a sandbox.
    pub(crate) async fn pause(&self, text: &str, memory: bool) -> Result<(), Problem> {
        let Found { node, status } = self.find(text).await?;
        within(PATIENCE, node.pause(&status.id, memory)).await?;
        self.plane
            .nodes
            .count(&status.id.node(), &status.resources, false);
        Ok(())
    }

    /// Lets a sandbox live at least so long, resumes it if it is paused, and says what it is.
    pub(crate) async fn connect(
        &self,
        text: &str,
        timeout: Duration,
        now: Timestamp,
    ) -> Result<Connected, Problem> {
        let Found { node, status } = self.find(text).await?;
        if status.state == SandboxState::Running {
            let wanted = later(now, timeout);
            let status = if wanted <= status.deadline {
                status
            } else {
                ask(node.set_deadline(&status.id, wanted)).await?
            };
            return Ok(Connected {
                status,
                resumed: false,
            });
        }
        let resumed = within(PATIENCE, node.resume(&status.id, timeout)).await?;
        Ok(Connected {
            status: resumed.status,
            resumed: resumed.was_paused,
        })
    }

    /// Lets a sandbox that runs live at least so long.
    pub(crate) async fn refresh(
        &self,
        text: &str,
        timeout: Duration,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let Found { node, status } = self.find(text).await?;
        let wanted = later(now, timeout);
        if wanted > status.deadline && !is_paused(&status) {
            ask(node.set_deadline(&status.id, wanted)).await?;
        }
        Ok(())
    }

    /// Makes children of a sandbox, and says what became of each.
    pub(crate) async fn fork(
        &self,
        text: &str,
        count: i64,
        timeout: Duration,
    ) -> Result<Vec<Result<SandboxStatus, Problem>>, Problem> {
        if !(1..=MOST_CHILDREN).contains(&count) {
            return Err(invalid(format!(
                "count is {count}: expected 1 to {MOST_CHILDREN}"
            )));
        }
        let Found { node, status } = self.find(text).await?;
        let mut reservations = Vec::new();
        for _ in 0..count {
            let limit = self.plane.limits.sandboxes;
            let usage = &self.plane.usage;
            reservations.push(
                usage
                    .reserve(&self.plane.nodes, &self.tenant, limit)
                    .await?,
            );
        }
        let children = reservations
            .iter()
            .map(|_| self.child(&status, timeout))
            .collect();
        let results = within(PATIENCE, node.fork(&status.id, children)).await?;
        for (reservation, result) in reservations.into_iter().zip(&results) {
            if let Ok(child) = result {
                self.plane
                    .nodes
                    .count(&child.id.node(), &child.resources, true);
                reservation.keep(child.id.clone());
            }
        }
        Ok(results)
    }

    /// What a child has of its own: nothing of its parent's that opens anything.
    fn child(&self, parent: &SandboxStatus, timeout: Duration) -> ForkChild {
        let instance = &self.plane.instance;
        let id = SandboxId::random(
            self.plane.nodes.cluster(),
            &parent.id.node(),
            &mut rand::rng(),
        );
        ForkChild {
            access_token: parent.secure.then(|| instance.access_token(&id)),
            traffic_token: (!parent.network.allow_public_traffic)
                .then(|| instance.traffic_token(&id)),
            timeout,
            metadata: parent.metadata.clone(),
            id,
        }
    }
}
