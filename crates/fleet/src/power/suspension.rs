//! The ways of a machine into suspension and out of it: the rest of [`super::transition`]'s rules. Pure.
//!
//! ```text
//! awake ──▶ told to suspend ──▶ gone ──▶ suspended ──▶ told to wake ──▶ awake, in the same boot
//!                │                │                         │
//!                ▼                ▼                         ▼
//!        would not suspend     went off           awake, in another boot
//! ```
//!
//! - *told to gone*: the driver accepted it, and the node answers no more. A node that is gone though
//!   nobody accepted to suspend it has crashed: that is no suspension.
//! - *gone to suspended*: whoever can be asked says so; or nobody can, and it stays gone for a while.
//! - *went off*: a driver that can tell says that it is off. What was in its memory is lost.
//! - *would not suspend*: its node still answers, or failing was all that its driver did.
//! - *in another boot*: it was not suspended, whatever was believed. That is learnt from.
//!
//! To switch a suspended machine off it is woken first: its system ends as it should.

use super::{
    Reading, Switch,
    transition::{
        FAILURES, Intent, Next, Observed, Outcome, Patience, Wanted, is_due, may_carry_work,
    },
};

impl Intent {
    /// Takes over from what was wanted before whether the machine is suspended, and in which boot.
    pub(super) fn follow(&mut self, before: &Self) {
        self.asleep = match (before.wanted, before.outcome) {
            (Wanted::Suspended, None | Some(Outcome::Done)) => before.sent.is_some(),
            (_, outcome) => before.asleep && outcome != Some(Outcome::Done),
        };
        if self.asleep {
            self.boot_id.clone_from(&before.boot_id);
        }
    }

    /// Notes whether the boot that the machine came back in is the one that was suspended.
    pub(super) fn note_boot(&mut self, found: Option<&str>) {
        let (Some(before), Some(found)) = (&self.boot_id, found) else {
            return;
        };
        let same = before == found;
        self.resumed = Some(same);
        if !same {
            let error = "it was to be suspended, and came back in another boot: it had crashed or lost its power";
            self.last_error = Some(error.to_owned());
        }
    }
}

/// What comes next for a machine that is to be suspended.
pub(super) fn next_suspended(intent: &Intent, observed: &Observed, patience: &Patience) -> Next {
    let (now, answers) = (observed.now, observed.sight.answers);
    if may_carry_work(intent, observed) {
        return Next::End(Outcome::CarriesWork);
    }
    let late = now.since(intent.since) >= patience.stop;
    if !answers {
        let accepted = intent.sent.is_some() && intent.failures == 0;
        let settled = intent
            .gone_since
            .is_some_and(|since| now.since(since) >= patience.settle);
        return match observed.reading {
            Reading::Off => Next::End(Outcome::WentOff),
            Reading::Suspended => Next::End(Outcome::Done),
            Reading::Unknown if accepted && settled => Next::End(Outcome::Done),
            // However late it is: a while ago nobody may have looked.
            Reading::Unknown if accepted => Next::Wait,
            _ if late || intent.sent.is_none() => Next::End(Outcome::WouldNotSuspend),
            Reading::On | Reading::Changing | Reading::Unknown => Next::Wait,
        };
    }
    if late || intent.failures >= FAILURES {
        return Next::End(Outcome::WouldNotSuspend);
    }
    if !is_due(intent, now, patience) || observed.reading == Reading::Changing {
        return Next::Wait;
    }
    match intent.attempts > FAILURES {
        true => Next::End(Outcome::WouldNotSuspend),
        false => Next::Send(Switch::Suspend),
    }
}

