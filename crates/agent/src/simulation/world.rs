//! The simulated host.

use driver::{Exit, state::HostFacts};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::watch;

/// What is to fail. Counters say how many of the next calls fail.
#[derive(Debug, Default)]
pub struct Faults {
    /// Claiming a slot: none is left.
    pub claim: AtomicU32,
    /// Preparing: the disk is full.
    pub prepare: AtomicU32,
    /// Starting: the guest does not come up.
    pub start: AtomicU32,
    /// Destroying: a system call fails.
    pub destroy: AtomicU32,
    /// Setting what a slot may reach.
    pub set_internet: AtomicU32,
    /// Taking a slot over.
    pub adopt_slot: AtomicU32,
    /// Saving: the disk is full.
    pub save: AtomicU32,
    /// Freezing in place.
    pub freeze: AtomicU32,
    /// Prepared sandboxes stay behind when they are dropped without being discarded.
    pub leave_prepared: AtomicBool,
}

impl Faults {
    /// Whether this call is to fail.
    pub(super) fn strike(counter: &AtomicU32) -> bool {
        counter
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
            .is_ok()
    }
}

/// A simulated machine, as the host sees it.
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) exit: watch::Sender<Option<Exit>>,
    pub(super) since: std::time::Instant,
    /// What its memory holds.
    pub(super) memory: Mutex<String>,
    /// What its disk holds.
    pub(super) disk: Mutex<String>,
    /// Whether it stands still.
    pub(super) frozen: AtomicBool,
    /// The state that it was started from.
    pub(super) origin: Option<PathBuf>,
    /// What was true where it was booted.
    pub(super) facts: HostFacts,
}

pub(super) struct Contents {
    /// What is true of the host.
    pub(super) facts: HostFacts,
    /// Slots with an interface.
    pub(super) slots: BTreeSet<u32>,
    /// Slots that are closed off from the internet.
    pub(super) closed: BTreeSet<u32>,
    /// Slots in which something is being prepared, or was begun.
    pub(super) preparing: BTreeSet<u32>,
    /// Slots with a prepared sandbox.
    pub(super) prepared: BTreeSet<u32>,
    /// Slots with a running machine, or with what is left of one.
    pub(super) machines: BTreeMap<u32, Arc<Process>>,
    next_pid: u32,
    /// What happened, in order.
    pub(super) events: Vec<String>,
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            facts: HostFacts {
                program: "simulation".into(),
                accelerator: "none".into(),
                processor: "this".into(),
                kernel: "first".into(),
                guest: "first".into(),
                protocol: 1,
                layout: 1,
                counter_khz: None,
            },
            slots: BTreeSet::new(),
            closed: BTreeSet::new(),
            preparing: BTreeSet::new(),
            prepared: BTreeSet::new(),
            machines: BTreeMap::new(),
            next_pid: 0,
            events: Vec::new(),
        }
    }
}

/// The simulated host.
#[derive(Default)]
pub struct World {
    contents: Mutex<Contents>,
    /// What is to fail.
    pub faults: Faults,
    /// Whether the driver saves memory; then it prepares for one origin only.
    pub snapshots: bool,
    /// How long saving takes.
    pub save_time: Duration,
    /// How long preparing takes.
    pub prepare_time: Duration,
    /// How long starting takes.
    pub start_time: Duration,
    /// How many slots there are.
    pub slots_max: u32,
}

impl World {
    /// A host that does everything at once.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            slots_max: 4096,
            ..Self::default()
        })
    }

    /// A host that takes its time.
    pub fn slow(prepare_time: Duration, start_time: Duration) -> Arc<Self> {
        Arc::new(Self {
            slots_max: 4096,
            prepare_time,
            start_time,
            ..Self::default()
        })
    }

    /// A host whose driver saves memory.
    pub fn with_snapshots() -> Arc<Self> {
        Arc::new(Self {
            slots_max: 4096,
            snapshots: true,
            ..Self::default()
        })
    }

    pub(super) fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn facts(&self) -> HostFacts {
        self.contents().facts.clone()
    }

    /// Changes what is true of the host, as an upgrade or another processor does. States that were
    /// saved before remember what was.
    pub fn change(&self, change: impl FnOnce(&mut HostFacts)) {
        change(&mut self.contents().facts);
    }

    pub(super) fn new_process(
        contents: &mut Contents,
        origin: Option<PathBuf>,
        facts: HostFacts,
    ) -> Arc<Process> {
        let read = |file: &str| {
            let path = origin.as_ref().map(|origin| origin.join(file));
            let text = path.and_then(|path| std::fs::read_to_string(path).ok());
            Mutex::new(text.unwrap_or_default())
        };
        contents.next_pid += 1;
        Arc::new(Process {
            pid: contents.next_pid,
            exit: watch::Sender::new(None),
            since: std::time::Instant::now(),
            memory: read("memory"),
            disk: read("disk.img"),
            frozen: AtomicBool::new(false),
            origin,
            facts,
        })
    }

    pub(super) fn note(contents: &mut Contents, event: String) {
        if contents.events.len() < 100_000 {
            contents.events.push(event);
        }
    }

    /// Slots that have an interface.
    pub fn slots(&self) -> Vec<u32> {
        self.contents().slots.iter().copied().collect()
    }

    /// Slots in which something is being prepared, or was begun and not taken down.
    pub fn preparing(&self) -> Vec<u32> {
        self.contents().preparing.iter().copied().collect()
    }

    /// Slots that hold a prepared sandbox.
    pub fn prepared(&self) -> Vec<u32> {
        self.contents().prepared.iter().copied().collect()
    }

    /// Slots that hold a running machine, or what is left of one.
    pub fn machines(&self) -> Vec<u32> {
        self.contents().machines.keys().copied().collect()
    }

    /// Whether a slot is closed off from the internet.
    pub fn is_closed(&self, slot: u32) -> bool {
        self.contents().closed.contains(&slot)
    }

    /// What happened, in order: `claim 1`, `prepare 1`, `start 1`, `destroy 1`, `release 1` …
    pub fn events(&self) -> Vec<String> {
        self.contents().events.clone()
    }

    /// Writes to memory and disk of the machine in a slot.
    pub fn write(&self, slot: u32, memory: &str, disk: &str) {
        if let Some(process) = self.contents().machines.get(&slot) {
            *lock(&process.memory) = memory.to_owned();
            *lock(&process.disk) = disk.to_owned();
        }
    }

    /// Memory and disk of the machine in a slot.
    pub fn read(&self, slot: u32) -> Option<(String, String)> {
        let contents = self.contents();
        let process = contents.machines.get(&slot)?;
        Some((lock(&process.memory).clone(), lock(&process.disk).clone()))
    }

    /// Whether the machine in a slot stands still.
    pub fn is_frozen(&self, slot: u32) -> bool {
        let contents = self.contents();
        contents
            .machines
            .get(&slot)
            .is_some_and(|process| process.frozen.load(SeqCst))
    }

    /// Everything stops, as when the machine loses its power.
    pub fn reboot(&self) {
        let mut contents = self.contents();
        contents.machines.clear();
        contents.prepared.clear();
        contents.slots.clear();
        contents.closed.clear();
    }

    /// Ends the machine in a slot, as a fault of its own would.
    pub fn crash(&self, slot: u32, exit: Exit) {
        if let Some(process) = self.contents().machines.get(&slot) {
            process.exit.send_replace(Some(exit));
        }
    }

    /// Kills the prepared sandbox in a slot.
    pub fn kill_prepared(&self, slot: u32) {
        self.contents().prepared.remove(&slot);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
