//! Pausing, resuming and forking.

use super::{Found, Sandboxes, later, paused};
use crate::{
    error::invalid,
    nodes::{ask, within},
    usage::Reservation,
};
use api::{
    ErrorCode, Problem, SandboxId,
    node::{EndReason, ForkChild, Node, SandboxState, SandboxStatus},
    rest::listing::is_paused,
};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

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

/// What became of each child of a fork.
type Children = Vec<Result<SandboxStatus, Problem>>;

impl Sandboxes {
    /// Pauses a sandbox. It takes no place then, neither of its tenant's nor on its node.
    pub(crate) async fn pause(&self, text: &str, memory: bool) -> Result<(), Problem> {
        let Found { node, status } = self.find(text).await?;
        within(PATIENCE, node.pause(&status.id, memory)).await?;
        self.plane.usage.forget(&self.tenant, &status.id);
        let nodes = &self.plane.nodes;
        nodes.count(&status.id.node(), &status.resources, false);
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
        let id = status.id.clone();
        if status.state == SandboxState::Running {
            let wanted = later(now, timeout);
            let status = if wanted <= status.deadline {
                status
            } else {
                ask(node.set_deadline(&status.id, wanted)).await?
            };
            // Its time may have been up just now.
            if status.state == SandboxState::Running {
                return Ok(Connected {
                    status,
                    resumed: false,
                });
            }
        }
        let reservation = self.reserve().await?;
        let resumed = within(PATIENCE, node.resume(&id, timeout)).await?;
        let status = resumed.status;
        reservation.keep(status.id.clone());
        if resumed.was_paused {
            let nodes = &self.plane.nodes;
            nodes.count(&status.id.node(), &status.resources, true);
        }
        Ok(Connected {
            status,
            resumed: resumed.was_paused,
        })
    }

    async fn reserve(&self) -> Result<Reservation<'_>, Problem> {
        let limit = self.plane.limits.sandboxes;
        let usage = &self.plane.usage;
        usage.reserve(&self.plane.nodes, &self.tenant, limit).await
    }

    /// Lets a sandbox that runs live at least so long.
    pub(crate) async fn refresh(
        &self,
        text: &str,
        timeout: Duration,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let Found { node, status } = self.find(text).await?;
        if is_paused(&status) {
            return Err(paused(&status));
        }
        let wanted = later(now, timeout);
        if wanted > status.deadline {
            ask(node.set_deadline(&status.id, wanted)).await?;
        }
        Ok(())
    }

    /// Makes children of a sandbox, and says what became of each. If the caller goes away before
    /// he is answered, they are ended again: nobody would know of them.
    pub(crate) async fn fork(
        &self,
        text: &str,
        count: i64,
        timeout: Duration,
    ) -> Result<Children, Problem> {
        if !(1..=MOST_CHILDREN).contains(&count) {
            return Err(invalid(format!(
                "count is {count}: expected 1 to {MOST_CHILDREN}"
            )));
        }
        let found = self.find(text).await?;
        let (reply, answer) = oneshot::channel();
        let sandboxes = Self::new(self.plane.clone(), self.tenant.clone(), self.admin);
        self.plane.creations.spawn(async move {
            let result = sandboxes.make_children(found, count, timeout).await;
            if let Err(Ok(children)) = reply.send(result) {
                for child in children.into_iter().flatten() {
                    sandboxes.abandon(&child.id).await;
                }
            }
        });
        answer.await.unwrap_or_else(|_| {
            Err(Problem::new(
                ErrorCode::Unavailable,
                "Atoll stopped while the sandbox was forked",
                "try again when it is back",
            ))
        })
    }

    async fn make_children(
        &self,
        Found { node, status }: Found,
        count: i64,
        timeout: Duration,
    ) -> Result<Children, Problem> {
        let mut reservations = Vec::new();
        for _ in 0..count {
            reservations.push(self.reserve().await?);
        }
        let children: Vec<ForkChild> = reservations
            .iter()
            .map(|_| self.child(&status, timeout))
            .collect();
        let ids: Vec<SandboxId> = children.iter().map(|child| child.id.clone()).collect();
        let results = match within(PATIENCE, node.fork(&status.id, children)).await {
            Ok(results) => results,
            Err(problem) => {
                if problem.code == ErrorCode::DeadlineExceeded {
                    // They may still come up: they must not stay unknown.
                    kill_all(&node, &ids).await;
                }
                return Err(problem);
            }
        };
        for (reservation, result) in reservations.into_iter().zip(&results) {
            match result {
                Ok(child) => {
                    let nodes = &self.plane.nodes;
                    nodes.count(&child.id.node(), &child.resources, true);
                    reservation.keep(child.id.clone());
                }
                Err(problem) => {
                    tracing::warn!(parent = %status.id, %problem, "a child of a fork did not start");
                }
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

async fn kill_all(node: &Arc<dyn Node>, ids: &[SandboxId]) {
    for id in ids {
        if let Err(problem) = ask(node.kill(id, EndReason::Killed)).await {
            tracing::warn!(sandbox = %id, %problem, "could not end a child of a fork");
        }
    }
}
