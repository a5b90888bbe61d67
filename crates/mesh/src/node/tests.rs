//! What is on disk, and what a view means.

use std::net::IpAddr;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};

use super::*;
use crate::coordination::{Book, BookOptions, Identity, NewToken};
use crate::names::{Answer, Zone};

#[test]
fn the_state_is_kept_and_is_held_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node");
    let coordinator = Identity::from_seed([1; 32]).public();
    assert!(matches!(
        State::open(&path, None),
        Err(StateError::NeverJoined(_))
    ));
    let mut state = State::open(&path, Some((coordinator, "http://a"))).unwrap();
    assert!(matches!(
        State::open(&path, None),
        Err(StateError::Taken(_))
    ));
    state.epoch = 7;
    state.save().unwrap();
    let identity = state.identity.public();
    drop(state);
    let state = State::open(&path, None).unwrap();
    assert_eq!(
        (state.identity.public(), state.epoch, &*state.url),
        (identity, 7, "http://a")
    );
    drop(state);
    // The coordinator may move; another mesh is another directory.
    let state = State::open(&path, Some((coordinator, "http://b"))).unwrap();
    assert_eq!(state.url, "http://b");
    drop(state);
    let other = Identity::from_seed([2; 32]).public();
    assert!(matches!(
        State::open(&path, Some((other, "x"))),
        Err(StateError::OtherMesh(_))
    ));
    for file in std::fs::read_dir(&path).unwrap() {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "nobody else reads it");
    }
    std::fs::write(path.join("node.json"), "{").unwrap();
    assert!(matches!(
        State::open(&path, None),
        Err(StateError::Spoilt(_))
    ));
}

#[test]
fn only_those_with_whom_something_may_pass_are_peers() {
    let mut book = Book::new(Identity::from_seed([1; 32]), BookOptions::default(), 0);
    let mut vouchers = Vec::new();
    for (seed, tag) in [(2_u8, "web"), (3, "db"), (4, "other")] {
        let allows = NewToken {
            tags: [tag.to_owned()].into(),
            ..NewToken::default()
        };
        let plan = book.new_token(allows, "http://a", 0).unwrap();
        book.apply(&plan.writes);
        let identity = Identity::from_seed([seed; 32]);
        let request = JoinRequest {
            token: plan.answer.id.clone(),
            admission: plan.answer.admission(identity.public()),
            record: identity.sign(&NodeRecord {
                identity: identity.public(),
                epoch: 1,
                name: tag.to_owned(),
                wireguard: crate::PrivateKey::from_bytes([seed; 32]).public(),
                renewal: None,
                endpoints: vec![([192, 0, 2, seed], 51820).into()],
                underlay: None,
                relay: None,
                plain: false,
                flows: vec![([192, 0, 2, seed], 51821).into()],
                mode: Mode::Tun,
                unready: Default::default(),
            }),
        };
        let plan = book.join(&request, 0).unwrap();
        book.apply(&plan.writes);
        vouchers.push(plan.answer.voucher.verify(&book.key()).unwrap());
    }
    let mut view = View::new(book.key());
    let frame = book.frame(0).unwrap();
    view.apply(&serde_json::from_str(&frame).unwrap()).unwrap();
    let range = overlay_v6_range(&book.key());
    let peers = |view: &View, at: usize| {
        let key = crate::PrivateKey::from_bytes([2 + at as u8; 32]).public();
        let current = Current::of(view, &vouchers[at], key, Mode::Tun, range, None);
        let names: Vec<_> = current.peers.into_values().map(|peer| peer.name).collect();
        names.join(" ")
    };
    // No policy: nobody.
    assert!((0..3).all(|at| peers(&view, at).is_empty()));
    let plan = book
        .set_policy("[[allow]]\nfrom = [\"tag:web\"]\nto = [\"tag:db\"]\nports = [\"tcp/5432\"]\n")
        .unwrap();
    book.apply(&plan.writes);
    let frame = book.frame(view.cursor()).unwrap();
    view.apply(&serde_json::from_str(&frame).unwrap()).unwrap();
    let all: Vec<_> = (0..3).map(|at| peers(&view, at)).collect();
    assert_eq!(all, ["db", "web", ""]);
}

/// What a name leads to; `None` if there is no such name.
fn asked(zone: &Zone, name: &str, kind: TYPE) -> Option<Vec<IpAddr>> {
    let mut question = Packet::new_query(7);
    let name = Name::new(name).unwrap();
    let class = QCLASS::CLASS(CLASS::IN);
    question
        .questions
        .push(Question::new(name, QTYPE::TYPE(kind), class, false));
    let Answer::Reply(reply) = zone.answer(&question.build_bytes_vec().unwrap(), true) else {
        panic!("it is not asked on");
    };
    let reply = Packet::parse(&reply).unwrap();
    let address = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::A(a) => IpAddr::V4(a.address.into()),
        RData::AAAA(aaaa) => IpAddr::V6(aaaa.address.into()),
        other => panic!("{other:?}"),
    };
    let found = reply.answers.iter().map(address).collect();
    (reply.rcode() == RCODE::NoError).then_some(found)
}

