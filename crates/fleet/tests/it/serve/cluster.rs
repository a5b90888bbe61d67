//! A Kubernetes API server in this process, with lists in pages, watches from a version, bookmarks, versions
//! that are forgotten, and a scheduler and replica sets that are as simple as can be.

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::{get, patch, post},
};
use futures::stream;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};

/// Processors of a node, in thousandths.
const NODE: u64 = 4000;

#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// By kind, by key.
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    version: u64,
    events: Vec<(u64, &'static str, &'static str, Value)>,
    /// What came before is forgotten.
    oldest: u64,
    pub(crate) token: String,
    pub(crate) budget_forbids: bool,
    pub(crate) lists: u32,
    pub(crate) patches: Vec<(String, Value)>,
    pub(crate) evictions: u32,
    made: u32,
}

#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) state: Arc<Mutex<Objects>>,
    version: watch::Sender<u64>,
    /// Every watch that began before is broken off.
    cut: watch::Sender<u64>,
}

/// Starts it; returns it with its address.
pub(crate) async fn start() -> (Cluster, String, tokio::task::JoinSet<()>) {
    let cluster = Cluster {
        state: Arc::default(),
        version: watch::Sender::new(0),
        cut: watch::Sender::new(0),
    };
    let router = Router::new()
        .route("/api/v1/nodes", get(nodes))
        .route(
            "/api/v1/nodes/{name}",
            patch(patch_node).delete(delete_node),
        )
        .route("/api/v1/nodes/{name}/status", patch(patch_status))
        .route("/api/v1/pods", get(pods))
        .route("/apis/policy/v1/poddisruptionbudgets", get(budgets))
        .route(
            "/api/v1/namespaces/{namespace}/pods/{name}/eviction",
            post(evict),
        )
        .with_state(cluster.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (cluster, address, server)
}

fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap();
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

impl Objects {
    fn put(&mut self, kind: &'static str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let all = self.objects.entry(kind).or_default();
        let known = all.insert(key(&object), object.clone()).is_some();
        let what = if known { "MODIFIED" } else { "ADDED" };
        self.events.push((self.version, kind, what, object));
    }

    fn remove(&mut self, kind: &'static str, key: &str) {
        if let Some(mut object) = self.objects.entry(kind).or_default().remove(key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.events.push((self.version, kind, "DELETED", object));
        }
    }

    fn used(&self, node: &str) -> u64 {
        let pods = self.objects.get("pods").into_iter().flatten();
        let here = pods.filter(|(_, pod)| pod["spec"]["nodeName"] == node);
        here.map(|(_, pod)| cpu(pod)).sum()
    }

    /// Binds what waits to nodes that take work.
    fn schedule(&mut self) {
        let waiting: Vec<Value> = self
            .objects
            .get("pods")
            .into_iter()
            .flatten()
            .filter(|(_, pod)| pod["spec"]["nodeName"].is_null())
            .map(|(_, pod)| pod.clone())
            .collect();
        for mut pod in waiting {
            let nodes = self.objects.get("nodes").into_iter().flatten();
            let fits = nodes.filter(|(name, node)| {
                node["spec"]["unschedulable"] != true
                    && node["status"]["conditions"][0]["status"] == "True"
                    && self.used(name) + cpu(&pod) <= NODE
            });
            if let Some(name) = fits.map(|(name, _)| name.clone()).next() {
                pod["spec"]["nodeName"] = name.into();
                pod["status"]["phase"] = "Running".into();
                self.put("pods", pod);
            }
        }
    }
}

fn cpu(pod: &Value) -> u64 {
    let text = &pod["spec"]["containers"][0]["resources"]["requests"]["cpu"];
    text.as_str()
        .unwrap()
        .trim_end_matches('m')
        .parse()
        .unwrap()
}

impl Cluster {
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Objects) -> T) -> T {
        let mut state = self.state.lock().unwrap();
        let result = change(&mut state);
        state.schedule();
        self.version.send_replace(state.version);
        result
    }

    /// A node whose machine is up, or not.
    pub(crate) fn node(&self, name: &str, up: bool) {
        self.with(|state| {
            let known = state.objects.entry("nodes").or_default().get(name).cloned();
            // Kubelets make them.
            if known.is_none() && !up {
                return;
            }
            let mut node = known.unwrap_or_else(|| {
                json!({
                    "metadata": { "name": name },
                    "spec": { "providerID": format!("atoll://{name}") },
                })
            });
            let status = if up { "True" } else { "Unknown" };
            if node["status"]["conditions"][0]["status"] != status {
                // Kubelets leave alone what others say.
                set_condition(&mut node, json!({ "type": "Ready", "status": status }));
                state.put("nodes", node);
            }
        });
    }

    /// A pod that is asked for, and where it runs.
    pub(crate) fn pod(&self, name: &str, cpu: u64, node: Option<&str>, owner: &str) {
        self.with(|state| {
            state.put("pods", json!({
                "metadata": {
                    "name": name, "namespace": "shop",
                    "ownerReferences": [{ "kind": owner, "uid": owner, "controller": true }],
                },
                "spec": {
                    "nodeName": node,
                    "containers": [{ "resources": { "requests": { "cpu": format!("{cpu}m") } } }],
                },
                "status": { "phase": if node.is_some() { "Running" } else { "Pending" } },
            }));
        });
    }

    pub(crate) fn cordon(&self, node: &str) {
        self.with(|state| {
            let mut object = state.objects["nodes"][node].clone();
            object["spec"]["unschedulable"] = true.into();
            state.put("nodes", object);
        });
    }

    /// Pods with the nodes that they run on, those of daemon sets left out.
    pub(crate) fn placed(&self) -> BTreeMap<String, Option<String>> {
        let state = self.state.lock().unwrap();
        let pods = state.objects.get("pods").into_iter().flatten();
        let pods =
            pods.filter(|(_, pod)| pod["metadata"]["ownerReferences"][0]["kind"] != "DaemonSet");
        pods.map(|(key, pod)| {
            let node = pod["spec"]["nodeName"].as_str().map(str::to_owned);
            (key.clone(), node)
        })
        .collect()
    }

    /// Whether there is such a node, and its taints.
    pub(crate) fn taints(&self, node: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        Some(state.objects["nodes"].get(node)?["spec"]["taints"].clone())
    }

    /// What is said of a node's machine, if anything: whether it sleeps.
    pub(crate) fn suspended(&self, node: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        let conditions = state.objects["nodes"].get(node)?["status"]["conditions"].clone();
        let mut all = conditions.as_array()?.iter();
        all.find(|one| one["type"] == "Suspended").cloned()
    }

    pub(crate) fn taint(&self, node: &str, key: &str) {
        self.with(|state| {
            let mut object = state.objects["nodes"][node].clone();
            object["spec"]["taints"] = json!([{ "key": key, "effect": "NoSchedule" }]);
            state.put("nodes", object);
        });
    }

    /// Forgets what happened, and breaks every watch off.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        state.version += 10;
        state.oldest = state.version;
        state.events.clear();
        drop(state);
        self.cut.send_modify(|count| *count += 1);
    }

    /// Breaks every watch off.
    pub(crate) fn break_off(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    fn denied(&self, headers: &HeaderMap) -> Option<Response> {
        let state = self.state.lock().unwrap();
        let right = format!("Bearer {}", state.token);
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        (given != Some(&right)).then(|| {
            let body = Json(json!({ "kind": "Status", "message": "Unauthorized" }));
            (StatusCode::UNAUTHORIZED, body).into_response()
        })
    }

    fn list(&self, kind: &'static str, query: &HashMap<String, String>) -> Response {
        let mut state = self.state.lock().unwrap();
        state.lists += 1;
        let field = query.get("fieldSelector");
        let node = field.and_then(|text| text.strip_prefix("spec.nodeName="));
        let all: Vec<Value> = state
            .objects
            .get(kind)
            .into_iter()
            .flatten()
            .filter(|(_, one)| node.is_none_or(|node| one["spec"]["nodeName"] == node))
            .map(|(_, one)| one.clone())
            .collect();
        // Pages are small, so that there is more than one.
        let from: usize = query
            .get("continue")
            .map_or(0, |text| text.parse().unwrap());
        let limit = if query.contains_key("limit") {
            2
        } else {
            usize::MAX
        };
        let page: Vec<Value> = all.iter().skip(from).take(limit).cloned().collect();
        let end = from + page.len();
        let mut metadata = json!({ "resourceVersion": state.version.to_string() });
        if end < all.len() {
            metadata["continue"] = end.to_string().into();
        }
        Json(json!({ "kind": "List", "metadata": metadata, "items": page })).into_response()
    }

    fn watch(&self, kind: &'static str, query: &HashMap<String, String>) -> Response {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let (cluster, versions, cuts) =
            (self.clone(), self.version.subscribe(), self.cut.subscribe());
        let events = stream::unfold(
            (cluster, versions, cuts, from, false),
            move |(cluster, mut versions, mut cuts, from, ended)| async move {
                if ended {
                    return None;
                }
                let (lines, next, ended) = loop {
                    let (lines, next, gone) = cluster.since(kind, from);
                    if !lines.is_empty() || gone {
                        break (lines, next, gone);
                    }
                    tokio::select! {
                        _ = versions.changed() => {}
                        _ = cuts.changed() => return None,
                        // A bookmark, so that who watches knows that nothing happens.
                        () = tokio::time::sleep(Duration::from_secs(1)) => {
                            let object = json!({ "metadata": { "resourceVersion": from.to_string() } });
                            break (format!("{}\n", json!({ "type": "BOOKMARK", "object": object })), from, false);
                        }
                    }
                };
                let chunk = Ok::<_, std::convert::Infallible>(lines);
                Some((chunk, (cluster, versions, cuts, next, ended)))
            },
        );
        Body::from_stream(events).into_response()
    }

    /// What happened after a version, as lines, and whether that is forgotten.
    fn since(&self, kind: &'static str, from: u64) -> (String, u64, bool) {
        let state = self.state.lock().unwrap();
        if from < state.oldest {
            let object = json!({ "kind": "Status", "code": 410, "message": "too old" });
            let line = json!({ "type": "ERROR", "object": object });
            return (format!("{line}\n"), from, true);
        }
        let (mut lines, mut next) = (String::new(), from);
        for (version, one, what, object) in &state.events {
            if *version > from && *one == kind {
                lines.push_str(&format!("{}\n", json!({ "type": what, "object": object })));
                next = *version;
            }
        }
        (lines, next, false)
    }

    fn answer(
        &self,
        kind: &'static str,
        headers: &HeaderMap,
        query: &HashMap<String, String>,
    ) -> Response {
        if let Some(denied) = self.denied(headers) {
            return denied;
        }
        match query.contains_key("watch") {
            true => self.watch(kind, query),
            false => self.list(kind, query),
        }
    }
}

