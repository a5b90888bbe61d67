//! The book and the view, step by step.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::simulation::{NOW, Station, write};
use super::*;

fn book() -> Book {
    Book::new(Identity::from_seed([9; 32]), BookOptions::default(), NOW)
}

fn token(book: &mut Book, allows: NewToken) -> Token {
    let plan = book
        .new_token(allows, "http://192.0.2.1:3000", NOW)
        .unwrap();
    write(book, plan)
}

fn joined(book: &mut Book, seed: u8, token: &Token) -> Station {
    let mut station = Station::new(seed, book.key());
    let plan = book.join(&station.request(token), NOW).unwrap();
    let answer = write(book, plan);
    let voucher = answer.voucher.verify(&book.key()).unwrap();
    assert_eq!(voucher.identity, station.identity.public());
    station.name = voucher.name;
    station
}

fn reusable() -> NewToken {
    NewToken {
        reuse: true,
        ..NewToken::default()
    }
}

fn deliver(book: &mut Book, station: &mut Station) -> Applied {
    let frame = book.frame(station.view.cursor()).unwrap();
    station
        .view
        .apply(&serde_json::from_str(&frame).unwrap())
        .unwrap()
}

#[test]
fn a_token_survives_text_and_its_secret_is_nowhere_else() {
    let mut book = book();
    let plan = book
        .new_token(NewToken::default(), "https://atoll.example.com", NOW)
        .unwrap();
    let token = plan.answer.clone();
    let again: Token = format!(" {}\n", token.expose()).parse().unwrap();
    assert_eq!(again, token);
    let Write::Put(_, kept) = &plan.writes[0] else {
        panic!("a token is written");
    };
    let kept = String::from_utf8(kept.clone()).unwrap();
    let secret = URL_SAFE_NO_PAD.encode(token.secret);
    let digest = ring::digest::digest(&ring::digest::SHA256, &token.secret);
    for kept in [kept, format!("{token:?}")] {
        assert!(!kept.contains(&secret), "{kept}");
        assert!(!kept.contains(&URL_SAFE_NO_PAD.encode(digest)), "{kept}");
    }
    // What joining shows is no secret either.
    let shown = serde_json::to_string(&token.admission(book.key())).unwrap();
    assert!(!shown.contains(&secret), "{shown}");
    write(&mut book, plan);
    for broken in [
        "",
        "atm_",
        "atm_AAAA",
        &token.expose()[..60],
        &token.expose()[4..],
    ] {
        assert!(broken.parse::<Token>().is_err(), "{broken}");
    }
}

#[test]
fn a_token_for_one_lets_one_in_however_often_it_asks() {
    let mut book = book();
    let once = token(&mut book, NewToken::default());
    let station = joined(&mut book, 1, &once);
    let head = book.head();
    let plan = book
        .join(&station.request(&once), NOW + 1_000_000_000)
        .unwrap();
    assert!(plan.writes.is_empty());
    assert_eq!(book.head(), head);
    let other = Station::new(2, book.key());
    assert_eq!(
        book.join(&other.request(&once), NOW).unwrap_err(),
        Refusal::UsedUp
    );
    let many = token(&mut book, reusable());
    joined(&mut book, 2, &many);
    let late = Station::new(3, book.key()).request(&many);
    assert_eq!(
        book.join(&late, NOW + 86_400_000).unwrap_err(),
        Refusal::Expired
    );
    let mut wrong = late.clone();
    wrong.admission = Station::new(3, book.key()).request(&once).admission;
    assert_eq!(book.join(&wrong, NOW).unwrap_err(), Refusal::Token);
    // Another's admission, read on its way, is good for nobody else.
    wrong.admission = Station::new(4, book.key()).request(&many).admission;
    assert_eq!(book.join(&wrong, NOW).unwrap_err(), Refusal::Token);
    let plan = book.remove_token(&many.id).unwrap();
    write(&mut book, plan);
    assert_eq!(book.join(&late, NOW).unwrap_err(), Refusal::Token);
}