#[test]
fn names_lead_to_loopback_where_one_end_has_no_device() {
    let mut book = Book::new(Identity::from_seed([1; 32]), BookOptions::default(), 0);
    let plan = book.new_token(
        NewToken {
            reuse: true,
            ..NewToken::default()
        },
        "http://a",
        0,
    );
    let plan = plan.unwrap();
    book.apply(&plan.writes);
    let token = plan.answer;
    let key = |seed: u8| crate::PrivateKey::from_bytes([seed; 32]).public();
    let mut vouchers = Vec::new();
    let modes = [(2, Mode::Tun), (3, Mode::Tun), (4, Mode::Userspace)];
    for (seed, mode) in modes {
        let identity = Identity::from_seed([seed; 32]);
        let request = JoinRequest {
            token: token.id.clone(),
            admission: token.admission(identity.public()),
            record: identity.sign(&NodeRecord {
                identity: identity.public(),
                epoch: 1,
                name: format!("n{seed}"),
                wireguard: key(seed),
                renewal: None,
                endpoints: Vec::new(),
                // One that would make others talk to themselves.
                underlay: None,
                relay: None,
                plain: false,
                flows: vec![
                    ([127, 0, 0, 1], 51821).into(),
                    ([192, 0, 2, seed], 51821).into(),
                ],
                mode,
                unready: Default::default(),
            }),
        };
        let plan = book.join(&request, 0).unwrap();
        book.apply(&plan.writes);
        vouchers.push(plan.answer.voucher.verify(&book.key()).unwrap());
    }
    let plan = book.set_policy("[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\nports = [\"*\"]\n");
    book.apply(&plan.unwrap().writes);
    let range = overlay_v6_range(&book.key());
    // Before the first map each knows itself, afterwards all.
    let mut view = View::new(book.key());
    let alone = Current::of(&view, &vouchers[2], key(4), Mode::Userspace, range, None);
    let door = |at: usize| IpAddr::V4(crate::userspace::loopback(vouchers[at].v4).unwrap());
    assert_eq!(asked(&alone.zone, "n4", TYPE::A), Some(vec![door(2)]));
    let frame = book.frame(0).unwrap();
    view.apply(&serde_json::from_str(&frame).unwrap()).unwrap();
    for (at, (seed, mode)) in modes.into_iter().enumerate() {
        let current = Current::of(&view, &vouchers[at], key(seed), mode, range, None);
        for (to, (other, others)) in modes.into_iter().enumerate() {
            let name = format!("n{other}.mesh.internal");
            let (v4, v6) = (vouchers[to].v4.into(), vouchers[to].v6.into());
            let expected = match (mode, others) {
                (Mode::Tun, Mode::Tun) => (vec![v4], vec![v6]),
                // There is no such address for IPv6, though there is such a name.
                _ => (vec![door(to)], Vec::new()),
            };
            let found = (
                asked(&current.zone, &name, TYPE::A).unwrap(),
                asked(&current.zone, &name, TYPE::AAAA).unwrap(),
            );
            assert_eq!(found, expected, "{seed} asks for {other}");
        }
        assert_eq!(asked(&current.zone, "n9.mesh.internal", TYPE::A), None);
        let home = IpAddr::V4(current.directory.own().home());
        let expected = match mode {
            Mode::Tun => vouchers[at].v4.into(),
            Mode::Userspace => door(at),
        };
        assert_eq!(home, expected);
        let places = current.directory.members().map(|member| &member.endpoints);
        assert!(places.flatten().all(|place| !place.ip().is_loopback()));
    }
    // What others know of a node may be older than what it is now.
    let now = Current::of(&view, &vouchers[0], key(2), Mode::Userspace, range, None);
    assert_eq!(asked(&now.zone, "n2", TYPE::A), Some(vec![door(0)]));
    assert_eq!(now.directory.own().mode, Mode::Userspace);
}

#[test]
fn the_password_of_the_proxy_is_made_once() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let coordinator = Identity::from_seed([1; 32]).public();
    let state = State::open(directory.path(), Some((coordinator, "http://a"))).unwrap();
    let secret = state.proxy_secret("user").unwrap();
    assert_eq!(secret.len(), 43);
    let path = state.proxy_file();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, format!("user:{}\n", *secret));
    // Whoever copied it with other rights.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(state.proxy_secret("user").unwrap(), secret);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for spoilt in ["", "user:short", "other:0123456789abcdef0123456789abcdef"] {
        std::fs::write(&path, spoilt).unwrap();
        assert!(matches!(
            state.proxy_secret("user"),
            Err(StateError::Spoilt(_))
        ));
    }
    std::fs::remove_file(&path).unwrap();
    assert_ne!(state.proxy_secret("user").unwrap(), secret);
}
