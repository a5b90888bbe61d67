//! The coordinator, as nodes of the same process reach it: without HTTP.

use super::Coordinator;
use api::{ErrorCode, Problem, SandboxId};
use mesh::{
    coordination::{JoinAnswer, JoinRequest, NodeRecord, Signed, WatchRequest},
    node::{Heard, Link, LinkError},
};
use std::sync::Arc;

/// The way to the coordinator of this process.
#[derive(Clone)]
pub struct MeshLink(Arc<Coordinator>);

impl std::fmt::Debug for MeshLink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("MeshLink")
    }
}

impl MeshLink {
    pub(crate) fn new(coordinator: Arc<Coordinator>) -> Self {
        Self(coordinator)
    }

    /// A sandbox is gone: its name and address are free, and others drop it. Nothing happens if it never was in the mesh.
    pub async fn release(&self, sandbox: &SandboxId) {
        self.0.release(sandbox).await;
    }
}

fn failed(problem: Problem) -> LinkError {
    match problem.code {
        ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::LimitReached => {
            LinkError::Unreachable(problem.cause)
        }
        _ => LinkError::Refused(problem.cause),
    }
}

impl Link for MeshLink {
    async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, LinkError> {
        self.0.join(request.clone()).await.map_err(failed)
    }

    async fn update(&self, record: &Signed<NodeRecord>) -> Result<(), LinkError> {
        let step = self.0.step(|book| book.update(record)).await;
        step.map_err(failed)
    }

    async fn watch(&self, request: &Signed<WatchRequest>) -> Result<Heard, LinkError> {
        match self.0.watch(request).await {
            Ok(None) => Ok(Heard::Nothing),
            Ok(Some(frame)) => {
                let frame = serde_json::from_str(&frame);
                let unclear = |_| LinkError::Unreachable("the answer is not understood".to_owned());
                Ok(Heard::Frame(Box::new(frame.map_err(unclear)?)))
            }
            Err(problem) => match self.0.farewell(request).await {
                Some(farewell) => Ok(Heard::Farewell(farewell)),
                None => Err(failed(problem)),
            },
        }
    }
}
