//! The control plane as its owner sees it: started, asked for its router, stopped.

use crate::{
    catalogue::{Catalogue, Collections},
    idempotency::Idempotency,
    keys::{self, FirstKey},
    mesh::{Coordinator, Ends, MeshLink},
    nodes::Nodes,
    plane::{Plane, Starts},
    routes,
    schedule::Policy,
    templates::{Builder, reconcile::Reconciler},
    usage::Usage,
};
use api::{Bytes, ClusterId, Problem, Resources, Secret, node::Node};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use store::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often nodes are asked how they are.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often ephemeral nodes of the mesh that vanished are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// What a control plane stands on.
pub struct ControlOptions {
    /// Where intent is kept.
    pub store: Arc<dyn Store>,
    /// The machines that run sandboxes.
    pub nodes: Vec<Arc<dyn Node>>,
    /// The cluster that they form.
    pub cluster: ClusterId,
    /// The domain that clients are told for ports of sandboxes; their own choice if absent.
    pub domain: Option<String>,
    /// The key that the installation is opened with, of the role of an administrator.
    pub first_key: Option<FirstKey>,
    /// What tenants may have.
    pub limits: Limits,
    /// How nodes are chosen.
    pub policy: Policy,
    /// Whether to build the template `base`, which E2B's clients start from by default.
    pub base: bool,
}

impl ControlOptions {
    /// Options with the defaults for everything that has one.
    pub fn new(store: Arc<dyn Store>, nodes: Vec<Arc<dyn Node>>, cluster: ClusterId) -> Self {
        Self {
            store,
            nodes,
            cluster,
            domain: None,
            first_key: None,
            limits: Limits::default(),
            policy: Policy::default(),
            base: true,
        }
    }
}

/// What tenants may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest life of a sandbox, counted from its last extension.
    pub timeout: Duration,
    /// How many sandboxes a tenant may have at once.
    pub sandboxes: usize,
    /// How many builds a tenant may have under way at once.
    pub builds: usize,
    /// The most that one sandbox may use.
    pub resources: Resources,
    /// The largest request body, in bytes.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(24 * 3600),
            sandboxes: 1000,
            builds: 4,
            resources: Resources {
                vcpus: 64,
                memory: Bytes::gibibytes(256),
                disk: Bytes::gibibytes(1024),
            },
            body: 1 << 20,
        }
    }
}

/// A control plane at work.
pub struct Control {
    plane: Arc<Plane>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Whoever writes waits for it: it is stopped last.
    follower: TaskTracker,
    stop_following: CancellationToken,
}

impl Control {
    /// Reads intent, meets the nodes, and begins to serve and to reconcile. What `base` needs is
    /// built in the background.
    pub async fn start(options: ControlOptions) -> Result<Self, Problem> {
        let stop = CancellationToken::new();
        let mesh = Arc::new(Coordinator::load(options.store.clone(), stop.clone()).await?);
        let collections = Collections::new(options.store);
        let instance = keys::found(&collections, options.first_key.as_ref()).await?;
        let catalogue = Arc::new(Catalogue::load(collections.clone()).await?);
        let nodes = Arc::new(Nodes::meet(options.cluster, options.policy, options.nodes).await?);
        let builder = Arc::new(Builder::new(
            collections.clone(),
            catalogue.clone(),
            nodes.clone(),
            stop.clone(),
        ));
        let plane = Arc::new(Plane {
            collections: collections.clone(),
            catalogue: catalogue.clone(),
            instance,
            nodes: nodes.clone(),
            usage: Usage::default(),
            idempotency: Idempotency::default(),
            builder: builder.clone(),
            limits: options.limits,
            domain: options.domain,
            starts: Starts::default(),
            mesh: mesh.clone(),
            creations: TaskTracker::new(),
        });
        plane.usage.renew(&nodes).await?;

        let (tasks, follower) = (TaskTracker::new(), TaskTracker::new());
        let stop_following = CancellationToken::new();
        let (following, stopped) = (catalogue.clone(), stop_following.clone());
        follower.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = following.follow() => {}
            }
        });
        follower.close();
        let (heart, stopped) = (nodes.clone(), stop.clone());
        tasks.spawn(async move {
            let mut beat = tokio::time::interval(HEARTBEAT);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    _ = beat.tick() => heart.refresh().await,
                }
            }
        });
        let (other, stopped) = (mesh.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = other.follow() => {}
            }
        });
        let (hosts, stopped) = (nodes.clone(), stop.clone());
        tasks.spawn(async move {
            let mut ends = Ends::default();
            let mut beat = tokio::time::interval(SWEEP);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    _ = beat.tick() => {
                        mesh.sweep().await;
                        ends.look(&mesh, &hosts).await;
                    }
                }
            }
        });
        let reconciler = Reconciler {
            collections,
            catalogue,
            nodes,
            builder,
            base: options.base,
            started: Timestamp::now(),
        };
        tasks.spawn(reconciler.run(stop.clone()));
        tasks.close();
        Ok(Self {
            plane,
            tasks,
            stop,
            follower,
            stop_following,
        })
    }

    /// The public API. Every request that is not for a sandbox's port belongs to it.
    pub fn router(&self) -> axum::Router {
        routes::router(self.plane.clone())
    }

    /// The way of this process's own nodes to the coordinator of the mesh.
    pub fn mesh(&self) -> MeshLink {
        MeshLink::new(self.plane.mesh.clone())
    }

    /// Whether a key opens the API now.
    pub fn knows(&self, key: &Secret) -> bool {
        let digest = self.plane.instance.digest(key.expose());
        self.plane.catalogue.key_by_digest(&digest).is_some()
    }

    /// Stops reconciling, interrupts builds, and waits for creations under way. Sandboxes go on.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.plane.creations.close();
        self.plane.builder.finish().await;
        self.plane.creations.wait().await;
        self.tasks.wait().await;
        self.stop_following.cancel();
        self.follower.wait().await;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.cancel();
        self.stop_following.cancel();
    }
}
