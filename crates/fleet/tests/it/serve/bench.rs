//! A small fleet with a management controller in this process, nodes that listen while they are up, and
//! a clock that is told what time it is.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use fleet::{
    config,
    moment::{Moment, Span},
    power::transition::Patience,
    serve::{Demand, Fleet, Setup, Source, SourceError},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use store::{SqliteOptions, SqliteStore, Store, clock::ManualClock};
use tokio::{net::TcpListener, task::JoinHandle};

/// How long machines take to boot and to stop, in seconds.
pub(crate) const BOOT: u64 = 45;
const STOP: u64 = 12;
/// Time between ticks.
pub(crate) const STEP: Span = Span(10);

/// A machine behind the controller.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) on: bool,
    pub(crate) never_comes_up: bool,
    /// When its node is there, or gone.
    pub(crate) changes: Option<(Moment, bool)>,
    node: Option<JoinHandle<()>>,
    address: Option<SocketAddr>,
    pub(crate) up: bool,
    /// What its controller says, if that is not the truth.
    pub(crate) says: Option<bool>,
    pub(crate) sent: Vec<(Moment, String)>,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) now: Moment,
    pub(crate) machines: BTreeMap<String, Machine>,
    /// Machines with work on them, and those that were switched off under it.
    pub(crate) working: BTreeSet<String>,
    pub(crate) violations: Vec<String>,
    pub(crate) demand: Option<Demand>,
    /// Work that comes after demand was read and before the last look.
    pub(crate) surprise: BTreeSet<String>,
    /// Whether nobody can tell what runs on a machine whose node is silent.
    pub(crate) cannot_tell: bool,
    pub(crate) moves: bool,
    pub(crate) closed: BTreeSet<String>,
    pub(crate) evicted: Vec<String>,
}

pub(crate) type Shared = Arc<Mutex<World>>;

async fn system(State(world): State<Shared>, Path(name): Path<String>) -> Json<Value> {
    let world = world.lock().unwrap();
    let machine = world.machines.get(&name);
    let on = machine.is_some_and(|one| one.says.unwrap_or(one.on));
    let target = format!("/redfish/v1/Systems/{name}/Actions/ComputerSystem.Reset");
    Json(json!({
        "PowerState": if on { "On" } else { "Off" },
        "Actions": { "#ComputerSystem.Reset": { "target": target } },
    }))
}

async fn reset(
    State(world): State<Shared>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> StatusCode {
    let mut world = world.lock().unwrap();
    let how = body["ResetType"].as_str().unwrap().to_owned();
    let (now, off) = (world.now, how != "On");
    if off && world.working.contains(&name) {
        world.violations.push(name.clone());
    }
    let machine = world.machines.get_mut(&name).unwrap();
    machine.sent.push((now, how));
    if off {
        machine.changes = Some((now.plus(Span(STOP)), false));
    } else if !machine.on {
        machine.on = true;
        machine.changes = (!machine.never_comes_up).then(|| (now.plus(Span(BOOT)), true));
    }
    StatusCode::NO_CONTENT
}

/// What is asked for is what the test says.
pub(crate) struct Asked(pub(crate) Shared);

#[async_trait::async_trait]
impl Source for Asked {
    fn name(&self) -> &'static str {
        "test"
    }

    async fn read(&self) -> Result<Demand, SourceError> {
        tokio::task::yield_now().await;
        let world = self.0.lock().unwrap();
        let demand = world.demand.clone();
        demand.ok_or_else(|| SourceError("out of order".to_owned()))
    }

    async fn carries_work(&self, machine: &str) -> Option<bool> {
        tokio::task::yield_now().await;
        let world = self.0.lock().unwrap();
        if world.cannot_tell {
            return None;
        }
        Some(world.working.contains(machine) || world.surprise.contains(machine))
    }

    fn moves_work(&self) -> bool {
        self.0.lock().unwrap().moves
    }

    async fn close(&self, machine: &str, closed: bool) -> Result<(), SourceError> {
        tokio::task::yield_now().await;
        let mut world = self.0.lock().unwrap();
        match closed {
            true => world.closed.insert(machine.to_owned()),
            false => world.closed.remove(machine),
        };
        Ok(())
    }

    async fn evict(&self, workload: &str) -> Result<(), SourceError> {
        self.0.lock().unwrap().evicted.push(workload.to_owned());
        Ok(())
    }
}

