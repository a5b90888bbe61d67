//! How a node runs sandboxes.
//!
//! A [`Driver`] knows how to prepare, start, adopt and stop one kind of sandbox; it knows nothing
//! of tenants, templates' names, time limits or the network beyond the slot that it is handed.
//! Every driver has the same set of files, so that you know where each step is before you open it.
//!
//! Starting is split in two, so that the second part is short: [`Driver::prepare`] does all that
//! needs no knowledge of the sandbox to come (namespaces, control groups, writable layer, the
//! guest process itself), away from the path of creating one; [`Driver::start`] lays the root file
//! system, tells the guest who it is, and returns when the guest serves.
//!
//! Start reading at [`Driver`], then `container`; then `microvm`, which all drivers of machines
//! share, and `qemu`.

pub mod advice;
mod blocking;
pub mod cgroup;
pub mod container;
mod directory;
pub mod firecracker;
mod guest_binary;
pub mod kernel;
pub mod kvm;
pub mod layer;
mod microvm;
mod phases;
pub mod probe;
pub mod qemu;
pub mod slot;
mod sparse;
pub mod state;

use api::{Resources, boot::Identity};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc, time::Duration};

pub use guest_binary::GUEST;
pub use phases::Phases;
pub use slot::NetworkSlot;
pub use state::{Origin, Plan, RootFiles, SaveOptions, SavedState};

/// Which driver, as users write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// Firecracker microVMs.
    Firecracker,
    /// QEMU microVMs.
    Qemu,
    /// Namespaces, seccomp, control groups, user namespace.
    Container,
}

/// What a driver can do on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Whether a snapshot holds memory and not only the disk.
    pub memory_snapshot: bool,
    /// Whether it attaches the root file system as one disk image, which must be made first.
    pub needs_disk: bool,
    /// Whether what is prepared may become any sandbox, or only one of its plan's origin.
    pub prepares_anything: bool,
}

/// Why a driver could not do something.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The machine lacks something; the text names it and the remedy.
    #[error("{cause}")]
    Unsupported {
        /// What is missing.
        cause: String,
        /// How to get it.
        remedy: String,
    },
    /// A resource of the machine is used up.
    #[error("{what} is used up: {cause}")]
    Exhausted {
        /// `memory`, `disk`, `processes`, `loop devices`.
        what: &'static str,
        /// What the kernel said.
        cause: String,
    },
    /// The guest did not come up.
    #[error("the guest did not start: {0}")]
    Guest(String),
    /// A system call failed.
    #[error("{doing}")]
    System {
        /// What was being done, with the path or name concerned.
        doing: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Adds what was being done to an error of the system.
fn doing<E: Into<std::io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> DriverError {
    move |source| DriverError::System {
        doing: doing.into(),
        source: source.into(),
    }
}

/// An error that says so if the disk is full.
fn full_or(error: std::io::Error, what: impl Into<String>) -> DriverError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DriverError::Exhausted {
            what: "disk",
            cause: error.to_string(),
        },
        _ => doing(what)(error),
    }
}

/// What a driver answers that has no means for something.
fn cannot(what: &str, able: &str) -> DriverError {
    DriverError::Unsupported {
        cause: format!("this driver cannot {what}"),
        remedy: format!("use a node whose driver is {able}"),
    }
}

/// All that a driver needs to turn a prepared sandbox into somebody's.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// What it starts from; for drivers that prepare for one origin, the one of the plan.
    pub origin: Origin,
    /// What it may use.
    pub resources: Resources,
    /// Who it is; sent to the guest.
    pub identity: Identity,
    /// Name inside the sandbox.
    pub host_name: String,
    /// Name servers, written to `/etc/resolv.conf` inside.
    pub name_servers: Vec<std::net::IpAddr>,
    /// The domain that short names are looked up in, if there is one. Machines are given none.
    pub search: Option<String>,
    /// How long starting may take.
    pub deadline: Duration,
    /// Whether a guest that comes out of a saved memory becomes somebody new, as in a fork, and not
    /// the same again, as in a resume. Others always do.
    pub renew: bool,
}

/// What must be remembered to find a running sandbox again after the node's program died.
///
/// The node journals it before the sandbox is handed out, and passes it to [`Driver::adopt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The slot's number: names of control groups, files and interfaces derive from it.
    pub slot: u32,
    /// The first process, as the host numbers it.
    pub pid: u32,
    /// Its start time in clock ticks since boot (`/proc/PID/stat`, field 22), so that a reused
    /// pid is not mistaken for it.
    pub start_time: u64,
}