#[test]
fn a_node_cannot_name_the_key_of_another() {
    let mut book = book();
    let many = token(&mut book, reusable());
    joined(&mut book, 1, &many);
    let one = Station::new(1, book.key());
    let mut two = joined(&mut book, 2, &many);
    two.wireguard = one.wireguard.clone();
    two.epoch += 1;
    assert!(matches!(
        book.update(&two.record()).unwrap_err(),
        Refusal::Invalid(_)
    ));
    let mut three = Station::new(3, book.key());
    three.wireguard = one.wireguard.clone();
    assert!(matches!(
        book.join(&three.request(&many), NOW).unwrap_err(),
        Refusal::Invalid(_)
    ));
    // Nor as the one that it uses next or now; its own it may.
    let said = two.record().verify(&two.identity.public()).unwrap();
    let text = serde_json::to_string(&said).unwrap();
    assert!(
        !text.contains("renewal"),
        "older nodes' records are as they were"
    );
    let key = |seed| crate::PrivateKey::from_bytes([seed; 32]).public();
    let claim = |present, next| {
        two.identity.sign(&NodeRecord {
            wireguard: key(77),
            renewal: Some(Renewal { present, next }),
            ..said.clone()
        })
    };
    for (present, next, refused) in [
        (None, Some(said.wireguard), true),
        (Some(said.wireguard), None, true),
        (Some(key(77)), Some(key(78)), false),
    ] {
        let answer = book.update(&claim(present, next));
        assert_eq!(answer.is_err(), refused, "{present:?} {next:?}");
    }
    // Once it is free, it is anybody's.
    let plan = book.revoke(&one.identity.public().to_string()).unwrap();
    write(&mut book, plan);
    assert!(book.update(&two.record()).is_ok());
}

