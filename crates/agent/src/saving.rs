//! Pausing, resuming, taking snapshots and forking, as the control plane and the gateway ask for it.

use crate::{
    agent::Agent,
    problems,
    sandbox::{Found, Request, Sandbox, SaveTo, Saved, Stage},
    states::{About, Lease, Purpose},
};
use api::{
    Bytes, ErrorCode, Problem, SandboxId,
    node::{CreateSandbox, ForkChild, Resumed, SandboxStatus, SnapshotInfo, TemplateBuild},
    route::Route,
};
use jiff::Timestamp;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// How long saving a sandbox may take: its memory is written to the disk.
const SAVE_DEADLINE: Duration = Duration::from_secs(120);

/// A sandbox that traffic woke lives at least so long.
const WOKEN_FOR: Duration = Duration::from_secs(300);

/// The most children of one fork.
const CHILDREN_MAX: usize = 100;

impl Agent {
    /// Sends a request to a sandbox that has not ended and waits for the answer.
    pub(crate) async fn ask<Answer>(
        &self,
        id: &SandboxId,
        deadline: Duration,
        request: impl FnOnce(oneshot::Sender<Result<Answer, Problem>>) -> Request,
    ) -> Result<(Arc<Sandbox>, Answer), Problem> {
        let ended = || crate::sandbox::not_running(id, Stage::Ended);
        let sandbox = match self.parts.registry.find(id) {
            Some(Found::Live(sandbox)) => sandbox,
            Some(Found::Ended(_)) => return Err(ended()),
            None => return Err(problems::unknown(id)),
        };
        let (done, answer) = oneshot::channel();
        let exchange = async {
            if sandbox.send(request(done)).await {
                answer.await.ok()
            } else {
                None
            }
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(Some(result)) => result.map(|answer| (sandbox, answer)),
            Ok(None) => Err(ended()),
            Err(_) => Err(Problem::new(
                ErrorCode::DeadlineExceeded,
                format!("sandbox {id} did not answer in time"),
                "try again; if it stays like this, look at the node's log",
            )),
        }
    }

    fn is_open(&self) -> Result<(), Problem> {
        match self.parts.stopping.is_cancelled() {
            true => Err(problems::stopping()),
            false => Ok(()),
        }
    }

    /// See [`api::node::Node::pause`].
    pub(crate) async fn pause_sandbox(
        &self,
        id: &SandboxId,
        memory: bool,
    ) -> Result<SandboxStatus, Problem> {
        self.is_open()?;
        let pause = |done| Request::Pause { memory, done };
        let (sandbox, ()) = self.ask(id, SAVE_DEADLINE, pause).await?;
        Ok(sandbox.status())
    }

    /// See [`api::node::Node::resume`].
    pub(crate) async fn resume_sandbox(
        &self,
        id: &SandboxId,
        timeout: Duration,
    ) -> Result<Resumed, Problem> {
        self.is_open()?;
        let resume = |done| Request::Resume { timeout, done };
        let (sandbox, was_paused) = self.ask(id, SAVE_DEADLINE, resume).await?;
        Ok(Resumed {
            status: sandbox.status(),
            was_paused,
        })
    }

    /// See [`api::node::Node::snapshot`].
    pub(crate) async fn snapshot_sandbox(
        &self,
        id: &SandboxId,
        build: TemplateBuild,
        memory: bool,
    ) -> Result<SnapshotInfo, Problem> {
        self.is_open()?;
        let Some(sandbox) = self.parts.registry.live(id) else {
            return Err(problems::unknown(id));
        };
        let about = About {
            build: build.clone(),
            resources: sandbox.request.resources,
            purpose: Purpose::Snapshot,
            made_at: Timestamp::now(),
        };
        let save = |done| Request::Save {
            to: SaveTo::Build(Box::new(about)),
            memory,
            done,
        };
        let (_, Saved { lease, took }) = self.ask(id, SAVE_DEADLINE, save).await?;
        Ok(SnapshotInfo {
            build: build.build,
            size: Bytes(self.parts.states.size(lease.key())),
            memory: lease.state().memory.is_some(),
            resources: lease.state().resources,
            stood_still: took,
        })
    }

