//! A control plane over a real store and a node that only pretends.
//!
//! [`FakeNode`] keeps sandboxes in memory and runs nothing, so that the API can be tested without
//! a machine, and so that it can be made to fail in ways that a real node cannot be made to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.
#![allow(dead_code)] // Each test uses its part of this.

use api::{
    Bytes, ErrorCode, ImageDigest, NodeId, Problem, Resources, SandboxId,
    node::{
        BuildEvent, BuiltImage, CreateSandbox, EndReason, LogLevel, LogLine, MetricSample,
        NetworkPolicy, Node, NodeDescription, SandboxState, SandboxStatus,
    },
    template::{Requester, TemplateSource},
};
use axum::{Router, body::Body};
use control::{Control, ControlOptions, FirstKey, Limits};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use store::{SqliteStore, Store};
use tokio::sync::watch;
use tower::ServiceExt;

/// The key that every test's control plane starts with.
pub(crate) const FIRST_KEY: &str = "e2b_0123456789abcdef0123456789abcdef01234567";

/// How long anything may take that should happen by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Kept {
    sandboxes: BTreeMap<SandboxId, SandboxStatus>,
    requests: Vec<CreateSandbox>,
    images: BTreeSet<ImageDigest>,
    removed: Vec<ImageDigest>,
    builds: Vec<(TemplateSource, Requester)>,
    refusals: VecDeque<Problem>,
    allocated: Resources,
}

/// A node that runs nothing.
pub(crate) struct FakeNode {
    id: NodeId,
    kept: Mutex<Kept>,
    sandboxes_max: u32,
    /// Builds of `base` and of `debian:slow` wait until this is true.
    pub(crate) gate: watch::Sender<bool>,
    /// Creations wait until this is true.
    pub(crate) door: watch::Sender<bool>,
}

impl FakeNode {
    pub(crate) fn new(id: &str) -> Arc<Self> {
        Self::small(id, 50)
    }

    pub(crate) fn small(id: &str, sandboxes_max: u32) -> Arc<Self> {
        let (gate, door) = (watch::Sender::new(true), watch::Sender::new(true));
        let id = id.parse().unwrap();
        Arc::new(Self {
            id,
            kept: Mutex::default(),
            sandboxes_max,
            gate,
            door,
        })
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
            memory_snapshots: false,
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
            Some(status) if status.state == SandboxState::Running => {
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
        if deadline <= Timestamp::now() {
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
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap().to_owned()
    }
}

/// A control plane under test.
pub(crate) struct Plane {
    pub(crate) control: Control,
    pub(crate) node: Arc<FakeNode>,
    pub(crate) store: Arc<dyn Store>,
    router: Router,
    pub(crate) folder: tempfile::TempDir,
}

impl Plane {
    /// With `base` built.
    pub(crate) async fn start() -> Self {
        let plane = Self::start_with(|_| {}).await;
        plane.until_base_is_ready().await;
        plane
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut ControlOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, FakeNode::new("n0de"), change).await
    }

    pub(crate) async fn start_in(
        folder: tempfile::TempDir,
        node: Arc<FakeNode>,
        change: impl FnOnce(&mut ControlOptions),
    ) -> Self {
        let store = SqliteStore::open(folder.path().join("store.sqlite"))
            .await
            .unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let mut options =
            ControlOptions::new(store.clone(), vec![node.clone()], "c1u".parse().unwrap());
        options.first_key = Some(FirstKey::Given(api::Secret::new(FIRST_KEY)));
        options.limits = Limits {
            sandboxes: 20,
            ..Limits::default()
        };
        change(&mut options);
        let control = Control::start(options).await.unwrap();
        let router = control.router();
        Self {
            control,
            node,
            store,
            router,
            folder,
        }
    }

    /// The same installation, started again.
    pub(crate) async fn restart(self, change: impl FnOnce(&mut ControlOptions)) -> Self {
        self.control.stop().await;
        let Self {
            control,
            node,
            store,
            router,
            folder,
        } = self;
        // All that holds the store, so that it is closed before it is opened again.
        drop((control, store, router));
        Self::start_in(folder, node, change).await
    }

    pub(crate) async fn until_base_is_ready(&self) {
        self.until("base is ready", async || {
            let base = self.call("GET", "/templates/base", FIRST_KEY, None).await;
            base.status == 200 && base.json()["buildStatus"] == "ready"
        })
        .await;
    }

    /// Asks again and again, for a while.
    pub(crate) async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let wait = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("{what}: not within {} s", PATIENCE.as_secs());
        }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect())
            .await
            .unwrap()
            .unwrap();
        let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text,
        }
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        key: &str,
        body: Option<Value>,
    ) -> Answer {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("X-API-Key", key)
            .body(body);
        self.send(request.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, FIRST_KEY, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, FIRST_KEY, Some(body)).await
    }

    /// Creates a sandbox and returns its id.
    pub(crate) async fn sandbox(&self, key: &str, mut body: Value) -> String {
        body.as_object_mut()
            .unwrap()
            .entry("templateID")
            .or_insert("base".into());
        let created = self
            .call("POST", "/v2/sandboxes", key, Some(body))
            .await
            .expect(201);
        created.json()["sandboxID"].as_str().unwrap().to_owned()
    }

    /// A key of a new tenant.
    pub(crate) async fn stranger(&self) -> String {
        let body = serde_json::json!({"name": "stranger", "tenant": "new"});
        let created = self.post("/v1/keys", body).await.expect(201);
        created.json()["secret"].as_str().unwrap().to_owned()
    }

    /// The lines that `POST /v1/templates` answers with.
    pub(crate) async fn build(&self, key: &str, body: Value) -> Vec<Value> {
        let answer = self
            .call("POST", "/v1/templates", key, Some(body))
            .await
            .expect(200);
        answer
            .text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// The same with `…` for what differs from run to run.
pub(crate) fn mask(mut value: Value, fields: &[&str]) -> Value {
    for field in fields {
        assert!(value[*field].is_string(), "{field}: {value}");
        value[*field] = "…".into();
    }
    value
}
