//! What every sandbox's task needs of the agent.

use crate::{
    admission::Admission, facts::Facts, images::Images, journal::Journal, logs::LogStore,
    mesh::Members, phases::Phases, pool::Pool, sandbox::Registry, slots::Slots, states::States,
    templates::Making,
};
use api::NodeId;
use driver::Driver;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The agent's parts, shared by its tasks.
pub(crate) struct Parts {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) network: Arc<dyn Slots>,
    pub(crate) members: Option<Arc<dyn Members>>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) registry: Registry,
    pub(crate) states: Arc<States>,
    /// Templates that are being started.
    pub(crate) making: Making,
    pub(crate) logs: LogStore,
    pub(crate) phases: Phases,
    /// Turns to start a sandbox: so many at once that all processors are busy, and not so many
    /// that each one's start is slow.
    pub(crate) starts: Semaphore,
    pub(crate) guest_port: u16,
    pub(crate) start_deadline: Duration,
    /// Tasks of sandboxes.
    pub(crate) tasks: TaskTracker,
    /// Fires when the agent takes no more requests.
    pub(crate) stopping: CancellationToken,
    /// Fires when background tasks must end.
    pub(crate) background: CancellationToken,
}
