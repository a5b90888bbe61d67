//! Prepare, adopt, sweep, shut down: the same for every hypervisor.

use super::{Vmm, host, machine::RunningMachine, prepared::PreparedMachine, unsupported};
use crate::{
    Capabilities, Driver, DriverError, DriverKind, Machine, MachineRecord, NetworkSlot, Origin,
    Plan, Prepared, SavedState, blocking::blocking, cgroup::Group, container::process, directory,
    doing, phases::Stopwatch,
};
use std::sync::Arc;

/// A public driver that runs the machines of a [`Vmm`].
pub(crate) trait MicroVms: Send + Sync + 'static {
    /// What differs.
    type Vmm: Vmm;

    fn vmm(&self) -> &Arc<Self::Vmm>;
}

#[async_trait::async_trait]
impl<D: MicroVms> Driver for D {
    fn kind(&self) -> DriverKind {
        D::Vmm::KIND
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            memory_snapshot: true,
            needs_disk: true,
            prepares_anything: false,
        }
    }

    async fn prepare(
        &self,
        slot: Arc<NetworkSlot>,
        plan: &Plan,
    ) -> Result<Box<dyn Prepared>, DriverError> {
        let vmm = self.vmm();
        let number = slot.number;
        if number >= host::MOST_SLOTS {
            return Err(DriverError::Exhausted {
                what: "slots",
                cause: format!("slot {number} is beyond the last of {}", host::MOST_SLOTS),
            });
        }
        fits(&**vmm, plan)?;
        let mut phases = Stopwatch::start();
        vmm.host().take(number);
        match D::Vmm::prepare(vmm, &slot, plan, &mut phases).await {
            Ok((hold, notes)) => Ok(Box::new(PreparedMachine::<D::Vmm>::new(
                hold, notes, slot, phases,
            ))),
            Err(error) => {
                let clearing = Arc::clone(vmm);
                let cleared = blocking(move || clear_slot(&*clearing, number).map(drop));
                if let Err(error) = cleared.await {
                    tracing::warn!(%error, slot = number, "half a machine is left");
                }
                vmm.host().let_go(number);
                Err(error)
            }
        }
    }

    fn check(&self, state: &SavedState) -> Result<(), DriverError> {
        host::check(state, D::Vmm::KIND, self.vmm().facts())
    }

    fn outdated(&self, state: &SavedState) -> Vec<String> {
        let here = self.vmm().facts();
        let memory = state.memory.as_ref();
        memory.map_or_else(Vec::new, |memory| memory.host.outdated(here))
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Option<Box<dyn Machine>>, DriverError> {
        let vmm = self.vmm();
        let found = process::find(record.pid, record.start_time)
            .map_err(doing(format!("look for process {}", record.pid)))?;
        let Some(process) = found else {
            return Ok(None);
        };
        let Some((hold, notes)) = D::Vmm::adopt(vmm, record, process).await? else {
            return Ok(None);
        };
        vmm.host().take(record.slot);
        let machine = RunningMachine::<D::Vmm>::new(hold, notes, Stopwatch::start());
        Ok(Some(Box::new(machine)))
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, DriverError> {
        let vmm = Arc::clone(self.vmm());
        let keep = keep.to_vec();
        blocking(move || {
            let host = vmm.host();
            let mut slots = Group::slots(&host.hierarchies, &host.instance);
            slots.extend(vmm.slots());
            slots.sort_unstable();
            slots.dedup();
            let mut removed = Vec::new();
            for slot in slots {
                let kept = keep.contains(&slot) || host.is_taken(slot);
                if !kept && clear_slot(&*vmm, slot)? {
                    removed.push(format!("machine in slot {slot}"));
                }
            }
            Ok(removed)
        })
        .await
    }

    async fn clear(&self, slot: u32) -> Result<(), DriverError> {
        let vmm = Arc::clone(self.vmm());
        // One that was dropped after it had got a process is being ended.
        vmm.host().wait_for_clearing().await;
        blocking(move || {
            clear_slot(&*vmm, slot)?;
            vmm.host().let_go(slot);
            Ok(())
        })
        .await
    }

    async fn shutdown(&self) {
        let vmm = Arc::clone(self.vmm());
        vmm.host().wait_for_clearing().await;
        let _ = blocking(move || {
            // Stays if a machine still runs.
            Group::remove_instance(&vmm.host().hierarchies, &vmm.host().instance);
            Ok(())
        })
        .await;
    }
}

/// Refuses what this host cannot start.
fn fits<V: Vmm>(vmm: &V, plan: &Plan) -> Result<(), DriverError> {
    vmm.refuse(&plan.resources)?;
    let Origin::Saved(state) = &plan.origin else {
        return Ok(());
    };
    host::check(state, V::KIND, vmm.facts())?;
    if state.memory.is_some() && state.resources != plan.resources {
        return Err(unsupported(
            "a state with memory has the resources that it was saved with",
            "Ask for the same resources, or start from its disk",
        ));
    }
    Ok(())
}

/// Ends and removes whatever is left in a slot. Blocks. True if there was anything.
fn clear_slot<V: Vmm>(vmm: &V, slot: u32) -> Result<bool, DriverError> {
    let mut removed = vmm.host().clear_group(slot)?;
    for path in vmm.directories_of(slot) {
        removed |= directory::remove(&path)?;
    }
    Ok(removed)
}
