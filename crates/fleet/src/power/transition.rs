//! The way of one machine to being on or off: a pure state machine.
//!
//! ```text
//! wanted ──▶ asked ──▶ asked again, later each time ──▶ by the fallback ──▶ failed
//!              │                  │
//!              ▼                  ▼
//!             done ◀────── (off only) forced
//! ```
//!
//! - *wanted to asked*: an action is sent, after it was written down.
//! - *asked to done*: the node was seen (on), or is gone and the controller does not contradict
//!   (off). What the controller says is not enough.
//! - *asked again*: it had no effect for a while that doubles each time.
//! - *forced*: the machine was asked to switch itself off, and did not within its time; or it could not
//!   be asked for twice as long.
//! - *by the fallback*: the driver failed several times in a row, and there is another.
//! - *failed*: the deadline has passed. Whoever planned this hears of it, and plans anew.
//! - *given up* (off only): work has come to the machine. It is never switched off then.

use super::{
    Reading, Sight, Switch,
    suspension::{next_off_asleep, next_suspended},
};
use crate::moment::{Moment, Span};
use serde::{Deserialize, Serialize};

/// What is wanted of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// It is on, and its node answers.
    On,
    /// It is off.
    Off,
    /// It is suspended.
    Suspended,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As wanted.
    Done,
    /// It was told to switch on, and its node never answered.
    NeverCame,
    /// It could not be switched off.
    WouldNotStop,
    /// It carries work, and stays on.
    CarriesWork,
    /// It could not be suspended, and nothing says that it is off.
    WouldNotSuspend,
    /// It was to be suspended, and is off.
    WentOff,
}

/// A machine's way, as it is kept in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What is wanted.
    pub wanted: Wanted,
    /// Since when.
    pub since: Moment,
    /// When something was sent last.
    pub sent: Option<Moment>,
    /// How often something was sent.
    pub attempts: u32,
    /// Since when the machine has been asked to switch itself off: a driver accepted that.
    #[serde(default)]
    pub asked: Option<Moment>,
    /// Whether its power was taken away.
    pub forced: bool,
    /// Which driver is used: 0 is the first, 1 the fallback.
    pub driver: usize,
    /// How often that one failed in a row.
    pub failures: u32,
    /// Since when the node has been gone.
    pub gone_since: Option<Moment>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What went wrong last, for people.
    pub last_error: Option<String>,
    /// Whether the machine was suspended when this was wanted, and was not seen awake since, if it is to
    /// be switched off.
    #[serde(default)]
    pub asleep: bool,
    /// Which boot of its system was suspended, if that can be told.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Whether the machine that woke is in the boot that was suspended, if that can be told.
    #[serde(default)]
    pub resumed: Option<bool>,
}

impl Intent {
    /// Something is wanted from now on, and nothing was done yet.
    pub fn new(wanted: Wanted, now: Moment) -> Self {
        Self {
            wanted,
            since: now,
            sent: None,
            attempts: 0,
            asked: None,
            forced: false,
            driver: 0,
            failures: 0,
            gone_since: None,
            outcome: None,
            last_error: None,
            asleep: false,
            boot_id: None,
            resumed: None,
        }
    }
}

/// How patient one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A machine must be on within this time.
    pub boot: Span,
    /// It must be off within this time.
    pub stop: Span,
    /// It may take so long to switch itself off before it is forced.
    pub graceful: Span,
    /// After this time something is sent again; twice as long each time.
    pub retry: Span,
    /// The node of a machine that nothing can be asked about must be gone for so long.
    pub settle: Span,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // Cluster Autoscaler gives up after 15 minutes: we say so before.
            boot: Span::minutes(14),
            stop: Span::minutes(10),
            graceful: Span::minutes(3),
            retry: Span(30),
            settle: Span::minutes(1),
        }
    }
}

/// A driver that failed so often in a row is left for the fallback, if there is one.
pub(super) const FAILURES: u32 = 3;
/// The time until something is sent again is doubled so often at most.
const DOUBLINGS: u32 = 4;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It ended.
    End(Outcome),
    /// This is sent, by the driver that the intent names, after it was written down.
    Send(Switch),
    /// Nothing, for now.
    Wait,
}

