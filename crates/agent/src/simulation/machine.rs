//! Simulated machines.

use super::world::{Faults, Process, World, lock};
use api::{Resources, Secret};
use driver::{
    Capabilities, Driver, DriverError, DriverKind, Exit, Machine, MachineRecord, NetworkSlot,
    Origin, Plan, Prepared, RootFiles, SaveOptions, SavedState, StartSpec, Usage,
    state::SavedMemory,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

/// A driver without machines. For tests only.
pub struct SimulatedDriver(pub Arc<World>);

struct SimulatedPrepared {
    world: Arc<World>,
    slot: Arc<NetworkSlot>,
    plan: Plan,
    gone: bool,
}

struct SimulatedMachine {
    world: Arc<World>,
    slot: u32,
    process: Arc<Process>,
    root: RootFiles,
    resources: Resources,
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
        match self.0.snapshots {
            true => DriverKind::Qemu,
            false => DriverKind::Container,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            memory_snapshot: self.0.snapshots,
            needs_disk: false,
            prepares_anything: !self.0.snapshots,
        }
    }

    async fn prepare(
        &self,
        slot: Arc<NetworkSlot>,
        plan: &Plan,
    ) -> Result<Box<dyn Prepared>, DriverError> {
        self.0.contents().preparing.insert(slot.number);
        tokio::time::sleep(self.0.prepare_time).await;
        self.0.contents().preparing.remove(&slot.number);
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
            plan: plan.clone(),
            gone: false,
        }))
    }

    fn check(&self, state: &SavedState) -> Result<(), DriverError> {
        let Some(memory) = &state.memory else {
            return Ok(());
        };
        let differences = memory.host.differences(&self.0.facts());
        if self.0.snapshots && differences.is_empty() {
            return Ok(());
        }
        Err(DriverError::Unsupported {
            cause: differences.join(", "),
            remedy: "stop simulating".into(),
        })
    }

    fn outdated(&self, state: &SavedState) -> Vec<String> {
        let memory = state.memory.as_ref();
        memory.map_or_else(Vec::new, |memory| memory.host.outdated(&self.0.facts()))
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
                    root: no_root(),
                    resources: Resources::default(),
                })
            }))
    }

    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, DriverError> {
        let mut contents = self.0.contents();
        let prepared: Vec<u32> = contents.prepared.iter().copied().collect();
        let machines: Vec<u32> = contents.machines.keys().copied().collect();
        let mut removed = Vec::new();
        contents.preparing.clear();
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

    async fn clear(&self, slot: u32) -> Result<(), DriverError> {
        self.0.contents().preparing.remove(&slot);
        Ok(())
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

    async fn warm_up(&mut self, user: &str) -> Result<(), DriverError> {
        let event = format!("warm {} as {user}", self.slot.number);
        World::note(&mut self.world.contents(), event);
        Ok(())
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
            if self.world.snapshots {
                let planned = origin_of(&self.plan.origin);
                if planned != origin_of(&spec.origin) || self.plan.resources != spec.resources {
                    return Err(DriverError::Guest("it was prepared for another".into()));
                }
            }
            let origin = origin_of(&spec.origin);
            if origin
                .as_ref()
                .is_some_and(|path| !path.join("state.json").exists())
            {
                return Err(DriverError::Guest("its state is gone".into()));
            }
            let renewed = origin.is_some() && spec.renew;
            let facts = match &spec.origin {
                Origin::Saved(state) => state.memory.as_ref().map(|memory| memory.host.clone()),
                Origin::Fresh(_) => None,
            };
            let facts = facts.unwrap_or_else(|| contents.facts.clone());
            let process = World::new_process(&mut contents, origin, facts);
            if renewed {
                World::note(&mut contents, format!("renew {slot}"));
            }
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
            root: spec.origin.root().clone(),
            resources: spec.resources,
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

impl SimulatedMachine {
    async fn write(
        &self,
        directory: &Path,
        options: SaveOptions,
    ) -> Result<SavedState, DriverError> {
        let system = |source| DriverError::System {
            doing: format!("write {}", directory.display()),
            source,
        };
        std::fs::create_dir(directory).map_err(system)?;
        let disk = lock(&self.process.disk).clone();
        std::fs::write(directory.join("disk.img"), disk).map_err(system)?;
        tokio::time::sleep(self.world.save_time).await;
        if Faults::strike(&self.world.faults.save) {
            return Err(DriverError::Exhausted {
                what: "disk",
                cause: "simulated".into(),
            });
        }
        let mut memory = None;
        if options.memory {
            let held = lock(&self.process.memory).clone();
            std::fs::write(directory.join("memory"), held).map_err(system)?;
            memory = Some(SavedMemory {
                host: self.process.facts.clone(),
                base: self
                    .process
                    .origin
                    .clone()
                    .filter(|origin| origin.join("memory").exists()),
                control_token: Secret::new("control"),
            });
        }
        let state = SavedState {
            directory: directory.to_owned(),
            driver: if self.world.snapshots {
                DriverKind::Qemu
            } else {
                DriverKind::Container
            },
            root: self.root.clone(),
            resources: self.resources,
            memory,
            stood_still: None,
        };
        // The data directory holds folders of states.
        let data_directory = directory.ancestors().nth(2).unwrap_or(directory);
        state.seal(data_directory)?;
        Ok(state)
    }
}

fn no_root() -> RootFiles {
    RootFiles {
        layers: Vec::new(),
        disk: None,
    }
}

fn origin_of(origin: &Origin) -> Option<PathBuf> {
    match origin {
        Origin::Fresh(_) => None,
        Origin::Saved(state) => Some(state.directory.clone()),
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

    async fn freeze(&self) -> Result<(), DriverError> {
        if Faults::strike(&self.world.faults.freeze) {
            return Err(fault("cannot freeze"));
        }
        self.process.frozen.store(true, SeqCst);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), DriverError> {
        self.process.frozen.store(false, SeqCst);
        Ok(())
    }

    async fn save(
        &self,
        directory: &Path,
        options: SaveOptions,
    ) -> Result<SavedState, DriverError> {
        if options.memory && !self.world.snapshots {
            return Err(DriverError::Unsupported {
                cause: "this driver cannot save memory".into(),
                remedy: "use qemu".into(),
            });
        }
        if self.process.exit.borrow().is_some() {
            return Err(DriverError::Guest("it has ended".into()));
        }
        self.process.frozen.store(true, SeqCst);
        let saved = self.write(directory, options).await;
        if options.goes_on || saved.is_err() {
            self.process.frozen.store(false, SeqCst);
        }
        if saved.is_err() {
            // As every driver, it leaves nothing.
            let _ = std::fs::remove_dir_all(directory);
        }
        saved
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
