//! The lines of the journal.

use crate::states::StateKey;
use api::{
    SandboxId, Secret,
    node::{CreateSandbox, EndReason, NetworkPolicy, SandboxStatus},
};
use driver::MachineRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The first line of every journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// `atoll-agent`: what kind of file this is.
    pub(crate) journal: String,
    /// [`VERSION`] of the program that wrote it.
    pub(crate) version: u32,
}

/// What [`Header::journal`] says.
pub(crate) const NAME: &str = "atoll-agent";

/// The version of the format. A program reads its own version and those before it.
pub(crate) const VERSION: u32 = 1;

/// One thing that happened, or is about to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub(crate) enum Record {
    /// A sandbox is about to be prepared in this slot.
    Reserved {
        /// The slot's number.
        slot: u32,
    },
    /// Nothing is left in this slot.
    Released {
        /// The slot's number.
        slot: u32,
    },
    /// A sandbox is about to start in this slot.
    Starting {
        /// What was asked for, its tokens included.
        request: Arc<CreateSandbox>,
        /// The token by which the node reads the guest's logs.
        control_token: Secret,
        /// The slot's number.
        slot: u32,
        /// When it was asked for.
        at: Timestamp,
    },
    /// It is usable; written before it is handed out.
    Running {
        /// Which.
        id: SandboxId,
        /// How the driver finds it again.
        machine: MachineRecord,
        /// When it became usable.
        started_at: Timestamp,
        /// When its time is up.
        deadline: Timestamp,
        /// The state whose files it runs on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        origin: Option<StateKey>,
    },
    /// It is about to be saved, or frozen in place. If that fails, it is running again.
    Pausing {
        /// Which.
        id: SandboxId,
        /// Where it is saved. It counts as paused from the moment when that is whole. None if it
        /// is frozen in place.
        state: Option<StateKey>,
        /// Whether with its memory.
        memory: bool,
        /// When.
        at: Timestamp,
    },
    /// It is paused; of one that was saved, nothing but the state is left or will be.
    Paused {
        /// Which.
        id: SandboxId,
    },
    /// It is about to be brought back, in this slot unless it was frozen in place. If that fails,
    /// it is paused again.
    Resuming {
        /// Which.
        id: SandboxId,
        /// The slot's number.
        slot: Option<u32>,
    },
    /// Its time was moved.
    Deadline {
        /// Which.
        id: SandboxId,
        /// When its time is up.
        deadline: Timestamp,
    },
    /// What it may reach was changed.
    Network {
        /// Which.
        id: SandboxId,
        /// What it may reach now.
        policy: NetworkPolicy,
    },
    /// It is about to be ended.
    Stopping {
        /// Which.
        id: SandboxId,
        /// Why.
        reason: EndReason,
    },
    /// Nothing of it is left.
    Ended {
        /// Which.
        id: SandboxId,
        /// Why.
        reason: EndReason,
        /// When.
        at: Timestamp,
        /// How it is remembered, if whoever writes this has it in memory already; it is not
        /// written.
        #[serde(skip)]
        status: Option<Arc<SandboxStatus>>,
    },
    /// One that ended, as compaction writes it: all that is told about it, without its secrets.
    Past {
        /// How it ended and what it was.
        status: Arc<SandboxStatus>,
    },
}

impl Record {
    /// Whether it must survive the death of the machine, as what it speaks of does.
    pub(crate) fn outlives_the_machine(&self) -> bool {
        matches!(self, Self::Paused { .. })
    }
}
