//! How the gateway learns where a sandbox is.

use crate::{Problem, SandboxId, Secret};
use std::net::IpAddr;

/// Where the traffic for a sandbox goes, and who may send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The sandbox's address as this machine reaches it.
    pub address: IpAddr,
    /// If set, every port but the guest's own (49983) wants this token in
    /// `e2b-traffic-access-token`.
    pub traffic_token: Option<Secret>,
    /// Rewrites the Host header that servers in the sandbox see; `${PORT}` is substituted.
    pub mask_request_host: Option<String>,
    /// The guest's token, only to recognise which sandbox a signed URL without routing headers
    /// was made for.
    pub access_token: Option<Secret>,
}

/// The gateway's view of the sandboxes that it can reach.
///
/// Called for every connection: answers come from memory.
#[async_trait::async_trait]
pub trait Locate: Send + Sync + 'static {
    /// The route to a running sandbox; `None` if it is unknown, paused or has ended.
    async fn locate(&self, id: &SandboxId) -> Option<Route>;

    /// All running sandboxes with their routes, for signed URLs that carry no routing headers.
    async fn routes(&self) -> Vec<(SandboxId, Route)>;

    /// The route to a sandbox that [`Locate::locate`] does not know, after waking it if it is paused
    /// and may be woken by traffic; returns when it serves. Concurrent calls share one resume. It
    /// then lives as long as it was created for, and at least 300 seconds.
    ///
    /// `None` if it is unknown or has ended. `PermissionDenied` if it is paused and traffic may not
    /// wake it, `Conflict` if it is being paused or taken down; any other error is why it could not
    /// be resumed, and it is paused as before then.
    async fn wake(&self, id: &SandboxId) -> Result<Option<Route>, Problem> {
        Ok(self.locate(id).await)
    }

    /// The token that requests for the ports of a paused sandbox must carry to wake it; `None` if
    /// they need none, or it is not paused. The guest's own port (49983) never needs it.
    async fn token_of_paused(&self, id: &SandboxId) -> Option<Secret> {
        let _ = id;
        None
    }

    /// Returns when the sandbox stops running, so that its open connections can be broken.
    async fn ended(&self, id: &SandboxId);
}