/// Tests run beside each other: each has addresses of its own.
static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Bench {
    pub(crate) world: Shared,
    pub(crate) fleet: Fleet,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) leases: ManualClock,
    pub(crate) file: config::File,
    source: Arc<dyn Source>,
    dry_run: bool,
    _folder: tempfile::TempDir,
    _controller: tokio::task::JoinSet<()>,
}

/// A fleet of a group `pool` of so many machines with four processors, `m0` being a base machine.
/// All of them are on.
pub(crate) async fn bench(machines: u32) -> Bench {
    bench_with(machines, "", false).await
}

pub(crate) async fn bench_with(machines: u32, group: &str, dry_run: bool) -> Bench {
    let world = Shared::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let controller = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/redfish/v1/Systems/{name}", get(system))
        .route(
            "/redfish/v1/Systems/{name}/Actions/ComputerSystem.Reset",
            post(reset),
        )
        .with_state(world.clone());
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });

    // In memory, where there is such a place: what is killed here is the process, not the machine.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let folder = folder.unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "password").unwrap();
    let mut text = format!(
        r#"
wakes_per_second = 100
[policy]
debounce = "1m"
[[groups]]
name = "pool"
capacity = {{ cpu = 4, memory = "16GiB" }}
watts = {{ off = 5, idle = 120, peak = 300 }}
boot = "60s"
{group}
"#
    );
    let number = NEXT.fetch_add(1, Relaxed);
    let process = std::process::id();
    for at in 0..machines {
        // 127.0.0.0/8 is all this machine's own.
        let address = format!(
            "127.{}.{}.{}:{}",
            1 + (process >> 8) % 120,
            process % 256,
            at + 1,
            2300 + number
        );
        let role = if at == 0 { "base" } else { "auto" };
        text.push_str(&format!(
            r#"
[[machines]]
name = "m{at}"
group = "pool"
role = "{role}"
node = {{ address = "{address}" }}
power = {{ driver = "redfish", address = "http://{controller}", system = "/redfish/v1/Systems/m{at}", user = "admin", password = {{ file = "{}" }} }}
"#,
            password.display()
        ));
        let machine = Machine {
            on: true,
            changes: Some((Moment(0), true)),
            address: Some(address.parse().unwrap()),
            ..Machine::default()
        };
        let name = format!("m{at}");
        world.lock().unwrap().machines.insert(name, machine);
    }
    world.lock().unwrap().demand = Some(Demand::default());
    let file = config::parse(&text).unwrap();
    let leases = ManualClock::default();
    let options = SqliteOptions {
        clock: Arc::new(leases.clone()),
        ..SqliteOptions::default()
    };
    let path = folder.path().join("fleet.sqlite");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open_with(path, options).await.unwrap());
    let source: Arc<dyn Source> = Arc::new(Asked(world.clone()));
    let mut bench = Bench {
        fleet: open(&file, &store, &source, dry_run),
        source,
        world,
        store,
        leases,
        file,
        dry_run,
        _folder: folder,
        _controller: server,
    };
    bench.pass(Span(1_000_000)).await;
    assert!(bench.fleet.try_lead(bench.now()).await.unwrap());
    bench
}

fn open(
    file: &config::File,
    store: &Arc<dyn Store>,
    source: &Arc<dyn Source>,
    dry_run: bool,
) -> Fleet {
    let setup = Setup {
        file: file.clone(),
        store: store.clone(),
        source: source.clone(),
        patience: Patience::default(),
        dry_run,
    };
    Fleet::open(setup).unwrap()
}

async fn listen(address: SocketAddr) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    })
}

impl Bench {
    /// Another process with the same configuration and store.
    pub(crate) fn another(&self) -> Fleet {
        open(&self.file, &self.store, &self.source, self.dry_run)
    }

    /// The same with another source of demand.
    pub(crate) async fn follow(&mut self, source: Arc<dyn Source>) {
        self.source = source;
        self.restart().await;
    }

