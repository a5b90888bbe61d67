//! Everything is always on.

use crate::planner::{
    draft::Draft,
    gates,
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
        let carried = draft.inventory().carried(machine).len();
        let later = gates::patience(draft, machine, carried);
        let would = Would::if_only(Change::OtherPolicy, later);
        draft.decide(machine, Decision::keep(Reason::AlwaysOn).unless(would));
    }
}
