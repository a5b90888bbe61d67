//! The agent with real machines and a real network. To be run as root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::common;

use agent::{
    Agent, AgentOptions, Images, Limits, OnExit, PoolOptions, Root,
    network::{Network, NetworkOptions},
};
use api::{
    Bytes, ImageDigest, Problem, Resources,
    node::{
        BuildEvent, CreateSandbox, EndReason, NetworkPolicy, Node, SandboxState, TemplateBuild,
    },
    route::Locate,
    template::{Requester, TemplateSource},
};
use common::{ended, id, node, request, status, wait_for};
use driver::container::{Container, ContainerOptions};
use futures::stream::BoxStream;
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A folder as the only image there is.
struct Folder(PathBuf);

#[async_trait::async_trait]
impl Images for Folder {
    async fn root(&self, _digest: &ImageDigest) -> Result<Root, Problem> {
        Ok(Root {
            layers: vec![self.0.clone()],
            pin: Box::new(()),
        })
    }

    async fn build(
        &self,
        _source: TemplateSource,
        _requester: Requester,
    ) -> Result<BoxStream<'static, BuildEvent>, Problem> {
        Ok(Box::pin(futures::stream::empty()))
    }

    async fn remove(&self, _digest: &ImageDigest) -> Result<(), Problem> {
        Ok(())
    }
}

/// A data directory and an instance of its own on this host.
struct Host {
    directory: tempfile::TempDir,
    instance: String,
}

static HOSTS: AtomicU32 = AtomicU32::new(0);

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        build_root(&directory.path().join("root"));
        let number = HOSTS.fetch_add(1, Relaxed);
        let instance = format!("{:04x}", (std::process::id() * 41 + number * 7919) & 0xffff);
        Self {
            directory,
            instance,
        }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    async fn agent(&self, on_exit: OnExit) -> Arc<Agent> {
        let mut container = ContainerOptions::new(self.data(), &self.instance);
        container.keeper_command = vec![std::env::current_exe().unwrap().into()];
        let arguments = [
            "keeper_process",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ];
        container.keeper_command.extend(arguments.map(Into::into));
        container.disk = Bytes::mebibytes(64);
        let driver = Container::new(container).unwrap();
        let network = NetworkOptions::new(&self.instance, self.data().join("agent"));
        let network = Network::start(network).await.unwrap();
        Agent::start(AgentOptions {
            node: node(),
            name: "test".into(),
            data_dir: self.data(),
            instance: self.instance.clone(),
            driver: Arc::new(driver),
            images: Arc::new(Folder(self.directory.path().join("root"))),
            network: Arc::new(network),
            members: None,
            limits: Limits {
                memory_overcommit: 1000.0,
                ..Limits::default()
            },
            pool: PoolOptions {
                min: 2,
                max: 16,
                ..PoolOptions::default()
            },
            on_exit,
            guest_port: agent::GUEST_PORT,
            start_deadline: Duration::from_secs(30),
        })
        .await
        .unwrap()
    }

    /// What the instance has on the host.
    fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/class/net").unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with(&format!("at{}.", self.instance)) {
                found.push(format!("interface {name}"));
            }
        }
        let hierarchies = driver::cgroup::Hierarchies::find().unwrap();
        for slot in driver::cgroup::Group::slots(&hierarchies, &self.instance) {
            found.push(format!("control group of slot {slot}"));
        }
        for (device, file) in driver::layer::attached_below(&self.data()) {
            found.push(format!("{} on {}", device.display(), file.display()));
        }
        for entry in fs::read_dir(self.data().join("layers")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("pristine-") {
                found.push(format!("layer {name}"));
            }
        }
        let tables = Command::new("nft")
            .args(["list", "tables"])
            .output()
            .unwrap();
        let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
        let table = format!("atoll_{}", self.instance);
        found.extend(
            tables
                .lines()
                .filter(|line| line.contains(&table))
                .map(String::from),
        );
        found
    }
}

/// The host's shell and a few tools with their libraries.
fn build_root(root: &Path) {
    for name in [
        "bin", "dev", "etc", "lib", "lib64", "proc", "root", "sys", "tmp", "usr",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    for program in ["bash", "sh", "cat", "sleep"] {
        let found = Path::new("/bin").join(program);
        fs::copy(&found, root.join("bin").join(program)).unwrap();
        let libraries = Command::new("ldd").arg(&found).output().unwrap();
        for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace() {
            if let Some(below) = word.strip_prefix('/') {
                let target = root.join(below);
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::copy(word, target).unwrap();
            }
        }
    }
}

fn sandbox(number: u32, command: Option<&str>) -> CreateSandbox {
    let request = request(number);
    let template = TemplateBuild {
        user: "root".into(),
        working_directory: "/".into(),
        start_command: command.map(String::from),
        ..request.template
    };
    let resources = Resources {
        vcpus: 1,
        memory: Bytes::mebibytes(128),
        disk: Bytes::mebibytes(64),
    };
    CreateSandbox {
        template,
        resources,
        ..request
    }
}

fn is_healthy(address: IpAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let address = (address, agent::GUEST_PORT).into();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer)?;
        Ok(answer[..length].starts_with(b"HTTP/1.1 204"))
    };
    ask().unwrap_or(false)
}

