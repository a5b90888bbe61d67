//! What the agent needs of the mesh, as a trait: it says which sandbox is in which network slot, and whoever keeps the nodes does the rest.
//!
//! The node of a sandbox is no part of it. It runs on the host, outside of what the sandbox can touch, and puts a device into the slot's namespace; so there is no
//! key inside, and what the sandbox may say to whom is decided where it has no say. A microVM sits behind that namespace, which translates ([`Slots::join`]).
//!
//! | the sandbox | the node |
//! | --- | --- |
//! | starts, or goes on after a pause | [`Members::attach`], before anything of it runs |
//! | is paused | [`Members::detach`]: it is the same one afterwards |
//! | ends | [`Members::release`]: name and address are free |
//! | went on while Atoll was killed | [`Members::attach`] again |

use api::{
    Problem, SandboxId,
    node::{MeshMembership, MeshPlace},
};
use driver::NetworkSlot;
use std::net::IpAddr;

/// A sandbox that is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Where others find it.
    pub place: MeshPlace,
    /// Where programs inside ask for names.
    pub name_server: IpAddr,
    /// The domain that short names are looked up in.
    pub domain: String,
    /// What the names of the mesh's devices in the slot begin with.
    pub devices: &'static str,
}

/// Who keeps sandboxes in the mesh.
#[async_trait::async_trait]
pub trait Members: Send + Sync + 'static {
    /// Brings a sandbox into the mesh: there is a device in its slot's namespace when this returns. `name_servers` are asked about all other
    /// names, from inside the slot. What was put out of the mesh for good is not brought back: `None`.
    ///
    /// After a failure it is still tried, until the sandbox is detached or released.
    ///
    /// # Errors
    /// It is refused, or the machine allows no device.
    async fn attach(
        &self,
        sandbox: &SandboxId,
        membership: &MeshMembership,
        slot: &NetworkSlot,
        name_servers: &[IpAddr],
    ) -> Result<Option<Attached>, Problem>;

    /// Takes a sandbox's device away, and keeps who it is.
    async fn detach(&self, sandbox: &SandboxId);

    /// Forgets a sandbox: here, and wherever others know it.
    async fn release(&self, sandbox: &SandboxId);

    /// Where a sandbox was found last.
    async fn place(&self, sandbox: &SandboxId) -> Option<MeshPlace>;

    /// Forgets all that earlier runs left, but for these.
    async fn sweep(&self, keep: &[SandboxId]);
}
