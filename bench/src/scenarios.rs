//! What is measured. Each scenario returns its outcome; none prints.

use crate::{
    host,
    program::Atoll,
    report::{Outcome, Samples, Target},
};
use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};
use http::Method;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::Command;

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

pub(crate) fn target(text: &str, met: bool) -> Target {
    Target {
        text: text.to_owned(),
        met,
    }
}

/// From the start of `atoll up` to its `ready` line, with the template present.
pub(crate) async fn start_up(program: &Path, data_dir: &Path, flags: &[String]) -> Result<Outcome> {
    let first = Atoll::start(program, data_dir, flags).await?;
    first.wait_for_base().await?;
    first.stop().await?;
    let mut values = Vec::new();
    for _ in 0..20 {
        let atoll = Atoll::start(program, data_dir, flags).await?;
        values.push(milliseconds(atoll.ready_after));
        atoll.stop().await?;
    }
    let ours = Samples::new("process start to `ready`", "ms", values);
    Ok(Outcome {
        scenario: "start-up",
        command: "atoll up".to_owned(),
        targets: vec![target("p50 ≤ 200 ms", ours.p50 <= 200.0)],
        ours,
        details: Vec::new(),
        peers: Vec::new(),
    })
}

/// What the program holds when nothing happens.
pub(crate) async fn idle_memory(atoll: &Atoll) -> Result<Outcome> {
    atoll.settle().await?;
    let memory = host::memory_of(atoll.pid()?)?;
    let ours = Samples::new(
        "resident memory of `atoll up`",
        "MiB",
        vec![memory.resident],
    );
    Ok(Outcome {
        scenario: "idle-memory",
        command: "atoll up".to_owned(),
        targets: vec![target("≤ 50 MB", ours.p50 <= 50e6 / f64::from(1 << 20))],
        ours,
        details: vec![Samples::new("of it unshared", "MiB", vec![memory.unshared])],
        peers: Vec::new(),
    })
}

/// Create a sandbox and run one command in it, over HTTP; beside it `runc run` of the same root
/// file system and the same command, in turn.
pub(crate) async fn create_to_first_result(atoll: &Atoll, samples: usize) -> Result<Outcome> {
    let bundle = runc_bundle(&atoll.base_root()?)?;
    let mut client = atoll.client().await?;
    let (mut whole, mut create, mut command, mut peer) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..samples + 10 {
        let started = Instant::now();
        let sandbox = client.create().await?;
        let created = started.elapsed();
        client.run(&sandbox, "echo ok").await?;
        let done = started.elapsed();
        client.delete(&sandbox).await?;
        let runc = run_with_runc(&bundle, round).await?;
        if round >= 10 {
            whole.push(milliseconds(done));
            create.push(milliseconds(created));
            command.push(milliseconds(done - created));
            peer.push(milliseconds(runc));
        }
    }
    fs::remove_dir_all(&bundle)?;
    let ours = Samples::new("create to first command's result", "ms", whole);
    let runc = Samples::new("runc run, same root, same command", "ms", peer);
    let mut details = vec![
        Samples::new("  of it: create request", "ms", create),
        Samples::new("  of it: command request", "ms", command),
    ];
    details.extend(phases(atoll).await?);
    Ok(Outcome {
        scenario: "create-to-first-result",
        command: "POST /v2/sandboxes, then /bin/bash -l -c 'echo ok'".to_owned(),
        targets: vec![
            target("p50 ≤ 10 ms", ours.p50 <= 10.0),
            target("p50 below runc run", ours.p50 < runc.p50),
        ],
        ours,
        details,
        peers: vec![runc],
    })
}

/// Where the node says that the time of its creates goes.
pub(crate) async fn phases(atoll: &Atoll) -> Result<Vec<Samples>> {
    let nodes = atoll
        .client()
        .await?
        .call(Method::GET, "/v1/nodes", &Value::Null)
        .await?;
    let Some(phases) = nodes[0]["phases"].as_array() else {
        return Ok(Vec::new());
    };
    Ok(phases
        .iter()
        .map(|phase| Samples {
            label: format!("    node: {}", phase["name"].as_str().unwrap_or("?")),
            unit: "ms",
            count: phase["count"].as_u64().unwrap_or_default() as usize,
            p50: phase["p50_ms"].as_f64().unwrap_or(f64::NAN),
            p99: phase["p99_ms"].as_f64().unwrap_or(f64::NAN),
            max: phase["max_ms"].as_f64().unwrap_or(f64::NAN),
        })
        .collect())
}

