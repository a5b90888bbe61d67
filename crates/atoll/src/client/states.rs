//! Pausing, forking and snapshots over the REST API.

use crate::client::{Client, encode, to_problem};
use anyhow::bail;
use api::{
    Problem, SandboxId,
    rest::{
        sandbox::ConnectRequest,
        state::{ForkRequest, ForkResult, PauseRequest, SnapshotInfo, SnapshotRequest},
        v1::NodeGarbage,
    },
};
use reqwest::StatusCode;
use std::time::Duration;

/// How long saving or bringing back a sandbox may take.
const PATIENCE: Duration = Duration::from_secs(310);

/// The most pages that a list is followed for.
const PAGES_MAX: usize = 10_000;

impl Client {
    /// Pauses a sandbox, with its memory or with its files alone.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn pause(&self, id: &SandboxId, memory: bool) -> anyhow::Result<()> {
        let body = PauseRequest {
            memory: Some(memory),
            require_healthy_guest: None,
        };
        let path = format!("/sandboxes/{id}/pause");
        self.tell_patiently(&path, &body, PATIENCE).await
    }

    /// Resumes a paused sandbox; one that runs is given the time if it would end earlier.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn resume(&self, id: &SandboxId, seconds: u64) -> anyhow::Result<()> {
        let body = ConnectRequest {
            timeout: Some(i64::try_from(seconds)?),
            memory: None,
        };
        let path = format!("/v2/sandboxes/{id}/connect");
        self.tell_patiently(&path, &body, PATIENCE).await
    }

    /// Forks a sandbox: the id of each child, or why it did not come up.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused as a whole.
    pub(crate) async fn fork(
        &self,
        id: &SandboxId,
        count: u8,
        seconds: u64,
    ) -> anyhow::Result<Vec<Result<String, Problem>>> {
        let body = ForkRequest {
            timeout: Some(i64::try_from(seconds)?),
            count: Some(i64::from(count)),
        };
        let path = format!("/sandboxes/{id}/fork");
        let results: Vec<ForkResult> = self.post_patiently(&path, &body, PATIENCE).await?;
        let results = results.into_iter().map(|result| match result {
            ForkResult {
                sandbox: Some(sandbox),
                ..
            } => Ok(sandbox.sandbox_id),
            ForkResult { error, .. } => {
                let error = error.map(|error| {
                    let status = StatusCode::from_u16(error.code).unwrap_or_default();
                    (status, serde_json::to_vec(&error).unwrap_or_default())
                });
                let (status, body) = error.unwrap_or_default();
                Err(to_problem(status, &body))
            }
        });
        Ok(results.collect())
    }

    /// Takes a snapshot of a sandbox.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn snapshot(
        &self,
        id: &SandboxId,
        name: Option<String>,
        memory: bool,
    ) -> anyhow::Result<SnapshotInfo> {
        let body = SnapshotRequest {
            name,
            memory: Some(memory),
        };
        let path = format!("/sandboxes/{id}/snapshots");
        self.post_patiently(&path, &body, PATIENCE).await
    }

    /// All snapshots of a sandbox and of a name, the latest first.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn snapshots(
        &self,
        sandbox: Option<&SandboxId>,
        name: Option<&str>,
    ) -> anyhow::Result<Vec<SnapshotInfo>> {
        let mut query = String::from("/snapshots?limit=100");
        if let Some(sandbox) = sandbox {
            query.push_str(&format!("&sandboxID={sandbox}"));
        }
        if let Some(name) = name {
            query.push_str(&format!("&name={}", encode(name)));
        }
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let path = match &next {
                Some(token) => format!("{query}&nextToken={}", encode(token)),
                None => query.clone(),
            };
            let (items, token) = self.page::<SnapshotInfo>(&path).await?;
            all.extend(items);
            match token {
                Some(token) => next = Some(token),
                None => return Ok(all),
            }
        }
        bail!("the list of snapshots has no end")
    }

    /// Removes a snapshot, by id or name.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn remove_snapshot(&self, name: &str) -> anyhow::Result<()> {
        self.delete(&format!("/templates/{}", encode(name))).await
    }

    /// Has every node remove what nothing needs, or only say what that is.
    ///
    /// # Errors
    /// [`api::Problem`] when it is refused.
    pub(crate) async fn collect_garbage(&self, dry_run: bool) -> anyhow::Result<Vec<NodeGarbage>> {
        let path = format!("/v1/gc?dryRun={dry_run}");
        let nothing = serde_json::json!({});
        self.post_patiently(&path, &nothing, PATIENCE).await
    }
}