async fn logs_when(agent: &Agent, number: u32, text: &str) {
    let began = Instant::now();
    loop {
        let lines = agent.logs(&id(number), None, 1000).await.unwrap();
        if lines.iter().any(|line| line.message.contains(text)) {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "no {text} in {lines:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_sandbox_serves_prints_is_measured_and_leaves_nothing() {
    let host = Host::new();
    let agent = host.agent(OnExit::Kill).await;
    let made = agent
        .create(sandbox(1, Some("echo hello from inside")))
        .await
        .unwrap();
    let address = made.address.unwrap();
    assert!(is_healthy(address));
    assert_eq!(agent.locate(&id(1)).await.unwrap().address, address);
    let closed = NetworkPolicy {
        internet: false,
        ..NetworkPolicy::default()
    };
    agent.set_network(&id(1), closed).await.unwrap();
    assert!(is_healthy(address));
    logs_when(&agent, 1, "hello from inside").await;
    let began = Instant::now();
    let sample = loop {
        if let Some(sample) = agent.metrics(&id(1), None, None).await.unwrap().first() {
            break *sample;
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(sample.memory_used > Bytes(0) && sample.memory_used < Bytes::mebibytes(64));
    assert!(agent.kill(&id(1), EndReason::Killed).await.unwrap());
    assert!(!is_healthy(address));
    logs_when(&agent, 1, "hello from inside").await;
    agent.stop().await;
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn a_real_sandbox_outlives_the_agent_and_its_end_is_seen() {
    let host = Arc::new(Host::new());
    let house = common::House::new(agent::simulation::World::new());
    let first = host.clone();
    let addresses = house.until_killed(async move {
        let agent = first.agent(OnExit::Kill).await;
        let mut addresses = Vec::new();
        for number in 1..=3 {
            let made = agent.create(sandbox(number, None)).await.unwrap();
            addresses.push(made.address.unwrap());
        }
        addresses
    });
    let second = host.clone();
    house.until_killed(async move {
        let agent = second.agent(OnExit::Kill).await;
        for number in 1..=3 {
            assert_eq!(status(&agent, number).await.state, SandboxState::Running);
            assert!(is_healthy(addresses[number as usize - 1]));
        }
        // One dies under the agent's eyes.
        let journal = fs::read_to_string(second.data().join("agent/journal")).unwrap();
        let record = journal
            .lines()
            .find(|line| line.contains("\"event\":\"running\"") && line.contains(id(2).as_str()))
            .unwrap();
        let record: serde_json::Value = serde_json::from_str(record).unwrap();
        let pid = record["machine"]["pid"].as_i64().unwrap() as i32;
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let SandboxState::Ended { reason, .. } = ended(&agent, 2).await.state else {
            panic!()
        };
        assert!(matches!(reason, EndReason::Crashed(_)), "{reason:?}");
        let fourth = agent.create(sandbox(4, None)).await.unwrap();
        assert!(is_healthy(fourth.address.unwrap()));
        let stopping = Instant::now();
        agent.stop().await;
        // It once waited for the wrong process to end, because it took its own for the keeper.
        assert!(stopping.elapsed() < Duration::from_secs(10));
    });
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_real_sandboxes_at_once() {
    let host = Host::new();
    let agent = host.agent(OnExit::Kill).await;
    wait_for("the pool", || agent.ready() >= 2).await;
    let all = (1..=30).map(|number| {
        let agent = agent.clone();
        tokio::spawn(async move { agent.create(sandbox(number, None)).await })
    });
    let began = Instant::now();
    for made in futures::future::join_all(all).await {
        let address = made.unwrap().unwrap().address.unwrap();
        assert!(
            tokio::task::spawn_blocking(move || is_healthy(address))
                .await
                .unwrap()
        );
    }
    println!("30 sandboxes in {:?}", began.elapsed());
    for phase in agent.phases() {
        println!("{phase:?}");
    }
    agent.stop().await;
    assert_eq!(host.leftovers(), [""; 0]);
}
