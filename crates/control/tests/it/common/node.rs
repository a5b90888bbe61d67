//! A node that only pretends.

use api::{
    BuildId, Bytes, ErrorCode, ImageDigest, NodeId, Problem, Resources, SandboxId,
    node::{
        BuildEvent, BuiltImage, CreateSandbox, EndReason, ForkChild, Garbage, LogLevel, LogLine,
        MetricSample, NetworkPolicy, Node, NodeDescription, OnTimeout, Resumed, SandboxState,
        SandboxStatus, SnapshotInfo, TemplateBuild,
    },
    template::{Requester, TemplateSource},
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::watch;

#[derive(Default)]
struct Kept {
    sandboxes: BTreeMap<SandboxId, SandboxStatus>,
    requests: Vec<CreateSandbox>,
    images: BTreeSet<ImageDigest>,
    removed: Vec<ImageDigest>,
    builds: Vec<(TemplateSource, Requester)>,
    refusals: VecDeque<Problem>,
    allocated: Resources,
    states: BTreeMap<BuildId, SavedState>,
    prepared: Vec<TemplateBuild>,
    removed_states: Vec<BuildId>,
    forks: Vec<Vec<ForkChild>>,
    barren: BTreeSet<usize>,
}

/// A state that the node keeps under a build's id.
#[derive(Debug, Clone)]
pub(crate) struct SavedState {
    pub(crate) of: SandboxId,
    pub(crate) described: TemplateBuild,
    pub(crate) memory: bool,
}

/// A node that runs nothing.
pub(crate) struct FakeNode {
    id: NodeId,
    kept: Mutex<Kept>,
    sandboxes_max: u32,
    /// Builds of `base` and of `debian:slow` wait until this is true.
    pub(crate) gate: watch::Sender<bool>,
    /// Creations, snapshots and forks wait until this is true.
    pub(crate) door: watch::Sender<bool>,
    /// Whether it can save sandboxes.
    saves: AtomicBool,
    keeps_memory: bool,
}

impl FakeNode {
    pub(crate) fn new(id: &str) -> Arc<Self> {
        Self::small(id, 50)
    }

    pub(crate) fn small(id: &str, sandboxes_max: u32) -> Arc<Self> {
        Self::made(id, sandboxes_max, true)
    }

    /// One that keeps no memory of what it pauses.
    pub(crate) fn forgetful(id: &str) -> Arc<Self> {
        Self::made(id, 50, false)
    }

    fn made(id: &str, sandboxes_max: u32, keeps_memory: bool) -> Arc<Self> {
        let (gate, door) = (watch::Sender::new(true), watch::Sender::new(true));
        let id = id.parse().unwrap();
        Arc::new(Self {
            id,
            kept: Mutex::default(),
            sandboxes_max,
            gate,
            door,
            saves: AtomicBool::new(false),
            keeps_memory,
        })
    }

    /// Lets it pause, resume, snapshot and fork from now on.
    pub(crate) fn let_save(&self) {
        self.saves.store(true, Relaxed);
    }

    fn check_saving(&self) -> Result<(), Problem> {
        match self.saves.load(Relaxed) {
            true => Ok(()),
            false => Err(Problem::new(
                ErrorCode::Unsupported,
                "this node cannot save sandboxes",
                "use another",
            )),
        }
    }

    /// The children of these places in later forks do not come up.
    pub(crate) fn lose_children(&self, places: &[usize]) {
        self.kept.lock().unwrap().barren = places.iter().copied().collect();
    }

    /// What the children of each fork were to have of their own.
    pub(crate) fn forks(&self) -> Vec<Vec<ForkChild>> {
        self.kept.lock().unwrap().forks.clone()
    }

    /// What is saved under builds' ids.
    pub(crate) fn states(&self) -> BTreeMap<BuildId, SavedState> {
        self.kept.lock().unwrap().states.clone()
    }

    /// A state that came from elsewhere.
    pub(crate) fn add_state(&self, build: BuildId, state: SavedState) {
        self.kept.lock().unwrap().states.insert(build, state);
    }

    /// The builds whose states it was told to remove.
    pub(crate) fn removed_states(&self) -> Vec<BuildId> {
        self.kept.lock().unwrap().removed_states.clone()
    }

    /// The builds that it was told to prepare.
    pub(crate) fn prepared(&self) -> Vec<TemplateBuild> {
        self.kept.lock().unwrap().prepared.clone()
    }

    /// All sandboxes of which it knows.
    pub(crate) fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.kept
            .lock()
            .unwrap()
            .sandboxes
            .values()
            .cloned()
            .collect()
    }

    /// The next creation fails so.
    pub(crate) fn refuse_next(&self, problem: Problem) {
        self.kept.lock().unwrap().refusals.push_back(problem);
    }

    pub(crate) fn requests(&self) -> Vec<CreateSandbox> {
        self.kept.lock().unwrap().requests.clone()
    }

    pub(crate) fn removed(&self) -> Vec<ImageDigest> {
        self.kept.lock().unwrap().removed.clone()
    }

    pub(crate) fn builds(&self) -> Vec<(TemplateSource, Requester)> {
        self.kept.lock().unwrap().builds.clone()
    }

    /// A sandbox ends by itself.
    pub(crate) fn end(&self, id: &str, reason: EndReason) {
        let mut kept = self.kept.lock().unwrap();
        let status = kept.sandboxes.get_mut(&id.parse().unwrap()).unwrap();
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        status.state = SandboxState::Ended { reason, at };
    }

    fn live(kept: &Kept) -> usize {
        let live = |s: &&SandboxStatus| matches!(s.state, SandboxState::Running);
        kept.sandboxes.values().filter(live).count()
    }
}

