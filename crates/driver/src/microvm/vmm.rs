//! What differs between the hypervisors that run microVMs.

use super::{Held, Host, notes::Notes};
use crate::{
    DriverError, DriverKind, MachineRecord, NetworkSlot, Plan, SaveOptions, SavedState,
    cgroup::Limits, phases::Stopwatch, state::HostFacts,
};
use api::{Resources, boot::Identity};
use std::{
    io,
    ops::Deref,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A hypervisor on this host: how its machines are made, spoken to and saved.
#[async_trait::async_trait]
pub(crate) trait Vmm: Send + Sync + Sized + 'static {
    /// One of its machines: what all have, and the way to its hypervisor.
    type Hold: Deref<Target = Held> + Send + Sync + 'static;

    /// The driver that it makes.
    const KIND: DriverKind;

    /// The writable disk in a machine's directory.
    const DISK: &'static str;

    /// Whether a machine that was resumed gains by running for a moment before it is needed: what
    /// it runs first must be translated, or read.
    const WARMS_UP: bool;

    /// What it has on this host.
    fn host(&self) -> &Arc<Host>;

    /// What snapshots made here are bound to.
    fn facts(&self) -> &HostFacts;

    /// What a machine's process may use: what the sandbox may, and what the hypervisor needs.
    fn limits(&self, resources: &Resources) -> Limits;

    /// All directories that a slot's machine, or one before it, may have.
    fn directories_of(&self, slot: u32) -> Vec<PathBuf>;

    /// Slots that have a directory.
    fn slots(&self) -> Vec<u32>;

    /// Refuses what this hypervisor cannot give, before anything is made.
    fn refuse(&self, _resources: &Resources) -> Result<(), DriverError> {
        Ok(())
    }

    /// Starts a machine and brings it to where only its identity, or its state, is missing. On
    /// failure the caller clears the slot.
    async fn prepare(
        this: &Arc<Self>,
        slot: &Arc<NetworkSlot>,
        plan: &Plan,
        phases: &mut Stopwatch,
    ) -> Result<(Self::Hold, Notes), DriverError>;

    /// Gets hold of a machine that an earlier run of this program started, by its process; None if
    /// it never became somebody's.
    async fn adopt(
        this: &Arc<Self>,
        record: &MachineRecord,
        process: OwnedFd,
    ) -> Result<Option<(Self::Hold, Notes)>, DriverError>;

    /// Lets a prepared machine go, so that its guest can be told who it is.
    async fn go(
        hold: &Self::Hold,
        slot: &NetworkSlot,
        identity: &Identity,
        notes: &Notes,
        patience: Duration,
        phases: &mut Stopwatch,
    ) -> Result<(), DriverError>;

    /// Whether a machine stands still.
    async fn stands(hold: &Self::Hold) -> Result<bool, DriverError>;

    /// Stops a machine that runs.
    async fn stop(hold: &Self::Hold) -> Result<(), DriverError>;

    /// Lets a machine go on that stands still.
    async fn go_on(hold: &Self::Hold) -> Result<(), DriverError>;

    /// Saves a machine in `directory`, which is not there yet. On failure the caller clears up, and
    /// brings the machine to where it was. `stands` says whether it stands still already; then it
    /// stays so.
    async fn save(
        hold: &Self::Hold,
        notes: &mut Notes,
        directory: &Path,
        options: SaveOptions,
        stands: bool,
    ) -> Result<SavedState, DriverError>;

    /// The memory that is a machine's alone, in bytes; None if its control group counts it.
    fn own_memory(_hold: &Self::Hold) -> io::Result<Option<u64>> {
        Ok(None)
    }
}
