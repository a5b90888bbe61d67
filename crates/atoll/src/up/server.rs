//! The rooms of the house, put together in one process.
//!
//! Each is started when all that it needs stands, and stopped before what it needs goes: store,
//! images, driver and network; then the agent over them; then the control plane over the agent;
//! then the gateway before both. If one cannot start, those that did are stopped again.

use super::{
    announce::Announced,
    machines::FirecrackerArguments,
    mesh::{SandboxNodes, default_endpoints},
    open::Opening,
};
use crate::data_dir::DataDir;
use agent::{
    Agent, AgentOptions, GUEST_PORT, Limits, OnExit, PoolOptions,
    network::{MachineSlots, Network, NetworkOptions},
};
use anyhow::Context;
use api::{Secret, node::Node, route::Locate};
use control::{Control, ControlOptions, FirstKey};
use driver::{DriverKind, cgroup::IoLimits, slot::machine};
use gateway::{Gateway, GatewayOptions, TlsFiles, TowerApi};
use image::{ImageStore, StoreOptions};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use store::{SqliteStore, Store, write_back};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// How long one sandbox may take to start, waiting for its turn included.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long requests may go on after the end was asked for, before they are broken.
const LAST_REQUESTS: Duration = Duration::from_secs(3);

/// All that the rooms are told.
pub(super) struct Plan {
    pub(super) driver: DriverKind,
    /// The guest's kernel, for microVMs.
    pub(super) kernel: Option<PathBuf>,
    pub(super) firecracker: FirecrackerArguments,
    /// What a container may read and write of its disk.
    pub(super) disk_limits: Option<IoLimits>,
    pub(super) first_key: FirstKey,
    pub(super) domain: Option<String>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) on_exit: OnExit,
    pub(super) pool: PoolOptions,
    pub(super) limits: Limits,
    pub(super) name_servers: Vec<IpAddr>,
    /// Where other nodes of the mesh reach sandboxes, if the operator says so.
    pub(super) mesh_endpoints: Vec<IpAddr>,
    pub(super) insecure_registries: Vec<String>,
    pub(super) base: bool,
}

/// An Atoll that serves.
pub(super) struct Server {
    agent: Arc<Agent>,
    control: Control,
    gateway: JoinHandle<()>,
    members: Arc<SandboxNodes>,
    closing: CancellationToken,
    /// The store's file.
    kept: PathBuf,
}

