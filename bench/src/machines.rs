//! What is measured of microVMs, beside QEMU alone. Each scenario returns its outcome; none prints.
//!
//! Under KVM and under translation the same is measured; the limits are for translation, where a
//! machine's own instructions are most of the time.

use crate::{
    api::{Client, Sandbox},
    host,
    monitor::Peer,
    program::Atoll,
    report::{Outcome, Samples},
    scenarios::{instance_of, milliseconds, phases, target},
};
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

const COMMAND: &str = "echo ok";

/// How many restores are measured; there are so many forks by a fifth.
pub(crate) const SAMPLES: usize = 20;

/// The data directory for machines: beside that of containers, and at first a copy of it, as the
/// root file system of `base` is the same.
pub(crate) fn data_dir(of_containers: &Path) -> Result<PathBuf> {
    let mut name = of_containers.as_os_str().to_owned();
    name.push("-qemu");
    let path = PathBuf::from(name);
    if !path.exists() && of_containers.exists() {
        let copied = std::process::Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .args([of_containers, &path])
            .status()?;
        ensure!(copied.success(), "cannot copy {}", of_containers.display());
    }
    Ok(path)
}

/// Restores with nothing prepared, from prepared machines, and boots; beside QEMU alone, in turn.
pub(crate) async fn restore(program: &Path, data_dir: &Path, flags: &[String]) -> Result<Outcome> {
    let mut cold_flags = flags.to_vec();
    cold_flags.extend(["--pool-max".to_owned(), "0".to_owned()]);
    let atoll = Atoll::start_with("qemu", program, data_dir, &cold_flags).await?;
    atoll.wait_for_base().await?;
    let mut client = atoll.client().await?;
    let held = client.create().await?;
    client.run(&held, COMMAND).await?;
    let peer = Peer::of(&atoll.data_dir, &instance_of(&atoll.data_dir))?;
    client.delete(&held).await?;

    let (mut cold, mut create) = (Vec::new(), Vec::new());
    let (mut alone, mut answered, mut claimed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..SAMPLES + 2 {
        let (first, created) = create_and_run(&mut client).await?;
        let by_hand = peer.restore(COMMAND).await?;
        // The first ones find cold caches.
        if round >= 2 {
            cold.push(first);
            create.push(created);
            alone.push(milliseconds(by_hand.done));
            answered.push(milliseconds(by_hand.answered));
            claimed.push(milliseconds(by_hand.claimed));
        }
    }
    drop(peer);
    let boots = boots(&mut client, 3).await?;
    let steps = phases(&atoll).await?;
    atoll.stop().await?;

    let atoll = Atoll::start_with("qemu", program, data_dir, flags).await?;
    atoll.wait_for_base().await?;
    let mut client = atoll.client().await?;
    let (mut warm, mut handed_out) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        atoll.settle().await?;
        let (done, created) = create_and_run(&mut client).await?;
        warm.push(done);
        handed_out.push(created);
    }
    atoll.stop().await?;

    let ours = Samples::new("restore to first command's result", "ms", cold);
    let warm = Samples::new("the same, from a prepared machine", "ms", warm);
    let boot = Samples::new("the same, from a cold boot", "ms", boots);
    let peer = Samples::new(
        "QEMU alone, same files, same guest, same command",
        "ms",
        alone,
    );
    let mut details = vec![
        Samples::new("  of it: create request", "ms", create),
        warm.clone(),
        Samples::new("  of it: create request", "ms", handed_out),
        boot.clone(),
        Samples::new("  QEMU alone: until the guest answers", "ms", answered),
        Samples::new("  QEMU alone: until it is told who it is", "ms", claimed),
    ];
    details.extend(steps);
    Ok(Outcome {
        scenario: "machine-restore",
        command: "POST /v2/sandboxes with nothing prepared, then /bin/bash -l -c 'echo ok'"
            .to_owned(),
        targets: vec![
            target("p50 ≤ 1.25 × QEMU alone", ours.p50 <= 1.25 * peer.p50),
            target("≥ 8 × faster than a cold boot", ours.p50 * 8.0 <= boot.p50),
            target("prepared: p50 ≤ 0.5 × that", warm.p50 <= 0.5 * ours.p50),
        ],
        ours,
        details,
        peers: vec![peer],
    })
}

async fn create_and_run(client: &mut Client) -> Result<(f64, f64)> {
    let began = Instant::now();
    let sandbox = client.create().await?;
    let created = began.elapsed();
    client.run(&sandbox, COMMAND).await?;
    let done = began.elapsed();
    client.delete(&sandbox).await?;
    Ok((milliseconds(done), milliseconds(created)))
}

