//! Why a decision was made, in words that operators of Kubernetes know, and what would change it.

use crate::{
    amount::{Amount, Resource},
    inventory::{GroupIndex, Inventory, MachineIndex, Moving, SetIndex, WorkloadIndex},
    moment::{Moment, Span},
};
use serde::{Deserialize, Serialize};

/// Why a machine is left, woken, drained or switched off.
///
/// The first eighteen carry the names that the Cluster Autoscaler gives them, with what it does
/// not say: which object blocks, and by how much. The rest are ours.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason")]
pub enum Reason {
    /// Somebody asked for it to be left on.
    ScaleDownDisabledAnnotation,
    /// It is not ready, and the policy leaves such machines alone.
    ScaleDownUnreadyDisabled,
    /// It is a base machine, which is never switched off.
    NotAutoscaled,
    /// It can be done without, but not for long enough yet.
    NotUnneededLongEnough {
        /// For how long it could have been.
        unneeded: Span,
        /// How long is long enough.
        needed: Span,
    },
    /// It is not ready, but not for long enough yet to count as lost.
    NotUnreadyLongEnough {
        /// For how long it has not been ready.
        unready: Span,
        /// How long is long enough.
        needed: Span,
    },
    /// Its group would have too few machines.
    NodeGroupMinSizeReached {
        /// The group.
        group: GroupIndex,
        /// How many it must have.
        minimum: u32,
    },
    /// As many machines of the group are drained or switched off in this plan as may be.
    NodeGroupMaxDeletionCountReached {
        /// The group.
        group: GroupIndex,
        /// How many may be.
        maximum: u32,
    },
    /// Its group sleeps all together, and another machine of it cannot.
    AtomicScaleDownFailed {
        /// The other machine.
        because_of: MachineIndex,
    },
    /// The whole fleet would have too little of a resource awake.
    MinimalResourceLimitExceeded {
        /// The resource.
        resource: Resource,
    },
    /// It is being switched off.
    CurrentlyBeingDeleted,
    /// Its load is worth it: moving its workloads costs more than its sleep saves.
    NotUnderutilized {
        /// What sleeping would save over the time that is looked at, in watt-hours.
        saved_watt_hours: f64,
        /// What moving and the power cycle count, in watt-hours.
        cost_watt_hours: f64,
    },
    /// It can be done without, but machines were woken only just now.
    NotUnneededOtherReason {
        /// When that no longer counts.
        until: Moment,
    },
    /// It could not be emptied a little while ago, and has not been tried again yet.
    RecentlyUnremovable {
        /// When it is tried again.
        until: Moment,
    },
    /// What it carries finds no room elsewhere.
    NoPlaceToMovePods {
        /// The workload without a place, if one was found to be the first.
        workload: Option<WorkloadIndex>,
        /// What is missing in all.
        short: Amount,
    },
    /// A workload must not be moved.
    BlockedByPod {
        /// The workload.
        workload: WorkloadIndex,
        /// Why it must not.
        because: Moving,
    },
    /// It takes no new work, and waits for a workload to be done.
    BlockedByOnCompletionPod {
        /// The workload.
        workload: WorkloadIndex,
    },
    /// Its power is on, but nobody has seen its node.
    NoNodeInfo,
    /// Its workloads ask for more than it has, which should not be.
    UnexpectedError {
        /// How much more.
        excess: Amount,
    },
    /// So many members of a set are missing that no more may be moved.
    DisruptionBudget {
        /// The set.
        set: SetIndex,
        /// The workload that would have to move.
        workload: WorkloadIndex,
    },
    /// Demand is expected to need it before another machine could be there.
    HeldInReserve {
        /// What is to be held ready in its group.
        reserve: Amount,
    },
    /// It is expected to be needed again too soon for a power cycle to pay.
    BreakEven {
        /// For how long it is expected not to be needed.
        idle: Span,
        /// For how long it would have to be.
        needed: Span,
    },
    /// It is on its way.
    Waking,
    /// Workloads wait that fit on it.
    PendingWork {
        /// One of them.
        workload: WorkloadIndex,
    },
    /// One of the machines that are woken may come too late.
    Hedge,
    /// Its group has too few machines, or the fleet too little of something.
    BelowMinimum,
    /// Nobody needs it.
    Unneeded,
    /// It has slept lightly for so long that sleeping deeper pays.
    DeeperSleep,
    /// It is not woken, as it did not come up lately.
    Quarantined {
        /// When it may be tried again.
        until: Moment,
    },
    /// It would be woken, but its group has as many machines on as may be.
    MaxSizeReached {
        /// The group.
        group: GroupIndex,
    },
    /// The clock says so.
    Schedule,
    /// The policy never switches anything off.
    AlwaysOn,
    /// What is asked for could not be read, so nothing is changed.
    DemandUnknown,
    /// Kubernetes' Cluster Autoscaler was promised that it is on.
    Promised {
        /// Since when.
        since: Moment,
    },
    /// Kubernetes' Cluster Autoscaler gave it back.
    GivenBack {
        /// Since when.
        since: Moment,
    },
    /// Kubernetes' Cluster Autoscaler plans its group, and has not asked for it.
    NotAskedFor,
}

