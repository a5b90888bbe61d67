//! What an agent is told when it starts.

use crate::{Images, Members, Slots};
use api::{Bytes, NodeId};
use driver::Driver;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// The port that guests serve on.
pub const GUEST_PORT: u16 = 49983;

/// All that an agent needs to start.
pub struct AgentOptions {
    /// The node's id.
    pub node: NodeId,
    /// The node's name, for people.
    pub name: String,
    /// Where Atoll keeps its files; the agent writes to `agent/` below it.
    pub data_dir: PathBuf,
    /// The running Atoll's own name on this host, four hexadecimal digits.
    pub instance: String,
    /// How sandboxes run.
    pub driver: Arc<dyn Driver>,
    /// Where root file systems come from.
    pub images: Arc<dyn Images>,
    /// Where network slots come from.
    pub network: Arc<dyn Slots>,
    /// Who keeps sandboxes in the mesh; absent, none may be there.
    pub members: Option<Arc<dyn Members>>,
    /// How much sandboxes may use together.
    pub limits: Limits,
    /// How many sandboxes are prepared ahead.
    pub pool: PoolOptions,
    /// What happens to running sandboxes when the agent stops.
    pub on_exit: OnExit,
    /// The port that guests serve on: [`GUEST_PORT`], but for tests.
    pub guest_port: u16,
    /// How long one sandbox may take to start, waiting for its turn included; where a machine has to
    /// boot for it, it may take longer.
    pub start_deadline: Duration,
}

/// How much sandboxes may use together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The most sandboxes at once.
    pub sandboxes: u32,
    /// How many times the machine's memory may be promised: the one policy about it, which the
    /// node keeps to and the scheduler reads from the node's description. A sandbox that idles uses a small
    /// part of its limit, so 1.0 wastes the machine; what protects it from promises that all come
    /// due at once is [`Limits::memory_reserve`].
    pub memory_overcommit: f64,
    /// Sandboxes are refused while the machine has less available memory than this.
    pub memory_reserve: Bytes,
    /// Sandboxes are refused while the data directory's disk has less free space than this.
    pub disk_reserve: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sandboxes: 1_500,
            memory_overcommit: 32.0,
            memory_reserve: Bytes::mebibytes(384),
            disk_reserve: Bytes::mebibytes(512),
        }
    }
}

/// How many sandboxes are prepared ahead. The agent chooses between the two by recent demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Kept ready even when nobody asks.
    pub min: u32,
    /// Never more than this.
    pub max: u32,
    /// How long whoever got a machine that was prepared for its build has the processors to itself
    /// before the next one is prepared, unless none is left: its first command comes then.
    pub grace: Duration,
}

/// What one prepared sandbox may cost the machine while it waits, the kernel's share included.
///
/// `cargo run --release -p driver --example phases` shows it for 100 containers: 375 to 394 KiB of the
/// kernel's slab each (namespaces, control groups, mounts, the layer's file system), and the guest's
/// own 172 KiB. The network there has no veth pair, so the rest is left for that.
const PREPARED_COST: Bytes = Bytes::mebibytes(1);

impl PoolOptions {
    /// For a machine with this much memory: those that wait unasked for take about one part in
    /// 256 of it at most, and are at least 8 and at most 32.
    pub fn for_memory(total: Bytes) -> Self {
        let min = total.0 / 256 / PREPARED_COST.0;
        Self {
            min: u32::try_from(min).unwrap_or(u32::MAX).clamp(8, 32),
            max: 128,
            grace: Duration::from_millis(200),
        }
    }
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self::for_memory(Bytes(0))
    }
}

/// What happens to running sandboxes when the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They end; nothing is left on the machine.
    Kill,
    /// They go on and are found again at the next start.
    Keep,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_of_the_pool_follows_the_memory() {
        let floor = |gibibytes| PoolOptions::for_memory(Bytes::gibibytes(gibibytes)).min;
        assert_eq!([0, 1, 4, 8, 512].map(floor), [8, 8, 16, 32, 32]);
    }
}
