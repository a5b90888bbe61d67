//! What an agent is told when it starts.

use crate::{Images, Slots};
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
    /// How much sandboxes may use together.
    pub limits: Limits,
    /// How many sandboxes are prepared ahead.
    pub pool: PoolOptions,
    /// What happens to running sandboxes when the agent stops.
    pub on_exit: OnExit,
    /// The port that guests serve on: [`GUEST_PORT`], but for tests.
    pub guest_port: u16,
    /// How long one sandbox may take to start, waiting for its turn included.
    pub start_deadline: Duration,
}

/// How much sandboxes may use together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The most sandboxes at once.
    pub sandboxes: u32,
    /// How many times the machine's memory may be promised. A sandbox that idles uses a small
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
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { min: 8, max: 128 }
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
