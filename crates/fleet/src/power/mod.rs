//! Switching machines: what is sent to their management controllers, when, and when it is done.
//!
//! Three parts. [`transition`] is a pure state machine: from what is wanted, what was sent and what
//! is seen it says what comes next. [`drivers`] send one action and read one state. [`executor`]
//! joins them, and writes to the [`journal`] before anything is sent, so that after a crash nothing
//! is sent twice and nothing is forgotten.
//!
//! A controller's word alone never ends anything: a machine is on when its node was seen, and it is
//! off when its node is gone and the controller does not say that it is on. It is suspended when its
//! driver accepted that, its node is gone, and nobody says that it is on or off; whether it really
//! was is seen when it wakes, by the boot that its node is in.

pub mod drivers;
pub mod executor;
pub mod journal;
mod suspension;
pub mod transition;

use std::time::Duration;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Switch {
    /// Switch on. Does nothing to a machine that is on.
    On,
    /// Ask the machine to switch itself off.
    Off,
    /// Take its power away.
    ForceOff,
    /// Ask the machine to suspend itself: it keeps its memory, and wakes as one that is off does.
    Suspend,
}

/// What a management controller says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// The machine is on.
    On,
    /// It is off.
    Off,
    /// It is suspended, and can be told from one that is off.
    Suspended,
    /// It is changing.
    Changing,
    /// There is no way to ask.
    Unknown,
}

/// Why a driver failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PowerError {
    /// User or password are wrong.
    #[error("the controller does not accept user and password")]
    Denied,
    /// It cannot do what was asked.
    #[error("not possible: {0}")]
    Unsupported(String),
    /// It did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It could not be reached, or said something else than was asked.
    #[error("{0}")]
    Failed(String),
}

/// A way to switch one machine. Every call ends within the driver's own deadline.
#[async_trait::async_trait]
pub trait PowerDriver: Send + Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Whether it can suspend the machine.
    fn suspends(&self) -> bool {
        false
    }

    /// Sends an action. That it was accepted means nothing more than that.
    ///
    /// # Errors
    /// When it was refused, or nobody knows whether it arrived.
    async fn switch(&self, switch: Switch) -> Result<(), PowerError>;

    /// Asks for the state.
    ///
    /// # Errors
    /// When it could not be asked.
    async fn read(&self) -> Result<Reading, PowerError>;
}

/// Looks at a machine's node, not at its controller.
#[async_trait::async_trait]
pub trait NodeLook: Send + Sync {
    /// Whether the node answers, and whether it carries work.
    async fn look(&self) -> Sight;

    /// Which boot of its system the node is in, if somebody said how to ask: the same one comes back
    /// from suspension, and another after a crash or a loss of power.
    ///
    /// # Errors
    /// When it did not say.
    async fn boot_id(&self) -> Result<Option<String>, PowerError> {
        Ok(None)
    }
}

/// What was seen of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sight {
    /// Whether the node answers.
    pub answers: bool,
    /// Whether it carries work; if nobody can tell, it does.
    pub carries_work: bool,
}
