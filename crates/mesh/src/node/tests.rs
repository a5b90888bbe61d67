//! What is on disk, and what a view means.

use super::*;
use crate::coordination::{Book, BookOptions, Identity, NewToken};

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
                endpoints: vec![([192, 0, 2, seed], 51820).into()],
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
        let current = Current::of(view, &vouchers[at], range);
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
