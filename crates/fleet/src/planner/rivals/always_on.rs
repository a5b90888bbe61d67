//! Everything is always on.

use crate::moment::Span;
use crate::planner::{
    draft::Draft,
    plan::Decision,
    reason::{Change, Reason, Would},
    waiting, waking,
};

pub(crate) fn plan(draft: &mut Draft<'_>) {
    let left = waiting::place(draft);
    waking::wake_for(draft, left);
    for machine in waking::preferred(draft, None) {
        if draft.may_grow(draft.inventory().machine(machine).group) {
            waking::wake(draft, machine, Reason::AlwaysOn);
        }
    }
    for machine in super::candidates(draft) {
        let would = Would::if_only(Change::OtherPolicy, Span::ZERO);
        draft.decide(machine, Decision::keep(Reason::AlwaysOn).unless(would));
    }
}
