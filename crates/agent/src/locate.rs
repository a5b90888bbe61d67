//! The agent as the gateway uses it: everything from memory.

use crate::{agent::Agent, sandbox::Stage};
use api::{
    Problem, SandboxId, Secret,
    route::{Locate, Route},
};

#[async_trait::async_trait]
impl Locate for Agent {
    async fn locate(&self, id: &SandboxId) -> Option<Route> {
        self.parts.registry.live(id)?.route()
    }

    async fn routes(&self) -> Vec<(SandboxId, Route)> {
        let sandboxes = self.parts.registry.all_live();
        sandboxes
            .iter()
            .filter_map(|sandbox| Some((sandbox.id().clone(), sandbox.route()?)))
            .collect()
    }

    async fn wake(&self, id: &SandboxId) -> Result<Option<Route>, Problem> {
        self.wake_sandbox(id).await
    }

    async fn token_of_paused(&self, id: &SandboxId) -> Option<Secret> {
        self.parts.registry.live(id)?.traffic_token()
    }

    async fn ended(&self, id: &SandboxId) {
        if let Some(sandbox) = self.parts.registry.live(id) {
            sandbox.while_in(&[Stage::Starting, Stage::Running]).await;
        }
    }
}