/// What is seen of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// What its controller says.
    pub reading: Reading,
    /// What was seen of its node.
    pub sight: Sight,
    /// When.
    pub now: Moment,
}

/// What comes next for a machine.
pub fn next(intent: &Intent, observed: &Observed, patience: &Patience) -> Next {
    if let Some(outcome) = intent.outcome {
        return Next::End(outcome);
    }
    match intent.wanted {
        Wanted::On => next_on(intent, observed, patience),
        Wanted::Off if intent.asleep => next_off_asleep(intent, observed, patience),
        Wanted::Off => next_off(intent, observed, patience),
        Wanted::Suspended => next_suspended(intent, observed, patience),
    }
}

fn next_on(intent: &Intent, observed: &Observed, patience: &Patience) -> Next {
    let now = observed.now;
    if observed.sight.answers {
        return Next::End(Outcome::Done);
    }
    if now.since(intent.since) >= patience.boot {
        return Next::End(Outcome::NeverCame);
    }
    let due = is_due(intent, now, patience);
    match observed.reading {
        // It boots, or the controller is wrong: it is told once more when half of the time is over.
        Reading::On | Reading::Changing => {
            let late = now.since(intent.since).0 >= patience.boot.0 / 2;
            if due && (intent.sent.is_none() || late && intent.attempts < 2) {
                Next::Send(Switch::On)
            } else {
                Next::Wait
            }
        }
        Reading::Off | Reading::Suspended | Reading::Unknown if due => Next::Send(Switch::On),
        Reading::Off | Reading::Suspended | Reading::Unknown => Next::Wait,
    }
}

fn next_off(intent: &Intent, observed: &Observed, patience: &Patience) -> Next {
    let now = observed.now;
    if may_carry_work(intent, observed) {
        return Next::End(Outcome::CarriesWork);
    }
    let gone = intent.gone_since.filter(|_| !observed.sight.answers);
    match observed.reading {
        Reading::Off if !observed.sight.answers => return Next::End(Outcome::Done),
        Reading::Unknown
            if intent.sent.is_some()
                && gone.is_some_and(|since| now.since(since) >= patience.settle) =>
        {
            return Next::End(Outcome::Done);
        }
        // It was told, and is gone: nobody is there to be told again.
        Reading::Unknown if intent.sent.is_some() && intent.failures == 0 && gone.is_some() => {
            return Next::Wait;
        }
        _ => {}
    }
    if now.since(intent.since) >= patience.stop {
        return Next::End(Outcome::WouldNotStop);
    }
    if intent.sent.is_none() {
        return Next::Send(Switch::Off);
    }
    // Who could not be asked, as its controller does not answer, is given twice the time.
    let too_long = match intent.asked {
        Some(asked) => now.since(asked) >= patience.graceful,
        None => now.since(intent.since).0 >= patience.graceful.0 * 2,
    };
    if too_long && !intent.forced {
        return Next::Send(Switch::ForceOff);
    }
    if !is_due(intent, now, patience) || observed.reading == Reading::Changing {
        return Next::Wait;
    }
    Next::Send(if intent.forced {
        Switch::ForceOff
    } else {
        Switch::Off
    })
}

/// Whether the machine may carry work: before anything was sent, a node that nobody can see may too.
pub(super) fn may_carry_work(intent: &Intent, observed: &Observed) -> bool {
    observed.sight.carries_work && (observed.sight.answers || intent.sent.is_none())
}

/// Whether it is time to send something again.
pub(super) fn is_due(intent: &Intent, now: Moment, patience: &Patience) -> bool {
    intent.sent.is_none_or(|sent| {
        let doublings = intent.attempts.saturating_sub(1).min(DOUBLINGS);
        now.since(sent).0 >= patience.retry.0 << doublings
    })
}