    /// Ends it in order, and starts it as it is configured now.
    pub(crate) async fn restart(&mut self) {
        self.fleet.resign().await.unwrap();
        self.fleet = self.another();
        assert!(self.fleet.try_lead(self.now()).await.unwrap());
    }

    pub(crate) fn now(&self) -> Moment {
        self.world.lock().unwrap().now
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.world.lock().unwrap())
    }

    /// Lets time pass: machines come up and go off.
    pub(crate) async fn pass(&self, span: Span) {
        let mut changed = Vec::new();
        self.with(|world| {
            world.now = world.now.plus(span);
            let now = world.now;
            for machine in world.machines.values_mut() {
                if let Some((at, up)) = machine.changes
                    && at <= now
                {
                    machine.changes = None;
                    (machine.on, machine.up) = (up, up);
                    changed.push((machine.address.unwrap(), up, machine.node.take()));
                }
            }
        });
        for (address, up, old) in changed {
            if let Some(node) = old {
                node.abort();
                let _ = node.await;
            }
            if up {
                let node = listen(address).await;
                self.with(|world| {
                    let mut all = world.machines.values_mut();
                    let machine = all.find(|one| one.address == Some(address)).unwrap();
                    machine.node = Some(node);
                });
            }
        }
        self.leases.advance(Duration::from_secs(span.0.min(5)));
    }

    /// The network of a machine's node is gone, or back. Its power is as it was.
    pub(crate) async fn cut(&self, machine: &str, gone: bool) {
        let (address, old) = self.with(|world| {
            let machine = world.machines.get_mut(machine).unwrap();
            (machine.address.unwrap(), machine.node.take())
        });
        if let Some(node) = old {
            node.abort();
            let _ = node.await;
        }
        let node = match gone {
            true => None,
            false => Some(listen(address).await),
        };
        self.with(|world| world.machines.get_mut(machine).unwrap().node = node);
    }

    /// This process is gone (`kill -9`), and after a while another takes its place.
    pub(crate) async fn kill(&mut self, away: Span) {
        self.fleet = self.another();
        self.pass(away).await;
        let now = self.now();
        while !self.fleet.try_lead(now).await.unwrap() {
            self.leases.advance(Duration::from_secs(16));
            tokio::task::yield_now().await;
        }
    }

    /// Ticks for so long.
    pub(crate) async fn run(&mut self, span: Span) {
        let end = self.now().plus(span);
        while self.now() < end {
            self.pass(STEP).await;
            self.fleet.tick(self.now()).await.unwrap();
        }
    }

    /// Ticks until a machine is on or off, for at most an hour; returns how long that took.
    pub(crate) async fn until(&mut self, machine: &str, up: bool) -> Span {
        let start = self.now();
        while self.with(|world| world.machines[machine].up) != up {
            assert!(self.now().since(start) < Span::hours(1), "{machine} {up}");
            self.run(STEP).await;
        }
        self.now().since(start)
    }

    /// A workload with so many processors asks for a place, or has one.
    pub(crate) fn ask(&self, name: &str, cpu: u64, machine: Option<&str>) {
        let asked = fleet::serve::Asked {
            name: name.to_owned(),
            request: fleet::amount::Amount::workload(cpu * 1000, cpu * 1024),
            machine: machine.map(str::to_owned),
            moving: fleet::inventory::Moving::Free,
            set: None,
        };
        self.with(|world| {
            world.working.extend(asked.machine.clone());
            let demand = world.demand.get_or_insert_default();
            demand.workloads.retain(|one| one.name != name);
            demand.workloads.push(asked);
        });
    }

    /// A workload is done.
    pub(crate) fn end(&self, name: &str) {
        self.with(|world| {
            let demand = world.demand.get_or_insert_default();
            demand.workloads.retain(|one| one.name != name);
            let left = demand.workloads.iter();
            world.working = left.filter_map(|one| one.machine.clone()).collect();
        });
    }

    pub(crate) fn sent(&self, machine: &str) -> Vec<String> {
        let all = self.with(|world| world.machines[machine].sent.clone());
        all.into_iter().map(|(_, how)| how).collect()
    }

    pub(crate) fn reason(&self, machine: &str) -> String {
        let machines = self.fleet.shared().machines();
        let found = machines.into_iter().find(|one| one.name == machine);
        found.unwrap().reason
    }
}