#[test]
fn no_two_nodes_share_a_name_or_an_address() {
    let mut book = book();
    let many = token(&mut book, reusable());
    for seed in 1..20 {
        joined(&mut book, seed, &many);
    }
    let members = book.members();
    let set = |of: &dyn Fn(&MemberStatus) -> String| {
        members
            .iter()
            .map(of)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert_eq!(set(&|m| m.voucher.name.clone()), 19);
    assert_eq!(set(&|m| m.voucher.v4.to_string()), 19);
    assert_eq!(set(&|m| m.voucher.v6.to_string()), 19);
    let range = overlay_v6_range(&book.key());
    assert!(members.iter().all(|m| range.contains(m.voucher.v6.into())));
}

#[test]
fn a_forged_or_replayed_record_is_refused() {
    let mut book = book();
    let many = token(&mut book, reusable());
    let mut station = joined(&mut book, 1, &many);
    let mut watcher = joined(&mut book, 2, &many);
    deliver(&mut book, &mut watcher);

    let old = station.record();
    station.rotate();
    let new = station.record();
    let plan = book.update(&new).unwrap();
    write(&mut book, plan);
    assert_eq!(book.update(&old).unwrap_err(), Refusal::Replayed);
    assert!(book.update(&new).unwrap().writes.is_empty());
    let stranger = Station::new(7, book.key());
    assert_eq!(
        book.update(&stranger.record()).unwrap_err(),
        Refusal::Unknown("node")
    );

    // One that names the station but was signed by another, and one that was changed.
    let mut said = stranger.say();
    said.identity = station.identity.public();
    assert_eq!(
        book.update(&stranger.identity.sign(&said)).unwrap_err(),
        Refusal::Forged
    );
    let changed = serde_json::to_string(&new)
        .unwrap()
        .replace("192.0.2.1", "192.0.2.9");
    let changed = serde_json::from_str(&changed).unwrap();
    assert_ne!(new, changed);
    assert_eq!(book.update(&changed).unwrap_err(), Refusal::Forged);

    // The view does not take an old frame, one by another, or one with a gap.
    let frame = book.frame(watcher.view.cursor()).unwrap();
    let frame: Signed<Frame> = serde_json::from_str(&frame).unwrap();
    watcher.view.apply(&frame).unwrap();
    let cursor = watcher.view.cursor();
    assert!(matches!(
        watcher.view.apply(&frame),
        Err(ViewError::Gap { .. })
    ));
    let forged = stranger.identity.sign(&Frame {
        from: Some(cursor),
        to: cursor + 1,
        changes: vec![Change::Gone(station.identity.public())],
        services: None,
    });
    assert_eq!(watcher.view.apply(&forged), Err(ViewError::Forged));
    let by_coordinator = Identity::from_seed([9; 32]);
    let back = by_coordinator.sign(&Frame {
        from: None,
        to: cursor - 1,
        changes: Vec::new(),
        services: None,
    });
    assert!(matches!(
        watcher.view.apply(&back),
        Err(ViewError::Old { .. })
    ));

    // Not even the coordinator can hand out an old record, or one that it made up.
    let known = watcher
        .view
        .node(&station.identity.public())
        .unwrap()
        .clone();
    assert_eq!(known.record.wireguard, station.wireguard.public());
    let with = |record| {
        let entry = Entry {
            voucher: known.entry.voucher.clone(),
            record,
        };
        vec![Change::Node(Box::new(entry))]
    };
    for record in [old, by_coordinator.sign(&station.say())] {
        let to = watcher.view.cursor() + 1;
        let frame = by_coordinator.sign(&Frame {
            from: Some(to - 1),
            to,
            changes: with(record),
            services: None,
        });
        assert_eq!(watcher.view.apply(&frame).unwrap().refused, 1);
        assert_eq!(watcher.view.node(&station.identity.public()), Some(&known));
    }
}

#[test]
fn a_text_signed_for_one_purpose_is_none_of_another() {
    let identity = Identity::generate().unwrap();
    let request = WatchRequest {
        identity: identity.public(),
        cursor: 0,
        at_ms: NOW,
    };
    let signed = serde_json::to_string(&identity.sign(&request)).unwrap();
    let as_frame: Signed<Frame> = serde_json::from_str(&signed).unwrap();
    assert!(as_frame.verify(&identity.public()).is_err());
    let again = Identity::from_base64(&identity.to_base64()).unwrap();
    assert_eq!(again.public(), identity.public());
    assert_eq!(format!("{identity:?}"), "Identity(…)");
}

#[test]
fn a_node_goes_on_where_it_was_unless_the_log_no_longer_reaches_back() {
    let options = BookOptions {
        log: 5,
        ..BookOptions::default()
    };
    let mut book = Book::new(Identity::from_seed([9; 32]), options, NOW);
    let many = token(&mut book, reusable());
    let mut stations: Vec<_> = (1..4).map(|seed| joined(&mut book, seed, &many)).collect();
    assert!(deliver(&mut book, &mut stations[0]).whole);
    joined(&mut book, 9, &many);
    let cache = stations[0].view.to_cache();
    stations[0].view = View::from_cache(book.key(), &cache);
    assert!(!deliver(&mut book, &mut stations[0]).whole);
    assert_eq!(stations[0].view.nodes().count(), 4);
    assert!(book.frame(stations[0].view.cursor()).is_none());
    for _ in 0..6 {
        stations[1].rotate();
        let plan = book.update(&stations[1].record()).unwrap();
        write(&mut book, plan);
    }
    assert!(deliver(&mut book, &mut stations[0]).whole);
    // A spoilt cache is no cache.
    let spoilt = cache.replace("192.0.2.", "192.0.3.");
    assert_eq!(View::from_cache(book.key(), &spoilt).cursor(), 0);
}

#[test]
fn a_revoked_node_is_out_for_good() {
    let mut book = book();
    let many = token(&mut book, reusable());
    let mut out = joined(&mut book, 1, &many);
    let mut peer = joined(&mut book, 2, &many);
    deliver(&mut book, &mut peer);
    assert_eq!(book.revoke("nobody").unwrap_err(), Refusal::Unknown("node"));
    let plan = book.revoke(&out.name).unwrap();
    write(&mut book, plan);
    assert!(!deliver(&mut book, &mut peer).whole);
    assert!(peer.view.node(&out.identity.public()).is_none());
    let asks = out.watch();
    assert_eq!(book.hear(&asks, NOW).unwrap_err(), Refusal::Revoked);
    let farewell = book.farewell(&asks).unwrap().verify(&book.key()).unwrap();
    assert!(farewell.revoked && farewell.identity == out.identity.public());
    assert!(book.farewell(&peer.watch()).is_none());
    assert_eq!(
        book.join(&out.request(&many), NOW).unwrap_err(),
        Refusal::Revoked
    );
    out.rotate();
    assert_eq!(book.update(&out.record()).unwrap_err(), Refusal::Revoked);
}

#[test]
fn a_request_for_changes_is_good_once_and_near_the_time() {
    let mut book = book();
    let many = token(&mut book, reusable());
    let mut station = joined(&mut book, 1, &many);
    let request = station.watch();
    book.hear(&request, NOW).unwrap();
    assert_eq!(book.hear(&request, NOW).unwrap_err(), Refusal::Replayed);
    let next = station.watch();
    assert_eq!(
        book.hear(&next, NOW + 3_600_000).unwrap_err(),
        Refusal::Clock(3599)
    );
    // Ten minutes are nothing.
    book.hear(&next, NOW + 600_000).unwrap();
}

#[test]
fn an_ephemeral_node_is_forgotten_once_it_vanished_and_no_other() {
    let mut book = book();
    let ephemeral = token(
        &mut book,
        NewToken {
            ephemeral: true,
            reuse: true,
            ..NewToken::default()
        },
    );
    let lasting = token(&mut book, reusable());
    let mut station = joined(&mut book, 1, &ephemeral);
    joined(&mut book, 2, &lasting);
    // It joined and has not had a map yet: it is given time.
    assert!(book.sweep(NOW + 300_000).is_none());
    deliver(&mut book, &mut station);
    book.hear(&station.watch(), NOW).unwrap();
    assert!(book.sweep(NOW + 80_000).is_none());
    book.still_there(&station.identity.public(), NOW + 80_000)
        .unwrap();
    assert!(book.sweep(NOW + 160_000).is_none());
    let plan = book.sweep(NOW + 300_000).unwrap();
    assert_eq!(write(&mut book, plan), station.identity.public());
    assert!(book.sweep(NOW + 10_000_000_000).is_none());
    assert_eq!(book.members().len(), 1);
}

#[test]
fn a_policy_with_a_failing_test_is_not_taken() {
    let mut book = book();
    let Refusal::Policy(mistakes) = book
        .set_policy("[[test]]\nfrom = [\"tag:a\"]\nto = [\"tag:b\"]\nport = \"tcp/1\"\nexpect = \"allow\"\n")
        .unwrap_err()
    else {
        panic!("it is the policy's fault");
    };
    assert_eq!(mistakes[0].line, 1);
    assert!(book.policy().is_none());
    let plan = book.set_policy("").unwrap();
    write(&mut book, plan);
    assert_eq!(book.policy(), Some(""));
}

#[test]
fn names_become_labels() {
    for (text, expected) in [
        ("Web_1.example.com", "web-1"),
        ("--a--", "a"),
        ("ü", "node"),
        ("", "node"),
        (&"x".repeat(80), &"x".repeat(56)),
    ] {
        assert_eq!(label(text), expected);
    }
}

const TWO_SERVICES: &str = r#"
[services.db]
nodes = ["tag:db"]
ports = ["tcp/5432"]

[services.web]
nodes = ["tag:web"]
ports = ["tcp/80"]
"#;

/// The addresses of services as a node knows them.
fn addresses(station: &Station) -> Vec<String> {
    let known = station.view.services().iter();
    known
        .map(|(service, address)| format!("{service} {address}"))
        .collect()
}

#[test]
fn a_service_keeps_its_address_for_as_long_as_it_is_one() {
    let mut book = book();
    let many = token(&mut book, reusable());
    let mut station = joined(&mut book, 1, &many);
    deliver(&mut book, &mut station);
    let set = |book: &mut Book, station: &mut Station, text: &str| {
        let plan = book.set_policy(text).unwrap();
        write(book, plan);
        deliver(book, station);
        addresses(station)
    };
    let both = set(&mut book, &mut station, TWO_SERVICES);
    assert_eq!(both, ["db 100.127.0.1", "web 100.127.0.2"]);
    let (db, web) = TWO_SERVICES.split_at(TWO_SERVICES.find("[services.web]").unwrap());
    let with_cache = format!("{web}{}", db.replace("db", "cache"));
    let other = set(&mut book, &mut station, &with_cache);
    assert_eq!(other, ["cache 100.127.0.3", "web 100.127.0.2"]);
    assert_eq!(set(&mut book, &mut station, ""), [""; 0]);
    // One that is new is not where another was lately; who comes anew hears of all.
    let back = set(&mut book, &mut station, TWO_SERVICES);
    assert_eq!(back, ["db 100.127.0.4", "web 100.127.0.5"]);
    let mut late = joined(&mut book, 2, &many);
    deliver(&mut book, &mut late);
    assert_eq!(addresses(&late), back);
    // What happens to nodes says nothing of services, and forgets none.
    station.rotate();
    let plan = book.update(&station.record()).unwrap();
    write(&mut book, plan);
    let frame = book.frame(late.view.cursor()).unwrap();
    assert!(!frame.contains("services") && !frame.contains("100.127."));
    deliver(&mut book, &mut late);
    assert_eq!(addresses(&late), back);
    let cached = View::from_cache(book.key(), &late.view.to_cache());
    assert_eq!(cached.services(), late.view.services());
    assert_eq!(cached.cursor(), late.view.cursor());
    assert_eq!(book.services(), *late.view.services());
}

#[test]
fn who_knows_nothing_of_services_and_who_does_understand_each_other() {
    let mut book = book();
    let many = token(&mut book, reusable());
    let mut station = joined(&mut book, 1, &many);
    // The store of an older coordinator: a policy, and no numbers.
    let plan = book.set_policy(TWO_SERVICES).unwrap();
    let writes: Vec<_> = plan
        .writes
        .into_iter()
        .filter(|write| !matches!(write, Write::Put(key, _) if key == "services"))
        .collect();
    assert!(book.apply(&writes));
    let frame = book.frame(0).unwrap();
    assert!(!frame.contains("100.127."), "signed as it ever was");
    deliver(&mut book, &mut station);
    assert!(station.view.policy().is_some() && station.view.services().is_empty());
    let plan = book.settle().unwrap();
    write(&mut book, plan);
    assert!(book.settle().is_none());
    let frame = book.frame(station.view.cursor()).unwrap();
    deliver(&mut book, &mut station);
    assert_eq!(addresses(&station), ["db 100.127.0.1", "web 100.127.0.2"]);

    // An older node, which knows frames without them, reads what is signed.
    #[derive(serde::Deserialize)]
    struct OldFrame {
        to: u64,
        changes: Vec<Change>,
    }
    let frame: Signed<Frame> = serde_json::from_str(&frame).unwrap();
    let text = serde_json::to_string(&frame.verify(&book.key()).unwrap()).unwrap();
    let old: OldFrame = serde_json::from_str(&text).unwrap();
    assert!(matches!(&old.changes[..], [Change::Policy(_)]));
    assert_eq!(old.to, book.head());

    // What it kept, read after it was renewed: it knows its nodes, and asks for everything once.
    let mut cache: serde_json::Value = serde_json::from_str(&station.view.to_cache()).unwrap();
    cache.as_object_mut().unwrap().remove("services");
    let mut renewed = View::from_cache(book.key(), &cache.to_string());
    assert_eq!((renewed.cursor(), renewed.nodes().count()), (0, 1));
    let whole = book.frame(renewed.cursor()).unwrap();
    renewed
        .apply(&serde_json::from_str(&whole).unwrap())
        .unwrap();
    assert_eq!(renewed.services(), station.view.services());
}

#[test]
fn the_addresses_of_services_are_no_nodes() {
    let last = (63 << 16) - 1;
    assert_eq!(overlay_v4(last), Some([100, 126, 255, 255].into()));
    assert_eq!(overlay_v4(last + 1), None);
    assert_eq!(service_v4(1), Some([100, 127, 0, 1].into()));
    assert_eq!(service_v4(0xfffe), Some([100, 127, 255, 254].into()));
    assert_eq!((service_v4(0), service_v4(0xffff)), (None, None));
    assert!(is_service_v4([100, 127, 3, 4].into()));
    assert!(!is_service_v4([100, 126, 3, 4].into()));
    // A coordinator in wrong hands cannot put a service in a node's place.
    let by_coordinator = Identity::from_seed([9; 32]);
    let mut view = View::new(by_coordinator.public());
    let services = [("db", [100, 64, 0, 1]), ("web", [100, 127, 0, 9])];
    let frame = by_coordinator.sign(&Frame {
        from: None,
        to: 1,
        changes: Vec::new(),
        services: Some(
            services
                .map(|(name, at)| (name.to_owned(), at.into()))
                .into(),
        ),
    });
    view.apply(&frame).unwrap();
    assert_eq!(view.services().keys().collect::<Vec<_>>(), ["web"]);
}
