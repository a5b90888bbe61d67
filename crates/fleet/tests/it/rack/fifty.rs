//! Fifty machines in every kind of trouble at once, looked after by one fleet.

use super::bench::{Kept, Rack, START};
use bmc::{Fault, Power};
use fleet::moment::Span;
use std::time::Duration;

/// How a machine begins, and so what is wanted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// It is on and carries work: whatever happens, it stays on.
    AtWork,
    /// It is off, and work waits for it.
    Needed,
    /// It is on, and nobody needs it.
    Idle,
    /// It is off, and nobody needs it.
    Asleep,
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// On, with work.
    AtWork,
    /// Off, and to be left alone for a while, as it did not come up.
    GivenUp,
    /// Off, as it should be.
    Asleep,
    /// On, as it could not be switched off, which will be tried again.
    Stuck,
    /// Off, which its controller denies: it counts as on and not ready.
    Denied,
}

/// What is wrong besides what the simulator's machines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// Its machine has these faults.
    Faults(&'static [Fault]),
    /// Its controller has signed another certificate for itself.
    SelfSigned,
    /// Its controller boots for three minutes.
    Boots,
    /// Its card has the address of the one that is woken by packets.
    Twin,
    /// It is the one that is woken by packets.
    Packets,
}

use Wrong::{Boots, Faults, Packets, SelfSigned, Twin};

struct Kind {
    count: usize,
    begins: Begins,
    wrong: Wrong,
    ends: Ends,
    /// What is said of it, if anything went wrong.
    says: &'static str,
    /// The last that it was told; nothing if it was told nothing.
    told: Option<&'static str>,
}

const fn kind(
    count: usize,
    begins: Begins,
    wrong: Wrong,
    ends: Ends,
    says: &'static str,
    told: Option<&'static str>,
) -> Kind {
    Kind {
        count,
        begins,
        wrong,
        ends,
        says,
        told,
    }
}

const FINE: Wrong = Faults(&[]);
const SLOW: Wrong = Faults(&[Fault::Slow(Duration::from_millis(60))]);
const BROKEN: Wrong = Faults(&[Fault::Status(500)]);
const DENIED: Wrong = Faults(&[Fault::Status(401)]);
const CUT: Wrong = Faults(&[Fault::Cut]);
const CUT_AFTER: Wrong = Faults(&[Fault::CutAfter]);
const TAGS: Wrong = Faults(&[Fault::WantsTag]);
const SAYS_ON: Wrong = Faults(&[Fault::SaysOn]);
const SAYS_OFF: Wrong = Faults(&[Fault::SaysOff]);
const DEAF: Wrong = Faults(&[Fault::IgnoresResets]);
const DEAD: Wrong = Faults(&[Fault::NeverComesUp]);
const STUBBORN: Wrong = Faults(&[Fault::IgnoresGraceful]);
const STUBBORN_LIAR: Wrong = Faults(&[Fault::SaysOff, Fault::IgnoresGraceful]);
const UNSTOPPABLE: Wrong = Faults(&[Fault::IgnoresGraceful, Fault::IgnoresForce]);

const ON: Option<&str> = Some("On");
const WOKEN: Option<&str> = Some("Wake");
const ASKED: Option<&str> = Some("GracefulShutdown");
const FORCED: Option<&str> = Some("ForceOff");

const NO_USER: &str = "does not accept user and password";
const OUT_OF_ORDER: &str = "the service answered 500";
const LIES: &str = "says that it is off, though its node answers";
const STRANGER: &str = "certificate is not the one";
const SILENT: &str = "no answer";

const KINDS: [Kind; 30] = [
    kind(2, Begins::AtWork, FINE, Ends::AtWork, "", None),
    kind(1, Begins::AtWork, SLOW, Ends::AtWork, "", None),
    kind(1, Begins::AtWork, BROKEN, Ends::AtWork, OUT_OF_ORDER, None),
    kind(1, Begins::AtWork, DENIED, Ends::AtWork, NO_USER, None),
    kind(2, Begins::AtWork, SAYS_OFF, Ends::AtWork, LIES, None),
    kind(1, Begins::AtWork, STUBBORN, Ends::AtWork, "", None),
    kind(1, Begins::AtWork, SelfSigned, Ends::AtWork, STRANGER, None),
    kind(4, Begins::Needed, FINE, Ends::AtWork, "", ON),
    kind(3, Begins::Needed, SLOW, Ends::AtWork, "", ON),
    kind(1, Begins::Needed, TAGS, Ends::AtWork, "", ON),
    kind(1, Begins::Needed, CUT_AFTER, Ends::AtWork, "", ON),
    kind(2, Begins::Needed, SAYS_OFF, Ends::AtWork, LIES, ON),
    kind(2, Begins::Needed, Boots, Ends::AtWork, "", ON),
    kind(1, Begins::Needed, Packets, Ends::AtWork, "", WOKEN),
    kind(2, Begins::Needed, DENIED, Ends::GivenUp, NO_USER, None),
    kind(2, Begins::Needed, BROKEN, Ends::GivenUp, OUT_OF_ORDER, None),
    kind(1, Begins::Needed, CUT, Ends::GivenUp, SILENT, None),
    kind(2, Begins::Needed, SelfSigned, Ends::GivenUp, STRANGER, None),
    kind(1, Begins::Needed, DEAF, Ends::GivenUp, "", ON),
    kind(2, Begins::Needed, DEAD, Ends::GivenUp, "", FORCED),
    kind(4, Begins::Idle, FINE, Ends::Asleep, "", ASKED),
    kind(1, Begins::Idle, SLOW, Ends::Asleep, "", ASKED),
    kind(3, Begins::Idle, STUBBORN, Ends::Asleep, "", FORCED),
    kind(1, Begins::Idle, STUBBORN_LIAR, Ends::Asleep, "", FORCED),
    kind(1, Begins::Idle, Boots, Ends::Asleep, "", ASKED),
    kind(1, Begins::Idle, SAYS_ON, Ends::Denied, "", FORCED),
    kind(1, Begins::Idle, UNSTOPPABLE, Ends::Stuck, "", FORCED),
    kind(2, Begins::Idle, BROKEN, Ends::Stuck, OUT_OF_ORDER, None),
    kind(1, Begins::Idle, DENIED, Ends::Stuck, NO_USER, None),
    kind(1, Begins::Asleep, Twin, Ends::Asleep, "", ASKED),
];