    /// See [`api::node::Node::fork`].
    pub(crate) async fn fork_sandbox(
        &self,
        id: &SandboxId,
        children: Vec<ForkChild>,
    ) -> Result<Vec<Result<SandboxStatus, Problem>>, Problem> {
        self.is_open()?;
        check_children(&children)?;
        let (agent, id) = (self.clone(), id.clone());
        // A task of its own: were it dropped halfway, nobody would remove what it saved.
        let task = tokio::spawn(async move {
            let save = |done| Request::Save {
                to: SaveTo::Fork,
                memory: agent.parts.driver.capabilities().memory_snapshot,
                done,
            };
            let (parent, Saved { lease, took }) = agent.ask(&id, SAVE_DEADLINE, save).await?;
            tracing::debug!(sandbox = %id, ?took, "saved for a fork");
            let starting = children
                .into_iter()
                .map(|child| agent.create_child(&parent, child, lease.clone()));
            let made = futures::future::join_all(starting).await;
            lease.doom();
            Ok(made)
        });
        task.await.unwrap_or_else(|error| {
            Err(Problem::new(
                ErrorCode::Internal,
                format!("forking ended unexpectedly: {error}"),
                "look at the node's log",
            ))
        })
    }

    async fn create_child(
        &self,
        parent: &Sandbox,
        child: ForkChild,
        lease: Lease,
    ) -> Result<SandboxStatus, Problem> {
        let request = CreateSandbox {
            id: child.id,
            access_token: child.access_token,
            traffic_token: child.traffic_token,
            timeout: child.timeout,
            metadata: child.metadata,
            network: parent.view().network,
            // Nobody is in the mesh twice.
            mesh: None,
            ..(*parent.request).clone()
        };
        self.create_from(request, Some(lease)).await
    }

    /// See [`api::route::Locate::wake`].
    pub(crate) async fn wake_sandbox(&self, id: &SandboxId) -> Result<Option<Route>, Problem> {
        let waking = async {
            loop {
                let Some(sandbox) = self.parts.registry.live(id) else {
                    return Ok(None);
                };
                let request = &sandbox.request;
                match sandbox.stage() {
                    Stage::Running => return Ok(sandbox.route()),
                    Stage::Starting | Stage::Stopping | Stage::Ended => return Ok(None),
                    Stage::Resuming => sandbox.while_in(&[Stage::Resuming]).await,
                    Stage::Pausing if request.auto_resume => {
                        sandbox.while_in(&[Stage::Pausing]).await;
                    }
                    stage @ Stage::Pausing => return Err(crate::sandbox::not_running(id, stage)),
                    Stage::Paused => {
                        let memory = sandbox.view().pause.is_none_or(|pause| pause.memory);
                        if !(request.auto_resume && memory) {
                            return Err(may_not_wake(id));
                        }
                        let timeout = request.timeout.max(WOKEN_FOR);
                        match self.resume_sandbox(id, timeout).await {
                            // Many want to wake it at once, and one of them is at it.
                            Err(problem) if problem.code == ErrorCode::Conflict => {
                                tokio::task::yield_now().await;
                            }
                            Err(problem) => return Err(problem),
                            Ok(_) => {}
                        }
                    }
                }
            }
        };
        tokio::time::timeout(SAVE_DEADLINE, waking)
            .await
            .unwrap_or_else(|_| {
                Err(Problem::new(
                    ErrorCode::DeadlineExceeded,
                    format!("waking sandbox {id} took too long"),
                    "try again",
                ))
            })
    }
}

fn may_not_wake(id: &SandboxId) -> Problem {
    Problem::new(
        ErrorCode::PermissionDenied,
        format!("sandbox {id} is paused, and traffic may not wake it"),
        "resume it, or create sandboxes with auto-resume",
    )
}

fn check_children(children: &[ForkChild]) -> Result<(), Problem> {
    let ids: BTreeSet<_> = children.iter().map(|child| &child.id).collect();
    if (1..=CHILDREN_MAX).contains(&children.len()) && ids.len() == children.len() {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::InvalidArgument,
        format!("a fork has 1 to {CHILDREN_MAX} children with ids of their own"),
        "",
    ))
}
