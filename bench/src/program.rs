//! The program under measurement: started, waited for, stopped.

use crate::api::{Client, address_of};
use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::Value;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

const KEY: &str = "e2b_b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3b3";

/// A running `atoll up`.
pub(crate) struct Atoll {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) data_dir: PathBuf,
    /// From the start of the process to its `ready` line.
    pub(crate) ready_after: Duration,
}

impl Atoll {
    /// Starts it with containers; see [`Atoll::start_with`].
    pub(crate) async fn start(program: &Path, data_dir: &Path, flags: &[String]) -> Result<Self> {
        Self::start_with("container", program, data_dir, flags).await
    }

    /// Starts it, and waits for its `ready` line.
    pub(crate) async fn start_with(
        driver: &str,
        program: &Path,
        data_dir: &Path,
        flags: &[String],
    ) -> Result<Self> {
        std::fs::create_dir_all(data_dir)?;
        let log = std::fs::File::create(data_dir.with_extension("log"))?;
        let started = Instant::now();
        let mut child = Command::new(program)
            .args([
                "up",
                "--listen",
                "127.0.0.1:0",
                "--driver",
                driver,
                "--data-dir",
            ])
            .arg(data_dir)
            .args(flags)
            .env("ATOLL_API_KEY", KEY)
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let output = child.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(output).lines();
        let line = timeout(Duration::from_secs(30), lines.next_line())
            .await
            .context("no `ready` line within 30 s")??
            .context("the program ended before it was ready")?;
        let ready_after = started.elapsed();
        let address = address_of(line.strip_prefix("ready ").unwrap_or(&line))?;
        Ok(Self {
            child,
            address,
            data_dir: data_dir.canonicalize()?,
            ready_after,
        })
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(self.address, KEY).await
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("the program has ended")
    }

    /// Waits until sandboxes can be made from `base`.
    pub(crate) async fn wait_for_base(&self) -> Result<()> {
        let mut client = self.client().await?;
        let deadline = Instant::now() + Duration::from_secs(900);
        loop {
            match client.create().await {
                Ok(sandbox) => return client.delete(&sandbox).await,
                Err(error) => ensure!(Instant::now() < deadline, "no base template: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// The root file system that `base` starts from, uppermost layer first.
    pub(crate) fn base_root(&self) -> Result<PathBuf> {
        let layers = self.data_dir.join("images/layers");
        let found = std::fs::read_dir(&layers)
            .with_context(|| format!("reading {}", layers.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .map(|path| {
                if path.join("root").is_dir() {
                    path.join("root")
                } else {
                    path
                }
            })
            .find(|path| path.join("usr/bin/sudo").exists());
        found.with_context(|| format!("no root file system of base below {}", layers.display()))
    }

    /// Waits until the pools of prepared sandboxes are as full as they are to be, and have stopped
    /// growing.
    pub(crate) async fn settle(&self) -> Result<()> {
        let mut client = self.client().await?;
        let mut last = None;
        for _ in 0..100 {
            let nodes = client.call(Method::GET, "/v1/nodes", &Value::Null).await?;
            let ready = nodes[0]["slots_ready"]
                .as_u64()
                .or(nodes[0]["slotsReady"].as_u64());
            let pools = nodes[0]["pools"].as_array().into_iter().flatten();
            let full = |pool: &Value| pool["ready"].as_u64() >= pool["wanted"].as_u64();
            if ready.is_some() && ready == last && pools.into_iter().all(full) {
                return Ok(());
            }
            last = ready;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }

    /// Orderly stop.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = self.pid()?;
        let status = Command::new("kill")
            .args(["-TERM", &pid.to_string()])
            .status()
            .await?;
        ensure!(status.success(), "could not signal {pid}");
        let status = timeout(Duration::from_secs(60), self.child.wait())
            .await
            .context("the program did not stop within 60 s")??;
        ensure!(status.success(), "the program ended with {status}");
        Ok(())
    }
}