/// What comes next for a suspended machine that is to be off, until its node answers: from then on it is
/// switched off as any other.
pub(super) fn next_off_asleep(intent: &Intent, observed: &Observed, patience: &Patience) -> Next {
    let now = observed.now;
    if may_carry_work(intent, observed) {
        return Next::End(Outcome::CarriesWork);
    }
    let waited = now.since(intent.since).0;
    match observed.reading {
        // A fallback's controller may take a suspended machine for one that is off.
        Reading::Off if intent.driver == 0 || intent.forced => return Next::End(Outcome::Done),
        Reading::Unknown if intent.forced && intent.failures == 0 => {
            return Next::End(Outcome::Done);
        }
        _ => {}
    }
    if waited >= patience.boot.0 + patience.stop.0 {
        return Next::End(Outcome::WouldNotStop);
    }
    if waited >= patience.boot.0 && !intent.forced {
        return Next::Send(Switch::ForceOff);
    }
    if !is_due(intent, now, patience) {
        return Next::Wait;
    }
    match (intent.forced, observed.reading) {
        (true, _) => Next::Send(Switch::ForceOff),
        // It wakes.
        (false, Reading::On | Reading::Changing) if intent.sent.is_some() => Next::Wait,
        (false, _) => Next::Send(Switch::On),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        moment::Moment,
        power::{
            Sight,
            transition::{next, note_result, note_sending, note_sight},
        },
    };
    use proptest::prelude::*;

    fn observed(reading: Reading, answers: bool, carries_work: bool, now: u64) -> Observed {
        let sight = Sight {
            answers,
            carries_work,
        };
        Observed {
            reading,
            sight,
            now: Moment(now),
        }
    }

    /// Looks at a machine without work, and does what comes next; `fails` is what sending brings.
    fn look(intent: &mut Intent, reading: Reading, answers: bool, now: u64, fails: bool) -> Next {
        let seen = observed(reading, answers, false, now);
        note_sight(intent, &seen);
        let next = next(intent, &seen, &Patience::default());
        if let Next::Send(switch) = next {
            note_sending(intent, switch, Moment(now));
            note_result(intent, switch, fails.then(|| "no".to_owned()), 2);
        }
        next
    }

    fn to_suspend() -> Intent {
        let mut intent = Intent::new(Wanted::Suspended, Moment(0));
        let first = look(&mut intent, Reading::Unknown, true, 0, false);
        assert_eq!(first, Next::Send(Switch::Suspend));
        intent
    }

    #[test]
    fn a_machine_is_suspended_when_its_node_stays_gone_after_it_was_told_to() {
        use Reading::Unknown;
        let mut intent = to_suspend();
        assert_eq!(look(&mut intent, Unknown, true, 10, false), Next::Wait);
        assert_eq!(look(&mut intent, Unknown, false, 20, false), Next::Wait);
        let end = look(&mut intent, Unknown, false, 80, false);
        assert_eq!(end, Next::End(Outcome::Done));
        // Nobody looked for an hour: the while that it has to be gone begins then.
        let mut intent = to_suspend();
        assert_eq!(look(&mut intent, Unknown, false, 3600, false), Next::Wait);
        let end = look(&mut intent, Unknown, false, 3660, false);
        assert_eq!(end, Next::End(Outcome::Done));
    }

    #[test]
    fn suspended_is_told_from_off_and_from_crashed() {
        for (reading, end) in [
            (Reading::Suspended, Outcome::Done),
            (Reading::Off, Outcome::WentOff),
        ] {
            let next = look(&mut to_suspend(), reading, false, 10, false);
            assert_eq!(next, Next::End(end));
        }
        // Whoever can be asked says that it is on, and it is silent: it hangs.
        let mut intent = to_suspend();
        assert_eq!(
            look(&mut intent, Reading::On, false, 300, false),
            Next::Wait
        );
        let end = look(&mut intent, Reading::On, false, 600, false);
        assert_eq!(end, Next::End(Outcome::WouldNotSuspend));
        // It was gone before anything was sent, or its driver only ever failed.
        let mut intent = Intent::new(Wanted::Suspended, Moment(0));
        let end = look(&mut intent, Reading::Unknown, false, 0, false);
        assert_eq!(end, Next::End(Outcome::WouldNotSuspend));
        let mut intent = Intent::new(Wanted::Suspended, Moment(0));
        look(&mut intent, Reading::Unknown, true, 0, true);
        assert_eq!(
            look(&mut intent, Reading::Unknown, false, 90, false),
            Next::Wait
        );
        let end = look(&mut intent, Reading::Unknown, false, 600, false);
        assert_eq!(end, Next::End(Outcome::WouldNotSuspend));
    }

    #[test]
    fn who_fails_to_suspend_is_asked_less_and_less_often_and_then_no_more() {
        for fails in [true, false] {
            let mut intent = Intent::new(Wanted::Suspended, Moment(0));
            let (mut sent, mut now) = (Vec::new(), 0);
            let end = loop {
                match look(&mut intent, Reading::Unknown, true, now, fails) {
                    Next::Send(_) => sent.push(now),
                    Next::End(outcome) => break outcome,
                    Next::Wait => {}
                }
                now += 5;
            };
            let pauses: Vec<u64> = sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(pauses.is_sorted() && pauses[0] >= 30, "{pauses:?}");
            assert_eq!(end, Outcome::WouldNotSuspend);
            assert!(sent.len() >= FAILURES as usize, "{sent:?}");
            assert_eq!(intent.driver, 0, "no other driver can do it");
        }
    }

    #[test]
    fn a_suspended_machine_wakes_before_it_is_switched_off() {
        let mut before = to_suspend();
        before.outcome = Some(Outcome::Done);
        let mut intent = Intent::new(Wanted::Off, Moment(1000));
        intent.follow(&before);
        assert!(intent.asleep);
        let silent = |intent: &mut Intent, now| look(intent, Reading::Unknown, false, now, false);
        assert_eq!(silent(&mut intent, 1000), Next::Send(Switch::On));
        assert_eq!(silent(&mut intent, 1010), Next::Wait, "silence is not off");
        assert_eq!(silent(&mut intent, 1030), Next::Send(Switch::On));
        let awake = look(&mut intent, Reading::Unknown, true, 1040, false);
        assert_eq!(awake, Next::Send(Switch::Off));
        assert_eq!(silent(&mut intent, 1060), Next::Wait);
        assert_eq!(silent(&mut intent, 1120), Next::End(Outcome::Done));
        // It never answers: its power is taken away in the end.
        let mut intent = Intent::new(Wanted::Off, Moment(1000));
        intent.follow(&before);
        assert_eq!(silent(&mut intent, 1900), Next::Send(Switch::ForceOff));
        assert_eq!(silent(&mut intent, 1910), Next::End(Outcome::Done));
    }

    #[test]
    fn another_boot_is_no_resumption() {
        let mut before = to_suspend();
        (before.outcome, before.boot_id) = (Some(Outcome::Done), Some("one".to_owned()));
        for (found, resumed) in [
            (Some("one"), Some(true)),
            (Some("two"), Some(false)),
            (None, None),
        ] {
            let mut intent = Intent::new(Wanted::On, Moment(0));
            intent.follow(&before);
            intent.note_boot(found);
            assert_eq!(intent.resumed, resumed);
            assert_eq!(intent.last_error.is_some(), resumed == Some(false));
        }
        // What was woken is not suspended any more; what did not come may still be.
        let mut woken = Intent::new(Wanted::On, Moment(0));
        woken.follow(&before);
        for (outcome, asleep) in [(Outcome::Done, false), (Outcome::NeverCame, true)] {
            woken.outcome = Some(outcome);
            let mut next = Intent::new(Wanted::Off, Moment(0));
            next.follow(&woken);
            assert_eq!(next.asleep, asleep);
        }
    }

    fn reading() -> impl Strategy<Value = Reading> {
        use Reading::{Changing, Off, On, Suspended, Unknown};
        prop::sample::select(vec![On, Off, Suspended, Changing, Unknown])
    }

    proptest! {
        /// Whatever is said: nothing is sent to a machine that carries work, nothing that answers counts as
        /// suspended, everything ends, and only what can be accepted is.
        #[test]
        fn lies_about_suspension_change_nothing_that_matters(
            off in any::<bool>(),
            history in prop::collection::vec((reading(), any::<bool>(), any::<bool>(), any::<bool>()), 420),
        ) {
            let wanted = if off { Wanted::Off } else { Wanted::Suspended };
            let mut intent = Intent::new(wanted, Moment(0));
            intent.asleep = off;
            let mut accepted = false;
            let mut ended = None;
            for (step, (reading, answers, work, fails)) in history.into_iter().enumerate() {
                let seen = observed(reading, answers, work, step as u64 * 5);
                note_sight(&mut intent, &seen);
                match next(&intent, &seen, &Patience::default()) {
                    Next::Send(switch) => {
                        let idle = !work || !answers && intent.sent.is_some();
                        prop_assert!(switch == Switch::On && off || idle);
                        prop_assert_eq!(switch == Switch::Suspend, !off);
                        prop_assert!(off || answers, "what is silent is not told to suspend");
                        note_sending(&mut intent, switch, seen.now);
                        note_result(&mut intent, switch, fails.then(|| "failed".to_owned()), 2);
                        accepted |= !fails;
                    }
                    Next::End(outcome) => {
                        if outcome == Outcome::Done {
                            prop_assert!(!answers, "the node decides");
                            prop_assert!(off || accepted || reading == Reading::Suspended);
                        }
                        ended = Some(outcome);
                        break;
                    }
                    Next::Wait => {}
                }
            }
            prop_assert!(ended.is_some(), "everything ends");
            prop_assert!(intent.attempts <= 14, "{}", intent.attempts);
        }
    }
}