impl Reason {
    /// Its name, as metrics and the Cluster Autoscaler write it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ScaleDownDisabledAnnotation => "ScaleDownDisabledAnnotation",
            Self::ScaleDownUnreadyDisabled => "ScaleDownUnreadyDisabled",
            Self::NotAutoscaled => "NotAutoscaled",
            Self::NotUnneededLongEnough { .. } => "NotUnneededLongEnough",
            Self::NotUnreadyLongEnough { .. } => "NotUnreadyLongEnough",
            Self::NodeGroupMinSizeReached { .. } => "NodeGroupMinSizeReached",
            Self::NodeGroupMaxDeletionCountReached { .. } => "NodeGroupMaxDeletionCountReached",
            Self::AtomicScaleDownFailed { .. } => "AtomicScaleDownFailed",
            Self::MinimalResourceLimitExceeded { .. } => "MinimalResourceLimitExceeded",
            Self::CurrentlyBeingDeleted => "CurrentlyBeingDeleted",
            Self::NotUnderutilized { .. } => "NotUnderutilized",
            Self::NotUnneededOtherReason { .. } => "NotUnneededOtherReason",
            Self::RecentlyUnremovable { .. } => "RecentlyUnremovable",
            Self::NoPlaceToMovePods { .. } => "NoPlaceToMovePods",
            Self::BlockedByPod { .. } => "BlockedByPod",
            Self::BlockedByOnCompletionPod { .. } => "BlockedByOnCompletionPod",
            Self::NoNodeInfo => "NoNodeInfo",
            Self::UnexpectedError { .. } => "UnexpectedError",
            Self::DisruptionBudget { .. } => "DisruptionBudget",
            Self::HeldInReserve { .. } => "HeldInReserve",
            Self::BreakEven { .. } => "BreakEven",
            Self::Waking => "Waking",
            Self::PendingWork { .. } => "PendingWork",
            Self::Hedge => "Hedge",
            Self::BelowMinimum => "BelowMinimum",
            Self::Unneeded => "Unneeded",
            Self::DeeperSleep => "DeeperSleep",
            Self::Quarantined { .. } => "Quarantined",
            Self::MaxSizeReached { .. } => "MaxSizeReached",
            Self::Schedule => "Schedule",
            Self::AlwaysOn => "AlwaysOn",
            Self::DemandUnknown => "DemandUnknown",
            Self::Promised { .. } => "Promised",
            Self::GivenBack { .. } => "GivenBack",
            Self::NotAskedFor => "NotAskedFor",
        }
    }

    /// A sentence for people, with the names of the inventory.
    pub fn sentence(&self, inventory: &Inventory, now: Moment) -> String {
        let workload = |index: &WorkloadIndex| match inventory.workload(*index) {
            Some(one) => format!("workload {} ({})", one.name, one.request),
            None => "a workload that has ended".to_owned(),
        };
        let group = |index: &GroupIndex| &inventory.group(*index).name;
        match self {
            Self::ScaleDownDisabledAnnotation => "somebody asked for it to be left on".to_owned(),
            Self::ScaleDownUnreadyDisabled => {
                "it is not ready, and the policy leaves such machines alone".to_owned()
            }
            Self::NotAutoscaled => "it is a base machine, which is never switched off".to_owned(),
            Self::NotUnneededLongEnough { unneeded, needed } => {
                format!("it has been unneeded for {unneeded}, of {needed} that it must be")
            }
            Self::NotUnreadyLongEnough { unready, needed } => {
                format!("it has not been ready for {unready}, of {needed} until it counts as lost")
            }
            Self::NodeGroupMinSizeReached {
                group: one,
                minimum,
            } => {
                format!("its group {} must keep {minimum} machines on", group(one))
            }
            Self::NodeGroupMaxDeletionCountReached {
                group: one,
                maximum,
            } => format!(
                "{maximum} machines of its group {} go to sleep already, as many as may at once",
                group(one)
            ),
            Self::AtomicScaleDownFailed { because_of } => format!(
                "its group sleeps all together, and {} cannot",
                inventory.machine(*because_of).name
            ),
            Self::MinimalResourceLimitExceeded { resource } => {
                format!("the fleet would have too little {resource} awake")
            }
            Self::CurrentlyBeingDeleted => "it is being switched off".to_owned(),
            Self::NotUnderutilized {
                saved_watt_hours,
                cost_watt_hours,
            } => format!(
                "its sleep would save {saved_watt_hours:.0} Wh, and emptying it counts {cost_watt_hours:.0} Wh"
            ),
            Self::NotUnneededOtherReason { until } => format!(
                "machines were woken just now; it is looked at again in {}",
                until.since(now)
            ),
            Self::RecentlyUnremovable { until } => format!(
                "it could not be emptied a little while ago; it is tried again in {}",
                until.since(now)
            ),
            Self::NoPlaceToMovePods {
                workload: Some(index),
                short,
            } => format!(
                "{} finds no room elsewhere; {short} are missing",
                workload(index)
            ),
            Self::NoPlaceToMovePods {
                workload: None,
                short,
            } => format!("what it carries finds no room elsewhere; {short} are missing"),
            Self::BlockedByPod {
                workload: index,
                because,
            } => format!("{} {because}", workload(index)),
            Self::BlockedByOnCompletionPod { workload: index } => {
                format!(
                    "it takes no new work, and {} is not done yet",
                    workload(index)
                )
            }
            Self::NoNodeInfo => "its power is on, but nobody has seen its node".to_owned(),
            Self::UnexpectedError { excess } => {
                format!("its workloads ask for {excess} more than it has")
            }
            Self::DisruptionBudget {
                set,
                workload: index,
            } => format!(
                "{} must stay, as too many members of {} are missing",
                workload(index),
                inventory.sets()[set.at()].name
            ),
            Self::HeldInReserve { reserve } => {
                format!("{reserve} are held ready for demand that is expected")
            }
            Self::BreakEven { idle, needed } => format!(
                "it is expected to be needed again in {idle}, and a power cycle pays from {needed} on"
            ),
            Self::Waking => "it is on its way".to_owned(),
            Self::PendingWork { workload: index } => format!("{} waits", workload(index)),
            Self::Hedge => "one of the machines that wake may come too late".to_owned(),
            Self::BelowMinimum => "its group or the fleet has less awake than it must".to_owned(),
            Self::Unneeded => "nobody needs it".to_owned(),
            Self::DeeperSleep => "it has slept so long that sleeping deeper pays".to_owned(),
            Self::Quarantined { until } => format!(
                "it did not come up; it may be tried again in {}",
                until.since(now)
            ),
            Self::MaxSizeReached { group: one } => {
                format!("its group {} has as many machines on as may be", group(one))
            }
            Self::Schedule => "the clock says so".to_owned(),
            Self::AlwaysOn => "the policy never switches anything off".to_owned(),
            Self::DemandUnknown => {
                "what is asked for could not be read, so nothing is changed".to_owned()
            }
            Self::Promised { since } => format!(
                "Cluster Autoscaler asked for it {} ago and has not given it back",
                now.since(*since)
            ),
            Self::GivenBack { since } => {
                format!("Cluster Autoscaler gave it back {} ago", now.since(*since))
            }
            Self::NotAskedFor => {
                "Cluster Autoscaler plans its group, and has not asked for it".to_owned()
            }
        }
    }
}