/// Notes what was seen.
pub fn note_sight(intent: &mut Intent, observed: &Observed) {
    if observed.sight.answers {
        intent.gone_since = None;
        if intent.asleep && intent.wanted == Wanted::Off {
            // It was woken, and is switched off as any other from now on.
            *intent = Intent::new(Wanted::Off, observed.now);
        }
    } else {
        intent.gone_since.get_or_insert(observed.now);
    }
}

/// Notes that something is about to be sent: written to the journal before it is.
pub fn note_sending(intent: &mut Intent, switch: Switch, now: Moment) {
    intent.sent = Some(now);
    intent.attempts = intent.attempts.saturating_add(1);
    intent.forced |= switch == Switch::ForceOff;
}

/// Notes what became of what was sent; the next attempt may be another driver's.
pub fn note_result(intent: &mut Intent, switch: Switch, error: Option<String>, drivers: usize) {
    match error {
        None => {
            intent.failures = 0;
            intent.last_error = None;
            if switch != Switch::On {
                intent.asked = intent.asked.or(intent.sent);
            }
        }
        Some(error) => {
            intent.failures = intent.failures.saturating_add(1);
            intent.last_error = Some(error);
            // No fallback suspends.
            if intent.failures >= FAILURES && drivers > 1 && switch != Switch::Suspend {
                intent.driver = (intent.driver + 1) % drivers;
                intent.failures = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observed(reading: Reading, answers: bool, carries_work: bool, now: u64) -> Observed {
        Observed {
            reading,
            sight: Sight {
                answers,
                carries_work,
            },
            now: Moment(now),
        }
    }

    fn check(intent: &Intent, reading: Reading, answers: bool, now: u64, expected: Next) {
        let seen = observed(reading, answers, false, now);
        assert_eq!(next(intent, &seen, &Patience::default()), expected);
    }

    #[test]
    fn a_machine_is_on_when_its_node_answers_and_not_before() {
        let mut intent = Intent::new(Wanted::On, Moment(0));
        check(&intent, Reading::Off, false, 0, Next::Send(Switch::On));
        note_sending(&mut intent, Switch::On, Moment(0));
        check(&intent, Reading::On, false, 60, Next::Wait);
        check(&intent, Reading::Off, false, 10, Next::Wait);
        check(&intent, Reading::Off, false, 40, Next::Send(Switch::On));
        check(&intent, Reading::Off, true, 50, Next::End(Outcome::Done));
        check(
            &intent,
            Reading::On,
            false,
            840,
            Next::End(Outcome::NeverCame),
        );
    }

    #[test]
    fn a_controller_that_says_on_too_early_is_asked_once_more() {
        let mut intent = Intent::new(Wanted::On, Moment(0));
        check(&intent, Reading::On, false, 0, Next::Send(Switch::On));
        note_sending(&mut intent, Switch::On, Moment(0));
        check(&intent, Reading::On, false, 300, Next::Wait);
        check(&intent, Reading::On, false, 430, Next::Send(Switch::On));
        note_sending(&mut intent, Switch::On, Moment(430));
        check(&intent, Reading::On, false, 700, Next::Wait);
    }

    #[test]
    fn a_machine_that_ignores_being_asked_is_forced() {
        let mut intent = Intent::new(Wanted::Off, Moment(0));
        check(&intent, Reading::On, true, 0, Next::Send(Switch::Off));
        note_sending(&mut intent, Switch::Off, Moment(0));
        note_result(&mut intent, Switch::Off, None, 1);
        check(&intent, Reading::On, true, 10, Next::Wait);
        check(
            &intent,
            Reading::On,
            true,
            180,
            Next::Send(Switch::ForceOff),
        );
        note_sending(&mut intent, Switch::ForceOff, Moment(180));
        check(&intent, Reading::Off, false, 190, Next::End(Outcome::Done));
    }

    #[test]
    fn a_machine_that_could_not_be_asked_is_not_forced_at_once() {
        let mut intent = Intent::new(Wanted::Off, Moment(0));
        for at in [0, 30, 90] {
            check(&intent, Reading::Unknown, true, at, Next::Send(Switch::Off));
            note_sending(&mut intent, Switch::Off, Moment(at));
            note_result(&mut intent, Switch::Off, Some("no answer".into()), 1);
        }
        // The controller is back: the machine has its time from when it was asked.
        check(&intent, Reading::On, true, 210, Next::Send(Switch::Off));
        note_sending(&mut intent, Switch::Off, Moment(210));
        let never = intent.clone();
        note_result(&mut intent, Switch::Off, None, 1);
        check(&intent, Reading::On, true, 380, Next::Wait);
        check(
            &intent,
            Reading::On,
            true,
            390,
            Next::Send(Switch::ForceOff),
        );
        check(&never, Reading::On, true, 360, Next::Send(Switch::ForceOff));
    }

    #[test]
    fn a_controller_that_says_off_while_the_node_answers_is_not_believed() {
        let mut intent = Intent::new(Wanted::Off, Moment(0));
        note_sending(&mut intent, Switch::Off, Moment(0));
        note_result(&mut intent, Switch::Off, None, 1);
        check(&intent, Reading::Off, true, 20, Next::Wait);
        check(
            &intent,
            Reading::Off,
            true,
            200,
            Next::Send(Switch::ForceOff),
        );
        intent.forced = true;
        check(
            &intent,
            Reading::Off,
            true,
            700,
            Next::End(Outcome::WouldNotStop),
        );
    }

    #[test]
    fn what_cannot_be_asked_is_off_when_its_node_is_gone_for_a_while() {
        let mut intent = Intent::new(Wanted::Off, Moment(0));
        note_sending(&mut intent, Switch::Off, Moment(0));
        intent.gone_since = Some(Moment(20));
        check(&intent, Reading::Unknown, false, 25, Next::Wait);
        check(
            &intent,
            Reading::Unknown,
            false,
            80,
            Next::End(Outcome::Done),
        );
    }

    #[test]
    fn the_fallback_comes_after_three_failures() {
        let mut intent = Intent::new(Wanted::On, Moment(0));
        for _ in 0..2 {
            note_result(&mut intent, Switch::On, Some("no".into()), 2);
            assert_eq!(intent.driver, 0);
        }
        note_result(&mut intent, Switch::On, Some("no".into()), 2);
        assert_eq!((intent.driver, intent.failures), (1, 0));
    }

    fn reading() -> impl Strategy<Value = Reading> {
        prop::sample::select(vec![
            Reading::On,
            Reading::Off,
            Reading::Changing,
            Reading::Unknown,
        ])
    }

    proptest! {
        /// Whatever a controller says, and however it changes its mind: nothing is sent to switch
        /// off a machine that carries work, everything ends, and sending gets rarer.
        #[test]
        fn a_lying_controller_changes_nothing_that_matters(
            on in any::<bool>(),
            history in prop::collection::vec((reading(), any::<bool>(), any::<bool>(), any::<bool>()), 200),
        ) {
            let wanted = if on { Wanted::On } else { Wanted::Off };
            let mut intent = Intent::new(wanted, Moment(0));
            let patience = Patience::default();
            let mut ended = None;
            for (step, (reading, answers, work, fails)) in history.into_iter().enumerate() {
                let seen = observed(reading, answers, work, step as u64 * 5);
                note_sight(&mut intent, &seen);
                match next(&intent, &seen, &patience) {
                    Next::Send(switch) => {
                        let idle = !work || !answers && intent.sent.is_some();
                        prop_assert!(switch == Switch::On || idle);
                        prop_assert_eq!(switch == Switch::On, on);
                        note_sending(&mut intent, switch, seen.now);
                        note_result(&mut intent, switch, fails.then(|| "failed".to_owned()), 2);
                    }
                    Next::End(outcome) => {
                        if outcome == Outcome::Done {
                            prop_assert_eq!(answers, on, "the node decides, not the controller");
                        }
                        ended = Some(outcome);
                        break;
                    }
                    Next::Wait => {}
                }
            }
            prop_assert!(ended.is_some(), "everything ends");
            prop_assert!(intent.attempts <= 12, "{}", intent.attempts);
        }
    }
}