type Asked = Query<HashMap<String, String>>;

async fn nodes(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    Query(query): Asked,
) -> Response {
    cluster.answer("nodes", &headers, &query)
}

async fn pods(State(cluster): State<Cluster>, headers: HeaderMap, Query(query): Asked) -> Response {
    cluster.answer("pods", &headers, &query)
}

async fn budgets(
    State(cluster): State<Cluster>,
    headers: HeaderMap,
    Query(query): Asked,
) -> Response {
    cluster.answer("budgets", &headers, &query)
}

async fn patch_node(
    State(cluster): State<Cluster>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    assert_eq!(headers["content-type"], "application/merge-patch+json");
    let change: Value = serde_json::from_str(&body).unwrap();
    cluster.with(|state| {
        state.patches.push((name.clone(), change.clone()));
        let Some(mut node) = state.objects["nodes"].get(&name).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        merge(&mut node, change);
        state.put("nodes", node.clone());
        Json(node).into_response()
    })
}

/// Conditions are told apart by their types, as a strategic merge has it.
async fn patch_status(
    State(cluster): State<Cluster>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    assert_eq!(
        headers["content-type"],
        "application/strategic-merge-patch+json"
    );
    let change: Value = serde_json::from_str(&body).unwrap();
    cluster.with(|state| {
        state.patches.push((name.clone(), change.clone()));
        let Some(mut node) = state.objects["nodes"].get(&name).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        for condition in change["status"]["conditions"].as_array().unwrap() {
            set_condition(&mut node, condition.clone());
        }
        state.put("nodes", node.clone());
        Json(node).into_response()
    })
}

