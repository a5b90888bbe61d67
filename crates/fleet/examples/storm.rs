//! Cluster Autoscaler's loop over a fleet of 5,000 machines in 200 groups, as it makes its calls: one
//! after the other, on one connection with mutual TLS, while the machines are looked at anew:
//! `cargo run --release -p fleet --example storm`.

#[path = "../tests/it/cluster/client.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "it is the tests' client"
)]
mod client;

use client::Client;
use fleet::{
    amount::Amount,
    externalgrpc::{Call, Service, Settings, Tls, TlsFiles, serve, wire},
    inventory::{Group, GroupIndex, Machine, Power},
    moment::Moment,
    power::journal::Journal,
    targets::{Catalogue, Listed, Seen, Targets},
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, ServerName},
};
use std::{
    collections::BTreeMap,
    error::Error,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use store::{SqliteStore, Store};
use tokio::net::{TcpListener, TcpStream};

const GROUPS: usize = 200;
const MACHINES: usize = 5000;
const EACH: usize = MACHINES / GROUPS;
/// Of each group's machines so many are on.
const ON: usize = EACH - 5;
/// How often the options of each group are asked for.
const OPTIONS: usize = 15;
/// Groups that are scaled up and down in each loop.
const SCALED: usize = 5;
const LOOPS: usize = 20;
/// Calls that wait for the disk.
const WRITES: [Call; 3] = [
    Call::NodeGroupIncreaseSize,
    Call::NodeGroupDecreaseTargetSize,
    Call::NodeGroupDeleteNodes,
];

type Failure = Box<dyn Error + Send + Sync>;

fn name(machine: usize) -> String {
    format!("node-{machine:05}")
}

fn group(at: usize) -> String {
    format!("group-{at:03}")
}

fn provider_id(machine: usize) -> String {
    format!("atoll://{}", name(machine))
}

fn catalogue() -> Result<Catalogue, Failure> {
    let groups = (0..GROUPS).map(|at| Group::new(group(at))).collect();
    let machines = (0..MACHINES).map(|at| {
        let index = GroupIndex((at / EACH) as u32);
        Listed {
            machine: Machine::new(name(at), index, Amount::new(64_000, 256 << 30, 0, 110)),
            provider_id: provider_id(at),
        }
    });
    Ok(Catalogue::new(groups, machines.collect())?)
}

fn seen() -> Vec<Seen> {
    let all = (0..MACHINES).map(|at| {
        let on = at % EACH < ON;
        Seen {
            machine: name(at),
            power: if on { Power::On } else { Power::Off },
            node: on,
            intent: None,
        }
    });
    all.collect()
}

/// An authority, and the files of a server that trusts it.
fn secure(folder: &Path) -> Result<(Tls, ClientConfig), Failure> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &authority)?;
    let files = TlsFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        client_ca: Some(folder.join("ca.crt")),
        open_expander: false,
    };
    std::fs::write(&files.certificate, server.pem())?;
    std::fs::write(&files.key, key.serialize_pem())?;
    std::fs::write(folder.join("ca.crt"), authority.pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let key = KeyPair::generate()?;
    let shown = CertificateParams::new(["autoscaler".to_owned()])?.signed_by(&key, &authority)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![shown.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der())?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Tls::read(files)?, config))
}

/// Starts the server, and looks at all machines every second.
async fn start(folder: &Path, tls: Tls) -> Result<SocketAddr, Failure> {
    let store = SqliteStore::open(folder.join("store.sqlite")).await?;
    let store: Arc<dyn Store> = Arc::new(store);
    let journal = Journal::new(store.clone());
    let leadership = journal.lead().await?.ok_or("somebody else leads")?;
    let targets = Targets::open(store, leadership.clone(), catalogue()?).await?;
    targets.observe(seen(), Moment(0)).await?;
    let service = Arc::new(Service::new(targets.clone(), Settings::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener, Some(tls), service, std::future::pending()));
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            if let Err(error) = targets.observe(seen(), Moment(0)).await {
                eprintln!("what was seen could not be noted: {error}");
            }
            if let Err(error) = journal.renew(&leadership).await {
                eprintln!("the lease was lost: {error}");
                return;
            }
        }
    });
    Ok(address)
}

/// Makes calls and notes how long they take.
struct Caller {
    client: Client,
    times: BTreeMap<&'static str, Vec<Duration>>,
    rounds: Vec<Duration>,
}

impl Caller {
    async fn call(&mut self, call: Call, question: &impl Message) -> Result<(), Failure> {
        let message = question.encode_to_vec();
        let start = Instant::now();
        let answer = self.client.call(call, &message).await?;
        let took = start.elapsed();
        self.times.entry(call.name()).or_default().push(took);
        match answer {
            Ok(_) => Ok(()),
            // As it is unless the operator overrides something.
            Err((12, _)) if call == Call::NodeGroupGetOptions => Ok(()),
            Err((code, words)) => Err(format!("{call:?} ended with {code}: {words}").into()),
        }
    }

