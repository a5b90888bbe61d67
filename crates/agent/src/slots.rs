//! What the agent needs of the network, as a trait, so that it can be tested without one.

use api::Problem;
use driver::NetworkSlot;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// A source of network slots.
#[async_trait::async_trait]
pub trait Slots: Send + Sync + 'static {
    /// Makes a slot that nobody uses and that may reach the internet. Fails with `OutOfCapacity`
    /// when none is left.
    async fn claim(&self) -> Result<Arc<NetworkSlot>, Problem>;

    /// Opens or closes the internet for a slot.
    async fn set_internet(&self, number: u32, open: bool) -> Result<(), Problem>;

    /// Joins the machine in a slot to the mesh: what the mesh's devices in its namespace, whose names
    /// begin with `devices`, bring for `address` goes to the machine, and what it sends into them
    /// comes from there. Only for a slot that a microVM sits in.
    async fn join(
        &self,
        slot: &NetworkSlot,
        devices: &str,
        address: Ipv4Addr,
    ) -> Result<(), Problem>;

    /// Takes over the slot of a sandbox that ran before this program started; `pid` is a process
    /// inside it.
    async fn adopt(&self, number: u32, pid: u32) -> Result<Arc<NetworkSlot>, Problem>;

    /// Gives a slot back. Its number may be used again afterwards.
    async fn release(&self, slot: Arc<NetworkSlot>);

    /// Removes what earlier runs left and that belongs to no slot in `keep`. Returns what was
    /// removed, for the log.
    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, Problem>;

    /// Removes rules and settings from the host, unless sandboxes go on that need them.
    async fn stop(&self, keep_sandboxes: bool);

    /// The name servers for sandboxes.
    fn name_servers(&self) -> Vec<IpAddr>;
}