/// `Ready` is the first that a node has.
fn set_condition(node: &mut Value, condition: Value) {
    if !node["status"]["conditions"].is_array() {
        node["status"] = json!({ "conditions": [] });
    }
    let all = node["status"]["conditions"].as_array_mut().unwrap();
    match all.iter_mut().find(|one| one["type"] == condition["type"]) {
        Some(known) => *known = condition,
        None => all.push(condition),
    }
}

async fn delete_node(
    State(cluster): State<Cluster>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    cluster.with(|state| {
        let Some(node) = state.objects["nodes"].get(&name) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let version = &node["metadata"]["resourceVersion"];
        if body["preconditions"]["resourceVersion"] != *version {
            return StatusCode::CONFLICT.into_response();
        }
        state.remove("nodes", &name);
        Json(json!({ "kind": "Status" })).into_response()
    })
}

/// As RFC 7396 has it.
fn merge(into: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *into = change;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in change {
        match value {
            Value::Null => {
                into.as_object_mut().unwrap().remove(&key);
            }
            value => merge(&mut into[key.as_str()], value),
        }
    }
}

/// The pod goes, and its replica set asks for another.
async fn evict(
    State(cluster): State<Cluster>,
    Path((namespace, name)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Response {
    assert_eq!(body["kind"], "Eviction");
    cluster.with(|state| {
        state.evictions += 1;
        if state.budget_forbids {
            let message = "Cannot evict pod as it would violate the pod's disruption budget.";
            let body = Json(json!({ "kind": "Status", "message": message }));
            return (StatusCode::TOO_MANY_REQUESTS, body).into_response();
        }
        let key = format!("{namespace}/{name}");
        let Some(mut pod) = state.objects["pods"].get(&key).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        state.remove("pods", &key);
        state.made += 1;
        pod["metadata"]["name"] = format!("{name}-{}", state.made).into();
        pod["spec"]["nodeName"] = Value::Null;
        pod["status"]["phase"] = "Pending".into();
        state.put("pods", pod);
        (StatusCode::CREATED, Json(json!({ "kind": "Status" }))).into_response()
    })
}
