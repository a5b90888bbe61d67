//! What the tests of this crate share: an agent in a simulated world.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agent::{
    Agent, AgentOptions, Limits, OnExit, PoolOptions,
    simulation::{SimulatedDriver, SimulatedImages, SimulatedNetwork, World},
};
use api::{
    Bytes, NodeId, Problem, Resources, SandboxId, Secret,
    node::{CreateSandbox, NetworkPolicy, OnTimeout, SandboxStatus, TemplateBuild},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// A world, a data directory, and the agents that are started in them.
pub(crate) struct House {
    pub(crate) world: Arc<World>,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) fn node() -> NodeId {
    "node".parse().unwrap()
}

pub(crate) fn id(number: u32) -> SandboxId {
    format!("iclunode{number:013}").parse().unwrap()
}

pub(crate) fn request(number: u32) -> CreateSandbox {
    CreateSandbox {
        id: id(number),
        tenant: "t000000000000".parse().unwrap(),
        template: TemplateBuild {
            template: "0".repeat(20).parse().unwrap(),
            build: "00000000-0000-4000-8000-000000000000".parse().unwrap(),
            alias: Some("base".into()),
            image: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            environment: [("A".to_owned(), "1".to_owned())].into(),
            start_command: None,
            ready_command: None,
            user: "user".into(),
            working_directory: String::new(),
        },
        resources: Resources {
            vcpus: 2,
            memory: Bytes::mebibytes(128),
            disk: Bytes::gibibytes(1),
        },
        environment: [("B".to_owned(), "2".to_owned())].into(),
        metadata: [("owner".to_owned(), "me".to_owned())].into(),
        timeout: Duration::from_secs(300),
        on_timeout: OnTimeout::Kill,
        pause_memory: true,
        auto_resume: false,
        network: NetworkPolicy::default(),
        access_token: Some(Secret::new("access")),
        traffic_token: None,
        mesh: None,
    }
}

impl House {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self {
            world,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path().join("agent/journal")
    }

    pub(crate) fn options(&self) -> AgentOptions {
        AgentOptions {
            node: node(),
            name: "test".into(),
            data_dir: self.path().to_owned(),
            instance: "0000".into(),
            driver: Arc::new(SimulatedDriver(self.world.clone())),
            images: Arc::new(SimulatedImages),
            network: Arc::new(SimulatedNetwork(self.world.clone())),
            members: None,
            limits: Limits {
                sandboxes: 1_500,
                memory_overcommit: 1000.0,
                memory_reserve: Bytes(0),
                disk_reserve: Bytes(0),
            },
            pool: PoolOptions {
                min: 4,
                max: 32,
                ..PoolOptions::default()
            },
            on_exit: OnExit::Kill,
            guest_port: agent::GUEST_PORT,
            start_deadline: Duration::from_secs(10),
        }
    }

    pub(crate) async fn agent(&self) -> Arc<Agent> {
        Agent::start(self.options()).await.unwrap()
    }

    /// An agent whose simulated machines have something that answers for their guests.
    pub(crate) async fn agent_with_guests(&self) -> Arc<Agent> {
        let options = AgentOptions {
            guest_port: serve_guests().await,
            ..self.options()
        };
        Agent::start(options).await.unwrap()
    }

    /// Runs `work` in a runtime of its own that is torn down when `work` is done: for the agent it
    /// is as if the program were killed at that moment.
    pub(crate) fn until_killed<Output: Send + 'static, Work>(&self, work: Work) -> Output
    where
        Work: Future<Output = Output> + Send + 'static,
    {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let output = runtime.block_on(work);
            runtime.shutdown_timeout(Duration::from_secs(5));
            output
        })
        .join()
        .unwrap()
    }

    /// Asserts that the world holds nothing.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.world.machines(), [0u32; 0], "machines are left");
        assert_eq!(
            self.world.prepared(),
            [0u32; 0],
            "prepared sandboxes are left"
        );
        assert_eq!(
            self.world.preparing(),
            [0u32; 0],
            "something half prepared is left"
        );
        assert_eq!(self.world.slots(), [0u32; 0], "slots are left");
    }
}

/// Waits until something is so, for at most a minute.
pub(crate) async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The status of a sandbox that must be known.
pub(crate) async fn status(agent: &Agent, number: u32) -> SandboxStatus {
    use api::node::Node;
    agent
        .get(&id(number))
        .await
        .unwrap()
        .expect("the sandbox should be known")
}

/// The status of a sandbox once it has ended.
pub(crate) async fn ended(agent: &Agent, number: u32) -> SandboxStatus {
    use api::node::SandboxState;
    let began = Instant::now();
    loop {
        let status = status(agent, number).await;
        if matches!(status.state, SandboxState::Ended { .. }) {
            return status;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{status:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn create(agent: &Agent, number: u32) -> Result<SandboxStatus, Problem> {
    use api::node::Node;
    agent.create(request(number)).await
}

/// Another kernel for guests and another guest program, as after an upgrade.
pub(crate) fn upgrade(host: &mut driver::state::HostFacts) {
    host.kernel.push_str(", newer");
    host.guest.push_str(", newer");
}

/// The names in a folder of a data directory.
pub(crate) fn names(house: &House, folder: &str) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(house.path().join(folder)) else {
        return Vec::new();
    };
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Answers at all addresses of the loopback as guests do that agree with everything; returns the
/// port. Ends with the runtime.
pub(crate) async fn serve_guests() -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}