/// What a sandbox uses at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time since its start.
    pub cpu_time: Duration,
    /// Memory without reclaimable cache, in bytes.
    pub memory: u64,
    /// Page cache charged to it, in bytes.
    pub memory_cache: u64,
    /// What its writable layer holds, in bytes.
    pub disk: u64,
    /// Processes and threads.
    pub processes: u32,
}

/// How a sandbox's first process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The kernel killed it because the memory limit was reached.
    OutOfMemory,
    /// It ended by itself or was killed; the text says what is known.
    Ended(String),
}

/// A sandbox that is prepared but is nobody's yet. Dropping it releases all that it holds.
#[async_trait::async_trait]
pub trait Prepared: Send + Sync {
    /// The slot that it sits in.
    fn slot(&self) -> &Arc<NetworkSlot>;

    /// Whether it is still alive: a prepared sandbox can be lost while it waits.
    fn is_alive(&self) -> bool;

    /// Does beforehand what its first command would wait for: the guest becomes somebody for a
    /// moment, and runs a shell as `user`. Only for what waits in a pool, and only if nothing else
    /// runs inside: it would run too. After a failure it is to be discarded.
    async fn warm_up(&mut self, user: &str) -> Result<(), DriverError> {
        let _ = user;
        Ok(())
    }

    /// Makes it somebody's; returns when the guest serves. On failure nothing is left.
    async fn start(self: Box<Self>, spec: StartSpec) -> Result<Box<dyn Machine>, DriverError>;

    /// Releases all that it holds, and waits until that is done.
    async fn discard(self: Box<Self>);
}

/// A running sandbox. Dropping it leaves the sandbox running.
#[async_trait::async_trait]
pub trait Machine: Send + Sync {
    /// What to remember of it.
    fn record(&self) -> MachineRecord;

    /// Where the time of preparing and starting it went; nothing for an adopted one.
    fn phases(&self) -> Phases {
        Phases::default()
    }

    /// Returns when its first process has ended, and tells how. May be called repeatedly.
    async fn wait(&self) -> Exit;

    /// What it uses now. Reads files of the kernel only.
    fn usage(&self) -> Result<Usage, DriverError>;

    /// Stops all its processes where they stand, and keeps them in memory. May be repeated.
    async fn freeze(&self) -> Result<(), DriverError> {
        Err(cannot("freeze a sandbox in place", "container"))
    }

    /// Lets it go on after [`Machine::freeze`]. May be repeated.
    async fn thaw(&self) -> Result<(), DriverError> {
        Err(cannot("freeze a sandbox in place", "container"))
    }

    /// Saves its state in `directory`, which must not exist yet. It stands still as short as can
    /// be meanwhile. On failure the directory is gone and the sandbox goes on.
    async fn save(&self, directory: &Path, _: SaveOptions) -> Result<SavedState, DriverError> {
        let _ = directory;
        Err(cannot("save a sandbox's state", "qemu or firecracker"))
    }

    /// Ends all its processes at once and releases all that it holds; returns when nothing is
    /// left. May be called repeatedly.
    async fn destroy(&self) -> Result<(), DriverError>;
}

/// One way of running sandboxes.
#[async_trait::async_trait]
pub trait Driver: Send + Sync + 'static {
    /// Which one.
    fn kind(&self) -> DriverKind;

    /// What it can do here.
    fn capabilities(&self) -> Capabilities;

    /// Does all that needs no knowledge of the sandbox to come, but what it starts from.
    async fn prepare(
        &self,
        slot: Arc<NetworkSlot>,
        plan: &Plan,
    ) -> Result<Box<dyn Prepared>, DriverError>;

    /// Whether a state can be resumed here; if not, the error says why.
    fn check(&self, state: &SavedState) -> Result<(), DriverError> {
        match &state.memory {
            None => Ok(()),
            Some(_) => Err(cannot("resume a state with memory", "qemu or firecracker")),
        }
    }

    /// What would be newer in a state that can be resumed here if it were made again; nothing if it
    /// would be the same.
    fn outdated(&self, _state: &SavedState) -> Vec<String> {
        Vec::new()
    }

    /// Finds a sandbox that ran before this program started; `None` if it is gone.
    async fn adopt(&self, record: &MachineRecord) -> Result<Option<Box<dyn Machine>>, DriverError>;

    /// Removes all that earlier runs of this program left and that belongs to no slot in `keep`:
    /// processes, control groups, mounts, files. Returns what was removed, for the log.
    async fn sweep(&self, keep: &[u32]) -> Result<Vec<String>, DriverError>;

    /// Removes what a preparation in a slot had begun when it was dropped before it was done. For
    /// slots of such preparations only: whatever is there ends.
    async fn clear(&self, slot: u32) -> Result<(), DriverError>;

    /// Ends helpers that the driver started. Sandboxes that still run go on.
    async fn shutdown(&self);
}