/// A change under which a machine would be decided about otherwise: one that is awake would go to
/// sleep, one that sleeps would wake.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Would {
    /// What would have to change; time alone if absent.
    pub change: Option<Change>,
    /// How long after that, at the latest.
    pub after: Span,
}

impl Would {
    /// Time alone.
    pub(crate) const fn wait(after: Span) -> Self {
        Self {
            change: None,
            after,
        }
    }

    /// A change, and then time.
    pub(crate) const fn if_only(change: Change, after: Span) -> Self {
        Self {
            change: Some(change),
            after,
        }
    }

    /// A sentence for people.
    pub fn sentence(&self, inventory: &Inventory, asleep: bool) -> String {
        let verb = if asleep { "wake" } else { "sleep" };
        let change = self.change.map(|change| change.clause(inventory));
        let after = match (self.after, asleep) {
            (Span::ZERO, _) => "at once".to_owned(),
            (after, false) => format!("in {after} at the latest"),
            (after, true) => format!("in {after}"),
        };
        match change {
            Some(clause) => format!("would {verb} {after} if {clause}"),
            None => format!("would {verb} {after} if nothing else changes"),
        }
    }
}

/// What would have to change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// There were this much more room on another machine.
    Room {
        /// How much.
        room: Amount,
    },
    /// A workload were done.
    Gone {
        /// The workload.
        workload: WorkloadIndex,
    },
    /// A workload might be moved.
    MayMove {
        /// The workload.
        workload: WorkloadIndex,
    },
    /// All workloads of the machine were done.
    Empty,
    /// The machine's node were seen and ready.
    Ready,
    /// Nobody asked for it to be left on.
    Released,
    /// It were an `auto` machine.
    Auto,
    /// The group might have so few machines.
    Minimum {
        /// The group.
        group: GroupIndex,
        /// How few.
        machines: u32,
    },
    /// The group might have more machines on.
    Maximum {
        /// The group.
        group: GroupIndex,
    },
    /// The fleet had no minimum.
    NoMinimum,
    /// One more machine might go to sleep in a plan.
    Deletions {
        /// How many may.
        machines: u32,
    },
    /// The group's machines might sleep one by one.
    NotAtomic {
        /// The group.
        group: GroupIndex,
    },
    /// The policy switched off machines that are lost.
    UnreadyAllowed,
    /// A move counted so little.
    MoveCost {
        /// Watt-hours.
        watt_hours: f64,
    },
    /// So many members of a set might be missing.
    Disruptions {
        /// The set.
        set: SetIndex,
        /// How many.
        members: u32,
    },
    /// No more demand were expected than there is.
    NoGrowth,
    /// So much more were asked for.
    Demand {
        /// How much.
        amount: Amount,
    },
    /// Another policy decided.
    OtherPolicy,
}