fn unknown() -> Problem {
    Problem::new(
        ErrorCode::NotFound,
        "the node does not know this sandbox",
        "",
    )
}

#[async_trait::async_trait]
impl Node for FakeNode {
    async fn describe(&self) -> Result<NodeDescription, Problem> {
        let kept = self.kept.lock().unwrap();
        Ok(NodeDescription {
            id: self.id.clone(),
            name: "fake".to_owned(),
            driver: "container".to_owned(),
            memory_snapshots: self.keeps_memory,
            capacity: Resources {
                vcpus: 4,
                memory: Bytes::gibibytes(16),
                disk: Bytes::gibibytes(100),
            },
            allocated: kept.allocated,
            memory_max: Bytes::gibibytes(160),
            sandboxes: Self::live(&kept) as u32,
            sandboxes_max: self.sandboxes_max,
            slots_ready: 4,
            paused: 0,
            pools: Vec::new(),
            kernel: "6.1.0".to_owned(),
            version: "0.1.0".to_owned(),
            phases: Vec::new(),
        })
    }

    async fn create(&self, request: CreateSandbox) -> Result<SandboxStatus, Problem> {
        self.kept.lock().unwrap().requests.push(request.clone());
        let _ = self.door.subscribe().wait_for(|open| *open).await;
        let mut kept = self.kept.lock().unwrap();
        if let Some(problem) = kept.refusals.pop_front() {
            return Err(problem);
        }
        if Self::live(&kept) >= self.sandboxes_max as usize {
            return Err(Problem::new(
                ErrorCode::OutOfCapacity,
                "the node is full",
                "",
            ));
        }
        let now = Timestamp::now();
        let status = SandboxStatus {
            id: request.id.clone(),
            tenant: request.tenant,
            template: request.template,
            resources: request.resources,
            metadata: request.metadata,
            state: SandboxState::Running,
            started_at: now,
            deadline: now + SignedDuration::try_from(request.timeout).unwrap(),
            on_timeout: request.on_timeout,
            auto_resume: request.auto_resume,
            network: request.network,
            secure: request.access_token.is_some(),
            address: Some("10.200.0.3".parse().unwrap()),
            paused_with_memory: None,
            paused_at: None,
            mesh: None,
        };
        kept.sandboxes.insert(request.id, status.clone());
        Ok(status)
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<SandboxStatus>, Problem> {
        Ok(self.kept.lock().unwrap().sandboxes.get(id).cloned())
    }

    async fn list(&self) -> Result<Vec<Arc<SandboxStatus>>, Problem> {
        Ok(self
            .kept
            .lock()
            .unwrap()
            .sandboxes
            .values()
            .cloned()
            .map(Arc::new)
            .collect())
    }

    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool, Problem> {
        let mut kept = self.kept.lock().unwrap();
        match kept.sandboxes.get_mut(id) {
            Some(status)
                if matches!(status.state, SandboxState::Running | SandboxState::Paused) =>
            {
                status.state = SandboxState::Ended {
                    reason,
                    at: Timestamp::now(),
                };
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn set_deadline(
        &self,
        id: &SandboxId,
        deadline: Timestamp,
    ) -> Result<SandboxStatus, Problem> {
        let mut kept = self.kept.lock().unwrap();
        let status = kept.sandboxes.get_mut(id).ok_or_else(unknown)?;
        status.deadline = deadline;
        if deadline <= Timestamp::now() && status.on_timeout == OnTimeout::Pause {
            pause(status, true);
        } else if deadline <= Timestamp::now() {
            status.state = SandboxState::Ended {
                reason: EndReason::TimedOut,
                at: deadline,
            };
        }
        Ok(status.clone())
    }

    async fn set_network(&self, id: &SandboxId, policy: NetworkPolicy) -> Result<(), Problem> {
        let mut kept = self.kept.lock().unwrap();
        kept.sandboxes.get_mut(id).ok_or_else(unknown)?.network = policy;
        Ok(())
    }

    async fn metrics(
        &self,
        _: &SandboxId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<Vec<MetricSample>, Problem> {
        let samples = (0..3).map(|n| MetricSample {
            at: Timestamp::from_second(1_700_000_000 + 5 * n).unwrap(),
            vcpus: 2,
            cpu_used_percent: 12.5,
            memory_used: Bytes(1000 + n as u64),
            memory_total: Bytes::mebibytes(512),
            memory_cache: Bytes(0),
            disk_used: Bytes(4096),
            disk_total: Bytes::gibibytes(10),
        });
        Ok(samples
            .filter(|s| from.is_none_or(|from| s.at >= from) && to.is_none_or(|to| s.at <= to))
            .collect())
    }

    async fn logs(
        &self,
        _: &SandboxId,
        from: Option<Timestamp>,
        limit: usize,
    ) -> Result<Vec<LogLine>, Problem> {
        let levels = [LogLevel::Info, LogLevel::Error, LogLevel::Debug];
        let lines = levels.into_iter().enumerate().map(|(n, level)| LogLine {
            at: Timestamp::from_second(1_700_000_000 + n as i64).unwrap(),
            level,
            message: format!("line {n}"),
            fields: BTreeMap::from([("pid".to_owned(), "7".to_owned())]),
        });
        Ok(lines
            .filter(|l| from.is_none_or(|from| l.at >= from))
            .take(limit)
            .collect())
    }

    async fn build(
        &self,
        source: TemplateSource,
        requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        self.kept
            .lock()
            .unwrap()
            .builds
            .push((source.clone(), requester));
        let text = source.to_string();
        // The content is a function of the source, as it should be.
        let number = text
            .bytes()
            .fold(0_u64, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte));
        let digest: ImageDigest = format!("sha256:{number:064x}").parse().unwrap();
        self.kept.lock().unwrap().images.insert(digest.clone());
        let last = match text.as_str() {
            "debian:bad" => BuildEvent::Failed {
                cause: "the suite `bad` does not exist".to_owned(),
                remedy: "name one that does".to_owned(),
            },
            _ => BuildEvent::Ready(BuiltImage {
                digest,
                size: Bytes(1234),
                environment: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
                user: None,
                working_directory: None,
                command: Vec::new(),
            }),
        };
        let first = [
            BuildEvent::Step {
                name: "unpacking".to_owned(),
                total: Some(100),
            },
            BuildEvent::Progress { done: 40 },
        ];
        let mut gate = self.gate.subscribe();
        let gated = text == "base" || text == "debian:slow";
        let last = stream::once(async move {
            if gated {
                let _ = gate.wait_for(|open| *open).await;
            }
            last
        });
        Ok(stream::iter(first).chain(last).boxed())
    }

    async fn remove_image(&self, digest: &ImageDigest) -> Result<(), Problem> {
        let mut kept = self.kept.lock().unwrap();
        kept.images.remove(digest);
        kept.removed.push(digest.clone());
        Ok(())
    }

    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<SandboxStatus, Problem> {
        self.check_saving()?;
        let mut kept = self.kept.lock().unwrap();
        let status = kept.sandboxes.get_mut(id).ok_or_else(unknown)?;
        check_running(status)?;
        pause(status, memory);
        Ok(status.clone())
    }

    async fn resume(&self, id: &SandboxId, timeout: Duration) -> Result<Resumed, Problem> {
        self.check_saving()?;
        let mut kept = self.kept.lock().unwrap();
        let status = kept.sandboxes.get_mut(id).ok_or_else(unknown)?;
        let was_paused = status.state == SandboxState::Paused;
        let deadline = Timestamp::now() + SignedDuration::try_from(timeout).unwrap();
        status.deadline = match was_paused {
            true => deadline,
            false => status.deadline.max(deadline),
        };
        status.state = SandboxState::Running;
        (status.paused_at, status.paused_with_memory) = (None, None);
        Ok(Resumed {
            status: status.clone(),
            was_paused,
        })
    }

    async fn snapshot(
        &self,
        id: &SandboxId,
        build: TemplateBuild,
        memory: bool,
    ) -> Result<SnapshotInfo, Problem> {
        self.check_saving()?;
        let _ = self.door.subscribe().wait_for(|open| *open).await;
        let mut kept = self.kept.lock().unwrap();
        if let Some(problem) = kept.refusals.pop_front() {
            return Err(problem);
        }
        let status = kept.sandboxes.get(id).ok_or_else(unknown)?.clone();
        check_running(&status)?;
        let saved = SavedState {
            of: id.clone(),
            described: build.clone(),
            memory,
        };
        kept.states.insert(build.build.clone(), saved);
        Ok(SnapshotInfo {
            build: build.build,
            size: Bytes(4321),
            memory,
            resources: status.resources,
            stood_still: Duration::from_millis(7),
        })
    }

    async fn fork(
        &self,
        id: &SandboxId,
        children: Vec<ForkChild>,
    ) -> Result<Vec<Result<SandboxStatus, Problem>>, Problem> {
        self.check_saving()?;
        let _ = self.door.subscribe().wait_for(|open| *open).await;
        let mut kept = self.kept.lock().unwrap();
        let parent = kept.sandboxes.get(id).ok_or_else(unknown)?.clone();
        check_running(&parent)?;
        kept.forks.push(children.clone());
        let mut results = Vec::new();
        for (place, child) in children.into_iter().enumerate() {
            if kept.barren.contains(&place) {
                let cause = "the node is full";
                results.push(Err(Problem::new(ErrorCode::OutOfCapacity, cause, "")));
                continue;
            }
            let now = Timestamp::now();
            let status = SandboxStatus {
                id: child.id.clone(),
                metadata: child.metadata,
                started_at: now,
                deadline: now + SignedDuration::try_from(child.timeout).unwrap(),
                secure: child.access_token.is_some(),
                ..parent.clone()
            };
            kept.sandboxes.insert(child.id, status.clone());
            results.push(Ok(status));
        }
        Ok(results)
    }

    async fn prepare_template(
        &self,
        build: TemplateBuild,
        _: Resources,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        let mut events = Vec::new();
        if build.ready_command.as_deref() == Some("false") {
            events.push(BuildEvent::Failed {
                cause: "the ready command did not succeed".to_owned(),
                remedy: "look at its output".to_owned(),
            });
        }
        self.kept.lock().unwrap().prepared.push(build);
        Ok(stream::iter(events).boxed())
    }

    async fn remove_state(&self, build: &BuildId) -> Result<(), Problem> {
        let mut kept = self.kept.lock().unwrap();
        kept.states.remove(build);
        kept.removed_states.push(build.clone());
        Ok(())
    }

    async fn collect_garbage(
        &self,
        keep: Vec<BuildId>,
        dry_run: bool,
    ) -> Result<Vec<Garbage>, Problem> {
        let mut kept = self.kept.lock().unwrap();
        let report = kept.states.keys().map(|build| {
            let removed = !keep.contains(build);
            Garbage {
                what: format!("state of build {build}"),
                reason: match removed {
                    true => "no template has this build".to_owned(),
                    false => "a template has this build".to_owned(),
                },
                size: Bytes(4321),
                removed,
            }
        });
        let report = report.collect();
        if !dry_run {
            kept.states.retain(|build, _| keep.contains(build));
        }
        Ok(report)
    }
}

fn pause(status: &mut SandboxStatus, memory: bool) {
    status.state = SandboxState::Paused;
    status.paused_at = Some(Timestamp::now());
    status.paused_with_memory = Some(memory);
}

fn check_running(status: &SandboxStatus) -> Result<(), Problem> {
    if status.state == SandboxState::Running {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::Conflict,
        format!("the sandbox does not run: {:?}", status.state),
        "",
    ))
}
