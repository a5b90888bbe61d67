//! The planner: a pure function of inventory, demand, forecast, policy and clock to a plan with
//! reasons.
//!
//! It does no I/O, asks for no time and draws no random numbers: the same situation and memory
//! give the same plan, so that a decision can be replayed and explained, and a policy simulated.
//! A plan is made in this order:
//!
//! 1. [`waiting`]: what waits gets room on machines that are on or on their way, then on machines
//!    that were being emptied.
//! 2. [`waking`]: machines wake for the rest, for minima, and for what [`reserve`] says must be
//!    held ready, with some more where wake-ups may come too late.
//! 3. [`sleeping`]: machines that nothing [holds](gates) are emptied and put to sleep where that
//!    [pays](worth).
//!
//! The policies of others, which ours is compared with, are in [`rivals`].

mod bound;
mod draft;
mod gates;
mod plan;
mod reason;
mod reserve;
mod rivals;
mod rooms;
mod sleeping;
mod waiting;
mod waking;
mod worth;

pub use bound::{Gap, gap, lower_bound};
pub(crate) use plan::Lasting;
pub use plan::{Action, Decision, Memory, Placement, Plan, Situation, Unplaced};
pub use reason::{Change, Reason, Would};

use crate::policy::Kind;
use draft::Draft;
use reserve::Reserve;

/// Decides about every machine. Give it the memory that the plan before left, or an empty one.
pub fn plan(situation: Situation<'_>, memory: &Memory) -> (Plan, Memory) {
    let mut draft = Draft::new(situation, memory);
    match situation.policy.kind {
        Kind::Atoll => {
            let left = waiting::place(&mut draft);
            let left = waiting::undrain(&mut draft, left);
            waking::wake_for(&mut draft, left);
            waking::wake_minimum(&mut draft);
            let reserve = Reserve::of(&draft);
            waking::fill_reserve(&mut draft, &reserve);
            sleeping::retire(&mut draft, &reserve);
            waking::explain_sleepers(&mut draft, &reserve);
        }
        Kind::Threshold => rivals::threshold::plan(&mut draft),
        Kind::ClusterAutoscaler => rivals::cluster_autoscaler::plan(&mut draft),
        Kind::Karpenter => rivals::karpenter::plan(&mut draft),
        Kind::Clock => rivals::clock::plan(&mut draft),
        Kind::AlwaysOn => rivals::always_on::plan(&mut draft),
    }
    draft.finish()
}