/// A hundred creates at the same moment; how long until the last one is usable.
pub(crate) async fn hundred_at_once(atoll: &Atoll) -> Result<Outcome> {
    let (mut ready, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        atoll.settle().await?;
        let mut clients = try_join_all((0..100).map(|_| atoll.client())).await?;
        let started = Instant::now();
        let created = join_all(clients.iter_mut().map(|client| client.create())).await;
        let sandboxes = created.into_iter().collect::<Result<Vec<_>>>()?;
        ready.push(milliseconds(started.elapsed()));
        try_join_all(
            clients
                .iter_mut()
                .zip(&sandboxes)
                .map(|(client, sandbox)| client.run(sandbox, "true")),
        )
        .await?;
        answered.push(milliseconds(started.elapsed()));
        try_join_all(
            clients
                .iter_mut()
                .zip(&sandboxes)
                .map(|(client, sandbox)| client.delete(sandbox)),
        )
        .await?;
    }
    // The first finds the pool as it is when nobody has asked for much; it then follows demand.
    let first = ready.first().copied().unwrap_or(f64::NAN);
    let ours = Samples::new("100 creates at once, all ready", "ms", ready);
    let mut details = vec![
        Samples::new("  the first such burst", "ms", vec![first]),
        Samples::new("  and each ran a command", "ms", answered),
    ];
    details.extend(phases(atoll).await?);
    Ok(Outcome {
        scenario: "hundred-at-once",
        command: "100 × POST /v2/sandboxes on 100 connections".to_owned(),
        targets: vec![target("p50 ≤ 600 ms", ours.p50 <= 600.0)],
        ours,
        details,
        peers: Vec::new(),
    })
}

/// What a sandbox that does nothing costs in memory that it shares with nobody.
pub(crate) async fn idle_sandbox(atoll: &Atoll) -> Result<Outcome> {
    let mut client = atoll.client().await?;
    let instance = instance_of(&atoll.data_dir);
    let mut sandboxes = Vec::new();
    for _ in 0..50 {
        let sandbox = client.create().await?;
        client.run(&sandbox, "true").await?;
        sandboxes.push(sandbox);
    }
    atoll.settle().await?;
    let processes = host::processes_in_group(&format!("atoll-{instance}"));
    ensure!(
        processes.len() >= sandboxes.len(),
        "found {} processes only",
        processes.len()
    );
    let values = processes
        .iter()
        .filter_map(|pid| host::memory_of(*pid).ok())
        .map(|memory| memory.unshared)
        .collect();
    for sandbox in &sandboxes {
        client.delete(sandbox).await?;
    }
    let ours = Samples::new("unshared memory of an idle sandbox", "MiB", values);
    Ok(Outcome {
        scenario: "idle-sandbox",
        command: "50 sandboxes that ran one command, and the prepared ones".to_owned(),
        targets: vec![target("max ≤ 3 MB", ours.max <= 3e6 / f64::from(1 << 20))],
        ours,
        details: Vec::new(),
        peers: Vec::new(),
    })
}

/// The instance's name on the host: the first four digits of the data directory's hash.
pub(crate) fn instance_of(data_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let hash = <sha2::Sha256 as sha2::Digest>::digest(data_dir.as_os_str().as_bytes());
    format!("{:02x}{:02x}", hash[0], hash[1])
}

/// A bundle for runc with the root file system of `base`, read-only, and the same command.
fn runc_bundle(root: &Path) -> Result<PathBuf> {
    let bundle = std::env::temp_dir().join(format!("atoll-bench-{}", std::process::id()));
    fs::create_dir_all(&bundle)?;
    let made = std::process::Command::new("runc")
        .args(["spec", "--bundle"])
        .arg(&bundle)
        .status()
        .context("starting runc: install Debian's package runc")?;
    ensure!(made.success(), "runc spec failed");
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/bash", "-l", "-c", "echo ok"]);
    config["root"]["path"] = json!(root);
    config["root"]["readonly"] = json!(true);
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(bundle)
}

async fn run_with_runc(bundle: &Path, round: usize) -> Result<Duration> {
    let started = Instant::now();
    let output = Command::new("runc")
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(format!("atoll-bench-{}-{round}", std::process::id()))
        .stdin(Stdio::null())
        .output()
        .await?;
    let elapsed = started.elapsed();
    ensure!(
        output.status.success() && output.stdout == b"ok\n",
        "runc run failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(elapsed)
}