    async fn round(&mut self, round: usize) -> Result<(), Failure> {
        let nothing = wire::Empty {};
        self.call(Call::Refresh, &nothing).await?;
        self.call(Call::NodeGroups, &nothing).await?;
        for at in (0..MACHINES).filter(|at| at % EACH < ON) {
            let node = Some(node(at));
            self.call(Call::NodeGroupForNode, &wire::ForNode { node })
                .await?;
        }
        for at in 0..GROUPS {
            let id = wire::Id { id: group(at) };
            self.call(Call::NodeGroupTargetSize, &id).await?;
            self.call(Call::NodeGroupNodes, &id).await?;
            self.call(Call::NodeGroupTemplateNodeInfo, &id).await?;
            let options = wire::OptionsQuestion {
                id: group(at),
                defaults: Some(wire::Options::default().encode_to_vec()),
            };
            for _ in 0..OPTIONS {
                self.call(Call::NodeGroupGetOptions, &options).await?;
            }
        }
        for at in 0..SCALED {
            self.scale((round * SCALED + at) % GROUPS).await?;
        }
        Ok(())
    }

    /// A scale-up, half of which is taken back, and a node that is given back.
    async fn scale(&mut self, at: usize) -> Result<(), Failure> {
        let id = group(at);
        let delta = |delta| wire::Delta {
            delta,
            id: id.clone(),
        };
        self.call(Call::NodeGroupIncreaseSize, &delta(2)).await?;
        self.call(Call::NodeGroupDecreaseTargetSize, &delta(-1))
            .await?;
        let nodes = vec![node(at * EACH)];
        let question = wire::DeleteNodes { nodes, id };
        self.call(Call::NodeGroupDeleteNodes, &question).await
    }

    fn print(&mut self, only: Option<&[Call]>) {
        println!(
            "{:<28} {:>7} {:>10} {:>10} {:>10}",
            "call", "samples", "p50", "p99", "longest"
        );
        for (name, times) in &mut self.times {
            if only.is_some_and(|calls| calls.iter().all(|call| call.name() != *name)) {
                continue;
            }
            times.sort_unstable();
            println!(
                "{name:<28} {:>7} {:>8.0}us {:>8.0}us {:>8.0}us",
                times.len(),
                microseconds(times, 0.5),
                microseconds(times, 0.99),
                microseconds(times, 1.0),
            );
        }
    }
}

/// A quantile of sorted times.
fn microseconds(times: &[Duration], share: f64) -> f64 {
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
}

/// How long it takes until a few kilobytes are on the disk: the least that a call which promises
/// something can take.
fn measure_disk(folder: &Path) -> Result<(), Failure> {
    let mut file = std::fs::File::create(folder.join("probe"))?;
    let mut times = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        file.write_all(&[0; 8192])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!(
        "this disk alone, 8 KiB: p50 {:.0} us, p99 {:.0} us",
        microseconds(&times, 0.5),
        microseconds(&times, 0.99)
    );
    Ok(())
}

fn node(at: usize) -> wire::Node {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    wire::Node {
        provider_id: provider_id(at),
        name: name(at),
        labels: [
            label("kubernetes.io/hostname", &name(at)),
            label("kubernetes.io/arch", "amd64"),
            label("topology.kubernetes.io/zone", "north"),
            label("node.kubernetes.io/instance-type", "metal"),
        ]
        .into(),
        annotations: [label("node.alpha.kubernetes.io/ttl", "0")].into(),
    }
}

async fn storm(address: SocketAddr, config: ClientConfig) -> Result<Caller, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await?;
    let mut caller = Caller {
        client: Client::new(stream).await?,
        times: BTreeMap::new(),
        rounds: Vec::new(),
    };
    for round in 0..LOOPS {
        let start = Instant::now();
        caller.round(round).await?;
        caller.rounds.push(start.elapsed());
    }
    caller.rounds.sort_unstable();
    Ok(caller)
}

/// Serves from a folder, and plays all loops against it.
fn run(folder: &Path) -> Result<Caller, Failure> {
    let (tls, config) = secure(folder)?;
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let address = server.block_on(start(folder, tls))?;
    let client = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    client.block_on(storm(address, config))
}

fn main() -> Result<(), Failure> {
    println!(
        "{MACHINES} machines in {GROUPS} groups, {OPTIONS} GetOptions a loop and group, mutual TLS \
         on loopback, {} processors",
        std::thread::available_parallelism()?
    );
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)?
    } else {
        tempfile::tempdir()?
    };
    println!("the store in memory, so that only the server is measured:");
    let mut caller = run(folder.path())?;
    caller.print(None);
    let calls: usize = caller.times.values().map(Vec::len).sum();
    println!(
        "a whole loop of {} calls: median {:.0} ms, longest {:.0} ms of {LOOPS}",
        calls / LOOPS,
        microseconds(&caller.rounds, 0.5) / 1e3,
        microseconds(&caller.rounds, 1.0) / 1e3,
    );
    let folder = tempfile::tempdir()?;
    println!("the store on the disk, whose word these calls wait for:");
    run(folder.path())?.print(Some(&WRITES));
    measure_disk(folder.path())
}
