//! Measures the mesh's coordinator with many simulated nodes: how fast they join, how soon all hear of a change, and how soon all are back after
//! it was killed.
//!
//! ```text
//! cargo run --release -p mesh --example coordinator -- --atoll PROGRAM [--nodes 10000] [--changes 10]
//! ```
//!
//! `--alone PROGRAM` measures the control plane without `atoll up` around it (`control`'s example `coordinate`). Needs root for `atoll up`, and descriptors:
//! two for each node, of which half are this program's. Nodes and coordinator share the machine, so what nodes cost is in the figures: what the
//! coordinator alone took of the processors is told beside. Nodes sign their next question while nothing happens, as their own machines would.
//!
//! Nodes begin where one that took the whole map ended: ten thousand whole maps would measure how fast the machine copies. They sign what real ones sign; of a
//! frame that all get, one looks at the signature.

mod http;
#[allow(dead_code, reason = "each program uses a part")]
#[path = "../lab/mod.rs"]
mod lab;
mod nodes;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Http;
use lab::verdict::Verdicts;
use lab::{Options, Outcome, machine, quantile};
use mesh::coordination::Token;
use nodes::{Mesh, SimulatedNode};
use server::{KEY, Program, Server};

/// Connections that joins come over.
const JOINING: usize = 64;
/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Outcome<()> {
    let options = Options::read();
    let count: usize = options.get("--nodes", 10_000)?;
    let changes: usize = options.get("--changes", 10)?;
    let (atoll, alone) = (
        options.get("--atoll", PathBuf::new())?,
        options.get("--alone", PathBuf::new())?,
    );
    let program = match alone.as_os_str().is_empty() {
        true => Program::Atoll(atoll),
        false => Program::Alone(alone),
    };
    raise_open_files(count)?;
    let directory = std::env::temp_dir().join(format!("atoll-coordinator-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    println!("{count} nodes, {}", machine()?);
    let measured = runtime.block_on(measure(&program, &directory, count, changes));
    let _ = std::fs::remove_dir_all(&directory);
    measured?.tell()
}

/// Each node is a connection, and a descriptor at either end.
fn raise_open_files(count: usize) -> Outcome<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if maximum.is_some_and(|most| most < count as u64 + 256) {
        return Err("too few open files are allowed: ulimit -Hn".into());
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(())
}

async fn measure(
    program: &Program,
    directory: &std::path::Path,
    count: usize,
    changes: usize,
) -> Outcome<Verdicts> {
    let mut verdicts = Verdicts::begin()?;
    let at = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let server = Server::start(program, directory, at)?;
    let token = token(at).await?;
    let mut all = Vec::new();
    // One more, which says what the others hear of.
    for number in 0..=count {
        all.push(SimulatedNode::new(number)?);
    }

    let before = server.processor_seconds()?;
    let (seconds, slow) = join(&all, &token, at).await?;
    let rate = all.len() as f64 / seconds;
    let spent = server.processor_seconds()? - before;
    println!(
        "{} joins in {seconds:.1} s, 99 in 100 within {slow:.0} ms; the coordinator took {spent:.1} s of the processors",
        all.len()
    );
    verdicts.at_least("coordinator, joins", rate, 500.0, "/s", "");

    let began = Instant::now();
    let (head, size) = whole_map(&mut all[0], at).await?;
    println!(
        "a whole map: {:.1} MB in {:.0} ms",
        size as f64 / 1e6,
        began.elapsed().as_secs_f64() * 1000.0
    );
    let mesh = Arc::new(Mesh::new(at, token.coordinator));
    let mut changer = all.pop().ok_or("no node")?;
    for mut node in all {
        node.cursor = head;
        tokio::spawn(node.live(Arc::clone(&mesh)));
    }
    all_wait(&mesh, count).await?;
    println!("all wait; the coordinator holds {:.0} MB", server.memory()?);

    let (mut times, mut spent) = (Vec::new(), 0.0);
    let mut next = head;
    for _ in 0..changes {
        next += 1;
        let before = server.processor_seconds()?;
        let (heard, sizes) = change(&mesh, &mut changer, next, count).await?;
        all_wait(&mesh, count).await?;
        spent += server.processor_seconds()? - before;
        println!(
            "a change of {} B was everywhere in {:.0} ms, half in {:.0} ms",
            sizes,
            quantile(heard.iter().copied(), 1.0),
            quantile(heard.iter().copied(), 0.5)
        );
        times.extend(heard);
    }
    let slow = quantile(times.iter().copied(), 0.99);
    let each = spent / changes as f64;
    let why = format!(
        "nodes and coordinator share the processors: it took {each:.2} s of them for each, all questions after it included"
    );
    verdicts.at_most(
        "coordinator, a change everywhere, p99",
        slow,
        500.0,
        "ms",
        &why,
    );

    let began = Instant::now();
    server.kill()?;
    let server = Server::start(program, directory, at)?;
    println!(
        "killed, and ready again after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    until(&mesh, || mesh.back_count() >= count).await?;
    let back = mesh.back();
    let last = back.iter().max().ok_or("nobody is back")?;
    let last = last.duration_since(began).as_secs_f64();
    println!(
        "all were back after {last:.1} s; {:.1} s of the processors",
        server.processor_seconds()?
    );
    verdicts.at_most("coordinator, all back after kill -9", last, 30.0, "s", "");
    mesh.forget_back();
    all_wait(&mesh, count).await?;
    next += 1;
    let (heard, sizes) = change(&mesh, &mut changer, next, count).await?;
    println!(
        "the next change came to {} nodes with {sizes} B at most; attempts before: {}",
        heard.len(),
        mesh.failures()
    );
    let whole = mesh.whole.load(Ordering::Relaxed) as f64;
    verdicts.at_most("coordinator, whole maps sent for that", whole, 0.0, "", "");
    Ok(verdicts)
}

/// A token that all join with.
async fn token(at: SocketAddr) -> Outcome<Token> {
    let mut http = Http::connect(at, 100).await?;
    let body = format!(r#"{{"reuse":true,"url":"http://{at}"}}"#);
    let answer = http.post("/v1/mesh/tokens", &body, Some(KEY)).await?;
    let said: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let token = said["token"].as_str().ok_or("no token")?;
    Ok(token.parse()?)
}

/// All join, over a few connections: seconds in all, and milliseconds that 99 in 100 joins took at most.
async fn join(all: &[SimulatedNode], token: &Token, at: SocketAddr) -> Outcome<(f64, f64)> {
    // What nodes have to sign is signed before.
    let requests: Outcome<Vec<_>> = all.iter().map(|node| node.join(token)).collect();
    let requests = Arc::new(requests?);
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..JOINING {
        let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
        tasks.spawn(async move {
            let mut http = Http::connect(at, 101).await?;
            let mut times = Vec::new();
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let asked = Instant::now();
                let answer = http.post("/v1/mesh/join", request, None).await?;
                if answer.status != 200 {
                    let said = String::from_utf8_lossy(&answer.body).into_owned();
                    return Err(said.into());
                }
                times.push(asked.elapsed().as_secs_f64() * 1000.0);
            }
            Outcome::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    Ok((began.elapsed().as_secs_f64(), quantile(times, 0.99)))
}

/// What the whole map leads to, and its size.
async fn whole_map(node: &mut SimulatedNode, at: SocketAddr) -> Outcome<(u64, usize)> {
    let mut http = node.connect(at).await?;
    let question = node.question(0)?;
    let answer = http.post("/v1/mesh/watch", &question, None).await?;
    let frame: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let body = frame["body"].as_str().ok_or("no frame")?;
    let body: serde_json::Value = serde_json::from_str(body)?;
    let head = body["to"].as_u64().ok_or("no end")?;
    Ok((head, answer.body.len()))
}

/// Waits until all nodes have asked, and nothing was heard for a while.
async fn all_wait(mesh: &Mesh, count: usize) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if mesh.waiting() == count {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("only {} nodes wait", mesh.waiting()).into());
        }
    }
}

async fn until(mesh: &Mesh, done: impl Fn() -> bool) -> Outcome<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        tokio::time::timeout_at(deadline, mesh.news.notified())
            .await
            .map_err(|_| format!("not all nodes heard of it: {}", mesh.failures()))?;
    }
    Ok(())
}

/// Milliseconds after which each node heard of a change, and the longest frame.
async fn change(
    mesh: &Mesh,
    changer: &mut SimulatedNode,
    next: u64,
    count: usize,
) -> Outcome<(Vec<f64>, usize)> {
    let mut http = Http::connect(mesh.at, 100).await?;
    let said = changer.change()?;
    mesh.want(next);
    let began = Instant::now();
    let answer = http.post("/v1/mesh/record", said, None).await?;
    if answer.status != 204 {
        return Err(String::from_utf8_lossy(&answer.body).into_owned().into());
    }
    until(mesh, || mesh.heard_by() >= count).await?;
    let heard = mesh.heard();
    let times = heard.iter().map(|(at, _)| at.duration_since(began));
    let times = times.map(|time| time.as_secs_f64() * 1000.0).collect();
    let size = heard.iter().map(|(_, size)| *size).max();
    Ok((times, size.unwrap_or_default()))
}
