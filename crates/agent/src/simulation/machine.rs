//! Simulated machines.

use super::world::{Faults, Process, World};
use driver::{
    Capabilities, Driver, DriverError, DriverKind, Exit, Machine, MachineRecord, NetworkSlot, Plan,
    Prepared, StartSpec, Usage,
};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

/// A driver without machines. For tests only.
pub struct SimulatedDriver(pub Arc<World>);

struct SimulatedPrepared {
    world: Arc<World>,
    slot: Arc<NetworkSlot>,
    gone: bool,
}

struct SimulatedMachine {
    world: Arc<World>,
    slot: u32,
    process: Arc<Process>,
}

fn fault(doing: &str) -> DriverError {
    DriverError::System {
        doing: format!("{doing} as the test asked for"),
        source: std::io::Error::other("simulated fault"),
    }
}

#[async_trait::async_trait]
impl Driver for SimulatedDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Container
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            memory_snapshot: false,
            needs_disk: false,
            prepares_anything: true,
        }
    }

    async fn prepare(
        &self,
        slot: Arc<NetworkSlot>,
        _: &Plan,
    ) -> Result<Box<dyn Prepared>, DriverError> {
        tokio::time::sleep(self.0.prepare_time).await;
        if Faults::strike(&self.0.faults.prepare) {
            return Err(DriverError::Exhausted {
                what: "disk",
                cause: "simulated".into(),
            });
        }
        let mut contents = self.0.contents();
        World::note(&mut contents, format!("prepare {}", slot.number));
        contents.prepared.insert(slot.number);
        Ok(Box::new(SimulatedPrepared {
            world: self.0.clone(),
            slot,
            gone: false,
        }))
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Option<Box<dyn Machine>>, DriverError> {
        let mut contents = self.0.contents();
        World::note(&mut contents, format!("adopt {}", record.slot));
        let found = contents.machines.get(&record.slot);
        Ok(found
            .filter(|process| process.pid == record.pid && process.exit.borrow().is_none())
            .map(|process| -> Box<dyn Machine> {
                Box::new(SimulatedMachine {
                    world: self.0.clone(),
                    slot: record.slot,
                    process: process.clone(),
                })
            }))
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, DriverError> {
        let mut contents = self.0.contents();
        let prepared: Vec<u32> = contents.prepared.iter().copied().collect();
        let machines: Vec<u32> = contents.machines.keys().copied().collect();
        let mut removed = Vec::new();
        for slot in prepared {
            contents.prepared.remove(&slot);
            removed.push(format!("prepared sandbox {slot}"));
        }
        for slot in machines.into_iter().filter(|slot| !keep.contains(slot)) {
            contents.machines.remove(&slot);
            removed.push(format!("machine {slot}"));
        }
        Ok(removed)
    }

    async fn shutdown(&self) {
        World::note(&mut self.0.contents(), "shutdown".into());
    }
}

#[async_trait::async_trait]
impl Prepared for SimulatedPrepared {
    fn slot(&self) -> &Arc<NetworkSlot> {
        &self.slot
    }

    fn is_alive(&self) -> bool {
        self.world.contents().prepared.contains(&self.slot.number)
    }

    async fn start(mut self: Box<Self>, spec: StartSpec) -> Result<Box<dyn Machine>, DriverError> {
        let slot = self.slot.number;
        // Dropped halfway, it leaves the machine behind, as a real one would stay.
        let process = {
            let mut contents = self.world.contents();
            self.gone = true;
            if !contents.prepared.remove(&slot) {
                return Err(DriverError::Guest("it was dead already".into()));
            }
            World::note(&mut contents, format!("start {slot}"));
            let process = World::new_process(&mut contents);
            contents.machines.insert(slot, process.clone());
            process
        };
        tokio::time::sleep(self.world.start_time.min(spec.deadline)).await;
        if Faults::strike(&self.world.faults.start) {
            self.world.contents().machines.remove(&slot);
            return Err(DriverError::Guest("simulated fault".into()));
        }
        Ok(Box::new(SimulatedMachine {
            world: self.world.clone(),
            slot,
            process,
        }))
    }

    async fn discard(mut self: Box<Self>) {
        self.gone = true;
        let mut contents = self.world.contents();
        World::note(&mut contents, format!("discard {}", self.slot.number));
        contents.prepared.remove(&self.slot.number);
    }
}

impl Drop for SimulatedPrepared {
    fn drop(&mut self) {
        if !self.gone && !self.world.faults.leave_prepared.load(SeqCst) {
            self.world.contents().prepared.remove(&self.slot.number);
        }
    }
}

#[async_trait::async_trait]
impl Machine for SimulatedMachine {
    fn record(&self) -> MachineRecord {
        MachineRecord {
            slot: self.slot,
            pid: self.process.pid,
            start_time: 1,
        }
    }

    async fn wait(&self) -> Exit {
        let mut exit = self.process.exit.subscribe();
        match exit
            .wait_for(Option::is_some)
            .await
            .map(|exit| exit.clone())
        {
            Ok(Some(exit)) => exit,
            _ => Exit::Ended("the simulation ended".into()),
        }
    }

    fn usage(&self) -> Result<Usage, DriverError> {
        Ok(Usage {
            cpu_time: self.process.since.elapsed().mul_f64(0.1),
            memory: 3 << 20,
            memory_cache: 1 << 20,
            disk: 5 << 20,
            processes: 2,
        })
    }

    async fn destroy(&self) -> Result<(), DriverError> {
        if Faults::strike(&self.world.faults.destroy) {
            return Err(fault("cannot remove the control group"));
        }
        // What a real one takes.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.process
            .exit
            .send_replace(Some(Exit::Ended("destroyed".into())));
        let mut contents = self.world.contents();
        World::note(&mut contents, format!("destroy {}", self.slot));
        let ours = contents
            .machines
            .get(&self.slot)
            .is_some_and(|found| found.pid == self.process.pid);
        if ours {
            contents.machines.remove(&self.slot);
        }
        Ok(())
    }
}
