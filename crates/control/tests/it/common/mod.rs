//! A control plane over a real store and a node that only pretends.
//!
//! [`FakeNode`] keeps sandboxes in memory and runs nothing, so that the API can be tested without
//! a machine, and so that it can be made to fail in ways that a real node cannot be made to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Helpers of tests too.
#![allow(dead_code)] // Each test uses its part of this.

pub(crate) mod node;

pub(crate) use node::FakeNode;

use axum::{Router, body::Body};
use control::{Control, ControlOptions, FirstKey, Limits};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use store::{SqliteStore, Store};
use tower::ServiceExt;

/// The key that every test's control plane starts with.
pub(crate) const FIRST_KEY: &str = "e2b_0123456789abcdef0123456789abcdef01234567";

/// How long anything may take that should happen by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

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

    /// Sends a request and goes away before it is answered, once `condition` holds.
    pub(crate) async fn leave(
        &self,
        path: &str,
        body: Value,
        what: &str,
        condition: impl AsyncFnMut() -> bool,
    ) {
        let request = Request::post(path)
            .header("X-API-Key", FIRST_KEY)
            .body(Body::from(body.to_string()));
        let answer = self.router.clone().oneshot(request.unwrap());
        let answer = tokio::spawn(answer);
        self.until(what, condition).await;
        answer.abort();
        assert!(answer.await.unwrap_err().is_cancelled());
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