/// A sandbox that was paused without its memory boots when it is resumed.
async fn boots(client: &mut Client, count: usize) -> Result<Vec<f64>> {
    let sandbox = client.create().await?;
    let mut values = Vec::new();
    for _ in 0..count {
        client.pause(&sandbox, false).await?;
        let began = Instant::now();
        client.resume(&sandbox).await?;
        client.run(&sandbox, COMMAND).await?;
        values.push(milliseconds(began.elapsed()));
    }
    client.delete(&sandbox).await?;
    Ok(values)
}

/// What an idle restored sandbox holds for itself.
pub(crate) async fn idle(atoll: &Atoll) -> Result<Outcome> {
    let mut client = atoll.client().await?;
    let mut sandboxes = Vec::new();
    for _ in 0..4 {
        let sandbox = client.create().await?;
        client.run(&sandbox, "true").await?;
        sandboxes.push(sandbox);
    }
    atoll.settle().await?;
    let found = memories(atoll)?;
    ensure!(
        found.len() >= sandboxes.len(),
        "found {} machines only",
        found.len()
    );
    for sandbox in &sandboxes {
        client.delete(sandbox).await?;
    }
    let (guests, wholes): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let ours = Samples::new("unshared memory of an idle machine's guest", "MiB", guests);
    Ok(Outcome {
        scenario: "machine-idle",
        command: "4 sandboxes that ran one command, and the prepared ones".to_owned(),
        targets: vec![target("max ≤ 12 MB", ours.max <= 12e6 / f64::from(1 << 20))],
        ours,
        details: vec![Samples::new("  with QEMU's own", "MiB", wholes)],
        peers: Vec::new(),
    })
}

/// Of each machine: what its guest's memory takes that it shares with nobody, and the whole
/// process; in MiB.
fn memories(atoll: &Atoll) -> Result<Vec<(f64, f64)>> {
    let group = format!("atoll-{}", instance_of(&atoll.data_dir));
    let mut found = Vec::new();
    for pid in host::processes_in_group(&group) {
        // One that is only being prepared has none yet.
        if let Some(guest) = host::guest_memory_of(pid)? {
            found.push((guest, host::memory_of(pid)?.unshared));
        }
    }
    Ok(found)
}

/// One sandbox is forked into ten.
pub(crate) async fn fork(atoll: &Atoll) -> Result<Outcome> {
    const CHILDREN: usize = 10;
    let mut client = atoll.client().await?;
    let (mut all, mut answered, mut disk) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES / 5 {
        let parent = client.create().await?;
        client.run(&parent, COMMAND).await?;
        atoll.settle().await?;
        let before = size_of_states(&atoll.data_dir)?;
        let began = Instant::now();
        let children = client.fork(&parent, CHILDREN).await?;
        all.push(milliseconds(began.elapsed()));
        let asking = children.iter().map(|child| run_once(atoll, child, COMMAND));
        try_join_all(asking).await?;
        answered.push(milliseconds(began.elapsed()));
        let after = size_of_states(&atoll.data_dir)?;
        disk.push(after.saturating_sub(before) as f64 / 1e6 / CHILDREN as f64);
        for sandbox in children.iter().chain([&parent]) {
            client.delete(sandbox).await?;
        }
    }
    let stood = phases(atoll)
        .await?
        .into_iter()
        .find(|step| step.label.contains("save: it stands still"))
        .context("the node does not say how long machines stand still")?;
    let ours = Samples::new("fork into 10, all have answered", "ms", answered);
    let disk = Samples::new("disk of an idle child, its share of the fork's", "MB", disk);
    Ok(Outcome {
        scenario: "machine-fork",
        command: "POST /sandboxes/ID/fork with count 10, then a command in each".to_owned(),
        targets: vec![
            target("all have answered in 3 s", ours.max <= 3000.0),
            target(
                "the parent stands still for at most 150 ms",
                stood.max <= 150.0,
            ),
            target("at most 2 MB on the disk for a child", disk.max <= 2.0),
        ],
        ours,
        details: vec![
            Samples::new("  of it: the fork request", "ms", all),
            stood,
            disk,
        ],
        peers: Vec::new(),
    })
}

async fn run_once(atoll: &Atoll, sandbox: &Sandbox, command: &str) -> Result<()> {
    atoll.client().await?.run(sandbox, command).await
}

/// What states and the disks of machines take, in bytes.
fn size_of_states(data_dir: &Path) -> Result<u64> {
    let folders = ["states", "paused", "forks", "machines"];
    folders
        .iter()
        .map(|name| size_of(&data_dir.join(name)))
        .sum()
}

fn size_of(path: &Path) -> Result<u64> {
    let Ok(entries) = fs::read_dir(path) else {
        return Ok(0);
    };
    let mut sum = 0;
    for entry in entries.flatten() {
        // What is taken down meanwhile is gone, and that is no error.
        match entry.metadata() {
            Ok(about) if about.is_dir() => sum += size_of(&entry.path())?,
            Ok(about) => sum += about.blocks() * 512,
            Err(_) => {}
        }
    }
    Ok(sum)
}
