//! Measures the gateway beside nginx: both proxy to the same trivial server on this machine,
//! `wrk` asks them in turns, and the ratio of requests per second is printed.
//!
//! `cargo run --release -p gateway --example beside_nginx [SECONDS [ROUNDS]]`; needs `nginx` and
//! `wrk`.

use api::{
    SandboxId,
    route::{Locate, Route},
};
use gateway::{Gateway, GatewayOptions, Limits, TowerApi};
use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const SANDBOX: &str = "i0000000000000000000a";
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(127, 91, 17, 3);

struct OneSandbox;

#[async_trait::async_trait]
impl Locate for OneSandbox {
    async fn locate(&self, _: &SandboxId) -> Option<Route> {
        let address = IpAddr::V4(UPSTREAM);
        Some(Route {
            address,
            traffic_token: None,
            mask_request_host: None,
            access_token: None,
        })
    }

    async fn routes(&self) -> Vec<(SandboxId, Route)> {
        Vec::new()
    }

    async fn ended(&self, _: &SandboxId) {
        std::future::pending().await
    }
}

/// A program that ends with this one.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn nginx(folder: &Path, name: &str, workers: usize, server: &str) -> std::io::Result<Running> {
    let configuration = folder.join(format!("{name}.conf"));
    let text = format!(
        "daemon off; worker_processes {workers}; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
         events {{ worker_connections 4096; }}
         http {{ access_log off; keepalive_requests 100000000; tcp_nodelay on;
           client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
           fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
           scgi_temp_path {folder}/scgi;
           {server} }}",
        folder = folder.display()
    );
    std::fs::write(&configuration, text)?;
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&configuration)
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Running(child))
}

/// Requests per second.
fn wrk(url: &str, host: &str, connections: usize, seconds: u64) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s")])
        .args(["-H", &format!("Host: {host}"), url])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("wrk saw errors:\n{text}").into());
    }
    let figure = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    Ok(figure.ok_or("wrk printed no figure")?.trim().parse()?)
}

/// Processor time that some processes have used, user and system, in hundredths of a second.
fn processor_time(processes: &[u32]) -> Result<f64, Box<dyn Error>> {
    let mut total = 0.0;
    for process in processes {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let fields: Vec<&str> = text[text.rfind(')').unwrap_or(0)..].split(' ').collect();
        total += fields[12].parse::<f64>()? + fields[13].parse::<f64>()?;
    }
    Ok(total)
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind((UPSTREAM, 0))?
        .local_addr()?
        .port())
}

fn children(parent: u32) -> Result<Vec<u32>, Box<dyn Error>> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let rounds = arguments
        .next()
        .map_or(Ok(3), |text| text.parse::<usize>())?;
    let cores = std::thread::available_parallelism()?.get();

    let folder = tempfile::tempdir()?;
    let (upstream_port, nginx_port) = (free_port()?, free_port()?);
    let server = format!(
        "server {{ listen {UPSTREAM}:{upstream_port}; location / {{ return 200 \"hello\\n\"; }} }}"
    );
    let _upstream = nginx(folder.path(), "upstream", 1, &server)?;
    let server = format!(
        "upstream sandbox {{ server {UPSTREAM}:{upstream_port}; keepalive 128; }}
         server {{ listen 127.0.0.1:{nginx_port}; location / {{ proxy_pass http://sandbox;
           proxy_http_version 1.1; proxy_set_header Connection \"\";
           proxy_set_header Host $host; proxy_buffering off;
           proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
           proxy_set_header X-Forwarded-Proto $scheme; }} }}"
    );
    let peer = nginx(folder.path(), "peer", cores, &server)?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let gateway = Arc::new(Gateway::new(GatewayOptions {
        locate: Arc::new(OneSandbox),
        api: Arc::new(TowerApi(axum::Router::new())),
        domain: None,
        tls: None,
        limits: Limits::default(),
    })?);
    let shutdown = CancellationToken::new();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address: SocketAddr = listener.local_addr()?;
    let serving = runtime.spawn({
        let (gateway, shutdown) = (gateway.clone(), shutdown.clone());
        async move { gateway.serve(listener, shutdown).await }
    });

    let host = format!("{upstream_port}-{SANDBOX}.localhost");
    println!("wrk -t1 -cN -d{seconds}s, {rounds} rounds in turns, {cores} cores, medians");
    println!("µs: processor time for one request, which a busy machine blurs less");
    println!(
        "{:>11} {:>10} {:>10} {:>6} {:>11} {:>9} {:>6}",
        "connections", "gateway/s", "nginx/s", "ratio", "gateway µs", "nginx µs", "ratio"
    );
    let me = [std::process::id()];
    for connections in [1, 16, 64] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut our_cost, mut their_cost) = (Vec::new(), Vec::new());
        let measure = |url: &str, who: &[u32], rates: &mut Vec<f64>, costs: &mut Vec<f64>| {
            let before = processor_time(who)?;
            let rate = wrk(url, &host, connections, seconds)?;
            let used = (processor_time(who)? - before) * 10_000.0;
            rates.push(rate);
            costs.push(used / (rate * seconds as f64));
            Ok::<_, Box<dyn Error>>(())
        };
        for _ in 0..rounds {
            measure(&format!("http://{address}/"), &me, &mut ours, &mut our_cost)?;
            let url = format!("http://127.0.0.1:{nginx_port}/");
            measure(&url, &children(peer.0.id())?, &mut theirs, &mut their_cost)?;
        }
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        let (our_cost, their_cost) = (median(&mut our_cost), median(&mut their_cost));
        println!(
            "{connections:>11} {ours:>10.0} {theirs:>10.0} {:>6.2} {our_cost:>11.1} \
             {their_cost:>9.1} {:>6.2}",
            ours / theirs,
            our_cost / their_cost
        );
    }
    shutdown.cancel();
    runtime.block_on(serving)?;
    Ok(())
}