impl Change {
    fn clause(&self, inventory: &Inventory) -> String {
        let workload = |index: &WorkloadIndex| match inventory.workload(*index) {
            Some(one) => one.name.clone(),
            None => "a workload that has ended".to_owned(),
        };
        match self {
            Self::Room { room } => format!("there were {room} more room elsewhere"),
            Self::Gone { workload: index } => format!("workload {} were done", workload(index)),
            Self::MayMove { workload: index } => {
                format!("workload {} might be moved", workload(index))
            }
            Self::Empty => "all of its workloads were done".to_owned(),
            Self::Ready => "its node were seen and ready".to_owned(),
            Self::Released => "nobody had asked for it to be left on".to_owned(),
            Self::Auto => "its role were `auto`".to_owned(),
            Self::Minimum { group, machines } => format!(
                "group {} might have {machines} machines",
                inventory.group(*group).name
            ),
            Self::Maximum { group } => format!(
                "group {} might have one more machine on",
                inventory.group(*group).name
            ),
            Self::NoMinimum => "the fleet had no minimum".to_owned(),
            Self::Deletions { machines } => format!("{machines} machines might sleep in one plan"),
            Self::NotAtomic { group } => format!(
                "machines of group {} might sleep one by one",
                inventory.group(*group).name
            ),
            Self::UnreadyAllowed => "the policy switched off machines that are lost".to_owned(),
            Self::MoveCost { watt_hours } => {
                format!("moving a workload counted at most {watt_hours:.2} Wh")
            }
            Self::Disruptions { set, members } => format!(
                "{members} members of {} might be missing",
                inventory.sets()[set.at()].name
            ),
            Self::NoGrowth => "no more demand were expected".to_owned(),
            Self::Demand { amount } => format!("{amount} more were asked for"),
            Self::OtherPolicy => "another policy decided".to_owned(),
        }
    }
}
