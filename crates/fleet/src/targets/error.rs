//! Why a promise was not made, or not taken back. Cluster Autoscaler shows these to people.

use store::StoreError;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// There is no such group.
    #[error("there is no group `{0}` in Atoll's configuration")]
    UnknownGroup(String),
    /// There is no such machine.
    #[error(
        "no machine has the provider id or name `{0}`; compare the node's spec.providerID with `provider_id` in Atoll's configuration"
    )]
    UnknownNode(String),
    /// The machine is another group's.
    #[error("machine `{machine}` belongs to group `{group}`, not to `{asked}`")]
    OtherGroup {
        /// The machine.
        machine: String,
        /// Its group.
        group: String,
        /// The group that was named.
        asked: String,
    },
    /// It is never switched off.
    #[error("machine `{0}` has the role `base` and is never given back")]
    Base(String),
    /// Too few would be left.
    #[error("group `{group}` would have {left} machines, and keeps at least {min}")]
    BelowMin {
        /// The group.
        group: String,
        /// How many would be left.
        left: usize,
        /// How many it keeps.
        min: usize,
    },
    /// There would be too many.
    #[error("group `{group}` would have {wanted} machines, and has at most {max}")]
    AboveMax {
        /// The group.
        group: String,
        /// How many there would be.
        wanted: usize,
        /// How many it has at most.
        max: usize,
    },
    /// Machines that could be woken are short.
    #[error(
        "group `{group}` has {free} machines to wake, not {asked}; {failed} did not come up lately and rest"
    )]
    TooFew {
        /// The group.
        group: String,
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        free: usize,
        /// How many failed lately.
        failed: usize,
    },
    /// The group is switched as a whole.
    #[error("group `{0}` is atomic: all of its machines are woken or given back together")]
    Atomic(String),
    /// A number with the wrong sign.
    #[error("a {what} by {delta} makes no sense: it must be {must}")]
    Delta {
        /// What was asked for.
        what: &'static str,
        /// The number.
        delta: i32,
        /// What it must be.
        must: &'static str,
    },
    /// Machines that are there would be touched.
    #[error(
        "group `{group}` has {open} promises that are not fulfilled, not {asked}; machines that are there are given back by deleting their nodes"
    )]
    Fulfilled {
        /// The group.
        group: String,
        /// How many were asked to be taken back.
        asked: usize,
        /// How many can be.
        open: usize,
    },
    /// Nobody has looked at it since Atoll was started.
    #[error("machine `{0}` was not looked at yet since Atoll was started; try again in a moment")]
    NotSeenYet(String),
    /// Somebody else acts, or has changed the record meanwhile.
    #[error("another instance of Atoll acts for this fleet")]
    NotLeader,
    /// The process ends.
    #[error("Atoll is stopping")]
    Stopping,
    /// The store failed.
    #[error("it could not be written down: {0}")]
    Store(#[from] StoreError),
}
