//! The agent as the control plane uses it.

use crate::{
    agent::Agent,
    create::driver_name,
    problems,
    sandbox::{Found, Request},
    templates,
};
use api::{
    BuildId, Bytes, ErrorCode, ImageDigest, Problem, Resources, SandboxId,
    node::{
        BuildEvent, CreateSandbox, EndReason, ForkChild, Garbage, LogLine, MetricSample,
        NetworkPolicy, Node, NodeDescription, PhaseTimes, Resumed, SandboxStatus, SnapshotInfo,
        TemplateBuild,
    },
    template::{Requester, TemplateSource},
};
use futures::stream::BoxStream;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// How long a request waits for its sandbox's task.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// Log lines that one request may ask for at most.
const LOG_LINES_MAX: usize = 10_000;

#[async_trait::async_trait]
impl Node for Agent {
    async fn describe(&self) -> Result<NodeDescription, Problem> {
        let parts = &self.parts;
        let promised = parts.admission.promised();
        Ok(NodeDescription {
            id: parts.node.clone(),
            name: parts.name.clone(),
            driver: driver_name(parts.driver.kind()).into(),
            memory_snapshots: parts.driver.capabilities().memory_snapshot,
            capacity: Resources {
                vcpus: parts.facts.processors,
                memory: parts.facts.memory_total(),
                disk: parts.facts.disk_total(),
            },
            allocated: Resources {
                vcpus: promised.vcpus,
                memory: Bytes(promised.memory),
                disk: Bytes(promised.disk),
            },
            memory_max: parts.admission.memory_max(),
            sandboxes: promised.sandboxes,
            sandboxes_max: parts.admission.limits().sandboxes,
            slots_ready: parts.pool.ready(),
            paused: promised.paused,
            pools: parts.pool.reports(),
            kernel: parts.facts.kernel.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            phases: self.phases().into_iter().map(PhaseTimes::from).collect(),
        })
    }

    async fn create(&self, request: CreateSandbox) -> Result<SandboxStatus, Problem> {
        self.create_sandbox(request).await
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, Problem> {
        Ok(self.parts.registry.find(id).map(|found| found.status()))
    }

    async fn list(&self) -> Result<Vec<Arc<SandboxStatus>>, Problem> {
        Ok(self
            .parts
            .registry
            .all()
            .into_iter()
            .map(|found| match found {
                Found::Live(sandbox) => Arc::new(sandbox.status()),
                // The many that have ended are shared, not copied.
                Found::Ended(ended) => ended.status.clone(),
            })
            .collect())
    }

    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool, Problem> {
        let Some(sandbox) = self.parts.registry.live(id) else {
            return Ok(false);
        };
        let (done, finished) = oneshot::channel();
        let exchange = async {
            if sandbox.send(Request::Kill { reason, done }).await {
                // No answer means that it ended before it saw the request.
                let _ = finished.await;
                true
            } else {
                false
            }
        };
        match tokio::time::timeout(REQUEST_DEADLINE, exchange).await {
            Ok(was_there) => Ok(was_there),
            Err(_) => {
                // It is out of reach already; what is left of it is being taken down.
                tracing::warn!(sandbox = %id, "taking it down takes long");
                Ok(true)
            }
        }
    }

    async fn set_deadline(
        &self,
        id: &SandboxId,
        deadline: Timestamp,
    ) -> Result<SandboxStatus, Problem> {
        let move_it = |done| Request::SetDeadline { deadline, done };
        let (sandbox, ()) = self.ask(id, REQUEST_DEADLINE, move_it).await?;
        Ok(sandbox.status())
    }

    async fn set_network(&self, id: &SandboxId, policy: NetworkPolicy) -> Result<(), Problem> {
        let replace = |done| Request::SetNetwork { policy, done };
        self.ask(id, REQUEST_DEADLINE, replace).await.map(|_| ())
    }

    async fn metrics(
        &self,
        id: &SandboxId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<Vec<MetricSample>, Problem> {
        let mut samples = match self.parts.registry.find(id) {
            Some(Found::Live(sandbox)) => sandbox.samples(),
            Some(Found::Ended(ended)) => ended.samples.to_vec(),
            None => return Err(problems::unknown(id)),
        };
        samples.retain(|sample| {
            from.is_none_or(|from| sample.at >= from) && to.is_none_or(|to| sample.at <= to)
        });
        Ok(samples)
    }

    async fn logs(
        &self,
        id: &SandboxId,
        from: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<LogLine>, Problem> {
        if self.parts.registry.find(id).is_none() {
            return Err(problems::unknown(id));
        }
        let (logs, id) = (self.parts.logs.clone(), id.clone());
        let limit = limit.min(LOG_LINES_MAX);
        let read = tokio::task::spawn_blocking(move || logs.read(&id, from, limit)).await;
        let failed = |error: &dyn std::fmt::Display| {
            Problem::new(
                ErrorCode::Internal,
                format!("the log cannot be read: {error}"),
                "check the disk that holds the data directory",
            )
        };
        read.map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))
    }

    async fn build(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        if self.parts.stopping.is_cancelled() {
            return Err(problems::stopping());
        }
        self.parts.images.build(source, requester).await
    }

    async fn remove_image(&self, digest: &ImageDigest) -> Result<(), Problem> {
        self.parts.images.remove(digest).await?;
        self.parts.images.collect_garbage().await;
        Ok(())
    }

    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<SandboxStatus, Problem> {
        self.pause_sandbox(id, memory).await
    }

    async fn resume(&self, id: &SandboxId, timeout: Duration) -> Result<Resumed, Problem> {
        self.resume_sandbox(id, timeout).await
    }

    async fn snapshot(
        &self,
        id: &SandboxId,
        build: TemplateBuild,
        memory: bool,
    ) -> Result<SnapshotInfo, Problem> {
        self.snapshot_sandbox(id, build, memory).await
    }

    async fn fork(
        &self,
        id: &SandboxId,
        children: Vec<ForkChild>,
    ) -> Result<Vec<Result<SandboxStatus, Problem>>, Problem> {
        self.fork_sandbox(id, children).await
    }

    async fn prepare_template(
        &self,
        build: TemplateBuild,
        resources: Resources,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        if self.parts.stopping.is_cancelled() {
            return Err(problems::stopping());
        }
        Ok(templates::prepare(&self.parts, build, resources))
    }

    async fn remove_state(&self, build: &BuildId) -> Result<(), Problem> {
        self.parts.states.doom_build(build);
        self.parts.pool.clear(build).await;
        Ok(())
    }

    async fn collect_garbage(
        &self,
        keep: Vec<BuildId>,
        dry_run: bool,
    ) -> Result<Vec<Garbage>, Problem> {
        let (states, keep) = (self.parts.states.clone(), keep.into_iter().collect());
        let collected =
            tokio::task::spawn_blocking(move || states.collect_garbage(&keep, dry_run)).await;
        collected.map_err(|error| {
            Problem::new(
                ErrorCode::Internal,
                format!("looking for garbage ended unexpectedly: {error}"),
                "look at the node's log",
            )
        })
    }
}
