//! Each fault of a controller or a machine ends in the right state, with the right reason.

use super::bench::{Kept, Rack, START};
use bmc::Fault;
use fleet::moment::Span;
use std::time::Duration;

/// A fleet with a machine for each fault, whose work all machines are needed for.
async fn needed(faults: &[&[Fault]]) -> Kept {
    let mut rack = Rack::new(faults.len() as u32 + 1, false).await;
    for (at, faults) in faults.iter().enumerate() {
        rack.bmc.set_faults(&format!("m{}", at + 1), faults);
    }
    for name in &rack.names {
        rack.work.insert(format!("work-{name}"), None);
    }
    rack.schedule();
    Kept::new(rack).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_that_only_stumble_wake_their_machines() {
    let stumbling: [&[Fault]; 5] = [
        &[Fault::Slow(Duration::from_millis(200))],
        &[Fault::WantsTag],
        &[Fault::SaysOff],
        &[Fault::CutAfter],
        &[],
    ];
    let mut kept = needed(&stumbling).await;
    kept.step().await;
    // Sessions end while machines boot, and nobody says so.
    kept.rack.bmc.set_basic(false);
    kept.rack.bmc.end_sessions();
    kept.until("all work", Span::minutes(5), |kept| {
        kept.rack.work.values().all(Option::is_some)
    })
    .await;
    kept.run(Span::minutes(1)).await;
    for name in ["m1", "m2", "m4", "m5"] {
        assert_eq!(kept.rack.told(name), ["On"], "{name}");
    }
    // Who says that it is off is told again, which does nothing to a machine that is on.
    let told = kept.rack.told("m3");
    assert!(
        told.len() <= 3 && told.iter().all(|one| one == "On"),
        "{told:?}"
    );
    for name in ["m1", "m2", "m3", "m4", "m5"] {
        assert_eq!(kept.reason(name), "BlockedByPod", "{name}");
        assert!(
            kept.explained(name).await.contains("work-"),
            "it names the work"
        );
    }
    assert!(kept.rack.bmc.made_sessions() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_do_not_come_are_given_up_and_said_why() {
    let hopeless: [(&[Fault], &str); 5] = [
        (&[Fault::Status(500)], "the service answered 500"),
        (&[Fault::Status(401)], "does not accept user and password"),
        (&[Fault::Cut], "no answer"),
        (&[Fault::IgnoresResets], ""),
        (&[Fault::NeverComesUp], ""),
    ];
    let faults = hopeless.map(|(faults, _)| faults);
    let mut kept = needed(&faults).await;
    kept.run(Span(60)).await;
    for (at, (_, error)) in hopeless.iter().enumerate() {
        let name = format!("m{}", at + 1);
        assert_eq!(kept.reason(&name), "Waking");
        let said = kept.explained(&name).await;
        assert!(said.contains(error), "{name}: {said}");
    }
    // Within Cluster Autoscaler's 15 minutes.
    kept.run(Span::minutes(14)).await;
    for (at, (_, error)) in hopeless.iter().enumerate() {
        let name = format!("m{}", at + 1);
        // The last draws power, so it is being switched off first.
        let expected = match at {
            4 => "CurrentlyBeingDeleted",
            _ => "Quarantined",
        };
        assert_eq!(kept.reason(&name), expected, "{name}");
        let said = kept.explained(&name).await;
        assert!(said.contains(error), "{name}: {said}");
        assert!(!kept.rack.is_up(&name));
    }
    // The one that drew power all the time is not left on: nobody is there to shut it down in order.
    kept.until("m5 is off", Span::minutes(10), |kept| {
        kept.rack.is_off("m5")
    })
    .await;
    assert_eq!(kept.rack.told("m5").last().unwrap(), "ForceOff");
    kept.run(Span(20)).await;
    assert_eq!(kept.reason("m5"), "Quarantined");
    // Mended, they are tried again when their time has come.
    for at in 1..=hopeless.len() {
        kept.rack.bmc.set_faults(&format!("m{at}"), &[]);
    }
    kept.until("all work", Span::minutes(30), |kept| {
        kept.rack.work.values().all(Option::is_some)
    })
    .await;
    kept.rack.nothing_was_taken_from_work();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_do_not_stop_are_forced_or_said_to_stay_on() {
    let stubborn: [&[Fault]; 6] = [
        &[Fault::IgnoresGraceful],
        &[Fault::IgnoresGraceful, Fault::IgnoresForce],
        &[Fault::SaysOff, Fault::IgnoresGraceful],
        &[Fault::SaysOn],
        &[Fault::Status(500)],
        &[],
    ];
    let mut rack = Rack::new(stubborn.len() as u32 + 1, true).await;
    for (at, faults) in stubborn.iter().enumerate() {
        rack.bmc.set_faults(&format!("m{}", at + 1), faults);
    }
    rack.work.insert("work".to_owned(), Some("m0".to_owned()));
    rack.write_demand();
    let mut kept = Kept::new(rack).await;
    kept.until("m6 is off", Span::minutes(5), |kept| kept.rack.is_off("m6"))
        .await;
    assert!(kept.rack.is_up("m1") && kept.rack.is_up("m3"));
    kept.until("m1 and m3 are off", Span::minutes(5), |kept| {
        kept.rack.is_off("m1") && kept.rack.is_off("m3")
    })
    .await;
    for name in ["m1", "m3"] {
        assert_eq!(kept.rack.told(name).last().unwrap(), "ForceOff");
    }
    kept.run(Span::minutes(8)).await;
    // What cannot be switched off is on, says so, and is tried again later.
    for name in ["m2", "m5"] {
        kept.until("it is said", Span::minutes(5), |kept| {
            kept.reason(name) == "RecentlyUnremovable"
        })
        .await;
        assert!(kept.rack.is_up(name));
    }
    let said = kept.explained("m5").await;
    assert!(said.contains("the service answered 500"), "{said}");
    // It is off, and its controller denies it: nobody believes that it is of use.
    assert!(kept.rack.is_off("m4"));
    assert_ne!(kept.reason("m4"), "Unneeded");
    for name in ["m2", "m4", "m5"] {
        kept.rack.bmc.set_faults(name, &[]);
    }
    kept.until("all are off", Span::minutes(30), |kept| {
        ["m2", "m4", "m5"].iter().all(|name| kept.rack.is_off(name))
    })
    .await;
    kept.run(Span::minutes(2)).await;
    assert_eq!(kept.fleet.shared().status().machines["off"], 6);
    assert_eq!(kept.rack.told("m0"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_boots_or_has_another_certificate_is_told_nothing() {
    let mut rack = Rack::new(3, false).await;
    for name in ["m1", "m2"] {
        rack.give_own(name).await;
    }
    for name in ["m0", "m1", "m2"] {
        rack.work.insert(format!("work-{name}"), None);
    }
    rack.schedule();
    let mut kept = Kept::new(rack).await;
    kept.rack.own["m1"].reboot(Duration::from_secs(kept.rack.now.since(START).0 + 180));
    kept.rack.own["m2"].change_certificate().unwrap();
    kept.run(Span(60)).await;
    for (name, error) in [
        ("m1", "no answer"),
        ("m2", "certificate is not the one that is configured"),
    ] {
        assert_eq!(kept.reason(name), "Waking");
        let said = kept.explained(name).await;
        assert!(said.contains(error), "{name}: {said}");
        assert_eq!(kept.rack.told(name), [""; 0]);
    }
    let waited = kept
        .until("m1 is up", Span::minutes(10), |kept| kept.rack.is_up("m1"))
        .await;
    assert!(waited >= Span(120), "{waited}");
    kept.run(Span::minutes(15).minus(waited)).await;
    assert_eq!(kept.reason("m2"), "Quarantined");
    let said = kept.explained("m2").await;
    assert!(said.contains("certificate"), "{said}");
    // The password was never said to whom it is not known.
    assert_eq!(kept.rack.own["m2"].made_sessions(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_does_not_answer_in_time_holds_nobody_up() {
    let mut rack = Rack::new(3, false).await;
    rack.timeout = 2;
    rack.bmc
        .set_faults("m1", &[Fault::Slow(Duration::from_secs(4))]);
    for name in &rack.names {
        rack.work.insert(format!("work-{name}"), None);
    }
    rack.schedule();
    let mut kept = Kept::new(rack).await;
    kept.step().await;
    kept.step().await;
    let said = kept.explained("m1").await;
    assert!(said.contains("no answer within 2 s"), "{said}");
    kept.rack.bmc.set_faults("m1", &[]);
    kept.until("both are up", Span::minutes(5), |kept| {
        kept.rack.is_up("m1") && kept.rack.is_up("m2")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_with_one_network_card_do_not_stay_on_for_one_wish() {
    let mut rack = Rack::new(3, false).await;
    for name in ["m1", "m2"] {
        rack.bmc
            .with(name, |one| one.mac = "02:00:00:00:00:aa".to_owned());
    }
    // m1 is woken by a packet; m2, with a copy of its card, through its controller.
    let off = format!(
        r#"{{ driver = "wake-on-lan", mac = "02-00-00-00-00-AA", broadcast = "{}", off = ["false"] }}"#,
        rack.bmc.cards()
    );
    rack.power.insert("m1".to_owned(), off);
    rack.work.insert("a".to_owned(), Some("m0".to_owned()));
    rack.work.insert("b".to_owned(), None);
    // Whichever is woken, one workload needs one machine.
    rack.write_demand();
    let mut kept = Kept::new(rack).await;
    kept.until("work has its machine", Span::minutes(10), |kept| {
        kept.rack.work["b"].is_some()
    })
    .await;
    kept.run(Span::minutes(20)).await;
    let place = kept.rack.work["b"].clone().unwrap();
    assert!(kept.rack.is_up(&place));
    kept.rack.nothing_was_taken_from_work();
    assert_eq!(place, "m1");
    assert!(kept.rack.told("m2").contains(&"Wake".to_owned()));
    assert!(kept.rack.is_off("m2"), "{:?}", kept.rack.told("m2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_not_needed_now_is_missed_all_the_same() {
    let mut rack = Rack::new(3, true).await;
    for name in ["m0", "m1", "m2"] {
        rack.work
            .insert(format!("work-{name}"), Some(name.to_owned()));
    }
    rack.write_demand();
    let mut kept = Kept::new(rack).await;
    kept.run(Span::minutes(1)).await;
    let trouble = |kept: &Kept| kept.fleet.shared().status().trouble;
    assert!(trouble(&kept).is_empty(), "{:?}", trouble(&kept));
    // Their machines work on, and nobody wants to switch them.
    kept.rack.bmc.set_faults("m1", &[Fault::Status(500)]);
    kept.rack.bmc.set_faults("m2", &[Fault::SaysOff]);
    kept.run(Span::minutes(15)).await;
    let said = trouble(&kept);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with("m1: its controller for ")
            && said[0].ends_with("answered 500 Internal Server Error"),
        "{said:?}"
    );
    assert!(
        said[1].ends_with("says that it is off, though its node answers"),
        "{said:?}"
    );
    assert!(kept.explained("m1").await.contains("answered 500"));
    assert_eq!(kept.fleet.shared().status().controllers_failing, 2);
    for name in ["m1", "m2"] {
        assert_eq!(kept.reason(name), "BlockedByPod");
        kept.rack.bmc.set_faults(name, &[]);
    }
    kept.run(Span::minutes(11)).await;
    assert!(trouble(&kept).is_empty(), "{:?}", trouble(&kept));
}
