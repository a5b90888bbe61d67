//! What the driver asks of its keeper, and what the keeper answers.

use api::boot::{CellClaim, CellSetup};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Raised whenever messages change, so that a newer program replaces an older keeper.
pub(super) const VERSION: u32 = 1;

/// A question with the number under which it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) number: u64,
    pub(super) request: Request,
}

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(super) enum Request {
    /// The first question on a connection.
    Hello {
        version: u32,
    },
    Prepare(Prepare),
    Start(Box<Start>),
    /// Kill a cell if it lives, wait until its processes are gone, forget it.
    Release {
        pid: u32,
    },
}

/// Make a cell. Descriptors: the network namespace, the layer's mount, with `unified` the directory
/// of the control group of version 2, and the files `cgroup.procs` of those of version 1.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Prepare {
    pub(super) slot: u32,
    /// The host's number for root of the cell.
    pub(super) first_id: u32,
    /// Whether it is started inside a control group of version 2.
    pub(super) unified: bool,
    pub(super) setup: CellSetup,
}

/// Make a cell somebody's. Descriptors: none, or the mount of another layer than the prepared.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) pid: u32,
    /// Read-only layers, uppermost first.
    pub(super) layers: Vec<PathBuf>,
    pub(super) claim: CellClaim,
}

/// What the keeper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(super) enum Statement {
    /// The answer to a question.
    Answer { number: u64, answer: Answer },
    /// A cell that was started has ended, unasked.
    Exited { pid: u32, status: Status },
}

/// How a question came out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(super) enum Answer {
    Hello {
        /// Processes of the cells that were started and live.
        pids: Vec<u32>,
    },
    /// With it comes a pidfd.
    Prepared {
        pid: u32,
        start_time: u64,
        phases: Vec<(String, u64)>,
    },
    Started {
        phases: Vec<(String, u64)>,
    },
    /// None if it was not the keeper's child.
    Released {
        status: Option<Status>,
    },
    Failed(Failure),
}

/// Why the keeper could not do something.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(super) enum Failure {
    /// A system call: its error number.
    System { doing: String, error: i32 },
    /// The kernel or the file system cannot do it.
    Unsupported { cause: String, remedy: String },
    /// The guest's own words, or that it ended.
    Guest { message: String },
    /// Another version of the keeper.
    Version { version: u32 },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Code(i32),
    Signal(i32),
}

impl Failure {
    pub(super) fn system(doing: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        Self::System {
            doing: doing.into(),
            error: error.into().raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