/// All machines, `m0` left out, which carries work and is never switched off.
fn machines() -> impl Iterator<Item = (String, &'static Kind)> {
    let each = KINDS
        .iter()
        .flat_map(|kind| std::iter::repeat_n(kind, kind.count));
    (1..).map(|at| format!("m{at}")).zip(each)
}

async fn rack() -> Rack {
    let count = machines().count() as u32;
    let mut rack = Rack::new(count + 1, false).await;
    rack.work
        .insert("work-m0".to_owned(), Some("m0".to_owned()));
    for (name, kind) in machines() {
        let on = matches!(kind.begins, Begins::AtWork | Begins::Idle);
        rack.bmc.with(&name, |one| {
            if on {
                one.power = Power::On;
            }
            if matches!(kind.wrong, Twin | Packets) {
                one.mac = "02:00:00:00:00:aa".to_owned();
            }
        });
        if matches!(kind.wrong, SelfSigned | Boots) {
            rack.give_own(&name).await;
        }
        if kind.wrong == Packets {
            let cards = rack.bmc.cards();
            let power = format!(
                r#"{{ driver = "wake-on-lan", mac = "02-00-00-00-00-AA", broadcast = "{cards}", off = ["false"] }}"#
            );
            rack.power.insert(name.clone(), power);
        }
        match kind.begins {
            Begins::AtWork => drop(rack.work.insert(format!("work-{name}"), Some(name))),
            Begins::Needed => drop(rack.work.insert(format!("work-{name}"), None)),
            Begins::Idle | Begins::Asleep => drop(rack.small.insert(name)),
        }
    }
    rack.tell_time();
    rack.schedule();
    rack
}

/// In one run of the fleet, while none of them has time for another's trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_machines_in_trouble_at_once_end_where_they_should() {
    let mut kept = Kept::new(rack().await).await;
    let start = kept.rack.now.since(START).0;
    for (name, kind) in machines() {
        match kind.wrong {
            Faults(faults) => kept.rack.bmc.set_faults(&name, faults),
            SelfSigned => kept.rack.own[&name].change_certificate().unwrap(),
            Boots => kept.rack.own[&name].reboot(Duration::from_secs(start + 180)),
            Twin | Packets => {}
        }
    }
    // Long enough for whoever cannot come up or stop to be given up, and too short to try again.
    let end = kept.rack.now.plus(Span::minutes(19));
    while kept.rack.now < end {
        kept.step_by(Span(20)).await;
    }
    let mut wrong = Vec::new();
    for (name, kind) in machines() {
        let (up, off) = (kept.rack.is_up(&name), kept.rack.is_off(&name));
        let (reason, told) = (kept.reason(&name), kept.rack.told(&name));
        let said = kept.explained(&name).await;
        let (state, expected) = match kind.ends {
            Ends::AtWork => (up, "BlockedByPod"),
            Ends::GivenUp => (off, "Quarantined"),
            Ends::Asleep => (off, "Unneeded"),
            Ends::Stuck => (up, "RecentlyUnremovable"),
            Ends::Denied => (off, "NotUnreadyLongEnough"),
        };
        let right = state
            && reason == expected
            && said.contains(kind.says)
            && told.last().map(String::as_str) == kind.told;
        if !right {
            let (begins, faults, ends) = (kind.begins, kind.wrong, kind.ends);
            wrong.push(format!(
                "{name} {begins:?} {faults:?} should end {ends:?}: {reason} up={up} off={off} {told:?} {said}"
            ));
        }
        if kind.begins == Begins::AtWork {
            assert!(told.is_empty(), "{name} carries work: {told:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    kept.rack.nothing_was_taken_from_work();
    assert_eq!(kept.rack.told("m0"), [""; 0]);
}