impl Server {
    /// Starts everything and serves `listener`.
    ///
    /// # Errors
    /// When a room cannot start; nothing of this start is left running then.
    pub(super) async fn start(
        data: &DataDir,
        listener: TcpListener,
        plan: Plan,
    ) -> anyhow::Result<Self> {
        let path = data.path();
        let instance = data.instance();
        // Sandboxes of an earlier run may go on, and need the rules that it left.
        let continued = path.join("agent").join("journal").exists();

        let endpoints = match &plan.mesh_endpoints[..] {
            [] => default_endpoints(listener.local_addr()?),
            named => named.iter().map(|ip| SocketAddr::new(*ip, 0)).collect(),
        };
        let members = SandboxNodes::new(path, endpoints);

        let mut images = StoreOptions::new(path.join("images"));
        images.insecure_registries = plan.insecure_registries;
        let images = tokio::task::spawn_blocking(move || ImageStore::open(images));
        let opening = Opening {
            kind: plan.driver,
            data_directory: path.to_owned(),
            instance: instance.clone(),
            kernel: plan.kernel,
            firecracker: plan.firecracker,
            disk_limits: plan.disk_limits,
        };
        let mut network = NetworkOptions::new(&instance, path.join("agent"));
        network.machines = opening.machines().then(|| MachineSlots {
            first_owner: Some(machine::first_user(&instance)),
        });
        let driver = tokio::task::spawn_blocking(move || opening.open());
        network.name_servers = plan.name_servers;
        let network = Network::start(network);
        let kept = path.join("store.sqlite");
        let store = SqliteStore::open(&kept);
        let (images, driver, network, store) = tokio::join!(images, driver, network, store);
        let network = network
            .map_err(|error| error.problem())
            .context("cannot set up the network")?;

        let started = async {
            let store: Arc<dyn Store> =
                Arc::new(store.context("cannot open what is kept in store.sqlite")?);
            let images = images?
                .map_err(api::Problem::from)
                .context("cannot open the images")?;
            let driver = driver?.context("cannot run sandboxes")?;
            let agent = Agent::start(AgentOptions {
                node: data.node_id()?,
                name: host_name(),
                data_dir: path.to_owned(),
                instance,
                driver,
                images: Arc::new(Announced::new(images)),
                network: Arc::new(network.clone()),
                members: Some(members.clone()),
                limits: plan.limits,
                pool: plan.pool,
                on_exit: plan.on_exit,
                guest_port: GUEST_PORT,
                start_deadline: START_DEADLINE,
            })
            .await
            .context("cannot start the node")?;
            anyhow::Ok((store, agent))
        };
        let (store, agent) = match started.await {
            Ok(started) => started,
            Err(error) => {
                if let Err(left) = network.stop(continued).await {
                    tracing::warn!("the network was not taken down: {left}");
                }
                return Err(error);
            }
        };
        let node: Arc<dyn Node> = agent.clone();
        let mut options = ControlOptions::new(store, vec![node], data.cluster_id()?);
        options.domain = plan.domain.clone();
        options.first_key = Some(plan.first_key);
        options.base = plan.base;
        // No tenant has a limit of its own here: all share what the node allows, and the node says
        // so when it is full, which is for it to know and no fault of the caller's.
        options.limits.sandboxes = usize::MAX;
        let control = Control::start(options).await;
        let control = match control {
            Ok(control) => control,
            Err(error) => {
                agent.stop().await;
                members.stop().await;
                return Err(error).context("cannot start the control plane");
            }
        };
        members.connect(control.mesh());
        let gateway = Gateway::new(GatewayOptions {
            locate: agent.clone() as Arc<dyn Locate>,
            api: Arc::new(TowerApi(control.router())),
            domain: plan.domain,
            tls: plan.tls,
            limits: gateway::Limits {
                shutdown: LAST_REQUESTS,
                ..gateway::Limits::default()
            },
        });
        let gateway = match gateway {
            Ok(gateway) => gateway,
            Err(error) => {
                control.stop().await;
                agent.stop().await;
                members.stop().await;
                return Err(error).context("cannot serve HTTPS");
            }
        };
        let closing = CancellationToken::new();
        let gateway = tokio::spawn({
            let closing = closing.clone();
            async move { gateway.serve(listener, closing).await }
        });
        Ok(Self {
            agent,
            control,
            gateway,
            members,
            closing,
            kept,
        })
    }

    /// Whether a key opens the API.
    pub(super) fn knows(&self, key: &Secret) -> bool {
        self.control.knows(key)
    }

    /// Returns when the gateway has ended, which it does of itself only through a fault.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.gateway).await;
    }

    /// Stops everything in order; returns when nothing is left but the sandboxes that go on.
    pub(super) async fn stop(self) {
        self.closing.cancel();
        let rooms = async {
            self.control.stop().await;
            self.agent.stop().await;
            self.members.stop().await;
        };
        // Together, as clients that read from a sandbox go when it does.
        let (gateway, ()) = tokio::join!(
            async { (!self.gateway.is_finished()).then_some(self.gateway) },
            rooms
        );
        if let Some(gateway) = gateway {
            let _ = gateway.await;
        }
        let kept = self.kept;
        match tokio::task::spawn_blocking(move || write_back(kept)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the store's log is not written back"),
            Err(error) => tracing::warn!(%error, "the store's log is not written back"),
        }
    }
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
